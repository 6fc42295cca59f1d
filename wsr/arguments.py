"""What arrived? The checks that every public function shares, and the one meaning of ``dim``."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_GROUP = 2**31 - 1  # sums of 31-bit limbs over a group must fit into int64

Dim = int | tuple[int, ...] | None


def check_weights(name: str, w: object) -> None:
    """Raise TypeError unless ``w`` is a tensor of real floating-point numbers."""
    if not isinstance(w, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(w).__name__}")
    if w.dtype not in WEIGHT_DTYPES:
        known = ", ".join(str(dtype) for dtype in WEIGHT_DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {known}; got {w.dtype}")


def check_strength(name: str, value: object) -> None:
    """Raise unless ``value`` is a number or 0-dim tensor, finite and not negative.

    A tensor on an accelerator is not read, for that would stop the host until the device has
    caught up: a bad value there makes the result NaN instead.
    """
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"{name} must be a 0-dim tensor; got shape {tuple(value.shape)}")
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating-point tensor; got {value.dtype}")
        if value.device.type != "cpu":
            return
        value = value.item()
    if not 0 <= _real(name, value) < math.inf:
        raise ValueError(f"{name} must be finite and not negative; got {value}")


def check_fraction(name: str, value: object) -> None:
    """Raise unless ``value`` is a number in [0, 1]."""
    if not 0 <= _real(name, value) <= 1:
        raise ValueError(f"{name} must lie in [0, 1]; got {value}")


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


class Groups:
    """The groups of weights that ``dim`` names, laid out as the rows of a tensor.

    The pairs |w_i - w_j| of the penalty run within a group. ``dim=None`` makes one group of all
    weights; otherwise the group runs over the dimension(s) ``dim``, and every index of the
    remaining dimensions has a group of its own.
    """

    def __init__(self, shape: torch.Size, dim: Dim) -> None:
        self._inside = _normalized(dim, len(shape))
        outside = tuple(k for k in range(len(shape)) if k not in self._inside)
        self._permutation = outside + self._inside
        self._permuted_shape = tuple(shape[k] for k in self._permutation)
        self.shape = self._permuted_shape[: len(outside)]
        self.size = math.prod(self._permuted_shape[len(outside) :])
        if self.size > LARGEST_GROUP:
            raise ValueError(f"a group holds at most {LARGEST_GROUP} weights; got {self.size}")

    def rows(self, w: Tensor) -> Tensor:
        """Return the weights as ``(*self.shape, self.size)``: one group a row."""
        return w.permute(self._permutation).reshape(*self.shape, self.size).contiguous()

    def restore(self, rows: Tensor) -> Tensor:
        """Return the rows to the shape that they came from."""
        inverse = sorted(range(len(self._permutation)), key=self._permutation.__getitem__)
        return rows.reshape(self._permuted_shape).permute(inverse).contiguous()


def _normalized(dim: Dim, ndim: int) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(ndim))
    dims = dim if isinstance(dim, tuple) else (dim,)
    for k in dims:
        if isinstance(k, bool) or not isinstance(k, Integral) or not -ndim <= k < ndim:
            raise ValueError(
                f"dim must be None, an int or a tuple of ints in [{-ndim}, {ndim - 1}] "
                f"for weights of {ndim} dimensions; got {dim!r}"
            )
    positive = tuple(k % ndim for k in dims)
    if not dims or len(set(positive)) != len(dims):
        raise ValueError(f"dim must name at least one dimension, and each one once; got {dim!r}")
    return positive
