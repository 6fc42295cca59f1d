"""The loops of :mod:`wsr.kernels.cpu`, compiled.

Keys are unsigned integers in the order of the floats, with the bits of every dtype on top: the
leading 16 bits of a key are its bucket.  An item is the leading 32 bits of a key and, below them,
the position of its weight; or a whole bucket, marked as heavy, with its number.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsr.compilation import compiled

Array = NDArray[Any]

LIMB = 31
DIGIT = 24  # sums over a bucket are kept in digits of so many bits
BUCKETS = 2**16
POSITION = np.uint64(2**32 - 1)  # the bits of an item that say where its weight stands
HEAVY = np.uint64(2**31)  # among these: the item is the bucket whose number follows
# Of a mean in float64, in units of which the largest end point has 2^31: its error is below 2^-20.
TOLERANCE = 2.0**-18


class Strengths(NamedTuple):
    """What prox was asked for."""

    lambd: float
    l1: float
    rho: float


class Buckets(NamedTuple):
    """What is known of the weights from their leading 16 bits: an entry a bucket.

    A bucket holds ``mass`` weights ``edge + low * unit`` with 0 <= low <= width; the sum of all
    low is ``high_digits * 2^24 + low_digits``.
    """

    edge: Array
    unit: Array
    width: float
    mass: Array
    high_digits: Array
    low_digits: Array
    closed: Array  # no cluster begins inside


class Grid(NamedTuple):
    """Numbers below ``ceiling`` times ``grow * more``, a power of two, are below 2^31."""

    ceiling: float
    grow: float
    more: float


class Line(NamedTuple):
    """The particles of a row, and the grid on which their means are compared."""

    d: int
    lambd: float
    half: float  # 1/2 where end points might overflow, else 1
    grow: float  # as those of a grid, for the largest end point
    more: float


class Clusters(NamedTuple):
    """Clusters of several weights: their first item, ranks begin <= k < end, and sum of z."""

    item: Array
    begin: Array
    end: Array
    high: Array
    low: Array


@compiled
def key_of(bits: Any, spare: int) -> Any:
    wide = np.uint64(bits) << np.uint64(spare)
    negative = wide > np.uint64(2**63)  # -0.0 is not: it equals +0.0
    return ~wide if negative else wide | np.uint64(2**63)


@compiled
def bucket_of(bits: Any, spare: int) -> Any:
    return np.int64(key_of(bits, spare) >> np.uint64(48))


@compiled
def pack(bits: Array, spare: int, items: Array) -> Any:
    """Write all weights as items; return whether every row is in ascending order already."""
    descents = 0
    for row in range(len(bits)):
        before = np.uint64(0)
        for k in range(bits.shape[1]):
            key = key_of(bits[row, k], spare)
            items[row, k] = (key & ~POSITION) | np.uint64(k)
            descents += before > key
            before = key
    return descents == 0


@compiled
def count_into(bits: Array, spare: int, buckets: Buckets) -> None:
    mask = np.uint64(2**48 - 1)
    for k in range(len(bits)):
        key = key_of(bits[k], spare)
        bucket = np.int64(key >> np.uint64(48))
        low = np.int64((key & mask) >> np.uint64(spare))
        buckets.mass[bucket] += 1
        buckets.high_digits[bucket] += low >> DIGIT
        buckets.low_digits[bucket] += low & (2**DIGIT - 1)


@compiled
def pack_counted(bits: Array, spare: int, buckets: Buckets) -> Any:
    """Return the closed buckets and the members of the open ones as items."""
    number = 0
    for bucket in range(BUCKETS):
        if buckets.mass[bucket]:
            number += 1 if buckets.closed[bucket] else buckets.mass[bucket]
    items = np.empty(number, np.uint64)
    n = 0
    for bucket in range(BUCKETS):
        if buckets.mass[bucket] and buckets.closed[bucket]:
            items[n] = (np.uint64(bucket) << np.uint64(48)) | HEAVY | np.uint64(bucket)
            n += 1
    if n < number:
        for k in range(len(bits)):
            key = key_of(bits[k], spare)
            if n < number and not buckets.closed[np.int64(key >> np.uint64(48))]:
                items[n] = (key & ~POSITION) | np.uint64(k)
                n += 1
    items[n:] = 0  # only if other threads have changed the weights since they were counted
    return items


@compiled
def decode(items: Array, x_bits: Array) -> None:
    """Write the values of sorted items of 32 bits, none of them a bucket, as bits."""
    for row in range(len(items)):
        for k in range(items.shape[1]):
            key = items[row, k]
            flipped = key ^ np.uint64(2**63) if key >> np.uint64(63) else ~key
            x_bits[row, k] = flipped >> np.uint64(32)


@compiled
def read(items: Array, w: Array, edge: Array, x: Array) -> Any:
    """Write the values of sorted items to x; return whether x is in order.

    Items are sorted by their leading 32 bits.  The few that these cannot tell apart are put in
    order here; if they are many, nothing is, and the answer is no.
    """
    room = 8 * items.size
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
def look_up(bits: Array, spare: int, closed: Array, table: Array, out: Array) -> None:
    for k in range(len(bits)):
        bucket = bucket_of(bits[k], spare)
        if closed[bucket]:
            out[k] = table[bucket]


# The grid: as in wsr.exact_sums, an integer high * 2^31 + low.


@compiled
def grid_for(largest: float) -> Any:
    """Return the grid on which the largest number has about 31 bits before the point."""
    exponent = max(math.frexp(largest)[1], -1022)
    half = (LIMB - exponent) >> 1
    grow, more = math.ldexp(1.0, half), math.ldexp(1.0, LIMB - exponent - half)
    return Grid(math.ldexp(1.0, exponent), grow, more)


@compiled
def limbs_of(value: float, grow: float, more: float) -> Any:
    """Return the number on the grid, and whether it was on it before."""
    scaled = value * grow * more
    high = np.rint(scaled)
    rest = (scaled - high) * 2.0**LIMB
    low = np.rint(rest)
    return np.int64(high), np.int64(low), low == rest and (scaled != 0) == (value != 0)


@compiled
def mean_of(high: int, low: int, size: int) -> Any:
    return (high + low * 2.0**-LIMB) / size


@compiled
def divide(high: int, low: int, size: int) -> Any:
    """Return whole and remainder of (high * 2^31 + low) / size."""
    whole = high // size
    carried = ((high - whole * size) << LIMB) + low
    digit = carried // size
    return (whole << LIMB) + digit, carried - digit * size


@compiled
def compare(high_a: int, low_a: int, size_a: int, high_b: int, low_b: int, size_b: int) -> Any:
    """Return a number that is negative, zero or positive as mean a is less, equal or greater."""
    whole_a, remainder_a = divide(high_a, low_a, size_a)
    whole_b, remainder_b = divide(high_b, low_b, size_b)
    if whole_a != whole_b:
        return whole_a - whole_b
    return remainder_a * size_b - remainder_b * size_a


@compiled
def sum_of_bucket(bucket: int, buckets: Buckets, grow: float, more: float) -> Any:
    """Return the sum over a bucket's members on the grid."""
    count = buckets.mass[bucket]
    edge_high, edge_low, exact = limbs_of(buckets.edge[bucket], grow, more)
    high, low = count * edge_high, count * edge_low
    unit = buckets.unit[bucket] * grow * more
    for digits, weight in (
        (buckets.high_digits[bucket], unit * 2.0**DIGIT),
        (buckets.low_digits[bucket], unit),
    ):
        for piece in ((digits >> LIMB) * (2.0**LIMB * weight), (digits & (2**LIMB - 1)) * weight):
            piece_high, piece_low, piece_exact = limbs_of(piece, 1.0, 1.0)
            high, low, exact = high + piece_high, low + piece_low, exact and piece_exact
    vanished = unit == 0 and (buckets.high_digits[bucket] != 0 or buckets.low_digits[bucket] != 0)
    return high, low, exact and not vanished


