"""Sort as many weights as a number on the device says: by their bits, eight at a time.

Each of some programs takes an equal share of what is there to be sorted, so that their number does
not depend on it.  In each pass a program counts its digits; the running total of all counts, digit
by digit and program by program, says where the weights with a digit begin that a program meets; and
each goes through its share once more and writes.  Equal digits stay in order, so that after the
pass over the leading digit everything is.
"""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_buckets import bucket_of, is_open, key_of
from wsr.kernels.cuda_grid import BUCKETS

DIGITS: tl.constexpr = tl.constexpr(256)


@triton.jit
def _share(numbers, n, programs, T: tl.constexpr):
    """Return the row of this program, its number there, and the items begin <= k < end it takes."""
    row = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0) % programs
    number = n.to(tl.int64) if numbers is None else tl.load(numbers + row)
    share = tl.cdiv(tl.cdiv(number, programs), T) * T
    begin = tl.minimum(program * share, number)
    return row, program, begin, tl.minimum(begin + share, number)


@triton.jit
def _digit_of(bits, place):
    """Return the digit of a key at a place, counted from the lowest."""
    digit = (key_of(bits) >> (8 * place)).to(tl.int32) & (DIGITS - 1)
    # In the leading digit, negative keys have the highest bit set, and come first.
    return digit ^ tl.where(place == bits.dtype.primitive_bitwidth // 8 - 1, DIGITS // 2, 0)


@triton.jit(do_not_specialize=["n", "programs", "place"])
def count_digits(bits, rests, counts, numbers, n, programs, place, T: tl.constexpr):
    """Count the digits of each program's share; with ``rests``, those in open buckets alone."""
    row, program, begin, end = _share(numbers, n, programs, T)
    bits += row * n
    found = tl.zeros([DIGITS], tl.int32)
    for start in range(begin, end, T):
        k = start + tl.arange(0, T)
        given = tl.load(bits + k, k < end, 0)
        wanted = k < end
        if rests is not None:
            wanted = is_open(bucket_of(given), wanted, rests + row * BUCKETS)
        found += tl.histogram(_digit_of(given, place), DIGITS, wanted)
    tl.store(counts + (row * DIGITS + tl.arange(0, DIGITS)) * programs + program, found)


@triton.jit(do_not_specialize=["n", "programs", "place"])
def scatter_digits(
    bits, order, rests, totals, numbers, new_bits, new_order, closed_buckets, closed_weights, ranks,
    n, programs, place, T: tl.constexpr,
):  # fmt: skip
    """Write each item to where its digit and all equal ones before it put it.

    Without ``order`` the weights are where they were given.  In the last pass each item leaves room
    for the closed buckets below its own, so many of so many weights, and its rank is noted.
    """
    row, program, begin, end = _share(numbers, n, programs, T)
    bits += row * n
    digits = tl.arange(0, DIGITS)
    totals += (row * DIGITS + digits) * programs + program - 1  # each includes what it is for
    free = tl.load(totals, (digits > 0) | (program > 0), 0)
    lane = tl.arange(0, T)
    for start in range(begin, end, T):
        k = start + lane
        given = tl.load(bits + k, k < end, 0)
        wanted = k < end
        if rests is not None:
            wanted = is_open(bucket_of(given), wanted, rests + row * BUCKETS)
        digit = _digit_of(given, place)
        found = tl.histogram(digit, DIGITS, wanted)
        packed = tl.sort(tl.where(wanted, digit, DIGITS) * T + lane)
        digit, source = packed // T, start + packed % T
        wanted = digit < DIGITS
        here = tl.gather(free - tl.cumsum(found, 0) + found, digit & (DIGITS - 1), 0) + lane
        free += found
        given = tl.load(bits + source, wanted, 0)
        item = source.to(tl.int32)
        if order is not None:
            item = tl.load(order + row * n + source, wanted, 0)
        if ranks is not None:
            bucket = row * BUCKETS + bucket_of(given)
            rank = here + tl.load(closed_weights + bucket, wanted, 0)
            here += tl.load(closed_buckets + bucket, wanted, 0)
            tl.store(ranks + row * n + row + here, rank.to(tl.int32), wanted)
        tl.store(new_bits + row * n + here, given, wanted)
        tl.store(new_order + row * n + here, item, wanted)
