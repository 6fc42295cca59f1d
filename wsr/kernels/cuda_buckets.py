"""Kernels that look at the leading 16 bits of the weights: their bucket.

Weights are read as their bits.  The key of a weight is an integer in the order of the floats; with
W bits to a weight, the lowest W - 16 bits of its key are its place in the bucket.

What a row knows of its buckets, an entry a bucket:

- ``mass``: how many weights it holds; ``high_digits`` * 2^24 + ``low_digits``: the sum of their
  places.
- ``value``: the bits of the float at the mean of the places, rounded down; ``rests``: what the
  weights sum to beyond ``mass`` times this value.  NaN if a cluster might begin inside, or if the
  bucket is empty; the others are closed.
"""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from wsr.kernels.cuda_clusters import conditions_of, sum_before, sum_between, unit_of
from wsr.kernels.cuda_grid import BUCKETS, LIMB, exponent_of, times_power_of_two
from wsr.kernels.cuda_tiles import clusters_of, masses_of, place_of, row_exponent

DIGIT: tl.constexpr = tl.constexpr(24)


@triton.jit
def key_of(bits):
    """Return the key of a float with these bits; the same function leads back."""
    W: tl.constexpr = bits.dtype.primitive_bitwidth
    return bits ^ ((bits >> (W - 1)) & (2 ** (W - 1) - 1)).to(bits.dtype)


@triton.jit
def bucket_of(bits):
    W: tl.constexpr = bits.dtype.primitive_bitwidth
    return (key_of(bits) >> (W - 16)).to(tl.int32) + BUCKETS // 2


@triton.jit
def _place_in_bucket(bits):
    W: tl.constexpr = bits.dtype.primitive_bitwidth
    return key_of(bits).to(tl.int64) & (2 ** (W - 16) - 1)


