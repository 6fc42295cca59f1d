"""How small does a network become that shares its weights, and what does retraining give back?

A fully connected network with one hidden layer learns MNIST at 14 x 14 pixels, and its two weight
matrices are compressed.  It learns with the prox of R ("wsr"), with that of l1 alone ("l1"), or
without a penalty.  Then k-means may leave few values: of the weights outside the largest cluster
("wsr, k-means", "l1, k-means"), of all weights of the network without a penalty ("k-means"), or of
those that are left when the smallest are set to zero ("pruned, k-means"; Han, Mao and Dally, 2016).
Then the pattern is frozen with :func:`wsr.tie`, and the values are trained further.  Accuracies are
shares of the validation or test images, sizes are in bytes and include the biases.
"""

import lzma
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from tqdm import tqdm

import wsr
from experiments import learning
from experiments.data import load_digits
from experiments.learning import Examples, Regularization, Schedule, Split
from experiments.networks import Network
from experiments.records import Record, Row, parser

WEIGHTS = ("first.weight", "second.weight")
SCALINGS = ("free", "sum", "mean")
METHODS = ("wsr", "wsr, k-means", "l1", "l1, k-means", "k-means", "pruned, k-means")


class Dense(Network):
    """pixels -> hidden -> 10, with ReLU between, on images (n, pixels)."""

    def __init__(self, pixels: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(pixels, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x).relu())
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the weight matrices that are not tied."""
        layers = (self.first, self.second)
        free = [layer for layer in layers if not is_parametrized(layer, "weight")]
        return [layer.get_parameter("weight") for layer in free]


class Settings(NamedTuple):
    """What fixes a run.  Images: None for all that there are.

    Attributes
    ----------
    steps, retraining : int
        SGD steps of learning, and of training further.
    rates, further_rates : tuple
        Learning rates to choose from; the second for each of the scalings.
    pulls, rhos, l1s : tuple
        Of the prox; a pull is (1 - rho) lambd, or (1 - rho) l1 where there is l1 alone.
    values : tuple of int
        How many values k-means leaves in each matrix, that of the pruned or shared ones included.
    values_after_prox : int
        The same where it follows on a prox.
    pruned : tuple of float
        The share of each matrix that pruning sets to zero.
    budgets : tuple of int
        For so many times less than the dense size the best setting of each method is taken.
    seeds : tuple of int
        Of the final runs; choices are made with seed 0.
    """

    images: int | None = None
    held_out: int = 5000
    tested: int = 10_000
    hidden: int = 300
    batch: int = 128
    momentum: float = 0.9
    steps: int = 1500
    retraining: int = 500
    rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    further_rates: tuple[tuple[float, ...], ...] = (
        (0.03, 0.1, 0.3, 1.0),
        (1e-5, 1e-4, 1e-3, 1e-2),
        (0.03, 0.1, 0.3, 1.0),
    )
    pulls: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    rhos: tuple[float, ...] = (0.0, 0.9, 0.98)
    l1s: tuple[float, ...] = (0.0, 3e-4)
    values: tuple[int, ...] = (2, 3, 4, 8, 16, 64)
    values_after_prox: int = 16
    pruned: tuple[float, ...] = (0.8, 0.9, 0.95)
    budgets: tuple[int, ...] = (64, 32, 16, 8)
    seeds: tuple[int, ...] = (1, 2, 3)


def settings(quick: bool) -> Settings:
    """Return the settings of the full run or of the quick one."""
    if not quick:
        return Settings()
    return Settings(
        images=1200,
        held_out=200,
        tested=200,
        hidden=20,
        steps=60,
        retraining=20,
        rates=(0.2, 0.4),
        further_rates=((0.03, 0.1), (1e-4, 1e-3), (0.03, 0.1)),
        pulls=(1e-2, 4e-2),
        rhos=(0.0, 0.9),
        l1s=(0.0,),
        values=(2, 16),
        pruned=(0.8,),
        budgets=(16, 2),
    )


def examples(s: Settings) -> Split:
    """Return the digits, those of MNIST after averaging 2 x 2 pixels, a row of pixels each.

    All are cut from the training images, see :func:`experiments.learning.cut`.
    """
    digits = load_digits()
    images = digits.train_images
    if images.shape[-1] == 28:
        images = avg_pool2d(images[:, None], 2)
    known = Examples(images.flatten(1), digits.train_labels).take(slice(s.images))
    return learning.cut(known, s.held_out, s.tested)


def learned(s: Settings, data: Split, how: Regularization, lr: float, seed: int) -> Dense:
    """Return a network that has learned from scratch."""
    torch.manual_seed(seed)
    net = Dense(data.train.x.shape[1], s.hidden)
    schedule = Schedule(s.steps, s.batch, lr, s.momentum)
    if how.method != "l1":
        learning.train(net, data.train, how, schedule, seed=seed)
        return net

    def threshold(optimizer: Optimizer, *_: object) -> None:
        shrink(net, optimizer.param_groups[0]["lr"] * how.l1, how.rho)

    def watch(step: int, optimizer: Optimizer) -> None:
        if step == 0:
            optimizer.register_step_post_hook(threshold)

    learning.train(net, data.train, Regularization(), schedule, seed=seed, watch=watch)
    return net


@torch.no_grad()
def shrink(net: Dense, l1: float, rho: float) -> None:
    """Apply the prox of l1 alone, relaxed by rho, which needs no order of the weights."""
    for p in net.weights():
        p.copy_(torch.where(p.abs() < l1, 0.0, p - (1 - rho) * l1 * p.sign()))


def copy(net: Dense) -> Dense:
    """Return another network with the same weights, no tensor of them tied."""
    twin = Dense(net.first.in_features, net.first.out_features)
    for mine, other in zip(twin.parameters(), _tensors(net), strict=True):
        mine.data.copy_(other)
    return twin


def _tensors(net: Dense) -> list[Tensor]:
    return [
        getattr(layer, name) for layer in (net.first, net.second) for name in ("weight", "bias")
    ]


def train_further(s: Settings, data: Split, net: Dense, scaling: str, lr: float, seed: int) -> None:
    """Train without a penalty: every weight for itself ("free"), or with the pattern frozen.

    The gradient of a tied value is the sum over its weights ("sum"), or their mean ("mean").
    """
    if scaling != "free":
        for name in WEIGHTS:
            wsr.tie(net, name)
            if scaling == "mean":
                divide_by_counts(net.get_submodule(name.split(".")[0]))
    schedule = Schedule(s.retraining, s.batch, lr, s.momentum)
    learning.train(net, data.train, Regularization(), schedule, seed=1000 + seed)


def divide_by_counts(layer: nn.Module) -> None:
    """Make the gradient of each value of a tied weight the mean over the weights that have it."""
    tied = layer.get_submodule("parametrizations.weight")
    values = tied.get_parameter("original")
    m = tied.get_buffer("0.labels").flatten().bincount(minlength=len(values) + 1)[1:]
    values.register_hook(lambda gradient: gradient / m)  # type: ignore[no-untyped-call]


def kmeans(w: Tensor, k: int) -> Tensor:
    """Return w with its values replaced by at most k: the means of clusters, by Lloyd's iteration.

    The iteration starts at k values evenly spread from the least to the largest weight, as Han, Mao
    and Dally (2016) advise, and ends when it changes nothing.  A value that no weight is nearest to
    is lost.
    """
    given = w.double().numpy().ravel()
    x = np.sort(given)
    total = np.concatenate([[0.0], np.cumsum(x)])
    centres, before = np.linspace(x[0], x[-1], k), None
    while before is None or not np.array_equal(before, centres):
        before = centres
        edges = np.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(x)]])
        sizes = np.diff(bounds)
        centres = np.where(sizes > 0, np.diff(total[bounds]) / np.maximum(sizes, 1), centres)
    nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, given)]
    return torch.from_numpy(nearest).view(w.shape).to(w.dtype)


def quantize(net: Dense, values: Sequence[int], alike: Sequence[Tensor]) -> Dense:
    """Return the network with at most so many values in each matrix.

    Weights where ``alike`` is True are equal and stay as they are: one of the values if there are
    any.  The others are left to k-means.
    """
    net = copy(net)
    for p, k, kept in zip(net.weights(), values, alike, strict=True):
        if not kept.all():
            p.data[~kept] = kmeans(p.data[~kept], max(k - int(kept.any()), 1))
    return net


def prune(net: Dense, share: float) -> Dense:
    """Return the network with this share of each matrix, the smallest weights, set to zero."""
    net = copy(net)
    for p in net.weights():
        smallest = p.data.abs().flatten().argsort()[: round(share * p.numel())]
        p.data.view(-1)[smallest] = 0.0
    return net


def largest_cluster(w: Tensor) -> Tensor:
    """Return where the weights have the value that most of them have."""
    pattern = wsr.Sharing.of(w)
    return pattern.labels == pattern.counts.argmax()


def sizes(net: Dense) -> Row:
    """Return what the network shares and how many bytes it takes, the biases as they are.

    ``dense``: the weights as they are; ``coded``: :attr:`wsr.Sharing.bits`; ``entropy``:
    :attr:`wsr.Sharing.entropy_bits`; ``listed`` and ``lzma``: the codebook, and the words of
    :func:`words` in the least space that counting them allows, and as Python's lzma packs them.
    """
    rows = wsr.summary(net)
    matrices = [row for row in rows if row.name in WEIGHTS]
    patterns = [wsr.Sharing.of(w) for w in (net.first.weight, net.second.weight)]
    rest = sum(row.dense_bits for row in rows if row.name not in WEIGHTS) / 8
    listed = sum(4 * len(pattern) + entropy(words(pattern)) / 8 for pattern in patterns)
    packed = sum(4 * len(pattern) + len(pack(words(pattern))) for pattern in patterns)
    return {
        "distinct": [row.distinct for row in matrices],
        "zeros": [row.zeros for row in matrices],
        "largest": [row.largest for row in matrices],
        "dense": round(sum(row.dense_bits for row in rows) / 8),
        "coded": round(rest + sum(row.bits for row in matrices) / 8),
        "entropy": round(rest + sum(row.entropy_bits for row in matrices) / 8, 1),
        "listed": round(rest + listed, 1),
        "lzma": round(rest + packed),
    }


def words(pattern: wsr.Sharing) -> Tensor:
    """Return a word for each weight: the label if its value is shared, 0 if it stands alone.

    With the values that stand alone listed in the order of their weights, the words tell all: a
    weight with a value of its own needs no label, only to be known as such.
    """
    shared = pattern.counts > 1
    return torch.where(shared, shared.cumsum(0), 0)[pattern.labels]


def entropy(word: Tensor) -> float:
    """Return Shannon's bound for words of which only the frequencies are used, in bits."""
    n = word.flatten().bincount().double()
    return float(torch.special.xlogy(n, n.sum() / n.clamp(min=1)).sum()) / math.log(2)


