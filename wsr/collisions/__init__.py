"""Which neighbours end up together?  One algorithm a file.

Every algorithm takes the free end points ``z`` of sorted particles, a finite floating-point tensor
of shape (..., d), and returns ``heads``, a bool tensor of that shape: True at the first particle
of each cluster.  Clusters that touch count as one.  All of them compare exact means on the grid of
:mod:`wsr.exact_sums`, 2^-62 of the largest end point of the row wide, and give the same heads; they
differ in the time they take.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from wsr.collisions.bridging import bridges
from wsr.collisions.end import end_collisions
from wsr.collisions.imminent import imminent_collisions
from wsr.collisions.pooling import pool_adjacent_violators
from wsr.collisions.search import search_collisions

Algorithm = Callable[[Tensor], Tensor]

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "pool_adjacent_violators": pool_adjacent_violators,
        "end_collisions": end_collisions,
        "imminent_collisions": imminent_collisions,
        "search_collisions": search_collisions,
        "bridges": bridges,
    }
)

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "bridges",
    "end_collisions",
    "imminent_collisions",
    "pool_adjacent_violators",
    "search_collisions",
]
