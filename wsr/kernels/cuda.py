"""From weights to weights on a GPU: tiles of sorted particles, a tree of bridges, one way back.

A row of sorted particles is cut into tiles.  One program a tile finds the clusters within it; then
the tiles are joined, two ranges at a time, by the bridges of :mod:`wsr.collisions.bridging`; then
each cluster's mean is summed, moved and written to the weights that belong to it.  All decisions
are made in the integers of :mod:`wsr.exact_sums`, on the same grid, so that the clusters and their
values are those of the composed algorithms, whatever the order in which programs run.

What the kernels know of the particles 0 <= k < n of a row:

- ``high``, ``low``: the sum of the limbs of everything from the beginning of k's tile up to k
  included, as high * 2^31 + low, 0 <= low < 2^31; ``tile_high``, ``tile_low``: the same of whole
  tiles from the beginning of the row.  First the limbs of z, later those of x.
- ``link``: of the first particle of a cluster its end, of the others the first, counted from the
  beginning of the tile.  It knows the clusters that were found within a tile.
- ``lo``, ``hi``: the particles of a tile whose clusters in ``link`` still stand.  A bridge consumes
  the end of one range of tiles and the beginning of the next, so those that stand are a run.
- ``edge_first``, ``edge_last``: the bounds of the cluster that crosses the left border of a tile.
- ``apart``: whether everything before k in the row is less than everything from k on.

The 65,536 values of a 16-bit dtype are particles with a mass, how often they occur.  Then
``ranks`` tells how many weights lie before particle k, and ``sizes`` how many particles a row has.
"""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # particles
LEVELS = 3  # of the tree that one launch climbs
CHUNK = 1024  # tiles that a running total takes at once
PROBES = 8  # on each side, where tiles are joined
VALUES = 2**16  # of a 16-bit dtype
SORT_UP_TO = 256  # weights of a row are sorted in its own program
COUNT_FROM = 2**20  # so many 16-bit weights are counted, not sorted

LIMB: tl.constexpr = tl.constexpr(31)
MASK: tl.constexpr = tl.constexpr(2**31 - 1)


# Numbers: the grid of wsr.exact_sums


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b)


@triton.jit
def _floor_divide(a, b):
    quotient = a // b  # towards zero
    return quotient - (quotient * b > a).to(tl.int64)


@triton.jit
def _exponent(scale):
    """Return e such that scale < 2^e, for a float64 scale >= 0."""
    return (scale.to(tl.int64, bitcast=True) >> 52) - 1022


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _times_power_of_two(values, exponent):
    half = exponent >> 1
    return values * _power_of_two(half) * _power_of_two(exponent - half)


@triton.jit
def _round(values):
    """Return the nearest integers, ties to even, of float64 values below 2^51."""
    return (values + 6755399441055744.0) - 6755399441055744.0  # 1.5 * 2^52


@triton.jit
def _limbs(values, exponent):
    """Return the values, below 2^exponent, in units of 2^(exponent - 62): high * 2^31 + low."""
    scaled = _times_power_of_two(values, -(exponent - LIMB))
    high = _round(scaled)
    low = _round((scaled - high) * 2147483648.0)
    return high.to(tl.int64), low.to(tl.int64)


@triton.jit
def _normalized(high, low):
    return high + (low >> LIMB), low & MASK


@triton.jit
def _not_less(a, b):
    """Return where the mean a is greater than or equal to b; a mean is three limbs and a mass."""
    carry = (a[2] * b[3] - b[2] * a[3]) >> LIMB
    carry = (a[1] * b[3] - b[1] * a[3] + carry) >> LIMB
    return a[0] * b[3] - b[0] * a[3] + carry >= 0


@triton.jit
def _excess(part, mean):
    """Return what a part has in excess of a mean: four limbs, over the mass of the mean."""
    e0 = part[2] * mean[3] - mean[2] * part[3]
    e1 = part[1] * mean[3] - mean[1] * part[3] + (e0 >> LIMB)
    e2 = part[0] * mean[3] - mean[0] * part[3] + (e1 >> LIMB)
    return e2 >> LIMB, e2 & MASK, e1 & MASK, e0 & MASK, mean[3]


@triton.jit
def _not_positive(a, b):
    """Return where two excesses add up to nothing or less."""
    carry = (-a[3] * b[4] - b[3] * a[4]) >> LIMB
    carry = (carry - a[2] * b[4] - b[2] * a[4]) >> LIMB
    carry = (carry - a[1] * b[4] - b[1] * a[4]) >> LIMB
    return carry - a[0] * b[4] - b[0] * a[4] >= 0


@triton.jit
def _either(condition, a, b):
    return (
        tl.where(condition, a[0], b[0]),
        tl.where(condition, a[1], b[1]),
        tl.where(condition, a[2], b[2]),
        tl.where(condition, a[3], b[3]),
    )


