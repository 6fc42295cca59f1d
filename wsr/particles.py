r"""What moves?  Sorted weights are particles on a line.

Particle k of d (k = 0 .. d-1, from the left) starts at the k-th smallest weight with velocity
lambd (d-1-2k) / (d-1): the smallest weight moves right, the largest left, each as fast as it
outranks the others.  Particles that meet stick and conserve their momentum.  After time 1 they
stand at the proximal mapping, whose clusters are runs of the sorted particles.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsr.arguments import check_strength, check_weights
from wsr.exact_sums import ExactSums


def velocity(begin: Tensor, end: Tensor, d: int) -> Tensor:
    """Return the velocity for lambd = 1 of the cluster of the particles begin <= k < end.

    The mean over its members in closed form: particles on the right minus particles on the left,
    over d - 1.
    """
    return (d - begin - end).double() / max(d - 1, 1)


def free_end_points(x: Tensor, lambd: float | Tensor) -> Tensor:
    """Return where the sorted particles x, shape (..., d), would stand if they passed each other.

    Rows in which the sum could overflow come back halved, which changes no cluster.
    """
    d = x.shape[-1]
    k = torch.arange(d, device=x.device)
    shift = lambd * velocity(k, k + 1, d)
    largest = torch.maximum(x.abs(), shift.abs()).amax(-1, keepdim=True)
    unit = torch.where(largest > 1, 0.5, 1.0).double()
    return x * unit + shift * unit


def bounds(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every particle where its cluster begins and ends (one past its last member)."""
    d = heads.shape[-1]
    k = torch.arange(d, device=heads.device)
    begin = torch.where(heads, k, 0).cummax(-1).values
    next_head = torch.where(heads, k, d)[..., 1:]
    end = F.pad(next_head, (0, 1), value=d).flip(-1).cummin(-1).values.flip(-1)
    return begin, end


class _Average(torch.autograd.Function):
    """The orthogonal projection onto vectors that are constant on each cluster: its own adjoint."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, heads: Tensor) -> Tensor:
        ctx.save_for_backward(heads)
        begin, end = bounds(heads)
        cluster = heads.long().cumsum(-1) - 1
        largest = torch.zeros_like(values).scatter_reduce(-1, cluster, values.abs(), "amax")
        scale = largest.gather(-1, cluster)  # on a grid of its own, a cluster's mean is exact
        mean = ExactSums(values, scale).float_mean(begin, end)
        return torch.where(scale.isfinite(), mean, torch.nan)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (heads,) = ctx.saved_tensors
        return average(grads[0], heads), None


def average(values: Tensor, heads: Tensor) -> Tensor:
    """Replace each value by the mean of its cluster, bitwise equal throughout the cluster.

    ``values`` is float64 of the shape of ``heads``; a cluster with a NaN or an infinity becomes
    NaN.  Differentiable in ``values``.
    """
    result: Tensor = _Average.apply(values, heads)  # type: ignore[no-untyped-call]
    return result


def unsort(values: Tensor, order: Tensor) -> Tensor:
    """Undo ``values = original.gather(-1, order)``."""
    return torch.zeros_like(values).scatter(-1, order, values)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The motion of d sticky particles between time 0 and time 1, one row an event.

    Attributes
    ----------
    times : Tensor
        Shape (m,), float64, increasing: 0, the times at which particles meet, and 1.
    positions : Tensor
        Shape (m, d), float64: where the particles stand at these times, in the order of the
        weights.
    velocities : Tensor
        Shape (m, d), float64: their velocities from that time to the next.
    labels : Tensor
        Shape (m, d), int64: the cluster of each particle from that time to the next, numbered
        from the left.  Particles i and j stick at ``times[n]`` if ``labels[n, i] == labels[n, j]``
        for the first time.
    """

    times: Tensor
    positions: Tensor
    velocities: Tensor
    labels: Tensor

    def at(self, t: float) -> Tensor:
        """Return the positions, shape (d,), at a time t in [0, 1]; ValueError at any other."""
        if not 0 <= t <= 1:
            raise ValueError(f"t must lie in [0, 1]; got {t}")
        n = int(torch.searchsorted(self.times, t, right=True)) - 1
        return self.positions[n] + (t - self.times[n]) * self.velocities[n]


