"""Do fully connected networks learn a convolution's filters?  The first layer, on CIFAR-10.

``python -m experiments.cifar``, run in ``book/``, writes ``results/cifar.json``, and what pictures
of filters need to ``results/cifar_filters.npz``.  S-FC, 3072 -> 256 ch -> 24 ch -> 10 units, learns
plainly, with beta-lasso, with the prox of l1, and with that of lambda R and l1; S-Conv has a
convolution 9 x 9 with stride 2 in place of the first layer.  All see photos moved by up to 4 pixels
and mirrored by chance, by SGD with momentum and a learning rate that goes down along a cosine.
Strengths are per unit of learning rate; accuracies are shares of photos.  Choices are made on
validation photos, with a shorter training and a seed of their own; test photos are used once for
each final run.  The networks are those of the public code of Shakerinava et al. (2024),
arXiv 2311.03096, whose size is --ch 64 --epochs 400; the augmentation is a simpler one.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fft import irfft2, rfft2
from torch.nn.functional import avg_pool2d, conv2d
from tqdm import tqdm

import wsr
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
from experiments.networks import (
    Network,
    PhotoConv,
    PhotoFC,
    as_fully_connected,
    cropped_and_flipped,
)
from experiments.photos import Photos, load_photos, photos_or_digits
from experiments.records import Record, Row, parser

METHODS = ("plain", "beta-lasso", "l1", "wsr", "conv")
WINDOW = 9  # pixels, the side of S-Conv's kernel
NEAREST = 2  # pixels, its stride: moves by less do not count as moves
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# What was to count as like a convolution, fixed before the runs: see `convolution_like`.
HALF = 0.5


class Settings(NamedTuple):
    """Everything that fixes the run."""

    ch: int = 1
    epochs: int = 30
    choice_epochs: int = 6
    seeds: Sequence[int] = (1, 2, 3)
    choice_seed: int = 0
    batch: int = 512
    held_out: int = 5000
    every: int = 1  # one photo in so many
    tolerance: float = 0.01  # of validation accuracy, for what shares more
    rates: Sequence[tuple[float, float]] = ((0.1, 0.0), (0.03, 0.9), (0.1, 0.9))  # with momentum
    beta_l1: Sequence[float] = (3e-5, 1e-4, 3e-4)
    lambd: Sequence[float] = (0.01, 0.03, 0.1)
    l1: Sequence[float] = (0.01, 0.03)
    l1_alone: Sequence[float] = (0.01, 0.03, 0.1)
    rho: Sequence[float] = (0.9, 0.98)
    sample: int = 100  # filters that are compared with each other
    shown: int = 36  # filters in a picture


QUICK = Settings(
    epochs=2,
    choice_epochs=1,
    seeds=(1,),
    batch=100,
    held_out=200,
    every=50,
    rates=((0.1, 0.9),),
    beta_l1=(1e-4,),
    lambd=(0.03,),
    l1=(0.03,),
    l1_alone=(0.03,),
    rho=(0.98,),
    sample=10,
    shown=4,
)


# Filters are (n, 3, height, width) below.


def locality(filters: Tensor) -> Tensor:
    """Return, for each filter, the share of its squared weight in the best window, (n,).

    A window has all colours of 9 x 9 neighbouring pixels; of all windows in the image the best one
    counts.
    """
    energy = filters.square().sum(1, keepdim=True)
    windows = avg_pool2d(energy, WINDOW, 1).flatten(1) * WINDOW**2
    return windows.amax(1) / energy.flatten(1).sum(1)


def copies(filters: Tensor) -> Tensor:
    """Return, for each filter, how well a translated copy of it matches the best other one, (n,).

    It is the largest <T w, u> / (|w| |u|) over the other filters u and over the translations T by
    at least 2 pixels down or to the right or both; what T moves out of the image is lost.
    """
    height, width = filters.shape[2:]
    size = (2 * height, 2 * width)  # so that nothing comes back in on the other side
    unit = filters / filters.square().sum((1, 2, 3), keepdim=True).sqrt()
    spectra = rfft2(unit, s=size)
    moves = torch.cartesian_prod(
        torch.arange(1 - NEAREST, NEAREST), torch.arange(1 - NEAREST, NEAREST)
    )
    best = []
    for k, spectrum in enumerate(spectra):
        matches = irfft2((spectrum.conj() * spectra).sum(1), s=size)  # (n, moves down, right)
        matches[k] = -1.0
        matches[:, moves[:, 0], moves[:, 1]] = -1.0
        best.append(matches.amax())
    return torch.stack(best).clamp(-1.0, 1.0)


def smoothness(filters: Tensor) -> float:
    """Return the correlation of neighbouring pixels' weights, about zero, over all filters."""
    down = (filters[..., 1:, :] * filters[..., :-1, :]).mean()
    right = (filters[..., 1:] * filters[..., :-1]).mean()
    return float((down + right) / 2 / filters.square().mean())


