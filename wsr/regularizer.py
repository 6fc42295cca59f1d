r"""What is R(w), and how far is a candidate from optimal?

The penalty R(w) = 1/(d-1) * sum over pairs |w_i - w_j| is linear in the sorted weights, and the
largest of d! linear functions in any order: the support function of the permutahedron.  Its
value, its gauge and the certificate of optimality therefore all cost one sort.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsr.arguments import Dim, Groups, check_strength, check_weights
from wsr.exact_sums import ExactSums


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
        If ``dim`` does not name dimensions of ``w``, or a group is larger than 2^31 - 1.

    Notes
    -----
    Not finite for a group with a NaN or an infinity.  Costs O(d log d), by the rank form in the
    chapter *The penalty*.  The value is about as large as d times the spread of the weights,
    which can overflow in float16.  The penalty is that of Shakerinava et al. (2024), arXiv
    2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> wsr.penalty(torch.tensor([0.0, 1.0, 3.0]))  # (1 + 3 + 2) / 2
    tensor(3.)
    """
    check_weights("w", w)
    ascending = Groups(w.shape, dim).rows(w).sort(dim=-1).values.double()
    above_least = ascending - ascending[..., :1].detach()  # the coefficients sum to zero
    return (rank_coefficients(ascending) * above_least).sum(-1).to(w.dtype)


def rank_coefficients(ascending: Tensor) -> Tensor:
    """Return (number of smaller weights - number of larger weights) / (d - 1) along sorted rows.

    Of all subgradients of R this is the one of least norm: tied weights share their mean rank.
    """
    d = ascending.shape[-1]
    ascending = ascending.detach()
    smaller = torch.searchsorted(ascending, ascending)
    not_larger = torch.searchsorted(ascending, ascending, right=True)
    return (smaller + not_larger - d).double() / max(d - 1, 1)


def gauge(s: Tensor, lambd: float | Tensor = 1.0, *, l1: float | Tensor = 0.0) -> Tensor:
    r"""Return the least t >= 0 for which s / t is a subgradient of lambd R + l1 norm somewhere.

    .. math:: \max_{1 \le m \le d}
              \frac{\max(\text{sum of the $m$ largest } s_i,\; -\text{sum of the $m$ smallest})}
                   {\lambda\, m (d-m) / (d-1) + \ell_1 m}

    With ``l1=0`` this is the polar gauge of R, which lives on vectors of zero sum: the mean of s is
    taken off first.  Then ``gauge(w)`` is the least lambd for which prox ties all of w together.

    Parameters
    ----------
    s : Tensor
        Shape ``(..., d)``; each row is one vector.
    lambd, l1 : float or 0-dim Tensor
        Strengths of the two penalties, not negative.

    Returns
    -------
    Tensor
        float64, shape ``(...)``; NaN for a row with a NaN or an infinity.

    Raises
    ------
    TypeError
        If ``s`` is not a floating-point tensor.
    ValueError
        If ``s`` has no dimension, or a strength is negative or not finite.

    Notes
    -----
    Derived in the chapter *Duality and certificates*.

    Examples
    --------
    >>> import torch
    >>> from wsr.regularizer import gauge
    >>> gauge(torch.tensor([0.0, 1.0, 2.0]))  # so lambd = 1 makes all three equal
    tensor(1., dtype=torch.float64)
    """
    check_weights("s", s)
    check_strength("lambd", lambd)
    check_strength("l1", l1)
    if s.ndim == 0:
        raise ValueError("s must have at least one dimension; got a 0-dim tensor")
    d = s.shape[-1]
    lambd, l1 = _on(s.device, lambd, l1)
    m = torch.arange(1, d + 1, dtype=torch.float64, device=s.device)
    room = lambd * (m * (d - m) / max(d - 1, 1)) + l1 * m
    s = s.double()
    s = s - torch.where(l1 == 0, s.mean(-1, keepdim=True), 0.0)
    sums = ExactSums(s.sort(dim=-1).values)
    k = torch.arange(d, device=s.device).expand_as(s)
    smallest = sums.float_total(torch.zeros_like(k), k + 1)
    largest = sums.float_total(d - 1 - k, torch.full_like(k, d))
    need = torch.maximum(largest, -smallest)
    # Without l1 there is no room for the sum of all, of which rounding may have left a rest.
    fits = (need <= 0) | ((l1 == 0) & (m == d))
    quotient = F.pad(torch.where(fits, 0.0, need / room), (1, 0)).amax(-1)
    return torch.where(s.isfinite().all(-1), quotient, torch.nan)


def _on(device: torch.device, *strengths: float | Tensor) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64, device=device).detach() for v in strengths]