def pack(word: Tensor) -> bytes:
    """Return what Python's lzma makes of the words."""
    numbers = word.numpy().astype(np.min_scalar_type(int(word.max())))
    return lzma.compress(numbers.tobytes(), preset=9)


def comes_back(net: Dense) -> bool:
    """Return whether a tied network survives storage, bit for bit.

    By codebook and packed labels, and by ``state_dict`` into a network with another pattern.
    """
    twin = copy(net)
    for p in twin.weights():
        p.data.zero_()[0, 0] = 1.0
    for name in WEIGHTS:
        wsr.tie(twin, name)
    twin.load_state_dict(net.state_dict())
    same = [torch.equal(*pair) for pair in zip(_tensors(twin), _tensors(net), strict=True)]
    for w in (net.first.weight, net.second.weight):
        stored = wsr.Sharing.of(w).encode()
        same.append(torch.equal(wsr.Sharing.decode(*stored, w.shape), w))
    return all(same)


class Laboratory:
    """Networks that have learned, scored and compressed under one set of settings."""

    def __init__(self, s: Settings) -> None:
        self.s, self.data = s, examples(s)
        self.lr = 0.0  # these three are chosen first
        self.free: tuple[str, float] = ("free", 0.0)
        self.tied: tuple[str, float] = ("mean", 0.0)
        self._networks: dict[tuple[Regularization, int], Dense] = {}

    def network(self, how: Regularization, seed: int) -> Dense:
        """Return the network that has learned in this way."""
        if (how, seed) not in self._networks:
            self._networks[how, seed] = learned(self.s, self.data, how, self.lr, seed)
        return self._networks[how, seed]

    def compressed(self, how: Row, seed: int) -> Dense:
        """Return the network that a setting of the grid asks for, not yet trained further."""
        if "lambd" in how:
            kind = "prox" if how["lambd"] else "l1"
            prox = Regularization(kind, how["lambd"], how["l1"], how["rho"])
            net = self.network(prox, seed)
            alike = [largest_cluster(p.detach()) for p in net.weights()]
        else:
            net = prune(self.network(Regularization(), seed), how["pruned"])
            alike = [p.detach() == 0 for p in net.weights()]
        return quantize(net, how["values"], alike) if "values" in how else net

    def valid(self, net: Dense) -> float:
        """Return its accuracy on the validation images."""
        return learning.accuracy(net, self.data.valid)

    def scores(self, net: Dense, final: bool) -> Row:
        """Return its accuracies, that on the test images only at the end."""
        found = {"valid": self.valid(net)}
        if final:
            found["test"] = learning.accuracy(net, self.data.test)
        return found

    def go_on(self, net: Dense, scaling: str, lr: float, seed: int) -> Dense:
        """Return a network that has learned further from there."""
        net = copy(net)
        train_further(self.s, self.data, net, scaling, lr, seed)
        return net

    def run(self, how: Row, seed: int, final: bool) -> Row:
        """Return what a setting comes to before and after its values have been trained further.

        At the end also after as many steps in which every weight is free.
        """
        net = self.compressed(how, seed)
        tied = self.go_on(net, *self.tied, seed)
        row: Row = {"before": self.scores(net, final), "after": self.scores(tied, final)}
        if final:
            row["free"] = self.scores(self.go_on(net, *self.free, seed), final)
            row["comes_back"] = comes_back(tied)
        return how | row | sizes(net)