def shuffled(filters: Tensor, generator: torch.Generator) -> Tensor:
    """Return filters with the same values in other places: their pixels permuted, one by one."""
    n, colours, height, width = filters.shape
    order = torch.rand(n, 1, height * width, generator=generator).argsort(-1)
    return filters.flatten(2).gather(2, order.expand(-1, colours, -1)).view_as(filters)


def rephased(filters: Tensor, generator: torch.Generator) -> Tensor:
    """Return filters as smooth as these, with the same correlations of pixels, but at random.

    The amplitude of each wave stays and its phase is drawn, the same for all colours.
    """
    n, _, height, width = filters.shape
    noise = rfft2(torch.randn(n, 1, height, width, generator=generator))
    result: Tensor = irfft2(rfft2(filters) * noise / noise.abs(), s=(height, width))
    return result


def measures(weights: Tensor, sample: int, seed: int) -> Row:
    """Return what the filters of a layer look like: entries for a record.

    Parameters
    ----------
    weights : Tensor
        A row of 3 * 32 * 32 for each filter.  Those that are zero are left out.
    sample : int
        So many filters are compared with each other.
    seed : int
        Of that sample and of what is drawn for comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    filters = weights.view(-1, 3, 32, 32)
    filters = filters[filters.flatten(1).any(1)]
    some = filters[torch.randperm(len(filters), generator=generator)[:sample]]
    return {
        "filters": len(filters),
        "locality": _quantiles(locality(filters)),
        "locality_shuffled": _quantiles(locality(shuffled(filters, generator))),
        "copies": _quantiles(copies(some)),
        "copies_shuffled": _quantiles(copies(shuffled(some, generator))),
        "copies_rephased": _quantiles(copies(rephased(some, generator))),
        "smoothness": round(smoothness(filters), 4),
        "tied": round(tied(weights), 4),
    }


def _quantiles(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.quantile(torch.tensor(QUANTILES)).tolist()]


def tied(weights: Tensor) -> float:
    """Return the share of weights with an equal one, among those outside the largest cluster.

    The largest cluster is left out because it is that of the zeros wherever weights are sparse.
    """
    counts = wsr.Sharing.of(weights).counts
    largest = int(counts.argmax())
    others = torch.cat([counts[:largest], counts[largest + 1 :]])
    return float(others[others > 1].sum() / others.sum())


def convolution_like(row: Row) -> dict[str, bool]:
    """Return in which ways the filters of a row are like those of a convolution.

    Half of them must exceed 1/2, and nearly all of those that only have the same values, or only
    the same smoothness.
    """
    chance = max(row["copies_shuffled"][-1], row["copies_rephased"][-1])
    return {
        "local": row["locality"][2] >= max(HALF, row["locality_shuffled"][-1]),
        "copied": row["copies"][2] >= max(HALF, chance),
        "tied": row["tied"] >= HALF,
    }


def first_layer(net: Network) -> Tensor:
    """Return the matrix of a network's first layer: a row for each filter."""
    if isinstance(net, PhotoConv):
        kernel = net.first.weight.detach()
        return as_fully_connected(lambda x: conv2d(x, kernel, stride=2, padding=4), (3, 32, 32))
    return net.weights()[0].detach()


