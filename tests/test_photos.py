"""The chapters' photos: found, checked, replaced by digits; small made-up files, no network."""

import hashlib
import io
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REAL_DATA = Path(os.environ.get("WSR_DATA", "nowhere")).resolve()


@pytest.fixture
def photos(monkeypatch, experiment, bare_machine):
    """Return the module, with an address that nobody answers for."""
    module = experiment("photos")
    monkeypatch.setattr(module, "ADDRESS", "http://127.0.0.1:9/")
    monkeypatch.setattr(module, "FEWEST", 2)
    return module


@pytest.fixture
def folder(tmp_path):
    """Return the folder that WSR_DATA is to name."""
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    return tmp_path / "data"


def flat_colours(n):
    """Return photos of one colour each, which JPEG keeps but for rounding, and labels."""
    colours = np.random.default_rng(n).integers(0, 256, (n, 3, 1, 1), np.uint8)
    return np.broadcast_to(colours, (n, 3, 32, 32)), np.arange(n) % 10


def write_jpeg(path, images, labels, **replaced):
    parts = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).copy()).save(stream, "JPEG", quality=95)
        parts.append(stream.getvalue())
    arrays = {
        "jpeg": np.frombuffer(b"".join(parts), np.uint8),
        "offsets": np.cumsum([0] + [len(part) for part in parts]),
        "labels": labels.astype(np.uint8),
    }
    np.savez(path, **{**arrays, **replaced})


@pytest.fixture
def copy(folder):
    """Write a copy in JPEG of seven photos, five to learn from; return them."""
    parts = [flat_colours(5), flat_colours(2)]
    for name, part in zip(("train", "test"), parts, strict=True):
        write_jpeg(folder / "cifar10" / f"{name}.npz", *part)
    return parts


def write_archive(path, parts):
    """Write an archive as that of the data set: five files of training photos, one of test ones."""
    (images, labels), test = parts
    files = {f"data_batch_{k + 1}.bin": (images[k : k + 1], labels[k : k + 1]) for k in range(5)}
    files["test_batch.bin"] = test
    with tarfile.open(path, "w:gz") as archive:
        for name, (pixels, classes) in files.items():
            rows = np.hstack([classes[:, None].astype(np.uint8), pixels.reshape(len(pixels), -1)])
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = rows.size
            archive.addfile(entry, io.BytesIO(rows.tobytes()))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(photos, folder, monkeypatch):
    """Write such an archive of random photos, make the module expect it, and return the photos."""
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) + 2) for n in (5, 3)]
    md5 = write_archive(folder / "cifar10" / photos.ARCHIVE, parts)
    monkeypatch.setattr(photos, "MD5", md5)
    return parts


def assert_holds(found, parts, atol=0):
    images = (found.train_images, found.test_images)
    labels = (found.train_labels, found.test_labels)
    for (pixels, classes), image, label in zip(parts, images, labels, strict=True):
        assert image.dtype == torch.uint8
        expected = torch.tensor(pixels.copy()).int()
        torch.testing.assert_close(image.int(), expected, rtol=0, atol=atol)
        assert label.dtype == torch.int64
        assert label.tolist() == classes.tolist()


def some_of(parts, found, every):
    """Return the photos that were chosen, told by their labels: one in ``every``, none twice."""
    result = []
    for (x, y), labels in zip(parts, (found.train_labels, found.test_labels), strict=True):
        assert len(labels.unique()) == len(labels) == max(math.ceil(len(y) / every), 2)
        where = [y.tolist().index(label) for label in labels.tolist()]
        result.append((x[where], y[where]))
    return result


@pytest.mark.parametrize("every", [1, 2])
def test_the_copy_in_jpeg_is_read(photos, copy, folder, monkeypatch, every):
    monkeypatch.setenv("WSR_DATA", str(folder))
    found = photos.load_photos(every)
    assert "JPEG" in found.name
    assert_holds(found, some_of(copy, found, every), atol=4)


def test_a_part_is_not_too_small(photos, copy, folder, monkeypatch):
    monkeypatch.setenv("WSR_DATA", str(folder))
    found = photos.load_photos(every=100)
    assert len(found.train_labels) == len(found.test_labels) == 2


@pytest.mark.parametrize("every", [1, 2])
def test_the_archive_is_read(photos, archive, folder, monkeypatch, every):
    monkeypatch.setenv("WSR_DATA", str(folder))
    found = photos.load_photos(every)
    assert found.name == "CIFAR-10"
    assert_holds(found, some_of(archive, found, every))


