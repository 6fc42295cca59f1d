"""Which photos do the chapters learn from?"""

import hashlib
import io
import math
import os
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import TqdmWarning, tqdm

from experiments.data import load_digits

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE = "cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
TEST = ("test_batch.bin",)
FEWEST = 1000  # photos, or all where there are fewer, so that something can be learned from a part

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Photos(NamedTuple):
    """Photos in red, green and blue, uint8 (n, 3, 32, 32), and int64 labels, 0 to 9."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_photos(every: int = 1) -> Photos:
    """Return CIFAR-10, or one photo in ``every``, the same in every run, but at least 1,000.

    If the environment variable ``WSR_DATA`` is set, the folder it names has a subfolder
    ``cifar10`` with ``train.npz`` and ``test.npz``, a copy in JPEG, or else with the archive of the
    data set's authors.  If it is not set, that archive, of about 160 MiB, is downloaded once, into
    a cache.

    Raises
    ------
    FileNotFoundError
        If ``WSR_DATA`` is set and a file is missing there.
    OSError
        If the archive cannot be downloaded.
    ValueError
        If a file is not what it should be.
    """
    photos = _at_hand(every)
    if photos:
        return photos
    if os.environ.get("WSR_DATA"):
        raise FileNotFoundError(
            f"{_home()} holds neither train.npz and test.npz nor {ARCHIVE}; "
            "unset WSR_DATA to have CIFAR-10 downloaded"
        )
    return _from_archive(_download(), every)


def photos_or_digits(every: int = 1) -> Photos:
    """Return CIFAR-10 if it is on this machine, or else digits in its format."""
    photos = _at_hand(every)
    if photos:
        return photos
    print("Using digits in place of photos: CIFAR-10 is not on this machine.")
    digits = load_digits()

    def grey(images: Tensor, labels: Tensor) -> Part:
        chosen = _chosen(len(labels), every)
        large = interpolate(images[chosen, None], size=(32, 32), mode="bilinear")
        photos = large.mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return photos.numpy(), labels[chosen].numpy()

    parts = [
        grey(digits.train_images, digits.train_labels),
        grey(digits.test_images, digits.test_labels),
    ]
    return _photos(f"{digits.name}, as grey photos", parts)


def _chosen(n: int, every: int) -> NDArray[np.int64]:
    """Return one in ``every`` of so many indices, but no fewer than FEWEST, in order."""
    count = max(math.ceil(n / every), FEWEST)
    return np.sort(np.random.default_rng(0).permutation(n)[:count])


def _home() -> Path:
    """Return the folder in which CIFAR-10 is looked for."""
    named = os.environ.get("WSR_DATA")
    return Path(named).resolve() / "cifar10" if named else Path(_pooch().os_cache("wsr"))


def _at_hand(every: int) -> Photos | None:
    """Return what can be had without a download, if anything."""
    home = _home()
    copies = [home / "train.npz", home / "test.npz"]
    if any(path.exists() for path in copies):
        return _photos("CIFAR-10, a copy in JPEG", [_from_jpeg(path, every) for path in copies])
    if (home / ARCHIVE).exists():
        return _from_archive(home / ARCHIVE, every)
    return None


def _from_jpeg(path: Path, every: int) -> Part:
    """Return photos and labels from a file of the arrays jpeg, offsets and labels.

    Photo k is ``jpeg[offsets[k] : offsets[k + 1]]``.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            jpeg, offsets, labels = (arrays[key] for key in ("jpeg", "offsets", "labels"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    content = jpeg.tobytes()
    if len(offsets) != len(labels) + 1 or offsets[-1] != len(content):
        raise ValueError(f"{path} is damaged: its offsets do not fit its photos")
    chosen = _chosen(len(labels), every)
    images = np.empty((len(chosen), 32, 32, 3), np.uint8)
    for image, k in zip(images, chosen, strict=True):
        try:
            with Image.open(io.BytesIO(content[offsets[k] : offsets[k + 1]])) as photo:
                image[:] = np.asarray(photo)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: photo {k}: {error}") from error
    return images.transpose(0, 3, 1, 2), labels[chosen].astype(np.int64)


def _from_archive(path: Path, every: int) -> Photos:
    """Return the photos of the archive: a byte for the label, then the red, green, blue pixels."""
    with path.open("rb") as file:
        arrived = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if arrived != MD5:
        raise ValueError(f"{path} is damaged: its MD5 is {arrived}, not {MD5}")
    parts = []
    with tarfile.open(path) as archive:
        for names in (TRAIN, TEST):
            members = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
            content = b"".join(member.read() for member in members if member)
            rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            rows = rows[_chosen(len(rows), every)]
            parts.append((rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)))
    return _photos("CIFAR-10", parts)


def _photos(name: str, parts: list[Part]) -> Photos:
    (train_images, train_labels), (test_images, test_labels) = parts
    return Photos(
        name,
        torch.tensor(train_images),
        torch.tensor(train_labels),
        torch.tensor(test_images),
        torch.tensor(test_labels),
    )


def _download() -> Path:
    pooch = _pooch()
    try:
        # On stdout, for the book takes a word on stderr for a failure.
        with tqdm(
            desc=ARCHIVE, total=1, unit="B", unit_scale=True, file=sys.stdout, leave=False
        ) as bar:
            return Path(
                pooch.retrieve(
                    ADDRESS + ARCHIVE,
                    known_hash=f"md5:{MD5}",
                    fname=ARCHIVE,
                    path=_home(),
                    downloader=pooch.HTTPDownloader(progressbar=bar, timeout=10),
                )
            )
    except OSError as error:  # every failure of the connection is one, as is a full disk
        raise OSError(
            f"CIFAR-10 could not be downloaded ({type(error).__name__}); without a network, put "
            f"{ARCHIVE} into the subfolder cifar10 of a folder and let WSR_DATA name that folder"
        ) from error


def _pooch() -> Any:
    with warnings.catch_warnings():
        # In a notebook pooch misses ipywidgets, for a progress bar that is not used here.
        warnings.simplefilter("ignore", TqdmWarning)
        import pooch

    pooch.get_logger().setLevel("WARNING")  # it tells of each file on stderr
    return pooch
