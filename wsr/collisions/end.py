"""One cluster after another, each by one scan: the paper's EndCollisions."""

import torch
from torch import Tensor

from wsr.exact_sums import ExactSums, separated


def end_collisions(z: Tensor) -> Tensor:
    """Return the heads of the clusters, found one at a time from the left end.

    Nothing is left of the first particle that does not yet belong to a cluster, so its cluster
    reaches to its rightmost collision: the last j at which the mean of z from it to j is least.

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
    As many rounds as the row with the most clusters has, each one scan of O(log d) depth and
    O(d) work, and one host synchronisation.  Shakerinava et al. (2024), arXiv 2311.03096; the
    rightmost collision is their Proposition 6.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.ALGORITHMS["end_collisions"](torch.tensor([2.0, 0.0, 1.0, 3.0]))
    tensor([ True, False, False,  True])
    """
    d = z.shape[-1]
    sums = ExactSums(z)
    heads = torch.zeros(*z.shape[:-1], d + 1, dtype=torch.bool, device=z.device)
    ends = torch.arange(1, d + 1, device=z.device)
    begin = torch.zeros(*z.shape[:-1], 1, dtype=torch.int64, device=z.device)
    while bool((begin < d).any()):
        heads.scatter_(-1, begin, True)  # a finished row writes beyond its end
        # Ends that are not right of begin repeat the first one that is, which wins over them.
        first_end = (begin + 1).clamp(max=d)
        running = sums.mean(first_end - 1, torch.maximum(ends, first_end))
        begin = torch.where(begin < d, running.last_minimum().unsqueeze(-1) + 1, d)
    return heads[..., :d] | separated(z)
