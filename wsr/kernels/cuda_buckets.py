"""The 65,536 values of 16 bits."""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_tiles import (
    place_of,
)


@triton.jit
def _key(bits):
    """Return the place of a 16-bit float among all of them, in order."""
    bits = bits.to(tl.int32) & 0xFFFF
    return tl.where(bits < 0x8000, bits + 0x8000, 0xFFFF - bits)


@triton.jit(do_not_specialize=["d", "tiles"])
def count_values(bits, counts, d, tiles, T: tl.constexpr):
    row, tile, size = place_of(tiles, d, None)
    k = tile * T + tl.arange(0, T)
    key = _key(tl.load(bits + row * size + k, k < size, 0))
    tl.atomic_add(counts + row * 65536 + key, 1, k < size, sem="relaxed")


@triton.jit(do_not_specialize=["d", "tiles"])
def look_up(bits, table, result, d, tiles, T: tl.constexpr):
    row, tile, size = place_of(tiles, d, None)
    k = tile * T + tl.arange(0, T)
    key = _key(tl.load(bits + row * size + k, k < size, 0))
    tl.store(result + row * size + k, tl.load(table + row * 65536 + key), k < size)