# The particles.


@compiled
def end_point(x: float, rank: int, line: Line) -> Any:
    shift = line.lambd * ((line.d - rank - (rank + 1)) / max(line.d - 1, 1))
    return x * line.half + shift * line.half


@compiled
def top_of(item: Any, x: float, buckets: Buckets) -> Any:
    """Return the largest value that an item can have."""
    if item & HEAVY:
        return x + buckets.width * buckets.unit[np.int64(item & np.uint64(0xFFFF))]
    return np.float64(x)


@compiled
def line_of(x: Array, items: Array, buckets: Buckets, d: int, lambd: float) -> Any:
    """Return the grid of :func:`wsr.particles.free_end_points`, or a coarser one over buckets."""
    first, last = np.float64(x[0]), top_of(items[-1], x[-1], buckets)
    half = 0.5 if max(abs(first), abs(last), lambd) > 1 else 1.0
    free = Line(d, lambd if d > 1 else 0.0, half, 1.0, 1.0)
    largest = 0.0
    rank = 0
    for k in range(len(x)):
        if items[k] & HEAVY:
            reach = max(abs(np.float64(x[k])), abs(top_of(items[k], x[k], buckets)))
            largest = max(largest, reach * half + free.lambd * half)
            rank += buckets.mass[np.int64(items[k] & np.uint64(0xFFFF))]
        else:
            largest = max(largest, abs(end_point(x[k], rank, free)))
            rank += 1
    grid = grid_for(largest)
    return Line(d, free.lambd, half, grid.grow, grid.more)


