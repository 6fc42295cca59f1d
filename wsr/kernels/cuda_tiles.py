"""Kernels of which one program resolves one tile, or joins some tiles."""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_clusters import (
    bridges,
    cluster_of,
    conditions_of,
    free_end_points,
    mass_of,
    rest_of,
    sum_before,
    velocity_of,
)
from wsr.kernels.cuda_grid import (
    BUCKETS,
    LIMB,
    exponent_of,
    floor_divide,
    limbs_of,
    maximum,
    minimum,
    normalized,
    times_power_of_two,
)


@triton.jit
def place_of(tiles, n, sizes):
    """Return row and tile of this program, and how many particles its row has."""
    program = tl.program_id(0).to(tl.int64)
    row = program // tiles
    size = n.to(tl.int64) if sizes is None else tl.load(sizes + row)
    return row, program % tiles, size


@triton.jit
def masses_of(row, n, ranks, items, rests):
    """Return where a row's ranks, items and rests are; None where particles are weights."""
    if ranks is not None:
        ranks += row * n + row
    return ranks, None if rests is None else (items + row * n, rests + row * BUCKETS)


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def span_tiles(
    x, greatest, least, strengths, ranks, sizes, items, rests, n, d, tiles, T: tl.constexpr
):
    """Find the greatest and the least free end point of each tile."""
    row, tile, size = place_of(tiles, n, sizes)
    ranks, blocks = masses_of(row, n, ranks, items, rests)
    k = tile * T + tl.arange(0, T)
    z = free_end_points(x + row * n, k, size, d, ranks, blocks, strengths)
    tl.store(greatest + row * tiles + tile, tl.max(tl.where(k < size, z, -float("inf")), 0))
    tl.store(least + row * tiles + tile, tl.min(tl.where(k < size, z, float("inf")), 0))


@triton.jit(do_not_specialize=["tiles"])
def running_extremes(greatest, least, tiles, C: tl.constexpr):
    """Replace each by the greatest up to there, and by the least from there on (second column)."""
    row = tl.program_id(0).to(tl.int64) * tiles
    if tl.program_id(1) == 0:
        carry = tl.load(greatest + row)
        for start in range(0, tiles, C):
            tile = start + tl.arange(0, C)
            values = tl.where(tile < tiles, tl.load(greatest + row + tile, tile < tiles, 0), carry)
            values = tl.maximum(tl.associative_scan(values, 0, maximum), carry)
            tl.store(greatest + row + tile, values, tile < tiles)
            carry = tl.max(values, 0)
    else:
        carry = tl.load(least + row + tiles - 1)
        for start in range(0, tiles, C):
            tile = tiles - 1 - start - tl.arange(0, C)
            values = tl.where(tile >= 0, tl.load(least + row + tile, tile >= 0, 0), carry)
            values = tl.minimum(tl.associative_scan(values, 0, minimum), carry)
            tl.store(least + row + tile, values, tile >= 0)
            carry = tl.min(values, 0)


@triton.jit(do_not_specialize=["tiles"])
def running_sums(tile_high, tile_low, tiles, C: tl.constexpr):
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
def _store_sums(values, rests, exponent, k, n, tile, sums, ranks):
    """Store the running sums of mass times value plus rest of one tile, and their total."""
    high, low, tile_high, tile_low = sums
    high_limb, low_limb = limbs_of(values, exponent)
    if ranks is not None:
        mass = mass_of(k, k < n, ranks)
        high_limb, low_limb = high_limb * mass, low_limb * mass
    if rests is not None:
        high_rest, low_rest = limbs_of(rests, exponent)
        high_limb, low_limb = high_limb + high_rest, low_limb + low_rest
    high_sum, low_sum = normalized(tl.cumsum(high_limb, 0), tl.cumsum(low_limb, 0))
    tl.store(high + k, high_sum, k < n)
    tl.store(low + k, low_sum.to(tl.int32), k < n)
    tl.store(tile_high + tile, tl.sum(high_limb, 0))
    tl.store(tile_low + tile, tl.sum(low_limb, 0))


