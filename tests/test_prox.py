"""The front door: what it returns, what it promises about rounding, and its derivatives."""

import math
from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DTYPES, FRACTIONS, STRENGTHS, THRESHOLDS, tensors, weights
from torch import Tensor

import wsr
from wsr.collisions import Algorithm

each_algorithm = pytest.mark.parametrize("algorithm", ["auto", *wsr.ALGORITHMS])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


# What it returns


@each_algorithm
@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS, rho=FRACTIONS)
def test_accurate_against_exact_arithmetic(
    device: torch.device, algorithm: str, w: Tensor, lambd: float, l1: float, rho: float
) -> None:
    exact = oracles.prox(w.tolist(), lambd, l1, rho)
    # Where l1 or a touch decides between two values, rounding may take either.
    assume(settled(w.tolist(), lambd, l1, rho))
    result = wsr.prox(w.to(device), lambd, l1=l1, rho=rho, algorithm=algorithm)
    assert result.shape == w.shape
    assert result.dtype == w.dtype
    oracles.assert_accurate(result, exact, w.tolist(), lambd)


def settled(w: list[float], lambd: float, l1: float, rho: float) -> bool:
    """Return whether the relaxed result stays where it is if lambd and l1 change by some ulp."""
    if rho == 0:
        return True  # continuous, so rounding may not matter
    nudge = 2.0**-48
    largest = max(map(abs, w), default=0.0)
    results = [
        oracles.prox(w, lambd * (1 + a * nudge), max(0.0, l1 + b * nudge * (largest + lambd)), rho)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    room = Fraction(8 * nudge * (largest + lambd))
    return all(max(column) - min(column) <= room for column in zip(*results, strict=True))


@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS, rho=FRACTIONS)
def test_all_algorithms_give_the_same_bits(
    device: torch.device, w: Tensor, lambd: float, l1: float, rho: float
) -> None:
    results = [
        wsr.prox(w.to(device), lambd, l1=l1, rho=rho, algorithm=name) for name in wsr.ALGORITHMS
    ]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS)
def test_certified_optimal(device: torch.device, w: Tensor, lambd: float, l1: float) -> None:
    x = w.to(device)
    u = wsr.prox(x, lambd, l1=l1)
    # Nothing but the rounding of u to its dtype, and of float64 sums.
    largest = w.abs().max().item()
    rounding = oracles.ulp(largest, w.dtype) + 1e-14 * (largest + lambd + l1)
    assert wsr.duality_gap(u, x, lambd, l1=l1).item() <= len(w) * rounding**2


@given(w=tensors(), lambd=STRENGTHS)
def test_order_and_ties_are_kept(device: torch.device, w: Tensor, lambd: float) -> None:
    u = wsr.prox(w.to(device), lambd).cpu()
    order = w.argsort(stable=True)
    assert (u[order].diff() >= 0).all()
    for value in w:
        members = u[w == value]
        assert (members == members[0]).all()


@pytest.mark.parametrize(
    ("w", "lambd"),
    [
        ([0.7, 1.45, 10.625000000000002, 11.524999999999999], 7.5),
        ([-1.4, -1.144, 6.685333333333334, 7.837333333333333], 6.4),
        ([6.9, 6.9, 9.506666666666668, 9.626666666666667], 2.0),
    ],
)
def test_order_is_kept_where_rounding_would_break_it(w: list[float], lambd: float) -> None:
    # Clusters that touch up to rounding: mean x + mean v comes out an ulp less on the right.
    x = torch.tensor(w, dtype=torch.float64)
    u = wsr.prox(x, lambd)
    assert (u[x.argsort()].diff() >= 0).all()


@given(w=weights(min_size=2), lambd=STRENGTHS)
def test_the_mean_is_preserved(device: torch.device, w: list[float], lambd: float) -> None:
    u = wsr.prox(torch.tensor(w, dtype=torch.float64, device=device), lambd)
    room = 1e-14 * (max(map(abs, w)) + lambd)
    assert math.fsum(u.tolist()) / len(w) == pytest.approx(math.fsum(w) / len(w), abs=room)


