"""Numbers on a GPU: the grid of :mod:`wsr.exact_sums`."""

# Kernels are written in Triton's language, which has no types to annotate.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

LIMB: tl.constexpr = tl.constexpr(31)
BUCKETS: tl.constexpr = tl.constexpr(2**16)  # what the leading bits of a weight tell apart
MASK: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b)


@triton.jit
def floor_divide(a, b):
    quotient = a // b  # towards zero
    return quotient - (quotient * b > a).to(tl.int64)


@triton.jit
def exponent_of(scale):
    """Return e such that scale < 2^e, for a float64 scale >= 0."""
    return (scale.to(tl.int64, bitcast=True) >> 52) - 1022


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def times_power_of_two(values, exponent):
    half = exponent >> 1
    return values * _power_of_two(half) * _power_of_two(exponent - half)


@triton.jit
def _round(values):
    """Return the nearest integers, ties to even, of float64 values below 2^51."""
    return (values + 6755399441055744.0) - 6755399441055744.0  # 1.5 * 2^52


@triton.jit
def limbs_of(values, exponent):
    """Return the values, below 2^exponent, in units of 2^(exponent - 62): high * 2^31 + low."""
    scaled = times_power_of_two(values, -(exponent - LIMB))
    high = _round(scaled)
    low = _round((scaled - high) * 2147483648.0)
    return high.to(tl.int64), low.to(tl.int64)


@triton.jit
def normalized(high, low):
    return high + (low >> LIMB), low & MASK


@triton.jit
def not_less(a, b):
    """Return where the mean a is greater than or equal to b; a mean is three limbs and a mass."""
    carry = (a[2] * b[3] - b[2] * a[3]) >> LIMB
    carry = (a[1] * b[3] - b[1] * a[3] + carry) >> LIMB
    return a[0] * b[3] - b[0] * a[3] + carry >= 0


@triton.jit
def excess_of(part, mean):
    """Return what a part has in excess of a mean: four limbs, over the mass of the mean."""
    e0 = part[2] * mean[3] - mean[2] * part[3]
    e1 = part[1] * mean[3] - mean[1] * part[3] + (e0 >> LIMB)
    e2 = part[0] * mean[3] - mean[0] * part[3] + (e1 >> LIMB)
    return e2 >> LIMB, e2 & MASK, e1 & MASK, e0 & MASK, mean[3]


@triton.jit
def not_positive(a, b):
    """Return where two excesses add up to nothing or less."""
    carry = (-a[3] * b[4] - b[3] * a[4]) >> LIMB
    carry = (carry - a[2] * b[4] - b[2] * a[4]) >> LIMB
    carry = (carry - a[1] * b[4] - b[1] * a[4]) >> LIMB
    return carry - a[0] * b[4] - b[0] * a[4] >= 0


@triton.jit
def either(condition, a, b):
    return (
        tl.where(condition, a[0], b[0]),
        tl.where(condition, a[1], b[1]),
        tl.where(condition, a[2], b[2]),
        tl.where(condition, a[3], b[3]),
    )
