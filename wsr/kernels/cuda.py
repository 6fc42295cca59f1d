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

Where much will be shared, particles are whole buckets too, as :mod:`wsr.kernels.cuda_buckets` tells
them: so are all 65,536 values of a 16-bit dtype.  Then particles have a mass: ``ranks`` tells how
many weights lie before particle k, ``sizes`` how many particles a row has, ``items`` which weight
or bucket a particle is, and ``rests`` what a bucket sums to beyond its mass times ``x``.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from wsr.kernels.cuda_buckets import (
    average_members,
    count_members,
    look_up,
    open_buckets,
    place_blocks,
)
from wsr.kernels.cuda_radix import count_digits, scatter_digits
from wsr.kernels.cuda_rows import resolve_rows
from wsr.kernels.cuda_tiles import (
    join_tiles,
    move_clusters,
    resolve_tiles,
    running_extremes,
    running_sums,
    span_tiles,
    sum_clusters,
)

BUCKETS = 2**16
TILE = 1024  # particles
LEVELS = 3  # of the tree that one launch climbs
CHUNK = 1024  # tiles that a running total takes at once
PROBES = 8  # on each side, where tiles are joined
BLOCK = 1024  # buckets of one program
SORTED = 1024  # weights that a program sorts at once
PROGRAMS = 1024  # that sort

# Thresholds between two ways to the same result.
NARROW = 64  # of rows with fewer weights a fourth at a time: what is known of a row takes 64 bytes
SORT_UP_TO = 256  # weights of a row are sorted in its own program
COUNT_FROM = {2: 2**20, 4: 2**24, 8: 2**24}  # so many weights of so many bytes are counted
SAMPLE = 2**10
SHARED = 32  # a weight of the sample counts as shared if its cluster there has so many members


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
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # where Triton launches
        strengths = _strengths(rows, lambd, l1, rho)
        if d <= TILE:
            step = 16 * triton.cdiv(len(flat), 16 * (4 if d < NARROW else 1))  # aligned
            for part in (slice(start, start + step) for start in range(0, len(flat), step)):
                _resolve_short(flat[part], result.view(-1, d)[part], strengths)
        elif d >= COUNT_FROM[rows.itemsize]:
            _resolve_counted(flat, result, strengths)
        else:
            x, order = flat.sort(dim=-1)
            _resolve(_Particles(x, order), d, strengths, result)
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


