"""A tree of merges, each by a binary search for the collision that crosses the border."""

import torch
from torch import Tensor

from wsr.collisions.merge_tree import merge_tree
from wsr.exact_sums import ExactSums


def search_collisions(z: Tensor) -> Tensor:
    """Return the heads of the clusters, by a binary search in every merge of two ranges.

    A cluster of the left range reaches across the border if its rightmost collision, all clusters
    before it left out, lies in the right range.  If one does, so do all behind it.  The first
    that does begins the new cluster, and its rightmost collision ends it.

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
    log d levels, up to log d steps in each, every step one scan over all right ranges: O(log^3 d)
    depth, O(d log^2 d) work, no host synchronisation.  Proved in the chapter *Search collisions*;
    Theorem 7 of Shakerinava et al. (2024),
    arXiv 2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.ALGORITHMS["search_collisions"](torch.tensor([2.0, 0.0, 1.0, 3.0]))
    tensor([ True, False, False,  True])
    """
    return merge_tree(z, _search)


def _search(
    sums: ExactSums, begin: Tensor, end: Tensor, middle: Tensor, half: int
) -> tuple[Tensor, Tensor]:
    right_ends = middle.unsqueeze(-1) + torch.arange(1, half + 1, device=middle.device)

    def rightmost_collision(first: Tensor) -> Tensor:
        means = sums.mean(first.unsqueeze(-1), right_ends)
        return middle + means.last_minimum() + 1

    # Clusters that begin before low do not reach across, those from high on do.
    low, high = middle - half, middle
    for _ in range(half.bit_length()):
        probe = torch.minimum((low + high) // 2, middle - 1)
        first, next_first = begin.gather(-1, probe), end.gather(-1, probe)
        last = rightmost_collision(first)
        reaches = sums.mean(first, next_first).at_least(sums.mean(first, last))
        low = torch.where(reaches, low, next_first)
        high = torch.where(reaches, first, high)
    return high, torch.where(high < middle, rightmost_collision(high), middle)
