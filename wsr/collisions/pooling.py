"""One particle after another, with a stack: the serial reference."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsr.compilation import compiled
from wsr.exact_sums import LIMB, ExactSums, separated


def pool_adjacent_violators(z: Tensor) -> Tensor:
    """Return the heads of the clusters, found from left to right on one CPU core.

    Each particle starts a cluster, which absorbs the one before it for as long as that one's mean
    end point is not smaller.

    Parameters
    ----------
    z : Tensor
        Shape (..., d): the free end points of sorted particles, finite.

    Returns
    -------
    Tensor
        bool, shape (..., d): True at the first particle of each cluster.

    Notes
    -----
    O(d) work, all of it serial; tensors on an accelerator are copied to the host and back.  The
    classical algorithm for isotonic regression: Ayer et al. (1955), doi:10.1214/aoms/1177728423.
    The first call compiles it (numba, cached on disk).

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.ALGORITHMS["pool_adjacent_violators"](torch.tensor([2.0, 0.0, 1.0, 3.0]))
    tensor([ True, False, False,  True])
    """
    sums = ExactSums(z.cpu())
    heads: Tensor = _pooled_heads(sums.high, sums.low)
    return heads.to(z.device) | separated(z)


# An operator, because torch.compile would look into a function, and numba's are opaque.
@torch.library.custom_op("wsr::pool_adjacent_violators", mutates_args=())
def _pooled_heads(high: Tensor, low: Tensor) -> Tensor:
    rows, d = math.prod(high.shape[:-1]), high.shape[-1] - 1
    heads = torch.zeros(*high.shape[:-1], d, dtype=torch.bool, device="cpu")
    prefix = (limb.reshape(rows, d + 1).numpy() for limb in (high, low))
    _compiled()(*prefix, heads.view(rows, d).numpy())
    return heads


@_pooled_heads.register_fake
def _(high: Tensor, low: Tensor) -> Tensor:
    return high.new_empty(*high.shape[:-1], high.shape[-1] - 1, dtype=torch.bool)


def _pool(high: NDArray[np.int64], low: NDArray[np.int64], heads: NDArray[np.bool_]) -> None:
    rows, d = heads.shape
    begins = np.empty(d, np.int64)  # of the clusters on the stack, with their exact means
    wholes = np.empty(d, np.int64)
    remainders = np.empty(d, np.int64)
    for row in range(rows):
        top = -1
        for end in range(1, d + 1):
            begin = end - 1
            while True:
                count = end - begin
                total = high[row, end] - high[row, begin]
                whole = total // count
                carried = ((total - whole * count) << LIMB) + low[row, end] - low[row, begin]
                digit = carried // count
                whole = (whole << LIMB) + digit
                remainder = carried - digit * count
                if top < 0 or wholes[top] < whole:
                    break
                count_before = begin - begins[top]
                if wholes[top] == whole and remainders[top] * count < remainder * count_before:
                    break
                begin = begins[top]
                top -= 1
            top += 1
            begins[top], wholes[top], remainders[top] = begin, whole, remainder
        for n in range(top + 1):
            heads[row, begins[n]] = True


@functools.cache
def _compiled() -> Callable[..., None]:
    return compiled(_pool)
