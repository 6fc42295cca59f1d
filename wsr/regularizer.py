r"""What is R(w), and how far is a candidate from optimal?

The penalty R(w) = 1/(d-1) * sum over pairs |w_i - w_j| is linear in the sorted weights, and the
largest of d! linear functions in any order: the support function of the permutahedron.  Its
value, its gauge and the certificate of optimality therefore all cost one sort.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsr.arguments import Dim, Groups, check_strength, check_weights


def penalty(w: Tensor, dim: Dim = None) -> Tensor:
    r"""Return the weight-sharing penalty.

    .. math:: R(w) = \frac{1}{d-1} \sum_{i > j} |w_i - w_j|

    Parameters
    ----------
    w : Tensor
        The weights, of any shape; float16, bfloat16, float32 or float64.
    dim : int or tuple of int, optional
        The pairs run within these dimensions.  By default all entries are one group.

    Returns
    -------
    Tensor
        0-dim for ``dim=None``, else one value per index of the remaining dimensions, in the
        dtype of ``w`` (summed in float64).  0 for a group of fewer than two weights.
        Differentiable: the subgradient gives tied weights their mean rank.

    Raises
    ------
    TypeError
        If ``w`` is not a tensor of one of these dtypes.
    ValueError
        If ``dim`` does not name dimensions of ``w``.

    Notes
    -----
    Costs O(d log d).  The rank form is Lemma 1 of the chapter *The penalty*; the penalty is that
    of Shakerinava et al. (2024), arXiv 2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.penalty(torch.tensor([0.0, 1.0, 3.0]))  # (1 + 3 + 2) / 2
    tensor(3.)
    """
    check_weights("w", w)
    ascending = Groups(w.shape, dim).rows(w).sort(dim=-1).values.double()
    return (rank_coefficients(ascending) * ascending).sum(-1).to(w.dtype)


@torch.no_grad()
def rank_coefficients(ascending: Tensor) -> Tensor:
    """Return (number of smaller weights - number of larger weights) / (d - 1) along sorted rows.

    Of all subgradients of R this is the one of least norm: tied weights share their mean rank.
    """
    d = ascending.shape[-1]
    smaller = torch.searchsorted(ascending, ascending)
    not_larger = torch.searchsorted(ascending, ascending, right=True)
    return (smaller + not_larger - d).double() / max(d - 1, 1)


def gauge(s: Tensor, lambd: float | Tensor = 1.0, *, l1: float | Tensor = 0.0) -> Tensor:
    r"""Return the least t >= 0 for which s / t is a subgradient of lambd R + l1 |.|_1 somewhere.

    .. math:: \max_{1 \le m \le d}
              \frac{\max(\text{sum of the $m$ largest } s_i,\; -\text{sum of the $m$ smallest})}
                   {\lambda\, m (d-m) / (d-1) + \ell_1 m}

    With ``l1=0`` this is the polar gauge of R (infinite unless the sum of s vanishes), and
    ``gauge(w - w.mean())`` is the least lambd for which prox ties all weights together.

    Parameters
    ----------
    s : Tensor
        Shape ``(..., d)``; each row is one vector.
    lambd, l1 : float or 0-dim Tensor
        Strengths of the two penalties, not negative.

    Returns
    -------
    Tensor
        float64, shape ``(...)``.

    Examples
    --------
    >>> import torch
    >>> from wsr.regularizer import gauge
    >>> w = torch.tensor([0.0, 1.0, 2.0])
    >>> gauge(w - w.mean())  # so lambd = 1 makes all three equal
    tensor(1., dtype=torch.float64)
    """
    check_weights("s", s)
    check_strength("lambd", lambd)
    check_strength("l1", l1)
    return _need_over_room(s.double(), *_on(s.device, lambd, l1)).amax(-1)


def _need_over_room(s: Tensor, lambd: Tensor, l1: Tensor) -> Tensor:
    """Return the quotient of :func:`gauge` for m = 1 .. d along the last dimension."""
    d = s.shape[-1]
    m = torch.arange(1, d + 1, dtype=torch.float64, device=s.device)
    room = lambd * (m * (d - m) / max(d - 1, 1)) + l1 * m
    ascending = s.sort(dim=-1).values
    largest = ascending.flip(-1).cumsum(-1)
    smallest = ascending.cumsum(-1)
    need = torch.maximum(largest, -smallest)
    return torch.where(need > 0, need / room, 0.0)


def _on(device: torch.device, *strengths: float | Tensor) -> list[Tensor]:
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in strengths]


@torch.no_grad()
def duality_gap(
    u: Tensor, w: Tensor, lambd: float | Tensor, *, l1: float | Tensor = 0.0, dim: Dim = None
) -> Tensor:
    r"""Return a bound on how far u is from minimizing the objective that prox minimizes.

    .. math:: P(u) - \min_{u'} P(u') \le \text{gap}, \qquad
              P(u) = \tfrac12 \|u - w\|^2 + \lambda R(u) + \ell_1 \|u\|_1

    P is strongly convex, so also |u - prox|^2 / 2 <= gap.  The bound comes from a feasible
    point of the dual problem, w - u pushed into the set of subgradients; no oracle is needed.

    Parameters
    ----------
    u : Tensor
        The candidate, of the shape of ``w``.
    w : Tensor
        The weights that were given to :func:`wsr.prox`.
    lambd, l1 : float or 0-dim Tensor
        The strengths that were given to :func:`wsr.prox`.
    dim : int or tuple of int, optional
        The groups, as in :func:`wsr.penalty`.

    Returns
    -------
    Tensor
        float64, not negative; 0-dim for ``dim=None``, else one bound per group.  Exact up to
        the rounding of float64 sums of the size of P(u).

    Raises
    ------
    TypeError
        If ``u`` or ``w`` is not a floating-point tensor.
    ValueError
        If the shapes differ, a strength is negative or not finite, or ``dim`` is bad.

    Notes
    -----
    Costs O(d log d).  Derived in the chapter *The proximal mapping*.

    Examples
    --------
    >>> import torch, wsr
    >>> w = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    >>> wsr.duality_gap(wsr.prox(w, 0.5), w, 0.5)
    tensor(0., dtype=torch.float64)
    >>> wsr.duality_gap(w, w, 0.5) > 1.0
    tensor(True)
    """
    check_weights("u", u)
    check_weights("w", w)
    check_strength("lambd", lambd)
    check_strength("l1", l1)
    if u.shape != w.shape:
        raise ValueError(f"u must have the shape of w, {tuple(w.shape)}; got {tuple(u.shape)}")
    groups = Groups(w.shape, dim)
    primal, given = groups.rows(u).double(), groups.rows(w).double()
    if groups.size == 0:
        return primal.sum(-1)
    strength, l1_strength = _on(w.device, lambd, l1)
    dual = _feasible(given - primal, strength, l1_strength)
    value = strength * penalty(primal, -1) + l1_strength * primal.abs().sum(-1)
    misfit = primal - given + dual
    gap = 0.5 * misfit.square().sum(-1) + (value - (dual * primal).sum(-1))
    return gap.clamp(min=0)


def _feasible(s: Tensor, lambd: Tensor, l1: Tensor) -> Tensor:
    """Push s into the subgradients of lambd R + l1 |.|_1 at 0, leaving it be where it is one.

    That set holds s if and only if every sum of m entries fits into the room of :func:`gauge`.
    Clamping fits single entries, a shift all of them together, scaling the rest.
    """
    s = s.clamp(-(lambd + l1), lambd + l1)
    mean = s.mean(-1, keepdim=True)
    s = s - (mean - mean.clamp(-l1, l1))
    excess = _need_over_room(s, lambd, l1)[..., :-1]  # the last sum was fitted by the shift
    return s / F.pad(excess, (1, 0), value=1.0).amax(-1, keepdim=True).clamp(min=1)
