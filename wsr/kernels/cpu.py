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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsr.compilation import compiled

Array = NDArray[Any]

LIMB = 31
DIGIT = 24  # sums over a bucket are kept in digits of so many bits
BUCKETS = 2**16
POSITION = np.uint64(2**32 - 1)  # the bits of an item that say where its weight stands
HEAVY = np.uint64(2**31)  # among these: the item is the bucket whose number follows
# Of a mean in float64, in units of which the largest end point has 2^31; its error is smaller.
TOLERANCE = 2.0**-18

# Thresholds between two ways to the same result; the chapter *Timings* shows both sides of each.
COUNTED_FROM = 2**14  # weights of 16 bits
SAMPLED_FROM = 2**16  # other weights
SAMPLE = 2**10
SHARED = 8  # a weight of the sample counts as shared if its cluster there has so many members


class Strengths(NamedTuple):
    """What prox was asked for."""

    lambd: float
    l1: float
    rho: float


class Buckets(NamedTuple):
    """What is known of the weights from their leading 16 bits: an entry a bucket.

    A bucket holds ``count`` weights ``edge + low * unit`` with 0 <= low <= width; the sum of all
    low is ``high_digits * 2^24 + low_digits``.
    """

    edge: Array
    unit: Array
    width: float
    count: Array
    high_digits: Array
    low_digits: Array
    closed: Array  # no cluster begins inside


class Line(NamedTuple):
    """The particles of a row, and the grid on which their means are compared."""

    d: int
    lambd: float
    half: float  # 1/2 where end points might overflow, else 1
    grow: float  # grow * more is the power of two that takes the largest end point to about 2^31
    more: float


class Clusters(NamedTuple):
    """Clusters of several weights: their first item, ranks begin <= k < end, and sum of z."""

    item: Array
    begin: Array
    end: Array
    high: Array
    low: Array


