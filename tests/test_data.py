"""The chapters' images: found, checked, replaced where they cannot be had; without a network."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
import torch

REAL_DATA = os.environ.get("WSR_DATA")


def idx(array):
    """Return the bytes of an IDX file."""
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def data(monkeypatch, experiment, bare_machine):
    """Return the module, with a mirror that nobody answers for."""
    module = experiment("data")
    monkeypatch.setattr(module, "MIRROR", "http://127.0.0.1:9/")
    return module


@pytest.fixture
def arrays():
    """Return the images and labels of a very small MNIST: for training, then for tests."""
    rng = np.random.default_rng(0)
    shapes = [(5, 28, 28), (5,), (3, 28, 28), (3,)]
    return [rng.integers(0, 256 if len(shape) > 1 else 10, shape, np.uint8) for shape in shapes]


@pytest.fixture
def small_mnist(data, arrays, tmp_path, monkeypatch):
    """Return a folder that holds it, and make the module expect it."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    expected = []
    for file, array in zip(data.MNIST, arrays, strict=True):
        compressed = gzip.compress(idx(array))
        (folder / file.name).write_bytes(compressed)
        expected.append(data.MnistFile(file.name, md5(idx(array)), md5(compressed)))
    monkeypatch.setattr(data, "MNIST", tuple(expected))
    return folder


def assert_holds(digits, arrays):
    assert digits.name == "MNIST"
    train_images, train_labels, test_images, test_labels = arrays
    for images, pixels in [(digits.train_images, train_images), (digits.test_images, test_images)]:
        torch.testing.assert_close(images, torch.tensor(pixels / 255, dtype=torch.float32))
    for labels, classes in [(digits.train_labels, train_labels), (digits.test_labels, test_labels)]:
        assert labels.dtype == torch.int64
        assert labels.tolist() == classes.tolist()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 28, 28)])
def test_idx_is_parsed_exactly(data, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    parsed = data.parse_idx(idx(array))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x89PNG", id="another format"),
        pytest.param(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", id="float32 entries"),
        pytest.param(b"\0\0\x08\x02\0\0\0\x01", id="a dimension short"),
        pytest.param(b"\0\0\x08\x01\0\0\0\x02\x07", id="an entry short"),
        pytest.param(b"\0\0\x08\x01\0\0\0\x01\x07\x07", id="an entry long"),
    ],
)
def test_what_is_no_idx_file_is_refused(data, content):
    with pytest.raises(ValueError, match=r"IDX|reshape"):
        data.parse_idx(content)


def test_folder_of_wsr_data_is_read(data, small_mnist, arrays, monkeypatch, capsys):
    monkeypatch.setenv("WSR_DATA", str(small_mnist.parent))
    assert_holds(data.load_digits(), arrays)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("position", range(4))
def test_missing_file_is_named(data, small_mnist, monkeypatch, position):
    name = data.MNIST[position].name
    (small_mnist / name).unlink()
    monkeypatch.setenv("WSR_DATA", str(small_mnist.parent))
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        data.load_digits()


def cut(content):
    return content[:-9]


def overwrite(content):
    return b"not gzip"


def garble(content):
    return content[:30] + bytes([content[30] ^ 255]) + content[31:]


def brighten(content):
    raw = bytearray(gzip.decompress(content))
    raw[-1] ^= 1
    return gzip.compress(bytes(raw))


@pytest.mark.parametrize("damage", [cut, overwrite, garble, brighten])
def test_damaged_file_is_named(data, small_mnist, monkeypatch, damage):
    path = small_mnist / data.MNIST[2].name
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setenv("WSR_DATA", str(small_mnist.parent))
    with pytest.raises(ValueError, match=f"{path.name} is (not a whole gzip file|damaged)"):
        data.load_digits()


def test_download_is_checked_and_kept(data, small_mnist, arrays, serve, monkeypatch, capfd):
    address, requested = serve(small_mnist)
    monkeypatch.setattr(data, "MIRROR", address)
    assert_holds(data.load_digits(), arrays)
    assert_holds(data.load_digits(), arrays)
    assert requested == [f"/{file.name}" for file in data.MNIST]
    assert capfd.readouterr().err == ""


def test_offline_falls_back_on_bundled_digits(data, capfd):
    digits = data.load_digits()
    out, err = capfd.readouterr()
    assert "scikit-learn" in out
    assert "ConnectionError" in out
    assert err == ""
    assert digits.name == "scikit-learn's digits"
    assert digits.train_images.shape == (1437, 8, 8)
    assert digits.test_images.shape == (360, 8, 8)
    assert_are_digits(digits)


def assert_are_digits(digits):
    for images, labels in [
        (digits.train_images, digits.train_labels),
        (digits.test_images, digits.test_labels),
    ]:
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert labels.dtype == torch.int64
        assert labels.shape == images.shape[:1]
        assert labels.unique().tolist() == list(range(10))


@pytest.mark.skipif(not REAL_DATA, reason="WSR_DATA does not name a folder with MNIST")
def test_mnist_is_whole(data, monkeypatch):
    monkeypatch.setenv("WSR_DATA", REAL_DATA)
    digits = data.load_digits()
    assert digits.train_images.shape == (60000, 28, 28)
    assert digits.test_images.shape == (10000, 28, 28)
    assert_are_digits(digits)
