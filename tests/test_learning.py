"""The networks of the learning experiments, and how their weights are regularized and trained."""

import importlib

import pytest
import torch
from torch import nn

import wsr


@pytest.fixture(autouse=True)
def _on_path(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "book")


@pytest.fixture
def learning():
    return importlib.import_module("experiments.learning")


@pytest.fixture
def networks():
    return importlib.import_module("experiments.networks")


@pytest.fixture
def examples(learning):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 16, generator=generator)
    return learning.Examples(x, (10 * x[:, 0]).long())


def small(networks):
    torch.manual_seed(0)
    return networks.TorusFC(4, 2, 3)


def test_a_fully_connected_network_can_be_the_convolutional_one(networks):
    side, a, b = 6, 2, 3
    torch.manual_seed(0)
    conv, full = networks.TorusCNN(side, a, b), networks.TorusFC(side, a, b)
    channels = 1
    for written, layer in ((full.first, conv.first), (full.second, conv.second)):
        shape = (channels, side, side)
        matrix = networks.as_fully_connected(
            lambda x, layer=layer: layer[0](x) - layer[0].bias.view(1, -1, 1, 1), shape
        )
        written[0].weight.data = matrix
        written[0].bias.data = layer[0].bias.repeat_interleave(side**2).detach()
        channels = layer[0].out_channels
    full.head.load_state_dict(conv.head.state_dict())
    conv.eval(), full.eval()
    x = torch.rand(5, side**2)
    torch.testing.assert_close(full(x), conv(x))
    # One circle of nine weights for each pair of channels, and zeros.
    assert len(wsr.Sharing.of(full.first[0].weight)) == 9 * a + 1


def test_the_convolutional_network_does_not_notice_shifts(networks):
    torch.manual_seed(0)
    net = networks.TorusCNN(6, 2, 3).eval()
    x = torch.rand(4, 6, 6)
    moved = x.roll((2, 5), (1, 2))
    torch.testing.assert_close(net(moved.flatten(1)), net(x.flatten(1)))


@pytest.mark.parametrize("name", ["PhotoFC", "PhotoConv"])
def test_networks_for_photos_have_the_sizes_of_their_layers(networks, name):
    net = getattr(networks, name)(2).eval()
    assert net(torch.rand(3, 3, 32, 32)).shape == (3, 10)
    (weight,) = net.weights()
    assert weight.shape == {"PhotoFC": (512, 3072), "PhotoConv": (2, 3, 9, 9)}[name]


def test_photos_are_moved_and_mirrored_and_nothing_else(networks):
    photos = torch.rand(50, 3, 8, 8)
    changed = networks.cropped_and_flipped(photos, torch.Generator().manual_seed(0))
    seen = set()
    padded = nn.functional.pad(photos, (4, 4, 4, 4))
    for before, after in zip(padded, changed, strict=True):
        found = [
            (down, right, flip)
            for down in range(9)
            for right in range(9)
            for flip in (False, True)
            for window in [before[:, down : down + 8, right : right + 8]]
            if torch.equal(window.flip(2) if flip else window, after)
        ]
        assert found
        seen.add(found[0])
    assert len(seen) > 30


def test_split_keeps_validation_apart_and_nests_fractions(learning):
    known = learning.Examples(torch.arange(100.0)[:, None], torch.arange(100))
    test = learning.Examples(torch.zeros(1, 1), torch.zeros(1).long())
    whole, tenth = (learning.split(known, test, 20, fraction) for fraction in (1.0, 0.1))
    assert len(whole.train.y) == 80
    assert len(tenth.train.y) == 8
    assert set(tenth.train.y.tolist()) < set(whole.train.y.tolist())
    assert sorted([*whole.train.y.tolist(), *whole.valid.y.tolist()]) == list(range(100))
    assert torch.equal(whole.valid.y, tenth.valid.y)
    assert torch.equal(whole.valid.x[:, 0].long(), whole.valid.y)


def test_cut_keeps_three_parts_apart(learning):
    known = learning.Examples(torch.arange(100.0)[:, None], torch.arange(100))
    nothing = known.take(slice(0))
    whole, tenth, fewer = (learning.cut(known, *a) for a in ((20, 20), (20, 20, 0.1), (8, 20)))
    assert sorted(torch.cat([part.y for part in whole]).tolist()) == list(range(100))
    assert len(whole.train.y) == 60
    assert len(tenth.train.y) == 6
    assert set(tenth.train.y.tolist()) < set(whole.train.y.tolist())
    for other in (tenth, fewer):
        assert torch.equal(other.test.y, whole.test.y)
        assert torch.equal(other.test.x[:, 0].long(), other.test.y)
    assert torch.equal(tenth.valid.y, whole.valid.y)
    # The validation images are those of split, which the test images never meet.
    for held_out in (8, 20, 80):
        valid = learning.split(known, nothing, held_out).valid.y
        assert not set(valid.tolist()) & set(whole.test.y.tolist())
        if held_out <= 25:
            assert torch.equal(valid, learning.cut(known, held_out, 20).valid.y)
    most = learning.cut(known, 90, 90)
    assert [len(part.y) for part in most] == [50, 25, 25]


