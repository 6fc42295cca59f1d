"""Every algorithm against a general convex solver, to the solver's own tolerance."""

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import THRESHOLDS, values

import wsr

SMALL = st.sampled_from(["spread", "tied", "nearly tied"]).flatmap(
    lambda kind: st.lists(values(kind), min_size=1, max_size=10)
)


def pairs(d: int) -> np.ndarray:
    """Return the matrix that maps u to all u_i - u_j with i > j."""
    rows = [np.eye(d)[i] - np.eye(d)[j] for i in range(d) for j in range(i)]
    return np.array(rows).reshape(-1, d)


def solve(w: np.ndarray, lambd: float, l1: float) -> tuple[np.ndarray, float]:
    d = len(w)
    u = cvxpy.Variable(d)
    objective = cvxpy.sum_squares(u - w) / 2 + l1 * cvxpy.norm1(u)
    if d > 1:
        objective += lambd / (d - 1) * cvxpy.norm1(pairs(d) @ u)
    problem = cvxpy.Problem(cvxpy.Minimize(objective))
    value = problem.solve(solver=cvxpy.CLARABEL)
    assert problem.status == cvxpy.OPTIMAL
    return u.value, value


@pytest.mark.parametrize("algorithm", wsr.ALGORITHMS)
@settings(max_examples=20)
@given(w=SMALL, lambd=st.floats(0.0, 4.0), l1=THRESHOLDS)
def test_prox_minimizes(algorithm: str, w: list[float], lambd: float, l1: float) -> None:
    x = np.array(w)
    solution, value = solve(x, lambd, l1)
    u = wsr.prox(torch.from_numpy(x), lambd, l1=l1, algorithm=algorithm)
    scale = 1 + np.abs(x).max()
    np.testing.assert_allclose(u.numpy(), solution, atol=1e-4 * scale)
    pairwise = np.abs(pairs(len(w)) @ u.numpy()).sum() / max(len(w) - 1, 1)
    ours = np.square(u.numpy() - x).sum() / 2 + lambd * pairwise + l1 * np.abs(u.numpy()).sum()
    assert ours <= value + 1e-7 * scale**2


@settings(max_examples=20)
@given(w=SMALL)
def test_penalty(w: list[float]) -> None:
    expected = cvxpy.norm1(pairs(len(w)) @ np.array(w)).value / max(len(w) - 1, 1)
    np.testing.assert_allclose(wsr.penalty(torch.tensor(w).double()), expected, atol=1e-12)


@settings(max_examples=20)
@given(w=SMALL, lambd=st.floats(0.01, 4.0), l1=THRESHOLDS)
def test_the_duality_gap_bounds_the_solver_too(w: list[float], lambd: float, l1: float) -> None:
    x = np.array(w)
    solution, _ = solve(x, lambd, l1)
    u = wsr.prox(torch.from_numpy(x), lambd, l1=l1)
    gap = wsr.duality_gap(torch.from_numpy(solution), torch.from_numpy(x), lambd, l1=l1)
    scale = 1 + np.abs(x).max()
    assert np.square(u.numpy() - solution).sum() / 2 <= gap.item() + 1e-14 * scale**2
    assert gap.item() <= 1e-3 * scale**2


@settings(max_examples=10)
@given(rows=st.lists(st.lists(values("tied"), min_size=4, max_size=4), min_size=1, max_size=3))
def test_groups(rows: list[list[float]]) -> None:
    w = np.array(rows)
    u = wsr.prox(torch.from_numpy(w), 0.1, l1=0.05, dim=1)
    for row, result in zip(w, u, strict=True):
        np.testing.assert_allclose(result, solve(row, 0.1, 0.05)[0], atol=1e-4)