def duality_gap(
    u: Tensor, w: Tensor, lambd: float | Tensor, *, l1: float | Tensor = 0.0, dim: Dim = None
) -> Tensor:
    r"""Return a bound on how far u is from minimizing the objective that prox minimizes.

    .. math:: P(u) - \min_{u'} P(u') \le \text{gap}, \qquad
              P(u) = \tfrac12 \|u - w\|^2 + \lambda R(u) + \ell_1 \|u\|_1

    P is strongly convex, so also ``|u - prox|^2 / 2 <= gap``.  The bound comes from a feasible
    point of the dual problem, w - u pushed into the set of subgradients; no oracle is needed.
    If u is the prox up to a rounding error, with the right ties, the gap is about half the
    square of that error.

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
        float64, not negative; 0-dim for ``dim=None``, else one bound per group; NaN for a group
        with a NaN or an infinity.  True up to the rounding of sums in float64.

    Raises
    ------
    TypeError
        If ``u`` or ``w`` is not a floating-point tensor.
    ValueError
        If the shapes differ, a strength is negative or not finite, or ``dim`` is bad.

    Notes
    -----
    Costs O(d log d).  Squares of differences below 1e-160 vanish.  Derived in the chapter *Duality
    and certificates*.

    Examples
    --------
    >>> import torch, wsr
    >>> w = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    >>> wsr.duality_gap(wsr.prox(w, 0.5), w, 0.5)
    tensor(0., dtype=torch.float64)
    >>> wsr.duality_gap(w, w, 0.5)
    tensor(0.2500, dtype=torch.float64)
    """
    check_weights("u", u)
    check_weights("w", w)
    check_strength("lambd", lambd)
    check_strength("l1", l1)
    if u.shape != w.shape:
        raise ValueError(f"u must have the shape of w, {tuple(w.shape)}; got {tuple(u.shape)}")
    groups = Groups(w.shape, dim)
    primal, given = (groups.rows(v.detach()).double() for v in (u, w))
    if groups.size == 0:
        return primal.sum(-1)
    valid = (primal.isfinite() & given.isfinite()).all(-1)
    primal, given = (torch.where(valid.unsqueeze(-1), v, 0.0) for v in (primal, given))
    lambd, l1 = _on(w.device, lambd, l1)
    residual, order = (given - primal).sort(dim=-1)
    primal = primal.gather(-1, order)
    gap = torch.minimum(
        _gap_anywhere(primal, residual, lambd, l1), _gap_at_u(primal, residual, lambd, l1)
    )
    return torch.where(valid, gap.nan_to_num(nan=torch.inf), torch.nan)


def _gap_anywhere(u: Tensor, residual: Tensor, lambd: Tensor, l1: Tensor) -> Tensor:
    """Return the gap to a dual point near the sorted residual w - u: of use for any u."""
    begin = torch.zeros_like(residual, dtype=torch.int64)
    end = torch.full_like(begin, residual.shape[-1])
    dual = _dual_point(residual, torch.zeros_like(u), begin, end, lambd, l1.expand_as(u))
    value = lambd * penalty(u, -1) + l1 * u.abs().sum(-1)
    slack = (value - (dual * u).sum(-1)).clamp(min=0)
    return 0.5 * (dual - residual).square().sum(-1) + slack


def _gap_at_u(u: Tensor, residual: Tensor, lambd: Tensor, l1: Tensor) -> Tensor:
    """Return the gap to a subgradient at u near the residual: much less if u has its ties right.

    There the dual point times u is the value of the penalties, so there is no slack.
    """
    u, order = u.sort(dim=-1, stable=True)
    residual = residual.gather(-1, order)  # sorted among tied u
    begin, end = torch.searchsorted(u, u), torch.searchsorted(u, u, right=True)
    centre = lambd * rank_coefficients(u) + l1 * u.sign()
    dual = _dual_point(residual, centre, begin, end, lambd, torch.where(u == 0, l1, 0.0))
    return 0.5 * (dual - residual).square().sum(-1)


def _dual_point(
    residual: Tensor, centre: Tensor, begin: Tensor, end: Tensor, lambd: Tensor, box: Tensor
) -> Tensor:
    """Push the residual into a product of sets, one for each range begin <= k < end.

    Such a set is the centre plus all r of which every m entries sum to at most
    lambd m (size - m) / (d - 1) + box m in absolute value.  Clamping fits single entries, a shift
    all of them together, scaling the rest.  The residual is sorted within each range.
    """
    d = residual.shape[-1]
    k = torch.arange(d, device=residual.device).expand_as(begin)
    unit, size = lambd / max(d - 1, 1), end - begin

    def over_room(need: Tensor, m: Tensor) -> Tensor:
        room = unit * (m * (size - m)) + box * m
        return torch.where((need > 0) & (m < size), need / room, 0.0)

    reach = unit * (size - 1) + box
    r = (residual - centre).clamp(-reach, reach)
    mean = ExactSums(r).float_mean(begin, end)
    r = r - (mean - mean.clamp(-box, box))
    sums = ExactSums(r)
    smallest = over_room(-sums.float_total(begin, k + 1), k + 1 - begin)
    largest = over_room(sums.float_total(k, end), end - k)
    excess = torch.ones_like(r).scatter_reduce(-1, begin, torch.maximum(smallest, largest), "amax")
    return centre + r / excess.gather(-1, begin)
