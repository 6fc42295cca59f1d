"""The comparison with exact arithmetic: is its oracle right, and does it notice errors?"""

import importlib
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, STRENGTHS, tensors, weights

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture(scope="module")
def accuracy():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BOOK)
        yield importlib.import_module("experiments.accuracy")


def assert_solved(accuracy, x, lambd):
    """Assert that the oracle agrees with rational pooling: clusters, and values to 70 bits."""
    exact = accuracy.exact_prox(np.array(x), lambd)
    d = len(x)
    z = [Fraction(a) + Fraction(lambd) * (d - 1 - 2 * k) / max(d - 1, 1) for k, a in enumerate(x)]
    begins = [k for k, head in enumerate(oracles.heads(z)) if head]
    assert exact.sizes.tolist() == np.diff([*begins, d]).tolist()
    truth = oracles.prox(x, lambd)
    for k, high, low in zip(begins, exact.high.tolist(), exact.low.tolist(), strict=True):
        value = (Fraction(high) + Fraction(low)) * Fraction(2) ** exact.exponent
        assert abs(value - truth[k]) <= abs(truth[k]) / 2**70


@given(w=weights(), lambd=STRENGTHS)
def test_the_oracle_is_exact(accuracy, w, lambd):
    assert_solved(accuracy, sorted(w), lambd)


@given(w=tensors(), lambd=STRENGTHS, decades=st.integers(-12, 12))
def test_the_oracle_is_exact_on_all_scales(accuracy, w, lambd, decades):
    assert_solved(accuracy, w.double().sort().values.tolist(), lambd * 10.0**decades)


@pytest.mark.parametrize("lambd", [1e-3, 0.03, 1.0])
def test_the_oracle_is_exact_in_long_sums(accuracy, lambd):
    w, _ = accuracy.draw("gaussian", 3000, torch.float32)
    assert_solved(accuracy, w.double().sort().values.tolist(), lambd)
    largest = torch.finfo(torch.float64).max
    w, lambd = accuracy.draw("near_largest", 500, torch.float64)
    assert w.abs().max() > largest / 2
    assert_solved(accuracy, w.sort().values.tolist(), lambd)


def test_the_oracle_refuses_what_it_cannot_do(accuracy):
    with pytest.raises(ValueError, match="binary places"):
        accuracy.exact_prox(np.array([1e-200, 1e200]), 0.1)


@pytest.fixture(params=DTYPES, ids=str)
def problem(request, accuracy):
    """Return an input with clusters and single weights."""
    return accuracy.Problem.solve(*accuracy.draw("half_shared", 200, request.param))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers_do_not_overflow(accuracy, dtype):
    problem = accuracy.Problem.solve(*accuracy.draw("near_largest", 200, dtype))
    assert problem.rounded.abs().max() > torch.finfo(dtype).max / 4
    found = problem.compare(best(problem))
    assert found["bound"] <= 0.5
    assert found["distinct"] > 10


def best(problem):
    """Return the exact solution, rounded to the dtype, in the order of the weights."""
    sizes = torch.from_numpy(problem.exact.sizes)
    values = problem.rounded.repeat_interleave(sizes)
    return torch.empty_like(problem.w).index_copy(0, problem.order, values)


def test_what_is_correctly_rounded_has_no_fault(problem):
    found = problem.compare(best(problem))
    assert 0.25 < found["value_ulp"] <= 0.5
    assert found["bound"] <= 0.5
    assert found["distinct"] == len(problem.rounded.unique())
    faults = ("misrounded", "split", "joined", "disordered")
    assert [found[fault] for fault in faults] == [0, 0, 0, 0]


