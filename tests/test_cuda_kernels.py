"""The GPU's path: on a GPU if there is one, else interpreted on the CPU, and compiled without one.

The interpreter runs one program after another, and hides what a mask keeps out of sight.  So all
memory that the kernels are given is surrounded by a margin that must stay as it is, and filled with
values that spoil the result if they are used.
"""

import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import oracles
import pytest
import torch
from strategies import DTYPES
from torch import Tensor

import wsr

# Triton reads this when it is first imported.
if not torch.cuda.is_available() and __name__ != "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl

from wsr.kernels import cuda, cuda_grid

MARGIN = 64
POISON = {  # floats that spread, sums that are far off, indices that are wrong but within reach
    torch.float64: math.nan,
    torch.float32: math.nan,
    torch.float16: math.nan,
    torch.bfloat16: math.nan,
    torch.int64: 2**61 + 7,
    torch.int32: 2,
    torch.int16: 2,
    torch.int8: 1,
}


class Fenced:
    """Tensors within poisoned margins."""

    def __init__(self) -> None:
        self.fences: list[Tensor] = []
        self.allocate = torch.empty

    def empty(self, *shape: int | tuple[int, ...], dtype: torch.dtype, device: object) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        count = math.prod(sizes)
        buffer = self.allocate(count + 2 * MARGIN, dtype=dtype, device=device).fill_(POISON[dtype])
        self.fences += [buffer[:MARGIN], buffer[count + MARGIN :]]
        return buffer[MARGIN : count + MARGIN].view(sizes)

    def empty_like(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.empty(*like.shape, dtype=dtype or like.dtype, device=like.device)

    def copy(self, values: Tensor) -> Tensor:
        return self.empty_like(values).copy_(values)

    def check(self) -> None:
        for fence in self.fences:
            poison = torch.full_like(fence, POISON[fence.dtype])
            assert torch.equal(fence.nan_to_num(), poison.nan_to_num())


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def prox_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Return the path, with fenced memory, from the CPU and back."""
    fenced = Fenced()
    monkeypatch.setattr(torch, "empty", fenced.empty)
    monkeypatch.setattr(torch, "empty_like", fenced.empty_like)

    def run(
        rows: Tensor, lambd: float | Tensor, l1: float | Tensor = 0.0, rho: float = 0.0
    ) -> Tensor:
        given = fenced.copy(rows.to(device))
        result = cuda.prox_rows(given, lambd, l1, rho)
        fenced.check()
        assert torch.equal(given.nan_to_num().cpu(), rows.nan_to_num())
        return result.cpu()

    return run


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trees deep while rows are short."""
    for name, size in {"TILE": 4, "LEVELS": 2, "CHUNK": 4, "PROBES": 2}.items():
        monkeypatch.setattr(cuda, name, size)


def composed(
    rows: Tensor, lambd: float | Tensor, l1: float | Tensor = 0.0, rho: float = 0.0
) -> Tensor:
    algorithm = "pool_adjacent_violators"  # all give the same bits, and this one is the fastest
    return wsr.prox(rows, lambd, l1=l1, rho=rho, dim=-1, algorithm=algorithm)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def families(d: int) -> dict[str, Tensor]:
    """Return rows that are hard in different ways at lambd = 1, as float64."""
    delta = 2 / max(d - 1, 1)
    k = torch.arange(d, dtype=torch.float64)
    gaussian = randn(d)
    sizes = torch.logspace(-12, 12, d, dtype=torch.float64)
    return {
        "gaussian": gaussian,
        "one cluster": gaussian / 4,
        "nearly apart": gaussian * 16,
        "cascade": torch.where(k < d / 2, 0, 1.25 * delta * (k - d // 2)),
        "mirrored cascade": torch.where(k < d / 2, 0, -1.25 * delta * (k - d // 2)),
        "touching": delta * k,
        "ties": (3 * gaussian).round() / 3,
        "reversed": gaussian.sort(descending=True).values,
        "zeros": torch.zeros(d, dtype=torch.float64),
        "wide": sizes * gaussian.sign(),
        "widely apart": sizes * 2.0**40,
    }


def test_the_front_door_leaves_triton_alone_until_a_gpu_is_met() -> None:
    program = "import sys, wsr, torch; wsr.prox(torch.ones(3), 0.1); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "False"


# Comparisons


@triton.jit
def compare(a, b, left, right, crossed, weighed, N: tl.constexpr):
    k = tl.arange(0, N)
    a = tl.load(a + k), tl.load(a + N + k), tl.load(a + 2 * N + k), tl.load(a + 3 * N + k)
    b = tl.load(b + k), tl.load(b + N + k), tl.load(b + 2 * N + k), tl.load(b + 3 * N + k)
    left = (
        tl.load(left + k), tl.load(left + N + k), tl.load(left + 2 * N + k),
        tl.load(left + 3 * N + k),
    )  # fmt: skip
    right = (
        tl.load(right + k), tl.load(right + N + k), tl.load(right + 2 * N + k),
        tl.load(right + 3 * N + k),
    )  # fmt: skip
    tl.store(crossed + k, cuda_grid.not_less(a, b).to(tl.int8))
    balance = cuda_grid.not_positive(cuda_grid.excess_of(left, a), cuda_grid.excess_of(right, b))
    tl.store(weighed + k, balance.to(tl.int8))


def test_comparisons_are_exact_up_to_the_largest_group(device: torch.device) -> None:
    # Clusters a and b at the outer ends of two parts; sums in units of the grid, most of them a
    # unit or none away from a draw.
    draw = random.Random(0)
    limit = 2**31 - 1
    cases, expected_crossed, expected_weighed = [], [], []
    for case in range(512):
        size = limit if case % 2 else 60
        n_left = draw.choice([1, size // 2, draw.randint(1, size - 1)])
        n_right = draw.choice([1, size - n_left, draw.randint(1, size - n_left)])
        n_a, n_b = draw.choice([n_left, draw.randint(1, n_left)]), draw.randint(1, n_right)
        sum_a = draw.choice([-1, 1, draw.uniform(-1, 1)]) * (n_a << 62)
        sum_a = max(-(n_a << 62), min(int(sum_a) - draw.randint(-5, 5), n_a << 62))
        sum_b = sum_a * n_b // n_a + draw.randint(-1, 1)
        if draw.random() < 0.5:
            sum_b = int(draw.uniform(-1, 1) * (n_b << 62))
        sum_left = int(draw.uniform(-1, 1) * (n_left << 62))
        balance = n_left * Fraction(sum_a, n_a) + n_right * Fraction(sum_b, n_b)
        sum_right = math.floor(balance) - sum_left + draw.randint(-1, 1)
        if abs(sum_right) > n_right << 62:
            sum_right = draw.choice([-1, 1]) * (n_right << 62)
        cases.append([(sum_a, n_a), (sum_b, n_b), (sum_left, n_left), (sum_right, n_right)])
        expected_crossed.append(sum_a * n_b >= sum_b * n_a)
        expected_weighed.append(sum_left + sum_right <= balance)
    assert 100 < sum(expected_crossed) < 412
    assert 100 < sum(expected_weighed) < 412
    mask = 2**31 - 1
    limbs = [
        torch.tensor(
            [[total >> 62, total >> 31 & mask, total & mask, mass] for total, mass in column]
        ).T.contiguous()
        for column in zip(*cases, strict=True)
    ]
    crossed, weighed = (torch.zeros(512, dtype=torch.int8, device=device) for _ in range(2))
    compare[1,](*(part.to(device) for part in limbs), crossed, weighed, 512)
    assert crossed.bool().tolist() == expected_crossed
    assert weighed.bool().tolist() == expected_weighed


# The same bits as the composed algorithms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 3, 15, 16, 17, 40])
def test_rows_of_one_tile(prox_rows: Callable[..., Tensor], dtype: torch.dtype, d: int) -> None:
    rows = torch.stack(list(families(d).values())).clamp(-6e4, 6e4).to(dtype)
    rows = rows[:: 1 if d == 17 and dtype == torch.float64 else 4]
    assert torch.equal(prox_rows(rows, 1.0), composed(rows, 1.0))


@pytest.mark.parametrize("d", [5, 7, 8, 9, 16, 17, 37])
def test_trees_of_tiles(prox_rows: Callable[..., Tensor], small_tiles: None, d: int) -> None:
    rows = torch.stack(list(families(d).values()))
    if d != 17:
        rows = rows[d % 4 :: 4]
    assert torch.equal(prox_rows(rows, 1.0), composed(rows, 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_random_trees(prox_rows: Callable[..., Tensor], small_tiles: None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 2, 23, dtype=torch.float64, generator=generator)
    rows = (rows * torch.tensor([[1.0], [8.0]])).round(decimals=1)
    lambd = torch.tensor(10.0).pow(torch.rand((), generator=generator)).item()
    assert torch.equal(prox_rows(rows, lambd), composed(rows, lambd))


def test_clusters_that_cross_many_tiles(
    prox_rows: Callable[..., Tensor], small_tiles: None
) -> None:
    # One that covers all tiles, and one that ends within the last tiles on both sides.
    inner = torch.cat([torch.tensor([-90.0, -80.0]), randn(33) / 8, torch.tensor([80.0, 95.0])])
    rows = torch.stack([randn(37), inner])
    assert torch.equal(prox_rows(rows, 9.0), composed(rows, 9.0))


@pytest.mark.parametrize(("rho", "l1"), [(0.0, 0.3), (0.25, 0.0), (0.75, 0.3), (1.0, 0.3)])
def test_relaxation_and_l1(
    prox_rows: Callable[..., Tensor], small_tiles: None, rho: float, l1: float
) -> None:
    rows = randn(2, 11) / 2
    assert torch.equal(prox_rows(rows, 0.5, l1, rho), composed(rows, 0.5, l1, rho))
    rows = rows[:, :4].float()
    assert torch.equal(prox_rows(rows, 0.5, l1, rho), composed(rows, 0.5, l1, rho))


@pytest.mark.parametrize("d", [3, 9])
def test_accurate_against_exact_arithmetic(
    prox_rows: Callable[..., Tensor], small_tiles: None, d: int
) -> None:
    for dtype in DTYPES:
        w = randn(d, dtype=dtype, seed=d)
        exact = oracles.prox(w.tolist(), 0.8, 0.1)
        oracles.assert_accurate(prox_rows(w, 0.8, 0.1), exact, w.tolist(), 0.8)


def test_order_is_kept_across_tiles(
    prox_rows: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clusters that touch up to rounding: mean x + mean v comes out an ulp less on the right.
    monkeypatch.setattr(cuda, "TILE", 2)
    w = torch.tensor([-1.4, -1.144, 6.685333333333334, 7.837333333333333], dtype=torch.float64)
    u = prox_rows(w, 6.4)
    assert torch.equal(u, composed(w, 6.4))
    assert (u.diff() >= 0).all()


@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_comes_back_nan(
    prox_rows: Callable[..., Tensor], small_tiles: None, d: int, bad: float
) -> None:
    rows = randn(3, d, dtype=torch.float32)
    expected = composed(rows, 0.3)
    rows[1, 1] = math.copysign(math.nan, bad) if math.isnan(bad) else bad
    u = prox_rows(rows, 0.3)
    assert u[1].isnan().all()
    assert torch.equal(u[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("strengths", [(-1.0, 0.1), (math.nan, 0.1), (0.1, -1.0), (0.1, math.inf)])
def test_a_bad_strength_on_the_device_gives_nan(
    prox_rows: Callable[..., Tensor], device: torch.device, strengths: tuple[float, float]
) -> None:
    lambd, l1 = (torch.tensor(value, device=device) for value in strengths)
    assert prox_rows(randn(5), lambd, l1).isnan().all()


def test_strengths_may_be_tensors(prox_rows: Callable[..., Tensor], device: torch.device) -> None:
    lambd, l1 = torch.tensor(0.7, device=device), torch.tensor(0.1, dtype=torch.float64)
    expected = composed(randn(9), lambd.cpu(), l1)
    assert torch.equal(prox_rows(randn(9), lambd, l1), expected)


# Particles with masses: weights, and buckets of them


def test_masses_stand_for_equal_weights(
    prox_rows: Callable[..., Tensor], small_tiles: None, device: torch.device
) -> None:
    # Everything is a multiple of 2^-10, so that no rounding tells the two apart.
    generator = torch.Generator().manual_seed(0)
    d, room = 65, 24
    rows, expected, arguments = [], [], []
    for spread in (1, 4, 16, 64):
        values = torch.randint(-16 * spread, 16 * spread, (d,), generator=generator).sort().values
        w = values.div(16).float()
        x, counts = w.unique(return_counts=True)
        x, counts = x[:room], counts[:room]
        counts[-1] += d - counts.sum()
        rows.append(torch.nn.functional.pad(x, (0, room - len(x)), value=math.nan))
        ranks = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        arguments.append((torch.nn.functional.pad(ranks, (0, room - len(x)), value=7), len(x)))
        whole = composed(x.repeat_interleave(counts), 8.0)
        expected.append(whole[ranks[:-1]])
    # Every third stands for one weight, the others for the weights of a bucket.
    items = torch.stack([torch.randperm(room, generator=generator) for _ in rows])
    for row, (_, n) in enumerate(arguments):
        items[row, :n] = torch.randperm(n, generator=generator)
    buckets = torch.arange(room) % 3 > 0
    items = torch.where(buckets, -1 - items, items)
    result = torch.full((len(rows), d), -7.0, device=device)
    table = torch.full((len(rows), cuda.BUCKETS), -7.0, device=device)
    strengths = torch.tensor([8.0, 0.0, 0.0], dtype=torch.float64, device=device)
    sizes = torch.tensor([n for _, n in arguments], device=device)
    ranks = torch.stack([ranks for ranks, _ in arguments]).to(device)
    particles = cuda._Particles(torch.stack(rows).to(device), items.to(device), ranks, sizes)
    cuda._resolve(particles, d, strengths, result, table)
    for row, values in enumerate(expected):
        n = len(values)
        in_table, item = buckets[:n], items[row, :n]
        assert torch.equal(table[row].cpu()[-1 - item[in_table]], values[in_table])
        assert torch.equal(result[row].cpu()[item[~in_table]], values[~in_table])
        assert (table[row] != -7).sum() + (result[row] != -7).sum() == n


@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        (torch.bfloat16, 1),
        pytest.param(torch.bfloat16, 3, marks=pytest.mark.gpu),
        pytest.param(torch.float16, 3, marks=pytest.mark.gpu),
    ],
)
def test_many_weights_of_16_bits_are_counted(
    prox_rows: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    count: int,
) -> None:
    monkeypatch.setattr(cuda, "COUNT_FROM", {2: 2000})
    rows = randn(count, 2001, dtype=dtype)
    rows[0, ::5] = 0.0
    rows[0, 1::7] = -0.0
    rows[1:2, 3] = -math.nan
    assert torch.equal(prox_rows(rows, 0.5).nan_to_num(7), composed(rows, 0.5).nan_to_num(7))


@pytest.fixture
def few_buckets(monkeypatch: pytest.MonkeyPatch) -> list[cuda._Particles]:
    """Have short rows counted; return a list of the particles that come of it."""
    sizes = {"TILE": 16, "LEVELS": 2, "CHUNK": 4, "PROBES": 2, "SORTED": 32, "PROGRAMS": 3}
    for name, size in sizes.items():
        monkeypatch.setattr(cuda, name, size)
    monkeypatch.setattr(cuda, "COUNT_FROM", {4: 17, 8: 17})
    monkeypatch.setattr(cuda, "SAMPLE", 16)
    monkeypatch.setattr(cuda, "SHARED", 4)
    met: list[cuda._Particles] = []
    closed_and_sorted = cuda._closed_and_sorted

    def noted(*arguments: Tensor) -> cuda._Particles:
        met.append(closed_and_sorted(*arguments))
        return met[-1]

    monkeypatch.setattr(cuda, "_closed_and_sorted", noted)
    return met


@pytest.fixture
def all_counted(
    few_buckets: list[cuda._Particles], monkeypatch: pytest.MonkeyPatch
) -> list[cuda._Particles]:
    """As few_buckets, whatever a sample says."""

    def always(rows: Tensor, strengths: Tensor) -> Tensor:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

    monkeypatch.setattr(cuda, "_much_is_shared", always)
    return few_buckets


def partly_shared(d: int, seed: int = 0) -> Tensor:
    """Return weights of which those around zero tie at lambd = 1, and others do not."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(d, dtype=torch.float64, generator=generator).add(1) / 100
    w[::3] = torch.randn(d, dtype=torch.float64, generator=generator)[::3] * 20
    w[::7] = 0.0
    w[1::7] = -0.0
    return w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_will_be_shared_is_not_sorted(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
    dtype: torch.dtype,
) -> None:
    tiny = 2.0**-140 if dtype == torch.float32 else 2.0**-1060  # no normal number is so small
    rows = torch.stack([partly_shared(60), partly_shared(60, 1) * tiny]).to(dtype)
    assert torch.equal(prox_rows(rows, 1.0, 0.2, 0.25), composed(rows, 1.0, 0.2, 0.25))
    (particles,) = all_counted
    assert particles.sizes is not None
    assert (particles.sizes < 50).all()


@pytest.mark.parametrize(
    "name", ["one cluster", "mirrored cascade", "touching", "ties", "wide", "widely apart"]
)
def test_counted_rows_have_the_bits_of_the_composed_path(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
    name: str,
) -> None:
    row = families(33)[name].float()[None]
    assert torch.equal(prox_rows(row, 1.0), composed(row, 1.0))


def test_no_cluster_begins_inside_a_closed_bucket(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
) -> None:
    w = torch.cat([1 + randn(40) / 40, -3 + randn(20) / 100]).float()
    prox_rows(w[None], 0.02)
    prox_rows(w[None], 0.3)
    sizes = []
    for lambd, particles in zip((0.02, 0.3), all_counted, strict=True):
        assert particles.ranks is not None
        assert particles.sizes is not None
        sizes.append(int(particles.sizes))
        ranks = particles.ranks[0, : sizes[-1] + 1].tolist()
        assert ranks[-1] == len(w)
        begins = composed(w, lambd).sort().values.diff().nonzero().flatten() + 1
        assert {0, *begins.tolist()} <= set(ranks)
    assert sizes[0] == len(w)  # all are open
    assert sizes[1] < len(w) / 2


def test_cancelling_end_points_do_not_close_a_bucket(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
) -> None:
    # The end points are 2^-9 of the weights, and the roundings of the weights decide.
    w = torch.full((512,), -(2.0**-5), dtype=torch.float64)
    w[:16], w[0] = 1 - 2.0**-5, 1 - 2.0**-53  # one bucket, which splits by a hair
    lambd = float.fromhex("0x1.fefffffffff99p-1")
    assert len(composed(w, lambd).unique()) == 3
    assert torch.equal(prox_rows(w[None], lambd)[0], composed(w, lambd))


def test_end_points_that_cancel_altogether(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
) -> None:
    row = torch.where(torch.arange(65) < 33, -1.0, 1.03125)[None]
    assert torch.equal(prox_rows(row, 2.0), composed(row, 2.0))


def test_equal_weights_are_not_sorted(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
) -> None:
    row = torch.cat([torch.zeros(20), torch.full((9,), -0.0), torch.tensor([-3.0, 1.5, 1.501])])
    assert torch.equal(prox_rows(row[None], 1e-3)[0], composed(row, 1e-3))
    (particles,) = all_counted
    assert particles.sizes is not None
    assert particles.sizes.tolist() == [5]


def test_a_row_of_which_little_is_shared_is_sorted(
    prox_rows: Callable[..., Tensor], few_buckets: list[cuda._Particles]
) -> None:
    rows = torch.stack([randn(60), randn(60) * 9, randn(60)]).float()
    rows[2, 6] = math.nan  # which is in the sample
    u = prox_rows(rows, 3.0)
    assert torch.equal(u[:2], composed(rows[:2], 3.0))
    assert u[2].isnan().all()
    (particles,) = few_buckets
    assert particles.sizes is not None
    assert (particles.items[0, : particles.sizes[0]] < 0).any()
    assert (particles.items[1:, :60] >= 0).all()


def test_a_counted_row_that_is_not_finite_comes_back_nan(
    prox_rows: Callable[..., Tensor],
    all_counted: list[cuda._Particles],
) -> None:
    rows = randn(4, 20, dtype=torch.float32)
    rows[0, 3], rows[1, 4], rows[2, 5] = math.inf, -math.inf, math.nan
    u = prox_rows(rows, 0.5)
    assert u[:3].isnan().all()
    assert torch.equal(u[3], composed(rows[3], 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 100])
def test_weights_in_open_buckets_are_sorted(
    few_buckets: list[cuda._Particles], device: torch.device, d: int, dtype: torch.dtype
) -> None:
    rows = randn(2, d, dtype=dtype) * 10.0 ** randn(2, d, seed=1).mul(9).to(dtype)
    rows[1, ::2] = rows[1, 0]
    bits = rows.view(torch.int32 if dtype == torch.float32 else torch.int64).to(device)
    rests = torch.full((2, cuda.BUCKETS), math.nan, dtype=torch.float64, device=device)
    none = torch.zeros(2, cuda.BUCKETS, dtype=torch.int64, device=device)
    x, items, ranks = cuda._open_ones_sorted(bits, rests, none, none)
    assert torch.equal(x.view(dtype).cpu(), rows.sort(-1).values)
    assert torch.equal(rows.gather(-1, items.long().cpu()), x.view(dtype).cpu())
    assert torch.equal(items.sort(-1).values.cpu(), torch.arange(d).int().expand(2, d))
    assert torch.equal(ranks[:, :d].cpu(), torch.arange(d).int().expand(2, d))


def test_a_sample_tells_whether_much_is_shared(
    few_buckets: list[cuda._Particles], device: torch.device
) -> None:
    w = torch.stack([randn(64), randn(64).mul(9), torch.where(torch.arange(64) % 2 == 0, 0.0, 1e3)])
    strengths = torch.tensor([4.0, 9.0, 0.5], dtype=torch.float64, device=device)
    assert cuda._much_is_shared(w.float().to(device), strengths).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [1, 40])
def test_narrow_rows_are_resolved_in_parts(prox_rows: Callable[..., Tensor], count: int) -> None:
    rows = randn(count, 3, dtype=torch.float32)
    assert torch.equal(prox_rows(rows, 0.7), composed(rows, 0.7))


# What only a GPU can show


def on_gpu(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return randn(d, dtype=torch.float32).to(device), torch.tensor(2.0, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("d", "dtype"),
    [
        (1000, torch.float32),  # the tile of 1,024 takes long to compile: once is enough
        *itertools.product([60, 1025, 70_000, 3_000_000], DTYPES),
    ],
)
def test_the_same_bits_on_a_gpu(device: torch.device, d: int, dtype: torch.dtype) -> None:
    for lambd in (1e-3, 1.3, 100.0):
        rows = randn(2 if d < 10**6 else 1, d, dtype=dtype)
        u = cuda.prox_rows(rows.to(device), lambd, 0.01, 0.0).cpu()
        expected = composed(rows, lambd, 0.01)
        if d >= cuda.COUNT_FROM[dtype.itemsize]:  # z is rounded once for all weights of a bucket
            ulp = torch.finfo(dtype).eps
            atol = float(rows.abs().max()) * ulp * 2**-10
            torch.testing.assert_close(u, expected, rtol=ulp, atol=atol)
        else:
            assert torch.equal(u, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_values_on_a_gpu_where_weights_are_counted(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cuda, "COUNT_FROM", {4: 2**16, 8: 2**16})
    rows = torch.stack([randn(300_001), partly_shared(300_001)]).to(dtype)
    for lambd in (0.5, 1.3, 2.0, 100.0):
        u = cuda.prox_rows(rows.to(device), lambd, 0.01, 0.0).cpu()
        ulp = torch.finfo(dtype).eps
        atol = float(rows.abs().max()) * ulp * 2**-10
        torch.testing.assert_close(u, composed(rows, lambd, 0.01), rtol=ulp, atol=atol)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [60, 1000, 100_000, 2**24])
def test_captured_in_a_graph_and_replayed(device: torch.device, d: int) -> None:
    w, lambd = on_gpu(d, device)
    cuda.prox_rows(w, lambd, 0.01, 0.5)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        u = cuda.prox_rows(w, lambd, 0.01, 0.5)
    for seed in (1, 2):
        w.copy_(randn(d, dtype=torch.float32, seed=seed))
        lambd.mul_(0.5)
        graph.replay()
        assert torch.equal(u, cuda.prox_rows(w, lambd, 0.01, 0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [60, 2_000_000, 2**24])
def test_the_host_does_not_wait(device: torch.device, dtype: torch.dtype, d: int) -> None:
    w, lambd = on_gpu(d, device)
    cuda.prox_rows(w.to(dtype), lambd, 0.1, 0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda.prox_rows(w.to(dtype), lambd, 0.1, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_same_bits_run_to_run(device: torch.device) -> None:
    for d in (1000, 3_000_000, 2**24):
        w, lambd = on_gpu(d, device)
        first = cuda.prox_rows(w, lambd, 0.0, 0.0)
        for _ in range(20):
            assert torch.equal(cuda.prox_rows(w, lambd, 0.0, 0.0), first)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [10_000_000, 2**24])
def test_memory(device: torch.device, dtype: torch.dtype, d: int) -> None:
    w, lambd = on_gpu(d, device)
    w = w.to(dtype)

    def peak(run: Callable[[], object]) -> int:
        run()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before

    beyond = peak(lambda: cuda.prox_rows(w, lambd, 0.0, 0.0)) - w.nbytes
    # What torch.sort takes while it sorts is not ours to choose.
    assert beyond <= max(32 * d, peak(lambda: w.sort())) + 2**20


# Compiled without a GPU


NAMES = {
    "torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float32": "fp32",
    "torch.float64": "fp64", "torch.bool": "i1", "torch.int8": "i8", "torch.int16": "i16",
    "torch.int32": "i32", "torch.int64": "i64",
}  # fmt: skip


class Recorder:
    """Stands in for a kernel, and notes with what kinds of arguments it is launched."""

    def __init__(self, name: str, launches: dict[str, tuple[str, list[object], object]]) -> None:
        self.name, self.launches = name, launches
        self.parameters = getattr(cuda, name).params

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size >= 1 for size in grid)

        def launch(*arguments: object, **options: object) -> None:
            kinds = [
                self.kind(value, parameter.is_constexpr)
                for value, parameter in zip(arguments, self.parameters, strict=True)
            ]
            self.launches[json.dumps([self.name, kinds, options])] = (self.name, kinds, options)

        return launch

    @staticmethod
    def kind(value: object, constant: bool) -> object:
        if isinstance(value, Tensor):
            return f"*{NAMES[str(value.dtype)]}"
        return "i32" if isinstance(value, int) and not constant else value


def compile_all(part: int, parts: int) -> None:
    """Compile for sm_90 a part of what the host's part launches, and print what was compiled."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = {name: k for name, k in vars(cuda).items() if isinstance(k, triton.JITFunction)}
    launches: dict[str, tuple[str, list[object], object]] = {}
    for name in kernels:
        setattr(cuda, name, Recorder(name, launches))
    cuda.prox_rows(torch.zeros(1, cuda.TILE + 1), 0.1, 0.1, 0.1)
    cuda.COUNT_FROM = {2: 0, 4: 0, 8: 0}
    for dtype in DTYPES:
        cuda.prox_rows(torch.zeros(1, cuda.TILE + 1, dtype=dtype), 0.1, 0.1, 0.1)
    cuda.TILE, cuda.COUNT_FROM = 4, {2: 6, 4: 6, 8: 6}  # the less time it takes
    for dtype in DTYPES:
        for d in (4, 5):
            cuda.prox_rows(torch.zeros(2, d, dtype=dtype), 0.1, 0.1, 0.1)
    vars(cuda).update(kernels)  # they call each other
    for launch in sorted(launches)[part::parts]:  # by name, so that each part has some long ones
        name, kinds, options = launches[launch]
        kernel = kernels[name]
        constants, signature = {}, {}
        for place, (parameter, kind) in enumerate(zip(kernel.params, kinds, strict=True)):
            if isinstance(kind, str):
                signature[parameter.name] = kind
            else:
                signature[parameter.name] = "constexpr"
                constants[(place,)] = kind
        source = ASTSource(kernel, signature, constants)
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert done.asm["cubin"]
        assert "fma.rn.f64" not in done.asm["ptx"] or "enable_fp_fusion" not in options
        print(name, flush=True)


def test_everything_that_is_launched_compiles_for_sm_90() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    runs = [
        subprocess.Popen(
            [sys.executable, Path(__file__), str(part), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(2)
    ]
    compiled: list[str] = []
    for run in runs:
        output, errors = run.communicate()
        assert run.returncode == 0, errors
        compiled += output.split()

    launched = {
        "span_tiles", "running_extremes", "resolve_tiles", "running_sums", "join_tiles",
        "sum_clusters", "move_clusters", "resolve_rows", "count_members", "average_members",
        "open_buckets", "count_digits", "scatter_digits", "place_blocks", "look_up",
    }  # fmt: skip

    assert set(compiled) == launched
    # Rows of every dtype; and samples of a larger tile of those of which a sample is taken.
    assert compiled.count("resolve_rows") == len(DTYPES) + 2


if __name__ == "__main__":
    compile_all(int(sys.argv[1]), int(sys.argv[2]))