class _Particles(NamedTuple):
    """The particles of some rows: single weights, or whole buckets, in order.

    Attributes
    ----------
    x : Tensor
        Shape (rows, n): the weights; of a bucket, its value.
    items : Tensor
        Shape (rows, n): where in its row a weight stands; -1 - b of the bucket b.
    ranks : Tensor, optional
        Shape (rows, n + 1): how many weights lie before a particle.  None if all are weights.
    sizes : Tensor, optional
        Shape (rows,): how many particles there are, if not n.
    rests : Tensor, optional
        Shape (rows, BUCKETS): what the weights of a bucket sum to beyond its value times their
        number.
    """

    x: Tensor
    items: Tensor
    ranks: Tensor | None = None
    sizes: Tensor | None = None
    rests: Tensor | None = None


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
        x, order = torch.empty_like(rows), torch.empty_like(rows, dtype=torch.int32)
    else:
        x, order = rows.sort(dim=-1)
    # Powers of four: each size is compiled when it is first met.
    tile = 4 ** max(2, ((d - 1).bit_length() + 1) // 2)
    known = _Scratch(x, 1)
    resolve_rows[count,](
        rows, x, order, result, *known.sums, *known.state, known.apart, *known.cuts,
        known.greatest, known.least, known.furthest, strengths, d, d,
        tile, tile.bit_length() - 1, in_kernel,
        num_warps=max(1, tile // 256), **_EXACTLY,
    )  # fmt: skip


def _resolve(
    particles: _Particles, d: int, strengths: Tensor, result: Tensor, table: Tensor | None = None
) -> None:
    """Write where the particles end to the places of the weights, and of buckets to the table."""
    _move(particles, _find_clusters(particles, d, strengths), d, strengths, result, table)


def _find_clusters(particles: _Particles, d: int, strengths: Tensor) -> "_Scratch":
    """Find the clusters of the particles, which are d weights in each row."""
    x, items, ranks, sizes, rests = particles
    rows, n = x.shape
    tiles = triton.cdiv(n, TILE)
    known = _Scratch(x, tiles)
    everywhere = (rows * tiles,)
    of_row = strengths, ranks, sizes, items, rests, n, d, tiles, TILE
    span_tiles[everywhere](x, known.greatest, known.least, *of_row, **_EXACTLY)
    running_extremes[rows, 2](known.greatest, known.least, tiles, CHUNK)
    resolve_tiles[everywhere](
        x, *known.sums, known.link, known.lo, known.hi, known.apart, *known.cuts, known.greatest,
        known.least, *of_row, TILE.bit_length() - 1, **_EXACTLY,
    )  # fmt: skip
    running_extremes[rows, 2](*known.cuts, tiles, CHUNK)
    running_sums[rows,](*known.sums[2:], tiles, CHUNK)
    reach = 1
    while reach < tiles:
        groups = triton.cdiv(tiles, reach << LEVELS)
        join_tiles[rows * groups,](
            *known.sums, *known.state, ranks, sizes, n, tiles, groups, reach, TILE, LEVELS, PROBES
        )
        reach <<= LEVELS
    return known


def _move(
    particles: _Particles, known: "_Scratch", d: int, strengths: Tensor, result: Tensor,
    table: Tensor | None,
) -> None:  # fmt: skip
    """Move the clusters, and write where they end."""
    x, items, ranks, sizes, rests = particles
    rows, n = x.shape
    tiles = triton.cdiv(n, TILE)
    everywhere = (rows * tiles,)
    clusters = *known.sums, *known.state, known.apart, *known.cuts
    of_row = strengths, ranks, sizes, items, rests, n
    sum_clusters[everywhere](x, *clusters, *of_row, tiles, TILE, **_EXACTLY)
    running_sums[rows,](*known.sums[2:], tiles, CHUNK)
    arguments = x, result, table, *clusters, known.furthest, *of_row, d, tiles, TILE
    move_clusters[everywhere](*arguments, False, **_EXACTLY)
    running_extremes[rows, 1](known.furthest, known.furthest, tiles, CHUNK)
    move_clusters[everywhere](*arguments, True, **_EXACTLY)


def _resolve_counted(rows: Tensor, result: Tensor, strengths: Tensor) -> None:
    """Resolve long rows without a sort of weights that will be shared.

    Weights of 16 bits have nothing but closed buckets.  Others are counted where a sample says that
    much will be shared, and what is not in closed buckets is sorted.
    """
    count, d = rows.shape
    bits = rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.itemsize])
    blocks = triton.cdiv(d, TILE)
    wide = rows.itemsize > 2
    wanted = _much_is_shared(rows, strengths) if wide else None
    mass, *digits = rows.new_zeros(3 if wide else 1, count, BUCKETS, dtype=torch.int64)
    high, low = digits or (None, None)
    count_members[count * blocks,](bits, wanted, mass, high, low, d, blocks, TILE, wide)
    value = torch.empty(count, BUCKETS, dtype=bits.dtype, device=rows.device)
    rests = torch.empty(count, BUCKETS, dtype=torch.float64, device=rows.device) if wide else None
    average_members[BUCKETS // BLOCK, count](mass, high, low, value, rests, BLOCK, wide)
    particles = _buckets(mass, value.view(rows.dtype), rests, d)
    if rests is not None:
        _open(particles, d, strengths)
        particles = _closed_and_sorted(bits, mass, value, rests, rows.dtype)
    del mass, value
    table = torch.empty(count, BUCKETS, dtype=rows.dtype, device=rows.device)
    _resolve(particles, d, strengths, result, table)
    look_up[count * blocks,](bits, rests, table, result, d, blocks, TILE)


def _much_is_shared(rows: Tensor, strengths: Tensor) -> Tensor:
    """Look at every n-th weight: R is a mean over pairs, so lambd means the same to a sample."""
    sample = rows[:, :: rows.shape[1] // SAMPLE][:, :SAMPLE].contiguous()
    moved = torch.empty_like(sample)
    alone = strengths.clone()
    alone[1:].zero_()
    _resolve_short(sample, moved, alone)
    ordered = moved.sort(-1).values
    equal = (ordered[:, SHARED - 1 :] == ordered[:, : 1 - SHARED]).float()
    near = torch.nn.functional.pad(equal, (SHARED - 1, SHARED - 1))
    shared = torch.nn.functional.max_pool1d(near, SHARED, 1)
    return 4 * shared.sum(-1) > 3 * SAMPLE


def _buckets(mass: Tensor, value: Tensor, rests: Tensor | None, d: int) -> _Particles:
    """Return the buckets with members as particles."""
    occupied = mass > 0
    place = occupied.cumsum(-1)
    room = min(d, BUCKETS)
    bucket = torch.arange(BUCKETS, device=mass.device).expand_as(mass)
    # The empty ones share a place behind the end.
    place, sizes = torch.where(occupied, place - 1, BUCKETS), place[:, -1].clamp(min=1)
    bucket = mass.new_zeros(len(mass), BUCKETS + 1).scatter_(-1, place, bucket)[:, :room]
    ranks = torch.nn.functional.pad(mass.gather(-1, bucket).cumsum(-1), (1, 0)).int()
    return _Particles(value.gather(-1, bucket), (-1 - bucket).int(), ranks, sizes, rests)


def _open(buckets: _Particles, d: int, strengths: Tensor) -> None:
    """Open every bucket inside which a cluster might begin: its rest becomes NaN."""
    x, items, ranks, sizes, rests = buckets
    known = _find_clusters(buckets, d, strengths)
    count, n = x.shape
    tiles = triton.cdiv(n, TILE)
    open_buckets[count * tiles,](
        x, *known.sums, *known.state, known.apart, *known.cuts, known.greatest, known.least,
        strengths, ranks, sizes, items, rests, n, d, tiles, TILE, **_EXACTLY,
    )  # fmt: skip


def _closed_and_sorted(
    bits: Tensor, mass: Tensor, value: Tensor, rests: Tensor, dtype: torch.dtype
) -> _Particles:
    """Return the closed buckets and the weights in open ones, sorted, as particles."""
    count, d = bits.shape
    closed = ~rests.isnan()
    inside = mass.where(closed, 0)
    buckets, weights = closed.cumsum(-1), inside.cumsum(-1)  # closed ones up to each bucket
    x, items, ranks = _open_ones_sorted(bits, rests, buckets, weights)
    rank = mass.cumsum(-1) - mass
    place = rank - (weights - inside) + buckets - 1
    sizes = d - weights[:, -1] + buckets[:, -1]
    place_blocks[BUCKETS // BLOCK, count](
        value, rests, place, rank, x, items, ranks, sizes, d, BLOCK
    )
    return _Particles(x.view(dtype), items, ranks, sizes, rests)


def _open_ones_sorted(
    bits: Tensor, rests: Tensor, closed_buckets: Tensor, closed_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return bits, items and ranks of the weights in open buckets, with room for the closed ones.

    How many buckets are closed, and weights in them, is counted up to each bucket.
    """
    count, d = bits.shape
    programs = min(PROGRAMS, triton.cdiv(d, SORTED))
    everywhere = (count * programs,)
    counts = torch.empty(count, 256 * programs, dtype=torch.int32, device=bits.device)
    spare = [(torch.empty_like(bits), torch.empty_like(bits, dtype=torch.int32)) for _ in range(2)]
    ranks = torch.empty(count, d + 1, dtype=torch.int32, device=bits.device)
    open_weights = d - closed_weights[:, -1]
    # The first pass takes from all weights those in open buckets.
    given: tuple[Tensor, Tensor | None] = bits, None
    among: Tensor | None = rests
    number: Tensor | None = None
    for place in range(bits.itemsize):
        count_digits[everywhere](given[0], among, counts, number, d, programs, place, SORTED)
        totals = counts.cumsum(-1, dtype=torch.int32)
        last = place == bits.itemsize - 1
        room = (closed_buckets, closed_weights, ranks) if last else (None, None, None)
        sorted_so_far = spare[place % 2]
        scatter_digits[everywhere](
            *given, among, totals, number, *sorted_so_far, *room, d, programs, place, SORTED
        )
        given, among, number = sorted_so_far, None, open_weights
    return *sorted_so_far, ranks