def prox_rows(rows: Tensor, lambd: float, l1: float, rho: float) -> Tensor | None:
    """Return the prox of each row; :func:`wsr.prox` says what that is and checks the arguments.

    Parameters
    ----------
    rows : Tensor
        Shape (..., d), d > 0, contiguous, on the CPU.
    lambd, l1, rho : float
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
    w = rows.detach().view(-1, d)
    u = torch.empty_like(w)
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
    return bool(2 * counts[counts >= SHARED].sum() > SAMPLE)


def _by_sorting(w: Array, u: Array, strengths: Strengths) -> bool:
    """Write the prox of every row of w, shape (n, d), to u; return whether the grid was enough."""
    items = np.empty(w.shape, np.uint64)
    _pack(_bits(w), _spare(w), items)
    x = _sorted(items, w, _nothing_counted())
    return bool(_move(x, items, _nothing_counted(), w.shape[-1], strengths, u, np.zeros(0)))


def _by_counting(w: Tensor, u: Tensor, strengths: Strengths) -> bool:
    """Write the prox of w, shape (d,), to u; return whether the grid was enough."""
    # numpy has no bfloat16, but of 16 bits the buckets know all.
    as_numpy = {2: torch.int16, 4: torch.float32, 8: torch.float64}[w.element_size()]
    given, out = w.view(as_numpy).numpy(), u.view(as_numpy).numpy()
    sums = np.zeros((3, BUCKETS), np.int64)
    buckets = Buckets(*_edges(w.dtype), *sums, np.ones(BUCKETS, np.bool_))
    _count(_bits(given), _spare(given), buckets)
    if not np.isfinite(buckets.edge[buckets.count > 0]).all():
        u.fill_(torch.nan)
        return True
    if buckets.width:
        _open(buckets, len(w), strengths.lambd)
    items = _pack_counted(_bits(given), _spare(given), buckets)[None]
    x = _sorted(items, given[None], buckets)
    values = np.zeros(BUCKETS)
    floats = out[None] if buckets.width else np.zeros((1, 0), np.float32)
    fits = _move(x, items, buckets, len(w), strengths, floats, values)
    table = (torch.from_numpy(values).to(w.dtype) + 0.0).view(as_numpy).numpy()
    _look_up(_bits(given), _spare(given), buckets.closed, table, out)
    return bool(fits)


def _sorted(items: Array, w: Array, buckets: Buckets) -> Array:
    """Sort the items of every row in place and return their values."""
    items.sort(axis=-1)
    x = np.empty(items.shape, np.float32 if w.itemsize == 2 else w.dtype)
    if w.dtype == np.float32 and len(buckets.edge) == 0:
        _decode(items, _bits(x))  # an item tells its value, so w need not be read again
    elif not _read(items, w, buckets.edge, x):
        order = x.argsort(axis=-1)
        items[:] = np.take_along_axis(items, order, -1)
        x = np.take_along_axis(x, order, -1)
    return x


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
    as_int = {16: torch.int16, 32: torch.int32, 64: torch.int64}[size]
    key = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(48)
    following = key + (np.uint64(1) << np.uint64(64 - size))

    def value(key: Array) -> Array:  # the inverse of _key
        wide = np.where(key >> np.uint64(63) != 0, key ^ np.uint64(2**63), ~key)
        bits = (wide >> np.uint64(64 - size)).astype(f"u{size // 8}").view(f"i{size // 8}")
        result: Array = torch.from_numpy(bits).view(dtype).double().numpy()
        return result

    with np.errstate(invalid="ignore"):  # infinities and NaN have buckets too
        unit = value(following) - value(key)
    return value(key), unit, float(2 ** (size - 16) - 1)


# What follows is compiled.  Keys are unsigned integers in the order of the floats, with the bits of
# every dtype on top: the leading 16 bits of a key are its bucket.


@compiled
def _key(bits, spare):
    wide = np.uint64(bits) << np.uint64(spare)
    negative = wide > np.uint64(2**63)  # -0.0 is not: it equals +0.0
    return ~wide if negative else wide | np.uint64(2**63)


@compiled
def _bucket(bits, spare):
    return np.int64(_key(bits, spare) >> np.uint64(48))


@compiled
def _pack(bits, spare, items):
    for row in range(len(bits)):
        for k in range(bits.shape[1]):
            items[row, k] = (_key(bits[row, k], spare) & ~POSITION) | np.uint64(k)


@compiled
def _count(bits, spare, buckets):
    mask = np.uint64(2**48 - 1)
    for k in range(len(bits)):
        key = _key(bits[k], spare)
        bucket = np.int64(key >> np.uint64(48))
        low = np.int64((key & mask) >> np.uint64(spare))
        buckets.count[bucket] += 1
        buckets.high_digits[bucket] += low >> DIGIT
        buckets.low_digits[bucket] += low & (2**DIGIT - 1)


@compiled
def _pack_counted(bits, spare, buckets):
    """Return the closed buckets and the members of the open ones as items."""
    number = 0
    for bucket in range(BUCKETS):
        if buckets.count[bucket]:
            number += 1 if buckets.closed[bucket] else buckets.count[bucket]
    items = np.empty(number, np.uint64)
    n = 0
    for bucket in range(BUCKETS):
        if buckets.count[bucket] and buckets.closed[bucket]:
            items[n] = (np.uint64(bucket) << np.uint64(48)) | HEAVY | np.uint64(bucket)
            n += 1
    if n < number:
        for k in range(len(bits)):
            key = _key(bits[k], spare)
            if not buckets.closed[np.int64(key >> np.uint64(48))]:
                items[n] = (key & ~POSITION) | np.uint64(k)
                n += 1
    return items


@compiled
def _decode(items, x_bits):
    """Write the values of sorted items of 32 bits, none of them a bucket, as bits."""
    for row in range(len(items)):
        for k in range(items.shape[1]):
            key = items[row, k]
            flipped = key ^ np.uint64(2**63) if key >> np.uint64(63) else ~key
            x_bits[row, k] = flipped >> np.uint64(32)


@compiled
def _read(items, w, edge, x):
    """Write the values of sorted items to x; return whether x is in order.

    Items are sorted by their leading 32 bits.  The few that these cannot tell apart are put in
    order here; if they are many, nothing is, and the answer is no.
    """
    room = 8 * items.shape[1]
    for row in range(len(items)):
        for k in range(items.shape[1]):
            item = items[row, k]
            position = np.int64(item & POSITION)
            value = edge[position & 0xFFFF] if item & HEAVY else w[row, position]
            n = k
            while room > 0 and n > 0 and x[row, n - 1] > value:
                x[row, n], items[row, n] = x[row, n - 1], items[row, n - 1]
                n -= 1
                room -= 1
            x[row, n], items[row, n] = value, item
    return room > 0


@compiled
def _look_up(bits, spare, closed, table, out):
    for k in range(len(bits)):
        bucket = _bucket(bits[k], spare)
        if closed[bucket]:
            out[k] = table[bucket]


# The grid: as in wsr.exact_sums, an integer high * 2^31 + low.


@compiled
def _factors(largest):
    """Return two powers of two whose product takes the largest number to [2^30, 2^31)."""
    exponent = max(math.frexp(largest)[1], -1022)
    half = (LIMB - exponent) >> 1
    return math.ldexp(1.0, half), math.ldexp(1.0, LIMB - exponent - half)


@compiled
def _limbs(value, grow, more):
    """Return the number on the grid, and whether it was on it before."""
    scaled = value * grow * more
    high = np.rint(scaled)
    rest = (scaled - high) * 2.0**LIMB
    low = np.rint(rest)
    return np.int64(high), np.int64(low), low == rest


@compiled
def _mean(high, low, size):
    return (high + low * 2.0**-LIMB) / size


@compiled
def _divide(high, low, size):
    """Return whole and remainder of (high * 2^31 + low) / size."""
    whole = high // size
    carried = ((high - whole * size) << LIMB) + low
    digit = carried // size
    return (whole << LIMB) + digit, carried - digit * size


@compiled
def _compare(high_a, low_a, size_a, high_b, low_b, size_b):
    """Return a number that is negative, zero or positive as mean a is less, equal or greater."""
    whole_a, remainder_a = _divide(high_a, low_a, size_a)
    whole_b, remainder_b = _divide(high_b, low_b, size_b)
    if whole_a != whole_b:
        return whole_a - whole_b
    return remainder_a * size_b - remainder_b * size_a


@compiled
def _sum_of_bucket(bucket, buckets, grow, more):
    """Return the sum over a bucket's members on the grid."""
    count = buckets.count[bucket]
    edge_high, edge_low, exact = _limbs(buckets.edge[bucket], grow, more)
    high, low = count * edge_high, count * edge_low
    unit = buckets.unit[bucket] * grow * more
    for digits, weight in (
        (buckets.high_digits[bucket], unit * 2.0**DIGIT),
        (buckets.low_digits[bucket], unit),
    ):
        for piece in ((digits >> LIMB) * (2.0**LIMB * weight), (digits & (2**LIMB - 1)) * weight):
            piece_high, piece_low, piece_exact = _limbs(piece, 1.0, 1.0)
            high, low, exact = high + piece_high, low + piece_low, exact and piece_exact
    return high, low, exact


