"""One table of algorithms, one test a property."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import end_points, weights
from torch import Tensor

import wsr
from wsr.collisions import Algorithm
from wsr.particles import free_end_points

each_algorithm = pytest.mark.parametrize("find_heads", wsr.ALGORITHMS.values(), ids=wsr.ALGORITHMS)


def adversarial(d: int) -> Tensor:
    """Half of the weights tied, half one-sided: ImminentCollisions needs d/2 + 1 rounds."""
    delta = 2 / (d - 1)
    k = torch.arange(1, d // 2 + 1, dtype=torch.float64)
    return free_end_points(torch.cat([torch.zeros(d - d // 2).double(), 1.25 * delta * k]), 1.0)


def test_the_table_names_the_algorithms() -> None:
    assert list(wsr.ALGORITHMS) == [
        "pool_adjacent_violators",
        "end_collisions",
        "imminent_collisions",
        "search_collisions",
        "bridges",
    ]
    for name, algorithm in wsr.ALGORITHMS.items():
        assert algorithm.__name__ == name
    with pytest.raises(TypeError):
        wsr.ALGORITHMS["mine"] = None


@each_algorithm
@given(z=end_points())
def test_heads_are_those_of_exact_arithmetic(
    find_heads: Algorithm, device: torch.device, z: list[float]
) -> None:
    heads = find_heads(torch.tensor(z, dtype=torch.float64, device=device))
    assert heads.dtype == torch.bool
    assert heads.tolist() == oracles.heads(z)


@each_algorithm
@given(z=st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=40))
def test_touching_clusters_count_as_one(
    find_heads: Algorithm, device: torch.device, z: list[float]
) -> None:
    assert find_heads(torch.tensor(z, device=device)).tolist() == oracles.heads(z)


@each_algorithm
@settings(max_examples=200)
@given(units=st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_fractions_at_the_bottom_of_the_grid_decide(
    find_heads: Algorithm, device: torch.device, units: list[int]
) -> None:
    # The last end point fixes the grid, of which the others are a few units each.
    z = [k * 2.0**-62 for k in units] + [0.75]
    assert find_heads(
        torch.tensor(z, dtype=torch.float64, device=device)
    ).tolist() == oracles.heads(z)


@each_algorithm
@pytest.mark.parametrize("k", [-1, 0, 1])
def test_both_limbs_decide(find_heads: Algorithm, device: torch.device, k: int) -> None:
    # The first two have the mean 2^-32, half a unit of the upper limb; the third is k units of the
    # lower one away from it.
    z = [2.0**-31, 0.0, 2.0**-32 + k * 2.0**-62, 0.75]
    assert find_heads(
        torch.tensor(z, dtype=torch.float64, device=device)
    ).tolist() == oracles.heads(z)


@each_algorithm
def test_each_row_has_a_grid_of_its_own(find_heads: Algorithm, device: torch.device) -> None:
    row = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = row * torch.tensor([[1e-300], [1e-3], [1.0], [1e300]], dtype=torch.float64)
    assert find_heads(z.to(device)).tolist() == [oracles.heads(row.tolist())] * 4


@each_algorithm
@given(seed=st.integers(0, 2**32 - 1), pull=st.sampled_from([0.0, 0.01, 0.5, 1.25, 2.0, 5.0]))
def test_long_random_rows(
    find_heads: Algorithm, device: torch.device, seed: int, pull: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    d = int(torch.randint(50, 300, (), generator=generator))
    x = torch.randn(d, dtype=torch.float64, generator=generator).sort().values
    z = free_end_points(x, pull)
    assert find_heads(z.to(device)).tolist() == oracles.heads(z.tolist())


@each_algorithm
@pytest.mark.parametrize("d", [2, 3, 10, 64, 65, 257])
def test_adversarial_input(find_heads: Algorithm, device: torch.device, d: int) -> None:
    z = adversarial(d)
    assert find_heads(z.to(device)).tolist() == oracles.heads(z.tolist())


@each_algorithm
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (0, 3), (2, 1), (2, 3, 17)])
def test_leading_dimensions_are_a_batch(
    find_heads: Algorithm, device: torch.device, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(
        -2, shape[0] - 2 if len(shape) > 1 else -1
    ).double().view(-1, *[1] * (len(shape) - 1))
    heads = find_heads(z.to(device))
    assert heads.shape == z.shape
    assert heads.device == z.to(device).device
    rows, d = z.reshape(-1, shape[-1]) if z.numel() else [], shape[-1]
    expected = [oracles.heads(row.tolist()) for row in rows]
    assert heads.reshape(-1, max(d, 1)).tolist() == expected


@each_algorithm
def test_rows_that_lie_apart_in_memory(find_heads: Algorithm, device: torch.device) -> None:
    z = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(find_heads(z.T[::2, 1::3]), find_heads(z.T[::2, 1::3].contiguous()))


@each_algorithm
@given(w=weights(max_size=16))
def test_without_pull_only_equal_weights_share(
    find_heads: Algorithm, device: torch.device, w: list[float]
) -> None:
    x = sorted(w)
    heads = find_heads(torch.tensor(x, dtype=torch.float64, device=device))
    assert heads.tolist() == [k == 0 or x[k - 1] < x[k] for k in range(len(x))]


@each_algorithm
def test_a_large_weight_does_not_blur_the_small_ones(
    find_heads: Algorithm, device: torch.device
) -> None:
    z = torch.tensor([-1e300, 1e-300, 2e-300, 2e-300, 1e300], dtype=torch.float64, device=device)
    assert find_heads(z).tolist() == [True, True, True, False, True]