@triton.jit
def _bits_at(bucket, place, dtype: tl.constexpr):
    """Return the bits of the float at a place in a bucket."""
    W: tl.constexpr = dtype.primitive_bitwidth
    key = (bucket.to(tl.int64) - BUCKETS // 2) << (W - 16)
    return key_of((key + place).to(dtype))


@triton.jit
def _as_float(bits):
    """Return the float64 with the value of the float with these 32 or 64 bits."""
    dtype: tl.constexpr = bits.dtype
    if dtype == tl.int32:
        value = bits.to(tl.float32, bitcast=True).to(tl.float64)
    else:
        value = bits.to(tl.float64, bitcast=True)
    return value


@triton.jit
def _unit_exponent(bits):
    """Return e such that 2^e is the distance from the float with these bits to the next."""
    dtype: tl.constexpr = bits.dtype
    if dtype == tl.int32:
        exponent = tl.maximum((bits >> 23) & 0xFF, 1).to(tl.int64) - 150
    else:
        exponent = tl.maximum((bits >> 52) & 0x7FF, 1) - 1075
    return exponent


@triton.jit
def is_open(bucket, mask, rests):
    rest = tl.load(rests + bucket, mask, 0.0)
    return mask & (rest != rest)


@triton.jit(do_not_specialize=["d", "tiles"])
def count_members(
    bits, wanted, mass, high_digits, low_digits, d, tiles, T: tl.constexpr, PLACES: tl.constexpr
):
    """Count the weights of each bucket, and with PLACES sum their places, if the row is wanted.

    Many weights of a tile may be in the bucket of its first one: those are summed before.
    """
    row, tile, size = place_of(tiles, d, None)
    bits += row * size + tile * T
    mass += row * BUCKETS
    k = tl.arange(0, T)
    inside = k < size - tile * T
    if wanted is not None:
        inside = inside & (tl.load(wanted + row) != 0)
    given = tl.load(bits + k, inside, 0)
    bucket, place = bucket_of(given), _place_in_bucket(given)
    common = bucket_of(tl.load(bits))
    many, others = inside & (bucket == common), inside & (bucket != common)
    some = tl.sum(many.to(tl.int32), 0) > 0
    _add(mass, bucket, others, tl.full([T], 1, tl.int64), common, many, some)
    if PLACES:
        low_digits += row * BUCKETS
        _add(low_digits, bucket, others, place & (2**DIGIT - 1), common, many, some)
        if given.dtype.primitive_bitwidth - 16 > DIGIT:
            high_digits += row * BUCKETS
            _add(high_digits, bucket, others, place >> DIGIT, common, many, some)


@triton.jit
def _add(sums, bucket, others, values, common, many, some):
    tl.atomic_add(sums + bucket, values, others, sem="relaxed")
    tl.atomic_add(sums + common, tl.sum(tl.where(many, values, 0), 0), some, sem="relaxed")


@triton.jit
def average_members(
    mass, high_digits, low_digits, value, rests, T: tl.constexpr, PLACES: tl.constexpr
):
    """Find the value and, with PLACES, the rest of each bucket: at first all of them are closed."""
    bucket = tl.program_id(0) * T + tl.arange(0, T)
    here = tl.program_id(1).to(tl.int64) * BUCKETS + bucket
    dtype: tl.constexpr = value.dtype.element_ty
    if PLACES:
        given = tl.load(mass + here)
        count = tl.maximum(given, 1)
        high, low = tl.load(high_digits + here), tl.load(low_digits + here)
        place = high // count
        low += (high - place * count) << DIGIT
        place = (place << DIGIT) + low // count
        bits = _bits_at(bucket, place, dtype)
        rest = times_power_of_two((low % count).to(tl.float64), _unit_exponent(bits))
        tl.store(rests + here, tl.where(given > 0, rest, float("nan")))
        tl.store(value + here, bits)
    else:
        tl.store(value + here, _bits_at(bucket, 0, dtype))


@triton.jit(do_not_specialize=["n", "d", "tiles"])
def open_buckets(
    x, high, low, tile_high, tile_low, link, lo, hi, edge_first, edge_last, apart, last_apart,
    next_apart, greatest, least, strengths, ranks, sizes, items, rests, n, d, tiles,
    T: tl.constexpr,
):  # fmt: skip
    """Open every bucket inside which a cluster might begin: the test of wsr.kernels.cpu_loops.

    The particles are the buckets with members, pooled.  The m smallest members of a bucket sum to
    at least m * lowest and to at least their sum - (mass - m) * highest.  Where the two meet, the
    path inside the bucket is lowest beside the convex minorant.
    """
    row, tile, size = place_of(tiles, n, sizes)
    here = row * tiles + tile
    state = lo + row * tiles, hi + row * tiles, edge_first + row * tiles, edge_last + row * tiles
    sums = high + row * n, low + row * n, tile_high + row * tiles, tile_low + row * tiles
    link, cuts = link + row * n, (apart + row * n, last_apart, next_apart)
    x += row * n
    ranks, blocks = masses_of(row, n, ranks, items, rests)
    k = tile * T + tl.arange(0, T)
    valid, lambd, _, _ = conditions_of(x, size, strengths)
    mask = k < tl.where(valid, size, 0)
    first, last = clusters_of(k, size, here, tile, tiles, link, state, cuts, T)
    at_first = sum_before(first, mask, sums, ranks, T)
    at_last = sum_before(last, mask, sums, ranks, T)
    at_k = sum_before(k, mask, sums, ranks, T)
    unit = unit_of(x, size, d, lambd)
    # End points may be far smaller than the weights and shifts that cancel in them, and be rounded
    # in proportion to those.  So from here on the unit is that of a grid for the latter.
    ends = tl.maximum(tl.abs(tl.load(x)), tl.abs(tl.load(x + size - 1))).to(tl.float64)
    exponent = exponent_of(tl.where(valid, ends, 0.0) * unit + lambd * unit) - LIMB
    finer = row_exponent(greatest + row * tiles, least + row * tiles, tiles) - LIMB - exponent

    items, rests = blocks
    bucket = -1 - tl.load(items + k, mask, -1)
    rest = tl.load(rests + bucket, mask, 0.0)
    dtype: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.float32 else tl.int64
    last_place: tl.constexpr = 2 ** (dtype.primitive_bitwidth - 16) - 1
    lowest = _as_float(_bits_at(bucket, 0, dtype))
    highest = _as_float(_bits_at(bucket, last_place, dtype))
    # In float64, in units of 2^31 on that grid; and masses are numbers too.
    whole, members = _as_number(sum_between(at_first, at_last), finer)
    before, ahead = _as_number(sum_between(at_first, at_k), finer)
    slope = whole / tl.maximum(members, 1.0)
    mass = tl.load(ranks + k + 1, mask, 1).to(tl.float64) - at_k[2].to(tl.float64)
    value = tl.load(x + k, mask, 0).to(tl.float64)
    all_equal = (rest == 0) & ((value == lowest) | (value == highest))  # to a limit: many zeros are
    mean = value + rest / tl.maximum(mass, 1.0)
    m = mass * ((highest - mean) / (highest - lowest))
    m = tl.minimum(tl.maximum(m, 0.0), mass)
    fastest = times_power_of_two(lambd * unit, -exponent) / tl.maximum(d - 1, 1)
    shift = fastest * m * (d - 2 * at_k[2].to(tl.float64) - m)
    lowest = times_power_of_two(lowest * unit, -exponent)
    height = before - slope * ahead + m * lowest + shift - m * slope
    # Weights, shifts and end points are below 2^31.  Their roundings, and those of this test, add
    # up to less than 20 * 2^-53 of that a member.
    closed = (mass <= 1) | all_equal | (height > members * (1 / 65536))
    tl.store(rests + bucket, float("nan"), mask & ~closed)


@triton.jit
def _as_number(part, exponent):
    """Return the sum of a part of a row times 2^exponent, in units of 2^31, and its mass."""
    high = part[0].to(tl.float64) * 2147483648.0 + part[1].to(tl.float64)
    high += part[2].to(tl.float64) * (1 / 2147483648.0)
    return times_power_of_two(high, exponent), part[3].to(tl.float64)


@triton.jit(do_not_specialize=["d"])
def place_blocks(value, rests, position, rank, x, items, ranks, sizes, d, T: tl.constexpr):
    """Write the closed buckets to their places among the particles, and the rank of the end."""
    bucket = tl.program_id(0) * T + tl.arange(0, T)
    row = tl.program_id(1).to(tl.int64)
    here = row * BUCKETS + bucket
    rest = tl.load(rests + here)
    closed = rest == rest
    place = tl.load(position + here)
    tl.store(x + row * d + place, tl.load(value + here), closed)
    tl.store(items + row * d + place, (-1 - bucket).to(items.dtype.element_ty), closed)
    ranks += row * d + row
    tl.store(ranks + place, tl.load(rank + here).to(ranks.dtype.element_ty), closed)
    tl.store(ranks + tl.load(sizes + row), d, tl.program_id(0) == 0)


@triton.jit(do_not_specialize=["d", "tiles"])
def look_up(bits, rests, table, result, d, tiles, T: tl.constexpr):
    """Write to the members of closed buckets the value of their bucket."""
    row, tile, size = place_of(tiles, d, None)
    k = tile * T + tl.arange(0, T)
    inside = k < size
    bucket = bucket_of(tl.load(bits + row * size + k, inside, 0))
    if rests is not None:
        rest = tl.load(rests + row * BUCKETS + bucket, inside, float("nan"))
        inside = inside & (rest == rest)
    tl.store(result + row * size + k, tl.load(table + row * BUCKETS + bucket, inside, 0), inside)
