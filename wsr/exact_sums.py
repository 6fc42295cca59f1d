"""How are sums made exact?

Round the values of a row to one common grid, 62 bits below the largest of them, and write them as
integers of two 31-bit limbs.  From there on nothing is rounded: sums are sums of int64, the same in
any order on any device, two means can be compared exactly, and all algorithms see the same ties.
A float64 that is at least 2^-9 of the largest of its row is on the grid as it stands; of smaller
ones, digits below 2^-62 of the largest are lost.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LIMB = 31
LIMB_MASK = 2**LIMB - 1


class Mean(NamedTuple):
    """The exact mean ``whole + remainder / size`` in units of the grid, 0 <= remainder < size."""

    whole: Tensor
    remainder: Tensor
    size: Tensor

    def at_least(self, other: "Mean") -> Tensor:
        """Return where this mean is greater than or equal to the other."""
        not_below = self.remainder * other.size >= other.remainder * self.size
        return (self.whole > other.whole) | (self.whole.eq(other.whole) & not_below)

    def last_minimum(self) -> Tensor:
        """Return the index of the last of the least means along the last dimension."""
        index = torch.arange(self.whole.shape[-1], device=self.whole.device)
        means = [self.whole, self.remainder, self.size, index.expand_as(self.whole)]
        while means[0].shape[-1] > 1:  # neighbours play each other, the later one wins a draw
            if means[0].shape[-1] % 2:  # the last one plays itself
                means = [torch.cat([part, part[..., -1:]], -1) for part in means]
            left, right = ([part[..., k::2] for part in means] for k in (0, 1))
            right_wins = Mean(*left[:3]).at_least(Mean(*right[:3]))
            means = [torch.where(right_wins, b, a) for a, b in zip(left, right, strict=True)]
        return means[3].squeeze(-1)


class ExactSums:
    """Exact sums and means over ranges of the last dimension of a finite float tensor.

    ``scale`` gives the magnitudes that fix the grid, broadcastable to ``values``: by default the
    largest of each row.  Values that are never summed together may differ in scale.
    """

    def __init__(self, values: Tensor, scale: Tensor | None = None) -> None:
        values = values.double()
        if scale is None:
            scale = F.pad(values.abs(), (1, 0)).amax(-1, keepdim=True)
        # The exponent field of float64: scale < 2**exponent.
        self.exponent = (scale.view(torch.int64) >> 52) - 1022
        scaled = times_power_of_two(values, LIMB - self.exponent)
        high = scaled.round()
        low = ((scaled - high) * 2.0**LIMB).round()
        self.high = F.pad(high.long().cumsum(-1), (1, 0))
        self.low = F.pad(low.long().cumsum(-1), (1, 0))

    def total(self, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over ``begin <= k < end`` as limbs: high * 2^31 + low."""
        return _between(self.high, begin, end), _between(self.low, begin, end)

    def mean(self, begin: Tensor, end: Tensor) -> Mean:
        """Return the mean over ``begin <= k < end``: a long division of the limbs."""
        count = end - begin
        high, low = self.total(begin, end)
        whole = high.div(count, rounding_mode="floor")
        carried = ((high - whole * count) << LIMB) + low
        digit = carried.div(count, rounding_mode="floor")
        return Mean((whole << LIMB) + digit, carried - digit * count, count)

    def at_most(self, begin: Tensor, middle: Tensor, end: Tensor, a: Mean, b: Mean) -> Tensor:
        """Return where the sum is at most what means of a before middle, b behind it, would give.

        Exactly: sum(begin..end) <= (middle - begin) * a + (end - middle) * b.
        """
        high, low = self.total(begin, end)
        fractions = []
        for n, mean in ((middle - begin, a), (end - middle, b)):
            remainder = n * mean.remainder
            carry = remainder.div(mean.size, rounding_mode="floor")
            fractions.append(remainder - carry * mean.size)
            high = high - n * (mean.whole >> LIMB)
            low = low - n * (mean.whole & LIMB_MASK) - carry
        # What is left to compare is an integer and the sum of two proper fractions.
        room = fractions[0] * b.size + fractions[1] * a.size >= a.size * b.size
        high = high + (low >> LIMB)
        fits: Tensor = (low & LIMB_MASK) <= room.long()
        return (high < 0) | ((high == 0) & fits)

    def float_mean(self, begin: Tensor, end: Tensor) -> Tensor:
        """Return the mean over ``begin <= k < end`` in float64."""
        mean = self.mean(begin, end)
        value = mean.whole.double() + mean.remainder / mean.size.double()
        return times_power_of_two(value, self.exponent - 2 * LIMB)

    def float_total(self, begin: Tensor, end: Tensor) -> Tensor:
        """Return the sum over ``begin <= k < end`` in float64."""
        high, low = self.total(begin, end)
        value = high.double() * 2.0**LIMB + low.double()
        return times_power_of_two(value, self.exponent - 2 * LIMB)


def _between(prefix: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Return prefix[..., end] - prefix[..., begin] for indices with any dimensions behind."""
    shape = (end - begin).shape
    begin, end = (index.expand(shape).flatten(prefix.ndim - 1) for index in (begin, end))
    return (prefix.gather(-1, end) - prefix.gather(-1, begin)).view(shape)


def times_power_of_two(values: Tensor, exponent: Tensor) -> Tensor:
    """Return values * 2**exponent for |exponent| <= 2044, without overflow on the way."""
    half = exponent >> 1
    return values * _power_of_two(half) * _power_of_two(exponent - half)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 1023) << 52).view(torch.float64)


def separated(z: Tensor) -> Tensor:
    """Return True at each k for which everything before k is less than everything from k on.

    There a cluster begins whatever the sums are.  It matters where the grid cannot tell apart two
    values that are both tiny beside the largest of their row.
    """
    heads = torch.ones_like(z, dtype=torch.bool)
    behind = z.flip(-1).cummin(-1).values.flip(-1)
    heads[..., 1:] = z.cummax(-1).values[..., :-1] < behind[..., 1:]
    return heads
