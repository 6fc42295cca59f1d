"""Bad input gets an error that names the argument and what arrived."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import wsr
from wsr.arguments import Groups
from wsr.regularizer import gauge

W = torch.ones(2, 3)
TAKE_WEIGHTS: dict[str, tuple[str, Callable[..., object]]] = {
    "penalty": ("w", wsr.penalty),
    "prox": ("w", lambda w: wsr.prox(w, 0.1)),
    "duality_gap w": ("w", lambda w: wsr.duality_gap(W, w, 0.1)),
    "duality_gap u": ("u", lambda u: wsr.duality_gap(u, W, 0.1)),
    "simulate": ("w", lambda w: wsr.simulate(w, 0.1)),
    "Sharing.of": ("w", wsr.Sharing.of),
    "Sharing.average": ("w", wsr.Sharing.of(W).average),
    "gauge": ("s", gauge),
}
TAKE_LAMBD: dict[str, Callable[..., object]] = {
    "prox": lambda lambd: wsr.prox(W, lambd),
    "duality_gap": lambda lambd: wsr.duality_gap(W, W, lambd),
    "simulate": lambda lambd: wsr.simulate(W[0], lambd),
    "gauge": lambda lambd: gauge(W, lambd),
}
TAKE_L1: dict[str, Callable[..., object]] = {
    "prox": lambda l1: wsr.prox(W, 0.1, l1=l1),
    "duality_gap": lambda l1: wsr.duality_gap(W, W, 0.1, l1=l1),
    "gauge": lambda l1: gauge(W, 0.1, l1=l1),
}
TAKE_DIM: dict[str, Callable[..., object]] = {
    "penalty": lambda dim: wsr.penalty(W, dim=dim),
    "prox": lambda dim: wsr.prox(W, 0.1, dim=dim),
    "duality_gap": lambda dim: wsr.duality_gap(W, W, 0.1, dim=dim),
    "Sharing.of": lambda dim: wsr.Sharing.of(W, dim=dim),
}


def table(functions: dict[str, object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", functions.values(), ids=functions)


@table(TAKE_WEIGHTS)
@pytest.mark.parametrize(
    ("bad", "arrived"),
    [
        (torch.ones(2, 3, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 3, dtype=torch.bool), "torch.bool"),
        (torch.ones(2, 3, dtype=torch.complex64), "torch.complex64"),
        ([1.0, 2.0], "list"),
        (np.ones(3), "ndarray"),
        (1.0, "float"),
        (None, "NoneType"),
    ],
)
def test_weights(call: tuple[str, Callable[..., object]], bad: object, arrived: str) -> None:
    name, function = call
    with pytest.raises(TypeError, match=rf"^{name} must .*got {re.escape(arrived)}$") as caught:
        function(bad)
    if isinstance(bad, Tensor):
        known = "torch.float16, torch.bfloat16, torch.float32, torch.float64"
        assert f"one of the dtypes {known};" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "function"),
    [("lambd", function) for function in TAKE_LAMBD.values()]
    + [("l1", function) for function in TAKE_L1.values()],
)
@pytest.mark.parametrize(
    ("bad", "error", "arrived"),
    [
        (-0.1, ValueError, "-0.1"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
        (-math.inf, ValueError, "-inf"),
        (10**400, ValueError, "1000"),
        (torch.tensor(-0.5), ValueError, "-0.5"),
        (torch.tensor(math.nan), ValueError, "nan"),
        (torch.tensor(math.inf), ValueError, "inf"),
        (torch.ones(1), ValueError, "(1,)"),
        (torch.ones(2, 2), ValueError, "(2, 2)"),
        (torch.tensor(1), TypeError, "torch.int64"),
        ("1", TypeError, "'1'"),
        (None, TypeError, "None"),
        (True, TypeError, "True"),
        (1j, TypeError, "1j"),
    ],
)
def test_strengths(
    name: str,
    function: Callable[..., object],
    bad: object,
    error: type[Exception],
    arrived: str,
) -> None:
    with pytest.raises(error, match=rf"^{name} must .*; got .*{re.escape(arrived)}"):
        function(bad)


@pytest.mark.parametrize("good", [0, 1, 0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor(0.0)])
def test_numbers_of_all_kinds_are_strengths(good: float | Tensor) -> None:
    for function in (*TAKE_LAMBD.values(), *TAKE_L1.values()):
        function(good)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-0.1, ValueError),
        (1.0001, ValueError),
        (math.nan, ValueError),
        ("0", TypeError),
        (None, TypeError),
        (False, TypeError),
        (torch.tensor(0.5), TypeError),
    ],
)
def test_rho(bad: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^rho must .*; got {re.escape(str(bad).strip())}|'0'"):
        wsr.prox(W, 0.1, rho=bad)


@table(TAKE_DIM)
@pytest.mark.parametrize("bad", [2, -3, (0, 2), (0, 0), (0, -2), (), "0", 1.0, True, [0], (None,)])
def test_dim(call: Callable[..., object], bad: object) -> None:
    with pytest.raises(ValueError, match=rf"^dim must .*; got {re.escape(repr(bad))}$") as caught:
        call(bad)
    message = str(caught.value)
    assert "in [-2, 1] for weights of 2 dimensions" in message or "each one once" in message


def test_dim_of_a_single_weight() -> None:
    with pytest.raises(ValueError, match="dim must"):
        wsr.prox(torch.tensor(1.0), 0.1, dim=0)


def test_numpy_integers_are_dims() -> None:
    assert torch.equal(wsr.penalty(W, dim=np.int64(1)), wsr.penalty(W, dim=1))


@pytest.mark.parametrize("bad", ["pava", "", None, "Auto", ["bridges"]])
def test_an_unknown_algorithm_lists_the_known_ones(bad: object) -> None:
    expected = rf"^algorithm must be one of .*; got {re.escape(repr(bad))}$"
    with pytest.raises(ValueError, match=expected) as caught:
        wsr.prox(W, 0.1, algorithm=bad)
    known = ", ".join(repr(name) for name in ("auto", *wsr.ALGORITHMS))
    assert f"one of {known};" in str(caught.value)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"^u must have the shape of w, \(2, 3\); got \(3, 2\)$"):
        wsr.duality_gap(W.T, W, 0.1)
    with pytest.raises(ValueError, match=r"^w must have the shape \(2, 3\); got \(3, 2\)$"):
        wsr.Sharing.of(W).average(W.T)
    with pytest.raises(ValueError, match=r"^w must be one-dimensional; got shape \(2, 3\)$"):
        wsr.simulate(W, 0.1)


def test_only_finite_weights_move() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^w must be finite; got a NaN or an infinity$"):
            wsr.simulate(torch.tensor([0.0, bad]), 0.1)


def test_groups_past_the_reach_of_int32_are_refused() -> None:
    assert Groups(torch.Size([2**31 - 1]), None).size == 2**31 - 1
    # Expanded, so that it takes no memory.
    w = torch.zeros(1, dtype=torch.float16).expand(2**31)
    for function in (wsr.penalty, wsr.Sharing.of, lambda w: wsr.prox(w, 0.1)):
        with pytest.raises(
            ValueError, match=r"^a group holds at most 2147483647 weights; got 2147483648$"
        ):
            function(w)
