"""Patterns of equal weights."""

import heapq
import math
from collections import Counter
from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, tensors, weights

import wsr


@given(w=tensors())
def test_values_and_labels_rebuild_the_weights(device: torch.device, w: torch.Tensor) -> None:
    pattern = wsr.Sharing.of(w.to(device))
    assert pattern.labels.dtype == pattern.counts.dtype == torch.int64
    assert pattern.labels.shape == w.shape
    assert torch.equal(pattern.values[pattern.labels].cpu(), w)
    assert pattern.values.tolist() == sorted(set(w.tolist()))
    counts = Counter(w.tolist())
    assert pattern.counts.tolist() == [counts[value] for value in pattern.values.tolist()]
    assert len(pattern) == len(counts)


@pytest.mark.parametrize("dim", [0, 1, (1,)])
def test_groups_have_labels_of_their_own(device: torch.device, dim: int | tuple[int, ...]) -> None:
    w = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 2.0]], device=device)
    pattern = wsr.Sharing.of(w, dim=dim)
    assert torch.equal(pattern.values[pattern.labels], w)
    if dim == 0:
        assert pattern.values.tolist() == [1, 3, 1, 1, 2]
        assert pattern.labels.tolist() == [[1, 2, 3], [0, 2, 4]]
        assert pattern.counts.tolist() == [1, 1, 2, 1, 1]
    else:
        assert pattern.values.tolist() == [1, 3, 1, 2]
        assert pattern.labels.tolist() == [[1, 0, 0], [2, 2, 3]]
        assert pattern.counts.tolist() == [2, 1, 2, 1]


def test_both_zeros_are_equal() -> None:
    assert len(wsr.Sharing.of(torch.tensor([0.0, -0.0]))) == 1


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    pattern = wsr.Sharing.of(torch.ones(shape))
    assert pattern.labels.shape == shape
    assert len(pattern) == len(pattern.counts) == min(1, torch.ones(shape).numel())
    assert pattern.average(torch.ones(shape)).shape == shape


@given(w=weights(), values=weights(min_size=24))
def test_average_is_the_exact_mean_of_each_cluster(
    device: torch.device, w: list[float], values: list[float]
) -> None:
    pattern = wsr.Sharing.of(torch.tensor(w, dtype=torch.float64, device=device))
    values = values[: len(w)]
    result = pattern.average(torch.tensor(values, dtype=torch.float64, device=device)).tolist()
    for k, value in enumerate(result):
        members = [values[i] for i in range(len(w)) if w[i] == w[k]]
        exact = sum(map(Fraction, members)) / len(members)
        largest = max(map(abs, members))
        assert abs(Fraction(value) - exact) <= 4 * oracles.ulp(largest, torch.float64)
        assert value == result[w.index(w[k])]


def test_average_of_equal_values_is_that_value() -> None:
    pattern = wsr.Sharing.of(torch.zeros(7))
    for value in (0.1, 1e-320, 1.7e308, -1.7e308):
        w = torch.full((7,), value, dtype=torch.float64)
        assert torch.equal(pattern.average(w), w)


def test_average_reaches_from_end_to_end_of_the_floats() -> None:
    largest = torch.finfo(torch.float64).max
    pattern = wsr.Sharing.of(torch.zeros(4))
    w = torch.tensor([-largest, largest, largest, largest], dtype=torch.float64)
    assert pattern.average(w).tolist() == pytest.approx([largest / 2] * 4, rel=1e-15)


def test_each_cluster_is_averaged_at_its_own_scale() -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]))
    w = torch.tensor([1e-200, 1e200, 3e-200, 3e200, 5e200], dtype=torch.float64)
    expected = torch.tensor([2e-200, 3e200, 2e-200, 3e200, 3e200], dtype=torch.float64)
    torch.testing.assert_close(pattern.average(w), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_keeps_shape_dtype_and_order(device: torch.device, dtype: torch.dtype) -> None:
    pattern = wsr.Sharing.of(torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device).T)
    w = torch.tensor([[1.0, 2.0], [4.0, 3.0]], dtype=dtype, device=device)
    result = pattern.average(w)
    assert result.dtype == dtype
    assert result.tolist() == [[2, 3], [3, 2]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_average_passes_on_what_is_not_finite(bad: float) -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    result = pattern.average(torch.tensor([1.0, bad, 3.0, 2.0]))
    assert result[[0, 2]].tolist() == [2, 2]
    assert result[[1, 3]].isnan().all()


def test_average_is_its_own_gradient() -> None:
    pattern = wsr.Sharing.of(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pattern.average, (w,))
    assert torch.autograd.gradgradcheck(pattern.average, (w,))


# Compressed


def bits(w: torch.Tensor) -> list[int]:
    return w.cpu().flatten().view(torch.uint8).tolist()


@given(w=tensors(max_size=40))
def test_decoding_gives_every_bit_back(device: torch.device, w: torch.Tensor) -> None:
    w = w + 0.0  # of the two zeros, one
    pattern = wsr.Sharing.of(w.to(device))
    values, planes = pattern.encode()
    decoded = wsr.Sharing.decode(values, planes, w.shape)
    assert decoded.dtype == w.dtype
    assert bits(decoded) == bits(w)
    assert pattern.bits == 8 * (values.nbytes + planes.nbytes)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (), (3, 2, 5)])