@given(w=weights(), s=STRENGTHS, t=STRENGTHS)
def test_semigroup(device: torch.device, w: list[float], s: float, t: float) -> None:
    x = torch.tensor(w, dtype=torch.float64, device=device)
    room = 1e-13 * (max(map(abs, w)) + s + t)
    torch.testing.assert_close(wsr.prox(wsr.prox(x, s), t), wsr.prox(x, s + t), rtol=0, atol=room)


@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS, seed=st.integers(0, 99))
def test_permutation_equivariant(
    device: torch.device, w: Tensor, lambd: float, l1: float, seed: int
) -> None:
    order = torch.randperm(len(w), generator=torch.Generator().manual_seed(seed))
    x = w.to(device)
    shuffled = wsr.prox(x[order], lambd, l1=l1)
    assert torch.equal(shuffled, wsr.prox(x, lambd, l1=l1)[order])


@given(w=weights(), lambd=STRENGTHS, shift=st.floats(-10, 10))
def test_shift_equivariant(
    device: torch.device, w: list[float], lambd: float, shift: float
) -> None:
    x = torch.tensor(w, dtype=torch.float64, device=device)
    room = 1e-13 * (max(map(abs, w)) + lambd + abs(shift))
    torch.testing.assert_close(
        wsr.prox(x + shift, lambd), wsr.prox(x, lambd) + shift, rtol=0, atol=room
    )


@given(w=tensors((torch.float64,)), lambd=STRENGTHS, l1=THRESHOLDS, k=st.integers(-900, 900))
def test_scales_with_powers_of_two(
    device: torch.device, w: Tensor, lambd: float, l1: float, k: int
) -> None:
    scale = 2.0**k
    small = wsr.prox(w.to(device), lambd, l1=l1)
    large = wsr.prox(w.to(device) * scale, lambd * scale, l1=l1 * scale)
    assert torch.equal(large, small * scale)


@given(w=tensors((torch.float64,)), lambd=STRENGTHS, l1=THRESHOLDS)
def test_odd(device: torch.device, w: Tensor, lambd: float, l1: float) -> None:
    x = w.to(device)
    room = 4 * oracles.ulp(w.abs().max().item() + lambd, torch.float64)
    torch.testing.assert_close(
        wsr.prox(-x, lambd, l1=l1), -wsr.prox(x, lambd, l1=l1), rtol=0, atol=room
    )


@given(a=weights(), b=weights(min_size=24), lambd=STRENGTHS, l1=THRESHOLDS)
def test_nonexpansive(
    device: torch.device, a: list[float], b: list[float], lambd: float, l1: float
) -> None:
    x = torch.tensor(a, dtype=torch.float64, device=device)
    y = torch.tensor(b[: len(a)], dtype=torch.float64, device=device)
    distance = (wsr.prox(x, lambd, l1=l1) - wsr.prox(y, lambd, l1=l1)).norm()
    room = 1e-13 * (x.abs().max() + y.abs().max() + lambd)
    assert distance <= (x - y).norm() + room


@given(w=tensors(), more=STRENGTHS)
def test_idempotent_once_everything_is_tied(device: torch.device, w: Tensor, more: float) -> None:
    tied = wsr.prox(w.to(device), 1e12)
    assert len(wsr.Sharing.of(tied)) == 1
    assert torch.equal(wsr.prox(tied, more), tied)
    oracles.assert_accurate(
        tied, [sum(map(Fraction, w.tolist())) / len(w)] * len(w), w.tolist(), 0.0
    )


@given(w=tensors(), rho=FRACTIONS)
def test_no_strength_changes_nothing(device: torch.device, w: Tensor, rho: float) -> None:
    x = w.to(device)
    assert torch.equal(wsr.prox(x, 0.0, rho=rho), x)
    assert torch.equal(wsr.prox(x, torch.tensor(0.0), l1=torch.tensor(0.0)), x)


def test_all_zero_stays_exactly_zero(device: torch.device) -> None:
    for d in (1, 2, 7, 1000, 99_999):
        for dtype in DTYPES:
            u = wsr.prox(torch.zeros(d, dtype=dtype, device=device), 0.1)
            assert not u.any()
            assert not u.signbit().any()
    tiny = torch.tensor([-6e-8, -6e-8, 6e-8], dtype=torch.float16, device=device)
    assert not wsr.prox(tiny, 1.0).signbit().any()  # their mean rounds to zero from below


