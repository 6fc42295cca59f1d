"""Do other ways to train let sharing and accuracy rise together, on digits on a torus?

``python -m experiments.torus_search``, run in ``book/``, writes ``results/torus_search.json``.  The
best setting of :mod:`experiments.torus` under which a layer shares is varied one thing at a time:
larger batches, whose gradients are less noisy; more steps; l1 beside R; a strength that grows.
Beside each stands the network without a penalty.  Accuracies are shares of validation images: test
images are not used.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim import Optimizer
from tqdm import tqdm

from experiments.learning import Regularization, Schedule, accuracy, shared, train
from experiments.networks import TorusFC
from experiments.records import Record, Row, parser
from experiments.torus import side_of, torus_digits


class Variant(NamedTuple):
    """What differs from the setting that is varied."""

    name: str
    batch: int = 128
    steps: int = 600
    l1: float = 0.0
    grows: bool = False  # the strength, in proportion to the step; at the end it is doubled


class Settings(NamedTuple):
    """Everything that fixes the runs."""

    a: int = 4
    b: int = 8
    held_out: int = 10_000
    tested: int = 10_000  # set apart here as well
    fraction: float = 0.1
    seeds: tuple[int, ...] = (101, 102, 103)
    lr: float = 8.0  # what experiments.torus has chosen, without a penalty as well
    lambd: float = 0.003
    rho: float = 0.9
    variants: tuple[Variant, ...] = (
        Variant("as it is"),
        Variant("batch 512", batch=512),
        Variant("1800 steps", steps=1800),
        Variant("l1 1e-3", l1=1e-3),
        Variant("growing", grows=True),
    )


QUICK = Settings(
    a=1,
    b=2,
    seeds=(101,),
    variants=(Variant("as it is", steps=6), Variant("growing", 64, 6, 1e-3, grows=True)),
)


def strength(s: Settings, variant: Variant, step: int) -> float:
    """Return lambda in a step."""
    return s.lambd * (2 * (step + 1) / variant.steps if variant.grows else 1.0)


def run(s: Settings, variant: Variant, penalized: bool, seed: int) -> Row:
    """Train a network once; return its validation accuracy and what its layers share."""
    _, parts = torus_digits(s.fraction, s.held_out, s.tested)
    torch.manual_seed(seed)
    net = TorusFC(side_of(parts.train), s.a, s.b)
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # as experiments.torus has chosen

    def watch(step: int, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            if "lambd" in group:
                group["lambd"] = strength(s, variant, step)

    how = Regularization("prox", s.lambd, variant.l1, s.rho) if penalized else Regularization()
    schedule = Schedule(variant.steps, variant.batch, s.lr)
    train(net, parts.train, how, schedule, seed=seed, watch=watch)
    return {"valid": accuracy(net, parts.valid), "layers": shared(net)}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options = parser(__doc__.splitlines()[0]).parse_args(arguments)
    s = QUICK if options.quick else Settings()
    name, _ = torus_digits(s.fraction, s.held_out, s.tested)
    settings = {"data": name, **s._asdict(), "variants": [v._asdict() for v in s.variants]}
    command = "python -m experiments.torus_search" + " --quick" * options.quick
    record = Record("torus_search", settings, options.results, command=command)
    torch.set_flush_denormal(True)  # dying gradients would make steps many times slower
    try:
        for variant, penalized, seed in tqdm(
            list(product(s.variants, (False, True), s.seeds)), unit="run"
        ):
            # Without a penalty, what differs in the penalty makes no difference.
            if not penalized and (variant.l1 or variant.grows):
                continue
            key = {"variant": variant.name, "penalized": penalized, "seed": seed}
            if not record.has(**key):
                record.add(**key, **run(s, variant, penalized, seed))
    finally:
        torch.set_flush_denormal(False)
    return record.finish()


if __name__ == "__main__":
    main()
