"""How does a network learn, how are its weights regularized, and what do they share then?"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import wsr
from experiments.networks import Network

METHODS = ("plain", "l1", "beta-lasso", "subgradient", "prox")


class Examples(NamedTuple):
    """Inputs, their classes, one a row."""

    x: Tensor
    y: Tensor

    def take(self, rows: Tensor | slice) -> "Examples":
        """Return some of them."""
        return Examples(self.x[rows], self.y[rows])


class Split(NamedTuple):
    """What a network learns from, what choices are made on, what is looked at once."""

    train: Examples
    valid: Examples
    test: Examples


def split(known: Examples, test: Examples, held_out: int, fraction: float = 1.0) -> Split:
    """Cut the validation set from the training set, and keep a fraction of what is left.

    The order is drawn once, so that all runs have the same validation set, and a smaller fraction
    is a part of a larger one.
    """
    return _parts(known, _order(known), held_out, fraction, test)


def cut(known: Examples, held_out: int, tested: int, fraction: float = 1.0) -> Split:
    """Cut validation and test set from the training set, and keep a fraction of what is left.

    Of the order of :func:`split` the first are held out, as there, and the last are the test set:
    neither depends on the fraction.  Each has a quarter of the examples at most.
    """
    order, quarter = _order(known), len(known.y) // 4
    last = len(order) - min(tested, quarter)
    return _parts(known, order[:last], min(held_out, quarter), fraction, known.take(order[last:]))


def _order(known: Examples) -> Tensor:
    return torch.randperm(len(known.y), generator=torch.Generator().manual_seed(2024))


def _parts(known: Examples, order: Tensor, held_out: int, fraction: float, test: Examples) -> Split:
    valid, train = order[:held_out], order[held_out:]
    return Split(known.take(train[: round(fraction * len(train))]), known.take(valid), test)


class Regularization(NamedTuple):
    """What is done to the weights that might be shared, besides learning.

    Attributes
    ----------
    method : str
        "plain": nothing.  "l1": the prox of l1 after each step.  "beta-lasso": a subgradient of l1
        in each step, after which weights below beta * l1 are zero (Neyshabur, 2020).
        "subgradient": a subgradient of lambd R in each step.  "prox": :func:`wsr.proximal`.
    lambd : float or sequence of float
        The strength of R, for all layers or one for each.
    l1, rho : float
        As in :func:`wsr.prox`.
    beta : float
        Of beta-lasso.
    """

    method: str = "plain"
    lambd: float | Sequence[float] = 0.0
    l1: float = 0.0
    rho: float = 0.0
    beta: float = 50.0

    def strengths(self, layers: int) -> list[float]:
        """Return lambd for each of so many layers."""
        if isinstance(self.lambd, Sequence):
            if len(self.lambd) != layers:
                raise ValueError(f"lambd must have {layers} entries; got {self.lambd}")
            return list(self.lambd)
        return [self.lambd] * layers


class Schedule(NamedTuple):
    """How long and how fast: SGD with momentum, the learning rate going down along a cosine."""

    steps: int
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9


def optimizer_for(net: Network, how: Regularization, schedule: Schedule) -> Optimizer:
    """Return the optimizer of a network whose ``weights()`` are regularized."""
    if how.method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}; got {how.method!r}")
    layers = net.weights()
    strengths = how.strengths(len(layers))
    listed = {id(p) for p in layers}
    others = [p for p in net.parameters() if id(p) not in listed]
    groups: list[dict[str, Any]] = [{"params": others}]
    for p, lambd in zip(layers, strengths, strict=True):
        keys: dict[str, float] = {}
        if how.method == "prox":
            keys = {"lambd": lambd, "l1": how.l1, "rho": how.rho}
        elif how.method == "l1":
            keys = {"l1": how.l1}
        groups.append({"params": [p], **keys})
    optimizer = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
    if how.method in ("l1", "prox"):
        wsr.proximal(optimizer)
    elif how.method == "subgradient":
        optimizer.register_step_pre_hook(lambda *_: _add_subgradients(layers, strengths))
    elif how.method == "beta-lasso":
        optimizer.register_step_pre_hook(lambda *_: _add_signs(layers, how.l1))
        optimizer.register_step_post_hook(lambda *_: _prune(layers, how.beta * how.l1))
    return optimizer


@torch.no_grad()
def _add_subgradients(layers: Sequence[Tensor], strengths: Sequence[float]) -> None:
    """Add to each gradient a subgradient of lambd R: lambd c_k to the weight of rank k."""
    for p, lambd in zip(layers, strengths, strict=True):
        order = torch.from_numpy(np.argsort(p.numpy(), axis=None))  # several times torch's speed
        assert p.grad is not None
        p.grad.view(-1)[order] += lambd * torch.linspace(-1, 1, p.numel())


@torch.no_grad()
def _add_signs(layers: Sequence[Tensor], l1: float) -> None:
    for p in layers:
        assert p.grad is not None
        p.grad.add_(p.sign(), alpha=l1)


@torch.no_grad()
def _prune(layers: Sequence[Tensor], threshold: float) -> None:
    for p in layers:
        p[p.abs() < threshold] = 0.0


def train(
    net: Network,
    examples: Examples,
    how: Regularization,
    schedule: Schedule,
    *,
    seed: int,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    watch: Callable[[int, Optimizer], None] | None = None,
) -> None:
    """Train a network in place.

    Parameters
    ----------
    net : Network
        Its ``weights()`` are regularized.
    examples : Examples
        Drawn without replacement, epoch after epoch, in batches.
    how, schedule
        The method; how long and how fast.
    seed : int
        Of the batches, of dropout, and of ``augment``.
    augment : callable, optional
        Maps the inputs of a batch and a generator to other inputs.
    watch : callable, optional
        Called before each step with its number and the optimizer.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer_for(net, how, schedule)
    cosine = CosineAnnealingLR(optimizer, schedule.steps)
    n, size = len(examples.y), min(schedule.batch, len(examples.y))
    batches: list[Tensor] = []
    net.train()
    for step in range(schedule.steps):
        if not batches:
            order = torch.randperm(n, generator=generator)[: n // size * size]
            batches = list(torch.split(order, size))
        x, y = examples.take(batches.pop())
        if augment:
            x = augment(x, generator)
        if watch:
            watch(step, optimizer)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        cosine.step()
    net.eval()


@torch.no_grad()
def accuracy(net: Network, examples: Examples) -> float:
    """Return the share of examples that the network classifies as it should."""
    net.eval()
    classes = [net(x).argmax(1) for x in torch.split(examples.x, 1000)]
    return float((torch.cat(classes) == examples.y).double().mean())


def shared(net: Network) -> list[dict[str, float]]:
    """Return, for each of the network's ``weights()``, what it shares: entries for a record."""
    return [_shared(p.detach()) for p in net.weights()]


def _shared(w: Tensor) -> dict[str, float]:
    pattern = wsr.Sharing.of(w)
    return {
        "weights": w.numel(),
        "distinct": len(pattern),
        "zeros": int(pattern.counts[pattern.values == 0].sum()),
        "largest": int(pattern.counts.max()),
        "penalty": float(wsr.penalty(w)),
        "deviation": float(w.double().std()),
    }


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1 in its denominator; 0 for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