def pictures(weights: Tensor, shown: int) -> NDArray[np.uint8]:
    """Return the filters with most weights that are not zero, and a random sample.

    They are (2, shown, 32, 32, 3); zero is 128, and the largest absolute weight of a filter is 1 or
    255.
    """
    most = weights.count_nonzero(1).argsort(descending=True, stable=True)[:shown]
    sample = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))[:shown]
    filters = weights[torch.stack([most, sample])]
    largest = filters.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(filters.dtype).tiny)
    bytes_ = (128 + 127 * filters / largest).round().to(torch.uint8)
    result: NDArray[np.uint8] = bytes_.view(2, -1, 3, 32, 32).permute(0, 1, 3, 4, 2).numpy()
    return result


class Task(NamedTuple):
    """What the networks learn from: photos as bytes for training, as numbers for accuracies."""

    data: Split
    standardized: Callable[[Tensor], Tensor]

    def augmented(self, photos: Tensor, generator: torch.Generator) -> Tensor:
        """Return photos as numbers, each moved and mirrored by chance."""
        return self.standardized(cropped_and_flipped(photos, generator))


def prepare(photos: Photos, held_out: int) -> Task:
    """Hold out validation photos; give each colour mean 0 and deviation 1."""
    data = split(
        Examples(photos.train_images, photos.train_labels),
        Examples(photos.test_images, photos.test_labels),
        held_out,
    )
    some = data.train.x[:5000].double()
    mean = some.mean((0, 2, 3)).float().view(3, 1, 1)
    deviation = some.std((0, 2, 3)).float().view(3, 1, 1)

    def standardized(x: Tensor) -> Tensor:
        return (x.float() - mean) / deviation

    valid, test = (Examples(standardized(part.x), part.y) for part in data[1:])
    return Task(Split(data.train, valid, test), standardized)


def network(method: str, ch: int, seed: int) -> Network:
    """Return an untrained network."""
    torch.manual_seed(seed)
    return PhotoConv(ch) if method == "conv" else PhotoFC(ch)


