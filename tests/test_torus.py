"""Digits on a torus: written-out convolutions, forces on weights, structure, choices, record."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import wsr

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture
def torus(monkeypatch):
    """The bundled digits serve here, so that no test needs a download."""
    monkeypatch.syspath_prepend(BOOK)
    module = importlib.import_module("experiments.torus")
    data = importlib.import_module("experiments.data")
    monkeypatch.setattr(data, "load_digits", data._bundled)
    return module


@pytest.fixture
def search(torus):
    return importlib.import_module("experiments.torus_search")


def trained(torus, kind, way, steps=6, seed=0):
    _, parts = torus.torus_digits(0.2, 100, 100)
    torch.manual_seed(seed)
    net = kind(torus.side_of(parts.train), 2, 3)
    schedule = torus.Schedule(steps, 16, way.lr, 0.9)
    return net, parts, torus.learn(net, parts, way, schedule, seed, 2)


def test_a_trained_convolution_is_written_out(torus):
    cnn, parts, _ = trained(torus, torus.TorusCNN, torus.Way("CNN", 0.2))
    full = torus.written_out(cnn)
    cnn.eval(), full.eval()
    torch.testing.assert_close(full(parts.valid.x), cnn(parts.valid.x))
    cnn.train(), full.train()  # batch statistics differ: they are over positions in one of them
    assert len(wsr.Sharing.of(full.weights()[0].detach())) == 9 * 2 + 1
    assert len(wsr.Sharing.of(full.weights()[1].detach())) == 9 * 2 * 3 + 1


def test_digits_are_shifted_and_apart(torus):
    name, parts = torus.torus_digits(0.5, 10**6, 10**6)
    assert name == "scikit-learn's digits"
    known = len(parts.valid.y) + len(parts.test.y) + 2 * len(parts.train.y)
    assert abs(known - 1437) <= 2
    assert len(parts.valid.y) == len(parts.test.y) == 1437 // 4
    assert torus.side_of(parts.test) == 8
    first_column = parts.test.x.view(-1, 8, 8)[:, :, 0]
    assert (first_column > 0.5).any()  # in the digits as they are it is all but empty


def test_noise_and_signal_of_gradients(torus, monkeypatch):
    """With one input, the gradient of a batch is known: there is no noise, and all is signal."""
    torch.manual_seed(0)
    net = torus.TorusFC(4, 1, 2)
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 16, generator=generator)
    y = torch.tensor([0, 1])
    examples = torus.Examples(x, y)
    optimizer = torch.optim.SGD([{"params": net.weights(), "lambd": 0.5}], lr=0.1, momentum=0.9)
    buffers = [torch.randn_like(p) for p in net.weights()]
    for p, buffer in zip(net.weights(), buffers, strict=True):
        optimizer.state[p]["momentum_buffer"] = buffer
    alternating = iter([torch.tensor([0, 1])] * 3)
    monkeypatch.setattr(torch, "randint", lambda *_: next(alternating))
    rows = torus.forces(net, optimizer, examples, 2, 3)
    net_gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), net.weights())
    for row, gradient, buffer in zip(rows, net_gradients, buffers, strict=True):
        assert row["noise"] == pytest.approx(0.0, abs=1e-7)
        assert row["signal"] == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-4)
        assert row["buffer"] == pytest.approx(float(buffer.std()))
        largest = wsr.Sharing.of(wsr.prox(buffer, 0.5)).counts.max()
        assert row["held"] == float(largest) / buffer.numel()


def test_noise_is_a_standard_deviation(torus):
    """Against the spread of many gradients, taken one by one."""
    net, parts, _ = trained(torus, torus.TorusFC, torus.Way("FC", 0.1))
    optimizer = torch.optim.SGD(net.weights(), lr=0.1, momentum=0.9)
    for p in net.weights():
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    net.train()
    few, many = (torus.forces(net, optimizer, parts.train, 16, n) for n in (40, 160))
    state = torch.random.get_rng_state()
    gradients = []
    for k in range(160):
        torch.manual_seed(1000 + k)
        rows = torch.randint(len(parts.train.y), (16,))
        x, y = parts.train.take(rows)
        loss = torch.nn.functional.cross_entropy(net(x), y)
        gradients.append(torch.autograd.grad(loss, net.weights()[0])[0])
    torch.random.set_rng_state(state)
    spread = float(torch.stack(gradients).var(0).mean().sqrt())
    assert few[0]["noise"] == pytest.approx(spread, rel=0.15)
    assert many[0]["noise"] == pytest.approx(spread, rel=0.1)
    assert "held" not in few[0]


def test_measuring_changes_nothing(torus, monkeypatch):
    way = torus.prox_way(0.2, torus.Strength((0.01, 0.02), rho=0.5))
    measured, _, row = trained(torus, torus.TorusFC, way)
    monkeypatch.setattr(torus, "forces", lambda net, *_: [{} for _ in net.weights()])
    free, _, _ = trained(torus, torus.TorusFC, way)
    for name, value in free.state_dict().items():
        assert torch.equal(value, measured.state_dict()[name]), name
    assert [at["step"] for at in row["forces"]] == [1, 3, 5]


def test_rho_settles_with_the_learning_rate(torus, monkeypatch):
    seen = []
    way = torus.prox_way(0.2, torus.Strength((0.01, 0.02), rho=0.5, settle=True))

    def forces(net, optimizer, *_):
        seen.append([(g["lr"], g["rho"]) for g in optimizer.param_groups if "rho" in g])
        return [{} for _ in net.weights()]

    monkeypatch.setattr(torus, "forces", forces)
    trained(torus, torus.TorusFC, way)
    for groups in seen:
        for lr, rho in groups:
            assert 1 - rho == pytest.approx(0.5 * lr / 0.2)
    assert len(seen) == 3
    assert seen[-1][0][1] > 0.9


def patch_on_torus(side, top, left, size):
    """Return a picture that is zero but in a square, which may go around."""
    picture = torch.zeros(side, side)
    picture[:size, :size] = 1 + torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    return picture.roll((top, left), (0, 1))


def test_locality(torus):
    inside = torch.stack([patch_on_torus(9, *at, 5) for at in ((0, 0), (7, 3), (6, 8))])
    assert torus.locality(inside[:, None]) == pytest.approx(1.0)
    wide = patch_on_torus(9, 2, 2, 6).bool().float()
    assert torus.locality(wide[None, None]) == pytest.approx(25 / 36)
    shifted_values = inside[:, None] + 3.0  # counted from the median
    assert torus.locality(shifted_values) == pytest.approx(1.0, abs=1e-5)
    two_channels = torch.stack([inside[0], inside[0]])[None]
    assert torus.locality(two_channels) == pytest.approx(1.0)
    mixed = torch.stack([inside[0], wide])[:, None]
    assert torus.locality(mixed) == pytest.approx((1 + 25 / 36) / 2)
    assert torus.locality(torch.ones(2, 1, 9, 9)) == 1.0


def test_scattered_weights_are_the_same_elsewhere(torus):
    units = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    moved = torus.scattered(units)
    assert moved.shape == units.shape
    assert not torch.equal(moved, units)
    assert torch.equal(moved.flatten(1).sort(1).values, units.flatten(1).sort(1).values)


def test_resemblance(torus):
    one = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    copies = torch.stack([one.roll((t, k), (1, 2)) * (1 + t) + k for t, k in ((0, 0), (2, 5))])
    assert torus.resemblance(copies) == pytest.approx(1.0)
    # Against all shifts tried one by one.
    units = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    flat = units.flatten(1) - units.flatten(1).mean(1, keepdim=True)
    expected = []
    for k in range(4):
        found = [
            torch.cosine_similarity(flat[k], flat[n].view(5, 5).roll((t, s), (0, 1)).flatten(), 0)
            for n in range(4)
            if n != k
            for t in range(5)
            for s in range(5)
        ]
        expected.append(max(found))
    assert torus.resemblance(units) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_units_of_a_convolution_are_shifted_copies(torus):
    _, _, row = trained(torus, torus.TorusCNN, torus.Way("CNN", 0.2))
    assert row["locality"] == pytest.approx([1.0, 1.0])
    assert row["resemblance"] == pytest.approx([1.0, 1.0])
    _, _, dense = trained(torus, torus.TorusFC, torus.Way("FC", 0.2))
    assert max(dense["locality"]) < 0.9
    assert max(dense["resemblance"]) < 0.9


def test_orbits_of_shifts(torus):
    """Strong sharing along orbits leaves maps that commute with shifts, and means of orbits."""
    cnn, _, _ = trained(torus, torus.TorusCNN, torus.Way("CNN", 0.2))
    full = torus.written_out(cnn)
    before = [p.detach().clone() for p in full.weights()]
    torus.share_orbits(full, 8, 0.01)
    for p, w in zip(full.weights(), before, strict=True):
        torch.testing.assert_close(p.detach(), w)

    torch.manual_seed(0)
    net = torus.TorusFC(6, 2, 3)
    before = [p.detach().clone() for p in net.weights()]
    torus.share_orbits(net, 6, 100.0)
    for p, w, (units, channels) in zip(net.weights(), before, ((2, 1), (3, 2)), strict=True):
        assert len(wsr.Sharing.of(p.detach())) == 36 * units * channels
        x = torch.rand(channels, 6, 6)
        out = (p @ x.flatten()).detach().view(units, 6, 6).roll((1, 2), (1, 2)).flatten()
        torch.testing.assert_close((p @ x.roll((1, 2), (1, 2)).flatten()).detach(), out)
        # Unit (1, 1) of the last channel, pixel (0, 3) of the last one: they are (-1, 2) apart.
        row, column = (units - 1) * 36 + 7, (channels - 1) * 36 + 3
        places = [
            ((units - 1) * 36 + 6 * k + m, (channels - 1) * 36 + 6 * ((k - 1) % 6) + (m + 2) % 6)
            for k in range(6)
            for m in range(6)
        ]
        assert (row, column) in places
        mean = sum(float(w[place]) for place in places) / 36
        assert float(p.detach()[row, column]) == pytest.approx(mean, rel=1e-3, abs=1e-6)


def test_orbits_are_shared_after_each_step(torus):
    way = torus.Way("prox, orbits", 0.2, orbits=100.0)
    _, _, row = trained(torus, torus.TorusFC, way)
    assert [layer["distinct"] for layer in row["layers"]] == [2 * 64, 2 * 3 * 64]
    assert row["resemblance"] == pytest.approx([1.0, 1.0], abs=1e-4)


def test_clusters_that_are_still_whole(torus):
    before = wsr.Sharing.of(torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0]))
    assert torus.whole(before, torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0])) == 3
    assert torus.whole(before, torch.tensor([5.0, 6.0, 7.0, 7.0, -1.0])) == 2


def test_strongest_units(torus):
    torch.manual_seed(0)
    net = torus.TorusFC(4, 1, 2)
    weight = net.weights()[0]
    with torch.no_grad():
        weight.zero_()
        weight[3, 5] = 2.0
        weight[3, 6] = -1.0
        weight[7, 0] = 0.1
    strong, weak = torus.strongest(net, 2)
    assert (strong[5], strong[6], sum(map(abs, strong))) == (99, round(-99 / 2), 99 + 50)
    assert (weak[0], sum(map(abs, weak))) == (99, 99)


def candidate(method, valid, distinct=100, **more):
    layers = [{"weights": 100, "distinct": 100}, {"weights": 100, "distinct": distinct}]
    entries = {
        "lr": 0.5,
        "lambd": [0.0, 0.0],
        "l1": 0.0,
        "rho": 0.0,
        "settle": False,
        "dropout": 0.0,
        "orbits": 0.0,
        **more,
    }
    return {"method": method, "valid": valid, "layers": layers, **entries}


def test_choices(torus):
    rows = [
        candidate("FC", 0.6, lr=0.2),
        candidate("FC", 0.7),
        candidate("l1", 0.65, l1=1e-3),
        candidate("beta-lasso", 0.64, l1=1e-4),
        candidate("subgradient", 0.63, lambd=[1e-4, 1e-4]),
        candidate("prox", 0.8, lambd=[1e-3, 1e-3]),
        candidate("prox", 0.5, 9, lambd=[0.1, 0.1], rho=0.9),
        candidate("prox", 0.4, 1, lambd=[0.3, 0.3], rho=0.9),
        candidate("prox, orbits", 0.9, orbits=0.03),
        candidate("CNN", 0.95),
    ]
    assert torus.best(rows, "FC")["lr"] == 0.5
    ways = {way.name: way for way in torus.chosen(rows)}
    names = {"FC", "l1", "beta-lasso", "subgradient", "prox", "prox, orbits", "CNN"}
    assert set(ways) == names | {"prox, shared"}
    assert ways["prox, orbits"].orbits == 0.03
    assert ways["prox"].how == torus.Regularization("prox", (1e-3, 1e-3))
    assert ways["prox, shared"].how == torus.Regularization("prox", (0.1, 0.1), rho=0.9)
    assert ways["CNN"].how.method == ways["FC"].how.method == "plain"
    one_prox = [row for row in rows if row["method"] != "prox" or row["valid"] == 0.5]
    assert len(torus.chosen(one_prox)) == 7  # it is the best one, and shares


def test_quick_run(torus, tmp_path):
    path = torus.main(["--quick", "--results", str(tmp_path)])
    record = json.loads(path.read_text())
    assert record["command"] == "python -m experiments.torus --quick"
    assert record["settings"]["data"] == "scikit-learn's digits"
    panels = {}
    for row in record["rows"]:
        panels.setdefault(row["panel"], []).append(row)
    methods = {row["method"] for row in panels["choice"]}
    assert methods == {"FC", "CNN", "l1", "beta-lasso", "subgradient", "prox", "prox, orbits"}
    tested = panels["fractions"]
    assert methods <= {row["method"] for row in tested}
    for row in tested:
        same = [other for other in tested if other["method"] == row["method"]]
        assert {other["seed"] for other in same} == {0, 1}
        assert 0 <= row["test"] <= 1
        assert len(row["layers"]) == len(row["locality"]) == 2
        assert all(math.isfinite(f["noise"]) for at in row["forces"] for f in at["layers"])
    assert all("test" not in row for row in panels["choice"])
    assert all(len(row["filters"][0]) == 64 for row in tested if "filters" in row)
    plain = next(row for row in panels["pattern"] if row["method"] == "FC")
    assert plain["layers"][0]["distinct"] > plain["clusters"][0] == 10
    text = path.read_text()
    assert torus.main(["--quick", "--results", str(tmp_path / "again")]).read_text() != ""
    again = json.loads((tmp_path / "again" / "torus.json").read_text())
    assert again["rows"] == json.loads(text)["rows"]


def test_strength_is_constant_or_grows(search):
    settings = search.Settings()
    constant, growing = search.Variant("", steps=100), search.Variant("", steps=100, grows=True)
    assert {search.strength(settings, constant, t) for t in range(100)} == {settings.lambd}
    lambd = [search.strength(settings, growing, t) for t in range(100)]
    assert lambd[49] == pytest.approx(settings.lambd)
    assert lambd[-1] == pytest.approx(2 * settings.lambd)
    assert sum(lambd) / 100 == pytest.approx(settings.lambd, rel=0.02)


def test_quick_search(search, tmp_path):
    path = search.main(["--quick", "--results", str(tmp_path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["variant"], row["penalized"]) for row in rows] == [
        ("as it is", False),
        ("as it is", True),
        ("growing", True),
    ]
    plain, shared, growing = (row["layers"][1] for row in rows)
    assert shared["penalty"] < plain["penalty"]
    assert growing["zeros"] > 0 == plain["zeros"]
