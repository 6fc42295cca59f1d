"""The certificate: never below the true distance from the optimum, and near zero at the prox."""

from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import given
from strategies import STRENGTHS, THRESHOLDS, weights

import wsr

PERTURBATIONS = [0.0, 1e-6, 1e-3, 0.1, 10.0]


@pytest.mark.parametrize("size", PERTURBATIONS)
@given(w=weights(max_size=10), lambd=STRENGTHS, l1=THRESHOLDS)
def test_bounds_the_suboptimality(
    device: torch.device, size: float, w: list[float], lambd: float, l1: float
) -> None:
    exact = oracles.prox(w, lambd, l1)
    noise = torch.randn(len(w), generator=torch.Generator().manual_seed(0)).double() * size
    u = torch.tensor([float(value) for value in exact], dtype=torch.float64) + noise
    gap = wsr.duality_gap(
        u.to(device), torch.tensor(w, dtype=torch.float64, device=device), lambd, l1=l1
    )
    assert gap.dtype == torch.float64
    best = oracles.objective(exact, w, lambd, l1)
    excess = float(oracles.objective(fractions(u), w, lambd, l1) - best)
    largest = max(map(abs, w)) + size
    rounding = 2e-15 * len(w) * largest * (largest + lambd + l1)
    assert gap.item() >= excess - rounding
    assert gap.item() >= noise.square().sum().item() / 2 - rounding


def fractions(u: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in u.tolist()]


@given(w=weights(), lambd=STRENGTHS, l1=THRESHOLDS)
def test_vanishes_at_the_prox(
    device: torch.device, w: list[float], lambd: float, l1: float
) -> None:
    x = torch.tensor(w, dtype=torch.float64, device=device)
    gap = wsr.duality_gap(wsr.prox(x, lambd, l1=l1), x, lambd, l1=l1).item()
    largest = max(map(abs, w))
    assert 0 <= gap <= len(w) * (1e-14 * (lambd + l1 + largest)) ** 2


def test_judges_a_million_weights(device: torch.device) -> None:
    w = torch.randn(10**6, generator=torch.Generator().manual_seed(0)).double().to(device)
    u = wsr.prox(w, 0.5, l1=0.1)
    assert wsr.duality_gap(u, w, 0.5, l1=0.1).item() < 1e-22
    u[0] += 1e-2
    assert wsr.duality_gap(u, w, 0.5, l1=0.1).item() > 0.5e-4


@pytest.mark.parametrize("dim", [None, 0, 1, (0, 1), -1])
def test_one_bound_a_group(device: torch.device, dim: int | tuple[int, ...] | None) -> None:
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double().to(device)
    u = w.round(decimals=1)
    gap = wsr.duality_gap(u, w, 0.3, l1=0.2, dim=dim)
    assert gap.shape == wsr.penalty(w, dim=dim).shape
    groups = {None: [w], (0, 1): [w], 0: w.T, 1: w, -1: w}[dim]
    expected = [wsr.duality_gap(g.round(decimals=1), g, 0.3, l1=0.2).item() for g in groups]
    torch.testing.assert_close(gap.flatten().tolist(), expected)


def test_one_bound_a_group_where_ties_are_broken(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 20, dtype=torch.float64, generator=generator) * torch.tensor([[1], [3], [9]])
    noise = 1e-6 * torch.randn(3, 20, dtype=torch.float64, generator=generator)
    w, u = w.to(device), (wsr.prox(w, 1.0, l1=0.3, dim=1) + noise).to(device)
    together = wsr.duality_gap(u, w, 1.0, l1=0.3, dim=1).tolist()
    each = [wsr.duality_gap(a, b, 1.0, l1=0.3).item() for a, b in zip(u, w, strict=True)]
    assert together == pytest.approx(each, rel=1e-6, abs=0)
    assert max(together) < 1e-3


def test_exact_values() -> None:
    assert wsr.duality_gap(torch.full((2,), 2.0), torch.tensor([0.0, 4.0]), 1.0).item() == 1
    w = torch.tensor([0.0, 1.0, 3.0])
    assert wsr.duality_gap(w, w, 0.5).item() == 0.25  # 0.5 * 3, against 0.5^2 + 0.5 * 2 at best
    # Neither a tie nor an order of its own: the dual point is w - u = (-1, 0, 1) itself.
    assert wsr.duality_gap(torch.ones(3), torch.tensor([0.0, 1.0, 2.0]), 1.0).item() == 0
    assert wsr.duality_gap(torch.ones(3), torch.tensor([0.0, 1.0, 2.0]), 0.5).item() == 0.25
    assert wsr.duality_gap(torch.zeros(3), w, 0.0).item() == 5.0
    assert wsr.duality_gap(torch.zeros(3), w, 0.0, l1=0.0).item() == 5.0
    assert wsr.duality_gap(torch.zeros(3), w, torch.tensor(0.0), l1=torch.tensor(1.0)) == 2.0
    assert wsr.duality_gap(torch.zeros(0), torch.zeros(0), 1.0).item() == 0
    assert wsr.duality_gap(torch.ones(1), torch.ones(1), 1.0).item() == 0
    assert wsr.duality_gap(torch.zeros(0, 2), torch.zeros(0, 2), 1.0, dim=0).tolist() == [0, 0]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_dual_point_at_u(sign: int) -> None:
    # Tied at the right end, far from their prox; by hand: centre 1, deviations (-5, -5, 5), which
    # are clamped to (-2, -2, 2), shifted to zero sum and scaled by 3/4 to (-1, -1, 2).
    u = torch.tensor([-10.0, 1.0, 1.0, 1.0])
    w = u + torch.tensor([-3.0, -4.0, -4.0, 6.0])
    assert wsr.duality_gap(sign * u, sign * w, 3.0).item() == pytest.approx((16 + 16 + 9) / 2)
    # At zero, with room for l1 = 1: clamped to (-3, -3, 3), not shifted, scaled by 2/3.
    u = torch.tensor([-10.0, 0.0, 0.0, 0.0])
    w = u + torch.tensor([-4.0, -4.0, -4.0, 6.0])
    assert wsr.duality_gap(sign * u, sign * w, 3.0, l1=1.0).item() == pytest.approx(27 / 2)


def test_the_dual_point_near_w_minus_u() -> None:
    # Ties that are broken by a little, as a solver leaves them, cost a little.
    w = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    u = torch.tensor([1 - 1e-9, 1.0, 1 + 1e-9], dtype=torch.float64)
    assert 0 < wsr.duality_gap(u, w, 2.0).item() < 1e-8


def test_an_overflow_is_no_bound_but_still_true() -> None:
    w = torch.tensor([1e308, 1e308, 0.0], dtype=torch.float64)
    assert wsr.duality_gap(w, w, 0.0).item() == torch.inf


def test_takes_low_precision_at_its_value() -> None:
    w = torch.tensor([0.0, 1.0, 3.0], dtype=torch.bfloat16)
    u = wsr.prox(w, 0.25)
    expected = wsr.duality_gap(u.double(), w.double(), 0.25)
    assert wsr.duality_gap(u, w, 0.25) == expected


def test_a_nan_is_passed_on() -> None:
    w = torch.tensor([[0.0, torch.nan], [0.0, 4.0], [torch.inf, 1.0]])
    gap = wsr.duality_gap(torch.zeros(3, 2), w, 1.0, dim=1)
    assert gap.isnan().tolist() == [True, False, True]
    assert gap[1] == wsr.duality_gap(torch.zeros(2), w[1], 1.0)
    assert wsr.duality_gap(w, torch.zeros(3, 2), 1.0).isnan()
