"""The prox after every step: with every optimizer, schedule and accident of training."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import wsr

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "foreach": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, foreach=True),
    "fused": lambda p, lr: torch.optim.SGD(p, lr, fused=True),
    "AdamW": torch.optim.AdamW,
    "AdamW foreach": lambda p, lr: torch.optim.AdamW(p, lr, foreach=True),
    "AdamW fused": lambda p, lr: torch.optim.AdamW(p, lr, fused=True),
    "lr tensor": lambda p, lr: torch.optim.Adam(p, torch.tensor(lr), foreach=False),
    "RMSprop": torch.optim.RMSprop,
}


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def weights(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)))


def give_gradients(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_prox_follows_the_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    ours, plain = weights(), weights()
    optimizer = make([{"params": [ours], "lambd": 5.0, "l1": 0.1, "rho": 0.25, "dim": 1}], lr=0.1)
    reference = make([plain], lr=0.1)
    wsr.proximal(optimizer)
    for step in range(5):
        give_gradients(optimizer, step)
        give_gradients(reference, step)
        optimizer.step()
        reference.step()
        lr = optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            plain.copy_(wsr.prox(plain, lr * 5.0, l1=lr * 0.1, rho=0.25, dim=1))
        assert torch.equal(ours, plain)
    assert len(wsr.Sharing.of(ours, dim=1)) < ours.numel()
    assert ours.grad is not None
    assert ours.requires_grad


def test_only_groups_with_a_key_are_touched() -> None:
    a, b, c = (parameter(0.0, 1.0, 5.0) for _ in range(3))
    optimizer = torch.optim.SGD(
        [{"params": [a]}, {"params": [b], "lambd": 1.0}, {"params": [c], "l1": 1.0}], lr=1.0
    )
    wsr.proximal(optimizer)
    give = [torch.zeros(3)] * 3
    a.grad, b.grad, c.grad = give
    optimizer.step()
    assert a.tolist() == [0, 1, 5]
    assert b.tolist() == [1, 1, 4]
    assert c.tolist() == [0, 0, 4]


def test_each_parameter_is_a_group_of_weights_by_itself() -> None:
    a, b = parameter(0.0, 1.0), parameter(10.0, 11.0)
    optimizer = torch.optim.SGD([{"params": [a, b], "lambd": 10.0}], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.step()
    assert a.tolist() == [0.5, 0.5]
    assert b.tolist() == [10.5, 10.5]


def test_the_strength_follows_the_learning_rate() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0)
    wsr.proximal(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for expected in ([1, 7], [1.5, 6.5], [1.75, 6.25]):
        optimizer.step()
        schedule.step()
        assert p.tolist() == expected
    optimizer.param_groups[0]["lambd"] = 100.0
    optimizer.step()
    assert p.tolist() == [4, 4]


def test_a_closure() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.LBFGS([{"params": [p], "lambd": 1.0}], lr=1.0, max_iter=3)
    wsr.proximal(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0 * p.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert p.tolist() == [1, 7]


def test_groups_added_later() -> None:
    p, q = parameter(0.0, 8.0), parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([p], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.add_param_group({"params": [q], "lambd": 1.0})
    optimizer.step()
    assert p.tolist() == [0, 8]
    assert q.tolist() == [1, 7]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resuming_gives_the_same_bits(
    make: Callable[..., torch.optim.Optimizer], tmp_path: object
) -> None:
    def start(lambd: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        p = weights()
        optimizer = make([{"params": [p], "lambd": lambd, "rho": 0.5}], lr=0.1)
        wsr.proximal(optimizer)
        return p, optimizer

    def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(optimizer, step)
            optimizer.step()

    straight, optimizer = start(0.5)
    run(optimizer, range(6))

    first, optimizer = start(0.5)
    run(optimizer, range(3))
    torch.save({"p": first, "optimizer": optimizer.state_dict()}, f"{tmp_path}/checkpoint")
    resumed, optimizer = start(0.0)
    saved = torch.load(f"{tmp_path}/checkpoint")
    with torch.no_grad():
        resumed.copy_(saved["p"])
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.param_groups[0]["lambd"] == 0.5
    run(optimizer, range(3, 6))
    assert torch.equal(resumed, straight)


# Mixed precision


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_not_followed_by_a_prox(fused: bool) -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0, fused=fused)
    wsr.proximal(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, expected in ((math.inf, [0, 8]), (0.0, [1, 7]), (math.nan, [1, 7])):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert p.tolist() == expected


# Registering, twice and wrongly


def test_twice_is_an_error_until_removed() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0)
    handle = wsr.proximal(optimizer)
    message = r"^optimizer is proximal already; remove the first handle to start anew$"
    with pytest.raises(ValueError, match=message):
        wsr.proximal(optimizer)
    handle.remove()
    optimizer.step()
    assert p.tolist() == [0, 8]
    handle.remove()
    wsr.proximal(optimizer)
    handle.remove()  # an old handle does not undo a new one
    with pytest.raises(ValueError, match="optimizer is proximal already"):
        wsr.proximal(optimizer)
    optimizer.step()
    assert p.tolist() == [1, 7]


def test_a_copy_can_be_made_proximal_again() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0)
    wsr.proximal(optimizer)
    twin = copy.deepcopy(optimizer)
    wsr.proximal(twin)
    twin.step()
    assert twin.param_groups[0]["params"][0].tolist() == [1, 7]
    assert p.tolist() == [0, 8]


@pytest.mark.parametrize(
    ("make", "key"), [(torch.optim.ASGD, "lambd"), (torch.optim.Adadelta, "rho")]
)
def test_optimizers_that_use_a_key_themselves_are_refused(
    make: Callable[..., torch.optim.Optimizer], key: str
) -> None:
    with pytest.raises(ValueError, match=rf"key '{key}'.*got {make.__name__}"):
        wsr.proximal(make([parameter(1.0)], lr=1.0))


def test_only_optimizers_are_taken() -> None:
    with pytest.raises(
        TypeError, match=r"^optimizer must be a torch\.optim\.Optimizer; got Linear$"
    ):
        wsr.proximal(nn.Linear(1, 1))


BAD = [
    ("lambd", -1.0, ValueError),
    ("lambd", math.nan, ValueError),
    ("l1", "much", TypeError),
    ("rho", 2.0, ValueError),
    ("dim", 1, ValueError),
]


@pytest.mark.parametrize(("key", "value", "error"), BAD)
def test_a_bad_group_is_refused_at_once(key: str, value: object, error: type[Exception]) -> None:
    group = {"params": [parameter(0.0, 8.0)], "lambd": 1.0} | {key: value}
    optimizer = torch.optim.SGD([group], lr=1.0)
    with pytest.raises(error, match=rf"^{key} must"):
        wsr.proximal(optimizer)
    optimizer.param_groups[0] |= {"lambd": 1.0, "l1": 0.0, "rho": 0.0, "dim": None}
    wsr.proximal(optimizer)


@pytest.mark.parametrize(("key", "value", "error"), BAD)
def test_a_group_gone_bad_stops_training_before_a_weight_moves(
    key: str, value: object, error: type[Exception]
) -> None:
    p, q = parameter(0.0, 8.0), parameter(0.0, 8.0)
    groups = [{"params": [p], "lambd": 1.0}, {"params": [q], "lambd": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    wsr.proximal(optimizer)
    p.grad = q.grad = torch.ones(2)
    optimizer.param_groups[1][key] = value
    with pytest.raises(error, match=rf"^{key} must"):
        optimizer.step()
    assert p.tolist() == q.tolist() == [0, 8]
    optimizer.param_groups[1] |= {"lambd": 1.0, "l1": 0.0, "rho": 0.0, "dim": None}
    optimizer.step()
    assert p.tolist() == q.tolist() == [0, 6]


@pytest.mark.parametrize("group", [{"rho": 0.5}, {"dim": 0}, {"dim": None, "rho": 0.0}])
def test_keys_that_would_do_nothing_are_refused(group: dict[str, object]) -> None:
    optimizer = torch.optim.SGD([{"params": [parameter(1.0)], **group}], lr=1.0)
    with pytest.raises(ValueError, match=r"must have lambd or l1 too; got \['"):
        wsr.proximal(optimizer)


def test_a_parameter_without_an_order_is_refused_before_it_moves() -> None:
    p = nn.Parameter(torch.tensor([1 + 1j]))
    optimizer = torch.optim.SGD([p], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.param_groups[0]["lambd"] = 1.0
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"^params must .*; got torch\.complex64$"):
        optimizer.step()
    assert p.item() == 1 + 1j


def test_a_group_without_learning_rate_is_refused() -> None:
    class Own(torch.optim.Optimizer):
        def step(self) -> None:
            pass

    optimizer = Own([{"params": [parameter(1.0)], "lambd": 1.0}], {})
    with pytest.raises(ValueError, match=r"must have lr; got none$"):
        wsr.proximal(optimizer)


def test_a_learning_rate_of_one_element() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.Adam([{"params": [p], "lambd": 1.0}], lr=torch.ones(1))
    wsr.proximal(optimizer)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == [1, 7]


def test_a_learning_rate_gone_bad_is_named() -> None:
    optimizer = torch.optim.SGD([{"params": [parameter(1.0)], "lambd": 1.0, "l1": 0.5}], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.param_groups[0]["lr"] = math.inf
    with pytest.raises(ValueError, match=r"^lr \* lambd must be finite.*got inf$"):
        optimizer.step()
    optimizer.param_groups[0] |= {"lambd": 0.0, "lr": -1.0}
    with pytest.raises(ValueError, match=r"^lr \* l1 must be finite.*got -0.5$"):
        optimizer.step()


# Steps within steps, and steps that fail


class Twice(torch.optim.SGD):
    """An optimizer whose step adds to that of its base class."""

    def step(self, closure: object = None) -> None:
        if callable(closure):
            closure()
        super().step()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p += 1


class Own(torch.optim.SGD):
    """An optimizer whose step replaces that of its base class."""

    def step(self, closure: object = None) -> None:
        if callable(closure):
            closure()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p += 1


def failing() -> Tensor:
    raise RuntimeError("interrupted")


@pytest.mark.parametrize("make", [Twice, Own])
def test_a_step_of_ones_own_is_followed_by_one_prox(make: type[torch.optim.SGD]) -> None:
    torch.optim.SGD([parameter(0.0)])  # from now on the step of the base class runs hooks as well
    p = parameter(0.0, 8.0)
    optimizer = make([{"params": [p], "lambd": 1.0, "l1": 0.25}], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.step()
    assert p.tolist() == [1.75, 7.75]
    for _ in range(3):
        with pytest.raises(RuntimeError, match="interrupted"):
            optimizer.step(failing)
        assert p.tolist() == [1.75, 7.75]
    optimizer.step()
    assert p.tolist() == [3.5, 7.5]


def test_hooks_and_schedulers_go_on_working() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0)
    calls: list[list[float]] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(p.tolist()))
    before = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    wsr.proximal(optimizer)
    after = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    before.step()
    after.step()
    assert calls == [[0, 8]]
    assert p.tolist() == [1, 7]
    assert optimizer.step.__name__ == "step"


# torch's compiler uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step() -> None:
    p = parameter(0.0, 8.0)
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=1.0)
    wsr.proximal(optimizer)
    p.grad = torch.zeros(2)
    torch.compile(optimizer.step, backend="eager")()
    assert p.tolist() == [1, 7]


@pytest.mark.gpu
def test_a_step_on_the_device_does_not_stop_the_host(device: torch.device) -> None:
    p = nn.Parameter(torch.randn(1000, device=device))
    optimizer = torch.optim.SGD([{"params": [p], "lambd": 1.0}], lr=0.1)
    wsr.proximal(optimizer)
    p.grad = torch.randn_like(p)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
