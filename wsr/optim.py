"""The prox after every step of any optimizer."""

import functools
from collections.abc import Iterator
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from wsr.arguments import Groups, check_fraction, check_strength, check_weights
from wsr.proximal_mapping import prox

_KEYS = ("lambd", "l1", "rho", "dim")
_proximal_optimizers: "WeakSet[Optimizer]" = WeakSet()


def proximal(optimizer: Optimizer) -> "ProximalHandle":
    r"""Make an optimizer proximal: after each step, its weights move to their prox.

    .. math:: p \leftarrow \operatorname{prox}(p,\; \mathrm{lr}\, \lambda,\;
              \mathrm{l1} = \mathrm{lr}\, \ell_1,\; \mathrm{rho} = \rho,\; \mathrm{dim})

    for every parameter p of a group that has the keys ``lambd`` and/or ``l1`` (optional: ``rho``,
    ``dim``).  Each parameter tensor is a group of weights by itself.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The keys live in its ``param_groups``: they are saved in ``state_dict``, may differ
        between groups, and may be changed between steps, as schedulers do with ``lr``.

    Returns
    -------
    ProximalHandle
        ``handle.remove()`` makes the optimizer an ordinary one again.

    Raises
    ------
    TypeError
        If ``optimizer`` is not a torch optimizer, or a parameter not of one of prox's dtypes.
    ValueError
        If it is proximal already, has a hyperparameter of its own by the name of one of the keys
        (ASGD: lambd, Adadelta: rho), or a group has a bad value, or ``rho`` or ``dim`` alone.
        Groups are checked before each step too, so a bad value stops training before a weight has
        moved.

    Notes
    -----
    With plain SGD this is proximal gradient descent on ``loss + lambd R(w) + l1 |w|_1``.  With
    momentum or Adam the step size of the prox remains lr, as in decoupled weight decay: not the
    proximal step in Adam's own metric, in which weights need not keep their order; and with
    momentum beta the gradients count 1 / (1 - beta) times as much as lambd.  A step that a
    gradient scaler skips for an overflow is not followed by a prox.

    Every parameter of such a group moves, also one without a gradient: keep frozen ones out of it.
    Replicas that take the same step, as in ``DistributedDataParallel``, stay bitwise equal.

    Copies and pickles of an optimizer are not proximal: call ``proximal`` on them again.
    ``load_state_dict`` replaces the groups: the keys come from the checkpoint.  Derived in the
    chapter *Training with the prox*; Shakerinava et al. (2024), arXiv 2311.03096.

    Examples
    --------
    >>> import torch, wsr
    >>> layer = torch.nn.Linear(100, 10)
    >>> optimizer = torch.optim.SGD([{"params": [layer.weight], "lambd": 0.1}], lr=0.1)
    >>> handle = wsr.proximal(optimizer)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     layer(torch.zeros(1, 100)).sum().backward()
    ...     optimizer.step()
    >>> len(wsr.Sharing.of(layer.weight))
    1
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}"
        )
    if optimizer in _proximal_optimizers:
        raise ValueError("optimizer is proximal already; remove the first handle to start anew")
    for key in _KEYS:
        if key in optimizer.defaults:
            raise ValueError(
                f"optimizer must leave the key {key!r} to proximal; "
                f"got {type(optimizer).__name__}, whose own hyperparameter has that name"
            )
    _check_groups(optimizer)
    return ProximalHandle(optimizer)


class ProximalHandle:
    """The prox after the steps of one optimizer, until it is removed."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._active = True
        _proximal_optimizers.add(optimizer)
        plain_step = optimizer.step

        # The step of this object rather than a hook: hooks run twice where a step calls that of
        # its base class. Copies and pickles of an optimizer leave out what was set on the object.
        @functools.wraps(plain_step)
        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return plain_step(*args, **kwargs)
            _check_groups(optimizer)
            result = plain_step(*args, **kwargs)
            _move_to_prox(optimizer)
            return result

        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Make the optimizer an ordinary one again; calling this again changes nothing."""
        if self._active:
            _proximal_optimizers.discard(self._optimizer)
        self._active = False


@torch.no_grad()
def _move_to_prox(optimizer: Optimizer) -> None:
    # A fused optimizer is called even if the scaler found an overflow, and then does nothing.
    skipped = getattr(optimizer, "found_inf", None)
    for p, strengths in _regularized_parameters(optimizer):
        target = prox(p, **strengths)
        p.copy_(target if skipped is None else torch.where(skipped.to(p.device) > 0, p, target))


def _regularized_parameters(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        if "lambd" in group or "l1" in group:
            lr = group["lr"].squeeze() if isinstance(group["lr"], Tensor) else group["lr"]
            strengths = {
                "lambd": lr * group.get("lambd", 0.0),
                "l1": lr * group.get("l1", 0.0),
                "rho": group.get("rho", 0.0),
                "dim": group.get("dim"),
            }
            for p in group["params"]:
                yield p, strengths


def _check_groups(optimizer: Optimizer) -> None:
    checks = {"lambd": check_strength, "l1": check_strength, "rho": check_fraction}
    for group in optimizer.param_groups:
        keys = [key for key in _KEYS if key in group]
        if keys and not {"lambd", "l1"} & set(keys):
            raise ValueError(f"a group with {keys[0]} must have lambd or l1 too; got {keys}")
        if keys and "lr" not in group:
            raise ValueError("a group with lambd or l1 must have lr; got none")
        for key in keys:
            if key in checks:
                checks[key](key, group[key])
    for p, strengths in _regularized_parameters(optimizer):
        check_weights("params", p)
        check_strength("lr * lambd", strengths["lambd"])
        check_strength("lr * l1", strengths["l1"])
        Groups(p.shape, strengths["dim"])
