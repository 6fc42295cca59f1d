"""How many kernels make a convolution worth finding?  S-FC and S-Conv of growing size, on CIFAR-10.

``python -m experiments.cifar_channels``, run in ``book/``, writes ``results/cifar_channels.json``.
Both networks of :mod:`experiments.cifar` learn plainly, with the learning rate and the momentum
that its record has chosen, and with 1 to 8 channels.  Accuracies are shares of validation photos:
test photos are not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments import cifar
from experiments.learning import accuracy
from experiments.records import parser

METHODS = ("plain", "conv")


class Settings(NamedTuple):
    """Everything that fixes the run."""

    ch: Sequence[int] = (1, 2, 4, 8)
    epochs: int = 6
    seeds: Sequence[int] = (1, 2, 3)
    lr: float = 0.1
    momentum: float = 0.9
    batch: int = 512
    held_out: int = 5000
    every: int = 1  # one photo in so many


QUICK = Settings(ch=(1,), epochs=1, seeds=(1,), batch=100, held_out=200, every=50)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run what the command line asks for and return the path of the record."""
    options = parser(__doc__.splitlines()[0]).parse_args(arguments)
    s = QUICK if options.quick else Settings()
    task, record = cifar.begin("cifar_channels", s._asdict(), options)
    runs = [(ch, method, seed) for ch in s.ch for method in METHODS for seed in s.seeds]
    for ch, method, seed in tqdm(runs, unit="run"):
        if not record.has(ch=ch, method=method, seed=seed):
            size = cifar.Settings(ch=ch, batch=s.batch)
            key = {"method": method, "lr": s.lr, "momentum": s.momentum, "seed": seed}
            net = cifar.fit(size, task, key, s.epochs)
            found = accuracy(net, task.data.valid)
            weights = sum(p.numel() for p in net.weights())
            record.add(ch=ch, method=method, seed=seed, weights=weights, accuracy=found)
    return record.finish()


if __name__ == "__main__":
    main()
