"""What does sharing do over time: how many clusters, how large, and what does each prox take?

Two networks learn digits with the prox after each step.  In some of the steps the weights are
looked at: as the step finds them, as the optimizer leaves them, and as the prox does.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.optim import Optimizer
from tqdm import tqdm

import wsr
from experiments import learning, records
from experiments.data import load_digits, shifted_digits
from experiments.learning import Examples, Regularization, Schedule, Split
from experiments.networks import Network, TorusFC
from experiments.rounds import count


class OneHidden(Network):
    """A fully connected network n -> hidden -> 10 that may share the weights of its first layer."""

    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(n, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x).relu())
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of the first layer."""
        first, _ = self.first.parameters()  # weights and biases
        return [first]


def members_by_size(counts: NDArray[np.int64]) -> list[int]:
    """Return how many weights are in clusters of 1, of 2 and 3, of 4 to 7, and so on."""
    _, exponents = np.frexp(counts.astype(np.float64))
    totals: list[int] = np.bincount(exponents - 1, weights=counts).astype(np.int64).tolist()
    return totals


def describe(before: Tensor, moved: Tensor, after: Tensor, lr: float, lambd: float) -> records.Row:
    """Return what one step does to the weights of one layer.

    Parameters
    ----------
    before, moved, after : Tensor
        The weights as the step finds them, as the optimizer leaves them, as the prox does.
    lr, lambd : float
        Learning rate and strength: the prox of this step has the strength lr * lambd.

    Returns
    -------
    dict
        "rounds" and "work" of ImminentCollisions in this prox; "held", how many weights are in the
        largest cluster before the step; "pull" and "pull_inside", the standard deviation of what
        the optimizer steps along (loss per unit of weight) over all weights and over those of that
        cluster; then, after the prox, "distinct" values, "zeros", weights in the "largest" cluster,
        the "penalty" R, the standard "deviation" of the weights, and in "sizes" how many of them
        are in clusters of which size (see :func:`members_by_size`).
    """
    taken = count(moved, lr * lambd)
    values, counts = np.unique(before.numpy(), return_counts=True)
    members = before == float(values[counts.argmax()])
    pulls = (before.double() - moved.double()) / lr
    row: records.Row = {
        "rounds": taken.rounds,
        "work": taken.work,
        "held": int(counts.max()),
        "pull": _rounded(pulls.std()),
        "pull_inside": _rounded(pulls[members].std(correction=0)),
    }
    values, counts = np.unique(after.numpy(), return_counts=True)
    return {
        **row,
        "distinct": len(values),
        "zeros": int(counts[values == 0].sum()),
        "largest": int(counts.max()),
        "penalty": _rounded(wsr.penalty(after)),
        "deviation": _rounded(after.double().std()),
        "sizes": members_by_size(counts),
    }


def _rounded(x: Tensor) -> float:
    return float(f"{float(x):.5g}")


def follow(
    net: Network,
    examples: Examples,
    how: Regularization,
    schedule: Schedule,
    *,
    seed: int,
    looks: int,
) -> list[records.Row]:
    """Train a network in place, and return for each of its layers what was seen in some steps.

    Parameters
    ----------
    net, examples, how, schedule, seed
        As in :func:`experiments.learning.train`; the method is "prox", with one strength.
    looks : int
        In how many steps to look: the first, the last, and more often early than late.
    """
    chosen = set(steps_to_look_at(schedule.steps, looks))
    layers = net.weights()
    strengths = how.strengths(len(layers))
    seen: list[list[records.Row]] = [[] for _ in layers]
    before: list[Tensor] = []

    def watch(step: int, optimizer: Optimizer) -> None:
        if step == 0:
            optimizer.register_step_post_hook(look)  # runs before the prox
        before[:] = [p.detach().clone() for p in layers] if step in chosen else []

    def look(optimizer: Optimizer, *_: Any) -> None:
        if not before:
            return
        lr = optimizer.param_groups[0]["lr"]
        for rows, p, w, lambd in zip(seen, layers, before, strengths, strict=True):
            moved = p.detach()
            after = wsr.prox(moved, lr * lambd, rho=how.rho)
            rows.append(describe(w, moved, after, lr, lambd))

    learning.train(net, examples, how, schedule, seed=seed, watch=watch)
    return [
        {"weights": p.numel(), **{name: [row[name] for row in rows] for name in rows[0]}}
        for p, rows in zip(layers, seen, strict=True)
    ]


