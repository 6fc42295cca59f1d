"""What the tests compare with: exact rational arithmetic, written for clarity and nothing else."""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor


def heads(z: Sequence[float | Fraction]) -> list[bool]:
    """Pool adjacent violators in exact arithmetic; touching clusters count as one."""
    clusters: list[tuple[Fraction, int]] = []  # sum and size
    for value in z:
        total, size = Fraction(value), 1
        while clusters and clusters[-1][0] * size >= total * clusters[-1][1]:
            total_before, size_before = clusters.pop()
            total, size = total + total_before, size + size_before
        clusters.append((total, size))
    return [k == 0 for _, size in clusters for k in range(size)]


def prox(w: Sequence[float], lambd: float, l1: float = 0.0, rho: float = 0.0) -> list[Fraction]:
    """Return the prox of one group of weights, relaxed by rho, exactly."""
    d = len(w)
    order = sorted(range(d), key=w.__getitem__)
    x = [Fraction(w[i]) for i in order]
    v = [Fraction(lambd) * (d - 1 - 2 * k) / max(d - 1, 1) for k in range(d)]
    begins = [k for k, head in enumerate(heads([a + b for a, b in zip(x, v, strict=True)])) if head]
    result = [Fraction(0)] * d
    for begin, end in zip(begins, [*begins[1:], d], strict=True):
        mean_x = sum(x[begin:end]) / (end - begin)
        mean_v = sum(v[begin:end]) / (end - begin)
        position = mean_x + mean_v
        sign = (position > 0) - (position < 0)
        moved = mean_x + (1 - Fraction(rho)) * (mean_v - Fraction(l1) * sign)
        for i in order[begin:end]:
            result[i] = Fraction(0) if abs(position) < Fraction(l1) else moved
    return result


def penalty(w: Sequence[float]) -> Fraction:
    """Return the double sum over pairs."""
    x = [Fraction(value) for value in w]
    pairs = sum(abs(x[i] - x[j]) for i in range(len(x)) for j in range(i))
    return Fraction(pairs) / max(len(x) - 1, 1)


def objective(u: Sequence[Fraction], w: Sequence[float], lambd: float, l1: float) -> Fraction:
    """Return 1/2 |u - w|^2 + lambd R(u) + l1 |u|_1."""
    distance = sum((a - Fraction(b)) ** 2 for a, b in zip(u, w, strict=True)) / 2
    return distance + Fraction(lambd) * penalty(u) + Fraction(l1) * sum(map(abs, u))


def ulp(value: float | Fraction, dtype: torch.dtype) -> float:
    """Return the spacing of floats of the dtype around the value."""
    info = torch.finfo(dtype)
    magnitude = max(abs(float(value)), info.smallest_normal)
    return math.ldexp(info.eps, math.frexp(magnitude)[1] - 1)


def assert_accurate(
    result: Tensor, exact: Sequence[Fraction], w: Sequence[float], lambd: float
) -> None:
    """Assert the accuracy that the package promises.

    float32 and below: one ulp of the value, and 2^-10 ulp of the largest weight.  float64, in
    which weights and shifts are rounded when they are added: four ulp of the larger of both.
    """
    largest = max((abs(value) for value in w), default=0.0)
    for value, truth in zip(result.flatten().tolist(), exact, strict=True):
        if result.dtype == torch.float64:
            room = 4 * ulp(max(largest, lambd), torch.float64)
        else:
            room = ulp(truth, result.dtype) + ulp(largest, result.dtype) / 1024
        assert abs(Fraction(value) - truth) <= Fraction(room), (value, float(truth))
