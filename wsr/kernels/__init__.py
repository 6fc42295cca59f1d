"""Which device has a path of its own, from weights to weights in one go?

A path gives the values of the composed one in :mod:`wsr.proximal_mapping`, records no gradient, and
is imported when weights on its device first arrive.
"""

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

Path = Callable[[Tensor, float | Tensor, float | Tensor, float], Tensor | None]


def path_for(rows: Tensor) -> Path | None:
    """Return the path for these rows, None if there is none."""
    if rows.device.type == "cpu":
        from wsr.kernels.cpu import prox_rows

        return prox_rows
    if rows.device.type == "cuda" and find_spec("triton"):  # PyTorch for CUDA brings it
        from wsr.kernels import cuda

        return cuda.prox_rows
    return None
