"""Linear regression with shared coefficients: the solvers, the measures, and a small run."""

import importlib
import math
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import wsr


@pytest.fixture(autouse=True)
def _on_path(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "book")


@pytest.fixture
def regression():
    return importlib.import_module("experiments.linear_regression")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def drawn(regression):
    """Return two data sets of 30 examples whose 12 coefficients are 3 copies of 4."""
    given = {"d": 12, "copies": 3, "seeds": 2}
    problem, w = regression.draw({"layout": "rows", "values": [-1.0, 0.0, 2.0]}, 30, 0.0, given)
    return SimpleNamespace(problem=problem, w=w)


@pytest.fixture(params=["flat", "rows", "l1", "both"])
def penalty(request, regression):
    Penalty = regression.Penalty
    return {
        "flat": Penalty(),
        "rows": Penalty(copies=3),
        "l1": Penalty(lambd=0.0, l1=1.0),
        "both": Penalty(lambd=1.0, l1=0.5, copies=3),
    }[request.param]


def pairs_of(penalty, d):
    """Return all pairs of weights that the penalty compares, and the divisor of its sum."""
    if penalty.copies is None:
        return [(i, j) for i in range(d) for j in range(i)], d - 1
    stride = d // penalty.copies
    pairs = [(i, j) for i in range(d) for j in range(i) if (i - j) % stride == 0]
    return pairs, penalty.copies - 1


def cvxpy_penalty(u, penalty, d):
    pairs, divisor = pairs_of(penalty, d)
    shared = sum(cp.abs(u[i] - u[j]) for i, j in pairs) / divisor
    return penalty.lambd * shared + penalty.l1 * cp.norm1(u)


def test_penalty_compares_the_pairs_of_each_group(penalty):
    w = normal(2, 12)
    pairs, divisor = pairs_of(penalty, 12)
    shared = sum((w[:, i] - w[:, j]).abs() for i, j in pairs) / divisor
    expected = penalty.lambd * shared + penalty.l1 * w.abs().sum(-1)
    torch.testing.assert_close(penalty(w), expected)


def test_prox_of_each_strength(penalty):
    w, strength = normal(2, 12), torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    moved = penalty.prox(w, strength)
    for x, s, found in zip(w, strength, moved, strict=True):
        u = cp.Variable(12)
        objective = cp.sum_squares(u - x.numpy()) / 2 + s.item() * cvxpy_penalty(u, penalty, 12)
        cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(found.numpy(), u.value, atol=1e-4)


def test_solution_is_that_of_a_general_solver(regression, drawn, penalty):
    lambd = 0.2
    found, gap = regression.solve(drawn.problem, lambd, penalty)
    assert (gap <= 1e-10).all()
    objective = drawn.problem.loss(found) + lambd * penalty(found)
    for k in range(2):
        X, y = drawn.problem.X[k].numpy(), drawn.problem.y[k].numpy()
        u = cp.Variable(12)
        whole = cp.sum_squares(y - X @ u) / 60 + lambd * cvxpy_penalty(u, penalty, 12)
        least = cp.Problem(cp.Minimize(whole)).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
        )
        assert abs(objective[k] - least) < 1e-8 * least
        np.testing.assert_allclose(found[k].numpy(), u.value, atol=1e-4)


def test_gap_bounds_the_excess(regression, drawn, penalty):
    lambd = 0.2
    solution, _ = regression.solve(drawn.problem, lambd, penalty, tolerance=1e-13)

    def objective(w):
        return drawn.problem.loss(w) + lambd * penalty(w)

    for size in (1e-4, 1e-2, 1.0):
        candidate = solution + size * normal(2, 12, seed=3)
        excess = objective(candidate) - objective(solution)
        assert (regression.duality_gap(drawn.problem, candidate, lambd, penalty) >= excess).all()


def test_gap_vanishes_at_the_solution_alone(regression, drawn, penalty):
    solution, _ = regression.solve(drawn.problem, 0.2, penalty, tolerance=1e-13)
    assert (regression.duality_gap(drawn.problem, solution, 0.2, penalty) < 1e-10).all()
    assert (regression.duality_gap(drawn.problem, solution + 0.01, 0.2, penalty) > 1e-5).all()


