"""Sharing and frequency: the closed forms, the learners, and both experiments in small."""

import importlib
import math
from pathlib import Path

import pytest
import torch

import wsr

BOOK = Path(__file__).resolve().parents[1] / "book"


def module(monkeypatch, name):
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module(f"experiments.{name}")


@pytest.fixture
def models(monkeypatch):
    return module(monkeypatch, "frequency_models")


@pytest.fixture
def frequency(monkeypatch):
    return module(monkeypatch, "frequency")


@pytest.fixture
def patches(monkeypatch):
    return module(monkeypatch, "patches")


@pytest.fixture
def learners(models):
    """Return three learners on their way to a short u, where no term of the loss is small."""
    generator = torch.Generator().manual_seed(0)
    u = 0.3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    C, gamma = torch.tensor([[0.0, 0.7, 2.0], [1.0, 1.5, 0.5]], dtype=torch.float64)
    return models.everywhere(u, 3) * 0.5 + noise, models.Target(u, C, gamma)


def test_loss_is_that_of_samples(models, learners):
    W, target = learners
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 200_000, 3, 4, generator=generator, dtype=torch.float64)
    y = models.predict(models.everywhere(target.u, 3), target, x)
    losses = (models.predict(W, target, x) - y).square() / 2
    error = losses.std(1) / math.sqrt(losses.shape[1])
    assert ((losses.mean(1) - models.population_loss(W, target)).abs() < 4 * error).all()
    assert (error < 0.01 * losses.mean(1)).all()  # precise enough to notice a wrong term


def test_loss_vanishes_at_the_target(models, learners):
    _, target = learners
    loss = models.population_loss(models.everywhere(target.u, 3), target)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-15)


def test_gradient_is_that_of_the_loss(models, learners):
    W, target = learners
    leaf = W.clone().requires_grad_()
    (expected,) = torch.autograd.grad(models.population_loss(leaf, target).sum(), leaf)
    torch.testing.assert_close(models.population_gradient(W, target), expected)


def test_sampled_gradient_is_that_of_the_samples(models, learners):
    W, target = learners[0][:2], models.Target(*(part[:2] for part in learners[1]))
    x = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = W.clone().requires_grad_()
    loss = 0.0
    for run in range(2):  # each run is a seed with samples of its own
        one = models.Target(*(part[run, None] for part in target))
        U = models.everywhere(one.u, 3)
        sample = x[run, None]
        error = models.predict(leaf[run, None], one, sample) - models.predict(U, one, sample)
        loss = loss + error.square().mean() / 2
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(models.sampled_gradient(W, target, x), expected)


def test_prediction_is_the_formula(models, learners):
    W, target = learners
    x = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for run, outputs in enumerate(models.predict(W, target, x)):
        for sample, output in zip(x[0], outputs, strict=True):
            total = (W[run] * sample).sum()
            expected = target.C[run] * W[run, 0] @ sample[0] + torch.cos(target.gamma[run] * total)
            torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("model", ["rows", "flat"])
def test_strengths_of_a_batch_are_kept_apart(models, model):
    W = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lambd = torch.tensor([0.5, 0.0, 60.0], dtype=torch.float64)
    after = models.descend(model, W, gradient, 0.1, lambd)
    for run, strength in enumerate(lambd.tolist()):
        moved = W[run] - 0.1 * gradient[run]
        expected = wsr.prox(moved, 0.1 * strength, dim=0 if model == "rows" else None)
        torch.testing.assert_close(after[run], expected)
    within, over_all = models.distinct(after)
    assert within[1] == over_all[1] == 20
    assert (within[2], over_all[2]) == ((5, 5) if model == "rows" else (5, 1))


def test_shared_filters_stay_shared_and_follow_the_sum(models):
    W = models.everywhere(torch.arange(4.0)[:, None], 3)
    gradient = torch.arange(12.0).reshape(4, 3, 1)
    after = models.descend("shared", W, gradient, 0.5, torch.zeros(4))
    expected = torch.arange(4.0) - 0.5 * gradient.sum((1, 2))
    torch.testing.assert_close(after, models.everywhere(expected[:, None], 3))


