"""Nothing is made on another device than that of the weights.

With "meta" as the default device, a tensor made without naming one cannot meet the weights: a test
that needs no GPU.
"""

from collections.abc import Iterator

import pytest
import torch

import wsr
from wsr.regularizer import gauge


@pytest.fixture
def w() -> Iterator[torch.Tensor]:
    values = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        yield values


@pytest.mark.parametrize("name", ["auto", *wsr.ALGORITHMS])
def test_prox(w: torch.Tensor, name: str) -> None:
    leaf = w.requires_grad_()
    u = wsr.prox(leaf, 0.3, l1=0.1, rho=0.5, dim=1, algorithm=name)
    u.sum().backward()
    assert u.device.type == "cpu"


@pytest.mark.parametrize("name", wsr.ALGORITHMS)
def test_algorithms(w: torch.Tensor, name: str) -> None:
    assert wsr.ALGORITHMS[name](w).device.type == "cpu"
    assert wsr.ALGORITHMS[name](w[:, :0]).device.type == "cpu"


def test_the_rest(w: torch.Tensor) -> None:
    pattern = wsr.Sharing.of(w)
    motion = wsr.simulate(w[0], 0.3)
    results = [
        wsr.penalty(w),
        wsr.duality_gap(w, w, 0.3, l1=0.1),
        gauge(w, 0.3, l1=0.1),
        pattern.labels,
        pattern.values,
        pattern.counts,
        pattern.average(w),
        motion.times,
        motion.positions,
        motion.velocities,
        motion.labels,
        motion.at(0.5),
    ]
    assert {result.device.type for result in results} == {"cpu"}
