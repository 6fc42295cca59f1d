"""The rounds of ImminentCollisions: one by one, counted fast, and at most and at least so many."""

import importlib
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import end_points

from wsr.collisions.imminent import merging_rounds
from wsr.particles import free_end_points

BOOK = Path(__file__).resolve().parents[1] / "book"

TIED = st.lists(st.integers(-2, 2).map(float), max_size=40)


@pytest.fixture(scope="module")
def rounds() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BOOK)
        yield importlib.import_module("experiments.rounds")


def exact_rounds(z: list[float]) -> list[list[int]]:
    """Return where the clusters begin at first and after each round, in rational arithmetic."""
    begins = [list(range(len(z)))]
    while True:
        begin = begins[-1]
        means = [sum(map(Fraction, z[a:b])) / (b - a) for a, b in pairwise([*begin, len(z)])]
        left = [k for n, k in enumerate(begin) if n == 0 or means[n - 1] < means[n]]
        if left == begin:
            return begins
        begins.append(left)


def on_grid(z: list[float]) -> list[float]:
    """Round to the grid of exact sums, as the rounds do: 2^-62 of the largest."""
    unit = math.ldexp(1.0, math.frexp(max(map(abs, z), default=0.0))[1] - 62)
    return [float(round(Fraction(value) / Fraction(unit)) * Fraction(unit)) for value in z]


@given(z=st.one_of(end_points(), TIED))
def test_rounds_are_those_of_exact_arithmetic(z: list[float]) -> None:
    z = on_grid(z)
    found = [begin.tolist() for begin in merging_rounds(torch.tensor(z, dtype=torch.float64))]
    assert found == exact_rounds(z)


def test_rows_take_their_rounds_side_by_side() -> None:
    z = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = [exact_rounds(row.tolist()) for row in z]
    together = [begin.tolist() for begin in merging_rounds(z)]
    assert len(together) == max(map(len, alone)) > min(map(len, alone))
    for n, begin in enumerate(together):
        rows = [begins[min(n, len(begins) - 1)] for begins in alone]
        assert begin == [50 * row + k for row in range(3) for k in rows[row]]


def assert_counts_the_algorithm(rounds: ModuleType, z: torch.Tensor) -> None:
    passes = list(merging_rounds(z))
    ends = torch.cat([passes[-1], torch.tensor([len(z)])])
    assert rounds.count_end_points(z) == (
        len(passes) - 1,
        sum(len(begin) for begin in passes),
        len(passes[-1]),
        max(ends.diff().tolist(), default=0),
    )


@given(z=st.one_of(end_points(), TIED))
def test_the_fast_count_is_that_of_the_algorithm(rounds: ModuleType, z: list[float]) -> None:
    assert_counts_the_algorithm(rounds, torch.tensor(z, dtype=torch.float64))


@given(
    seed=st.integers(0, 2**32 - 1),
    pull=st.sampled_from([0.01, 0.5, 1.25, 2.0, 5.0]),
    tied=st.sampled_from([0.0, 0.5]),
)
def test_the_fast_count_on_long_rows(
    rounds: ModuleType, seed: int, pull: float, tied: float
) -> None:
    w = rounds.normal(50 + seed % 250, seed, tied)
    assert_counts_the_algorithm(rounds, free_end_points(w.sort().values, pull))
    assert rounds.count(w, pull) == rounds.count(w.flip(0).view(1, -1), pull)


@given(k=st.integers(-1, 1), digit=st.sampled_from([31, 62]))
def test_the_fast_count_on_the_last_digits(rounds: ModuleType, k: int, digit: int) -> None:
    # The mean of the first two is that of the third, but for k units of one of the limbs.
    z = [2.0**-20, 0.0, 2.0**-21 + k * 2.0**-digit, 0.75]
    assert_counts_the_algorithm(rounds, torch.tensor(z, dtype=torch.float64))


@pytest.mark.parametrize("d", [2, 3, 10, 65, 1000, 100_000])
def test_the_staircase_takes_the_most_rounds_that_there_are(rounds: ModuleType, d: int) -> None:
    w = rounds.staircase(d, 1.0)
    assert len(w) == d
    count = rounds.count(w, 1.0)
    assert count == (d - 1, d * (d + 1) // 2, 1, d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [6, 10, 66, 1000, 100_000])
def test_the_cascade_takes_half_of_them(rounds: ModuleType, d: int, dtype: torch.dtype) -> None:
    w = rounds.cascade(d, 1.0).to(dtype)
    assert len(w) == d
    assert rounds.count(w, 1.0)[::2] == (d // 2 + 1, 1)


@given(z=st.one_of(end_points(), TIED), share=st.floats(0, 1))
def test_one_cluster_of_a_tail_is_swallowed_a_round(
    rounds: ModuleType, z: list[float], share: float
) -> None:
    """Resolve the particles from some rank on by themselves: the bound of the chapter."""
    z, first = on_grid(z), round(share * len(z))
    heads, alone = oracles.heads(z), oracles.heads(z[first:])
    end = next((k for k in range(first, len(z)) if heads[k]), len(z))
    swallowed = sum(alone[: end - first])
    taken = rounds.count_end_points(torch.tensor(z, dtype=torch.float64))
    assert swallowed <= taken.rounds or first == 0
    assert taken.rounds <= max(taken.largest - 1, 0)


def test_zeros_are_as_many_as_asked_for(rounds: ModuleType) -> None:
    w = rounds.normal(1000, 3, 0.25)
    assert (w == 0).sum() == 250
    assert torch.equal(w[250:], rounds.normal(1000, 3)[250:])


def test_noise_and_prox(rounds: ModuleType) -> None:
    counts = list(rounds.noisy_steps(500, 6, seed=0, noise=1e-3, strength=0.0))
    assert [count.clusters for count in counts] == [500] * 6
    (count, *_) = rounds.noisy_steps(500, 1, seed=0, noise=1e-3, strength=10.0)
    assert count.clusters == 1


def test_training_counts_what_the_prox_gets(rounds: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    data = rounds.Images("noise", torch.rand(40, 16, generator=generator), torch.arange(40) % 10)
    options = {"hidden": 8, "steps": 5, "batch": 10, "lr": 0.1, "seed": 0}
    taken = {lambd: list(rounds.training(data, **options, lambd=lambd)) for lambd in (1e-9, 1e3)}
    # Next to no strength: as many values as weights.  Far too much: one value after every step.
    assert [count.clusters for count, _ in taken[1e-9]] == [128] * 5
    assert [count.clusters for count, _ in taken[1e3]] == [1] * 5
    assert taken[1e-9][0][1] == taken[1e3][0][1] > 0  # the first loss is that of the same network


def test_the_experiment_writes_its_record(
    rounds: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rounds.Images("noise", torch.rand(20, 16), torch.arange(20) % 10)
    monkeypatch.setattr(rounds, "images", lambda: data)
    rounds.main(["--quick", "--results", str(tmp_path)])
    record = rounds.records.load("rounds", tmp_path)
    assert record["command"] == "python -m experiments.rounds --quick"
    assert [row["input"] for row in record["rows"]] == (
        ["normal"] * 5 + ["staircase"] * 2 + ["cascade"] * 2 + ["atom", "noise", "training"]
    )
    for row in record["rows"]:
        if row["input"] == "normal":
            assert len(row["rounds"]) == len(rounds.NORMAL)
            assert row["clusters"][0] > row["clusters"][-1]
    again = tmp_path / "again"
    rounds.main(["--quick", "--results", str(again)])
    assert rounds.records.load("rounds", again)["rows"] == record["rows"]
