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

from typing import Any

import torch
import triton
from torch import Tensor

from wsr.kernels.cuda_buckets import (
    count_values,
    look_up,
)
from wsr.kernels.cuda_rows import (
    resolve_rows,
)
from wsr.kernels.cuda_tiles import (
    join_tiles,
    move_clusters,
    resolve_tiles,
    running_extremes,
    running_sums,
    span_tiles,
    sum_clusters,
)

TILE = 1024  # particles
LEVELS = 3  # of the tree that one launch climbs
CHUNK = 1024  # tiles that a running total takes at once
PROBES = 8  # on each side, where tiles are joined
VALUES = 2**16  # of a 16-bit dtype
SORT_UP_TO = 256  # weights of a row are sorted in its own program
COUNT_FROM = 2**20  # so many 16-bit weights are counted, not sorted


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
    resolve_rows[count,](
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
    span_tiles[everywhere](x, known.greatest, known.least, *of_row, d, tiles, TILE, **_EXACTLY)
    running_extremes[rows, 2](known.greatest, known.least, tiles, CHUNK)
    resolve_tiles[everywhere](
        x, *known.sums, known.link, known.lo, known.hi, known.apart, *known.cuts, known.greatest,
        known.least, *of_row, d, tiles, TILE, TILE.bit_length() - 1, **_EXACTLY,
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
    clusters = *known.sums, *known.state, known.apart, *known.cuts
    sum_clusters[everywhere](x, *clusters, *of_row, tiles, TILE, **_EXACTLY)
    running_sums[rows,](*known.sums[2:], tiles, CHUNK)
    arguments = x, order, result, *clusters, known.furthest, *of_row, d, tiles, TILE
    move_clusters[everywhere](*arguments, False, **_EXACTLY)
    running_extremes[rows, 1](known.furthest, known.furthest, tiles, CHUNK)
    move_clusters[everywhere](*arguments, True, **_EXACTLY)


def _resolve_counted(rows: Tensor, result: Tensor, strengths: Tensor) -> None:
    """Resolve long rows of 16-bit weights without a sort: count, resolve the values, look up."""
    count, d = rows.shape
    blocks = triton.cdiv(d, TILE)
    bits = rows.view(torch.int16)
    counts = torch.zeros(count, VALUES, dtype=torch.int32, device=rows.device)
    count_values[count * blocks,](bits, counts, d, blocks, TILE)
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
    look_up[count * blocks,](bits, table, result, d, blocks, TILE)
