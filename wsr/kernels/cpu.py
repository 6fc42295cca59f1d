r"""From weights to weights on a CPU: sort what must be sorted, pool, write.

The mathematics of :mod:`wsr.particles` and :mod:`wsr.collisions`, fused into few passes over a row.

1. *Count.*  The leading 16 bits of a weight name its bucket.  Members are counted and summed,
   exactly.  A bucket inside which no cluster can begin is closed: its members share one value, and
   their order is of no interest.  Weights of 16 bits have nothing but closed buckets; for others
   this step is left out where a sample says that little will be shared.
2. *Sort.*  All other weights become items, and so does each closed bucket, with its whole mass.
   The leading 32 bits and the position of an item make one integer, and numpy sorts those.
3. *Pool* adjacent violators.  Means are compared in float64 and, where that cannot tell, exactly,
   on the grid of :mod:`wsr.exact_sums`.
4. *Move.*  Each cluster gets its value, and each weight that of its cluster.

Derived in the chapter *Not sorting what will be shared*.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsr.kernels.cpu_loops import (
    BUCKETS,
    Buckets,
    Strengths,
    count_into,
    decode,
    look_up,
    move,
    open_buckets,
    pack,
    pack_counted,
    read,
    shrink,
)

Array = NDArray[Any]

# Thresholds between two ways to the same result; the chapter *Timings* shows both sides of each.
COUNTED_FROM = 2**14  # weights of 16 bits
SAMPLED_FROM = 2**16  # other weights
SAMPLE = 2**10
SHARED = 32  # a weight of the sample counts as shared if its cluster there has so many members


def prox_rows(rows: Tensor, lambd: float | Tensor, l1: float | Tensor, rho: float) -> Tensor | None:
    """Return the prox of each row; :func:`wsr.prox` says what that is and checks the arguments.

    Parameters
    ----------
    rows : Tensor
        Shape (..., d), d > 0, contiguous, on the CPU.
    lambd, l1 : float or 0-dim Tensor
        As in :func:`wsr.prox`.
    rho : float
        As in :func:`wsr.prox`.

    Returns
    -------
    Tensor or None
        Of the shape and dtype of rows.  None if weights that differ would tie because the grid
        is too coarse for both, which takes weights that differ by 2^53 in size.
    """
    d = rows.shape[-1]
    if rows.element_size() == 2 and d < COUNTED_FROM:
        result = prox_rows(rows.float(), lambd, l1, rho)
        return None if result is None else result.to(rows.dtype) + 0.0
    strengths = Strengths(float(lambd), float(l1), float(rho))
    if not all(0 <= strength < math.inf for strength in strengths):  # came from another device
        return torch.full_like(rows, torch.nan)
    w = rows.detach().resolve_neg().view(-1, d)
    u = torch.empty_like(w)
    if rows.element_size() > 2 and strengths.lambd == 0:
        shrink(w.numpy(), strengths, u.numpy())
        return u.view(rows.shape)
    if rows.element_size() > 2 and d < SAMPLED_FROM:
        fits = _by_sorting(w.numpy(), u.numpy(), strengths)
    else:
        fits = all(_long_row(row, moved, strengths) for row, moved in zip(w, u, strict=True))
    return u.view(rows.shape) if fits else None


def _long_row(w: Tensor, u: Tensor, strengths: Strengths) -> bool:
    if w.element_size() > 2 and not _much_is_shared(w.numpy(), strengths.lambd):
        return _by_sorting(w.numpy()[None], u.numpy()[None], strengths)
    return _by_counting(w, u, strengths)


def _much_is_shared(w: Array, lambd: float) -> bool:
    """Look at every n-th weight: R is a mean over pairs, so lambd means the same to a sample."""
    sample = np.ascontiguousarray(w[None, :: len(w) // SAMPLE][:, :SAMPLE])
    moved = np.empty_like(sample)
    _by_sorting(sample, moved, Strengths(lambd, 0.0, 0.0))
    counts = np.unique(moved, return_counts=True)[1]
    return bool(4 * counts[counts >= SHARED].sum() > 3 * SAMPLE)


def _by_sorting(w: Array, u: Array, strengths: Strengths) -> bool:
    """Write the prox of every row of w, shape (n, d), to u; return whether the grid was enough."""
    items = np.empty(w.shape, np.uint64)
    in_order = pack(_bits(w), _spare(w), items)
    x = w if in_order else _sorted(items, w, _nothing_counted())
    return bool(move(x, items, _nothing_counted(), w.shape[-1], strengths, u, np.zeros(0)))


def _by_counting(w: Tensor, u: Tensor, strengths: Strengths) -> bool:
    """Write the prox of w, shape (d,), to u; return whether the grid was enough."""
    given, out = _as_numpy(w), _as_numpy(u)
    buckets = _counted(w)
    if not np.isfinite(buckets.edge[buckets.mass > 0]).all():
        u.fill_(torch.nan)
        return True
    if buckets.width:
        open_buckets(buckets, len(w), strengths.lambd)
    items = pack_counted(_bits(given), _spare(given), buckets)[None]
    x = _sorted(items, given[None], buckets)
    floats = out[None] if buckets.width else np.zeros((1, 0), np.float32)
    values = np.zeros(BUCKETS)
    fits = move(x, items, buckets, len(w), strengths, floats, values)
    if not buckets.width:
        values = _as_numpy(torch.from_numpy(values).to(w.dtype) + 0.0)
    look_up(_bits(given), _spare(given), buckets.closed, values, out)
    return bool(fits)


def _counted(w: Tensor) -> Buckets:
    """Return what the buckets know of w, shape (d,), all of them closed."""
    given = _as_numpy(w)
    mass, high_digits, low_digits = np.zeros((3, BUCKETS), np.int64)
    closed = np.ones(BUCKETS, np.bool_)
    buckets = Buckets(*_edges(w.dtype), mass, high_digits, low_digits, closed)
    count_into(_bits(given), _spare(given), buckets)
    return buckets


def _sorted(items: Array, w: Array, buckets: Buckets) -> Array:
    """Sort the items of every row in place and return their values."""
    items.sort(axis=-1)
    x = np.empty(items.shape, np.float32 if w.itemsize == 2 else w.dtype)
    if w.dtype == np.float32 and len(buckets.edge) == 0:
        decode(items, _bits(x))  # an item tells its value, so w need not be read again
    elif not read(items, w, buckets.edge, x):
        order = x.argsort(axis=-1)
        items[:] = np.take_along_axis(items, order, -1)
        x = np.take_along_axis(x, order, -1)
    return x


def _as_numpy(values: Tensor) -> Array:
    """Return the memory of a tensor; that of 16 bits as integers, for numpy has no bfloat16."""
    array: Array = (values.view(torch.int16) if values.element_size() == 2 else values).numpy()
    return array


def _bits(values: Array) -> Array:
    return values.view(f"u{values.itemsize}")


def _spare(values: Array) -> int:
    """Return how many of the 64 bits of a key these numbers leave unused."""
    return 64 - 8 * values.itemsize


@functools.cache
def _nothing_counted() -> Buckets:
    numbers, floats = np.zeros(0, np.int64), np.zeros(0)
    return Buckets(floats, floats, 0.0, numbers, numbers, numbers, np.zeros(0, np.bool_))


@functools.cache
def _edges(dtype: torch.dtype) -> tuple[Array, Array, float]:
    """Return edge and unit of every bucket, and the width of a bucket in units."""
    size = torch.finfo(dtype).bits
    key = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(48)
    following = key + (np.uint64(1) << np.uint64(64 - size))

    def value(key: Array) -> Array:  # the inverse of _key
        wide = np.where(key >> np.uint64(63) != 0, key ^ np.uint64(2**63), ~key)
        bits = (wide >> np.uint64(64 - size)).astype(f"u{size // 8}").view(f"i{size // 8}")
        result: Array = torch.from_numpy(bits).view(dtype).double().numpy()
        return result

    with np.errstate(invalid="ignore"):  # infinities and NaN have buckets too
        unit = value(following) - value(key)
    # The largest number has an infinite neighbour, but in 16 bits it is the whole of its bucket.
    return value(key), np.where(np.isfinite(unit), unit, 0.0), float(2 ** (size - 16) - 1)
