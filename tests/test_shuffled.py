"""Shuffled pixels: sums without an order, coupled runs, the record."""

import importlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture(scope="module")
def shuffled() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BOOK)
        yield importlib.import_module("experiments.shuffled")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_digits(shuffled: ModuleType) -> Any:
    """Three classes of noisy pictures of 5 x 5 pixels, each moved around a torus."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(90, 5, 5, generator=generator)
    y = torch.arange(90) % 3
    for n in range(90):
        x[n, : y[n] + 1, :2] += 1
        x[n] = x[n].roll((n % 5, n % 4), (0, 1))
    part = shuffled.Examples(x.flatten(1), y)
    return shuffled.Split(*(part.take(slice(k, k + 30)) for k in (0, 30, 60)))


@pytest.mark.parametrize("bits", [10, 33])
def test_the_grid(shuffled: ModuleType, bits: int) -> None:
    values = randn(50) * torch.logspace(-9, 3, 50)
    rounded = shuffled.on_grid(values, bits)
    exponent = math.frexp(values.abs().max().item())[1]
    for value, found in zip(values.tolist(), rounded.tolist(), strict=True):
        units = Fraction(found) / Fraction(2) ** (exponent - bits)
        assert units.denominator == 1
        assert abs(units) <= 2**bits
        assert abs(Fraction(found) - Fraction(value)) <= Fraction(2) ** (exponent - bits - 1)
    assert torch.equal(shuffled.on_grid(torch.zeros(3), bits), torch.zeros(3).double())


@pytest.mark.parametrize("terms", [3, 196, 1024])
def test_sums_are_exact(shuffled: ModuleType, terms: int) -> None:
    """As good as in rational arithmetic: forward over the inputs, backward over the batch."""
    layer = shuffled.ExactLinear(terms, 2)
    with torch.no_grad():
        layer.weight.copy_(randn(2, terms) * torch.logspace(-6, 0, terms))
        layer.bias.zero_()
    x, slope = randn(terms, terms, seed=1), randn(terms, 2, seed=2)
    y = layer(x)
    torch.autograd.backward(y, slope)

    def rational(a: Tensor, b: Tensor) -> Fraction:
        return sum(
            (Fraction(p) * Fraction(q) for p, q in zip(a.tolist(), b.tolist(), strict=True)),
            Fraction(),
        )

    x, weight = shuffled.on_grid(x, 10), shuffled.on_grid(layer.weight.detach(), 33)
    slopes = shuffled.on_grid(slope, 33)
    assert y[0, 1].item() == torch.tensor(float(rational(x[0], weight[1]))).item()
    gradient = layer.weight.grad[1, 2].item()
    assert gradient == torch.tensor(float(rational(slopes[:, 1], x[:, 2]))).item()


def test_the_exact_layer_is_nearly_the_ordinary_one(shuffled: ModuleType) -> None:
    torch.manual_seed(0)
    exact = shuffled.ExactLinear(40, 7)
    ordinary = torch.nn.Linear(40, 7)
    ordinary.load_state_dict(exact.state_dict())
    x = shuffled.on_grid(torch.rand(30, 40), 10).float()
    for layer in (exact, ordinary):
        layer(x).square().sum().backward()
    torch.testing.assert_close(exact(x), ordinary(x))
    torch.testing.assert_close(exact.weight.grad, ordinary.weight.grad)
    torch.testing.assert_close(exact.bias.grad, ordinary.bias.grad)


def test_the_exact_layer_says_what_it_cannot_do(shuffled: ModuleType) -> None:
    with pytest.raises(ValueError, match="1024 columns; got 1025"):
        shuffled.ExactLinear(1025, 1)(torch.ones(2, 1025))
    layer = shuffled.ExactLinear(2, 1)
    with pytest.raises(ValueError, match="1024 rows; got 1025"):
        layer(torch.ones(1025, 2)).sum().backward()
    with pytest.raises(ValueError, match="must not need a gradient"):
        layer(torch.ones(1, 2, requires_grad=True))


def test_coupled_runs_share_alike(shuffled: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    how = shuffled.Regularization("prox", 3.0, l1=0.3, rho=0.95)
    monkeypatch.setitem(shuffled.COUPLED, "strong", how)
    row = coupled(shuffled, "strong", exact=True)
    assert row["differing"] == [0, 0, 0, 0]
    assert row["others"] == row["flipped"] == 0
    assert 10 < row["first"]["distinct"] < row["first"]["weights"] // 2
    assert row["first"]["zeros"] > 10


def coupled(shuffled: ModuleType, method: str, exact: bool, order: Tensor | None = None) -> Any:
    net = shuffled.network("FC", 5, (3, 4), seed=0)
    return shuffled.coupled_runs(
        shuffled.with_exact_sums(net) if exact else net,
        some_digits(shuffled),
        shuffled.permutation(25, 0) if order is None else order,
        shuffled.COUPLED[method],
        shuffled.Schedule(60, batch=10),
        seed=0,
        every=20,
    )


@pytest.mark.parametrize("method", ["plain", "l1", "beta-lasso", "prox", "prox, rho, l1"])
def test_coupled_runs_are_equal_bit_for_bit(shuffled: ModuleType, method: str) -> None:
    row = coupled(shuffled, method, exact=True)
    assert row["differing"] == [0, 0, 0, 0]
    assert row["others"] == row["flipped"] == 0
    assert row["accuracy"][0] == row["accuracy"][1] > 0.4
    assert row["moved"] > 0.01


def test_ordinary_sums_depend_on_the_order(shuffled: ModuleType) -> None:
    row = coupled(shuffled, "plain", exact=False)
    assert row["differing"][0] == 0 < row["differing"][-1]
    assert row["others"] > 0
    assert 0 < row["distance"][-1] < 0.1 * row["moved"]


def test_the_comparison_sees_another_start(
    shuffled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffled, "with_permuted_columns", lambda net, order: net)
    row = coupled(shuffled, "plain", exact=True)
    assert row["differing"][0] > 0
    assert row["differing"][-1] > 0


def test_all_bits_count(shuffled: ModuleType) -> None:
    a = torch.tensor([0.0, 1.0, 2.0])
    assert shuffled.differing(a, a.clone()) == 0
    assert shuffled.differing(a, torch.tensor([-0.0, 1.0, math.nextafter(2.0, 3.0)])) == 1
    assert shuffled.differing(a, a.nextafter(torch.ones(3) * 9)) == 3


def test_images_as_a_network_sees_them(shuffled: ModuleType) -> None:
    data = some_digits(shuffled)
    assert shuffled.seen_as("plain", data, 1) is data
    same = shuffled.seen_as("shuffled", data, 1)
    q = shuffled.rotation(25, 1)
    torch.testing.assert_close(q @ q.T, torch.eye(25))
    turned = shuffled.seen_as("rotated", data, 1)
    for part, moved, other in zip(data, same, turned, strict=True):
        assert torch.equal(part.y, moved.y)
        assert not torch.equal(part.x, moved.x)
        assert torch.equal(part.x.sort(-1).values, moved.x.sort(-1).values)
        assert torch.equal(moved.x, part.x[:, shuffled.permutation(25, 1)])
        torch.testing.assert_close(other.x, part.x @ q)
    assert not torch.equal(shuffled.permutation(25, 1), shuffled.permutation(25, 2))
    with pytest.raises(ValueError, match="got 'scrambled'"):
        shuffled.seen_as("scrambled", data, 1)


def test_the_exchange_test(shuffled: ModuleType) -> None:
    assert shuffled.exchange_test([1, 2, 3], [11, 12, 13]) == pytest.approx(2 / 20)
    assert shuffled.exchange_test([1, 2, 3], [1, 2, 3]) == 1.0
    # Of the 6 splits of 0, 1, 2, 10 only {0, 1} {2, 10} and its mirror are as far apart.
    assert shuffled.exchange_test([0, 1], [2, 10]) == pytest.approx(2 / 6)
    assert shuffled.exchange_test([0.1, 0.3], [0.2]) == 1.0


def test_the_experiment_writes_its_record(
    shuffled: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffled, "digits", lambda *_: ("noise", some_digits(shuffled)))
    shuffled.main(["--quick", "--results", str(tmp_path)])
    record = shuffled.records.load("shuffled", tmp_path)
    assert record["command"] == "python -m experiments.shuffled --quick"
    assert record["settings"]["examples"] == {"train": 30, "valid": 30, "test": 30}
    panels: dict[str, list[Any]] = {}
    for row in record["rows"]:
        panels.setdefault(row["panel"], []).append(row)
    tried: dict[tuple[str, str], dict[tuple[float, float], float]] = {}
    for row in panels["choice"]:
        of_this = tried.setdefault((row["method"], row["kind"]), {})
        of_this[row["lr"], row["lambd"]] = row["valid"]
    seeds = [(row["method"], row["kind"], row["seed"]) for row in panels["accuracy"]]
    assert len(seeds) == len(set(seeds)) == 3 * (2 + 2) + 2
    for row in panels["accuracy"]:
        assert 0 <= row["test"] <= 1
        assert (row["lambd"] > 0) == (row["method"] == "FC + WSR")
        chosen_on = row["kind"] if row["method"] == "CNN" else "plain"
        of_this = tried[row["method"], chosen_on]
        best = shuffled.chosen(record["rows"], row["method"], row["kind"])
        assert best == {"lr": row["lr"], "lambd": row["lambd"]}
        assert of_this[row["lr"], row["lambd"]] == max(of_this.values())
    exact = [row for row in panels["coupled"] if row["sums"] == "exact"]
    assert {row["method"] for row in exact} == set(shuffled.COUPLED)
    for row in exact:
        if row["method"] != "subgradient":  # it breaks ties by position
            assert not any(row["differing"])
            assert row["others"] == row["flipped"] == 0
    again = tmp_path / "again"
    shuffled.main(["--quick", "--results", str(again)])
    assert shuffled.records.load("shuffled", again)["rows"] == record["rows"]