def steps_to_look_at(steps: int, looks: int) -> list[int]:
    """Return numbers of steps from 0 to steps - 1 whose distances grow evenly."""
    numbers = np.round((steps - 1) * np.linspace(0, 1, looks) ** 2)
    return [int(n) for n in np.unique(numbers)]


FULL: records.Row = {
    "fraction": 0.3,
    "held_out": 6000,
    "looks": 40,
    "seeds": [0, 1, 2],
    "networks": {
        "one hidden layer": {
            "shifted": False,
            "hidden": 256,
            "schedule": {"steps": 400, "batch": 128, "lr": 0.3, "momentum": 0.0},
            "methods": [[0.0, 0.0], [1e-3, 0.0], [3e-3, 0.0], [1e-2, 0.0], [3e-2, 0.9]],
        },
        "torus": {
            "shifted": True,
            "channels": [2, 4],
            "schedule": {"steps": 600, "batch": 128, "lr": 0.05, "momentum": 0.9},
            "methods": [[0.0, 0.0], [3e-3, 0.0], [1e-2, 0.0], [3e-2, 0.0], [1e-1, 0.9]],
        },
    },
}
QUICK: records.Row = {
    "fraction": 0.02,
    "held_out": 100,
    "looks": 5,
    "seeds": [0],
    "networks": {
        "one hidden layer": {
            "shifted": False,
            "hidden": 8,
            "schedule": {"steps": 12, "batch": 32, "lr": 0.3, "momentum": 0.0},
            "methods": [[0.0, 0.0], [3e-2, 0.9]],
        },
        "torus": {
            "shifted": True,
            "channels": [1, 1],
            "schedule": {"steps": 12, "batch": 32, "lr": 0.05, "momentum": 0.9},
            "methods": [[1e-2, 0.0]],
        },
    },
}


def digits(settings: records.Row, shifted: bool) -> tuple[str, int, Split]:
    """Return the name of the images, the pixels along a side, and what to learn from.

    The images of MNIST are shrunk to 14 x 14; shifted ones have been moved around a torus.
    """
    data = shifted_digits() if shifted else load_digits()
    x, side = data.train_images, data.train_images.shape[-1]
    if side == 28:
        x, side = avg_pool2d(x[:, None], 2), 14
    known = Examples(x.flatten(1), data.train_labels)
    nothing = known.take(slice(0))  # the test set is not looked at
    parts = learning.split(known, nothing, settings["held_out"], settings["fraction"])
    return data.name, side, parts


def network(given: records.Row, side: int, seed: int) -> Network:
    """Return a network with the initial weights that belong to a seed."""
    torch.manual_seed(seed)
    if "hidden" in given:
        return OneHidden(side**2, given["hidden"])
    return TorusFC(side, *given["channels"])


Job = tuple[records.Row, Callable[[], records.Row]]


def jobs(settings: records.Row) -> Iterator[Job]:
    """Yield what to train: the key of a row, and a function that returns the rest of it."""
    for name, given in settings["networks"].items():
        images, side, split = digits(settings, shifted=given["shifted"])
        for seed, (lambd, rho) in product(settings["seeds"], given["methods"]):
            key = {"network": name, "images": images, "lambd": lambd, "rho": rho, "seed": seed}
            yield key, partial(measure, given, side, split, lambd, rho, seed, settings["looks"])


def measure(
    given: records.Row, side: int, split: Split, lambd: float, rho: float, seed: int, looks: int
) -> records.Row:
    """Return what is seen in one training, and how well the network does on the validation set."""
    net = network(given, side, seed)
    how = Regularization("prox", lambd, rho=rho)
    schedule = Schedule(**given["schedule"])
    layers = follow(net, split.train, how, schedule, seed=seed, looks=looks)
    row = {"examples": len(split.train.y), "accuracy": learning.accuracy(net, split.valid)}
    return {**row, "steps": steps_to_look_at(schedule.steps, looks), "layers": layers}


def main(arguments: Sequence[str] | None = None) -> None:
    """Follow all trainings."""
    description = (
        "Follow the sharing of weights while networks learn digits on a torus: distinct values, "
        "zeros, sizes of clusters, R (units of a weight), and the rounds that ImminentCollisions "
        "takes for the prox of the step. Strengths are losses per unit of weight."
    )
    options = records.parser(description).parse_args(arguments)
    settings = QUICK if options.quick else FULL
    command = "python -m experiments.over_time" + " --quick" * options.quick
    record = records.Record("over_time", settings, options.results, command=command)
    for key, run in tqdm(list(jobs(settings)), desc="over_time", unit="run"):
        if not record.has(**key):
            record.add(**key, **run())
    print(record.finish())


if __name__ == "__main__":
    main()
