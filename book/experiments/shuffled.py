"""Does a network notice that the pixels of all images are shuffled, all images in the same way?"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments import records
from experiments.data import shifted_digits
from experiments.learning import (
    Examples,
    Regularization,
    Schedule,
    Split,
    accuracy,
    shared,
    split,
    train,
)
from experiments.networks import Network, TorusCNN, TorusFC

INPUT_BITS, OTHER_BITS, MOST_TERMS = 10, 33, 2**10  # together 53 bits: what float64 holds exactly


def on_grid(values: Tensor, bits: int) -> Tensor:
    """Round to multiples of 2^(e - bits), where 2^e is the power of two above the largest entry.

    The largest entry does not depend on the order of the entries, so neither does the grid.

    Returns
    -------
    Tensor
        float64, of the shape of ``values``.
    """
    exponent = math.frexp(float(values.abs().max()))[1]
    unit = 2.0 ** (exponent - bits)
    return torch.round(values.double() / unit) * unit


class _ExactProducts(torch.autograd.Function):
    """The product of inputs (batch, n) and weights (m, n): (batch, m), every sum without error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError("x must not need a gradient: this layer is the first one")
        _check_terms("columns", x.shape[1])
        x = on_grid(x, INPUT_BITS)
        ctx.save_for_backward(x)
        return (x @ on_grid(weight, OTHER_BITS).T).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor]:
        (x,), (slope,) = ctx.saved_tensors, slopes
        _check_terms("rows", len(x))
        return None, (on_grid(slope, OTHER_BITS).T @ x).to(slope.dtype)


def _check_terms(name: str, terms: int) -> None:
    if terms > MOST_TERMS:
        raise ValueError(f"x must have at most {MOST_TERMS} {name}; got {terms}")