def test_where_gradients_are_recorded_auto_pools_on_a_cpu_and_bridges_elsewhere(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def recorded(name: str) -> Algorithm:
        return lambda z: (called.append(name), wsr.ALGORITHMS[name](z))[1]

    table = {name: recorded(name) for name in wsr.ALGORITHMS}
    monkeypatch.setattr("wsr.proximal_mapping.ALGORITHMS", table)
    wsr.prox(torch.ones(3, device=device, requires_grad=True), 0.1)
    assert called == ["pool_adjacent_violators" if device.type == "cpu" else "bridges"]


# l1 and rho


def test_l1_comes_after_sharing() -> None:
    w = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(wsr.prox(w, 0.2, l1=0.3), torch.tensor([0.0, 0.5]).double())


@given(w=tensors((torch.float64,)), lambd=STRENGTHS, l1=THRESHOLDS)
def test_l1_is_a_soft_threshold(device: torch.device, w: Tensor, lambd: float, l1: float) -> None:
    x = w.to(device)
    expected = torch.nn.functional.softshrink(wsr.prox(x, lambd), l1)
    assert torch.equal(wsr.prox(x, lambd, l1=l1), expected)


def test_removed_clusters_are_positive_zero(device: torch.device) -> None:
    w = torch.tensor([-0.25, -0.5, 0.5, 1.0, -0.0], device=device)
    for rho in (0.0, 0.5, 1.0):
        u = wsr.prox(w, 0.0, l1=0.75, rho=rho)
        assert u[:3].tolist() + u[4:].tolist() == [0.0] * 4
        assert not u.signbit().any()


def test_at_the_threshold_rho_decides() -> None:
    w = torch.tensor([0.5, -0.5, 0.25])
    assert wsr.prox(w, 0.0, l1=0.5).tolist() == [0, 0, 0]
    assert wsr.prox(w, 0.0, l1=0.5, rho=1.0).tolist() == [0.5, -0.5, 0]
    assert wsr.prox(w, 0.0, l1=0.5, rho=0.5).tolist() == [0.25, -0.25, 0]


def test_rho_keeps_the_pattern_and_moves_less() -> None:
    w = torch.tensor([0.0, 1.0, 8.0])
    for rho in (0.0, 0.25, 1.0):
        moved = 1 - rho
        assert wsr.prox(w, 2.0, rho=rho).tolist() == [0.5 + moved, 0.5 + moved, 8 - 2 * moved]
    # A cluster that moves across zero is shrunk on the side on which it arrives.
    w = torch.tensor([-0.25, 10.0, 10.0])
    assert wsr.prox(w, 1.0, l1=0.25, rho=0.5).tolist() == [-0.25 + 0.5 * 0.75, 9.625, 9.625]


@given(w=tensors(), lambd=STRENGTHS)
def test_rho_of_one_ties_and_does_not_move(device: torch.device, w: Tensor, lambd: float) -> None:
    x = w.to(device)
    full, tied = wsr.prox(x.double(), lambd), wsr.prox(x.double(), lambd, rho=1.0)
    room = 2 * oracles.ulp(w.abs().max().item(), torch.float64)
    torch.testing.assert_close(tied, wsr.Sharing.of(full).average(x.double()), rtol=0, atol=room)
    assert torch.equal(tied.to(w.dtype), wsr.prox(x, lambd, rho=1.0))


# Layout, dtypes, groups


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 2), (2, 0), (0, 1, 2), (-1, -2)])
@each_algorithm
def test_each_group_is_a_problem_of_its_own(
    device: torch.device, dtype: torch.dtype, dim: int | tuple[int, ...] | None, algorithm: str
) -> None:
    w = randn(3, 4, 5, dtype=dtype).to(device)
    result = wsr.prox(w, 0.3, l1=0.1, dim=dim, algorithm=algorithm)
    assert result.shape == w.shape
    assert result.dtype == dtype
    assert result.is_contiguous()
    inside = (0, 1, 2) if dim is None else dim if isinstance(dim, tuple) else (dim,)
    inside = tuple(k % 3 for k in inside)
    outside = [k for k in range(3) if k not in inside]
    size = math.prod(w.shape[k] for k in inside)
    rows = w.permute(*outside, *inside).reshape(-1, size)
    results = result.permute(*outside, *inside).reshape(-1, size)
    for row, values in zip(rows, results, strict=True):
        assert torch.equal(values, wsr.prox(row, 0.3, l1=0.1))