def test_missing_files_are_named(photos, folder, monkeypatch):
    monkeypatch.setenv("WSR_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match=r"train\.npz.*tar\.gz.*unset WSR_DATA"):
        photos.load_photos()


def test_a_missing_half_is_named(photos, copy, folder, monkeypatch):
    (folder / "cifar10" / "test.npz").unlink()
    monkeypatch.setenv("WSR_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match=r"test\.npz is missing"):
        photos.load_photos()


def another_format(path):
    path.write_bytes(b"\x89PNG")


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def without_labels(path):
    with np.load(path) as arrays:
        kept = {key: arrays[key] for key in ("jpeg", "offsets")}
    np.savez(path, **kept)


def one_label_short(path):
    write_jpeg(path, flat_colours(3)[0], np.zeros(2))


def a_byte_short(path):
    write_jpeg(path, *flat_colours(2), offsets=np.array([0, 300, 599]))


def no_photo(path):
    write_jpeg(path, *flat_colours(1), jpeg=np.zeros(9, np.uint8), offsets=np.array([0, 9]))


def a_small_photo(path):
    write_jpeg(path, flat_colours(1)[0][..., :16], np.zeros(1))


@pytest.mark.parametrize(
    "damage",
    [
        another_format,
        cut,
        empty,
        without_labels,
        one_label_short,
        a_byte_short,
        no_photo,
        a_small_photo,
    ],
)
def test_a_damaged_copy_is_named(photos, copy, folder, monkeypatch, damage):
    path = folder / "cifar10" / "test.npz"
    damage(path)
    monkeypatch.setenv("WSR_DATA", str(folder))
    with pytest.raises(ValueError, match=r"test\.npz is damaged"):
        photos.load_photos()


def test_a_damaged_archive_is_named(photos, archive, folder, monkeypatch):
    path = folder / "cifar10" / photos.ARCHIVE
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setenv("WSR_DATA", str(folder))
    with pytest.raises(ValueError, match=r"tar\.gz is damaged: its MD5"):
        photos.load_photos()


def test_a_download_is_checked_and_kept(photos, archive, folder, serve, monkeypatch, capfd):
    address, requested = serve(folder / "cifar10")
    monkeypatch.setattr(photos, "ADDRESS", address)
    assert_holds(photos.load_photos(), archive)
    assert_holds(photos.load_photos(), archive)
    assert_holds(photos.photos_or_digits(), archive)  # it is at hand now
    assert requested == [f"/{photos.ARCHIVE}"]
    assert capfd.readouterr().err == ""


def test_offline_the_message_says_what_to_do(photos):
    with pytest.raises(OSError, match=r"could not be downloaded \(ConnectionError\).*WSR_DATA"):
        photos.load_photos()


def test_digits_stand_in_for_photos_without_a_download(photos, experiment, monkeypatch, capfd):
    data = experiment("data")
    images = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0] = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    digits = data.Digits("digits", images, torch.arange(5), images[:3], torch.arange(3))
    monkeypatch.setattr(photos, "load_digits", lambda: digits)
    found = photos.photos_or_digits(every=2)
    out, err = capfd.readouterr()
    assert "digits" in out
    assert err == ""
    assert "digits" in found.name
    assert found.train_images.shape == (3, 3, 32, 32)
    assert found.test_images.shape == (2, 3, 32, 32)
    assert found.train_images.dtype == torch.uint8
    corners = torch.tensor([0, 64, 128, 191, 255])[found.train_labels]
    assert found.train_images[:, 1, 0, 0].tolist() == corners.tolist()
    assert len(set(found.train_labels.tolist())) == 3
    assert set(found.test_labels.tolist()) < {0, 1, 2}


@pytest.mark.skipif(
    not (REAL_DATA / "cifar10").exists(), reason="WSR_DATA does not name a folder with CIFAR-10"
)
def test_cifar_is_whole(photos, monkeypatch):
    monkeypatch.setenv("WSR_DATA", str(REAL_DATA))
    found = photos.load_photos(every=100)
    assert found.train_images.shape == (500, 3, 32, 32)
    assert found.test_images.shape == (100, 3, 32, 32)
    assert (found.train_labels.bincount(minlength=10) > 20).all()  # about 50 are expected
    assert 100 < found.train_images.float().mean() < 140
