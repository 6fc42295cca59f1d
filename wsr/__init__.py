"""Weight-sharing regularization: the penalty, its proximal mapping, and training with it.

R(w) = 1/(d-1) * sum over pairs |w_i - w_j| pulls weights together until many are exactly equal.
"""

from wsr.collisions import ALGORITHMS
from wsr.optim import proximal
from wsr.particles import Trajectory, simulate
from wsr.proximal_mapping import prox
from wsr.regularizer import duality_gap, penalty
from wsr.sharing import Sharing, Summary, summary
from wsr.tying import tie, untie

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "Sharing",
    "Summary",
    "Trajectory",
    "duality_gap",
    "penalty",
    "prox",
    "proximal",
    "simulate",
    "summary",
    "tie",
    "untie",
]