@compiled
def pool(x: Array, items: Array, buckets: Buckets, line: Line) -> Any:
    """Pool adjacent violators; return the clusters of several weights, and whether all is sure."""
    heavies = np.count_nonzero(buckets.closed & (buckets.mass > 0))
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
    last, rank = -np.inf, 0  # the mean of the cluster before, and where the next one begins
    for k in range(len(x)):
        heavy = items[k] & HEAVY
        if heavy:
            bucket = np.int64(items[k] & np.uint64(0xFFFF))
            size = buckets.mass[bucket]
            high, low, fits = sum_of_bucket(bucket, buckets, line.grow * line.half, line.more)
            velocity = (line.d - 2 * rank - size) / max(line.d - 1, 1)
            shift = line.lambd * line.half * line.grow * line.more * velocity * size
            shift_high, shift_low, shift_fits = limbs_of(shift, 1.0, 1.0)
            high, low, exact = high + shift_high, low + shift_low, exact and fits and shift_fits
            mean = mean_of(high, low, size)
        else:
            size = 1
            z = end_point(x[k], rank, line)
            mean = z * line.grow * line.more
            if mean - last > TOLERANCE:
                last = mean
                rank += 1
                continue
            high, low, fits = limbs_of(z, line.grow, line.more)
            exact = exact and fits
        item, begin, end = k, rank, rank + size
        while begin > 0 and mean - last <= TOLERANCE:
            written = top > 0 and clusters.end[top - 1] == begin
            if written:
                before, before_item = clusters.begin[top - 1], clusters.item[top - 1]
                before_high, before_low = clusters.high[top - 1], clusters.low[top - 1]
            else:
                before, before_item = begin - 1, item - 1
                z = end_point(x[before_item], before, line)
                before_high, before_low, fits = limbs_of(z, line.grow, line.more)
                exact = exact and fits
            if mean - last > -TOLERANCE:
                order = compare(high, low, end - begin, before_high, before_low, begin - before)
                if order > 0:
                    break
                if order == 0 and not exact:
                    left = end_point(x[item - 1], begin - 1, line)
                    right = end_point(top_of(items[item], x[item], buckets), begin, line)
                    sure = sure and left >= right
            if written:
                top -= 1
            item, begin = before_item, before
            high, low = high + before_high, low + before_low
            mean = mean_of(high, low, end - begin)
            if top > 0 and clusters.end[top - 1] == begin:
                size_before = begin - clusters.begin[top - 1]
                last = mean_of(clusters.high[top - 1], clusters.low[top - 1], size_before)
            elif begin > 0:
                last = end_point(x[item - 1], begin - 1, line) * line.grow * line.more
        last, rank = mean, end
        if heavy or end - begin > 1:
            clusters.item[top], clusters.begin[top], clusters.end[top] = item, begin, end
            clusters.high[top], clusters.low[top] = high, low
            top += 1
    return clusters, top, sure


@compiled
def open_buckets(buckets: Buckets, d: int, lambd: float) -> None:
    """Open every bucket inside which a cluster might begin.

    With all buckets closed, pooling gives the convex minorant of the cumulative end points at the
    borders of the buckets.  The m smallest members of a bucket sum to at least m * least and to at
    least sum - (size - m) * greatest.  Where the two meet, the path inside the bucket is lowest
    beside the minorant: if it is not below it even there, it has no vertex inside.
    """
    occupied = np.flatnonzero(buckets.mass)
    x = buckets.edge[occupied]
    items = occupied.astype(np.uint64) | HEAVY
    line = line_of(x, items, buckets, d, lambd)
    clusters, number, _ = pool(x, items, buckets, line)
    unit_shift = line.lambd * line.half * line.grow * line.more / max(d - 1, 1)
    rank, k = 0, 0
    for n in range(number):
        first = k
        size_of_cluster = clusters.end[n] - clusters.begin[n]
        slope = mean_of(clusters.high[n], clusters.low[n], size_of_cluster)
        above = 0.0  # how far the path at the border stands above the minorant
        while rank < clusters.end[n]:
            bucket = occupied[k]
            size = buckets.mass[bucket]
            grow = line.grow * line.half
            high, low, _ = sum_of_bucket(bucket, buckets, grow, line.more)
            total = high + low * 2.0**-LIMB
            least = x[k] * grow * line.more
            greatest = top_of(items[k], x[k], buckets) * grow * line.more
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
def move(
    x: Array,
    items: Array,
    buckets: Buckets,
    d: int,
    strengths: Strengths,
    out: Array,
    values: Array,
) -> Any:
    """Write the prox of each row to out, and that of closed buckets to values."""
    sure = True
    for row in range(len(x)):
        if math.isfinite(x[row, 0]) and math.isfinite(x[row, -1]):
            line = line_of(x[row], items[row], buckets, d, strengths.lambd)
            clusters, number, fits = pool(x[row], items[row], buckets, line)
            sure = sure and fits
            settle(x[row], items[row], buckets, d, strengths, clusters, number, out[row], values)
        else:
            out[row] = np.nan
    return sure


