"""How many rounds does ImminentCollisions need, and how much work is in them?

Counted, not timed.  A *round* is one pass over all clusters in which at least one pair merges; the
last pass, which finds nothing to merge, is no round.  The *work* is the number of clusters looked
at in all passes, the last one included.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import wsr
from experiments import records
from experiments.data import load_digits
from wsr.exact_sums import LIMB, ExactSums
from wsr.particles import free_end_points

SQRT_HALF_PI = math.sqrt(math.pi / 2)  # the critical strength for normal weights of deviation 1
NORMAL = (0.001, 0.01, 0.1, 0.3, 0.6, 1.0, SQRT_HALF_PI, 1.4, 1.7, 2.0, 3.0, 5.0)


class Count(NamedTuple):
    """What a run of ImminentCollisions took, and what it ended with."""

    rounds: int
    work: int
    clusters: int
    largest: int


Limbs = NDArray[np.int64]
compiled = numba.njit(cache=True)


def count(w: Tensor, lambd: float) -> Count:
    """Return what ImminentCollisions takes for the prox of the weights w, all one group.

    In O(d log d) operations, however many rounds there are: a pair of neighbouring clusters is
    looked at again only after a round in which one of the two has grown.  Until then its answer
    stays no.  Means are compared exactly, on the grid that the algorithm itself uses.
    """
    x = w.detach().double().flatten().sort().values
    return count_end_points(free_end_points(x, lambd))


def count_end_points(z: Tensor) -> Count:
    """Return what ImminentCollisions takes for the free end points z, shape (d,)."""
    sums = ExactSums(z)
    return Count(*map(int, _follow(sums.high.numpy(), sums.low.numpy())))


@compiled
def _follow(high: Limbs, low: Limbs) -> tuple[int, int, int, int]:
    d = len(high) - 1
    # A cluster is named by its begin: 0, d and the borders that are left are a linked list.
    before = np.arange(-1, d)
    after = np.arange(1, d + 2)
    waiting = list(range(1, d))  # borders to look at, in increasing order
    rounds, clusters, work = 0, d, 0
    while True:
        work += clusters
        imminent = [k for k in waiting if _meet(high, low, before[k], k, after[k])]
        if len(imminent) == 0:
            break
        rounds += 1
        clusters -= len(imminent)
        for k in imminent:
            after[before[k]] = after[k]
            before[after[k]] = before[k]
        waiting = [0]  # no border stands at 0: it only begins the list
        for k in imminent:
            for border in (before[k], after[before[k]]):
                if waiting[-1] < border < d:
                    waiting.append(border)
        waiting = waiting[1:]
    largest = begin = 0
    while begin < d:
        largest = max(largest, after[begin] - begin)
        begin = after[begin]
    return rounds, work, clusters, largest


@compiled
def _meet(high: Limbs, low: Limbs, begin: int, border: int, end: int) -> bool:
    """Return whether the mean before the border is at least the mean behind it."""
    left, left_rest = _mean(high, low, begin, border)
    right, right_rest = _mean(high, low, border, end)
    if left != right:
        return left > right
    return left_rest * (end - border) >= right_rest * (border - begin)


@compiled
def _mean(high: Limbs, low: Limbs, begin: int, end: int) -> tuple[int, int]:
    """Return whole and remainder of the exact mean, as in ``wsr.exact_sums.Mean``."""
    size = end - begin
    total = high[end] - high[begin]
    whole = total // size
    carried = ((total - whole * size) << LIMB) + low[end] - low[begin]
    digit = carried // size
    return (whole << LIMB) + digit, carried - digit * size


def staircase(d: int, lambd: float) -> Tensor:
    """Return d weights for which d - 1 rounds are needed; d up to 10^5 in float64.

    Two are tied at 0; from there on each is a little more than a free step behind the one before.
    """
    step = 2 * lambd / (d - 1)
    k = torch.arange(d - 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1).double(), k * (1 + d**-2) * step])


def cascade(d: int, lambd: float) -> Tensor:
    """Return d weights, d >= 6 even, for which d/2 + 1 rounds are needed.

    Half of them are tied, the others stand to their right at equal distances.
    """
    step = 2 * lambd / (d - 1)
    k = torch.arange(1, d // 2 + 1, dtype=torch.float64)
    return torch.cat([torch.zeros(d // 2).double(), 1.25 * k * step])


def normal(d: int, seed: int, tied: float = 0.0) -> Tensor:
    """Return normal weights of deviation 1, of which a share is 0."""
    w = torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    w[: round(tied * d)] = 0.0
    return w


def noisy_steps(d: int, steps: int, seed: int, noise: float, strength: float) -> Iterator[Count]:
    """Alternate noise and prox, and yield what each prox takes.

    The weights begin normal with deviation 0.02; every step adds normal noise of deviation
    ``noise`` and takes the prox of the given strength.
    """
    generator = torch.Generator().manual_seed(seed)
    w = 0.02 * torch.randn(d, dtype=torch.float64, generator=generator)
    for _ in range(steps):
        w = w + noise * torch.randn(d, dtype=torch.float64, generator=generator)
        yield count(w, strength)
        w = wsr.prox(w, strength)


class Images(NamedTuple):
    """Flattened images, float32 (n, pixels), and their labels, on which a network learns."""

    name: str
    pixels: Tensor
    labels: Tensor


def images() -> Images:
    """Return the training images of the digits, those of MNIST after averaging 2 x 2 pixels."""
    digits = load_digits()
    pixels = digits.train_images
    if pixels.shape[-1] == 28:
        pixels = F.avg_pool2d(pixels[:, None], 2)
    return Images(digits.name, pixels.flatten(1), digits.train_labels)


def training(
    data: Images, *, hidden: int, steps: int, batch: int, lr: float, lambd: float, seed: int
) -> Iterator[tuple[Count, float]]:
    """Train a fully connected network by SGD with the prox; yield what each prox takes.

    The prox acts on the first layer, with strength lr * lambd.  With the counts comes the loss on
    the batch before the step.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(data.pixels.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 10))
    first, *others = net.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "lambd": lambd}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    counts: list[Count] = []
    # Hooks run in the order in which they came: this one sees what the prox is about to get.
    optimizer.register_step_post_hook(lambda *_: counts.append(count(first, lr * lambd)))
    wsr.proximal(optimizer)
    for _ in range(steps):
        chosen = torch.randint(len(data.labels), (batch,))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(data.pixels[chosen]), data.labels[chosen])
        torch.autograd.backward(loss)
        optimizer.step()
        yield counts[-1], loss.item()


