"""Sums, means and comparisons against rational arithmetic on the same grid."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import end_points, weights

from wsr.exact_sums import ExactSums, Mean, separated, times_power_of_two


def on_grid(values: list[float], scale: float | None = None) -> list[int]:
    """Return the values in units of 2^-62 times the power of two above the largest."""
    exponent = math.frexp(scale or max(map(abs, values), default=0.0))[1]
    units = []
    for value in values:
        scaled = Fraction(value) * Fraction(2) ** (31 - exponent)
        high = round(scaled)
        units.append(high * 2**31 + round((scaled - high) * 2**31))
    return units


def as_fraction(mean: Mean) -> list[Fraction]:
    parts = [part.flatten().tolist() for part in mean]
    assert all(0 <= remainder < size for _, remainder, size in zip(*parts, strict=True))
    return [
        whole + Fraction(remainder, size) for whole, remainder, size in zip(*parts, strict=True)
    ]


def all_ranges(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(begin, end) for begin in range(d) for end in range(begin + 1, d + 1)]
    begin, end = torch.tensor(pairs).T
    return begin, end


@given(values=weights(max_size=12))
def test_means_are_exact(values: list[float]) -> None:
    units = on_grid(values)
    begin, end = all_ranges(len(values))
    mean = ExactSums(torch.tensor(values, dtype=torch.float64)).mean(begin, end)
    expected = [
        Fraction(sum(units[i:j]), j - i) for i, j in zip(begin.tolist(), end.tolist(), strict=True)
    ]
    assert as_fraction(mean) == expected


@given(values=weights(max_size=8))
def test_comparisons_are_exact(values: list[float]) -> None:
    begin, end = all_ranges(len(values))
    mean = ExactSums(torch.tensor(values, dtype=torch.float64)).mean(begin, end)
    exact = as_fraction(mean)
    left = Mean(*(part.unsqueeze(1) for part in mean))
    right = Mean(*(part.unsqueeze(0) for part in mean))
    assert left.at_least(right).tolist() == [[a >= b for b in exact] for a in exact]
    lowest = min(exact)
    last = max(k for k, value in enumerate(exact) if value == lowest)
    assert mean.last_minimum().item() == last


def test_fractions_that_float64_cannot_tell_apart() -> None:
    a, b = 2**30 + 1, 2**30 - 1
    assert (a - 2) / a == (b - 2) / b
    whole = torch.zeros(4, dtype=torch.int64)
    mean = Mean(whole, torch.tensor([a, a, b, a]) - 2, torch.tensor([a, a, b, a]))
    assert mean.last_minimum().item() == 2
    assert mean.at_least(Mean(*(part[2] for part in mean))).tolist() == [True] * 4
    assert Mean(*(part[2] for part in mean)).at_least(mean).tolist() == [False, False, True, False]


@given(values=weights(min_size=2, max_size=12), data=st.data())
def test_weighing_against_two_means_is_exact(values: list[float], data: st.DataObject) -> None:
    units = on_grid(values)
    d = len(values)
    middle = data.draw(st.integers(1, d - 1))
    begin = data.draw(st.integers(0, middle - 1))
    end = data.draw(st.integers(middle + 1, d))
    spans = st.tuples(st.integers(0, d - 1), st.integers(1, d)).filter(lambda s: s[0] < s[1])
    # The ranges' own means make both sides equal, which random spans never do.
    (i, j), (k, n) = data.draw(
        st.one_of(st.just(((begin, middle), (middle, end))), st.tuples(spans, spans))
    )
    a, b = Fraction(sum(units[i:j]), j - i), Fraction(sum(units[k:n]), n - k)
    expected = sum(units[begin:end]) <= (middle - begin) * a + (end - middle) * b
    sums = ExactSums(torch.tensor(values, dtype=torch.float64))
    i, j, k, n, begin, middle, end = (torch.tensor([at]) for at in (i, j, k, n, begin, middle, end))
    assert sums.at_most(begin, middle, end, sums.mean(i, j), sums.mean(k, n)).item() == expected


@st.composite
def means(draw: st.DrawFn) -> tuple[int, int, int]:
    """Return a small mean as whole, remainder and size."""
    size = draw(st.integers(1, 6))
    return draw(st.integers(-3, 3)), draw(st.integers(0, size - 1)), size


@settings(max_examples=300)
@example(left=[1], right=[0], a=(0, 1, 2), b=(0, 1, 2))  # two halves make one whole
@example(left=[1], right=[0], a=(0, 1, 3), b=(0, 1, 2))
@given(
    left=st.lists(st.integers(-4, 4), min_size=1, max_size=4),
    right=st.lists(st.integers(-4, 4), min_size=1, max_size=4),
    a=means(),
    b=means(),
)
def test_weighing_at_the_bottom_of_the_grid(
    left: list[int], right: list[int], a: tuple[int, int, int], b: tuple[int, int, int]
) -> None:
    # The last value fixes the grid, of which the others are a few units each.
    units = [k * 2.0**-62 for k in left + right]
    sums = ExactSums(torch.tensor([*units, 0.75], dtype=torch.float64))
    at = [torch.tensor([k]) for k in (0, len(left), len(left) + len(right))]
    mean_a, mean_b = (Mean(*(torch.tensor([part]) for part in mean)) for mean in (a, b))
    offer = len(left) * (a[0] + Fraction(a[1], a[2])) + len(right) * (b[0] + Fraction(b[1], b[2]))
    assert sums.at_most(*at, mean_a, mean_b).item() == (sum(left) + sum(right) <= offer)


def test_means_between_two_points_of_the_grid() -> None:
    unit = 2.0**-62
    sums = ExactSums(torch.tensor([unit, 2 * unit, 2 * unit, 0.75], dtype=torch.float64))
    begin, end = torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3])
    expected = [1.5 * unit, 5 / 3 * unit, 2 * unit]
    assert sums.float_mean(begin, end).tolist() == pytest.approx(expected, rel=4e-16, abs=0)
    assert sums.float_total(begin, end).tolist() == [3 * unit, 5 * unit, 4 * unit]


@pytest.mark.parametrize("lift", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3), (5, 7)])
def test_weighing_notices_one_unit_of_the_grid(n: int, m: int, lift: int) -> None:
    # Means with fractions on both sides, against a sum that is a unit or two off their total.
    unit = 2.0**-62
    left = [0.25] * (n - 1) + [0.25 + unit]
    right = [0.75] * (m - 1) + [0.75 + unit]
    anchor = [0.0] * (n + m - 1) + [lift * unit, 0.999]  # the last value fixes the grid
    values = torch.tensor(left + right + anchor, dtype=torch.float64)
    sums = ExactSums(values)
    at = torch.tensor
    a, b = sums.mean(at([0]), at([n])), sums.mean(at([n]), at([n + m]))
    whole = sums.at_most(at([0]), at([n]), at([n + m]), a, b)
    assert whole.item()
    sums.low[n + m :] += lift
    assert sums.at_most(at([0]), at([n]), at([n + m]), a, b).item() == (lift <= 0)


def test_limbs_do_not_overflow_in_the_longest_sums_that_fit_into_memory() -> None:
    d = 2**20
    for value in (1.0, -1.0, 1 - 2.0**-53):
        sums = ExactSums(torch.full((d,), value, dtype=torch.float64))
        mean = sums.float_mean(torch.tensor([0]), torch.tensor([d]))
        assert mean.item() == value


@pytest.mark.parametrize("size", [2**31 - 1, 2**30 + 1])
@pytest.mark.parametrize("value", [2**31, -(2**31), 2**31 - 1, 12345])
def test_limbs_do_not_overflow_in_the_largest_group(size: int, value: int) -> None:
    # The prefix sums of a group of `size` equal values, without making them.
    sums = ExactSums(torch.zeros(1, dtype=torch.float64))
    for low in (2**30, -(2**30)):
        sums.high = torch.tensor([0, value * size])
        sums.low = torch.tensor([0, low * size])
        ends = torch.tensor([0]), torch.tensor([1])
        sums.total = lambda *_, s=sums: (s.high[1:], s.low[1:])
        mean = sums.mean(ends[0], torch.tensor([size]))
        assert as_fraction(mean) == [value * 2**31 + low]
        middle = torch.tensor([size // 2])
        assert sums.at_most(ends[0], middle, torch.tensor([size]), mean, mean).item()
        below = mean._replace(whole=mean.whole - 1)
        assert not sums.at_most(ends[0], middle, torch.tensor([size]), below, mean).item()


@given(values=weights(), scale=st.integers(-1060, 990))
def test_the_grid_follows_the_scale(values: list[float], scale: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    begin, end = all_ranges(len(values))
    mean = ExactSums(x).float_mean(begin, end)
    scaled = ExactSums(times_power_of_two(x, torch.tensor(scale))).float_mean(begin, end)
    expected = times_power_of_two(mean, torch.tensor(scale))
    torch.testing.assert_close(scaled, expected, rtol=1e-15, atol=2.0**-1072)


@pytest.mark.parametrize("exponent", [-2044, -1200, -1074, -1, 0, 1, 1023, 2044])
def test_powers_of_two(exponent: int) -> None:
    value = math.ldexp(1.0, -exponent // 2)
    result = times_power_of_two(
        torch.tensor([value, 0.0], dtype=torch.float64), torch.tensor([exponent])
    )
    assert result.tolist() == [math.ldexp(value, exponent), 0.0]


def test_a_scale_for_each_value() -> None:
    values = torch.tensor([1e-200, 3e-200, 1e200, 3e200], dtype=torch.float64)
    scale = torch.tensor([3e-200, 3e-200, 3e200, 3e200], dtype=torch.float64)
    begin = torch.tensor([0, 0, 2, 2])
    mean = ExactSums(values, scale).float_mean(begin, begin + 2)
    torch.testing.assert_close(
        mean, torch.tensor([2e-200] * 2 + [2e200] * 2, dtype=torch.float64), rtol=1e-15, atol=0
    )


@given(z=end_points())
def test_separated_is_where_all_before_is_less_than_all_behind(z: list[float]) -> None:
    expected = [k == 0 or max(z[:k]) < min(z[k:]) for k in range(len(z))]
    assert separated(torch.tensor(z, dtype=torch.float64)).tolist() == expected