class ExactLinear(nn.Linear):
    """A first layer whose results do not depend on the order of the inputs, to the last bit.

    Both factors of every product are rounded to a grid, entry by entry: the inputs to 10 bits, the
    weights, and in the backward pass the slopes, to 33.  A sum of up to 1,024 such products is a
    multiple of one unit, at most 2^53 of them.  So float64 holds it and all partial sums exactly,
    and it is the same in any order.  It is then rounded once.

    Raises
    ------
    ValueError
        If there are more than 1,024 inputs, or rows in a batch to learn from, or the inputs need a
        gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        products: Tensor = _ExactProducts.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return products + self.bias


def network(method: str, side: int, channels: Sequence[int], seed: int) -> Network:
    """Return an untrained network: a CNN, or a fully connected one for every other method."""
    # Not the seed that draws batches and dropout: the theorem wants them independent of the start.
    torch.manual_seed(10_000 + seed)
    a, b = channels
    return TorusCNN(side, a, b) if method == "CNN" else TorusFC(side, a, b)


def with_exact_sums(net: TorusFC) -> TorusFC:
    """Return a copy of the network whose first layer is an :class:`ExactLinear`."""
    result = copy.deepcopy(net)
    first = result.first
    assert isinstance(first, nn.Sequential)
    ordinary = first[0]
    outputs, inputs = net.weights()[0].shape
    first[0] = ExactLinear(inputs, outputs)
    first[0].load_state_dict(ordinary.state_dict())
    return result


def with_permuted_columns(net: Network, order: Tensor) -> Network:
    """Return a copy of the network whose first weights stand in another order, as the pixels do."""
    result = copy.deepcopy(net)
    weight = result.weights()[0]
    with torch.no_grad():
        weight.copy_(weight[:, order])
    return result


def permutation(pixels: int, seed: int) -> Tensor:
    """Return the order in which the pixels of shuffled images stand."""
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(20_000 + seed))


def rotation(pixels: int, seed: int) -> Tensor:
    """Return an orthogonal matrix drawn uniformly, float32 (pixels, pixels)."""
    generator = torch.Generator().manual_seed(20_000 + seed)
    q, r = torch.linalg.qr(torch.randn(pixels, pixels, dtype=torch.float64, generator=generator))
    result: Tensor = (q * r.diagonal().sign()).float()
    return result


def shuffled(data: Split, order: Tensor) -> Split:
    """Return the images with their pixels in another order."""
    return Split(*(part._replace(x=part.x[:, order]) for part in data))


def rotated(data: Split, q: Tensor) -> Split:
    """Return the images, as vectors of pixels, rotated by an orthogonal matrix."""
    return Split(*(part._replace(x=part.x @ q) for part in data))


def seen_as(kind: str, data: Split, seed: int) -> Split:
    """Return the images as they are ("plain"), or "shuffled", or "rotated", all in the same way."""
    pixels = data.train.x.shape[1]
    if kind == "plain":
        return data
    if kind == "shuffled":
        return shuffled(data, permutation(pixels, seed))
    if kind == "rotated":
        return rotated(data, rotation(pixels, seed))
    raise ValueError(f"kind must be 'plain', 'shuffled' or 'rotated'; got {kind!r}")


def digits(held_out: int, fraction: float) -> tuple[str, Split]:
    """Return the name of the digits on the torus, and them, flattened, in three parts."""
    data = shifted_digits()
    known = Examples(data.train_images.flatten(1), data.train_labels)
    test = Examples(data.test_images.flatten(1), data.test_labels)
    return data.name, split(known, test, min(held_out, len(known.y) // 4), fraction)


def path(
    net: Network, examples: Examples, how: Regularization, schedule: Schedule, seed: int, every: int
) -> list[Tensor]:
    """Train, and return the first weights every few steps and at the end."""
    weight, found = net.weights()[0].detach(), []

    def watch(step: int, _: torch.optim.Optimizer) -> None:
        if step % every == 0:
            found.append(weight.clone())

    train(net, examples, how, schedule, seed=seed, watch=watch)
    return [*found, weight.clone()]


def differing(a: Tensor, b: Tensor) -> int:
    """Return how many entries of two float32 tensors differ in any bit."""
    return int((a.contiguous().view(torch.int32) != b.contiguous().view(torch.int32)).sum())


def coupled_runs(
    net: Network,
    data: Split,
    order: Tensor,
    how: Regularization,
    schedule: Schedule,
    *,
    seed: int,
    every: int,
) -> records.Row:
    """Train twice, the second time with shuffled pixels and first columns, and compare.

    Returns
    -------
    dict
        Every few steps and at the end, ``differing``: first weights that are not the same to the
        last bit, when brought into the same order, and ``distance``: the largest difference.
        ``moved``: how far a first weight has moved at most.  ``others``: entries in all other
        layers that differ at the end.  ``flipped``: test images that are put in other classes.
        ``accuracy`` on them, of both.  ``first``: what the first layer shares.
    """
    twin = with_permuted_columns(net, order)
    images = data, shuffled(data, order)
    one, other = (
        path(n, part.train, how, schedule, seed, every)
        for n, part in zip((net, twin), images, strict=True)
    )
    one_again = [w[:, order] for w in one]
    rest = [
        (values, twin.state_dict()[name])
        for name, values in net.state_dict().items()
        if values.is_floating_point() and name != "first.0.weight"
    ]
    with torch.no_grad():
        classes = [n(part.test.x).argmax(1) for n, part in zip((net, twin), images, strict=True)]
    return {
        "differing": [differing(a, b) for a, b in zip(one_again, other, strict=True)],
        "distance": [float((a - b).abs().max()) for a, b in zip(one_again, other, strict=True)],
        "moved": float((one[-1] - one[0]).abs().max()),
        "others": sum(differing(a, b) for a, b in rest),
        "flipped": int((classes[0] != classes[1]).sum()),
        "accuracy": [accuracy(n, part.test) for n, part in zip((net, twin), images, strict=True)],
        "first": shared(net)[0],
    }


def exchange_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the exact two-sided p-value of the difference of means under exchange of all values.

    The share of the ways to split all values into two groups of these sizes whose means differ at
    least as much (Fisher's permutation test).
    """
    values = [*a, *b]
    total = math.fsum(values)

    def gap(group: Sequence[float]) -> float:
        mean = math.fsum(group) / len(a)
        return abs(mean - (total - math.fsum(group)) / len(b))

    found = gap(a) * (1 - 1e-9)  # equal gaps may differ by rounding
    gaps = [gap(group) >= found for group in combinations(values, len(a))]
    return sum(gaps) / len(gaps)


