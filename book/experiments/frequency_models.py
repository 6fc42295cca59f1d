"""When does gradient descent find a filter?  A target with a low and a high frequency part.

An input is k patches in R^d, x = (x_1, ..., x_k), independent and standard normal.  The target
applies one filter u to every patch, the learner a filter w_j of its own to patch j:

    y   = C <u, x_1>   + cos(gamma * sum_j <u, x_j>),
    f_W = C <w_1, x_1> + cos(gamma * sum_j <w_j, x_j>).

The loss is half the mean squared error.  With U = (u, ..., u) its expectation is

    L(W) = C^2 / 2 |w_1 - u|^2 + (1 + e^(-2 gamma^2 |W|^2)) / 4 + (1 + e^(-2 gamma^2 |U|^2)) / 4
           - (e^(-gamma^2 |W - U|^2 / 2) + e^(-gamma^2 |W + U|^2 / 2)) / 2,

because E cos(<a, x>) = e^(-|a|^2 / 2), and the odd linear part is orthogonal to the even cosine.

Every function works on a batch of learners: filters W are (runs, k, d).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import wsr

THRESHOLD = 0.05
"""A learner whose loss is below it has found the filter: a stalled one keeps 0.5."""


class Target(NamedTuple):
    """What the learners of a batch are to find: u is (runs, d), C and gamma are (runs,)."""

    u: Tensor
    C: Tensor
    gamma: Tensor


def everywhere(u: Tensor, k: int) -> Tensor:
    """Return one filter per run (runs, d) at each of k patches: (runs, k, d)."""
    return u[:, None, :].expand(-1, k, -1)


def population_loss(W: Tensor, target: Target) -> Tensor:
    """Return L(W), exactly: (runs,)."""
    U = everywhere(target.u, W.shape[1])
    g2 = target.gamma**2
    linear = target.C**2 / 2 * square(W[:, :1] - U[:, :1])
    energies = (torch.exp(-2 * g2 * square(W)) + torch.exp(-2 * g2 * square(U)) + 2) / 4
    overlaps = (torch.exp(-g2 * square(W - U) / 2) + torch.exp(-g2 * square(W + U) / 2)) / 2
    return linear + energies - overlaps


def cosine_gradient(W: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Return what the cosine adds to the gradient of L: (runs, k, d) twice.

    The first part comes from the energy of the learner's own cosine and knows nothing of the
    target; the second comes from its overlap with the target's and is all that a filter w_j, j > 1,
    can learn from.
    """
    U = everywhere(target.u, W.shape[1])
    g2 = target.gamma[:, None, None] ** 2
    own = -g2 * torch.exp(-2 * g2 * square(W)[:, None, None]) * W
    minus, plus = W - U, W + U
    overlap = minus * torch.exp(-g2 * square(minus)[:, None, None] / 2)
    overlap = overlap + plus * torch.exp(-g2 * square(plus)[:, None, None] / 2)
    return own, g2 / 2 * overlap


def population_gradient(W: Tensor, target: Target) -> Tensor:
    """Return the gradient of L at W, one filter per patch: (runs, k, d)."""
    own, overlap = cosine_gradient(W, target)
    gradient = own + overlap
    gradient[:, 0] += target.C[:, None] ** 2 * (W[:, 0] - target.u)
    return gradient


