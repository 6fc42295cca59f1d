"""Compressing and retraining: k-means, pruning, training by means, sizes, choices, the record."""

import importlib
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

import wsr

BOOK = Path(__file__).resolve().parents[1] / "book"


@pytest.fixture
def retraining(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("experiments.retraining")


@pytest.fixture
def bundled(monkeypatch, retraining):
    data = importlib.import_module("experiments.data")
    monkeypatch.setattr(retraining, "load_digits", data._bundled)


def shared_network(retraining):
    """Return a network whose matrices have few values, zeros among them."""
    torch.manual_seed(0)
    net = retraining.Dense(6, 5)
    for p in net.weights():
        p.data = (3 * p.data).round() / 4
    return net


def test_images_are_cut_from_the_training_images(retraining, bundled):
    s = retraining.settings(quick=True)
    data = retraining.examples(s)
    assert [len(part.y) for part in data] == [800, 200, 200]
    known = retraining.load_digits().train_images[:1200].flatten(1)
    rows = torch.cat([part.x for part in data])
    assert sorted(rows.tolist()) == sorted(known.tolist())
    whole = retraining.examples(s._replace(images=None, held_out=5000, tested=10_000))
    assert [len(part.y) for part in whole] == [719, 359, 359]


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_kmeans_is_that_of_scikit_learn(retraining, k):
    w = torch.rand(40, 10, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    start = np.linspace(float(w.min()), float(w.max()), k)[:, None]
    peer = KMeans(k, init=start, n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
    peer.fit(w.numpy().reshape(-1, 1))
    found = retraining.kmeans(w, k)
    assert found.shape == w.shape
    assert len(wsr.Sharing.of(found)) == k
    assert float((w - found).square().sum()) == pytest.approx(peer.inertia_, rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_shrinking_is_the_prox_of_l1(retraining, rho):
    torch.manual_seed(0)
    net = retraining.Dense(6, 5)
    before = [p.detach().clone() for p in net.weights()]
    retraining.shrink(net, 0.1, rho)
    for w, p in zip(before, net.weights(), strict=True):
        torch.testing.assert_close(p.detach(), wsr.prox(w, 0.0, l1=0.1, rho=rho))
        assert 0 < (p == 0).sum() < p.numel()


def test_learning_with_l1_is_learning_with_its_prox(retraining):
    learning = importlib.import_module("experiments.learning")
    torch.manual_seed(1)
    x, y = torch.randn(64, 6), torch.randint(10, (64,))
    data = learning.split(learning.Examples(x, y), learning.Examples(x, y), held_out=0)
    s = retraining.settings(quick=True)._replace(steps=12, batch=16)
    same = [
        retraining.learned(s, data, learning.Regularization(method, l1=0.2, rho=0.5), 0.2, 0)
        for method in ("l1", "prox")
    ]
    for mine, other in zip(*map(retraining._tensors, same), strict=True):
        torch.testing.assert_close(mine, other)
    assert (same[0].first.weight == 0).any()


def test_a_value_that_no_weight_is_nearest_to_is_lost(retraining):
    w = torch.tensor([[1.0, 5.0], [1.0, 3.0]])
    torch.testing.assert_close(retraining.kmeans(w, 3), w)
    assert retraining.kmeans(torch.ones(4), 3).tolist() == [1.0] * 4
    far = torch.tensor([0.0, 0.1, 1.0])
    torch.testing.assert_close(retraining.kmeans(far, 5), torch.tensor([0.05, 0.05, 1.0]))


def test_each_weight_goes_to_the_nearest_mean(retraining):
    w = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = retraining.kmeans(w, 7)
    pattern = wsr.Sharing.of(found)
    nearest = (w[:, None] - pattern.values).abs().argmin(1)
    assert torch.equal(nearest, pattern.labels)
    torch.testing.assert_close(pattern.average(w), found)


def test_pruning_takes_the_smallest_of_each_matrix(retraining):
    torch.manual_seed(0)
    net = retraining.Dense(6, 5)
    pruned = retraining.prune(net, 0.8)
    for before, after in zip(net.weights(), pruned.weights(), strict=True):
        gone = after == 0
        assert gone.sum() == round(0.8 * before.numel())
        assert before[gone].abs().max() < before[~gone].abs().min()
        assert torch.equal(before[~gone], after[~gone])


def test_quantizing_leaves_alone_what_is_alike(retraining):
    net = shared_network(retraining)
    alike = [retraining.largest_cluster(p.detach()) for p in net.weights()]
    few = retraining.quantize(net, [3, 2], alike)
    for before, after, kept, k in zip(net.weights(), few.weights(), alike, [3, 2], strict=True):
        assert 0 < kept.sum() < kept.numel()
        assert len(before[kept].unique()) == 1
        assert torch.equal(before[kept], after[kept])
        assert len(wsr.Sharing.of(after[~kept].detach())) == k - 1
    nothing = [torch.zeros_like(kept) for kept in alike]
    assert len(wsr.Sharing.of(retraining.quantize(net, [3, 2], nothing).first.weight)) == 3
    everything = [torch.ones_like(kept) for kept in alike]
    same = retraining.quantize(net, [3, 2], everything)
    assert all(map(torch.equal, same.weights(), net.weights()))


def test_training_by_means_is_projected_descent(retraining):
    """Tied values, their gradients averaged, against free weights, averaged after each step."""
    learning = importlib.import_module("experiments.learning")
    torch.manual_seed(1)
    x, y = torch.randn(64, 6), torch.randint(10, (64,))
    data = learning.split(learning.Examples(x, y), learning.Examples(x, y), held_out=0)
    s = retraining.settings(quick=True)._replace(retraining=12, batch=64)
    tied, free = shared_network(retraining), shared_network(retraining)
    weights = free.weights()
    patterns = [wsr.Sharing.of(p) for p in weights]
    zeros = [p.detach() == 0 for p in weights]

    @torch.no_grad()
    def project(*_):
        for p, pattern, zero in zip(weights, patterns, zeros, strict=True):
            p.copy_(torch.where(zero, 0.0, pattern.average(p)))

    retraining.train_further(s, data, tied, "mean", 0.1, seed=3)
    plain = learning.optimizer_for

    def projected(*arguments):
        optimizer = plain(*arguments)
        optimizer.register_step_post_hook(project)
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "optimizer_for", projected)
        retraining.train_further(s, data, free, "free", 0.1, seed=3)
    for mine, other in zip(retraining._tensors(tied), retraining._tensors(free), strict=True):
        torch.testing.assert_close(mine, other)
    start = shared_network(retraining)
    assert not torch.allclose(tied.first.weight, start.first.weight, atol=1e-3)
    assert torch.equal(tied.first.weight == 0, start.first.weight == 0)


def test_training_by_sums_is_another_thing(retraining):
    learning = importlib.import_module("experiments.learning")
    x, y = torch.randn(64, 6), torch.randint(10, (64,))
    data = learning.split(learning.Examples(x, y), learning.Examples(x, y), held_out=0)
    s = retraining.settings(quick=True)._replace(retraining=1, batch=64, momentum=0.0)
    start = shared_network(retraining)
    moved = {}
    for scaling in ("sum", "mean"):
        net = retraining.copy(start)
        retraining.train_further(s, data, net, scaling, 0.1, seed=3)
        moved[scaling] = (net.first.weight - start.first.weight).detach()
    pattern = wsr.Sharing.of(start.first.weight)
    counts = pattern.counts[pattern.labels]
    torch.testing.assert_close(moved["sum"], moved["mean"] * counts)
    assert moved["mean"].abs().max() > 1e-4


def test_sizes_count_every_parameter(retraining):
    net = shared_network(retraining)
    found = retraining.sizes(net)
    patterns = [wsr.Sharing.of(p.detach()) for p in net.weights()]
    biases = 4 * (5 + 10)
    assert found["distinct"] == [len(pattern) for pattern in patterns]
    assert found["dense"] == 4 * (30 + 50) + biases
    stored = [part for pattern in patterns for part in pattern.encode()]
    assert found["coded"] == sum(part.numpy().nbytes for part in stored) + biases
    entropy = sum(pattern.entropy_bits for pattern in patterns) / 8
    assert found["entropy"] == pytest.approx(entropy + biases, abs=0.1)
    assert found["entropy"] <= found["coded"]
    assert found["listed"] <= found["entropy"]
    assert found["lzma"] > found["listed"]
    for name in retraining.WEIGHTS:
        wsr.tie(net, name)
    assert retraining.sizes(net) == found


def test_words_and_values_in_order_tell_all(retraining):
    w = torch.tensor([[0.5, 0.0, 0.25], [0.5, 2.0, 0.0], [-1.0, 0.5, 0.0]])
    pattern = wsr.Sharing.of(w)
    words = retraining.words(pattern)
    assert words.tolist() == [[2, 1, 0], [2, 0, 1], [0, 2, 1]]
    rebuilt = torch.cat([torch.zeros(1), pattern.values[pattern.counts > 1]])[words]
    rebuilt[words == 0] = w[words == 0]  # one after another
    assert torch.equal(rebuilt, w)
    # Three words, each for a third of the weights.
    assert retraining.entropy(words) == pytest.approx(9 * math.log2(3))
    assert retraining.entropy(words) < pattern.entropy_bits - 32 * len(pattern)
    assert retraining.entropy(torch.ones(5, dtype=torch.int64)) == 0
    assert lzma.decompress(retraining.pack(words)) == bytes(words.flatten().tolist())


def test_storage_is_checked_in_earnest(retraining, monkeypatch):
    net = shared_network(retraining)
    for name in retraining.WEIGHTS:
        wsr.tie(net, name)
    assert retraining.comes_back(net)
    decode = wsr.Sharing.decode
    monkeypatch.setattr(
        wsr.Sharing, "decode", staticmethod(lambda *given: decode(*given).nextafter(torch.ones(())))
    )
    assert not retraining.comes_back(net)


def test_the_best_within_a_budget_is_chosen(retraining):
    def row(method, listed, after, **how):
        accuracies = {"before": {"valid": 1 - after}, "after": {"valid": after}}
        size = {"listed": listed, "dense": 64, "distinct": [2, 1]}
        return {"method": method, **size, **accuracies, **how}

    rows = [
        row("k-means", 4, 0.7, values=[2, 2], pruned=0.0),
        row("k-means", 8, 0.9, values=[4, 4], pruned=0.0),
        row("k-means", 8.1, 0.95, values=[5, 5], pruned=0.0),
        row("wsr", 2, 0.8, lambd=1.0, rho=0.0, l1=0.0),
        row("wsr", 3, 0.6, lambd=2.0, rho=0.0, l1=0.0),
        row("wsr", 1, 0.99, lambd=3.0, rho=0.0, l1=0.0) | {"distinct": [1, 1]},
    ]
    assert retraining.chosen(rows, budgets=[64, 16, 8]) == [
        {"method": "wsr", "lambd": 1.0, "rho": 0.0, "l1": 0.0},
        {"method": "k-means", "values": [2, 2], "pruned": 0.0},
        {"method": "k-means", "values": [4, 4], "pruned": 0.0},
    ]


def test_the_best_rate_is_that_of_the_mean(retraining):
    rows = [
        {"lr": 0.1, "valid": 0.5},
        {"lr": 0.1, "valid": 0.7},
        {"lr": 0.2, "valid": 0.65},
        {"lr": 0.2, "valid": 0.1},
    ]
    assert retraining.best(rows, "lr") == (0.1,)


def test_quick_run(retraining, bundled, tmp_path):
    path = retraining.main(["--quick", "--results", str(tmp_path)])
    record = json.loads(path.read_text())
    s = retraining.settings(quick=True)
    panels = {}
    for row in record["rows"]:
        panels.setdefault(row["panel"], []).append(row)
    assert {row["lr"] for row in panels["rate"]} == set(s.rates)
    assert len(panels["scaling"]) == 2 * sum(map(len, s.further_rates))
    assert len(panels["grid"]) == len(retraining.grid(s))
    assert all("test" not in row["after"] for row in panels["grid"])
    settings = retraining.chosen(panels["grid"], s.budgets)
    assert {how["method"] for how in settings} == set(retraining.METHODS)
    assert len(panels["final"]) == len(s.seeds) * len(settings)
    prox = sum(how["method"] == "wsr" for how in settings)
    assert len(panels["matched"]) == len(s.seeds) * prox > 0
    assert len(panels["plain"]) == len(s.seeds)
    for row in panels["final"] + panels["matched"]:
        assert row["comes_back"]
        assert 0 <= row["after"]["test"] <= 1
        assert row["listed"] <= row["entropy"] <= row["coded"]
        if "values" in row:
            assert all(map(int.__le__, row["distinct"], row["values"]))
    again = retraining.main(["--quick", "--results", str(tmp_path)])
    assert json.loads(again.read_text())["rows"] == record["rows"]