FULL: records.Row = {
    "normal": {
        "strengths": NORMAL,
        "draws": {"100": 100, "1000": 50, "10000": 20, "100000": 20, "1000000": 10},
    },
    "adversarial": {"sizes": [10, 100, 1000, 10_000, 100_000], "strength": 1.0},
    "atom": {"d": 10**6, "tied": [0.1, 0.5, 0.9], "strengths": [1e-3, 1e-2, 1e-1], "draws": 4},
    "noise": {
        "d": 10**5,
        "steps": 401,
        "every": 5,
        "noise": 2e-4,
        "ratios": [0.5, 1.0, 1.5, 2.0, 3.0],
        "seeds": 1,
    },
    "training": {
        "hidden": 256,
        "steps": 401,
        "every": 5,
        "batch": 100,
        "lr": 0.3,
        "strengths": [1e-3, 3e-3, 1e-2],
        "seeds": 3,
    },
}
QUICK: records.Row = {
    "normal": {"strengths": NORMAL, "draws": {"100": 3, "1000": 2}},
    "adversarial": {"sizes": [10, 100], "strength": 1.0},
    "atom": {"d": 1000, "tied": [0.5], "strengths": [0.1], "draws": 1},
    "noise": {"d": 1000, "steps": 10, "every": 3, "noise": 2e-4, "ratios": [3.0], "seeds": 1},
    "training": {
        "hidden": 4,
        "steps": 11,
        "every": 5,
        "batch": 10,
        "lr": 0.3,
        "strengths": [1e-2],
        "seeds": 1,
    },
}