def test_sharing_finds_what_free_filters_miss(models):
    """At k = 8: one filter, and filters tied row by row, arrive; free ones keep a loss of 1/2."""
    generator = torch.Generator().manual_seed(6)
    u = torch.randn(1, 10, generator=generator, dtype=torch.float64)
    u = 1.5 * u / u.norm()
    one = torch.ones(1, dtype=torch.float64)
    target = models.Target(u, one, one)
    start = 0.05 * torch.randn(1, 8, 10, generator=generator, dtype=torch.float64)
    final = {}
    for model in ("shared", "local", "rows"):
        W = models.everywhere(start[:, 0], 8) if model == "shared" else start
        curves = models.race(
            model,
            W,
            target,
            one,
            lambda W: models.population_gradient(W, target),
            range(601),
            0.05,
        )
        final[model] = curves.loss[-1].item()
        below = (curves.loss[:, 0] < models.THRESHOLD).tolist()
        assert curves.reached.item() == (below.index(True) if any(below) else -1)
    assert final["shared"] < 1e-6
    assert final["rows"] < 1e-3
    assert 0.49 < final["local"] < 0.51


def test_gradient_of_a_free_filter(frequency):
    """With w_1 = u and the others at zero, the part that knows the target is as predicted."""
    s = frequency.settings(quick=True)._replace(spread=0.0)
    (row,) = frequency.plateau(s, 3, 1.5, "learned")
    assert row["overlap"] == pytest.approx(row["predicted_overlap"], rel=1e-3)
    assert row["norm"] == row["overlap"]  # a filter at zero feels nothing of its own energy


def test_least_squares_has_its_known_risk(frequency):
    """With 6 weights and 12 samples, an error of one in a denominator would show."""
    s = frequency.settings(quick=True)._replace(d=2, statistical_k=3, statistical_seeds=5000)
    s = s._replace(statistical_lambdas=(1.0,), statistical_iterations=1)
    rows = frequency.statistical(s, 12)
    for model in ("none", "shared"):
        risks = torch.tensor([row["excess_risk"] for row in rows if row["model"] == model])
        expected = next(row["expected"] for row in rows if row["model"] == model)
        error = risks.std() / math.sqrt(len(risks))
        assert abs(risks.mean() - expected) < 4 * error
        assert error < 0.03 * expected


def test_penalized_least_squares_has_a_certificate(frequency):
    """At the minimiser one more proximal step changes nothing; strong rows share one filter."""
    s = frequency.settings(quick=True)._replace(statistical_lambdas=(0.1, 30.0))
    s = s._replace(statistical_iterations=2000)
    x, y, _ = frequency.measurements(s, 120)
    for model, dim in (("rows", 0), ("flat", None)):
        W, change = frequency.penalized(s, model, x, y)
        assert (change < 1e-8).all()
        for seed, strength in ((0, 0), (1, 1)):
            inputs, w = x[seed].flatten(1), W[seed, strength]
            slope = (inputs.T @ (inputs @ w.flatten() - y[seed, :, 0]) / 120).view_as(w)
            moved = wsr.prox(w - 0.1 * slope, 0.1 * s.statistical_lambdas[strength], dim=dim)
            torch.testing.assert_close(moved, w, rtol=0, atol=1e-7)
        if model == "rows":
            one = torch.linalg.lstsq(x[0].sum(1), y[0]).solution[:, 0]
            torch.testing.assert_close(W[0, 1], one.expand(8, -1), rtol=0, atol=1e-6)


