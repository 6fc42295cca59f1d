"""Patterns of equal weights."""

from collections import Counter
from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import given
from strategies import DTYPES, tensors, weights

import wsr


@given(w=tensors())
def test_values_and_labels_rebuild_the_weights(device: torch.device, w: torch.Tensor) -> None:
    pattern = wsr.Sharing.of(w.to(device))
    assert pattern.labels.dtype == pattern.counts.dtype == torch.int64
    assert pattern.labels.shape == w.shape
    assert torch.equal(pattern.values[pattern.labels].cpu(), w)
    assert pattern.values.tolist() == sorted(set(w.tolist()))
    counts = Counter(w.tolist())
    assert pattern.counts.tolist() == [counts[value] for value in pattern.values.tolist()]
    assert len(pattern) == len(counts)


@pytest.mark.parametrize("dim", [0, 1, (1,)])
def test_groups_have_labels_of_their_own(device: torch.device, dim: int | tuple[int, ...]) -> None:
    w = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]], device=device)
    pattern = wsr.Sharing.of(w, dim=dim)
    assert torch.equal(pattern.values[pattern.labels], w)
    if dim == 0:
        assert pattern.values.tolist() == [1, 3, 1, 1, 2]
        assert pattern.labels.tolist() == [[1, 2, 3], [0, 2, 4]]
        assert pattern.counts.tolist() == [1, 1, 2, 1, 1]
    else:
        assert pattern.values.tolist() == [1, 3, 1, 2]
        assert pattern.labels.tolist() == [[1, 0, 0], [2, 2, 3]]
        assert pattern.counts.tolist() == [2, 1, 2, 1]


def test_both_zeros_are_equal() -> None:
    assert len(wsr.Sharing.of(torch.tensor([0.0, -0.0]))) == 1


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    pattern = wsr.Sharing.of(torch.ones(shape))
    assert pattern.labels.shape == shape
    assert len(pattern) == len(pattern.counts) == min(1, torch.ones(shape).numel())
    assert pattern.average(torch.ones(shape)).shape == shape


@given(w=weights(), values=weights(min_size=24))
def test_average_is_the_exact_mean_of_each_cluster(
    device: torch.device, w: list[float], values: list[float]
) -> None:
    pattern = wsr.Sharing.of(torch.tensor(w, dtype=torch.float64, device=device))
    values = values[: len(w)]
    result = pattern.average(torch.tensor(values, dtype=torch.float64, device=device)).tolist()
    for k, value in enumerate(result):
        members = [values[i] for i in range(len(w)) if w[i] == w[k]]
        exact = sum(map(Fraction, members)) / len(members)
        largest = max(map(abs, members))
        assert abs(Fraction(value) - exact) <= 4 * oracles.ulp(largest, torch.float64)
        assert value == result[w.index(w[k])]


def test_average_of_equal_values_is_that_value() -> None:
    pattern = wsr.Sharing.of(torch.zeros(7))
    for value in (0.1, 1e-320, 1.7e308, -1.7e308):
        w = torch.full((7,), value, dtype=torch.float64)
        assert torch.equal(pattern.average(w), w)


def test_average_reaches_from_end_to_end_of_the_floats() -> None:
    largest = torch.finfo(torch.float64).max
    pattern = wsr.Sharing.of(torch.zeros(4))
    w = torch.tensor([-largest, largest, largest, largest], dtype=torch.float64)
    assert pattern.average(w).tolist() == pytest.approx([largest / 2] * 4, rel=1e-15)


def test_each_cluster_is_averaged_at_its_own_scale() -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]))
    w = torch.tensor([1e-200, 1e200, 3e-200, 3e200, 5e200], dtype=torch.float64)
    expected = torch.tensor([2e-200, 3e200, 2e-200, 3e200, 3e200], dtype=torch.float64)
    torch.testing.assert_close(pattern.average(w), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_keeps_shape_dtype_and_order(device: torch.device, dtype: torch.dtype) -> None:
    pattern = wsr.Sharing.of(torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device).T)
    w = torch.tensor([[1.0, 2.0], [4.0, 3.0]], dtype=dtype, device=device)
    result = pattern.average(w)
    assert result.dtype == dtype
    assert result.tolist() == [[2, 3], [3, 2]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_average_passes_on_what_is_not_finite(bad: float) -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    result = pattern.average(torch.tensor([1.0, bad, 3.0, 2.0]))
    assert result[[0, 2]].tolist() == [2, 2]
    assert result[[1, 3]].isnan().all()


def test_average_is_its_own_gradient() -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pattern.average, (w,))
    assert torch.autograd.gradgradcheck(pattern.average, (w,))
