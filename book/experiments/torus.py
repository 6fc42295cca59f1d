"""Can a fully connected network find the convolution, on digits that move around a torus?

Everything is reduced from the paper's size: a = 4 and b = 8 channels for 32 and 64.  Choices are
made on validation images, at one fraction of the training set, with a seed that is not used later.
"""

import copy
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

import wsr
from experiments.data import shifted_digits
from experiments.learning import (
    Examples,
    Regularization,
    Schedule,
    Split,
    accuracy,
    cut,
    shared,
    train,
)
from experiments.networks import Network, TorusCNN, TorusFC, as_fully_connected
from experiments.records import Record, Row, parser

SHARED = 0.1  # a layer shares if less than this part of its weights is distinct


class Strength(NamedTuple):
    """How strongly the prox pulls.

    Attributes
    ----------
    lambd : tuple of float
        Of the two layers; loss per unit of weight.
    rho : float
        The relaxation.
    settle : bool
        Whether 1 - rho falls with the learning rate; else it is constant.
    dropout : float
        The probability that an output of a layer is left out of a step.
    """

    lambd: tuple[float, float]
    rho: float = 0.0
    settle: bool = False
    dropout: float = 0.0


class Settings(NamedTuple):
    """Sizes, seeds, and the candidates among which validation images choose."""

    a: int = 4
    b: int = 8
    held_out: int = 10_000
    tested: int = 10_000
    fractions: tuple[float, ...] = (0.02, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    choice_fraction: float = 0.1
    choice_seed: int = 100
    steps: int = 600
    cnn_steps: int = 1500  # a step costs less, and it learns more slowly
    batch: int = 128
    momentum: float = 0.9
    # Learning rates and dropout of the networks without a penalty.
    fc: tuple[tuple[float, float], ...] = (
        (2.0, 0.0),
        (4.0, 0.0),
        (8.0, 0.0),
        (16.0, 0.0),
        (4.0, 0.4),
    )
    cnn: tuple[tuple[float, float], ...] = ((0.2, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.4))
    rates: tuple[float, ...] = (2.0, 4.0, 8.0)  # learning rates, each with each penalty
    l1: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    beta_lasso: tuple[float, ...] = (3e-6, 1e-5, 3e-5)
    subgradient: tuple[float, ...] = (3e-6, 1e-5, 3e-5)
    prox: tuple[Strength, ...] = (
        Strength((3e-5, 3e-5)),
        Strength((1e-4, 1e-4)),
        Strength((3e-4, 3e-4)),
        Strength((1e-3, 1e-3)),
        Strength((1e-3, 1e-3), rho=0.9),
        Strength((3e-3, 3e-3), rho=0.9),
        Strength((1e-2, 1e-2), rho=0.9),
        Strength((1e-2, 1e-2), rho=0.9, dropout=0.4),
        Strength((1e-2, 1e-2), rho=0.9, settle=True),
        Strength((3e-2, 1e-2), rho=0.95),
    )
    orbits: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    noise_batches: int = 8
    pattern_steps: int = 100


QUICK = Settings(
    a=1,
    b=2,
    fractions=(0.1,),
    seeds=(0, 1),
    steps=12,
    cnn_steps=12,
    fc=((0.5, 0.0),),
    cnn=((0.2, 0.0),),
    rates=(1.0,),
    l1=(1e-3,),
    beta_lasso=(1e-4,),
    subgradient=(1e-4,),
    prox=(Strength((1e-3, 1e-3)), Strength((3e-2, 3e-2), 0.97, settle=True)),
    orbits=(1e-2,),
    noise_batches=2,
    pattern_steps=4,
)


def torus_digits(fraction: float, held_out: int, tested: int) -> tuple[str, Split]:
    """Return which digits they are, and the shifted ones, flattened, in three parts.

    All are cut from the training images, see :func:`experiments.learning.cut`.
    """
    digits = shifted_digits()
    known = Examples(digits.train_images.flatten(1), digits.train_labels)
    return digits.name, cut(known, held_out, tested, fraction)


def side_of(examples: Examples) -> int:
    """Return the pixels along a side of these flattened square images."""
    return math.isqrt(examples.x.shape[1])


class Way(NamedTuple):
    """A network and how it learns; the name is that of the line in a figure.

    With ``orbits``, a strength, R acts on each group of weights that a convolution would share.
    """

    name: str
    lr: float
    how: Regularization = Regularization()
    settle: bool = False
    dropout: float = 0.0
    orbits: float = 0.0

    def row(self) -> Row:
        """Return the entries for a record."""
        layers = self.how.strengths(2)
        return {
            "method": self.name,
            "lr": self.lr,
            "lambd": layers,
            "l1": self.how.l1,
            "rho": self.how.rho,
            "settle": self.settle,
            "dropout": self.dropout,
            "orbits": self.orbits,
        }


def prox_way(lr: float, strength: Strength) -> Way:
    """Return training by the prox."""
    how = Regularization("prox", strength.lambd, rho=strength.rho)
    return Way("prox", lr, how, strength.settle, strength.dropout)


def written_out(cnn: TorusCNN) -> TorusFC:
    """Return the fully connected network that computes what this convolutional one does."""
    side, (a, b) = cnn.side, cnn.channels
    full = TorusFC(side, a, b)
    channels = 1
    for dense, circular in ((full.first, cnn.first), (full.second, cnn.second)):
        assert isinstance(dense, nn.Sequential)
        assert isinstance(circular, nn.Sequential)
        conv, norm = circular[0], circular[1]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        without_bias = copy.deepcopy(conv)
        without_bias.bias = None
        matrix = as_fully_connected(without_bias, (channels, side, side))
        dense[0].load_state_dict({"weight": matrix, "bias": _everywhere(conv.bias, side)})
        entries = norm.state_dict()
        counted = {"num_batches_tracked": entries.pop("num_batches_tracked")}
        dense[1].load_state_dict({k: _everywhere(v, side) for k, v in entries.items()} | counted)
        channels = conv.out_channels
    full.head.load_state_dict(cnn.head.state_dict())
    return full


def _everywhere(of_channels: Tensor, side: int) -> Tensor:
    """Return the entries of the channels at every position."""
    return of_channels.detach().repeat_interleave(side**2)


def by_orbits(p: Tensor, side: int) -> tuple[Tensor, Any]:
    """Return weights, and an index that brings together what a convolution would share.

    For p of shape (b side^2, a side^2), ``weights[index]`` has the shape (side^2 positions,
    side^2 shifts, b, a); the entries of a convolution do not depend on the position.
    """
    n = side**2
    position = torch.arange(n)
    down, right = position // side, position % side
    moved = (down[:, None] + down) % side * side + (right[:, None] + right) % side
    index = (slice(None), position[:, None], slice(None), moved)
    return p.view(-1, n, p.shape[1] // n, n), index


@torch.no_grad()
def share_orbits(net: Network, side: int, strength: float) -> None:
    """Move the weights of each layer to the prox of R on every orbit of shifts."""
    for p in net.weights():
        w, orbit = by_orbits(p, side)
        w[orbit] = wsr.prox(w[orbit], strength, dim=0)


def forces(
    net: Network, optimizer: Optimizer, examples: Examples, batch: int, batches: int
) -> list[Row]:
    """Return, for each of the network's ``weights()``, what tears its clusters apart.

    All in loss per unit of weight, as lambda is.  ``noise``: the standard deviation of a weight's
    gradient over batches and dropout, with the weights at rest (root mean square over the layer).
    ``signal``: the root mean square of the mean gradient, without what noise adds to it.
    ``buffer``: the standard deviation over the layer of the momentum buffer, along which the next
    step goes.  ``held``: if the layer were tied completely, the largest part of it that the prox
    would keep together after that step.  ``norm`` and ``penalty`` are |w| and R(w).
    """
    probe = copy.deepcopy(net)  # whose running means may change
    drawn: list[list[Tensor]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(batches):
            rows = torch.randint(len(examples.y), (batch,))
            x, y = examples.take(rows)
            loss = F.cross_entropy(probe(x), y)
            drawn.append(list(torch.autograd.grad(loss, probe.weights())))
    result = []
    for p, gradients in zip(net.weights(), zip(*drawn, strict=True), strict=True):
        variance, mean = torch.var_mean(torch.stack(gradients), 0)
        square = mean.square().mean() - variance.mean() / batches
        buffer = optimizer.state[p]["momentum_buffer"]
        row = {
            "noise": float(variance.mean().sqrt()),
            "signal": float(square.clamp(min=0.0).sqrt()),
            "buffer": float(buffer.std()),
            "norm": float(p.detach().norm()),
            "penalty": float(wsr.penalty(p.detach())),
        }
        lambd = next(g.get("lambd", 0.0) for g in optimizer.param_groups if _has(g, p))
        if lambd:
            kept = wsr.Sharing.of(wsr.prox(buffer, lambd))
            row["held"] = int(kept.counts.max()) / p.numel()
        result.append(row)
    return result


def _has(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(p is parameter for p in group["params"])


@torch.no_grad()
def locality(units: Tensor, window: int = 5) -> float:
    """Return how much of the weights lies close together, mean over units (n, channels, h, w).

    For a unit: the largest share of the sum of squares, over channels, in a square window on the
    torus.  Weights are counted from the median of their unit, where clusters of unused ones are.
    """
    centred = units - units.flatten(1).median(1).values.view(-1, 1, 1, 1)
    power = centred.square().sum(1, keepdim=True)
    around = F.pad(power, (0, window - 1, 0, window - 1), mode="circular")
    inside = F.avg_pool2d(around, window, stride=1) * window**2
    whole = power.sum((1, 2, 3))
    used = whole > 0
    return float((inside.amax((1, 2, 3))[used] / whole[used]).mean()) if used.any() else 1.0


def scattered(units: Tensor) -> Tensor:
    """Return each unit (n, channels, h, w) with its weights at random places.

    What few weights are local by chance shows in these.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(units.flatten(1).shape, generator=generator).argsort(1)
    return units.flatten(1).gather(1, order).view_as(units)


@torch.no_grad()
def resemblance(units: Tensor, most: int = 200) -> float:
    """Return how well units (n, channels, h, w) are shifted copies of others: 1 in a convolution.

    For each of a sample of units: the largest cosine between it and another one of the sample, over
    all shifts on the torus; the mean of these.  The mean of a unit's weights does not count.
    """
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(0))[:most]
    sample = units[order].double()
    sample = F.normalize((sample - sample.mean((1, 2, 3), keepdim=True)).flatten(1)).view_as(sample)
    waves = torch.fft.rfft2(sample)
    best = []
    for k, wave in enumerate(waves):
        spectrum = (waves * wave.conj()).sum(1)
        cosines = torch.fft.irfft2(spectrum, s=units.shape[-2:]).amax((1, 2))
        cosines[k] = -1.0
        best.append(cosines.max())
    return float(torch.stack(best).mean())


def as_units(net: TorusFC) -> list[Tensor]:
    """Return the weights of both layers as pictures, (units, channels, side, side)."""
    return [p.detach().view(len(p), -1, net.side, net.side) for p in net.weights()]


def learn(
    net: TorusCNN | TorusFC, parts: Split, way: Way, schedule: Schedule, seed: int, batches: int
) -> Row:
    """Train a network in place; return what it can, what it shares, and which forces it felt."""
    felt: list[Row] = []
    moments = sorted({max(1, schedule.steps // 20), schedule.steps // 2, schedule.steps - 1})

    def to_orbits(optimizer: Optimizer, *_: Any) -> None:
        share_orbits(net, net.side, optimizer.param_groups[0]["lr"] * way.orbits)

    def watch(step: int, optimizer: Optimizer) -> None:
        if way.orbits and step == 0:
            optimizer.register_step_post_hook(to_orbits)
        if way.settle:
            for group in optimizer.param_groups:
                if "rho" in group:
                    group["rho"] = 1 - (1 - way.how.rho) * group["lr"] / way.lr
        if step in moments:
            layers = forces(net, optimizer, parts.train, schedule.batch, batches)
            now = zip(layers, shared(net), strict=True)
            both = [{**f, "distinct": s["distinct"], "largest": s["largest"]} for f, s in now]
            felt.append({"step": step, "layers": both})

    train(net, parts.train, way.how, schedule, seed=seed, watch=watch)
    pictures = as_units(written_out(net) if isinstance(net, TorusCNN) else net)
    return {
        "steps": schedule.steps,
        "train": accuracy(net, parts.train.take(slice(5000))),
        "valid": accuracy(net, parts.valid),
        "layers": shared(net),
        "locality": [locality(units) for units in pictures],
        "locality_scattered": [locality(scattered(units)) for units in pictures],
        "resemblance": [resemblance(units) for units in pictures],
        "forces": felt,
    }


def distinct_share(row: Row) -> float:
    """Return which part of the second layer's weights is distinct, at the end of a run."""
    second = row["layers"][1]
    return float(second["distinct"] / second["weights"])


def best(rows: Sequence[Row], method: str) -> Row:
    """Return the candidate of a method with the best validation accuracy; of equals, the first."""
    return max((row for row in rows if row["method"] == method), key=lambda row: row["valid"])


def best_shared(rows: Sequence[Row]) -> Row:
    """Return the best candidate whose second layer shares; if none does, that which shares most."""
    tried = [row for row in rows if row["method"] == "prox"]
    good = [row for row in tried if distinct_share(row) < SHARED]
    return max(good, key=lambda row: row["valid"]) if good else min(tried, key=distinct_share)


def way_of(row: Row, name: str | None = None) -> Way:
    """Return the way of a candidate, read from its row."""
    plain = ("FC", "CNN", "prox, orbits")
    method = "plain" if row["method"] in plain else str(row["method"])
    how = Regularization(method, tuple(row["lambd"]), row["l1"], row["rho"])
    name = name or str(row["method"])
    return Way(name, row["lr"], how, row["settle"], row["dropout"], row["orbits"])


def candidates(s: Settings) -> list[Way]:
    """Return what is to be compared on validation images: each penalty at each learning rate."""
    return [
        *(Way("FC", lr, dropout=dropout) for lr, dropout in s.fc),
        *(Way("CNN", lr, dropout=dropout) for lr, dropout in s.cnn),
        *(Way("l1", lr, Regularization("l1", l1=l1)) for l1, lr in product(s.l1, s.rates)),
        *(
            Way("beta-lasso", lr, Regularization("beta-lasso", l1=l1))
            for l1, lr in product(s.beta_lasso, s.rates)
        ),
        *(
            Way("subgradient", lr, Regularization("subgradient", (lambd, lambd)))
            for lambd, lr in product(s.subgradient, s.rates)
        ),
        *(prox_way(lr, strength) for strength, lr in product(s.prox, s.rates)),
        *(Way("prox, orbits", lr, orbits=lambd) for lambd, lr in product(s.orbits, s.rates)),
    ]


def chosen(rows: Sequence[Row]) -> list[Way]:
    """Return the ways that go to the test, read from the rows of the choice."""
    methods = ("FC", "l1", "beta-lasso", "subgradient", "prox", "prox, orbits", "CNN")
    ways = [way_of(best(rows, method)) for method in methods]
    sharing = way_of(best_shared(rows), "prox, shared")
    return ways if sharing._replace(name="prox") in ways else [*ways, sharing]


class Experiment:
    """The runs, in order, each a row of the record."""

    def __init__(self, s: Settings, record: Record, bar: "tqdm[Any]") -> None:
        self.s, self.record, self.bar = s, record, bar

    def digits(self, fraction: float) -> Split:
        """Return the digits, with a fraction of what is not held out and not tested."""
        return torus_digits(fraction, self.s.held_out, self.s.tested)[1]

    def network(self, way: Way, side: int, seed: int) -> TorusCNN | TorusFC:
        """Return an untrained network."""
        torch.manual_seed(seed)
        kind = TorusCNN if way.name == "CNN" else TorusFC
        net = kind(side, self.s.a, self.s.b)
        for part in net.modules():
            if isinstance(part, nn.Dropout):
                part.p = way.dropout
        return net

    def schedule(self, way: Way) -> Schedule:
        """Return how long it learns, and how fast."""
        steps = self.s.cnn_steps if way.name == "CNN" else self.s.steps
        return Schedule(steps, self.s.batch, way.lr, self.s.momentum)

    def done(self, **key: Any) -> bool:
        """Return whether a row is there already; show what comes next."""
        self.bar.set_postfix_str(" ".join(map(str, key.values())))
        self.bar.update()
        return self.record.has(**key)

    def choose(self, ways: Sequence[Way]) -> list[Row]:
        """Train each candidate once and return the rows of the choice."""
        parts = self.digits(self.s.choice_fraction)
        seed = self.s.choice_seed
        for way in ways:
            key = {"panel": "choice", **way.row()}
            if not self.done(**key):
                net = self.network(way, side_of(parts.train), seed)
                found = learn(net, parts, way, self.schedule(way), seed, self.s.noise_batches)
                self.record.add(**key, seed=seed, fraction=self.s.choice_fraction, **found)
        return [row for row in self.record.rows if row["panel"] == "choice"]

    def test(self, ways: Sequence[Way]) -> None:
        """Train the chosen ones at every fraction, with every seed, and look at the test images."""
        for seed, fraction in product(self.s.seeds, self.s.fractions):
            parts = self.digits(fraction)
            for way in ways:
                key = {"panel": "fractions", "method": way.name, "fraction": fraction, "seed": seed}
                if self.done(**key):
                    continue
                net = self.network(way, side_of(parts.train), seed)
                found = learn(net, parts, way, self.schedule(way), seed, self.s.noise_batches)
                found["test"] = accuracy(net, parts.test)
                found["examples"] = len(parts.train.y)
                if (seed, fraction) == (self.s.seeds[0], self.s.fractions[-1]):
                    found["filters"] = strongest(net)
                self.record.add(**key | way.row(), **found)

    def keep_pattern(self, ways: Sequence[Way]) -> None:
        """Write out a trained convolution, go on training, and see what is left of its pattern."""
        parts = self.digits(self.s.choice_fraction)
        seed = self.s.choice_seed
        conv = next(way for way in ways if way.name == "CNN")
        cnn = self.network(conv, side_of(parts.train), seed)
        assert isinstance(cnn, TorusCNN)
        train(cnn, parts.train, conv.how, self.schedule(conv), seed=seed)
        for way in ways:
            key = {"panel": "pattern", "method": way.name}
            if way.name == "CNN" or self.done(**key):
                continue
            net = written_out(cnn)
            before = [wsr.Sharing.of(p.detach()) for p in net.weights()]
            schedule = self.schedule(way)._replace(steps=self.s.pattern_steps)
            row = {"before": accuracy(net, parts.valid)}
            learn(net, parts, way, schedule, seed, self.s.noise_batches)
            kept = [whole(b, p.detach()) for b, p in zip(before, net.weights(), strict=True)]
            row["valid"] = accuracy(net, parts.valid)
            layers = [{**s, "kept": k} for s, k in zip(shared(net), kept, strict=True)]
            clusters = [len(pattern) for pattern in before]
            self.record.add(**key | way.row(), clusters=clusters, layers=layers, **row)

    def count(self) -> int:
        """Return how many rows there will be at most."""
        tests = len(self.s.seeds) * len(self.s.fractions)
        return len(candidates(self.s)) + 8 * tests + 7


def whole(before: wsr.Sharing, w: Tensor) -> int:
    """Return how many clusters of an earlier pattern are still equal weights."""
    members = before.labels.flatten()
    lowest = torch.full((len(before),), torch.inf).scatter_reduce(0, members, w.flatten(), "amin")
    highest = torch.full((len(before),), -torch.inf).scatter_reduce(0, members, w.flatten(), "amax")
    return int((lowest == highest).sum())


def strongest(net: TorusCNN | TorusFC, count: int = 6) -> list[list[int]]:
    """Return the first-layer units with the most weight: each as whole numbers up to 99.

    Counted from the median of the unit, and in parts of the largest.
    """
    units = as_units(written_out(net) if isinstance(net, TorusCNN) else net)[0].flatten(1)
    centred = units - units.median(1, keepdim=True).values
    rows = centred.square().sum(1).topk(min(count, len(units))).indices
    chosen_units = centred[rows]
    scaled = chosen_units / chosen_units.abs().amax(1, keepdim=True).clamp(min=1e-30)
    return [[round(99 * value) for value in unit] for unit in scaled.tolist()]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options = parser(
        "Test accuracy and shared weights of fully connected networks and a convolutional one, "
        "on digits on a torus; after Figure 5 of Shakerinava et al. (2024), at reduced size."
    ).parse_args(arguments)
    s = QUICK if options.quick else Settings()
    name, _ = torus_digits(s.choice_fraction, s.held_out, s.tested)
    command = "python -m experiments.torus" + " --quick" * options.quick
    settings = {"data": name, **s._asdict(), "prox": [p._asdict() for p in s.prox]}
    record = Record("torus", settings, options.results, command=command)
    with tqdm(unit="run") as bar:
        experiment = Experiment(s, record, bar)
        bar.total = experiment.count()
        torch.set_flush_denormal(True)  # dying gradients would make steps many times slower
        try:
            ways = chosen(experiment.choose(candidates(s)))
            experiment.test(ways)
            experiment.keep_pattern(ways)
        finally:
            torch.set_flush_denormal(False)
    return record.finish()


if __name__ == "__main__":
    main()
