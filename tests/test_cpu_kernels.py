"""The fused path on a CPU: the values of the composed one, whichever way they are found."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, FRACTIONS, STRENGTHS, THRESHOLDS, tensors, weights
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import wsr
from wsr.kernels import cpu, cpu_loops, path_for

WAYS = ("sorted", "counted")
each_way = pytest.mark.parametrize("way", WAYS)
INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def force(patch: pytest.MonkeyPatch, way: str) -> None:
    """Take one of the two ways whatever the size and the sample say."""
    patch.setattr(cpu, "COUNTED_FROM", 1 if way == "counted" else math.inf)
    patch.setattr(cpu, "SAMPLED_FROM", 1 if way == "counted" else math.inf)
    patch.setattr(cpu, "_much_is_shared", lambda w, lambd: True)


def fused(way: str, w: Tensor, lambd: float, l1: float = 0.0, rho: float = 0.0) -> Tensor:
    """Return the result of one way, or of the composed path where that way gives up."""
    with pytest.MonkeyPatch.context() as patch:
        force(patch, way)
        return wsr.prox(w, lambd, l1=l1, rho=rho, dim=-1)


def composed(w: Tensor, lambd: float, l1: float = 0.0, rho: float = 0.0) -> Tensor:
    return wsr.prox(w, lambd, l1=l1, rho=rho, algorithm="pool_adjacent_violators")


def bits(values: Tensor) -> Tensor:
    return values.view(INT[values.element_size()])


def randn(d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, dtype=torch.float64, generator=generator).to(dtype)


# The values


@each_way
@settings(max_examples=300)
@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS)
def test_accurate_against_exact_arithmetic(way: str, w: Tensor, lambd: float, l1: float) -> None:
    exact = oracles.prox(w.tolist(), lambd, l1)
    oracles.assert_accurate(fused(way, w, lambd, l1), exact, w.tolist(), lambd)


@settings(max_examples=300)
@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS, rho=FRACTIONS)
def test_sorting_gives_the_bits_of_the_composed_path(
    w: Tensor, lambd: float, l1: float, rho: float
) -> None:
    assert torch.equal(bits(fused("sorted", w, lambd, l1, rho)), bits(composed(w, lambd, l1, rho)))


@each_way
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lambd", [0.0, 1e-3, 0.3, 1.2, 1.4, 3.0, 1e3])
@pytest.mark.parametrize("kind", ["normal", "tied", "heavy tails", "half tied", "cascade"])
def test_long_rows_have_the_bits_of_the_composed_path(
    way: str, dtype: torch.dtype, lambd: float, kind: str
) -> None:
    d = 3001
    w = {
        "normal": lambda: randn(d),
        "tied": lambda: (8 * randn(d)).round() / 8,
        "heavy tails": lambda: randn(d) ** 3,
        "half tied": lambda: randn(d) * (randn(d, seed=1) > 0),
        "cascade": lambda: (
            2.5 * lambd / (d - 1) * torch.arange(d).sub(d // 2).clamp(min=0).double()
        ),
    }[kind]().to(dtype)
    u, expected = fused(way, w, lambd, 0.01, 0.3), composed(w, lambd, 0.01, 0.3)
    if dtype == torch.float64 and way == "counted":  # other sums, so other roundings
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-15 * max(8.0, lambd))
    else:
        assert torch.equal(bits(u), bits(expected))


@given(w=st.lists(weights(max_size=6), min_size=2, max_size=4), lambd=STRENGTHS)
def test_rows_do_not_touch_each_other(w: list[list[float]], lambd: float) -> None:
    d = max(map(len, w))
    rows = torch.tensor([row + [1e30] * (d - len(row)) for row in w], dtype=torch.float64)
    apart = torch.stack([wsr.prox(row, lambd) for row in rows])
    assert torch.equal(wsr.prox(rows, lambd, dim=1), apart)


@each_way
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_become_nan(way: str, dtype: torch.dtype, bad: float) -> None:
    w = randn(40, dtype).view(2, 20)
    w[0, 7] = bad
    u = fused(way, w, 0.1)
    assert u[0].isnan().all()
    assert torch.equal(bits(u[1]), bits(composed(w[1], 0.1)))


@each_way
def test_the_two_zeros_are_one_weight(way: str) -> None:
    w = torch.tensor([0.0, -0.0, 1.0, -1.0])
    for lambd in (0.0, 1e-45, 0.1):
        u = fused(way, w, lambd)
        assert torch.equal(bits(u[:2]), torch.zeros(2, dtype=torch.int32))


@each_way
def test_weights_that_agree_in_their_leading_bits(way: str) -> None:
    few = 1 + torch.arange(5).flip(0) * 2.0**-50
    many = 1 + torch.randperm(5000, generator=torch.Generator().manual_seed(0)) * 2.0**-45
    for w in (few.double(), many.double()):
        for lambd in (0.0, 2.0**-46, 2.0**-20):
            u = fused(way, w, lambd)
            torch.testing.assert_close(u, composed(w, lambd), rtol=0, atol=2.0**-52)


def test_too_coarse_a_grid_is_noticed() -> None:
    w = torch.tensor([1e-30, 2e-30, 1e30])
    assert cpu.prox_rows(w, 1e-40, 0.0, 0.0) is None
    assert torch.equal(wsr.prox(w, 1e-40), w)  # found by the composed path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("l1", "rho"), [(0.0, 0.0), (1e-3, 0.0), (1e-3, 0.3), (1e-3, 0.9)])
def test_without_sharing_no_grid_is_needed(dtype: torch.dtype, l1: float, rho: float) -> None:
    w = torch.cat([randn(500), 1e-25 * randn(500, seed=1), torch.zeros(9), -torch.zeros(9)])
    w = w.to(dtype)
    assert cpu.prox_rows(w, 1e-30, l1, rho) is None
    moved = cpu.prox_rows(w, 0.0, l1, rho)
    assert moved is not None
    kept = torch.where(w.double().abs() < l1, 0.0, w.double() - (1 - rho) * l1 * w.double().sign())
    torch.testing.assert_close(moved, kept.to(dtype))
    if dtype == torch.float32 or l1 == 0:
        assert torch.equal(bits(moved), bits(composed(w, 0.0, l1, rho)))


@each_way
def test_the_largest_floats(way: str) -> None:
    largest = torch.finfo(torch.float64).max
    w = torch.tensor([-largest, largest, largest, 1.0], dtype=torch.float64)
    for lambd in (0.0, 1.0, largest):
        assert torch.equal(fused(way, w, lambd), composed(w, lambd))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_of_a_dtype_among_small_ones(dtype: torch.dtype) -> None:
    w = torch.full((400,), torch.finfo(dtype).max, dtype=dtype)
    w[::2] = -1
    for lambd in (1.0, torch.finfo(dtype).max):
        assert torch.equal(fused("counted", w, lambd), composed(w, lambd))


def test_weights_that_vanish_beside_the_largest_stay_apart() -> None:
    w = torch.tensor([1e-300, 2e-300, 1e308], dtype=torch.float64)
    for way in WAYS:
        assert torch.equal(fused(way, w, 0.0), w)


# The buckets


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_in_the_order_of_the_floats(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15)
    spare = torch.finfo(dtype).bits - 16
    w = (patterns << spare).to(INT[torch.finfo(dtype).bits // 8]).view(dtype)
    w = w[w.isfinite()].double().sort().values.to(dtype)
    keys = [int(cpu_loops.key_of(k, 48 - spare)) for k in cpu._bits(bits(w).numpy())]
    steps = np.diff(np.array(keys, dtype=object))
    assert all((step > 0) == (a < b) for step, a, b in zip(steps, w[:-1], w[1:], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bucket_knows_the_sum_of_its_members(dtype: torch.dtype) -> None:
    w = torch.cat([randn(500, dtype), randn(500, dtype) * 1e-3, torch.zeros(3, dtype=dtype)])
    buckets = cpu._counted(w)
    members: dict[int, list[float]] = {}
    for value, bucket in zip(w.tolist(), bucket_names(w), strict=True):
        members.setdefault(bucket, []).append(value)
    occupied = buckets.mass.nonzero()[0]
    assert {int(b): int(buckets.mass[b]) for b in occupied} == {
        b: len(values) for b, values in members.items()
    }
    for b, values in members.items():
        lows = int(buckets.high_digits[b]) * 2**cpu_loops.DIGIT + int(buckets.low_digits[b])
        total = len(values) * Fraction(buckets.edge[b]) + lows * Fraction(buckets.unit[b])
        assert total == sum(map(Fraction, values))
        assert buckets.edge[b] <= min(values)
        assert max(values) <= buckets.edge[b] + buckets.width * buckets.unit[b]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lambd", [0.3, 1.2, 1.4, 3.0])
def test_no_cluster_begins_inside_a_closed_bucket(dtype: torch.dtype, lambd: float) -> None:
    closed_somewhere = False
    for seed in range(20):
        w = randn(2000, dtype, seed) * (1 + seed % 3)
        buckets = cpu._counted(w)
        cpu_loops.open_buckets(buckets, len(w), lambd)
        moved: dict[int, set[float]] = {}
        for value, bucket in zip(composed(w, lambd).tolist(), bucket_names(w), strict=True):
            moved.setdefault(bucket, set()).add(value)
        for b in np.flatnonzero(buckets.closed & (buckets.mass > 1)):
            closed_somewhere = True
            assert len(moved[b]) == 1
    assert closed_somewhere


def bucket_names(w: Tensor) -> list[int]:
    given = cpu._as_numpy(w)
    return [int(cpu_loops.bucket_of(b, cpu._spare(given))) for b in cpu._bits(given)]


def test_most_of_a_cluster_is_never_sorted() -> None:
    w = randn(100_000, torch.float32)
    buckets = cpu._counted(w)
    cpu_loops.open_buckets(buckets, len(w), 2.0)
    assert buckets.mass[~buckets.closed].sum() < len(w) / 8


# The choice


def test_a_sample_tells_whether_much_is_shared() -> None:
    w = randn(2**17, torch.float32).numpy()
    assert not cpu._much_is_shared(w, 0.1)
    assert cpu._much_is_shared(w, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_either_side_of_the_thresholds(dtype: torch.dtype) -> None:
    for threshold in (cpu.COUNTED_FROM, cpu.SAMPLED_FROM):
        for d in (threshold - 1, threshold, threshold + 1):
            for lambd in (0.1, 2.0):
                w = randn(d, dtype)
                torch.testing.assert_close(
                    wsr.prox(w, lambd), composed(w, lambd), rtol=0, atol=4e-15
                )


def test_recorded_gradients_take_the_composed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert path_for(torch.ones(3)) is cpu.prox_rows
    assert path_for(torch.ones(3, device="meta")) is None
    taken: list[int] = []
    monkeypatch.setattr(
        "wsr.kernels.cpu.prox_rows", lambda w, *strengths: taken.append(w.numel()) or w.clone()
    )
    wsr.prox(torch.ones(3, requires_grad=True), 0.1)
    wsr.prox(torch.ones(3), torch.tensor(0.1, requires_grad=True))
    assert taken == []
    with torch.no_grad():
        wsr.prox(torch.ones(3, requires_grad=True), 0.1)
    wsr.prox(torch.ones(4), 0.1)
    assert taken == [3, 4]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # make_dual uses it itself
def test_what_must_see_the_steps_takes_the_composed_path() -> None:
    w = randn(30)
    seen: list[str] = []

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    with Listener():
        assert torch.equal(wsr.prox(w, 0.5), composed(w, 0.5))
    assert seen.count("aten.sort.default") == 2
    assert torch.equal(wsr.prox(torch._neg_view(w), 0.5), composed(-w, 0.5))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        wsr.prox(forward_ad.make_dual(w, w), 0.5)


def test_a_bad_strength_that_was_not_checked_gives_nan() -> None:
    for lambd, l1 in ((-1.0, 0.0), (math.inf, 0.0), (0.1, math.nan)):
        result = cpu.prox_rows(torch.ones(2, 3), lambd, l1, 0.0)
        assert result is not None
        assert result.isnan().all()