def test_path_gives_each_strength_its_solution(regression, drawn):
    strengths = [0.3, 0.1, 1.0]
    together, gaps = regression.path(drawn.problem, strengths, regression.FLAT)
    assert together.shape == (2, 3, 12)
    assert gaps.shape == (2, 3)
    assert (gaps <= 1e-10).all()
    for k, lambd in enumerate(strengths):
        alone, _ = regression.solve(drawn.problem, lambd, regression.FLAT)
        torch.testing.assert_close(together[:, k], alone, atol=1e-4, rtol=0)


def test_relaxed_end_point_is_stationary_for_the_weaker_pull(regression, drawn):
    lambd, rho = 0.5, 0.8
    start, _ = regression.solve(drawn.problem, lambd, regression.FLAT)
    w, settled = regression.settle(
        drawn.problem, lambd, regression.FLAT, rho, start, most=5000, tolerance=1e-12
    )
    assert settled.all()
    for k in range(2):
        pattern = wsr.Sharing.of(w[k])
        assert 1 < len(pattern) < 12
        gradient = drawn.problem.gram[k] @ w[k] - drawn.problem.correlation[k]
        below = pattern.counts.cumsum(0) - pattern.counts
        velocity = (12 - 2 * below - pattern.counts).double() / 11
        pull = (1 - rho) * lambd * velocity[pattern.labels]
        torch.testing.assert_close(pattern.average(gradient), pull, atol=1e-9, rtol=0)


def test_relaxed_steps_are_those_of_the_optimizer(regression, drawn):
    problem = regression.Problem(drawn.problem.X[0], drawn.problem.y[0])
    start = normal(12)
    for steps in (1, 20):
        expected, _ = regression.settle(problem, 0.5, regression.FLAT, 0.8, start, most=steps)
        u = start.clone().requires_grad_()
        group = {"params": [u], "lambd": 0.5, "rho": 0.8}
        optimizer = torch.optim.SGD([group], lr=problem.step.item())
        wsr.proximal(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            problem.loss(u).backward()
            optimizer.step()
        torch.testing.assert_close(u.detach(), expected)


def test_least_squares_on_a_pattern(regression, drawn):
    labels = torch.arange(12) % 4
    ties = labels.unsqueeze(-1) == labels
    found = regression.on_pattern(drawn.problem, ties)
    for k in range(2):
        one_hot = torch.nn.functional.one_hot(labels).double()
        values = torch.linalg.lstsq(drawn.problem.X[k] @ one_hot, drawn.problem.y[k].unsqueeze(-1))
        torch.testing.assert_close(found[k], values.solution.squeeze(-1)[labels])
        assert len(found[k].unique()) == 4


def test_without_ties_and_examples_enough_the_shortest_solution(regression, drawn):
    few = drawn.problem.take(torch.arange(7))
    found = regression.on_pattern(few, torch.eye(12).bool())
    shortest = torch.linalg.pinv(few.X) @ few.y.unsqueeze(-1)
    torch.testing.assert_close(found, shortest.squeeze(-1))


def test_rand_index(regression):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(4, (2, 20, 15), generator=generator)
    other[0], one[1], other[1] = one[0], 0, torch.arange(15)  # the same; one value, no ties
    one[2], other[2] = torch.arange(15), torch.arange(15)
    ties = [labels.unsqueeze(-1) == labels.unsqueeze(-2) for labels in (one, other)]
    expected = [adjusted_rand_score(b, a) for a, b in zip(one, other, strict=True)]
    found = regression.rand_index(*ties)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found[0] == found[2] == 1


def test_ties_stay_within_groups(regression):
    w = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0, 3.0])
    assert regression.FLAT.ties(w).sum() == 4 * 4 + 2
    rows = regression.Penalty(copies=2).ties(w)  # coefficients at 0 and 3, 1 and 4, 2 and 5
    assert rows.sum() == 2 * 2 + 2 * 2 + 2
    assert rows[0, 3]
    assert not rows[0, 1]


