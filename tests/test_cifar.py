"""Filters on CIFAR-10: what is measured of them, on filters that are known, and a small run."""

import math

import numpy as np
import pytest
import torch


@pytest.fixture
def cifar(experiment):
    return experiment("cifar")


@pytest.fixture
def records(experiment):
    return experiment("records")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_locality_is_the_best_windows_share(cifar):
    filters = noise(4, 3, 12, 14)
    for found, f in zip(cifar.locality(filters), filters, strict=True):
        windows = [
            f[:, i : i + 9, j : j + 9].square().sum() for i in range(12 - 8) for j in range(14 - 8)
        ]
        torch.testing.assert_close(found, max(windows) / f.square().sum())


def test_locality_of_a_patch_is_one(cifar):
    filters = torch.zeros(2, 3, 32, 32)
    filters[0, :, 23:, :9] = noise(3, 9, 9)
    filters[1, 0, 0, 0], filters[1, 2, 31, 31] = 3.0, 4.0
    torch.testing.assert_close(cifar.locality(filters), torch.tensor([1.0, 16 / 25]))


def brute_force_copies(filters, nearest):
    n, _, height, width = filters.shape
    best = torch.full((n,), -1.0)
    for down in range(1 - height, height):
        for right in range(1 - width, width):
            if max(abs(down), abs(right)) < nearest:
                continue
            moved = torch.zeros_like(filters)
            to = (slice(max(down, 0), height + min(down, 0)),)
            to += (slice(max(right, 0), width + min(right, 0)),)
            source = (slice(max(-down, 0), height + min(-down, 0)),)
            source += (slice(max(-right, 0), width + min(-right, 0)),)
            moved[..., to[0], to[1]] = filters[..., source[0], source[1]]
            for i in range(n):
                for j in range(n):
                    if i != j:
                        match = (moved[i] * filters[j]).sum()
                        best[i] = max(best[i], match / filters[i].norm() / filters[j].norm())
    return best


@pytest.mark.parametrize("nearest", [1, 2, 3])
def test_copies_are_those_of_all_moves(cifar, monkeypatch, nearest):
    monkeypatch.setattr(cifar, "NEAREST", nearest)
    filters = noise(3, 3, 5, 6)
    torch.testing.assert_close(cifar.copies(filters), brute_force_copies(filters, nearest))


def test_a_moved_filter_is_a_copy_and_the_same_place_is_not(cifar):
    filters = torch.zeros(3, 3, 32, 32)
    patch = noise(3, 5, 5)
    filters[0, :, 2:7, 3:8] = patch
    filters[1, :, 20:25, 1:6] = 2 * patch
    filters[2, :, :15, 16:] = noise(3, 15, 16, seed=1)
    found = cifar.copies(filters)
    torch.testing.assert_close(found[:2], torch.ones(2))
    assert found[2] < 0.6
    assert (cifar.copies(filters[[0, 0]]) < 0.6).all()


def test_a_convolution_is_local_copied_and_tied(cifar):
    """The positive control: random kernels, written out as a matrix."""
    torch.manual_seed(0)
    weights = cifar.first_layer(cifar.PhotoConv(2))
    assert weights.shape == (512, 3072)
    row = cifar.measures(weights, 60, 0)
    assert row["filters"] == 512
    assert row["locality"] == [1.0] * 5
    assert row["copies"][2] == pytest.approx(1.0, abs=1e-4)
    assert row["tied"] == 1.0
    assert cifar.convolution_like(row) == {"local": True, "copied": True, "tied": True}


def test_white_noise_is_not(cifar):
    row = cifar.measures(noise(128, 3072), 60, 0)
    assert cifar.convolution_like(row) == {"local": False, "copied": False, "tied": False}
    assert row["tied"] < 0.1  # some float32 numbers come twice
    assert abs(row["smoothness"]) < 0.01


def test_filters_of_zeros_are_left_out(cifar):
    weights = noise(5, 3072)
    weights[1] = 0
    row = cifar.measures(weights, 10, 0)
    assert row["filters"] == 4
    assert all(math.isfinite(value) for value in row["locality"] + row["copies"])


def test_tied_leaves_the_largest_cluster_out(cifar):
    w = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    assert cifar.tied(w) == pytest.approx(2 / 5)


def test_smoothness_of_a_wave(cifar):
    rows = torch.cos(2 * math.pi * torch.arange(400) / 8)
    filters = rows[:, None].expand(1, 3, 400, 400)
    assert cifar.smoothness(filters) == pytest.approx((math.cos(math.pi / 4) + 1) / 2, abs=0.01)


def test_shuffled_filters_have_the_same_pixels_elsewhere(cifar):
    filters = noise(2, 3, 8, 8)
    found = cifar.shuffled(filters, torch.Generator().manual_seed(1))
    for before, after in zip(filters, found, strict=True):
        pixels = [sorted(map(tuple, f.flatten(1).T.tolist())) for f in (before, after)]
        assert pixels[0] == pixels[1]
        assert not torch.equal(before, after)
    places = [
        (found[k, 0].flatten()[:, None] == filters[k, 0].flatten()).int().argmax(1) for k in (0, 1)
    ]
    assert not torch.equal(*places)  # each filter has an order of its own