# Particles and clusters


@triton.jit
def _rank(k, mask, ranks):
    """Return how many weights of the row lie before particle k."""
    return k.to(tl.int64) if ranks is None else tl.load(ranks + k, mask, 0).to(tl.int64)


@triton.jit
def _velocity(first, last, d):
    """Return the velocity for lambd = 1 of the cluster of the weights of ranks first to last."""
    return (d - first - last).to(tl.float64) / tl.maximum(d - 1, 1).to(tl.float64)


@triton.jit
def _conditions(x, n, strengths):
    """Return whether the row and its strengths are valid, and lambd, l1 and rho: 0 if not."""
    lambd, l1, rho = tl.load(strengths), tl.load(strengths + 1), tl.load(strengths + 2)
    least, largest = tl.load(x).to(tl.float64), tl.load(x + n - 1).to(tl.float64)
    # A NaN is sorted to an end, and fails both comparisons.
    infinity = float("inf")
    valid = (least > -infinity) & (largest < infinity)
    valid = valid & (lambd >= 0) & (lambd < infinity) & (l1 >= 0) & (l1 < infinity)
    return valid, tl.where(valid, lambd, 0.0), tl.where(valid, l1, 0.0), rho


@triton.jit
def _free_end_points(x, k, n, d, ranks, strengths):
    """Return where the particles k of a row would stand if they passed each other.

    Halved where the sum could overflow, as in wsr.particles.
    """
    valid, lambd, _, _ = _conditions(x, n, strengths)
    ends = tl.maximum(tl.abs(tl.load(x)), tl.abs(tl.load(x + n - 1))).to(tl.float64)
    fastest = tl.where(d > 1, lambd, 0.0)
    unit = tl.where(tl.maximum(ends, fastest) > 1, 0.5, 1.0)
    values = tl.where(valid, tl.load(x + k, k < n, 0).to(tl.float64), 0.0)
    last = k.to(tl.int64) + 1 if ranks is None else tl.load(ranks + k + 1, k < n, 0).to(tl.int64)
    shift = lambd * _velocity(_rank(k, k < n, ranks), last, d)
    return values * unit + shift * unit


@triton.jit
def _cluster(k, mask, link, tiles, T: tl.constexpr):
    """Return the bounds of the cluster of particle k: begin, and one past its last member."""
    tile = k // T
    start = tile * T
    first = start + tl.minimum(tl.load(link + k, mask, 0).to(k.dtype), k - start)
    last = start + tl.load(link + first, mask, 0).to(k.dtype)
    if tiles is not None:
        lo, hi, edge_first, edge_last = tiles
        behind = k >= tl.load(hi + tile, mask, 0)
        crosses = mask & (behind | (k < tl.load(lo + tile, mask, 0)))
        border = tile + behind.to(tile.dtype)
        first = tl.where(crosses, tl.load(edge_first + border, crosses, 0).to(k.dtype), first)
        last = tl.where(crosses, tl.load(edge_last + border, crosses, 0).to(k.dtype), last)
    return first, last


@triton.jit
def _before(k, mask, sums, ranks, T: tl.constexpr):
    """Return the sum of everything before particle k in two limbs, and its mass."""
    high, low, tile_high, tile_low = sums
    inside = mask & (k > 0)
    high_sum = tl.load(high + k - 1, inside, 0)
    low_sum = tl.load(low + k - 1, inside, 0).to(tl.int64)
    if tile_high is not None:
        tile = (k - 1) // T
        inside = inside & (tile > 0)
        high_sum += tl.load(tile_high + tile - 1, inside, 0)
        low_sum += tl.load(tile_low + tile - 1, inside, 0)
    return high_sum, low_sum, _rank(k, mask, ranks)


@triton.jit
def _between(begin, end):
    """Return the sum between two places in three limbs, two of them not negative, and the mass."""
    high, low = _normalized(end[0] - begin[0], end[1] - begin[1])
    return high >> LIMB, high & MASK, low, end[2] - begin[2]


@triton.jit
def _together(a, b):
    high, low = _normalized(a[1] + b[1], a[2] + b[2])
    return a[0] + b[0] + (high >> LIMB), high & MASK, low, a[3] + b[3]