# The particles.


@compiled
def _end_point(x, rank, line):
    shift = line.lambd * ((line.d - rank - (rank + 1)) / max(line.d - 1, 1))
    return x * line.half + shift * line.half


@compiled
def _top(item, x, buckets):
    """Return the largest value that an item can have."""
    if item & HEAVY:
        return x + buckets.width * buckets.unit[np.int64(item & np.uint64(0xFFFF))]
    return np.float64(x)


@compiled
def _line(x, items, buckets, d, lambd):
    """Return the grid of :func:`wsr.particles.free_end_points`, or a coarser one over buckets."""
    first, last = np.float64(x[0]), _top(items[-1], x[-1], buckets)
    half = 0.5 if max(abs(first), abs(last), lambd) > 1 else 1.0
    free = Line(d, lambd if d > 1 else 0.0, half, 1.0, 1.0)
    largest = 0.0
    rank = 0
    for k in range(len(x)):
        if items[k] & HEAVY:
            reach = max(abs(np.float64(x[k])), abs(_top(items[k], x[k], buckets)))
            largest = max(largest, (reach + free.lambd) * half)
            rank += buckets.count[np.int64(items[k] & np.uint64(0xFFFF))]
        else:
            largest = max(largest, abs(_end_point(x[k], rank, free)))
            rank += 1
    grow, more = _factors(largest)
    return Line(d, free.lambd, half, grow, more)


