"""The front door: from weights to weights."""

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import _get_current_dispatch_mode

from wsr.arguments import Dim, Groups, check_fraction, check_strength, check_weights
from wsr.collisions import ALGORITHMS, Algorithm
from wsr.kernels import path_for
from wsr.particles import average, bounds, free_end_points, unsort, velocity


def prox(
    w: Tensor,
    lambd: float | Tensor,
    *,
    l1: float | Tensor = 0.0,
    rho: float = 0.0,
    dim: Dim = None,
    algorithm: str = "auto",
) -> Tensor:
    r"""Return the proximal mapping of the weight-sharing penalty, and of l1 after it.

    .. math:: \operatorname*{argmin}_u \;
              \tfrac12 \|u - w\|^2 + \lambda R(u) + \ell_1 \|u\|_1,
              \qquad R(u) = \frac{1}{d-1} \sum_{i > j} |u_i - u_j|

    Parameters
    ----------
    w : Tensor
        The weights, of any shape and strides; float16, bfloat16, float32 or float64.  They are
        not changed.
    lambd : float or 0-dim Tensor
        Strength of the sharing, in units of w: the fastest weight moves by at most lambd.  In
        proximal gradient descent it is the learning rate times the strength in the objective.
        A group of one weight does not feel it.
    l1 : float or 0-dim Tensor
        Strength of the l1 penalty, in units of w.
    rho : float
        Relaxation, in [0, 1].  The clusters are those of the full ``lambd`` and the zeros those
        of the full ``l1``, but each cluster moves from the mean of its members by (1 - rho) of
        its displacement only.  0 is the proximal mapping; 1 ties without moving.  With both ``rho``
        and ``l1``, the order of weights on either side of zero may change.
    dim : int or tuple of int, optional
        The groups, as in :func:`wsr.penalty`: each remaining index is a problem of its own, all
        solved in one batch.
    algorithm : str
        A name in :data:`wsr.ALGORITHMS`, or ``"auto"``: the fastest way on this device for this
        size and dtype.  All give the same result.

    Returns
    -------
    Tensor
        A new tensor with the shape, dtype and device of ``w``.  Equal weights stay equal, the
        members of a cluster are bitwise equal, and clusters that l1 removes are +0.0.  A group
        with a NaN or an infinity comes back all NaN, and so does everything if ``lambd`` or
        ``l1`` is a tensor on an accelerator with a bad value.

    Raises
    ------
    TypeError
        If ``w`` is not a tensor of one of these dtypes, or a strength not a number.
    ValueError
        If ``lambd`` or ``l1`` is negative or not finite, ``rho`` outside [0, 1], the algorithm
        unknown, ``dim`` bad, or a group larger than 2^31 - 1.

    Notes
    -----
    Costs O(d log d), less where ``"auto"`` need not sort: weights of 16 bits, and weights of which
    many will be shared.  ``"auto"`` fuses all steps; where gradients are recorded, and in compiled
    graphs, it takes the steps of the algorithms.  Clusters are told apart to 2^-62 of the largest
    of weights and lambd in a group.

    Differentiable: d/dw averages over each cluster (zero where l1 removed it), d/dlambd is the
    velocity of the cluster, d/dl1 is -sign; where the clusters change, these are the derivatives
    of one side.  Derived in the chapters *The proximal mapping* and *Composition*; Theorem 4 of
    Shakerinava et al. (2024), arXiv 2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> w = torch.tensor([0.0, 1.0, 8.0])
    >>> wsr.prox(w, 2.0)
    tensor([1.5000, 1.5000, 6.0000])
    >>> wsr.prox(w, 2.0, l1=2.0)
    tensor([0., 0., 4.])
    >>> wsr.prox(w, 2.0, rho=1.0)
    tensor([0.5000, 0.5000, 8.0000])
    """
    check_weights("w", w)
    check_strength("lambd", lambd)
    check_strength("l1", l1)
    check_fraction("rho", rho)
    groups = Groups(w.shape, dim)
    known = ("auto", *ALGORITHMS)
    if not isinstance(algorithm, str) or algorithm not in known:
        raise ValueError(
            f"algorithm must be one of {', '.join(map(repr, known))}; got {algorithm!r}"
        )
    if w.numel() == 0:
        return w.clone()
    rows = groups.rows(w)
    result = _fused(rows, lambd, l1, rho) if algorithm == "auto" else None
    if result is None:
        result = _composed(rows, lambd, l1, rho, _algorithm(algorithm, w.device))
    return groups.restore(result)


def _fused(rows: Tensor, lambd: float | Tensor, l1: float | Tensor, rho: float) -> Tensor | None:
    """Return the prox by a path of its own for this device, if it has one that can do it."""
    # What derives, traces or wraps tensors has to see the steps one by one.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    if type(rows) is not Tensor or _get_current_dispatch_mode() is not None:
        return None
    given = [v for v in (rows, lambd, l1) if isinstance(v, Tensor)]
    if torch.is_grad_enabled() and any(v.requires_grad for v in given):
        return None
    if any(_has_tangent(v) for v in given):
        return None
    path = path_for(rows)
    return None if path is None else path(rows, lambd, l1, rho)


def _has_tangent(values: Tensor) -> bool:
    tangent: Tensor | None = unpack_dual(values).tangent  # type: ignore[no-untyped-call]
    return tangent is not None


def _composed(
    rows: Tensor, lambd: float | Tensor, l1: float | Tensor, rho: float, find_heads: Algorithm
) -> Tensor:
    """Return the prox of each row, step by step, with gradients."""
    lambd, l1 = (s.double() if isinstance(s, Tensor) else float(s) for s in (lambd, l1))
    valid = rows.isfinite().all(-1, keepdim=True)
    for strength in (lambd, l1):
        if isinstance(strength, Tensor):  # on an accelerator it has not been checked
            valid = valid & strength.isfinite() & (strength >= 0)
    x, order = torch.where(valid, rows, 0).sort(dim=-1)
    x = x.double()
    with torch.no_grad():
        heads = find_heads(free_end_points(x, lambd))
    mean_x = average(x, heads)
    mean_v = lambd * velocity(*bounds(heads), rows.shape[-1])
    position = _in_order(mean_x + mean_v)
    shrunk = _between(position - l1 * position.sign(), mean_x, rho)
    moved = torch.where(position.abs() < l1, 0.0, shrunk)
    result = torch.where(valid, unsort(moved, order), torch.nan).to(rows.dtype)
    return result + 0.0  # what has been rounded to zero is +0.0


def _algorithm(name: str, device: torch.device) -> Algorithm:
    if name == "auto":
        name = "pool_adjacent_violators" if device.type == "cpu" else "bridges"
    return ALGORITHMS[name]


def _between(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Return a + fraction * (b - a), exactly a for 0 and b for 1, rounded alike everywhere."""
    if fraction < 0.5:
        return a + fraction * (b - a)
    return b - (1 - fraction) * (b - a)


def _in_order(position: Tensor) -> Tensor:
    """Undo what rounding may do to the order of clusters that nearly touch."""
    ordered = position.detach().cummax(-1).values
    return position + (ordered - position.detach())
