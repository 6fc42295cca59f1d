"""All neighbours that would collide merge at once, round after round: ImminentCollisions."""

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from wsr.exact_sums import ExactSums, Mean, separated


def imminent_collisions(z: Tensor) -> Tensor:
    """Return the heads of the clusters, by merging all clusters that would meet their neighbour.

    If the mean end point of a cluster is not smaller than that of the next one, the two collide,
    whatever else happens.  All such pairs merge at once, until there are none.

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
    Each round has constant depth, work proportional to the clusters that are left, and one host
    synchronisation.  There are few rounds while little is shared, but up to d - 1: derived in the
    chapter *When the fast one is slow*.  Shakerinava et al. (2024), arXiv 2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.ALGORITHMS["imminent_collisions"](torch.tensor([2.0, 0.0, 1.0, 3.0]))
    tensor([ True, False, False,  True])
    """
    heads = torch.zeros(z.numel(), dtype=torch.bool, device=z.device)
    (begin,) = deque(merging_rounds(z), maxlen=1)
    heads[begin] = True
    return heads.view(z.shape) | separated(z)


def merging_rounds(z: Tensor) -> Iterator[Tensor]:
    """Yield where the clusters begin: at first every particle is one, then after every round.

    The begins are indices into ``z.flatten()``.  End points that the grid of exact sums cannot tell
    apart count as equal here.
    """
    d = z.shape[-1]
    scale = F.pad(z.double().abs(), (1, 0)).amax(-1, keepdim=True)
    sums = ExactSums(z.flatten(), scale.expand_as(z).flatten())
    last = torch.tensor([z.numel()], device=z.device)
    begin = torch.arange(z.numel(), device=z.device)  # of each cluster, one row after another
    yield begin
    while True:
        mean = sums.mean(begin, torch.cat([begin[1:], last]))
        before = Mean(*(part.roll(1) for part in mean))
        # The first cluster of a row has none before it: what was rolled there does not count.
        imminent = before.at_least(mean) & (begin % max(d, 1) != 0)
        if not imminent.any():
            return
        begin = begin[~imminent]
        yield begin