def simulate(w: Tensor, lambd: float) -> Trajectory:
    r"""Follow the sticky particles event by event.

    .. math:: \dot x_i(t) = -\frac{\lambda}{d-1} \sum_j \operatorname{sign}(x_i(t) - x_j(t)),
              \qquad x(0) = w, \quad 0 \le t \le 1

    with sign(0) = 0, so that particles which meet stay together.  x(1) = ``prox(w, lambd)``.

    Parameters
    ----------
    w : Tensor
        Shape (d,), finite: the positions at time 0.
    lambd : float
        The velocity of the outermost particles, in units of w per unit of time.

    Returns
    -------
    Trajectory
        Event times, positions, velocities and cluster labels, on the CPU.

    Raises
    ------
    TypeError
        If ``w`` is not a floating-point tensor or ``lambd`` not a number.
    ValueError
        If ``w`` is not one-dimensional and finite, or ``lambd`` is negative or not finite.

    Notes
    -----
    Meant for figures: the events, fewer than d, are found with a heap in O(d log d), but every
    event records d positions.  To get the end points alone, call :func:`wsr.prox`.  Derived in the
    chapters *The proximal mapping* and *Sticky particles*; Shakerinava et al. (2024), arXiv
    2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> motion = wsr.simulate(torch.tensor([0.0, 1.0, 8.0]), 2.0)
    >>> motion.times
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    >>> motion.positions[-1]
    tensor([1.5000, 1.5000, 6.0000], dtype=torch.float64)
    """
    check_weights("w", w)
    check_strength("lambd", lambd)
    if w.ndim != 1:
        raise ValueError(f"w must be one-dimensional; got shape {tuple(w.shape)}")
    if not w.isfinite().all():
        raise ValueError("w must be finite; got a NaN or an infinity")
    x, order = w.detach().double().cpu().sort()
    line = _Line(x.tolist(), float(lambd))
    snapshots = [line.snapshot(0.0)]
    times = [0.0]
    while (t := line.next_meeting()) <= 1.0:
        line.stick(t)
        if t > times[-1]:
            times.append(t)
            snapshots.append(line.snapshot(t))
        else:  # several particles meet at once
            snapshots[-1] = line.snapshot(t)
    if times[-1] < 1.0:
        times.append(1.0)
        snapshots.append(line.snapshot(1.0))
    columns = [torch.stack(parts) for parts in zip(*snapshots, strict=True)]
    columns = [unsort(rows, order.expand_as(rows)) for rows in columns]
    return Trajectory(_on_cpu(times), *columns)


def _on_cpu(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


class _Line:
    """Clusters on a line, each moving freely as ``mean + t * velocity`` until the next meeting."""

    def __init__(self, x: list[float], lambd: float) -> None:
        self.d = len(x)
        self.lambd = lambd
        self.end = {k: k + 1 for k in range(self.d)}  # of the cluster that begins at the key
        self.begin = {k + 1: k for k in range(self.d)}  # of the cluster that ends at the key
        self.mean = dict(enumerate(x))  # of the members' starting points
        self.meetings: list[tuple[float, int, int, int]] = []
        for k in range(1, self.d):
            self._expect(k - 1, k, 0.0)

    def velocity(self, begin: int) -> float:
        return self.lambd * ((self.d - begin - self.end[begin]) / max(self.d - 1, 1))

    def _expect(self, left: int, right: int, now: float) -> None:
        distance = self.mean[right] - self.mean[left]
        speed = self.velocity(left) - self.velocity(right)
        if distance <= 0 or speed > 0:
            t = distance / speed if speed > 0 else 0.0
            heapq.heappush(self.meetings, (max(t, now), left, right, self.end[right]))

    def next_meeting(self) -> float:
        """Return the time of the next meeting, infinite if there is none."""
        while self.meetings:
            t, left, right, end = self.meetings[0]
            if self.end.get(left) == right and self.end.get(right) == end:
                return t
            heapq.heappop(self.meetings)  # one of the two has since stuck to another cluster
        return float("inf")

    def stick(self, t: float) -> None:
        """Join the two clusters that meet next; momentum is conserved, so their means average."""
        _, left, right, end = heapq.heappop(self.meetings)
        share = (end - right) / (end - left)
        self.mean[left] += share * (self.mean[right] - self.mean[left])
        self.end[left], self.begin[end] = end, left
        del self.end[right], self.begin[right], self.mean[right]
        if left > 0:
            self._expect(self.begin[left], left, t)
        if end < self.d:
            self._expect(left, end, t)

    def snapshot(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions, velocities and labels of the sorted particles."""
        heads = sorted(self.end)
        size = _on_cpu([self.end[k] - k for k in heads]).long()
        speed = _on_cpu([self.velocity(k) for k in heads])
        mean = _on_cpu([self.mean[k] for k in heads])
        label = torch.arange(len(heads), device="cpu")
        return tuple(v.repeat_interleave(size) for v in (mean + t * speed, speed, label))  # type: ignore[return-value]
