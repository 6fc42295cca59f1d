"""Weights as training makes them, and as it should never make them."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def values(kind: str) -> st.SearchStrategy[float]:
    """Return a strategy for single weights of one kind."""
    return {
        "spread": st.floats(-10, 10, width=32),
        "tied": st.integers(-3, 3).map(lambda k: k * 0.1),
        "nearly tied": st.integers(-3, 3).map(lambda k: 0.7 + k * 2.0**-53),
        "of all sizes": st.tuples(st.sampled_from([-1, 1]), st.integers(-30, 30)).map(
            lambda pair: math.ldexp(*pair)
        ),
    }[kind]


KINDS = ("spread", "tied", "nearly tied", "of all sizes")


@st.composite
def weights(draw: st.DrawFn, min_size: int = 1, max_size: int = 24) -> list[float]:
    """Return one group of weights, all representable in float64."""
    kind = draw(st.sampled_from(KINDS))
    return draw(st.lists(values(kind), min_size=min_size, max_size=max_size))


@st.composite
def tensors(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES, max_size: int = 24
) -> Tensor:
    """Return one group of finite weights in one of the dtypes."""
    dtype = draw(st.sampled_from(dtypes))
    largest = torch.finfo(dtype).max
    w = torch.tensor(draw(weights(max_size=max_size)), dtype=torch.float64)
    return w.clamp(-largest, largest).to(dtype)


# Nothing, a little, about as much as the weights are apart, and more than enough.
STRENGTHS = st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.floats(1.0, 100.0))
THRESHOLDS = st.one_of(st.just(0.0), st.floats(1e-3, 3.0))
FRACTIONS = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0))


@st.composite
def end_points(draw: st.DrawFn) -> list[float]:
    """Return the free end points of sorted particles, with many collisions among them."""
    x = sorted(draw(weights(min_size=0)))
    pull = draw(STRENGTHS)
    d = len(x)
    return [a + pull * (d - 1 - 2 * k) / max(d - 1, 1) for k, a in enumerate(x)]
