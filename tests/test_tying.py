"""Tied parameters: what training, saving and copying do to them, and what they refuse."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import wsr


class Holder(nn.Module):
    """A module with nothing but one parameter."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(w.clone())


def codebook(module: nn.Module, name: str = "weight") -> nn.Parameter:
    path, _, leaf = name.rpartition(".")
    parameter = module.get_submodule(path).parametrizations[leaf].original
    assert isinstance(parameter, nn.Parameter)
    return parameter


def shared_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give the parameters of a module few values, zero among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.25 * torch.randint(-2, 3, p.shape, generator=generator))
    return module


def linear(seed: int = 0) -> nn.Linear:
    layer = nn.Linear(4, 3)
    shared_(layer, seed)
    return layer


def bits(w: Tensor) -> list[int]:
    return w.detach().cpu().reshape(-1).clone().view(torch.uint8).tolist()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Take steps with seeded inputs on the Linear that a module is."""
    for step in steps:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (module(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


# The weights


@given(w=tensors())
def test_tying_and_untying_change_no_bit(device: torch.device, w: Tensor) -> None:
    w = (w + 0.0).to(device)  # +0.0 is the one zero that tied weights have
    holder = Holder(w)
    wsr.tie(holder, "weight")
    assert bits(holder.weight) == bits(w)
    assert holder.weight.shape == w.shape
    assert codebook(holder).tolist() == sorted(set(w.tolist()) - {0.0})
    wsr.untie(holder, "weight")
    assert isinstance(holder.weight, nn.Parameter)
    assert bits(holder.weight) == bits(w)
    assert holder.weight.dtype == w.dtype
    assert type(holder) is Holder


@given(w=tensors(), data=st.data())
def test_the_gradient_of_a_value_is_the_sum_over_its_weights(
    device: torch.device, w: Tensor, data: st.DataObject
) -> None:
    holder = Holder(w.to(device))
    wsr.tie(holder, "weight")
    entries = st.lists(st.floats(-10, 10, width=16), min_size=len(w), max_size=len(w))
    gradient = data.draw(entries)
    holder.weight.backward(torch.tensor(gradient, dtype=w.dtype, device=device))
    found = codebook(holder).grad
    assert found is not None
    assert found.dtype == w.dtype
    received = torch.tensor(gradient, dtype=w.dtype).tolist()
    for value, result in zip(codebook(holder).tolist(), found.tolist(), strict=True):
        members = [g for g, x in zip(received, w.tolist(), strict=True) if x == value]
        exact = sum(map(Fraction, members))
        room = oracles.ulp(exact, w.dtype) + len(w) * oracles.ulp(240, torch.float64)
        assert abs(Fraction(result) - exact) <= Fraction(room)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_many_weights_is_rounded_once(
    device: torch.device, dtype: torch.dtype
) -> None:
    d = 50_000
    holder = Holder(torch.ones(d, dtype=dtype, device=device))
    wsr.tie(holder, "weight")
    entry = torch.tensor(0.1, dtype=dtype, device=device)
    holder.weight.backward(entry.expand(d))
    exact = torch.tensor(d * Fraction(entry.item()), dtype=torch.float64).to(dtype)
    found = codebook(holder).grad
    assert found is not None
    torch.testing.assert_close(found.cpu(), exact.view(1), rtol=1e-10, atol=0)


def test_gradients_of_gradients() -> None:
    holder = Holder(torch.tensor([[0.5, 0.0], [0.5, 2.0]], dtype=torch.float64))
    wsr.tie(holder, "weight")
    kept = holder.parametrizations.weight

    def weights(values: Tensor) -> Tensor:
        return kept[0](values)

    values = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weights, (values,))
    assert torch.autograd.gradgradcheck(weights, (values,))


# Training

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_retraining_moves_shared_values_only(make: Callable[..., torch.optim.Optimizer]) -> None:
    layer = linear()
    before = layer.weight.detach().clone()
    pattern = wsr.Sharing.of(before)
    assert 1 < len(pattern) < before.numel()
    wsr.tie(layer, "weight")
    train(layer, make(layer.parameters()), range(10))
    after = layer.weight.detach()
    assert bits(after[before == 0]) == bits(torch.zeros_like(after[before == 0]))
    for value in pattern.values[pattern.values != 0]:
        members = after[before == value]
        assert bits(members) == bits(members[:1].expand_as(members))
        assert members[0] != value
    wsr.untie(layer, "weight")
    assert bits(layer.weight) == bits(after)


def test_a_step_of_sgd_on_the_codebook() -> None:
    layer, plain = linear(), linear()
    wsr.tie(layer, "weight")
    sizes = wsr.Sharing.of(plain.weight)
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.25), range(1))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.0), range(1))
    assert plain.weight.grad is not None
    for k, value in enumerate(sizes.values.tolist()):
        mean = plain.weight.grad[sizes.labels == k].double().mean()
        moved = value - 0.25 * sizes.counts[k] * mean if value else torch.zeros(())
        found = layer.weight[sizes.labels == k].double()
        torch.testing.assert_close(found, moved.double().expand_as(found), rtol=1e-6, atol=1e-7)


def test_training_by_means_is_what_the_prox_makes_a_cluster_do() -> None:
    layer, plain = linear(), linear()
    pattern = wsr.Sharing.of(plain.weight)
    wsr.tie(layer, "weight")
    m = layer.parametrizations.weight[0].labels.flatten().bincount()[1:]
    codebook(layer).register_hook(lambda g: g / m)
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.25), range(1))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.25), range(1))
    nonzero = pattern.values[pattern.labels] != 0
    projected = torch.where(nonzero, pattern.average(plain.weight), 0.0)
    torch.testing.assert_close(layer.weight, projected, rtol=1e-6, atol=1e-7)


def test_an_optimizer_without_state_goes_on() -> None:
    early, late = linear(), linear()
    optimizer = torch.optim.SGD(early.parameters(), lr=0.1)
    for layer in (early, late):
        wsr.tie(layer, "weight")
    train(early, optimizer, range(3))
    train(late, torch.optim.SGD(late.parameters(), lr=0.1), range(3))
    assert torch.equal(early.weight, late.weight)
    assert not torch.equal(early.weight, linear().weight)


@pytest.mark.parametrize("undo", [False, True])
def test_a_graph_that_is_still_alive_does_not_disturb(undo: bool) -> None:
    layer = linear()
    x = torch.ones(2, 4)
    if undo:
        wsr.tie(layer, "weight")
    loss = layer(x).sum()
    loss.backward()
    (wsr.untie if undo else wsr.tie)(layer, "weight")
    shape = layer.weight.shape if undo else codebook(layer).shape
    (p,) = (p for name, p in layer.named_parameters() if name != "bias")
    assert p.grad is None
    layer(x).sum().backward()
    assert p.grad is not None
    assert p.grad.shape == p.shape == shape
    assert loss.grad_fn is not None


def test_what_was_frozen_stays_frozen() -> None:
    layer = linear()
    layer.weight.requires_grad_(False)
    wsr.tie(layer, "weight")
    assert not codebook(layer).requires_grad
    assert not layer.weight.requires_grad
    wsr.untie(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad


# torch's compiler uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("tie_first", [True, False])
def test_a_compiled_module(tie_first: bool) -> None:
    plain, layer = linear(), linear()
    wsr.tie(plain, "weight")
    if tie_first:
        wsr.tie(layer, "weight")
    fast = torch.compile(layer, backend="aot_eager")
    if not tie_first:
        fast(torch.ones(1, 4))
        wsr.tie(layer, "weight")
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), range(3))
    train(fast, torch.optim.SGD(layer.parameters(), lr=0.1), range(3))
    torch.testing.assert_close(layer.weight, plain.weight)
    assert (layer.weight == 0).equal(linear().weight == 0)
    assert torch.equal(fast(torch.ones(1, 4)), layer(torch.ones(1, 4)))


def test_mixed_precision(device: torch.device) -> None:
    layer = linear().to(device)
    wsr.tie(layer, "weight")
    with torch.autocast(device.type, torch.bfloat16):
        loss = layer(torch.ones(2, 4, device=device)).float().square().sum()
    loss.backward()
    assert codebook(layer).grad is not None
    assert codebook(layer).dtype == torch.float32


# Modules of all kinds


class Lists(nn.Module):
    """Parameters in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ParameterList([torch.ones(3), torch.zeros(2)])
        self.named = nn.ParameterDict({"scale": torch.ones(3)})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.items[0] * self.named["scale"] + self.items[1].sum()


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "Linear": (lambda: nn.Linear(4, 3), lambda: torch.ones(2, 4)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3), lambda: torch.ones(1, 2, 5, 5)),
    "Conv2d channels last": (
        lambda: nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last),
        lambda: torch.ones(1, 2, 5, 5),
    ),
    "Embedding": (lambda: nn.Embedding(5, 3), lambda: torch.tensor([0, 4, 4])),
    "BatchNorm": (lambda: nn.BatchNorm1d(4), lambda: torch.randn(3, 4)),
    "LSTM": (lambda: Recurrent(4, 3, num_layers=2), lambda: torch.ones(2, 1, 4)),
    "attention": (lambda: Attention(4, 2, batch_first=True), lambda: torch.ones(1, 3, 4)),
    "containers": (Lists, lambda: torch.ones(3)),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 1)),
        lambda: torch.ones(2, 4),
    ),
}


@pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES)
def test_every_parameter_of_a_module(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor]
) -> None:
    net, x = shared_(make()), inputs()
    names = [name for name, _ in net.named_parameters()]
    kinds = [type(module) for module in net.modules()]
    expected = net(x)
    for name in names:
        wsr.tie(net, name)
    assert torch.equal(net(x), expected)
    net(x).sum().backward()
    for name in names:
        p = codebook(net, name)
        assert p.grad is not None
        assert p.shape == p.grad.shape
        with torch.no_grad():
            p += 1.0
    assert not torch.equal(net(x), expected)
    for name in names:
        wsr.untie(net, name)
    assert [name for name, _ in net.named_parameters()] == names
    assert [type(module) for module in net.modules()] == kinds
    assert not torch.equal(net(x), expected)


@pytest.mark.parametrize("tying", list(itertools.permutations("abc")))
def test_untying_restores_the_order_of_parameters(tying: tuple[str, ...]) -> None:
    for untying in itertools.permutations("abc"):
        module = nn.Module()
        for name in "abc":
            module.register_parameter(name, nn.Parameter(torch.ones(2)))
        for name in tying:
            wsr.tie(module, name)
        for name in untying:
            wsr.untie(module, name)
        assert [name for name, _ in module.named_parameters()] == ["a", "b", "c"]


