"""The kernel that resolves rows of one tile: one program a row."""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_tiles import (
    move_clusters,
    resolve_tiles,
    span_tiles,
    sum_clusters,
)


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
def resolve_rows(
    rows, x, order, result, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last,
    apart, last_apart, next_apart, greatest, least, furthest, strengths, n, d,
    T: tl.constexpr, LEVELS: tl.constexpr, SORT: tl.constexpr,
):  # fmt: skip
    """Do all of it: rows of one tile need no other tile's results."""
    if SORT:
        _sort_row(rows, x, order, n, T)
        tl.debug_barrier()
    span_tiles(x, greatest, least, strengths, None, None, None, None, n, d, 1, T)
    tl.debug_barrier()
    resolve_tiles(
        x, high, low, tile_high, tile_low, link, lo, hi, apart, last_apart, next_apart, greatest,
        least, strengths, None, None, None, None, n, d, 1, T, LEVELS,
    )  # fmt: skip
    sum_clusters(
        x, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart, last_apart,
        next_apart, strengths, None, None, None, None, n, 1, T,
    )  # fmt: skip
    tl.debug_barrier()
    move_clusters(
        x, result, None, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart,
        last_apart, next_apart, furthest, strengths, None, None, order, None, n, d, 1, T, True,
    )  # fmt: skip