COUPLED = {
    "plain": Regularization(),
    "l1": Regularization("l1", l1=1e-3),
    "beta-lasso": Regularization("beta-lasso", l1=1e-5),
    "subgradient": Regularization("subgradient", 3e-3),
    "prox": Regularization("prox", 3e-3),
    "prox, rho, l1": Regularization("prox", 0.1, l1=3e-3, rho=0.97),
}
CHOSEN_ON = {"CNN": ("plain", "shuffled"), "FC": ("plain",), "FC + WSR": ("plain",)}

FULL: records.Row = {
    "held_out": 10_000,
    "fraction": 0.1,
    "channels": {"CNN": [4, 8], "FC": [2, 4], "FC + WSR": [2, 4]},
    "steps": 600,
    "batch": 128,
    "momentum": 0.9,
    "seeds": {
        "CNN": {"plain": 5, "shuffled": 5},
        "FC": {"plain": 10, "shuffled": 10, "rotated": 5},
        "FC + WSR": {"plain": 6, "shuffled": 6, "rotated": 3},
    },
    "choice": {
        "seed": 900,
        "CNN": [{"lr": 0.05, "lambd": 0.0}, {"lr": 0.2, "lambd": 0.0}],
        "FC": [{"lr": 0.05, "lambd": 0.0}, {"lr": 0.2, "lambd": 0.0}],
        "FC + WSR": [{"lr": 0.2, "lambd": 1e-3}, {"lr": 0.2, "lambd": 3e-3}],
    },
    "coupled": {
        "exact": {"channels": [1, 2], "steps": 300, "methods": list(COUPLED)},
        "ordinary": {"channels": [2, 4], "steps": 600, "methods": ["plain"]},
        "lr": 0.2,
        "seeds": 3,
        "every": 10,
        "methods": {name: how._asdict() for name, how in COUPLED.items()},
    },
}
QUICK: records.Row = FULL | {
    "channels": {method: [1, 1] for method in CHOSEN_ON},
    "steps": 4,
    "seeds": {
        "CNN": {"plain": 2, "shuffled": 2},
        "FC": {"plain": 2, "shuffled": 2, "rotated": 1},
        "FC + WSR": {"plain": 2, "shuffled": 2, "rotated": 1},
    },
    "coupled": FULL["coupled"]
    | {
        "exact": {"channels": [1, 1], "steps": 4, "methods": list(COUPLED)},
        "ordinary": {"channels": [1, 1], "steps": 4, "methods": ["plain"]},
        "seeds": 1,
        "every": 2,
    },
}

Job = tuple[records.Row, Callable[[], records.Row]]


def schedule_of(settings: records.Row, steps: int, lr: float) -> Schedule:
    """Return a schedule of so many steps, that begins with this learning rate."""
    return Schedule(steps, settings["batch"], lr, settings["momentum"])


def chosen(rows: Sequence[records.Row], method: str, kind: str) -> records.Row:
    """Return the candidate with the best accuracy on the validation images.

    For a fully connected network they are plain: by the theorem what is best on them is best on
    shuffled ones; on rotated ones it is used as it is.
    """
    if kind not in CHOSEN_ON[method]:
        kind = "plain"
    tried = [
        row
        for row in rows
        if row["panel"] == "choice" and (row["method"], row["kind"]) == (method, kind)
    ]
    best = max(tried, key=lambda row: row["valid"])
    return {key: best[key] for key in ("lr", "lambd")}