def test_drawn_examples_have_their_covariance(regression):
    given = {"d": 3, "copies": 1, "seeds": 2}
    problem, w = regression.draw({"layout": "distinct"}, 40_000, 0.6, given)
    expected = torch.tensor([[1, 0.6, 0.36], [0.6, 1, 0.6], [0.36, 0.6, 1]]).double()
    torch.testing.assert_close(problem.gram, expected.expand(2, 3, 3), atol=0.03, rtol=0)
    noise = problem.residual(w)
    assert (noise.std(-1) - 1).abs().max() < 0.02
    assert not torch.equal(w[0], w[1])


def test_drawn_coefficients_have_their_layout(regression):
    generator = torch.Generator().manual_seed(0)
    scattered = {"layout": "scattered", "values": [0.0, 0.5, 2.0], "sizes": [6, 4, 2]}
    w = regression.draw_truth(scattered, 12, 3, generator)
    assert wsr.Sharing.of(w).counts.tolist() == [6, 4, 2]
    assert not torch.equal(w, w.sort().values)
    rows = {"layout": "rows", "values": [-1.0, 1.0]}
    w = regression.draw_truth(rows, 12, 3, generator).view(3, 4)
    assert torch.equal(w[0], w[1])
    assert torch.equal(w[0], w[2])
    assert set(w.flatten().tolist()) == {-1.0, 1.0}


def test_measures(regression):
    w = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double()
    shrunk = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.1, 1.0, 1.0]]]).double()
    fit = regression.Fit(shrunk, regression.FLAT, {})
    found = regression.measure(fit, w, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found["risk"], torch.tensor([[0.25, 0.01]]).double())
    torch.testing.assert_close(found["distinct"], torch.tensor([[2.0, 3.0]]).double())
    torch.testing.assert_close(found["exact"], torch.tensor([[1.0, 0.0]]).double())
    torch.testing.assert_close(found["slope"], torch.tensor([[0.5, 0.95]]).double())


def test_validation_error_is_that_of_examples_left_out(regression):
    given = {"d": 6, "copies": 2, "seeds": 2, "folds": 4, "loose": 1e-8, "rhos": [0.5]}
    problem, w = regression.draw({"layout": "distinct"}, 40, 0.0, given)
    errors = regression.validation_error(problem, regression.FLAT.ties(w), given, [0.1, 1.0])
    X, y = problem.X[1].numpy(), problem.y[1].numpy()
    squares = []
    for held_out in np.arange(40).reshape(4, 10):
        used = np.setdiff1d(np.arange(40), held_out)
        u = np.linalg.lstsq(X[used], y[used], rcond=None)[0]
        squares.append((y[held_out] - X[held_out] @ u) ** 2)
    assert errors["none"].shape == (2, 1)
    assert math.isclose(errors["none"][1].item(), np.mean(squares), rel_tol=1e-8)
    assert errors["flat, relaxed"].shape == errors["l1"].shape == (2, 2)


def test_a_small_run_records_every_method(regression, tmp_path, capsys):
    regression.main(["--quick", "--results", str(tmp_path)])
    records = importlib.import_module("experiments.records")
    record = records.load("linear_regression", tmp_path)
    settings, rows = record["settings"], record["rows"]
    methods = {row["method"] for row in rows}
    assert len(rows) == len(methods) * len(settings["jobs"])
    assert {"none", "ridge", "l1", "flat", "rows", "oracle", "tied copies"} < methods
    for row in rows:
        assert len(row["risk"]) == len(row["chosen"]) == settings["seeds"]
        assert len(row["by_candidate"]["risk"]) == len(row["by_candidate"]["validation"])
        assert row.get("gap", 0.0) <= settings["tight"]
        for risk, least in zip(row["risk"], row["least_risk"], strict=True):
            assert least <= risk

    def found(truth, method, name):
        return sum(
            sum(row[name])
            for row in rows
            if (row["truth"], row["method"], row["n"]) == (truth, method, 40)
        )

    assert found("rows", "rows", "risk") < found("rows", "none", "risk")
    assert found("rows", "oracle", "exact") == settings["seeds"]
    assert "linear_regression.json" in capsys.readouterr().out