def project(W: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return <w_1, x_1> and sum_j <w_j, x_j> for (seeds, n, k, d) inputs: (runs, n) twice.

    Runs are ordered by seed; those of one seed see the same inputs.
    """
    filters = W.reshape(len(x), -1, *W.shape[1:])
    first = filters[:, :, 0] @ x[:, :, 0].mT
    total = filters.flatten(2) @ x.flatten(2).mT
    return first.flatten(0, 1), total.flatten(0, 1)


def predict(W: Tensor, target: Target, x: Tensor) -> Tensor:
    """Return f_W at (seeds, n, k, d) inputs: (runs, n); y is the prediction of U."""
    first, total = project(W, x)
    return target.C[:, None] * first + torch.cos(target.gamma[:, None] * total)


def sampled_gradient(W: Tensor, target: Target, x: Tensor) -> Tensor:
    """Return the gradient at W of the loss on (seeds, n, k, d) inputs: (runs, k, d)."""
    y = predict(everywhere(target.u, W.shape[1]), target, x)
    first, total = project(W, x)
    C, gamma = target.C[:, None], target.gamma[:, None]
    error = (C * first + torch.cos(gamma * total) - y) / x.shape[1]
    by_seed = (len(x), -1, x.shape[1])
    through_cosine = (-gamma * error * torch.sin(gamma * total)).reshape(by_seed)
    through_first = (C * error).reshape(by_seed)
    gradient = (through_cosine @ x.flatten(2)).reshape(W.shape)
    gradient[:, 0] += (through_first @ x[:, :, 0]).flatten(0, 1)
    return gradient


def square(W: Tensor) -> Tensor:
    """Return |W|^2 of each run: (runs,)."""
    return W.square().sum((1, 2))


def share(W: Tensor, threshold: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return ``wsr.prox`` of every run with its own strength: threshold is (runs,), positive.

    All runs go through one call, because prox_(a lambda)(a w) = a prox_lambda(w).
    """
    scale = threshold.to(W.dtype)[:, None, None]
    return scale * wsr.prox(W / scale, 1.0, dim=dim)


GROUPS: dict[str, int | tuple[int, ...]] = {"rows": 1, "flat": (1, 2)}
"""Which entries one penalty spans: the k copies of each coordinate, or all k d filter entries."""


def descend(model: str, W: Tensor, gradient: Tensor, eta: float, lambd: Tensor) -> Tensor:
    """Return the filters after one step of length eta.

    shared : one filter, the gradients of its k copies are summed.
    local : one filter per patch.
    rows, flat : as local, then the proximal step of strength lambd (runs,) in groups; 0 is none.
    """
    if model == "shared":
        return W - eta * gradient.sum(1, keepdim=True)
    W = W - eta * gradient
    if model == "local":
        return W
    on = lambd > 0
    shared = share(W, torch.where(on, eta * lambd, 1.0), GROUPS[model])
    return torch.where(on[:, None, None], shared, W)


def distinct(W: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many different values each run has: within coordinates, summed, and over all.

    The first lies between d (all patches share) and k d (none do).
    """

    def different(values: Tensor) -> Tensor:
        return (values.sort(-1).values.diff(dim=-1) != 0).sum(-1) + 1

    return different(W.mT).sum(-1), different(W.flatten(1))


class Curves(NamedTuple):
    """What a batch of runs did: loss at the watched steps (watched, runs), the rest (runs,)."""

    loss: Tensor
    reached: Tensor
    """The first step with a loss below the threshold; -1 if there is none."""
    W: Tensor


def race(
    model: str,
    W: Tensor,
    target: Target,
    lambd: Tensor,
    gradient: Callable[[Tensor], Tensor],
    watch: Sequence[int],
    eta: float,
    strength: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Curves:
    """Return what gradient descent does until the last step of ``watch``.

    ``gradient`` is that of the loss, or of a sample of it; the loss that is recorded is always the
    population's, exactly.  ``strength(step, W, loss)``, if given, replaces lambd at each step.
    """
    reached = torch.full((len(W),), -1)
    losses, watched = [], set(watch)
    for step in range(watch[-1] + 1):
        loss = population_loss(W.double(), target)
        reached = torch.where((reached < 0) & (loss < THRESHOLD), step, reached)
        if step in watched:
            losses.append(loss)
        if step < watch[-1]:
            now = lambd if strength is None else strength(step, W, loss)
            W = descend(model, W, gradient(W), eta, now)
    return Curves(torch.stack(losses), reached, W)