def test_rephased_filters_have_the_same_correlations(cifar):
    filters = cifar.shuffled(noise(2, 3, 8, 8), torch.Generator().manual_seed(1))
    found = cifar.rephased(filters, torch.Generator().manual_seed(2))
    assert not torch.allclose(filters, found)
    for move in ((0, 0), (1, 0), (2, 5)):
        for colour in range(3):
            one, other = (
                (f[:, 0] * f[:, colour].roll(move, (1, 2))).sum((1, 2)) for f in (filters, found)
            )
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_picture_shows_zero_as_grey_and_the_fullest_first(cifar):
    weights = torch.zeros(3, 3072)
    weights[1, :7] = torch.tensor([0.5, -1.0, 0.25, 0.1, 0.1, 0.1, 0.1])
    weights[2, 1024] = -2.0  # the first pixel, green
    found = cifar.pictures(weights, 2)
    assert found.shape == (2, 2, 32, 32, 3)
    assert found[0, 0, 0, :4, 0].tolist() == [192, 1, 160, 141]
    assert found[0, 1, 0, 0].tolist() == [128, 1, 128]
    assert (found[0, 1, 1:] == 128).all()


def test_the_rule_of_choice(cifar):
    rows = [
        {"panel": "choice", "method": "wsr", "accuracy": a, "distinct": n}
        for a, n in [(0.5, 900), (0.495, 80), (0.492, 90), (0.4, 1)]
    ]
    others = [
        {"panel": "choice", "method": "plain", "accuracy": 0.6, "distinct": 5},
        {"panel": "choice", "method": "plain", "accuracy": 0.595, "distinct": 1},
        {"panel": "final", "method": "wsr", "accuracy": 0.9, "distinct": 0},
    ]
    assert cifar.choose(rows + others, "wsr", 0.01)["distinct"] == 80
    assert cifar.choose(rows + others, "wsr", 0.0)["distinct"] == 900
    assert cifar.choose(rows + others, "plain", 0.01)["accuracy"] == 0.6


def test_photos_are_standardized_by_those_to_learn_from(cifar):
    images = torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (images * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)).to(torch.uint8)
    labels = torch.arange(60) % 10
    photos = cifar.Photos("made up", images, labels, images[:7], labels[:7])
    task = cifar.prepare(photos, 20)
    assert [len(part.y) for part in task.data] == [40, 20, 7]
    x = task.standardized(task.data.train.x)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(task.data.test.x, task.standardized(images[:7]))


def test_cifar_in_small(cifar, records, tmp_path):
    path = cifar.main(["--quick", "--epochs", "1", "--results", str(tmp_path)])
    assert path == tmp_path / "cifar.json"
    record = records.load("cifar", tmp_path)
    assert record["command"] == "python -m experiments.cifar --quick --epochs 1"
    assert record["settings"]["epochs"] == 1
    choice = [row for row in record["rows"] if row["panel"] == "choice"]
    assert [row["method"] for row in choice] == ["plain", "beta-lasso", "l1", "wsr"]
    final = {row["method"]: row for row in record["rows"] if row["panel"] == "final"}
    assert set(final) == {"untrained", *cifar.METHODS}
    for row in final.values():
        assert row["seed"] == 1
        assert row["weights"] == (243 if row["method"] == "conv" else 3072 * 256)
        assert len(row["locality"]) == len(row["copies"]) == len(cifar.QUANTILES)
    assert final["conv"]["locality"] == [1.0] * 5
    for method in cifar.METHODS:
        assert 0 <= final[method]["accuracy"] <= 1
        assert 0 <= final[method]["validation"] <= 1
    assert final["plain"]["zeros"] == 0
    assert all(final[method]["zeros"] > 1000 for method in ("beta-lasso", "l1", "wsr"))
    assert len({final[method]["zeros"] for method in ("beta-lasso", "l1", "wsr")}) == 3
    assert final["wsr"]["lambd"] == 0.03
    assert final["l1"]["lambd"] == 0.0
    with np.load(tmp_path / "cifar_filters.npz") as filters:
        assert set(filters) == set(cifar.METHODS)
        for pictures in filters.values():
            assert pictures.shape == (2, 4, 32, 32, 3)
            assert pictures.dtype == np.uint8
    assert {file.name for file in tmp_path.iterdir()} == {"cifar.json", "cifar_filters.npz"}


def test_channels_in_small(experiment, records, tmp_path):
    experiment("cifar_channels").main(["--quick", "--results", str(tmp_path)])
    record = records.load("cifar_channels", tmp_path)
    assert record["command"] == "python -m experiments.cifar_channels --quick"
    rows = {row["method"]: row for row in record["rows"]}
    assert {method: row["weights"] for method, row in rows.items()} == {
        "plain": 3072 * 256,
        "conv": 243,
    }
    assert all(0 <= row["accuracy"] <= 1 for row in rows.values())


def test_many_channels_in_small(cifar, experiment, records, tmp_path):
    experiment("cifar_wide").main(["--quick", "--results", str(tmp_path)])
    record = records.load("cifar_wide", tmp_path)
    assert record["command"] == "python -m experiments.cifar_wide --quick"
    (row,) = record["rows"]
    assert row["zeros"] > 1000
    assert 0 <= row["accuracy"] <= 1
    assert set(cifar.convolution_like(row)) == {"local", "copied", "tied"}