def test_untying_one_of_two_leaves_the_other_tied() -> None:
    layer = linear()
    wsr.tie(layer, "bias")
    wsr.tie(layer, "weight")
    before = layer.weight.detach().clone()
    wsr.untie(layer, "bias")
    assert torch.equal(layer.weight, before)
    assert [name for name, _ in layer.named_parameters()] == [
        "bias",
        "parametrizations.weight.original",
    ]


@pytest.mark.parametrize(
    "w",
    [
        torch.tensor(2.0),
        torch.tensor(0.0),
        torch.zeros(2, 3),
        torch.arange(1.0, 7.0),
        torch.ones(2, 2),
        torch.ones(0, 3),
        torch.tensor([-0.0, 0.0, 1.0]),
        torch.tensor([math.nan, math.nan, math.inf]),
    ],
    ids=["0-dim", "0-dim zero", "zeros", "distinct", "ones", "empty", "both zeros", "not finite"],
)
def test_shapes_and_values_at_the_edge(w: Tensor) -> None:
    holder = Holder(w)
    wsr.tie(holder, "weight")
    torch.testing.assert_close(holder.weight.detach(), w, rtol=0, atol=0, equal_nan=True)
    optimizer = torch.optim.Adam(holder.parameters(), lr=0.5)
    holder.weight.sum().backward()
    optimizer.step()
    moved = torch.where(w == 0, 0.0, w - 0.5)
    torch.testing.assert_close(holder.weight.detach(), moved, equal_nan=True)
    assert not holder.weight[w == 0].signbit().any()
    wsr.untie(holder, "weight")
    torch.testing.assert_close(holder.weight.detach(), moved, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_module_moves_to_another_dtype_and_device(
    device: torch.device, dtype: torch.dtype
) -> None:
    layer = linear()
    expected = layer.weight.detach().clone()
    wsr.tie(layer, "weight")
    layer.to(device, dtype)
    assert layer.weight.dtype == codebook(layer).dtype == dtype
    assert layer.weight.device.type == device.type
    assert torch.equal(layer.weight.float().cpu(), expected)
    wsr.untie(layer, "weight")
    assert layer.weight.dtype == dtype


def test_nothing_is_made_on_another_device() -> None:
    layer = linear()
    with torch.device("meta"):
        wsr.tie(layer, "weight")
        layer.weight.sum().backward()
        assert {t.device.type for t in layer.state_dict().values()} == {"cpu"}
        wsr.untie(layer, "weight")
    assert layer.weight.device.type == "cpu"


# Copies


def test_a_copy_goes_its_own_way() -> None:
    layer = linear()
    wsr.tie(layer, "weight")
    before = layer.weight.detach().clone()
    twin = copy.deepcopy(layer)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), range(2))
    assert not torch.equal(twin.weight, before)
    wsr.tie(twin, "bias")
    assert isinstance(layer.bias, nn.Parameter)
    wsr.untie(twin, "weight")
    wsr.untie(twin, "bias")
    assert type(twin) is nn.Linear
    assert torch.equal(layer.weight, before)
    wsr.untie(copy.deepcopy(layer), "weight")
    assert torch.equal(layer.weight, before)
    wsr.untie(layer, "weight")
    assert torch.equal(layer.weight, before)


