"""Does S-FC become a convolution where one is better?  The prox with eight channels, on CIFAR-10.

``python -m experiments.cifar_wide``, run in ``book/``, writes ``results/cifar_wide.json``.  S-FC of
:mod:`experiments.cifar` learns with the prox, as long as the networks of
:mod:`experiments.cifar_channels`, with the strengths that the record of the former has chosen for
one channel.  Accuracies are shares of validation photos: test photos are not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments import cifar
from experiments.learning import accuracy, shared
from experiments.records import parser


class Settings(NamedTuple):
    """Everything that fixes the run."""

    ch: int = 8
    epochs: int = 6
    seeds: Sequence[int] = (1, 2, 3)
    lr: float = 0.1
    momentum: float = 0.9
    lambd: float = 0.03
    l1: float = 0.03
    rho: float = 0.98
    batch: int = 512
    held_out: int = 5000
    every: int = 1  # one photo in so many
    sample: int = 100  # filters that are compared with each other


QUICK = Settings(ch=1, epochs=1, seeds=(1,), batch=100, held_out=200, every=50, sample=10)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options = parser(__doc__.splitlines()[0]).parse_args(arguments)
    s = QUICK if options.quick else Settings()
    task, record = cifar.begin("cifar_wide", s._asdict(), options)
    key = {name: getattr(s, name) for name in ("lr", "momentum", "lambd", "l1", "rho")}
    for seed in tqdm(s.seeds, unit="run"):
        if not record.has(seed=seed):
            size = cifar.Settings(ch=s.ch, batch=s.batch)
            net = cifar.fit(size, task, {"method": "wsr", **key, "seed": seed}, s.epochs)
            found = accuracy(net, task.data.valid)
            looks = cifar.measures(cifar.first_layer(net), s.sample, seed)
            record.add(seed=seed, accuracy=found, **shared(net)[0], **looks)
    return record.finish()


if __name__ == "__main__":
    main()
