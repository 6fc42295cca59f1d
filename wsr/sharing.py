"""Who is tied to whom?"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsr.arguments import Dim, Groups, check_weights
from wsr.particles import average, unsort


@dataclass(frozen=True, eq=False)
class Sharing:
    """The pattern of exactly equal weights: ``Sharing.of(w)``, and ``len`` counts the values.

    Attributes
    ----------
    labels : Tensor
        int64, of the shape of w: which of the values each weight has.
    values : Tensor
        Shape (len,): the distinct values, ascending within each group, groups one after another;
        so ``values[labels]`` equals w.
    counts : Tensor
        int64, shape (len,): how many weights share each value.

    Examples
    --------
    >>> import torch, wsr
    >>> pattern = wsr.Sharing.of(torch.tensor([0.5, 0.0, 0.5, 2.0]))
    >>> len(pattern), pattern.labels
    (3, tensor([1, 0, 1, 2]))
    >>> pattern.average(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([2., 2., 2., 4.])
    """

    labels: Tensor
    values: Tensor
    counts: Tensor

    @classmethod
    def of(cls, w: Tensor, dim: Dim = None) -> "Sharing":
        """Return the pattern of w: weights of one group share a label if they are equal.

        Parameters
        ----------
        w : Tensor
            float16, bfloat16, float32 or float64.
        dim : int or tuple of int, optional
            The groups, as in :func:`wsr.penalty`.

        Returns
        -------
        Sharing
            A NaN shares with nothing.

        Raises
        ------
        TypeError
            If ``w`` is not a tensor of one of these dtypes.
        ValueError
            If ``dim`` does not name dimensions of ``w``, or a group is larger than 2^31 - 1.

        Examples
        --------
        >>> import torch, wsr
        >>> wsr.Sharing.of(torch.tensor([[1.0, 1.0], [1.0, 3.0]]), dim=1).labels
        tensor([[0, 0],
                [1, 2]])
        """
        check_weights("w", w)
        groups = Groups(w.shape, dim)
        x, order = groups.rows(w.detach()).sort(dim=-1)
        heads = torch.ones_like(x, dtype=torch.bool)
        heads[..., 1:] = x[..., 1:] != x[..., :-1]
        label = heads.flatten().cumsum(0).view(x.shape) - 1
        values = x[heads]
        return cls(
            labels=groups.restore(unsort(label, order)),
            values=values,
            counts=torch.bincount(label.flatten()),
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def bits(self) -> int:
        """The bits of what :meth:`encode` returns: more than w itself has if little is shared."""
        planes, width = _planes(len(self), self.labels.numel())
        return 8 * (self.values.element_size() * len(self) + planes * width)

    @property
    def entropy_bits(self) -> float:
        r"""The least size, in bits, of the codebook and one code word for each weight.

        .. math:: 8 \, \mathrm{bytes}(\mathrm{values})
                  + \sum_k n_k \log_2 \frac{d}{n_k}, \qquad n = \mathrm{counts}

        The sum is d times the entropy of the labels: Shannon's bound for the code words, which a
        Huffman code exceeds by less than one bit a weight.  Codes that use how the labels of
        neighbouring weights depend on each other may need less.
        """
        n = self.counts.double()
        words = n * (n.sum() / n).log2()
        return 8 * self.values.element_size() * len(self) + float(words.sum())

    def encode(self) -> tuple[Tensor, Tensor]:
        """Return the codebook and the labels, of which each takes as many bits as it needs.

        Returns
        -------
        values : Tensor
            The codebook, on the CPU.
        planes : Tensor
            uint8, shape (b, d / 8 rounded up) with b = log2(len) rounded up, on the CPU: bit i of
            ``planes[j]``, bytes in order and their lowest bit first, is bit j of the label of
            weight i.

        Examples
        --------
        >>> import torch, wsr
        >>> w = torch.tensor([0.5, 0.0, 0.5, 2.0])
        >>> values, planes = wsr.Sharing.of(w).encode()
        >>> values, planes  # the labels are 1, 0, 1, 2
        (tensor([0.0000, 0.5000, 2.0000]), tensor([[5],
                [8]], dtype=torch.uint8))
        >>> wsr.Sharing.decode(values, planes, w.shape)
        tensor([0.5000, 0.0000, 0.5000, 2.0000])
        """
        labels = self.labels.flatten().cpu().numpy()
        shape = _planes(len(self), labels.size)
        planes = np.empty(shape, dtype=np.uint8)
        for j in range(shape[0]):
            planes[j] = np.packbits((labels >> j & 1).astype(bool), bitorder="little")
        return self.values.cpu(), torch.from_numpy(planes)

    @staticmethod
    def decode(values: Tensor, planes: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the weights that :meth:`encode` was given, bit for bit.

        Only where w holds both zeros are they given one sign.

        Parameters
        ----------
        values, planes : Tensor
            What :meth:`encode` returned.
        shape : tuple of int
            The shape of the weights.

        Raises
        ------
        ValueError
            If ``planes`` does not have the shape that belongs to that many values and weights.
        """
        d = math.prod(shape)
        expected = _planes(len(values), d)
        if planes.shape != expected:
            raise ValueError(
                f"planes must have the shape {expected} for {len(values)} values and {d} weights; "
                f"got {tuple(planes.shape)}"
            )
        labels = np.zeros(d, dtype=np.int64)
        for j, plane in enumerate(planes.numpy()):
            labels |= np.unpackbits(plane, count=d, bitorder="little").astype(np.int64) << j
        return values[torch.from_numpy(labels)].view(shape)

    def average(self, w: Tensor) -> Tensor:
        """Return the tensor of this pattern that is nearest to w: each cluster at its mean.

        Parameters
        ----------
        w : Tensor
            Of the shape of ``labels``.

        Returns
        -------
        Tensor
            Of the shape and dtype of ``w``; averaged in float64.  A cluster with a NaN or an
            infinity becomes NaN.  Differentiable.

        Raises
        ------
        TypeError
            If ``w`` is not a floating-point tensor.
        ValueError
            If the shape differs.
        """
        check_weights("w", w)
        if w.shape != self.labels.shape:
            raise ValueError(
                f"w must have the shape {tuple(self.labels.shape)}; got {tuple(w.shape)}"
            )
        order = self.labels.flatten().argsort(stable=True)
        heads = torch.zeros_like(order, dtype=torch.bool)
        heads[self.counts.cumsum(0) - self.counts] = True
        means = average(w.flatten().gather(0, order).double(), heads)
        return unsort(means, order).view(w.shape).to(w.dtype)


class Summary(NamedTuple):
    """What one parameter shares; ``str`` gives a line to print, with sizes in bytes.

    Attributes
    ----------
    name : str
        The parameter, as ``named_parameters`` names it before it is tied.
    weights : int
        How many weights it has.
    distinct : int
        How many values they have.
    zeros : int
        How many are zero.
    largest : int
        How many are in the largest cluster, that of the zeros included.
    penalty : float
        R of the parameter, all of its weights being one group.
    dense_bits : int
        Size of the weights as they are.
    bits : int
        Size of codebook and labels: :attr:`Sharing.bits`.
    entropy_bits : float
        The least that codebook and labels can take: :attr:`Sharing.entropy_bits`.
    """

    name: str
    weights: int
    distinct: int
    zeros: int
    largest: int
    penalty: float
    dense_bits: int
    bits: int
    entropy_bits: float

    def __str__(self) -> str:
        sizes = f"{self.bits // 8} of {self.dense_bits // 8} bytes"
        return (
            f"{self.name}: {self.weights} weights, {self.distinct} distinct, {self.zeros} zero, "
            f"largest cluster {self.largest}, R {self.penalty:.4g}, "
            f"{sizes} (entropy {self.entropy_bits / 8:.1f})"
        )


def summary(module: nn.Module) -> list[Summary]:
    """Return how far the weights of each parameter are shared: to look at while training.

    Parameters
    ----------
    module : torch.nn.Module
        Tied and otherwise parametrized parameters count as the weights that they stand for.

    Returns
    -------
    list of Summary
        One row a parameter, in the order of ``module.named_parameters()``.

    Raises
    ------
    TypeError
        If ``module`` is not a module, or a parameter not of a floating-point dtype.

    Notes
    -----
    Costs one sort a parameter, and waits for the device: a glance once an epoch rather than once a
    step.

    Examples
    --------
    >>> import torch, wsr
    >>> layer = torch.nn.Linear(4, 2)
    >>> for p in layer.parameters():
    ...     p.data.zero_()[..., 0] = 2.0
    >>> for row in wsr.summary(layer):
    ...     print(row)
    weight: 8 weights, 2 distinct, 6 zero, largest cluster 6, R 3.429, 9 of 32 bytes (entropy 8.8)
    bias: 2 weights, 2 distinct, 1 zero, largest cluster 1, R 2, 9 of 8 bytes (entropy 8.2)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}")
    # What a parametrization keeps in "path.parametrizations.name.*" stands for "path.name".
    names = (
        re.sub(r"parametrizations\.([^.]+)\..*", r"\1", name)
        for name, _ in module.named_parameters()
    )
    return [_row(module, name) for name in dict.fromkeys(names)]


def _row(module: nn.Module, name: str) -> Summary:
    path, _, leaf = name.rpartition(".")
    w = getattr(module.get_submodule(path), leaf)
    check_weights(name, w)
    pattern = Sharing.of(w)
    return Summary(
        name,
        weights=w.numel(),
        distinct=len(pattern),
        zeros=int(pattern.counts[pattern.values == 0].sum()),
        largest=int(pattern.counts.amax()) if len(pattern) else 0,
        penalty=_penalty(pattern),
        dense_bits=8 * w.element_size() * w.numel(),
        bits=pattern.bits,
        entropy_bits=pattern.entropy_bits,
    )


def _penalty(pattern: Sharing) -> float:
    """Return R of a pattern of one group: each pair of clusters counts n_j n_k times."""
    d = pattern.labels.numel()
    smaller = pattern.counts.cumsum(0) - pattern.counts
    larger = d - smaller - pattern.counts
    above_least = pattern.values.double() - pattern.values[:1].double()
    return float((pattern.counts * (smaller - larger) * above_least).sum()) / max(d - 1, 1)


def _planes(values: int, weights: int) -> tuple[int, int]:
    """Return how many bits a label has, and how many bytes one of them takes for all weights."""
    return max(values - 1, 0).bit_length(), -(-weights // 8)