@given(data=st.data())
def test_any_strides(device: torch.device, data: st.DataObject) -> None:
    base = randn(6, 7, 8).to(device)
    w = base.permute(data.draw(st.permutations(range(3))))
    w = w[:: data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2)) :, 1:]
    dim = data.draw(st.sampled_from([None, 0, 1, 2, (0, 1), (2, 1)]))
    assert torch.equal(wsr.prox(w, 0.4, dim=dim), wsr.prox(w.contiguous(), 0.4, dim=dim))
    expanded = base[:1, :1].expand(3, 2, 8)
    assert torch.equal(wsr.prox(expanded, 0.4), wsr.prox(expanded.contiguous(), 0.4))


@given(w=tensors(), lambd=STRENGTHS, l1=THRESHOLDS, rho=FRACTIONS)
def test_the_input_is_not_changed(
    device: torch.device, w: Tensor, lambd: float, l1: float, rho: float
) -> None:
    x = w.to(device)
    u = wsr.prox(x, lambd, l1=l1, rho=rho)
    assert torch.equal(x.cpu(), w)
    u += 1
    assert torch.equal(x.cpu(), w)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_weights(shape: tuple[int, ...]) -> None:
    for dim in (None, 0, -1):
        assert wsr.prox(torch.zeros(shape), 1.0, dim=dim).shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
def test_a_group_of_one_feels_only_l1(shape: tuple[int, ...]) -> None:
    w = torch.full(shape, 2.0)
    dim = -1 if len(shape) == 2 else None
    assert torch.equal(wsr.prox(w, 5.0, dim=dim), w)
    assert torch.equal(wsr.prox(w, 5.0, l1=0.5, dim=dim), w - 0.5)


def test_the_same_bits_run_to_run(device: torch.device) -> None:
    w = randn(100_000, dtype=torch.float32).to(device)
    first = wsr.prox(w, 1.0, l1=0.01)
    for _ in range(3):
        assert torch.equal(wsr.prox(w, 1.0, l1=0.01), first)


# Not EndCollisions, which takes a round for each of a thousand clusters.
@pytest.mark.parametrize("algorithm", [name for name in wsr.ALGORITHMS if name[:3] != "end"])
def test_accurate_where_float32_sums_are_not(device: torch.device, algorithm: str) -> None:
    w = randn(20_000, dtype=torch.float32) + 100
    exact = oracles.prox(w.tolist(), 1.0)
    result = wsr.prox(w.to(device), 1.0, algorithm=algorithm)
    oracles.assert_accurate(result, exact, w.tolist(), 1.0)