def grid(s: Settings) -> list[Row]:
    """Return the settings to choose from."""
    found: list[Row] = []
    for rho in s.rhos:
        for pull in s.pulls:
            strength = float(f"{pull / (1 - rho):.6g}")
            kinds = [("wsr", strength, l1) for l1 in s.l1s] + [("l1", 0.0, strength)]
            for kind, lambd, l1 in kinds:
                how = {"method": kind, "lambd": lambd, "rho": rho, "l1": l1}
                few = {"method": f"{kind}, k-means", "values": [s.values_after_prox] * 2}
                found += [how, how | few]
    for share in (0.0, *s.pruned):
        method = "pruned, k-means" if share else "k-means"
        found += [{"method": method, "values": [k, k], "pruned": share} for k in s.values]
    return found


KEYS = ("method", "lambd", "rho", "l1", "values", "pruned")


def chosen(rows: Sequence[Row], budgets: Sequence[int]) -> list[Row]:
    """Return, for each method and budget, the setting that is best on the validation images.

    Best after its values were trained further, among those whose listed size is at most the dense
    size divided by the budget and that have not collapsed to one value.  A setting that is best for
    two budgets is returned once.
    """
    found: list[Row] = []
    for method in METHODS:
        for budget in budgets:
            fitting = [
                row
                for row in rows
                if row["method"] == method
                and row["listed"] * budget <= row["dense"]
                and max(row["distinct"]) > 1
            ]
            if fitting:
                best = max(fitting, key=lambda row: row["after"]["valid"])
                setting = {key: best[key] for key in KEYS if key in best}
                if setting not in found:
                    found.append(setting)
    return found