@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 5, 8, 9])
def test_a_label_takes_as_many_bits_as_it_needs(shape: tuple[int, ...], distinct: int) -> None:
    w = (torch.arange(torch.ones(shape).numel()) % distinct).double().view(shape)
    pattern = wsr.Sharing.of(w)
    values, planes = pattern.encode()
    assert len(planes) == (math.ceil(math.log2(len(pattern))) if len(pattern) else 0)
    assert planes.shape[1] == math.ceil(w.numel() / 8)
    assert torch.equal(wsr.Sharing.decode(values, planes, shape), w)
    assert pattern.bits == 64 * len(pattern) + 8 * planes.numel()


def test_groups_and_what_is_not_finite_are_encoded_too() -> None:
    w = torch.tensor([[math.nan, math.inf, 1.0], [1.0, -math.inf, math.nan]])
    for dim in (None, 0, 1):
        values, planes = wsr.Sharing.of(w, dim=dim).encode()
        assert bits(wsr.Sharing.decode(values, planes, w.shape)) == bits(w)


def test_labels_of_many_bits() -> None:
    w = torch.randperm(70_000).float()
    values, planes = wsr.Sharing.of(w).encode()
    assert planes.shape == (17, 8750)
    assert torch.equal(wsr.Sharing.decode(values, planes, w.shape), w)


def test_planes_of_other_weights_are_refused() -> None:
    values, planes = wsr.Sharing.of(torch.arange(5.0)).encode()
    message = r"^planes must have the shape \(3, 2\) for 5 values and 9 weights; got \(3, 1\)$"
    with pytest.raises(ValueError, match=message):
        wsr.Sharing.decode(values, planes, (3, 3))
    with pytest.raises(ValueError, match=r"^planes must have the shape \(2, 1\) for 4 values"):
        wsr.Sharing.decode(values[:4], planes, (5,))


def huffman(counts: list[int]) -> int:
    """Return the bits that Huffman's code words take, one for each thing counted."""
    heap, total = sorted(counts), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=12))
def test_the_entropy_bound_lies_within_a_bit_a_weight_of_huffmans_code(counts: list[int]) -> None:
    w = torch.arange(float(len(counts))).repeat_interleave(torch.tensor(counts))
    pattern = wsr.Sharing.of(w)
    codebook = 32 * len(counts)
    assert codebook + huffman(counts) >= pattern.entropy_bits * (1 - 1e-14)
    assert codebook + huffman(counts) < pattern.entropy_bits + len(w)
    assert pattern.entropy_bits <= pattern.bits


def test_the_entropy_of_equal_shares_is_a_logarithm() -> None:
    assert wsr.Sharing.of(torch.arange(4.0).repeat(6)).entropy_bits == 4 * 32 + 24 * 2
    assert wsr.Sharing.of(torch.zeros(5, dtype=torch.float16)).entropy_bits == 16
    assert wsr.Sharing.of(torch.zeros(0)).entropy_bits == 0


# Summaries


@given(w=tensors())
def test_a_row_counts_what_it_says(device: torch.device, w: torch.Tensor) -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(w.to(device))
    (row,) = wsr.summary(module)
    values = w.tolist()
    assert row.name == "w"
    assert row.weights == len(values)
    assert row.distinct == len(set(values))
    assert row.zeros == values.count(0.0)
    assert row.largest == max(Counter(values).values())
    assert row.dense_bits == 8 * w.nbytes
    exact = oracles.penalty(values)
    room = 4 * len(values) * oracles.ulp(max(map(abs, values)) * len(values), torch.float64)
    assert abs(Fraction(row.penalty) - exact) <= Fraction(room)
    pattern = wsr.Sharing.of(w.to(device))
    assert (row.bits, row.entropy_bits) == (pattern.bits, pattern.entropy_bits)


def test_a_row_for_each_parameter_tied_or_not() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(2, 1)))
    names = ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    before = wsr.summary(net)
    assert [row.name for row in before] == names
    wsr.tie(net, "0.weight")
    wsr.tie(net, "1.0.bias")
    assert {row.name: row for row in wsr.summary(net)} == {row.name: row for row in before}


def test_a_row_for_a_parameter_of_several_parts() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    assert [(row.name, row.weights) for row in wsr.summary(layer)] == [("bias", 2), ("weight", 6)]


def test_the_line_of_a_row() -> None:
    layer = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 1.0, 2.0]).expand(3, 3))
    (row,) = wsr.summary(layer)
    assert str(row) == (
        "weight: 9 weights, 3 distinct, 3 zero, largest cluster 3, R 4.5, "
        "16 of 36 bytes (entropy 13.8)"
    )


def test_nothing_is_made_on_another_device() -> None:
    layer = torch.nn.Linear(3, 2)
    expected = wsr.summary(layer)
    with torch.device("meta"):
        assert wsr.summary(layer) == expected
        values, planes = wsr.Sharing.of(layer.weight).encode()
        assert torch.equal(wsr.Sharing.decode(values, planes, (2, 3)), layer.weight)


def test_parameters_without_an_entry() -> None:
    module = torch.nn.Module()
    assert wsr.summary(module) == []
    module.w = torch.nn.Parameter(torch.ones(0, 2))
    assert wsr.summary(module) == [("w", 0, 0, 0, 0, 0.0, 0, 0, 0.0)]


def test_what_cannot_be_summed_up() -> None:
    with pytest.raises(TypeError, match=r"^module must be a torch\.nn\.Module; got Tensor$"):
        wsr.summary(torch.ones(2))
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"^scale must have one of .*; got torch\.complex64$"):
        wsr.summary(module)
