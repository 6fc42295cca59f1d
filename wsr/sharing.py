"""Who is tied to whom?"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
