"""The prox after every step: with every optimizer, schedule and accident of training."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

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


# Whole loops


def network() -> nn.Module:
    """Return a net of two layers, the same each time."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.randn(size, 2, generator=generator)


def grouped(net: nn.Module) -> list[dict[str, object]]:
    """Return groups of all kinds: shared in rows, shared and sparse, left alone."""
    first, last = net[0], net[2]
    return [
        {"params": [first.weight], "lambd": 3.0, "rho": 0.5, "dim": 1},
        {"params": [last.weight], "lambd": 6.0, "l1": 0.5, "lr": 0.05},
        {"params": [first.bias, last.bias]},
    ]


def loss(net: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    x, y = data
    return (net(x).float() - y).square().mean()


def test_gradients_accumulate_and_the_prox_waits_for_the_step() -> None:
    ours, whole = network(), network()
    optimizers = [torch.optim.SGD(grouped(net), lr=0.1, momentum=0.9) for net in (ours, whole)]
    for optimizer in optimizers:
        wsr.proximal(optimizer)
    for step in range(4):
        x, y = batch(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        before = [p.detach().clone() for p in ours.parameters()]
        for part in range(4):
            (loss(ours, (x[part::4], y[part::4])) / 4).backward()
            now = list(ours.parameters())
            assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
        loss(whole, (x, y)).backward()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(ours.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert len(wsr.Sharing.of(ours[0].weight, dim=1)) < ours[0].weight.numel()
    assert len(wsr.Sharing.of(ours[2].weight)) < ours[2].weight.numel()


SCHEDULERS: dict[str, Callable[..., torch.optim.lr_scheduler.LRScheduler]] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=8),
    "warmup from zero": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: k / 4),
    "in sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, total_iters=2),
            torch.optim.lr_scheduler.StepLR(o, 1),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_of_several_groups(
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler],
) -> None:
    ours, plain = network(), network()
    optimizers = [torch.optim.SGD(grouped(net), lr=0.1, momentum=0.9) for net in (ours, plain)]
    wsr.proximal(optimizers[0])
    schedulers = [schedule(optimizer) for optimizer in optimizers]
    for step in range(6):
        for net, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            loss(net, batch(step)).backward()
            optimizer.step()
        rows, flat, _ = (group["lr"] for group in optimizers[1].param_groups)
        with torch.no_grad():
            first, last = plain[0].weight, plain[2].weight
            first.copy_(wsr.prox(first, 3.0 * rows, rho=0.5, dim=1))
            last.copy_(wsr.prox(last, 6.0 * flat, l1=0.5 * flat))
        for scheduler in schedulers:
            scheduler.step()
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p, q)


class Loop:
    """All that a real loop holds: groups, a schedule, mixed precision, clipping, accumulation."""

    def __init__(self) -> None:
        self.net = network()
        self.optimizer = torch.optim.AdamW(grouped(self.net), lr=0.1)
        wsr.proximal(self.optimizer)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=8)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)

    def run(self, steps: range) -> None:
        for step in steps:
            self.optimizer.zero_grad()
            for part in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    value = loss(self.net, batch(2 * step + part)) / 2
                overflow = math.inf if step == 2 and part else 1.0
                self.scaler.scale(value * overflow).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()

    def parts(self) -> dict[str, object]:
        return {
            "net": self.net,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resuming_a_whole_loop_gives_the_same_bits(stop: int, tmp_path: object) -> None:
    straight, first, resumed = Loop(), Loop(), Loop()
    straight.run(range(8))
    first.run(range(stop))
    states = {name: part.state_dict() for name, part in first.parts().items()}
    torch.save(states, f"{tmp_path}/checkpoint")
    saved = torch.load(f"{tmp_path}/checkpoint")
    for name, part in resumed.parts().items():
        part.load_state_dict(saved[name])
    resumed.run(range(stop, 8))
    for p, q in zip(resumed.net.parameters(), straight.net.parameters(), strict=True):
        assert torch.equal(p, q)
    assert resumed.scaler.get_scale() == straight.scaler.get_scale()
    assert len(wsr.Sharing.of(resumed.net[2].weight)) < resumed.net[2].weight.numel()


def test_an_overflow_leaves_weights_and_counts_of_steps_alone() -> None:
    loop = Loop()
    loop.run(range(2))
    before = [p.detach().clone() for p in loop.net.parameters()]
    loop.run(range(2, 3))
    for p, q in zip(loop.net.parameters(), before, strict=True):
        assert torch.equal(p, q)


# torch's compiler uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model() -> None:
    nets = network(), network()
    forwards = nets[0], torch.compile(nets[1], backend="aot_eager")
    for net, forward in zip(nets, forwards, strict=True):
        optimizer = torch.optim.SGD(grouped(net), lr=0.1, momentum=0.9)
        wsr.proximal(optimizer)
        for step in range(4):
            optimizer.zero_grad()
            loss(forward, batch(step)).backward()
            optimizer.step()
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p, q)
    patterns = [wsr.Sharing.of(net[2].weight) for net in nets]
    assert torch.equal(patterns[0].labels, patterns[1].labels)
    assert len(patterns[0]) < nets[0][2].weight.numel()
    x, _ = batch(0)
    torch.testing.assert_close(forwards[1](x), forwards[0](x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_and_memory_format(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(3, 4, 3).to(dtype=dtype, memory_format=torch.channels_last)
    before = conv.weight.detach().clone()
    optimizer = torch.optim.SGD([{"params": [conv.weight], "lambd": 0.05}], lr=1.0)
    wsr.proximal(optimizer)
    optimizer.step()
    assert torch.equal(conv.weight, wsr.prox(before, 0.05))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def replica(rank: int, folder: str) -> None:
    """Train one of two replicas, each on data of its own, and leave its weights behind."""
    torch.set_num_threads(1 + rank)  # replicas need not be alike
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            p += rank  # overwritten by the first replica's
    parallel = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(grouped(net), lr=0.1, momentum=0.9)
    wsr.proximal(optimizer)
    for step in range(5):
        optimizer.zero_grad()
        loss(parallel, batch(2 * step + rank)).backward()
        optimizer.step()
    torch.save(net.state_dict(), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_replicas_stay_bitwise_equal(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(replica, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = network()
    optimizer = torch.optim.SGD(grouped(alone), lr=0.1, momentum=0.9)
    wsr.proximal(optimizer)
    for step in range(5):
        optimizer.zero_grad()
        sum(loss(alone, batch(2 * step + rank)) / 2 for rank in range(2)).backward()
        optimizer.step()
    for name, p in alone.state_dict().items():
        torch.testing.assert_close(first[name], p)
    assert len(wsr.Sharing.of(first["2.weight"])) < first["2.weight"].numel()


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