def best(rows: Sequence[Row], *names: str) -> tuple[Any, ...]:
    """Return the values under these names whose rows have the highest mean validation accuracy."""
    scores: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        scores.setdefault(tuple(row[name] for name in names), []).append(row["valid"])
    return max(scores, key=lambda key: sum(scores[key]) / len(scores[key]))


def choose_rate(lab: Laboratory, record: Record) -> None:
    """Choose the learning rate without a penalty; all networks then learn with it."""
    for lr in lab.s.rates:
        if not record.has(panel="rate", lr=lr):
            net = learned(lab.s, lab.data, Regularization(), lr, seed=0)
            record.add(panel="rate", lr=lr, valid=lab.valid(net))
    (lab.lr,) = best(panel(record, "rate"), "lr")


def choose_scaling(lab: Laboratory, record: Record) -> None:
    """Choose how values are trained further, and at what rate, on two networks of the grid."""
    s = lab.s
    shared = [how for how in grid(s) if how["method"] == "wsr" and how["rho"] == s.rhos[1]]
    rounded = [how for how in grid(s) if how["method"] == "k-means"]
    starts = (shared[len(shared) // 2], rounded[1])
    for start in starts:
        if record.has(panel="scaling", **start):
            continue
        net, rows = lab.compressed(start, seed=0), []
        for scaling, rates in zip(SCALINGS, s.further_rates, strict=True):
            for lr in rates:
                scores = {
                    "before": lab.valid(net),
                    "valid": lab.valid(lab.go_on(net, scaling, lr, 0)),
                }
                rows.append({"panel": "scaling", **start, "scaling": scaling, "lr": lr, **scores})
        record.extend(rows)
    free, tied = (
        [row for row in panel(record, "scaling") if row["scaling"] in names]
        for names in (SCALINGS[:1], SCALINGS[1:])
    )
    lab.free, lab.tied = best(free, "scaling", "lr"), best(tied, "scaling", "lr")


def finals(lab: Laboratory, record: Record, seed: int) -> None:
    """Run the chosen settings, and what they are compared with, with another seed."""
    settings_chosen = chosen(panel(record, "grid"), lab.s.budgets)
    for how in tqdm(settings_chosen, desc=f"seed {seed}", unit="setting"):
        if record.has(panel="final", seed=seed, **how):
            continue
        row = lab.run(how, seed, final=True)
        rows = [{"panel": "final", "seed": seed, **row}]
        if how["method"] == "wsr":  # k-means at the same numbers of distinct weights
            same = {"method": "k-means", "values": row["distinct"], "pruned": 0.0}
            matched = {"panel": "matched", "seed": seed, "matches": how}
            rows.insert(0, matched | lab.run(same, seed, final=True))
        record.extend(rows)
    if not record.has(panel="plain", seed=seed):
        net = lab.network(Regularization(), seed)
        further = lab.scores(lab.go_on(net, *lab.free, seed), final=True)
        scores = {"before": lab.scores(net, final=True), "free": further}
        record.add(panel="plain", seed=seed, **scores, **sizes(net))


def panel(record: Record, name: str) -> list[Row]:
    """Return the rows of one part of the record."""
    return [row for row in record.rows if row["panel"] == name]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options = parser(__doc__).parse_args(arguments)
    s = settings(options.quick)
    command = "python -m experiments.retraining" + (" --quick" if options.quick else "")
    record = Record("retraining", s._asdict(), options.results, command=command)
    lab = Laboratory(s)
    choose_rate(lab, record)
    choose_scaling(lab, record)
    for how in tqdm(grid(s), desc="grid", unit="setting"):
        if not record.has(panel="grid", **how):
            record.add(panel="grid", seed=0, **lab.run(how, 0, final=False))
    for seed in s.seeds:
        finals(lab, record, seed)
    return record.finish()


if __name__ == "__main__":
    main()