def test_frequency_in_small(frequency, monkeypatch, tmp_path):
    records = module(monkeypatch, "records")
    path = frequency.main(["--quick", "--results", str(tmp_path)])
    assert path == tmp_path / "frequency.json"
    record = records.load("frequency", tmp_path)
    rows = record["rows"]
    panels = ["population", "sgd", "gradient", "ablation", "knob", "start", "statistical", "checks"]
    assert {row["panel"] for row in rows} == set(panels)
    assert record["command"] == "python -m experiments.frequency --quick"
    for row in rows:
        if row["panel"] in ("population", "sgd"):
            fc = row["model"] == "fc"
            steps = record["settings"]["fc_steps" if fc else "steps"]
            assert len(row["loss"]) == len(steps)
            assert row["final"] == row["loss"][-1]
            reached = row["steps_to_0.05"]
            assert (reached is None) == (min(row["loss"]) >= 0.05)
            assert fc or row["k"] * 10 >= row["distinct"] >= 10
        if row.get("what") == "loss against Monte Carlo":
            assert row["in_standard_errors"] < 5
        if row.get("what") == "gradient against autograd":
            assert row["deviation"] < 1e-12
    by = {
        (row["panel"], row["model"], row.get("k"), row.get("C")) for row in rows if "model" in row
    }
    for panel in ("population", "sgd"):
        assert all((panel, model, 4, 1.0) in by for model in frequency.MODELS)
    assert ("sgd", "fc", 4, 1.0) in by
    (same,) = {row["spread"] for row in rows if row["panel"] == "start"} - {0.3}
    for row in rows:  # the usual start and the usual frequency are one and the same run
        if row["panel"] == "start" and row["spread"] == same:
            key = {**row, "panel": "knob"}
            del key["spread"]
            assert key in rows


def test_log_spaced_steps(frequency):
    steps = frequency.log_spaced(1000, 4)
    assert steps == [0, 1, 10, 100, 1000]


def test_patches_in_small(patches, monkeypatch, tmp_path):
    """The bundled digits serve here, so that the test needs no download."""
    records, data = module(monkeypatch, "records"), module(monkeypatch, "data")
    monkeypatch.setattr(patches, "load_digits", data._bundled)
    path = patches.main(["--quick", "--results", str(tmp_path)])
    assert path == tmp_path / "patches.json"
    record = records.load("patches", tmp_path)
    runs = {(row["head"], row["model"]) for row in record["rows"]}
    assert runs == {(head, model) for head in patches.HEADS for model in patches.MODELS}
    for row in record["rows"]:
        assert len(row["loss"]) == len(record["settings"]["steps"])
        assert row["final"] < row["loss"][0]
        assert row["distinct"] == 100 or row["model"] != "shared"


def test_inputs_are_centred_and_scaled(patches):
    s = patches.QUICK._replace(train=4000, test=10, seeds=(0, 1))
    images = torch.rand(50, 14, 14, generator=torch.Generator().manual_seed(0))
    train, test = patches.draw_inputs(s, (images, images[:20]))
    assert train.shape == (2, 5, 4000, 100)
    assert test.shape == (2, 5, 10, 100)
    assert train.mean().abs() < 0.01
    assert abs(train.square().mean() - 1) < 0.02
    assert not torch.equal(train[0], train[1])


def test_what_the_first_patch_leaves_unexplained(patches):
    """With two values of h_1 the conditional means are averages over two halves."""
    generator = torch.Generator().manual_seed(7)
    others = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    halves = [torch.cat([torch.full((200, 1), v).double(), others], 1) for v in (-0.5, 0.8)]
    C, gamma = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    arrived = patches.unexplained(torch.cat(halves)[None, None], C, gamma)
    variances = [patches.known_head(h, C, gamma).var(correction=0) for h in halves]
    torch.testing.assert_close(arrived.squeeze(), sum(variances) / 4)


def test_damping_of_two_values(patches):
    """E e^(i gamma h) of h = a and -a, equally often, is cos(gamma a)."""
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1]], dtype=torch.float64)
    h = signs * torch.tensor([9.0, 0.3, 0.8], dtype=torch.float64)
    gamma = torch.tensor([1.0, 3.0], dtype=torch.float64)
    arrived = patches.damping(h[None, None], gamma)
    expected = (torch.cos(0.3 * gamma) * torch.cos(0.8 * gamma)).abs()
    torch.testing.assert_close(arrived, expected[None])