# The ends of the floats


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_floats_do_not_overflow(device: torch.device, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    w = torch.tensor([-largest, -largest / 2, largest / 2, largest], dtype=dtype, device=device)
    for lambd in (0.0, largest / 8, largest):
        u = wsr.prox(w, lambd)
        exact = oracles.prox(w.tolist(), lambd)
        oracles.assert_accurate(u, exact, w.tolist(), largest / 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_floats_stay_apart(device: torch.device, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    w = torch.tensor([-2 * tiny, -tiny, 0.0, tiny, 1.0], dtype=torch.float64).to(dtype).to(device)
    assert torch.equal(wsr.prox(w, 0.0), w)


# NaN and infinity


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@each_algorithm
def test_a_group_that_is_not_finite_comes_back_nan(
    device: torch.device, dtype: torch.dtype, bad: float, algorithm: str
) -> None:
    w = randn(3, 5, dtype=dtype).to(device)
    expected = wsr.prox(w, 0.3, l1=0.1, dim=1)
    w[1, 2] = bad
    u = wsr.prox(w, 0.3, l1=0.1, dim=1, algorithm=algorithm)
    assert u[1].isnan().all()
    assert torch.equal(u[[0, 2]], expected[[0, 2]])
    assert wsr.prox(w, 0.3, algorithm=algorithm).isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["lambd", "l1"])
def test_a_bad_strength_on_the_device_gives_nan(
    device: torch.device, name: str, bad: float
) -> None:
    strengths = {"lambd": 0.1, "l1": 0.1} | {name: torch.tensor(bad, device=device)}
    assert wsr.prox(torch.ones(3, device=device), **strengths).isnan().all()


@pytest.mark.gpu
def test_the_host_is_not_stopped(device: torch.device) -> None:
    w = torch.randn(1000, device=device)
    lambd = torch.tensor(0.1, device=device)
    wsr.prox(w, lambd, l1=0.1)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        wsr.prox(w, lambd, l1=0.1)
        wsr.prox(w, 0.1, rho=0.5)
    finally:
        torch.cuda.set_sync_debug_mode(before)


# Derivatives


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("l1", [0.0, 0.2])
def test_gradcheck(device: torch.device, l1: float, rho: float) -> None:
    w = randn(3, 7).to(device).requires_grad_()
    lambd = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
    threshold = torch.tensor(l1, dtype=torch.float64, device=device, requires_grad=l1 > 0)

    def f(w: Tensor, lambd: Tensor, l1: Tensor) -> Tensor:
        return wsr.prox(w, lambd, l1=l1, rho=rho, dim=1)

    # With rho the map jumps where clusters form; these weights are well inside a piece.
    assert torch.autograd.gradcheck(f, (w, lambd, threshold))
    assert torch.autograd.gradgradcheck(f, (w, lambd, threshold))


def test_derivatives_in_closed_form(device: torch.device) -> None:
    w = torch.tensor([0.0, 1.0, 8.0, 3.0], dtype=torch.float64, device=device, requires_grad=True)
    lambd = torch.tensor(1.5, requires_grad=True)
    l1 = torch.tensor(1.25, requires_grad=True)
    # Clusters {0, 1} at 1.5, {3} at 2.5, {8} at 6.5.
    u = wsr.prox(w, lambd, l1=l1)
    assert u.tolist() == [0.25, 0.25, 5.25, 1.25]
    grads = torch.autograd.grad(u[1] * 2 + u[2], (w, lambd, l1))
    assert grads[0].tolist() == [1, 1, 1, 0]
    assert grads[1].item() == pytest.approx(2 * 2 / 3 - 1)
    assert grads[2].item() == -3
    removed = wsr.prox(w, lambd, l1=l1 + 0.5)
    grads = torch.autograd.grad(removed[:2].sum(), (w, lambd, l1))
    assert [grad.count_nonzero().item() for grad in grads] == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtypes_of_their_inputs(
    device: torch.device, dtype: torch.dtype
) -> None:
    w = torch.tensor([0.0, 0.5, 4.0], dtype=dtype, device=device, requires_grad=True)
    lambd = torch.tensor(0.5, dtype=torch.float32, requires_grad=True)
    wsr.prox(w, lambd)[0].backward()
    assert w.grad is not None
    assert w.grad.tolist() == [0.5, 0.5, 0]
    assert lambd.grad is not None
    assert lambd.grad.item() == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_gradients_are_passed_on(device: torch.device, bad: float) -> None:
    w = torch.tensor([0.0, 1.0, 8.0], device=device, requires_grad=True)
    wsr.prox(w, 2.0).backward(torch.tensor([1.0, bad, 0.5], device=device))
    assert w.grad is not None
    assert w.grad[:2].isnan().all()
    assert w.grad[2] == 0.5


# torch's compiler uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
# Traced down to single operators, but without the C++ compiler that the default backend calls.
@pytest.mark.parametrize("algorithm", ["auto", "search_collisions", "bridges"])
def test_compiled_gives_the_same_bits(algorithm: str) -> None:
    w = randn(40, dtype=torch.float32)

    def f(w: Tensor) -> Tensor:
        return wsr.prox(w, 0.3, l1=0.1, algorithm=algorithm)

    assert torch.equal(torch.compile(f, backend="aot_eager")(w), f(w))


def test_no_graph_without_need() -> None:
    assert not wsr.prox(torch.ones(3), 0.1).requires_grad
    with torch.no_grad():
        assert not wsr.prox(torch.ones(3, requires_grad=True), 0.1).requires_grad