Job = tuple[records.Row, Callable[[], records.Row]]


def columns(counts: Iterable[Count]) -> records.Row:
    """Return one list for each field of the counts."""
    taken = list(counts)
    return {name: [getattr(one, name) for one in taken] for name in Count._fields}


def jobs(settings: records.Row) -> Iterator[Job]:
    """Yield what to count: the key of a row, and a function that returns the rest of it."""
    given = settings["normal"]
    for size, draws in given["draws"].items():
        for draw in range(draws):
            key = {"input": "normal", "d": int(size), "draw": draw}
            yield key, partial(draw_normal, int(size), draw, given["strengths"])
    given = settings["adversarial"]
    for family in (staircase, cascade):
        for d in given["sizes"]:
            key = {"input": family.__name__, "d": d}
            yield key, partial(count_family, family, d, given["strength"])
    given = settings["atom"]
    for tied, draw in product(given["tied"], range(given["draws"])):
        key = {"input": "atom", "tied": tied, "draw": draw}
        yield key, partial(draw_normal, given["d"], draw, given["strengths"], tied)
    given = settings["noise"]
    for ratio, seed in product(given["ratios"], range(given["seeds"])):
        key = {"input": "noise", "ratio": ratio, "seed": seed}
        yield key, partial(follow_noise, given, ratio, seed)
    given = settings["training"]
    data = images()
    for lambd, seed in product(given["strengths"], range(given["seeds"])):
        key = {"input": "training", "images": data.name, "lambd": lambd, "seed": seed}
        yield key, partial(follow_training, given, data, lambd, seed)


def draw_normal(d: int, draw: int, strengths: Sequence[float], tied: float = 0.0) -> records.Row:
    """Return what the prox of one draw of normal weights takes, for every strength."""
    w = normal(d, draw, tied).sort().values
    return columns(count(w, lambd) for lambd in strengths)


def count_family(family: Callable[[int, float], Tensor], d: int, lambd: float) -> records.Row:
    """Return what the prox of one adversarial input takes."""
    return count(family(d, lambd), lambd)._asdict()


def follow_noise(given: records.Row, ratio: float, seed: int) -> records.Row:
    """Return what the prox takes after every few steps of noise."""
    noise, every = given["noise"], given["every"]
    counts = noisy_steps(given["d"], given["steps"], seed, noise, ratio * noise)
    return columns(islice(counts, 0, None, every))


def follow_training(given: records.Row, data: Images, lambd: float, seed: int) -> records.Row:
    """Return what the prox takes every few steps of a training, and the loss there."""
    fixed = {name: given[name] for name in ("hidden", "steps", "batch", "lr")}
    steps = list(training(data, **fixed, lambd=lambd, seed=seed))[:: given["every"]]
    weights = data.pixels.shape[1] * given["hidden"]
    losses = [round(loss, 4) for _, loss in steps]
    return {"d": weights, **columns(counts for counts, _ in steps), "loss": losses}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count everything."""
    description = "Count the rounds of ImminentCollisions, and the work in them."
    options = records.parser(description).parse_args(arguments)
    settings = QUICK if options.quick else FULL
    command = "python -m experiments.rounds" + " --quick" * options.quick
    record = records.Record("rounds", settings, options.results, command=command)
    for key, measure in tqdm(list(jobs(settings)), desc="rounds", unit="row"):
        if not record.has(**key):
            record.add(**key, **measure())
    print(record.finish())


if __name__ == "__main__":
    main()