def test_a_copy_loads_for_itself() -> None:
    layer, other = linear(), nn.Linear(4, 3)
    for module in (layer, other):
        wsr.tie(module, "weight")
    before = layer.weight.detach().clone()
    twin = copy.deepcopy(layer)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin.weight, other.weight)
    assert torch.equal(layer.weight, before)


def test_torch_pickles_no_parametrized_module() -> None:
    layer = linear()
    wsr.tie(layer, "weight")
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    wsr.untie(layer, "weight")
    assert torch.equal(pickle.loads(pickle.dumps(layer)).weight, layer.weight)


# Saving


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_gives_values_and_pattern_to_a_fresh_module(
    assign: bool, tmp_path: object
) -> None:
    layer = linear()
    wsr.tie(layer, "weight")
    train(layer, torch.optim.SGD(layer.parameters(), lr=0.1), range(2))
    torch.save(layer.state_dict(), f"{tmp_path}/layer")
    fresh = nn.Linear(4, 3)  # all of its weights differ
    wsr.tie(fresh, "weight")
    fresh.weight.sum().backward()
    assert codebook(fresh).shape != codebook(layer).shape
    fresh.load_state_dict(torch.load(f"{tmp_path}/layer"), assign=assign)
    assert bits(fresh.weight) == bits(layer.weight)
    assert codebook(fresh).requires_grad
    assert codebook(fresh).grad is None
    for module in (layer, fresh):
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), range(2, 4))
    assert bits(fresh.weight) == bits(layer.weight)


def test_a_codebook_of_the_same_size_is_loaded_in_place() -> None:
    layer, other = linear(), linear()
    for module in (layer, other):
        wsr.tie(module, "weight")
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), range(1))
    layer.weight.sum().backward()
    values = codebook(layer)
    place = values.data_ptr()
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight)
    assert codebook(layer) is values
    assert values.data_ptr() == place
    assert values.grad is not None


def test_resuming_gives_the_same_bits(tmp_path: object) -> None:
    def start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        layer = linear(seed)
        wsr.tie(layer, "weight")
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    straight, optimizer = start(0)
    train(straight, optimizer, range(6))
    first, optimizer = start(0)
    train(first, optimizer, range(3))
    states = {"layer": first.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, f"{tmp_path}/checkpoint")
    resumed, optimizer = start(1)
    saved = torch.load(f"{tmp_path}/checkpoint")
    resumed.load_state_dict(saved["layer"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(3, 6))
    assert bits(resumed.weight) == bits(straight.weight)


def test_what_is_tied_on_one_side_only_does_not_load() -> None:
    tied, plain = nn.Sequential(linear()), nn.Sequential(linear(1))
    wsr.tie(tied, "0.weight")
    names = {tied: r'"0\.parametrizations\.weight\.original"', plain: r'"0\.weight"'}
    before = tied[0].weight.detach().clone()
    for ours, other in ((tied, plain), (plain, tied)):
        message = rf"Missing key.*{names[ours]}(.|\n)*Unexpected key.*{names[other]}"
        with pytest.raises(RuntimeError, match=message):
            ours.load_state_dict(other.state_dict())
    tied.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(tied[0].weight, before)
    assert torch.equal(tied[0].bias, plain[0].bias)


def test_a_parameter_of_another_shape_loads_nothing() -> None:
    layer, other = linear(), nn.Linear(5, 3)
    for module in (layer, other):
        wsr.tie(module, "weight")
    before = other.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrizations\.weight\.original"):
        other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, before)


