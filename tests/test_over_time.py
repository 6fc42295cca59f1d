"""Sharing over time: what is noted of a step, in which steps, and that it is what happens."""

import importlib

import numpy as np
import pytest
import torch

import wsr


@pytest.fixture(autouse=True)
def _on_path(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "book")


@pytest.fixture
def over_time():
    return importlib.import_module("experiments.over_time")


def images(name, side, n=60):
    data = importlib.import_module("experiments.data")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, side, side, generator=generator)
    return data.Digits(name, x, (10 * x[:, 0, 0]).long(), x[:0], torch.zeros(0).long())


def test_weights_are_counted_by_the_size_of_their_cluster(over_time):
    counts = np.array([1, 1, 2, 3, 4, 7, 8, 15, 16])
    assert over_time.members_by_size(counts) == [2, 5, 11, 23, 16]
    assert over_time.members_by_size(np.array([4])) == [0, 0, 4]


def test_a_step_is_described(over_time):
    before = torch.tensor([0.5, 0.5, 0.5, -1.0, 2.0, 3.0])
    moved = torch.tensor([0.5, 0.4, 0.6, 0.0, 0.0, 3.0])
    after = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 3.0])
    row = over_time.describe(before, moved, after, lr=0.1, lambd=2.0)
    assert (row["held"], row["largest"], row["distinct"], row["zeros"]) == (3, 3, 3, 2)
    assert row["sizes"] == [1, 5]
    # The three that were equal were pulled by 0, 1 and -1: the variance is 2/3.
    assert row["pull_inside"] == pytest.approx((2 / 3) ** 0.5, rel=1e-4)
    assert row["pull"] == pytest.approx(float((before - moved).div(0.1).std()), rel=1e-4)
    assert row["penalty"] == pytest.approx(wsr.penalty(after).item(), rel=1e-4)
    assert row["deviation"] == pytest.approx(after.std().item(), rel=1e-4)
    # Free end points of 0, 0, .4, .5, .6, 3 with strength .2: .2 .12 .44 .46 .48 2.8: one merge.
    assert (row["rounds"], row["work"]) == (1, 6 + 5)


def test_steps_are_looked_at_from_the_first_to_the_last(over_time):
    assert over_time.steps_to_look_at(10, 4) == [0, 1, 4, 9]
    assert over_time.steps_to_look_at(3, 40) == [0, 1, 2]


@pytest.mark.parametrize("network", ["OneHidden", "TorusFC"])
def test_what_is_described_is_what_the_training_does(over_time, network):
    learning = over_time.learning
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 16, generator=generator)
    examples = learning.Examples(x, (10 * x[:, 0]).long())
    how = learning.Regularization("prox", 0.3, rho=0.5)
    schedule = learning.Schedule(steps=9, batch=10, lr=0.1)

    def fresh():
        torch.manual_seed(0)
        return over_time.OneHidden(16, 8) if network == "OneHidden" else over_time.TorusFC(4, 1, 2)

    net = fresh()
    layers = over_time.follow(net, examples, how, schedule, seed=0, looks=3)
    steps = over_time.steps_to_look_at(9, 3)
    weights = []  # of all layers, before each step
    again = fresh()
    learning.train(
        again,
        examples,
        how,
        schedule,
        seed=0,
        watch=lambda *_: weights.append([p.detach().clone() for p in again.weights()]),
    )
    weights.append(again.weights())
    assert len(layers) == len(weights[0])
    for n, layer in enumerate(layers):
        assert torch.equal(net.weights()[n], again.weights()[n])
        assert layer["weights"] == again.weights()[n].numel()
        for k, step in enumerate(steps):
            pattern, held = (wsr.Sharing.of(weights[s][n].detach()) for s in (step + 1, step))
            assert layer["distinct"][k] == len(pattern)
            assert layer["largest"][k] == pattern.counts.max()
            assert layer["held"][k] == held.counts.max()
            assert sum(layer["sizes"][k]) == layer["weights"]
            penalty = wsr.penalty(weights[step + 1][n].detach()).item()
            assert layer["penalty"][k] == pytest.approx(penalty, rel=1e-4)
        assert layer["distinct"][-1] < layer["weights"]  # there was something to describe


def test_the_experiment_writes_its_record(over_time, tmp_path, monkeypatch):
    monkeypatch.setattr(over_time, "shifted_digits", lambda: images("shifted noise", 6))
    monkeypatch.setattr(over_time, "load_digits", lambda: images("noise", 28))
    monkeypatch.setitem(over_time.QUICK, "held_out", 20)
    monkeypatch.setitem(over_time.QUICK, "fraction", 0.8)
    over_time.main(["--quick", "--results", str(tmp_path)])
    record = over_time.records.load("over_time", tmp_path)
    assert record["command"] == "python -m experiments.over_time --quick"
    assert [(row["network"], row["images"], row["lambd"]) for row in record["rows"]] == [
        ("one hidden layer", "noise", 0.0),
        ("one hidden layer", "noise", 0.03),
        ("torus", "shifted noise", 0.01),
    ]
    for row in record["rows"]:
        assert row["examples"] == 32
        assert 0 <= row["accuracy"] <= 1
        assert row["steps"][-1] == 11
        for layer in row["layers"]:
            assert len(layer["rounds"]) == len(row["steps"])
    assert [layer["weights"] for layer in record["rows"][0]["layers"]] == [14 * 14 * 8]
    assert [layer["weights"] for layer in record["rows"][2]["layers"]] == [36 * 36, 36 * 36]
    again = tmp_path / "again"
    over_time.main(["--quick", "--results", str(again)])
    assert over_time.records.load("over_time", again)["rows"] == record["rows"]