@compiled
def _pool(x, items, buckets, line):
    """Pool adjacent violators; return the clusters of several weights, and whether all is sure."""
    heavies = np.count_nonzero(buckets.closed & (buckets.count > 0))
    room = len(x) // 2 + heavies + 1
    clusters = Clusters(
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
    )
    top = 0  # the clusters so far; between them stand single weights, which are not written down
    sure, exact = True, True
    last, rank = -np.inf, 0
    for k in range(len(x)):
        heavy = items[k] & HEAVY
        if heavy:
            bucket = np.int64(items[k] & np.uint64(0xFFFF))
            size = buckets.count[bucket]
            high, low, fits = _sum_of_bucket(bucket, buckets, line.grow * line.half, line.more)
            velocity = (line.d - 2 * rank - size) / max(line.d - 1, 1)
            shift = line.lambd * line.half * line.grow * line.more * velocity * size
            shift_high, shift_low, shift_fits = _limbs(shift, 1.0, 1.0)
            high, low, exact = high + shift_high, low + shift_low, exact and fits and shift_fits
            mean = _mean(high, low, size)
        else:
            size = 1
            z = _end_point(x[k], rank, line)
            mean = z * line.grow * line.more
            if mean - last > TOLERANCE:
                last = mean
                rank += 1
                continue
            high, low, fits = _limbs(z, line.grow, line.more)
            exact = exact and fits
        item, begin, end = k, rank, rank + size
        while begin > 0:
            written = top > 0 and clusters.end[top - 1] == begin
            if written:
                before, before_item = clusters.begin[top - 1], clusters.item[top - 1]
                before_high, before_low = clusters.high[top - 1], clusters.low[top - 1]
            else:
                before, before_item = begin - 1, item - 1
                z = _end_point(x[before_item], before, line)
                before_high, before_low, fits = _limbs(z, line.grow, line.more)
                exact = exact and fits
            gap = mean - _mean(before_high, before_low, begin - before)
            if gap > TOLERANCE:
                break
            if gap > -TOLERANCE:
                order = _compare(high, low, end - begin, before_high, before_low, begin - before)
                if order > 0:
                    break
                if order == 0 and not exact:
                    left = _end_point(x[item - 1], begin - 1, line)
                    sure = sure and left >= _end_point(x[item], begin, line)
            if written:
                top -= 1
            item, begin = before_item, before
            high, low = high + before_high, low + before_low
            mean = _mean(high, low, end - begin)
        last, rank = mean, end
        if heavy or end - begin > 1:
            clusters.item[top], clusters.begin[top], clusters.end[top] = item, begin, end
            clusters.high[top], clusters.low[top] = high, low
            top += 1
    return clusters, top, sure


@compiled
def _open(buckets, d, lambd):
    """Open every bucket inside which a cluster might begin.

    With all buckets closed, pooling gives the convex minorant of the cumulative end points at the
    borders of the buckets.  The m smallest members of a bucket sum to at least m * least and to at
    least sum - (size - m) * greatest.  Where the two meet, the path inside the bucket is lowest
    beside the minorant: if it is not below it even there, it has no vertex inside.
    """
    occupied = np.flatnonzero(buckets.count)
    x = buckets.edge[occupied]
    items = occupied.astype(np.uint64) | HEAVY
    line = _line(x, items, buckets, d, lambd)
    clusters, number, _ = _pool(x, items, buckets, line)
    unit_shift = line.lambd * line.half * line.grow * line.more / max(d - 1, 1)
    rank, k = 0, 0
    for n in range(number):
        first = k
        size_of_cluster = clusters.end[n] - clusters.begin[n]
        slope = _mean(clusters.high[n], clusters.low[n], size_of_cluster)
        above = 0.0  # how far the path at the border stands above the minorant
        while rank < clusters.end[n]:
            bucket = occupied[k]
            size = buckets.count[bucket]
            grow = line.grow * line.half
            high, low, _ = _sum_of_bucket(bucket, buckets, grow, line.more)
            total = high + low * 2.0**-LIMB
            least = x[k] * grow * line.more
            greatest = _top(items[k], x[k], buckets) * grow * line.more
            if size > 1 and greatest > least:
                m = min(max((size * greatest - total) / (greatest - least), 0.0), size)
                shift = unit_shift * m * (d - 2 * rank - m)
                lowest = above + m * least + shift - m * slope
                rounding = TOLERANCE * size_of_cluster * (k - first + 1)
                buckets.closed[bucket] = lowest > rounding
            above += total + unit_shift * size * (d - 2 * rank - size) - size * slope
            rank += size
            k += 1