def test_errors_are_counted_in_ulp(problem):
    u = best(problem)
    k = problem.order[-1]  # a cluster of its own: the largest
    exact = problem.exact
    truth = (Fraction(exact.high[-1]) + Fraction(exact.low[-1])) * Fraction(2) ** exact.exponent
    for _ in range(3):
        u[k] = torch.nextafter(u[k], u.new_tensor(math.inf))
    error = abs(Fraction(u[k].item()) - truth)
    found = problem.compare(u)
    ulp, of_largest = (
        oracles.ulp(value, u.dtype) for value in (truth, problem.w.abs().max().item())
    )
    assert found["error"] == pytest.approx(float(error))
    assert found["value_ulp"] == pytest.approx(float(error) / ulp)
    assert found["largest_ulp"] == pytest.approx(float(error) / of_largest * 1024)
    assert found["bound"] == pytest.approx(float(error) / (ulp + of_largest / 1024))
    assert found["misrounded"] == 1


def test_wrong_clusters_are_noticed(problem):
    u, order = best(problem), problem.order
    middle = int(problem.exact.sizes.argmax())
    begin = int(problem.exact.sizes[:middle].sum())
    split = u.clone()
    split[order[begin]] = torch.nextafter(u[order[begin]], u.new_tensor(-math.inf))
    assert problem.compare(split)["split"] == 1
    joined = u.clone()
    joined[order[-1]] = u[order[-2]]
    assert problem.compare(joined)["joined"] == 1
    swapped = u.clone()
    swapped[order[-2:]] = u[order[-2:].flip(0)]
    assert problem.compare(swapped)["disordered"] == 1
    assert problem.compare(torch.full_like(u, math.nan)) == {"finite": False}


def test_prefix_sums_are_right_where_nothing_is_rounded(accuracy):
    # Small whole numbers, in another order than sorted; lambd * (d + 1 - 2 k) / (d - 1) is whole.
    w = torch.tensor([7.0, -3.0, 4.0, 4.0, 12.0])
    exact = [float(value) for value in oracles.prox(w.tolist(), 4.0)]
    for dtype in (torch.float32, torch.float64):
        assert accuracy.by_prefix_sums(w, 4.0, dtype).tolist() == exact


def test_inputs_are_what_they_are_called(accuracy):
    for dtype in DTYPES:
        for name in accuracy.INPUTS:
            w, lambd = accuracy.draw(name, 1000, dtype)
            assert w.dtype == dtype
            assert w.shape == (1000,)
            assert w.isfinite().all()
            assert torch.equal(w, accuracy.draw(name, 1000, dtype)[0])
            assert lambd > 0
    sizes = {
        name: accuracy.Problem.solve(*accuracy.draw(name, 1000, torch.float32)).exact.sizes
        for name in accuracy.INPUTS
    }
    for name in ("one_cluster", "cascade", "all_equal", "all_zero"):
        assert sizes[name].tolist() == [1000]
    assert 300 < sizes["half_shared"].max() < 700
    assert 100 < len(accuracy.draw("ties", 100_000, torch.float32)[0].unique()) <= 256
    assert not accuracy.draw("all_zero", 1000, torch.float32)[0].any()
    rising = accuracy.draw("sorted", 1000, torch.float32)[0].diff()
    falling = accuracy.draw("reversed", 1000, torch.float32)[0].diff()
    assert rising.min() >= 0 >= falling.max()
    with pytest.raises(ValueError, match="gaussian"):
        accuracy.draw("unknown", 10, torch.float32)


def test_a_small_run(accuracy, tmp_path):
    accuracy.main(["--quick", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "accuracy.json").read_text())["rows"]
    ours = [row for row in rows if row["method"] not in accuracy.PREFIX_SUMS]
    names = {"auto", *accuracy.wsr.ALGORITHMS}
    found = {(row["dtype"], row["input"], row["method"]) for row in ours}
    assert found == {(t, i, m) for t in accuracy.DTYPES for i in accuracy.INPUTS for m in names}
    for row in ours:
        assert row["split"] == row["joined"] == row["disordered"] == 0
        if row["dtype"] != "float64":
            assert row["bound"] <= 1
        if row["input"] in ("all_equal", "all_zero"):
            assert row["error"] == 0
    naive = [row for row in rows if row["method"] == "float32 prefix sums"]
    assert max(row.get("bound", 0) for row in naive) > 100  # or the comparison sees nothing