@triton.jit
def _bridges(
    base, width, n, link, sums, tiles, ranks, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr
):
    """Join M pairs of neighbouring ranges of ``width`` particles each, the first from base on.

    Returns where the new clusters begin and end, shape (M, 1, 1), both in the middle where none
    arises.  The search is that of wsr.collisions.bridging, with P probes a side.  Every pair of
    probes decides one of its two.  So if some probe on the left is decided by none of its pairs,
    those decide all probes on the right: after each step all probes of one side at least are
    decided, and what is left open of n particles there is n // (P + 1) at most.
    """
    middle = base + (2 * tl.arange(0, M)[:, None, None] + 1) * width
    inside = middle < n
    high_a, _ = _cluster(middle - 1, inside, link, tiles, T)
    _, low_b = _cluster(middle, inside, link, tiles, T)
    at_middle = _before(middle, inside, sums, ranks, T)
    border_a = _between(_before(high_a, inside, sums, ranks, T), at_middle)
    border_b = _between(at_middle, _before(low_b, inside, sums, ranks, T))
    meet = inside & _not_less(border_a, border_b)
    # Undecided are the particles low_a <= k < high_a on the left and low_b <= k < high_b on the
    # right: none if the two clusters at the border do not meet.
    low_a = tl.where(meet, middle - width, high_a)
    high_b = tl.where(meet, tl.minimum(middle + width, n), low_b)
    step_a = tl.arange(0, P)[None, :, None] + 1
    step_b = tl.arange(0, P)[None, None, :] + 1
    undecided = tl.max(meet.to(tl.int32))
    while undecided > 0:
        open_a, open_b = low_a < high_a, low_b < high_b
        mask = open_a | open_b
        # Of a side that is decided, the outermost cluster that merges stands in for the probes.
        probe_a = tl.where(open_a, low_a + step_a * (high_a - low_a) // (P + 1), high_a)
        probe_b = tl.where(open_b, low_b + step_b * (high_b - low_b) // (P + 1), low_b - 1)
        first_a, last_a = _cluster(probe_a, mask, link, tiles, T)
        first_b, last_b = _cluster(probe_b, mask, link, tiles, T)
        at_first = _before(first_a, mask, sums, ranks, T)
        at_last = _before(last_b, mask, sums, ranks, T)
        a = _between(at_first, _before(last_a, mask, sums, ranks, T))
        b = _between(_before(first_b, mask, sums, ranks, T), at_last)
        left, right = _between(at_first, at_middle), _between(at_middle, at_last)
        # Once a side is decided, a probe is held against the mean that it would have with it.
        joint = _together(left, right)
        crossed = _not_less(_either(open_a, a, joint), _either(open_b, b, joint))
        weighed = _not_positive(_excess(left, a), _excess(right, b))
        excess_is_less = tl.where(open_b, tl.where(open_a, weighed, ~crossed), crossed)
        a_merges, a_stays = crossed & excess_is_less, ~crossed & ~excess_is_less
        b_merges, b_stays = crossed & ~excess_is_less, ~crossed & excess_is_less
        low_a = _reduced(tl.where(a_stays & open_a, last_a, low_a), True)
        high_a = _reduced(tl.where(a_merges & open_a, first_a, high_a), False)
        low_b = _reduced(tl.where(b_merges & open_b, last_b, low_b), True)
        high_b = _reduced(tl.where(b_stays & open_b, first_b, high_b), False)
        undecided = tl.max(((low_a < high_a) | (low_b < high_b)).to(tl.int32))
    return tl.where(meet, high_a, middle), tl.where(meet, low_b, middle)


@triton.jit
def _reduced(values, GREATEST: tl.constexpr):
    """Return the greatest or the least over the pairs of probes, shape (M, 1, 1)."""
    if GREATEST:
        return tl.max(tl.max(values, 2, keep_dims=True), 1, keep_dims=True)
    return tl.min(tl.min(values, 2, keep_dims=True), 1, keep_dims=True)


# One program a tile


@triton.jit
def _place(tiles, n, sizes):
    """Return row and tile of this program, and how many particles its row has."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    size = n.to(tl.int64) if sizes is None else tl.load(sizes + row)
    return row, program % tiles, size


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def _span_tiles(x, greatest, least, strengths, ranks, sizes, n, d, tiles, T: tl.constexpr):
    """Find the greatest and the least free end point of each tile."""
    row, tile, size = _place(tiles, n, sizes)
    if ranks is not None:
        ranks += row * (n + 1)
    k = tile * T + tl.arange(0, T)
    z = _free_end_points(x + row * n, k, size, d, ranks, strengths)
    tl.store(greatest + row * tiles + tile, tl.max(tl.where(k < size, z, -float("inf")), 0))
    tl.store(least + row * tiles + tile, tl.min(tl.where(k < size, z, float("inf")), 0))


@triton.jit(do_not_specialize=["tiles"])
def _running_extremes(greatest, least, tiles, C: tl.constexpr):
    """Replace each by the greatest up to there, and by the least from there on (second column)."""
    row = tl.program_id(0).to(tl.int64) * tiles
    if tl.program_id(1) == 0:
        carry = tl.load(greatest + row)
        for start in range(0, tiles, C):
            tile = start + tl.arange(0, C)
            values = tl.where(tile < tiles, tl.load(greatest + row + tile, tile < tiles, 0), carry)
            values = tl.maximum(tl.associative_scan(values, 0, _maximum), carry)
            tl.store(greatest + row + tile, values, tile < tiles)
            carry = tl.max(values, 0)
    else:
        carry = tl.load(least + row + tiles - 1)
        for start in range(0, tiles, C):
            tile = tiles - 1 - start - tl.arange(0, C)
            values = tl.where(tile >= 0, tl.load(least + row + tile, tile >= 0, 0), carry)
            values = tl.minimum(tl.associative_scan(values, 0, _minimum), carry)
            tl.store(least + row + tile, values, tile >= 0)
            carry = tl.min(values, 0)


@triton.jit(do_not_specialize=["tiles"])
def _running_sums(tile_high, tile_low, tiles, C: tl.constexpr):
    """Replace the sum of each tile by that of all tiles up to it."""
    row = tl.program_id(0).to(tl.int64) * tiles
    high = tl.zeros([], tl.int64)
    low = tl.zeros([], tl.int64)
    for start in range(0, tiles, C):
        tile = start + tl.arange(0, C)
        highs = tl.load(tile_high + row + tile, tile < tiles, 0)
        lows = tl.load(tile_low + row + tile, tile < tiles, 0)
        tl.store(tile_high + row + tile, tl.cumsum(highs, 0) + high, tile < tiles)
        tl.store(tile_low + row + tile, tl.cumsum(lows, 0) + low, tile < tiles)
        high += tl.sum(highs, 0)
        low += tl.sum(lows, 0)


@triton.jit
def _store_sums(values, exponent, k, n, tile, sums, ranks):
    """Store the running sums of the values of one tile, and their total."""
    high, low, tile_high, tile_low = sums
    high_limb, low_limb = _limbs(values, exponent)
    if ranks is not None:
        mass = tl.where(k < n, _rank(k + 1, k < n, ranks) - _rank(k, k < n, ranks), 0)
        high_limb, low_limb = high_limb * mass, low_limb * mass
    high_sum, low_sum = _normalized(tl.cumsum(high_limb, 0), tl.cumsum(low_limb, 0))
    tl.store(high + k, high_sum, k < n)
    tl.store(low + k, low_sum.to(tl.int32), k < n)
    tl.store(tile_high + tile, tl.sum(high_limb, 0))
    tl.store(tile_low + tile, tl.sum(low_limb, 0))


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def _resolve_tiles(
    x, high, low, tile_high, tile_low, link, lo, hi, apart, last_apart, next_apart, greatest, least,
    strengths, ranks, sizes, n, d, tiles, T: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Find the clusters of each tile, and the borders that no cluster may cross."""
    row, tile, size = _place(tiles, n, sizes)
    x, link, apart = x + row * n, link + row * n, apart + row * n
    if ranks is not None:
        ranks += row * (n + 1)
    start = tile * T
    k = start + tl.arange(0, T)
    here = row * tiles + tile
    z = _free_end_points(x, k, size, d, ranks, strengths)
    before = _free_end_points(x, tl.maximum(k - 1, 0), size, d, ranks, strengths)
    before = tl.associative_scan(tl.where(k > 0, before, -float("inf")), 0, _maximum)
    before = tl.maximum(before, tl.load(greatest + here - 1, tile > 0, -float("inf")))
    behind = tl.where(k < size, z, float("inf"))
    behind = tl.associative_scan(behind, 0, _minimum, reverse=True)
    behind = tl.minimum(behind, tl.load(least + here + 1, tile + 1 < tiles, float("inf")))
    is_apart = (before < behind) & (k < size)
    tl.store(apart + k, is_apart.to(tl.int8), k < size)
    tl.store(last_apart + here, tl.max(tl.where(is_apart, k, 0), 0).to(tl.int32))
    tl.store(next_apart + here, tl.min(tl.where(is_apart, k, size), 0).to(tl.int32))
    tl.store(lo + here, start.to(tl.int32))
    tl.store(hi + here, tl.minimum(start + T, size).to(tl.int32))

    largest = tl.maximum(
        tl.abs(tl.load(greatest + row * tiles + tiles - 1)), tl.abs(tl.load(least + row * tiles))
    )
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    _store_sums(tl.where(k < size, z, 0.0), _exponent(largest), k, size, tile, sums, ranks)
    tl.store(link + k, (tl.arange(0, T) + 1).to(tl.int16), k < size)
    tl.debug_barrier()

    link, sums = link + start, (high + row * n + start, low + row * n + start, None, None)
    if ranks is not None:
        ranks += start
    size = tl.minimum(size - start, T).to(tl.int32)
    for level in tl.static_range(LEVELS):
        _bridge_tile(link, sums, ranks, size, T, 1 << level, T >> (level + 1), 1 << (level // 2))


@triton.jit
def _bridge_tile(
    link, sums, ranks, n, T: tl.constexpr, HALF: tl.constexpr, M: tl.constexpr, P: tl.constexpr
):
    """Join the M pairs of ranges of HALF particles of a tile."""
    first, last = _bridges(0, HALF, n, link, sums, None, ranks, T, M, P)
    first, last = tl.reshape(first, [M, 1]), tl.reshape(last, [M, 1])
    k = tl.arange(0, M)[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    inside = (first <= k) & (k < last)
    tl.debug_barrier()
    tl.store(link + k, tl.where(k == first, last, first).to(tl.int16), inside)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n", "tiles", "groups", "reach"])
def _join_tiles(
    high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, ranks, sizes,
    n, tiles, groups, reach, T: tl.constexpr, LEVELS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Join 2^LEVELS ranges of ``reach`` tiles each into one, two by two: one program a group."""
    row, group, size = _place(groups, n, sizes)
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    lo, hi = lo + row * tiles, hi + row * tiles
    edge_first, edge_last = edge_first + row * tiles, edge_last + row * tiles
    state = lo, hi, edge_first, edge_last
    link = link + row * n
    if ranks is not None:
        ranks += row * (n + 1)
    for level in tl.static_range(LEVELS):
        width = reach.to(tl.int64) * (T << level)
        base = group * reach * (T << LEVELS)
        _bridge_tiles(base, width, size, link, sums, state, ranks, T, 1 << (LEVELS - 1 - level), P)


@triton.jit
def _bridge_tiles(
    base, width, n, link, sums, state, ranks, T: tl.constexpr, M: tl.constexpr, P: tl.constexpr
):
    """Join the M pairs of ranges of ``width`` particles from base on."""
    lo, hi, edge_first, edge_last = state
    first, last = _bridges(base, width, n, link, sums, state, ranks, T, M, P)
    first, last = tl.reshape(first, [M, 1]), tl.reshape(last, [M, 1])
    joined = first < last
    tile_first, tile_last = first // T, (last - 1) // T
    tl.debug_barrier()
    tl.store(hi + tile_first, first.to(tl.int32), joined)
    tl.store(lo + tile_last, last.to(tl.int32), joined)
    between = tl.max(tl.where(joined, tile_last - tile_first, 0))
    for step in range(0, between, 64):
        tile = tile_first + 1 + step + tl.arange(0, 64)[None, :]
        crossed = joined & (tile <= tile_last)
        tl.store(edge_first + tile, tl.broadcast_to(first, tile.shape).to(tl.int32), crossed)
        tl.store(edge_last + tile, tl.broadcast_to(last, tile.shape).to(tl.int32), crossed)
        consumed = crossed & (tile < tile_last)  # of these tiles nothing stands
        tl.store(lo + tile, (tile * T).to(tl.int32), consumed)
        tl.store(hi + tile, (tile * T).to(tl.int32), consumed)
    tl.debug_barrier()


@triton.jit
def _clusters(k, n, here, tile, tiles, link, state, cuts, T: tl.constexpr):
    """Return the bounds of the clusters of a tile's particles, cut where the row is apart."""
    apart, last_apart, next_apart = cuts
    first, last = _cluster(k, k < n, link, state, T)
    border = tl.where(tl.load(apart + k, k < n, 0) != 0, k, 0)
    begin = tl.associative_scan(border, 0, _maximum)
    begin = tl.maximum(begin, tl.load(last_apart + here - 1, tile > 0, 0).to(tl.int64))
    behind = (k + 1 < n) & (k + 1 < (tile + 1) * T)
    border = tl.where(tl.load(apart + k + 1, behind, 0) != 0, k + 1, n)
    end = tl.associative_scan(border, 0, _minimum, reverse=True)
    end = tl.minimum(end, tl.load(next_apart + here + 1, tile + 1 < tiles, n.to(tl.int32)))
    return tl.maximum(first, begin), tl.minimum(last, end)


@triton.jit
def _cluster_exponent(x, first, last, mask):
    """Return the exponent of each cluster's largest weight, which stands at one of its ends."""
    least = tl.load(x + first, mask, 0).to(tl.float64)
    greatest = tl.load(x + last - 1, mask, 0).to(tl.float64)
    return _exponent(tl.maximum(tl.abs(least), tl.abs(greatest)))


@triton.jit(do_not_specialize=["n", "tiles"])
def _sum_clusters(
    x, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart, last_apart,
    next_apart, strengths, ranks, sizes, n, tiles, T: tl.constexpr,
):  # fmt: skip
    """Replace the running sums of z by those of x, each cluster on a grid of its own."""
    row, tile, size = _place(tiles, n, sizes)
    here = row * tiles + tile
    state = lo + row * tiles, hi + row * tiles, edge_first + row * tiles, edge_last + row * tiles
    cuts = apart + row * n, last_apart, next_apart
    x = x + row * n
    k = tile * T + tl.arange(0, T)
    first, last = _clusters(k, size, here, tile, tiles, link + row * n, state, cuts, T)
    valid, _, _, _ = _conditions(x, size, strengths)
    mask = k < tl.where(valid, size, 0)
    values = tl.load(x + k, mask, 0).to(tl.float64)
    exponent = _cluster_exponent(x, first, last, mask)
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    if ranks is not None:
        ranks += row * (n + 1)
    _store_sums(values, exponent, k, size, tile, sums, ranks)


@triton.jit
def _motion(x, k, n, d, first, last, sums, ranks, lambd, mask, T: tl.constexpr):
    """Return where the clusters of the particles k begin, and by how much they move."""
    begin, end = _before(first, mask, sums, ranks, T), _before(last, mask, sums, ranks, T)
    high, low = _normalized(end[0] - begin[0], end[1] - begin[1])
    mass = tl.where(mask, end[2] - begin[2], 1)
    whole = _floor_divide(high, mass)
    carried = ((high - whole * mass) << LIMB) + low
    digit = _floor_divide(carried, mass)
    remainder = (carried - digit * mass).to(tl.float64) / mass.to(tl.float64)
    mean = ((whole << LIMB) + digit).to(tl.float64) + remainder
    mean = _times_power_of_two(mean, _cluster_exponent(x, first, last, mask) - 2 * LIMB)
    return mean, lambd * _velocity(begin[2], end[2], d)


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def _move_clusters(
    x, order, result, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart,
    last_apart, next_apart, furthest, strengths, ranks, sizes, n, d, tiles, T: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """Move each cluster, and write its position to all weights in it.

    Rounding may turn the order of clusters that nearly touch, so that none may stand behind the
    ``furthest`` of all tiles before.  That is what is stored when this is not to WRITE yet.
    """
    row, tile, size = _place(tiles, n, sizes)
    here = row * tiles + tile
    state = lo + row * tiles, hi + row * tiles, edge_first + row * tiles, edge_last + row * tiles
    cuts = apart + row * n, last_apart, next_apart
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    x = x + row * n
    k = tile * T + tl.arange(0, T)
    valid, lambd, l1, rho = _conditions(x, size, strengths)
    mask = k < tl.where(valid, size, 0)
    first, last = _clusters(k, size, here, tile, tiles, link + row * n, state, cuts, T)
    if ranks is not None:
        ranks += row * (n + 1)
    mean, shift = _motion(x, k, size, d, first, last, sums, ranks, lambd, mask, T)
    position = tl.where(mask, mean + shift, 0.0)
    so_far = tl.where(mask, position, -float("inf"))
    if WRITE:
        ordered = tl.associative_scan(so_far, 0, _maximum)
        ordered = tl.maximum(ordered, tl.load(furthest + here - 1, tile > 0, -float("inf")))
        position += tl.where(mask, ordered, 0.0) - position
        sign = (position > 0).to(tl.float64) - (position < 0).to(tl.float64)
        shrunk = position - l1 * sign
        relaxed = tl.where(
            rho < 0.5, shrunk + rho * (mean - shrunk), mean - (mean - shrunk) * (1 - rho)
        )
        moved = tl.where(tl.abs(position) < l1, 0.0, relaxed)
        moved = tl.where(valid, moved, float("nan"))
        target = tl.load(order + row * n + k, k < size, 0)
        tl.store(result + row * n + target, _rounded_to(moved, result), k < size)
    else:
        tl.store(furthest + here, tl.max(so_far, 0))


@triton.jit
def _rounded_to(values, result):
    """Round float64 values to the dtype of the result, -0.0 to +0.0."""
    dtype: tl.constexpr = result.dtype.element_ty
    if dtype == tl.float64:
        return values + 0.0
    values = values.to(tl.float32)  # as torch does it: to 16 bits by way of 32
    if dtype == tl.bfloat16:  # to nearest, ties to even: the interpreter's cast would cut
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        values = tl.where(values != values, values, bits.to(tl.float32, bitcast=True))
    return (values.to(dtype).to(tl.float32) + 0.0).to(dtype)


# One program a row, for rows of one tile


@triton.jit
def _sort_row(rows, x, order, n, T: tl.constexpr):
    """Sort the weights of a row, of at most 32 bits each, and keep where they came from."""
    start = tl.program_id(0).to(tl.int64) * n
    k = tl.arange(0, T)
    bits = tl.load(rows + start + k, k < n, 0).to(tl.float32).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # an integer of the same order
    packed = tl.where(k < n, (key.to(tl.int64) << 32) | k, 0x7FFFFFFFFFFFFFFF)
    place = tl.sort(packed) & 0xFFFFFFFF
    tl.store(order + start + k, place, k < n)
    tl.store(x + start + k, tl.load(rows + start + place, k < n, 0), k < n)


@triton.jit(do_not_specialize=["n", "d"])
def _resolve_rows(
    rows, x, order, result, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last,
    apart, last_apart, next_apart, greatest, least, furthest, strengths, n, d,
    T: tl.constexpr, LEVELS: tl.constexpr, SORT: tl.constexpr,
):  # fmt: skip
    """Do all of it: rows of one tile need no other tile's results."""
    if SORT:
        _sort_row(rows, x, order, n, T)
        tl.debug_barrier()
    _span_tiles(x, greatest, least, strengths, None, None, n, d, 1, T)
    tl.debug_barrier()
    _resolve_tiles(
        x, high, low, tile_high, tile_low, link, lo, hi, apart, last_apart, next_apart, greatest,
        least, strengths, None, None, n, d, 1, T, LEVELS,
    )  # fmt: skip
    _sum_clusters(
        x, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart, last_apart,
        next_apart, strengths, None, None, n, 1, T,
    )  # fmt: skip
    tl.debug_barrier()
    _move_clusters(
        x, order, result, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last,
        apart, last_apart, next_apart, furthest, strengths, None, None, n, d, 1, T, True,
    )  # fmt: skip


# The 65,536 values of 16 bits


@triton.jit
def _key(bits):
    """Return the place of a 16-bit float among all of them, in order."""
    bits = bits.to(tl.int32) & 0xFFFF
    return tl.where(bits < 0x8000, bits + 0x8000, 0xFFFF - bits)


@triton.jit(do_not_specialize=["d", "tiles"])
def _count_values(bits, counts, d, tiles, T: tl.constexpr):
    row, tile, size = _place(tiles, d, None)
    k = tile * T + tl.arange(0, T)
    key = _key(tl.load(bits + row * size + k, k < size, 0))
    tl.atomic_add(counts + row * 65536 + key, 1, k < size, sem="relaxed")


@triton.jit(do_not_specialize=["d", "tiles"])
def _look_up(bits, table, result, d, tiles, T: tl.constexpr):
    row, tile, size = _place(tiles, d, None)
    k = tile * T + tl.arange(0, T)
    key = _key(tl.load(bits + row * size + k, k < size, 0))
    tl.store(result + row * size + k, tl.load(table + row * 65536 + key), k < size)


# The host's part


def prox_rows(rows: Tensor, lambd: float | Tensor, l1: float | Tensor, rho: float) -> Tensor:
    """Return what :func:`wsr.prox` returns, without derivatives, for each row a group of weights.

    Parameters
    ----------
    rows : Tensor
        Shape (..., d) with d >= 1, contiguous: float16, bfloat16, float32 or float64.
    lambd, l1, rho : float or 0-dim Tensor
        As in :func:`wsr.prox`.  Tensors on the device are not read by the host.

    Returns
    -------
    Tensor
        Of the shape and dtype of ``rows``.  A row with a NaN or an infinity is NaN, and so is
        everything if ``lambd`` or ``l1`` is negative or not finite.

    Notes
    -----
    The kernels launched depend on the shape and the dtype alone, and the host waits for none.
    Sums are sums of integers, so the result is the same bit by bit from run to run.
    """
    d = rows.shape[-1]
    flat, result = rows.view(-1, d), torch.empty_like(rows)
    with torch.cuda.device_of(rows):  # where Triton launches
        strengths = _strengths(rows, lambd, l1, rho)
        if d <= TILE:
            _resolve_short(flat, result, strengths)
        elif rows.itemsize == 2 and d >= COUNT_FROM:
            _resolve_counted(flat, result, strengths)
        else:
            x, order = flat.sort(dim=-1)
            _resolve_long(x, order, result, strengths, d)
    return result


def _strengths(rows: Tensor, *values: float | Tensor) -> Tensor:
    """Return the values as one float64 tensor on the device of the rows, without reading them."""
    strengths = torch.empty(len(values), dtype=torch.float64, device=rows.device)
    for place, value in zip(strengths, values, strict=True):
        if isinstance(value, Tensor) and value.device == rows.device:
            place.copy_(value)
        else:
            place.fill_(float(value))
    return strengths


class _Scratch:
    """What the kernels know of the particles, as the top of this file lists it."""

    def __init__(self, x: Tensor, tiles: int) -> None:
        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=x.device)

        rows, n = x.shape
        every = -(-rows * tiles // 4) * 4  # each of them aligned, or another kernel is compiled
        self.link = empty(rows, n, dtype=torch.int16)
        self.apart = empty(rows, n, dtype=torch.int8)
        tile_sums = empty(2, every, dtype=torch.int64)
        self.sums = empty(rows, n, dtype=torch.int64), empty(rows, n, dtype=torch.int32), *tile_sums
        self.lo, self.hi, *edges, last_apart, next_apart = empty(6, every, dtype=torch.int32)
        self.state = self.link, self.lo, self.hi, *edges
        self.cuts = last_apart, next_apart
        self.greatest, self.least, self.furthest = empty(3, every, dtype=torch.float64)


# Products are rounded before they are added, as in the composed algorithms.
_EXACTLY: dict[str, Any] = {"enable_fp_fusion": False}


def _resolve_short(rows: Tensor, result: Tensor, strengths: Tensor) -> None:
    """Resolve rows of at most one tile, one program each."""
    count, d = rows.shape
    in_kernel = rows.dtype != torch.float64 and d <= SORT_UP_TO
    if in_kernel:
        x, order = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.int64)
    else:
        x, order = rows.sort(dim=-1)
    # Powers of four: each size is compiled when it is first met.
    tile = 4 ** max(2, ((d - 1).bit_length() + 1) // 2)
    known = _Scratch(x, 1)
    _resolve_rows[count,](
        rows, x, order, result, *known.sums, *known.state, known.apart, *known.cuts,
        known.greatest, known.least, known.furthest, strengths, d, d,
        tile, tile.bit_length() - 1, in_kernel,
        num_warps=max(1, tile // 256), **_EXACTLY,
    )  # fmt: skip


def _resolve_long(
    x: Tensor, order: Tensor, result: Tensor, strengths: Tensor, d: int,
    ranks: Tensor | None = None, sizes: Tensor | None = None,
) -> None:  # fmt: skip
    """Write to the place order[row, k] of each row of the result where the particle x[row, k] ends.

    With ``ranks``, shape (rows, n + 1), and ``sizes``, shape (rows,), the particles have masses.
    """
    rows, n = x.shape
    tiles = triton.cdiv(n, TILE)
    known = _Scratch(x, tiles)
    everywhere = (rows * tiles,)
    of_row = strengths, ranks, sizes, n
    _span_tiles[everywhere](x, known.greatest, known.least, *of_row, d, tiles, TILE, **_EXACTLY)
    _running_extremes[rows, 2](known.greatest, known.least, tiles, CHUNK)
    _resolve_tiles[everywhere](
        x, *known.sums, known.link, known.lo, known.hi, known.apart, *known.cuts, known.greatest,
        known.least, *of_row, d, tiles, TILE, TILE.bit_length() - 1, **_EXACTLY,
    )  # fmt: skip
    _running_extremes[rows, 2](*known.cuts, tiles, CHUNK)
    _running_sums[rows,](*known.sums[2:], tiles, CHUNK)
    reach = 1
    while reach < tiles:
        groups = triton.cdiv(tiles, reach << LEVELS)
        _join_tiles[rows * groups,](
            *known.sums, *known.state, ranks, sizes, n, tiles, groups, reach, TILE, LEVELS, PROBES
        )
        reach <<= LEVELS
    clusters = *known.sums, *known.state, known.apart, *known.cuts
    _sum_clusters[everywhere](x, *clusters, *of_row, tiles, TILE, **_EXACTLY)
    _running_sums[rows,](*known.sums[2:], tiles, CHUNK)
    arguments = x, order, result, *clusters, known.furthest, *of_row, d, tiles, TILE
    _move_clusters[everywhere](*arguments, False, **_EXACTLY)
    _running_extremes[rows, 1](known.furthest, known.furthest, tiles, CHUNK)
    _move_clusters[everywhere](*arguments, True, **_EXACTLY)


def _resolve_counted(rows: Tensor, result: Tensor, strengths: Tensor) -> None:
    """Resolve long rows of 16-bit weights without a sort: count, resolve the values, look up."""
    count, d = rows.shape
    blocks = triton.cdiv(d, TILE)
    bits = rows.view(torch.int16)
    counts = torch.zeros(count, VALUES, dtype=torch.int32, device=rows.device)
    _count_values[count * blocks,](bits, counts, d, blocks, TILE)
    # The values that occur, in order; the others share a place behind the end.
    key = torch.arange(VALUES, device=rows.device).expand(count, -1)
    place = (counts > 0).cumsum(-1)
    sizes = place[:, -1].contiguous()
    place = torch.where(counts > 0, place - 1, VALUES)
    key = key.new_zeros(count, VALUES + 1).scatter_(-1, place, key)[:, :VALUES].contiguous()
    ranks = torch.nn.functional.pad(counts.gather(-1, key).cumsum(-1), (1, 0))
    x = torch.where(key < VALUES // 2, VALUES - 1 - key, key - VALUES // 2).short().view(rows.dtype)
    table = torch.empty_like(x)
    _resolve_long(x, key, table, strengths, d, ranks, sizes)
    _look_up[count * blocks,](bits, table, result, d, blocks, TILE)