def one_step(learning, networks, examples, how):
    """Return the weights before and after one step, and the gradient of the loss."""
    net = small(networks)
    seen = {}

    def watch(step, optimizer):
        seen["before"] = [p.detach().clone() for p in net.weights()]

    schedule = learning.Schedule(steps=1, batch=40, lr=0.1, momentum=0.0)
    learning.train(net, examples, how, schedule, seed=0, watch=watch)
    return seen["before"], [p.detach() for p in net.weights()]


def test_each_method_does_what_it_says(learning, networks, examples):
    lr, lambd, l1 = 0.1, (0.3, 0.1), 0.05
    how = learning.Regularization
    before, plain = one_step(learning, networks, examples, how())

    def after(*args, **kwargs):
        return one_step(learning, networks, examples, how(*args, **kwargs))[1]

    for p, q in zip(plain, after("l1", l1=l1), strict=True):
        assert torch.equal(q, wsr.prox(p, 0.0, l1=lr * l1))
    proximal = after("prox", lambd, l1=l1, rho=0.5)
    for p, q, strength in zip(plain, proximal, lambd, strict=True):
        assert torch.equal(q, wsr.prox(p, lr * strength, l1=lr * l1, rho=0.5))
    subgradient = after("subgradient", lambd)
    for w, p, q, strength in zip(before, plain, subgradient, lambd, strict=True):
        w = w.requires_grad_()
        (gradient,) = torch.autograd.grad(strength * wsr.penalty(w), [w])
        torch.testing.assert_close(p - q, lr * gradient)
    beta_lasso = after("beta-lasso", l1=1e-3, beta=50.0)
    for w, p, q in zip(before, plain, beta_lasso, strict=True):
        moved = p - lr * 1e-3 * w.sign()
        torch.testing.assert_close(q, moved.where(moved.abs() >= 0.05, 0.0))
        assert (q == 0).any()


@pytest.mark.parametrize(
    ("how", "message"),
    [({"method": "dropout"}, "method must be one of"), ({"lambd": (1.0,)}, "lambd must have 2")],
)
def test_bad_regularizations_are_named(learning, networks, how, message):
    with pytest.raises(ValueError, match=message):
        learning.optimizer_for(
            small(networks), learning.Regularization(**how), learning.Schedule(steps=1)
        )


def test_training_learns_and_is_the_same_for_the_same_seed(learning, networks, examples):
    schedule = learning.Schedule(steps=150, batch=20, lr=0.1)
    nets = []
    for seed in (0, 0, 1):
        net = small(networks)
        learning.train(net, examples, learning.Regularization(), schedule, seed=seed)
        nets.append(net)
    first, again, other = (net.weights()[0] for net in nets)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert learning.accuracy(nets[0], examples) > 0.5


def test_an_epoch_draws_every_example_once(learning, networks, examples):
    drawn = []

    def note(x, generator):
        drawn.append(x)
        return x

    schedule = learning.Schedule(steps=4, batch=10)
    learning.train(
        small(networks), examples, learning.Regularization(), schedule, seed=0, augment=note
    )
    assert torch.equal(torch.cat(drawn).sort(0).values, examples.x.sort(0).values)


def test_accuracy_counts(learning):
    class Says(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(x[:, 0].long(), 10).float()

    y = torch.arange(2500) % 10
    guess = torch.where(torch.arange(2500) < 500, (y + 1) % 10, y)
    assert learning.accuracy(Says(), learning.Examples(guess[:, None].float(), y)) == 0.8


def test_what_is_shared(learning, networks):
    net = small(networks)
    with torch.no_grad():
        net.weights()[0].zero_()[0, 0] = 1.0
    first, second = learning.shared(net)
    assert (first["weights"], first["distinct"], first["zeros"], first["largest"]) == (
        512,
        2,
        511,
        511,
    )
    assert first["penalty"] == 1.0
    assert second["distinct"] == len(wsr.Sharing.of(net.weights()[1].detach()))


def test_mean_and_spread(learning):
    assert learning.mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert learning.mean_and_spread([5.0]) == (5.0, 0.0)