# Errors


def test_what_names_no_parameter() -> None:
    net = nn.Sequential(linear(), nn.BatchNorm1d(3))
    for name in ("wieght", "weight", "0", "0.", "", "7.weight", "0.weight.data", "1.running_mean"):
        with pytest.raises(
            ValueError, match=rf"^name must name a parameter of Sequential; got '{name}'$"
        ):
            wsr.tie(net, name)
        expected = "of Sequential" if name in ("7.weight", "0.weight.data") else "that is tied"
        with pytest.raises(
            ValueError, match=rf"^name must name a parameter {expected}; got '{name}'$"
        ):
            wsr.untie(net, name)


def test_an_absent_bias_and_a_parameter_of_another_parametrization() -> None:
    with pytest.raises(ValueError, match=r"^name must name a parameter of Linear; got 'bias'$"):
        wsr.tie(nn.Linear(2, 2, bias=False), "bias")
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^name must name a parameter of .*; got 'weight'$"):
        wsr.tie(layer, "weight")
    with pytest.raises(
        ValueError, match=r"^name must name a parameter that is tied; got 'weight'$"
    ):
        wsr.untie(layer, "weight")
    wsr.tie(layer, "bias")
    wsr.untie(layer, "bias")


def test_twice_is_an_error() -> None:
    net = nn.Sequential(linear())
    wsr.tie(net, "0.weight")
    message = r"^name must name a parameter that is not tied already; got '0\.weight'$"
    with pytest.raises(ValueError, match=message):
        wsr.tie(net, "0.weight")
    wsr.untie(net, "0.weight")
    message = r"^name must name a parameter that is tied; got '0\.weight'$"
    with pytest.raises(ValueError, match=message):
        wsr.untie(net, "0.weight")
    wsr.tie(net, "0.weight")


@pytest.mark.parametrize("function", [wsr.tie, wsr.untie])
def test_what_is_no_module_and_no_name(function: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"^module must be a torch\.nn\.Module; got Tensor$"):
        function(torch.ones(2), "weight")
    with pytest.raises(TypeError, match=r"^name must be a string; got 0$"):
        function(linear(), 0)


def test_weights_without_an_order() -> None:
    holder = Holder(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"^weight must have one of .*; got torch\.complex64$"):
        wsr.tie(holder, "weight")
    assert holder.weight.dtype == torch.complex64


def test_a_parameter_that_stands_in_two_places() -> None:
    net = nn.ModuleDict({"first": nn.Embedding(3, 2), "last": nn.Linear(2, 3, bias=False)})
    net["last"].weight = net["first"].weight
    message = r"^name must name a parameter that stands in one place; got '{}', also '{}'$"
    for name, other in (("first.weight", "last.weight"), ("last.weight", "first.weight")):
        with pytest.raises(ValueError, match=message.format(name, other)):
            wsr.tie(net, name)
    assert net["last"].weight is net["first"].weight
    twice = nn.Module()
    twice.a = twice.b = nn.Parameter(torch.ones(2))
    twice.c = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message.format("b", "a")):
        wsr.tie(twice, "b")
    wsr.tie(twice, "c")
    wsr.untie(twice, "c")
    names = [name for name, _ in twice.named_parameters(remove_duplicate=False)]
    assert names == ["a", "b", "c"]
    same = linear()
    wsr.tie(nn.Sequential(same, same), "1.weight")  # one module, used twice


def test_a_tied_parameter_is_not_assigned_to() -> None:
    layer = linear()
    wsr.tie(layer, "weight")
    before = layer.weight.detach().clone()
    message = "^a tied parameter cannot be assigned to; untie it first$"
    with pytest.raises(NotImplementedError, match=message):
        layer.weight = torch.ones(3, 4)
    assert torch.equal(layer.weight, before)
