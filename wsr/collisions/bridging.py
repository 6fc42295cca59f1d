"""A tree of bridges: every merge searches both sides at once, by weighing momentum."""

import torch
from torch import Tensor

from wsr.collisions.merge_tree import merge_tree
from wsr.exact_sums import ExactSums


def bridges(z: Tensor) -> Tensor:
    """Return the heads of the clusters, by one simultaneous search in every merge of two ranges.

    The clusters a of the left range and b of the right range that merge are those with a >= mu
    and b <= mu, where mu is their common mean: the excess of the left ones over mu makes good
    what the right ones lack.  To weigh the excess over one a against the lack below one b tells
    on which side of mu one of the two lies, and so decides about at least half of the particles
    that were still undecided on its side.

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
    log d levels of at most 2 log d steps, each of constant depth: O(log^2 d) depth beyond the
    prefix sums, no host synchronisation.  The searches take O(d) work in all; this version, in
    plain tensor operations, also marks the bounds of the clusters anew in each level, at
    O(d log d).  Proved in the chapter *A tree of bridges*.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.ALGORITHMS["bridges"](torch.tensor([2.0, 0.0, 1.0, 3.0]))
    tensor([ True, False, False,  True])
    """
    return merge_tree(z, _weigh)


def _weigh(
    sums: ExactSums, begin: Tensor, end: Tensor, middle: Tensor, half: int
) -> tuple[Tensor, Tensor]:
    # If the ranges meet at all, the two clusters at the border do. Undecided are the particles
    # low_a <= k < high_a on the left and low_b <= k < high_b on the right.
    low_a, high_a = middle - half, begin.gather(-1, middle - 1)
    low_b, high_b = end.gather(-1, middle), middle + half
    a, b = sums.mean(high_a, middle), sums.mean(middle, low_b)
    meet = a.at_least(b)
    for _ in range(2 * (half.bit_length() - 1)):
        open_a, open_b = low_a < high_a, low_b < high_b
        # Of a side that is decided, the outermost cluster that merges stands in for the probe.
        probe_a = torch.where(open_a, (low_a + high_a) // 2, high_a)
        probe_b = torch.where(open_b, (low_b + high_b) // 2, low_b - 1)
        first_a, last_a = begin.gather(-1, probe_a), end.gather(-1, probe_a)
        first_b, last_b = begin.gather(-1, probe_b), end.gather(-1, probe_b)
        a, b = sums.mean(first_a, last_a), sums.mean(first_b, last_b)
        crossed = a.at_least(b)
        excess_is_less = sums.at_most(first_a, middle, last_b, a, b)
        # While both are open: mu <= a, all from a on merge; mu < b, none from b on does;
        # mu > b, all up to b merge; mu > a, none up to a does.  Later mu is compared with the
        # mean that the probe would have together with the side that is decided.
        joint = sums.mean(first_a, last_b)
        a_merges = torch.where(open_b, crossed & excess_is_less, a.at_least(joint))
        a_stays = torch.where(open_b, ~crossed & ~excess_is_less, ~a_merges)
        b_merges = torch.where(open_a, crossed & ~excess_is_less, joint.at_least(b))
        b_stays = torch.where(open_a, ~crossed & excess_is_less, ~b_merges)
        high_a = torch.where(a_merges, first_a, high_a)
        low_a = torch.where(a_stays, last_a, low_a)
        low_b = torch.where(b_merges, last_b, low_b)
        high_b = torch.where(b_stays, first_b, high_b)
    return torch.where(meet, high_a, middle), torch.where(meet, low_b, middle)
