"""The prox after every step of any optimizer."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from wsr.arguments import Groups, check_fraction, check_strength
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
        If ``optimizer`` is not a torch optimizer.
    ValueError
        If it is proximal already, has a hyperparameter of its own by the name of one of the keys
        (ASGD: lambd, Adadelta: rho), or one of its groups has a bad value.  Groups are checked
        before each step too, so a bad value stops training before a weight has moved.

    Notes
    -----
    With plain SGD this is proximal gradient descent on ``loss + lambd R(w) + l1 |w|_1``.  With
    momentum or Adam the step size of the prox remains lr, as in decoupled weight decay: not the
    proximal step in Adam's own metric, in which weights need not keep their order.  A step that a
    gradient scaler skips for an overflow is not followed by a prox.  Copies and pickles of an
    optimizer do not carry the hook: call ``proximal`` on them again.

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
    """The hooks of one proximal optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._depth = 0
        self._hooks: tuple[RemovableHandle, ...] = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        _proximal_optimizers.add(optimizer)

    def remove(self) -> None:
        """Leave the optimizer as it was before; calling this again changes nothing."""
        if self._hooks:
            _proximal_optimizers.discard(self._optimizer)
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    # A step that calls super().step() runs the hooks of both; the prox belongs after the outer one.
    # A step that was interrupted leaves its depth behind, which is then deeper than steps nest.

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._depth >= _nested_steps(type(optimizer)):
            self._depth = 0
        self._depth += 1
        _check_groups(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._depth = 0
        # A fused optimizer is called even if the scaler found an overflow, and then does nothing.
        skipped = getattr(optimizer, "found_inf", None)
        with torch.no_grad():
            for p, strengths in _shared_parameters(optimizer):
                target = prox(p, **strengths)
                p.copy_(target if skipped is None else torch.where(skipped > 0, p, target))


def _nested_steps(kind: type[Optimizer]) -> int:
    return sum(hasattr(vars(base).get("step"), "hooked") for base in kind.__mro__)


def _shared_parameters(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        if "lambd" in group or "l1" in group:
            strengths = {
                "lambd": group["lr"] * group.get("lambd", 0.0),
                "l1": group["lr"] * group.get("l1", 0.0),
                "rho": group.get("rho", 0.0),
                "dim": group.get("dim"),
            }
            for p in group["params"]:
                yield p, strengths


def _check_groups(optimizer: Optimizer) -> None:
    checks = {"lambd": check_strength, "l1": check_strength, "rho": check_fraction}
    for group in optimizer.param_groups:
        for key in checks.keys() & group.keys():
            checks[key](key, group[key])
    for p, strengths in _shared_parameters(optimizer):
        check_strength("lr * lambd", strengths["lambd"])
        check_strength("lr * l1", strengths["l1"])
        Groups(p.shape, strengths["dim"])