@compiled
def settle(
    x: Array,
    items: Array,
    buckets: Buckets,
    d: int,
    strengths: Strengths,
    clusters: Clusters,
    number: int,
    out: Array,
    values: Array,
) -> None:
    """Give each cluster its value, as :func:`wsr.prox` does."""
    value = np.zeros(1, out.dtype)
    zero = np.zeros(1, out.dtype)
    grid = grid_for(1.0)  # of a cluster; those of its neighbours are often the same
    furthest = -np.inf
    some_heavy = len(buckets.mass) > 0
    begin, first, n = 0, 0, 0
    while first < len(x):
        if n < number and clusters.begin[n] == begin:
            end, n = clusters.end[n], n + 1
            if some_heavy:
                behind = item_at(end - begin, items, first, buckets)
                greatest = top_of(items[behind - 1], x[behind - 1], buckets)
            else:  # a call that passes the buckets takes as long as ten of the weights
                behind = first + end - begin
                greatest = np.float64(x[behind - 1])
            largest = max(abs(np.float64(x[first])), abs(greatest))
            if not 0.5 * grid.ceiling <= largest < grid.ceiling:
                grid = grid_for(largest)
            if some_heavy:
                high, low = sum_of_items(x, items, first, behind, buckets, grid)
            else:
                high, low = sum_of_weights(x, first, behind, grid)
            whole, remainder = divide(high, low, end - begin)
            mean = whole + remainder / (end - begin)
            start = mean * 2.0**-LIMB / grid.grow / grid.more
        else:
            end, behind = begin + 1, first + 1
            start = np.float64(x[first])
        shift = strengths.lambd * ((d - begin - end) / max(d - 1, 1))
        furthest = max(furthest, start + shift)  # rounding must not change the order
        value[0] = shrunk(furthest, start, strengths)
        value[0] += zero[0]  # what has been rounded to zero is +0.0
        for k in range(first, behind):
            if items[k] & HEAVY:
                values[np.int64(items[k] & np.uint64(0xFFFF))] = value[0]
            else:
                out[np.int64(items[k] & POSITION)] = value[0]
        begin, first = end, behind


@compiled
def shrink(w: Array, strengths: Strengths, out: Array) -> None:
    """Write the prox of each row of w for lambd = 0 to out: every weight for itself."""
    zero = np.zeros(1, out.dtype)
    for row in range(len(w)):
        finite = True
        for k in range(w.shape[1]):
            x = np.float64(w[row, k])
            finite = finite and math.isfinite(x)
            out[row, k] = shrunk(x, x, strengths)
            out[row, k] += zero[0]
        if not finite:
            out[row] = np.nan


@compiled
def shrunk(position: float, start: float, strengths: Strengths) -> Any:
    """Return the value of a cluster: less l1, and less of its displacement the larger rho is."""
    if abs(position) < strengths.l1:
        return 0.0
    shrunk = position - math.copysign(strengths.l1, position)
    if strengths.rho < 0.5:
        return shrunk + strengths.rho * (start - shrunk)
    return start - (1 - strengths.rho) * (start - shrunk)


@compiled
def item_at(mass: int, items: Array, first: int, buckets: Buckets) -> Any:
    """Return the item before which the items from first on have this mass."""
    while mass > 0:
        heavy = items[first] & HEAVY
        mass -= buckets.mass[np.int64(items[first] & np.uint64(0xFFFF))] if heavy else 1
        first += 1
    return first


@compiled
def sum_of_weights(x: Array, first: int, behind: int, grid: Grid) -> Any:
    """Return the exact sum of sorted weights on the grid."""
    high, low = 0, 0
    for k in range(first, behind):
        more_high, more_low, _ = limbs_of(np.float64(x[k]), grid.grow, grid.more)
        high, low = high + more_high, low + more_low
    return high, low


@compiled
def sum_of_items(
    x: Array, items: Array, first: int, behind: int, buckets: Buckets, grid: Grid
) -> Any:
    """Return the exact sum of the weights of these items on the grid."""
    high, low = 0, 0
    for k in range(first, behind):
        if items[k] & HEAVY:
            bucket = np.int64(items[k] & np.uint64(0xFFFF))
            more_high, more_low, _ = sum_of_bucket(bucket, buckets, grid.grow, grid.more)
        else:
            more_high, more_low, _ = limbs_of(np.float64(x[k]), grid.grow, grid.more)
        high, low = high + more_high, low + more_low
    return high, low
