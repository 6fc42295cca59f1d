"""Halves are resolved apart, then joined by one bridge: what two of the algorithms share.

If two neighbouring ranges of particles are resolved separately, resolving their union creates at
most one new cluster: some last clusters of the left range and some first ones of the right range.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wsr.exact_sums import ExactSums, separated
from wsr.particles import bounds

Bridge = Callable[[ExactSums, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def merge_tree(z: Tensor, find_bridge: Bridge) -> Tensor:
    """Return the heads of the clusters of z, shape (..., d), in ceil(log2 d) levels of merges.

    ``find_bridge(sums, begin, end, middle, half)`` joins all pairs of ranges [middle - half,
    middle) and [middle, middle + half) at once; begin and end are the bounds of every particle's
    cluster.  It returns, in the shape of middle, where the new clusters begin and end, both equal
    to middle where none arises.
    """
    d = z.shape[-1]
    if d == 0:
        return torch.ones_like(z, dtype=torch.bool)
    levels = (d - 1).bit_length()
    # A last range that is not full is filled with copies of the largest value: they change no
    # mean but that of a cluster to which all of them belong, at the right end.
    fill = z.amax(-1, keepdim=True).expand(*z.shape[:-1], 2**levels - d)
    filled = torch.cat([z, fill], dim=-1)
    sums = ExactSums(filled)
    heads = torch.ones_like(filled, dtype=torch.bool)
    for level in range(levels):
        half = 2**level
        middle = torch.arange(half, 2**levels, 2 * half, device=z.device)
        first, last = find_bridge(sums, *bounds(heads), middle.expand(*z.shape[:-1], -1), half)
        k = torch.arange(2**levels, device=z.device).view(-1, 2 * half)
        inside = (first.unsqueeze(-1) < k) & (k < last.unsqueeze(-1))
        heads &= ~inside.flatten(-2)
    return heads[..., :d] | separated(z)
