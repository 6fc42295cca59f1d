"""The penalty against its definition, and its subgradient."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, tensors, weights

import wsr
from wsr.regularizer import gauge


@given(w=weights(min_size=0))
def test_the_sum_over_pairs(device: torch.device, w: list[float]) -> None:
    result = wsr.penalty(torch.tensor(w, dtype=torch.float64, device=device))
    assert result.ndim == 0
    scale = max(map(abs, w), default=0.0) * len(w)
    assert math.isclose(result.item(), oracles.penalty(w), rel_tol=1e-14, abs_tol=1e-15 * scale)


@given(w=tensors())
def test_sums_in_float64_and_returns_the_dtype_of_w(device: torch.device, w: torch.Tensor) -> None:
    result = wsr.penalty(w.to(device))
    assert result.dtype == w.dtype
    assert result.cpu() == wsr.penalty(w.double()).to(w.dtype)


def test_large_tensors_lose_nothing(device: torch.device) -> None:
    # A float32 sum of ranks times weights around 1000 would be off in the fourth digit.
    d = 100_001
    w = torch.arange(d, dtype=torch.float32, device=device) / 2**7 + 1000
    pairs_over_d_minus_1 = (d + 1) * d / 6 / 2**7
    assert wsr.penalty(w).item() == pytest.approx(pairs_over_d_minus_1, rel=1e-7)


@pytest.mark.parametrize(
    ("dim", "shape"),
    [(0, (4, 5)), (1, (3, 5)), (-1, (3, 4)), ((0, 2), (4,)), ((2, 0), (4,)), (None, ())],
)
def test_dim_groups(
    device: torch.device, dim: int | tuple[int, ...] | None, shape: tuple[int, ...]
) -> None:
    w = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double().to(device)
    result = wsr.penalty(w, dim=dim)
    assert result.shape == shape
    inside = (0, 1, 2) if dim is None else dim if isinstance(dim, tuple) else (dim % 3,)
    outside = [k for k in range(3) if k not in inside]
    rows = w.permute(*outside, *inside).reshape(result.numel(), -1)
    expected = torch.tensor([float(oracles.penalty(row.tolist())) for row in rows]).double()
    torch.testing.assert_close(result.flatten().cpu(), expected)


def test_fewer_than_two_weights() -> None:
    assert wsr.penalty(torch.zeros(0)) == 0
    assert wsr.penalty(torch.tensor(3.0)) == 0
    assert wsr.penalty(torch.tensor([[3.0], [4.0]]), dim=1).tolist() == [0, 0]
    assert wsr.penalty(torch.zeros(2, 0), dim=1).tolist() == [0, 0]


@given(w=weights())
def test_the_subgradient_gives_tied_weights_their_mean_rank(
    device: torch.device, w: list[float]
) -> None:
    leaf = torch.tensor(w, dtype=torch.float64, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(wsr.penalty(leaf), leaf)
    expected = [sum((a > b) - (a < b) for b in w) / max(len(w) - 1, 1) for a in w]
    torch.testing.assert_close(grad.cpu(), torch.tensor(expected, dtype=torch.float64))


def test_gradcheck(device: torch.device) -> None:
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double().to(device)
    w.requires_grad_()
    assert torch.autograd.gradcheck(wsr.penalty, (w,))
    assert torch.autograd.gradcheck(lambda w: wsr.penalty(w, dim=0), (w,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_dtype_of_w(device: torch.device, dtype: torch.dtype) -> None:
    w = torch.tensor([1.0, 2.0, 4.0], dtype=dtype, device=device, requires_grad=True)
    wsr.penalty(w).backward()
    assert w.grad is not None
    assert w.grad.tolist() == [-1, 0, 1]


def test_what_is_not_finite_is_passed_on() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not wsr.penalty(torch.tensor([1.0, bad, 2.0])).isfinite()
        assert gauge(torch.tensor([[1.0, bad], [1.0, 2.0]])).isnan().tolist() == [True, False]


@given(units=st.lists(st.integers(-4, 4), min_size=2, max_size=8))
def test_differences_are_not_lost_beside_the_weights(units: list[int]) -> None:
    w = [1e8 + k * 2.0**-26 for k in units]
    result = wsr.penalty(torch.tensor(w, dtype=torch.float64)).item()
    assert math.isclose(result, oracles.penalty(w), rel_tol=1e-14)


def test_gauge_of_small_shapes() -> None:
    assert gauge(torch.zeros(0)).item() == 0
    assert gauge(torch.zeros(2, 0)).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"^s must have at least one dimension"):
        gauge(torch.tensor(1.0))


@given(w=weights(min_size=2))
def test_the_gauge_is_the_strength_that_ties_all(device: torch.device, w: list[float]) -> None:
    x = torch.tensor(w, dtype=torch.float64, device=device)
    threshold = gauge(x).item()
    if threshold > 1e-6 * max(map(abs, w)):
        assert len(wsr.Sharing.of(wsr.prox(x, threshold * (1 + 1e-6)))) == 1
        assert len(wsr.Sharing.of(wsr.prox(x, threshold * (1 - 1e-6)))) > 1
    torch.testing.assert_close(gauge(x - x.mean()).item(), threshold, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("s", "lambd", "l1", "expected"),
    [
        ([-1.0, 0.0, 1.0], 1.0, 0.0, 1.0),
        ([-1.0, 0.0, 1.0], 2.0, 0.0, 0.5),
        ([-1.0, 0.0, 1.0], 1.0, 1.0, 0.5),
        ([0.0, 0.0, 3.0], 1.0, 1.0, 1.5),  # one entry: 3 / (1 + 1)
        ([0.0, 0.0, -3.0], 1.0, 1.0, 1.5),
        ([2.0, 2.0, 2.0], 1.0, 1.0, 2.0),  # all entries: 6 / (0 + 3)
        ([1.0, 2.0, 3.0], 1.0, 0.0, 1.0),  # the mean does not count
        ([0.0, 0.0, 1.0], 0.0, 0.0, math.inf),
        ([0.0, 0.0, 0.0], 0.0, 0.0, 0.0),
        ([5.0], 1.0, 2.0, 2.5),
        ([-3.0, 3.0], 1.0, 0.0, 3.0),
        ([-3.0, 3.0], 1.0, 2.0, 1.0),
    ],
)
def test_gauge(s: list[float], lambd: float, l1: float, expected: float) -> None:
    assert gauge(torch.tensor(s), lambd, l1=l1).item() == expected
    rows = torch.tensor([s, [0.0] * len(s)])
    assert gauge(rows, torch.tensor(lambd), l1=torch.tensor(l1)).tolist() == [expected, 0]