def fit(
    settings: records.Row, data: Split, method: str, kind: str, seed: int, lr: float, lambd: float
) -> tuple[Network, Split]:
    """Train a network on one kind of images; return it, and the images as it sees them."""
    data = seen_as(kind, data, seed)
    net = network(method, math.isqrt(data.train.x.shape[1]), settings["channels"][method], seed)
    how = Regularization("prox", lambd) if lambd else Regularization()
    train(net, data.train, how, schedule_of(settings, settings["steps"], lr), seed=seed)
    return net, data


def try_candidate(*arguments: Any) -> records.Row:
    """Return the accuracy on the validation images, of what ``fit`` trains."""
    net, data = fit(*arguments)
    return {"valid": accuracy(net, data.valid), "layers": shared(net)}


def measure(*arguments: Any) -> records.Row:
    """Return the accuracy on the test images, of what ``fit`` trains."""
    net, data = fit(*arguments)
    return {"test": accuracy(net, data.test), "layers": shared(net)}


def couple(settings: records.Row, data: Split, sums: str, method: str, seed: int) -> records.Row:
    """Return what two coupled runs differ in, with "exact" or with "ordinary" sums over pixels."""
    common, own = settings["coupled"], settings["coupled"][sums]
    pixels = data.train.x.shape[1]
    net = network("FC", math.isqrt(pixels), own["channels"], seed)
    if sums == "exact":
        assert isinstance(net, TorusFC)
        net = with_exact_sums(net)
    return coupled_runs(
        net,
        data,
        permutation(pixels, seed),
        COUPLED[method],
        schedule_of(settings, own["steps"], common["lr"]),
        seed=seed,
        every=common["every"],
    )


def jobs(settings: records.Row, data: Split, rows: Sequence[records.Row]) -> Iterator[Job]:
    """Yield the key of each row, and a function that returns the rest; choices use the rows."""
    choice = settings["choice"]
    for method, kinds in CHOSEN_ON.items():
        for kind, candidate in product(kinds, choice[method]):
            seed = choice["seed"]
            key = {"panel": "choice", "method": method, "kind": kind, "seed": seed}
            arguments = settings, data, method, kind, seed, *candidate.values()
            yield key | candidate, partial(try_candidate, *arguments)
    for method, seeds in settings["seeds"].items():
        for n, (kind, number) in enumerate(seeds.items()):
            best = chosen(rows, method, kind)
            # No two kinds share a seed: their runs are independent.
            for seed in range(100 * n, 100 * n + number):
                key = {"panel": "accuracy", "method": method, "kind": kind, "seed": seed}
                arguments = settings, data, method, kind, seed, *best.values()
                yield key | best, partial(measure, *arguments)
    part = settings["coupled"]
    for sums in ("exact", "ordinary"):
        for method, seed in product(part[sums]["methods"], range(part["seeds"])):
            key = {"panel": "coupled", "sums": sums, "method": method, "seed": seed}
            yield key, partial(couple, settings, data, sums, method, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything on plain and on changed images."""
    description = (
        "Train networks on digits on a torus whose pixels are shuffled, or whose pixel space is "
        "rotated, and on plain ones; compare accuracies (shares of the test images) and, for runs "
        "coupled by a permutation of the first columns, weights bit for bit. Images: MNIST."
    )
    options = records.parser(description).parse_args(arguments)
    name, data = digits(FULL["held_out"], FULL["fraction"])
    sizes = {key: len(part.y) for key, part in data._asdict().items()}
    settings = (QUICK if options.quick else FULL) | {"images": name, "examples": sizes}
    command = "python -m experiments.shuffled" + " --quick" * options.quick
    record = records.Record("shuffled", settings, options.results, command=command)
    for key, result in tqdm(jobs(settings, data, record.rows), desc="shuffled", unit="row"):
        if not record.has(**key):
            record.add(**key, **result())
    print(record.finish())


if __name__ == "__main__":
    main()