@compiled
def _move(x, items, buckets, d, strengths, out, values):
    """Write the prox of each row to out, and that of closed buckets to values."""
    sure = True
    for row in range(len(x)):
        if math.isfinite(x[row, 0]) and math.isfinite(x[row, -1]):
            line = _line(x[row], items[row], buckets, d, strengths.lambd)
            clusters, number, fits = _pool(x[row], items[row], buckets, line)
            sure = sure and fits
            _settle(x[row], items[row], buckets, d, strengths, clusters, number, out[row], values)
        else:
            out[row] = np.nan
    return sure


@compiled
def _settle(x, items, buckets, d, strengths, clusters, number, out, values):
    """Give each cluster its value, as :func:`wsr.prox` does."""
    value = np.zeros(1, out.dtype)
    zero = np.zeros(1, out.dtype)
    furthest = -np.inf
    begin, first, n = 0, 0, 0
    while first < len(x):
        if n < number and clusters.begin[n] == begin:
            end, n = clusters.end[n], n + 1
            behind = _item_at(end - begin, items, first, buckets)
            start = _mean_of_items(x, items, first, behind, end - begin, buckets)
        else:
            end, behind = begin + 1, first + 1
            start = np.float64(x[first])
        shift = strengths.lambd * ((d - begin - end) / max(d - 1, 1))
        furthest = max(furthest, start + shift)  # rounding must not change the order
        value[0] = _shrunk(furthest, start, strengths)
        value[0] += zero[0]  # what has been rounded to zero is +0.0
        for k in range(first, behind):
            if items[k] & HEAVY:
                values[np.int64(items[k] & np.uint64(0xFFFF))] = value[0]
            else:
                out[np.int64(items[k] & POSITION)] = value[0]
        begin, first = end, behind


@compiled
def _shrunk(position, start, strengths):
    """Return the value of a cluster: less l1, and less of its displacement the larger rho is."""
    if abs(position) < strengths.l1:
        return 0.0
    shrunk = position - math.copysign(strengths.l1, position)
    if strengths.rho < 0.5:
        return shrunk + strengths.rho * (start - shrunk)
    return start - (1 - strengths.rho) * (start - shrunk)


@compiled
def _item_at(mass, items, first, buckets):
    """Return the item before which the items from first on have this mass."""
    if len(buckets.count) == 0:
        return first + mass
    while mass > 0:
        heavy = items[first] & HEAVY
        mass -= buckets.count[np.int64(items[first] & np.uint64(0xFFFF))] if heavy else 1
        first += 1
    return first


@compiled
def _mean_of_items(x, items, first, behind, size, buckets):
    """Return the mean of the weights of these items, exact on a grid of its own but for one rounding."""
    least, greatest = np.float64(x[first]), _top(items[behind - 1], x[behind - 1], buckets)
    grow, more = _factors(max(abs(least), abs(greatest)))
    high, low = 0, 0
    for k in range(first, behind):
        if items[k] & HEAVY:
            bucket = np.int64(items[k] & np.uint64(0xFFFF))
            item_high, item_low, _ = _sum_of_bucket(bucket, buckets, grow, more)
        else:
            item_high, item_low, _ = _limbs(np.float64(x[k]), grow, more)
        high, low = high + item_high, low + item_low
    whole, remainder = _divide(high, low, size)
    return (whole + remainder / size) * 2.0**-LIMB / grow / more
