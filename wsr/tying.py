"""Retraining with the pattern frozen: a parameter becomes its codebook."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from wsr.arguments import check_weights
from wsr.sharing import Sharing


def tie(module: nn.Module, name: str) -> None:
    r"""Freeze who is tied to whom: train the distinct nonzero values of a parameter alone.

    .. math:: w_i = \begin{cases} 0 & k_i = 0 \\ c_{k_i} & k_i > 0 \end{cases}, \qquad
              \frac{\partial L}{\partial c_k} = \sum_{i :\, k_i = k} \frac{\partial L}{\partial w_i}

    with the labels k of :class:`wsr.Sharing` fixed.  Equal weights stay equal, and zeros stay
    exactly zero, whatever optimizer moves the codebook c.

    Parameters
    ----------
    module : torch.nn.Module
        The module of the parameter, or one that contains it.
    name : str
        The parameter as ``module.named_parameters()`` names it: ``"weight"``, ``"0.weight"``.  Of
        any shape; float16, bfloat16, float32 or float64.

    Raises
    ------
    TypeError
        If ``module`` is not a module, ``name`` not a string, or the parameter not of one of these
        dtypes.
    ValueError
        If ``name`` names no parameter, one that is tied already, or one that ``module`` holds in
        two places.

    Notes
    -----
    A parametrization of ``torch.nn.utils.parametrize``: ``module.weight`` goes on giving the
    weights, now computed from ``parametrizations.weight.original`` of the module, the codebook: a
    parameter of shape (number of distinct nonzero values,), ascending at first.

    *Optimizers.*  The codebook is the parameter object that was there, shrunk: an optimizer without
    state goes on with it, one with state (momentum, Adam) must be built anew.  Under
    :func:`wsr.proximal`, leave ``lambd`` away: it would act on the codebook as if each value were
    one weight.

    *Learning rate.*  The gradient of a value is the sum over its m weights, added in float64.  A
    step of plain SGD therefore moves it by m times the mean of their gradients; under the prox, a
    cluster that stays tied moves by the mean.  Large clusters then ask for a learning rate that is
    smaller in proportion.  Adam divides by the size of the gradient and moves all values alike.  To
    train by means, divide by m in a hook, as in the example: this is projected descent, as the
    chapter *Retraining and compressing* proves.

    *Saving.*  ``state_dict`` holds codebook and labels (int64).  Loading gives both to a module in
    which the parameter is tied, whatever its pattern was; if it is tied on one side only, torch
    reports the keys that are missing.  Copies by ``deepcopy`` are tied too.  torch does not pickle
    parametrized modules.

    *Several processes.*  Tie before wrapping a module in ``DistributedDataParallel``, which sends
    the labels round before each forward pass unless it is told ``broadcast_buffers=False``.

    A codebook trained by the sums of its weights' gradients is found in Han, Mao and Dally (2016),
    arXiv 1510.00149.

    Examples
    --------
    >>> import torch, wsr
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.5, 0.0, 0.5, 2.0]])
    >>> wsr.tie(layer, "weight")
    >>> layer.parametrizations.weight.original.tolist()
    [0.5, 2.0]
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.125)
    >>> layer(torch.ones(1, 4)).sum().backward()  # the gradients are 2 and 1
    >>> optimizer.step()
    >>> layer.weight.tolist()
    [[0.25, 0.0, 0.25, 1.875]]

    By means:

    >>> tied = layer.parametrizations.weight
    >>> m = tied[0].labels.flatten().bincount()[1:]
    >>> hook = tied.original.register_hook(lambda g: g / m)
    >>> optimizer.zero_grad()
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> layer.weight.tolist()
    [[0.125, 0.0, 0.125, 1.75]]

    And back:

    >>> wsr.untie(layer, "weight")
    >>> [name for name, _ in layer.named_parameters()]
    ['weight']
    """
    owner, leaf = _owner(module, name)
    if _tied(owner, leaf):
        raise ValueError(f"name must name a parameter that is not tied already; got {name!r}")
    own = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
    if leaf not in own:
        raise ValueError(f"name must name a parameter of {type(module).__name__}; got {name!r}")
    weight = own[leaf]
    check_weights(name, weight)
    for other, p in module.named_parameters(remove_duplicate=False):
        if p is weight and _owner(module, other) != (owner, leaf):
            raise ValueError(
                f"name must name a parameter that stands in one place; got {name!r}, also {other!r}"
            )
    pattern = Sharing.of(weight)
    nonzero = pattern.values != 0
    labels = torch.where(nonzero, nonzero.cumsum(0), 0)[pattern.labels]
    codebook = _Codebook(labels, order=_order(owner, tuple(own)))
    _have_class_of_its_own(owner)
    _replace(weight, pattern.values[nonzero])
    parametrize.register_parametrization(owner, leaf, codebook, unsafe=True)
    kept = owner.get_submodule(f"parametrizations.{leaf}")
    kept.register_load_state_dict_pre_hook(_take_size)  # type: ignore[no-untyped-call]


def untie(module: nn.Module, name: str) -> None:
    """Undo :func:`tie`: make the weights a plain parameter again, with the values they have now.

    Parameters
    ----------
    module : torch.nn.Module
        As for :func:`tie`.
    name : str
        The name that was tied.

    Raises
    ------
    TypeError
        If ``module`` is not a module, or ``name`` not a string.
    ValueError
        If ``name`` names nothing that is tied.

    Notes
    -----
    The values are bit for bit those that the tied module computed, and its parameters stand in the
    order that they had, by which optimizers number them.  What is said of optimizers at
    :func:`tie` holds here too.

    Examples
    --------
    >>> import torch, wsr
    >>> layer = torch.nn.Linear(100, 10)
    >>> before = layer.weight.detach().clone()
    >>> wsr.tie(layer, "weight")
    >>> wsr.untie(layer, "weight")
    >>> torch.equal(layer.weight, before)
    True
    """
    owner, leaf = _owner(module, name)
    tied = _tied(owner, leaf)
    if not tied:
        raise ValueError(f"name must name a parameter that is tied; got {name!r}")
    kept, codebook = tied
    _have_class_of_its_own(owner)
    parametrize.remove_parametrizations(owner, leaf)
    kept.original.grad = None  # of another shape
    own = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
    for other in codebook.order:
        if other in own:
            delattr(owner, other)
            owner.register_parameter(other, own[other])


class _Codebook(nn.Module):
    """Weights from the nonzero values, shape (k,): value j - 1 where the label is j, 0 where 0."""

    labels: Tensor

    def __init__(self, labels: Tensor, order: tuple[str, ...]) -> None:
        super().__init__()
        self.register_buffer("labels", labels)
        self.order = order  # of the owner's parameters, for untie

    def forward(self, values: Tensor) -> Tensor:
        # In float64, so that the gradient, a sum over millions perhaps, is rounded once; torch adds
        # in the same order each time then, which it does not do for float32 on several threads.
        return F.pad(values.double(), (1, 0))[self.labels].to(values.dtype)

    def right_inverse(self, w: Tensor) -> Tensor:
        """Refuse: torch calls this where the tied parameter is assigned to."""
        raise NotImplementedError("a tied parameter cannot be assigned to; untie it first")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds the parameter itself, and the parameter's name there."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string; got {name!r}")
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError:
        message = f"name must name a parameter of {type(module).__name__}; got {name!r}"
        raise ValueError(message) from None


def _tied(owner: nn.Module, leaf: str) -> tuple[ParametrizationList, _Codebook] | None:
    """Return what stands for a tied parameter, None if it is not tied."""
    if not parametrize.is_parametrized(owner, leaf):
        return None
    kept = owner.get_submodule(f"parametrizations.{leaf}")
    if isinstance(kept, ParametrizationList) and isinstance(kept[0], _Codebook):
        return kept, kept[0]
    return None


def _order(owner: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the owner's parameters as they stood before the first was tied."""
    if parametrize.is_parametrized(owner):
        for leaf, _ in owner.get_submodule("parametrizations").named_children():
            if tied := _tied(owner, leaf):
                return tied[1].order
    return names


def _have_class_of_its_own(owner: nn.Module) -> None:
    """Copy the class of a parametrized module, which a deepcopy of the module shares.

    torch puts properties into that class and takes them out, of the one and of the other alike.
    """
    if parametrize.is_parametrized(owner):
        shared = type(owner)
        own = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
        owner.__class__ = type(shared.__name__, shared.__bases__, own)


@torch.no_grad()
def _replace(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter other values, of any shape; it stays the object that optimizers hold."""
    parameter.set_(values)  # type: ignore[call-overload]
    parameter.grad = None


def _take_size(
    kept: ParametrizationList, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Make room for the codebook that torch is about to load together with its labels."""
    values, labels = state.get(prefix + "original"), state.get(prefix + "0.labels")
    if values is None or labels is None:
        return  # torch reports missing keys
    if labels.shape == kept.get_buffer("0.labels").shape and values.shape != kept.original.shape:
        _replace(kept.original, kept.original.new_empty(values.shape))