def fit(s: Settings, task: Task, key: Row, epochs: int) -> Network:
    """Return a network trained as a row of the record says: method, strengths, rate and seed."""
    how = Regularization()
    if key["method"] == "beta-lasso":
        how = Regularization("beta-lasso", l1=key["l1"])
    elif key["method"] in ("l1", "wsr"):
        how = Regularization("prox", key["lambd"], key["l1"], key["rho"])
    steps = epochs * (len(task.data.train.y) // s.batch)
    schedule = Schedule(steps, s.batch, key["lr"], key["momentum"])
    net = network(key["method"], s.ch, key["seed"])
    train(net, task.data.train, how, schedule, seed=key["seed"], augment=task.augmented)
    return net


def candidates(s: Settings, method: str) -> list[Row]:
    """Return the strengths from which a method's are chosen."""
    if method == "beta-lasso":
        return [{"l1": l1} for l1 in s.beta_l1]
    if method == "l1":
        return [{"lambd": 0.0, "l1": l1, "rho": rho} for l1 in s.l1_alone for rho in s.rho]
    if method == "wsr":
        return [
            {"lambd": lambd, "l1": l1, "rho": rho}
            for lambd in s.lambd
            for l1 in s.l1
            for rho in s.rho
        ]
    return [{}]


def choose(rows: Sequence[Row], method: str, tolerance: float) -> Row:
    """Return the chosen candidate among the rows of a record.

    It is the most accurate one; where a method has strengths, the one with the fewest distinct
    weights among those whose accuracy is at most ``tolerance`` below the best.
    """
    tried = [row for row in rows if row["panel"] == "choice" and row["method"] == method]
    best = max(tried, key=lambda row: row["accuracy"])
    if method == "plain":
        return best
    good = [row for row in tried if row["accuracy"] >= best["accuracy"] - tolerance]
    return min(good, key=lambda row: row["distinct"])


def begin(
    name: str, settings: Row, options: argparse.Namespace, words: Sequence[str] = ()
) -> tuple[Task, Record]:
    """Return what an experiment on photos learns from, and its record, with these settings.

    Parameters
    ----------
    name : str
        The experiment, as in ``python -m experiments.NAME``.
    settings : dict
        Everything that fixes the run, "every" and "held_out" among it.
    options : argparse.Namespace
        The command line, "quick" and "results" among it.  A quick run takes one photo in "every",
        or digits if no photos are on this machine.
    words : sequence of str, optional
        The arguments of the command line, besides --quick, that the settings come from.
    """
    photos = photos_or_digits(settings["every"]) if options.quick else load_photos()
    task = prepare(photos, settings["held_out"])
    record = Record(
        name,
        {"data": photos.name, "train": len(task.data.train.y), **settings},
        options.results,
        packages=("pillow",),
        command=" ".join([f"python -m experiments.{name}", *["--quick"] * options.quick, *words]),
    )
    return task, record


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    command_line = parser(__doc__.splitlines()[0])
    command_line.add_argument("--ch", type=int, help="channels; else those of the settings")
    command_line.add_argument("--epochs", type=int, help="of the final runs; else likewise")
    options: argparse.Namespace = command_line.parse_args(arguments)
    chosen = {key: getattr(options, key) for key in ("ch", "epochs") if getattr(options, key)}
    s = (QUICK if options.quick else Settings())._replace(**chosen)
    words = [f"--{key} {value}" for key, value in chosen.items()]
    task, record = begin("cifar", s._asdict(), options, words)
    filters = options.results / "cifar_filters.npz"
    with tqdm(total=_runs(s), unit="run") as bar:
        _choices(s, task, record, bar)
        _finals(s, task, record, bar, filters.with_suffix(".partial.npz"))
    os.replace(filters.with_suffix(".partial.npz"), filters)
    return record.finish()


def _runs(s: Settings) -> int:
    choices = len(s.rates) + sum(len(candidates(s, m)) for m in ("beta-lasso", "l1", "wsr"))
    return choices + len(s.seeds) * len(METHODS)


def _choices(s: Settings, task: Task, record: Record, bar: tqdm) -> None:
    """Choose rate and momentum for the plain network, then each method's strengths with these."""

    def attempt(key: Row) -> None:
        bar.set_postfix_str(f"choice, {key['method']}")
        if not record.has(panel="choice", **key):
            net = fit(s, task, key, s.choice_epochs)
            found = accuracy(net, task.data.valid)
            record.add(panel="choice", **key, accuracy=found, **shared(net)[0])
        bar.update()

    for lr, momentum in s.rates:
        attempt({"method": "plain", "lr": lr, "momentum": momentum, "seed": s.choice_seed})
    rate = _rate(record, s)
    for method in ("beta-lasso", "l1", "wsr"):
        for strengths in candidates(s, method):
            attempt({"method": method, **rate, **strengths, "seed": s.choice_seed})


def _rate(record: Record, s: Settings) -> Row:
    best = choose(record.rows, "plain", s.tolerance)
    return {key: best[key] for key in ("lr", "momentum")}


def _finals(s: Settings, task: Task, record: Record, bar: tqdm, filters: Path) -> None:
    """Train with what was chosen; look at the first layer before and after."""
    for seed in s.seeds:
        if not record.has(panel="final", method="untrained", seed=seed):
            net = network("plain", s.ch, seed)
            found = measures(first_layer(net), s.sample, seed)
            record.add(panel="final", method="untrained", seed=seed, **shared(net)[0], **found)
        for method in METHODS:
            bar.set_postfix_str(f"seed {seed}, {method}")
            if not record.has(panel="final", method=method, seed=seed):
                key = {"method": method, **_rate(record, s)}
                if method not in ("plain", "conv"):
                    best = choose(record.rows, method, s.tolerance)
                    key.update({k: best[k] for k in ("lambd", "l1", "rho") if k in best})
                net = fit(s, task, {**key, "seed": seed}, s.epochs)
                weights = first_layer(net)
                if seed == s.seeds[0]:
                    _keep(filters, method, pictures(weights, s.shown))
                record.add(
                    panel="final",
                    **key,
                    seed=seed,
                    accuracy=accuracy(net, task.data.test),
                    validation=accuracy(net, task.data.valid),
                    **shared(net)[0],
                    **measures(weights, s.sample, seed),
                )
            bar.update()


def _keep(path: Path, name: str, array: NDArray[np.uint8]) -> None:
    """Add an array to a file, or put it in place of one of that name, whole or not at all."""
    arrays = {}
    if path.exists():
        with np.load(path) as earlier:
            arrays = dict(earlier)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name("cifar_filters.tmp.npz")
    np.savez_compressed(draft, **{**arrays, name: array})
    os.replace(draft, path)


if __name__ == "__main__":
    main()