@triton.jit
def row_exponent(greatest, least, tiles):
    """Return the exponent of the grid for all free end points of a row, from their extremes."""
    return exponent_of(tl.maximum(tl.abs(tl.load(greatest + tiles - 1)), tl.abs(tl.load(least))))


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def resolve_tiles(
    x, high, low, tile_high, tile_low, link, lo, hi, apart, last_apart, next_apart, greatest, least,
    strengths, ranks, sizes, items, rests, n, d, tiles, T: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Find the clusters of each tile, and the borders that no cluster may cross."""
    row, tile, size = place_of(tiles, n, sizes)
    x, link, apart = x + row * n, link + row * n, apart + row * n
    ranks, blocks = masses_of(row, n, ranks, items, rests)
    start = tile * T
    k = start + tl.arange(0, T)
    here = row * tiles + tile
    z = free_end_points(x, k, size, d, ranks, blocks, strengths)
    before = free_end_points(x, tl.maximum(k - 1, 0), size, d, ranks, blocks, strengths)
    before = tl.associative_scan(tl.where(k > 0, before, -float("inf")), 0, maximum)
    before = tl.maximum(before, tl.load(greatest + here - 1, tile > 0, -float("inf")))
    behind = tl.where(k < size, z, float("inf"))
    behind = tl.associative_scan(behind, 0, minimum, reverse=True)
    behind = tl.minimum(behind, tl.load(least + here + 1, tile + 1 < tiles, float("inf")))
    is_apart = (before < behind) & (k < size)
    tl.store(apart + k, is_apart.to(tl.int8), k < size)
    tl.store(last_apart + here, tl.max(tl.where(is_apart, k, 0), 0).to(tl.int32))
    tl.store(next_apart + here, tl.min(tl.where(is_apart, k, size), 0).to(tl.int32))
    tl.store(lo + here, start.to(tl.int32))
    tl.store(hi + here, tl.minimum(start + T, size).to(tl.int32))

    exponent = row_exponent(greatest + row * tiles, least + row * tiles, tiles)
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    _store_sums(tl.where(k < size, z, 0.0), None, exponent, k, size, tile, sums, ranks)
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
    first, last = bridges(0, HALF, n, link, sums, None, ranks, T, M, P)
    first, last = tl.reshape(first, [M, 1]), tl.reshape(last, [M, 1])
    k = tl.arange(0, M)[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    inside = (first <= k) & (k < last)
    tl.debug_barrier()
    tl.store(link + k, tl.where(k == first, last, first).to(tl.int16), inside)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n", "tiles", "groups", "reach"])
def join_tiles(
    high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, ranks, sizes,
    n, tiles, groups, reach, T: tl.constexpr, LEVELS: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Join 2^LEVELS ranges of ``reach`` tiles each into one, two by two: one program a group."""
    row, group, size = place_of(groups, n, sizes)
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    lo, hi = lo + row * tiles, hi + row * tiles
    edge_first, edge_last = edge_first + row * tiles, edge_last + row * tiles
    state = lo, hi, edge_first, edge_last
    link = link + row * n
    if ranks is not None:
        ranks += row * n + row
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
    first, last = bridges(base, width, n, link, sums, state, ranks, T, M, P)
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
def clusters_of(k, n, here, tile, tiles, link, state, cuts, T: tl.constexpr):
    """Return the bounds of the clusters of a tile's particles, cut where the row is apart."""
    apart, last_apart, next_apart = cuts
    first, last = cluster_of(k, k < n, link, state, T)
    border = tl.where(tl.load(apart + k, k < n, 0) != 0, k, 0)
    begin = tl.associative_scan(border, 0, maximum)
    begin = tl.maximum(begin, tl.load(last_apart + here - 1, tile > 0, 0).to(tl.int64))
    behind = (k + 1 < n) & (k + 1 < (tile + 1) * T)
    border = tl.where(tl.load(apart + k + 1, behind, 0) != 0, k + 1, n)
    end = tl.associative_scan(border, 0, minimum, reverse=True)
    end = tl.minimum(end, tl.load(next_apart + here + 1, tile + 1 < tiles, n.to(tl.int32)))
    return tl.maximum(first, begin), tl.minimum(last, end)


@triton.jit
def _cluster_exponent(x, first, last, mask, BLOCKS: tl.constexpr):
    """Return the exponent of each cluster's largest weight, which stands at one of its ends.

    All weights of a block have the same, or are below the least normal number.
    """
    least = tl.load(x + first, mask, 0).to(tl.float64)
    greatest = tl.load(x + last - 1, mask, 0).to(tl.float64)
    exponent = exponent_of(tl.maximum(tl.abs(least), tl.abs(greatest)))
    if BLOCKS and x.dtype.element_ty == tl.float32:
        exponent = tl.maximum(exponent, -125)
    return exponent


@triton.jit(do_not_specialize=["n", "tiles"])
def sum_clusters(
    x, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart, last_apart,
    next_apart, strengths, ranks, sizes, items, rests, n, tiles, T: tl.constexpr,
):  # fmt: skip
    """Replace the running sums of z by those of x, each cluster on a grid of its own."""
    row, tile, size = place_of(tiles, n, sizes)
    here = row * tiles + tile
    state = lo + row * tiles, hi + row * tiles, edge_first + row * tiles, edge_last + row * tiles
    cuts = apart + row * n, last_apart, next_apart
    x = x + row * n
    k = tile * T + tl.arange(0, T)
    first, last = clusters_of(k, size, here, tile, tiles, link + row * n, state, cuts, T)
    valid, _, _, _ = conditions_of(x, size, strengths)
    mask = k < tl.where(valid, size, 0)
    values = tl.load(x + k, mask, 0).to(tl.float64)
    exponent = _cluster_exponent(x, first, last, mask, rests is not None)
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    ranks, blocks = masses_of(row, n, ranks, items, rests)
    rest = None if blocks is None else rest_of(k, mask, blocks)
    _store_sums(values, rest, exponent, k, size, tile, sums, ranks)


@triton.jit
def _motion(x, n, d, first, last, sums, ranks, lambd, mask, BLOCKS: tl.constexpr, T: tl.constexpr):
    """Return where clusters begin, and by how much they move."""
    begin, end = sum_before(first, mask, sums, ranks, T), sum_before(last, mask, sums, ranks, T)
    high, low = normalized(end[0] - begin[0], end[1] - begin[1])
    mass = tl.where(mask, end[2] - begin[2], 1)
    whole = floor_divide(high, mass)
    carried = ((high - whole * mass) << LIMB) + low
    digit = floor_divide(carried, mass)
    remainder = (carried - digit * mass).to(tl.float64) / mass.to(tl.float64)
    mean = ((whole << LIMB) + digit).to(tl.float64) + remainder
    mean = times_power_of_two(mean, _cluster_exponent(x, first, last, mask, BLOCKS) - 2 * LIMB)
    return mean, lambd * velocity_of(begin[2], end[2], d)


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def move_clusters(
    x, result, table, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart,
    last_apart, next_apart, furthest, strengths, ranks, sizes, items, rests, n, d, tiles,
    T: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Move each cluster, and write its position to all weights in it: those of blocks by a table.

    Rounding may turn the order of clusters that nearly touch, so that none may stand behind the
    ``furthest`` of all tiles before.  That is what is stored when this is not to WRITE yet.
    """
    row, tile, size = place_of(tiles, n, sizes)
    here = row * tiles + tile
    state = lo + row * tiles, hi + row * tiles, edge_first + row * tiles, edge_last + row * tiles
    cuts = apart + row * n, last_apart, next_apart
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    x = x + row * n
    k = tile * T + tl.arange(0, T)
    valid, lambd, l1, rho = conditions_of(x, size, strengths)
    mask = k < tl.where(valid, size, 0)
    first, last = clusters_of(k, size, here, tile, tiles, link + row * n, state, cuts, T)
    ranks, _ = masses_of(row, n, ranks, None, None)
    blocks: tl.constexpr = rests is not None
    mean, shift = _motion(x, size, d, first, last, sums, ranks, lambd, mask, blocks, T)
    position = tl.where(mask, mean + shift, 0.0)
    so_far = tl.where(mask, position, -float("inf"))
    if WRITE:
        ordered = tl.associative_scan(so_far, 0, maximum)
        ordered = tl.maximum(ordered, tl.load(furthest + here - 1, tile > 0, -float("inf")))
        position += tl.where(mask, ordered, 0.0) - position
        sign = (position > 0).to(tl.float64) - (position < 0).to(tl.float64)
        shrunk = position - l1 * sign
        relaxed = tl.where(
            rho < 0.5, shrunk + rho * (mean - shrunk), mean - (mean - shrunk) * (1 - rho)
        )
        moved = tl.where(tl.abs(position) < l1, 0.0, relaxed)
        moved = tl.where(valid, moved, float("nan"))
        moved = _rounded_to(moved, result)
        item = tl.load(items + row * n + k, k < size, 0)
        tl.store(result + row * d + item, moved, (k < size) & (item >= 0))
        if table is not None:
            tl.store(table + row * BUCKETS + (-1 - item), moved, (k < size) & (item < 0))
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
