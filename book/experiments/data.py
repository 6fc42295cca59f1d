"""Which images do the chapters learn from?"""

import gzip
import hashlib
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import TqdmWarning, tqdm

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class MnistFile(NamedTuple):
    """A file of MNIST: its name, and the MD5 sums of its content and of the mirror's gzip of it."""

    name: str
    content: str
    compressed: str


MNIST = (
    MnistFile(
        "train-images-idx3-ubyte.gz",
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    MnistFile(
        "train-labels-idx1-ubyte.gz",
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    MnistFile(
        "t10k-images-idx3-ubyte.gz",
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    MnistFile(
        "t10k-labels-idx1-ubyte.gz",
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)


class Digits(NamedTuple):
    """Images of handwritten digits, float32 in [0, 1], (n, height, width), and int64 labels."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """Return MNIST, or the digits that scikit-learn bundles where MNIST cannot be had.

    If the environment variable ``WSR_DATA`` is set, the four files are in the subfolder ``mnist``
    of the folder it names.  Otherwise they are downloaded once, into a cache.

    Raises
    ------
    FileNotFoundError
        If ``WSR_DATA`` is set and a file is missing there.
    ValueError
        If a file is not what it should be.
    """
    folder = os.environ.get("WSR_DATA")
    if folder:
        return _mnist([Path(folder).resolve() / "mnist" / file.name for file in MNIST])
    try:
        paths = _download()
    except OSError as error:  # every failure of the connection is one, as is a full disk
        print(
            "Using the 8 x 8 digits that scikit-learn bundles: WSR_DATA is not set, "
            f"and MNIST could not be downloaded ({type(error).__name__})."
        )
        return _bundled()
    return _mnist(paths)


def shifted_digits() -> Digits:
    """Return the digits on a torus: each moved by a random number of pixels around both ways.

    Those of MNIST are shrunk to 14 x 14 before, by averaging 2 x 2 pixels.  The shifts are drawn
    once, one for each image, and are the same in every run.
    """
    digits = load_digits()
    generator = torch.Generator().manual_seed(2023)
    return digits._replace(
        train_images=_shifted(digits.train_images, generator),
        test_images=_shifted(digits.test_images, generator),
    )


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    if images.shape[-1] == 28:
        images = avg_pool2d(images[:, None], 2)[:, 0]
    n, height, width = images.shape
    row = torch.arange(height) + torch.randint(height, (n, 1), generator=generator)
    column = torch.arange(width) + torch.randint(width, (n, 1), generator=generator)
    return images[torch.arange(n)[:, None, None], row[:, :, None] % height, column[:, None] % width]


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array of bytes that an IDX file holds.

    The format: two zero bytes, the type of the entries (8 for unsigned bytes), the number of
    dimensions; each dimension as a big-endian 32-bit integer; the entries, last index fastest.
    """
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:4]!r}")
    ndim = content[3]
    shape = struct.unpack_from(f">{ndim}I", content, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _mnist(paths: list[Path]) -> Digits:
    arrays = [
        parse_idx(_content(path, file.content)) for path, file in zip(paths, MNIST, strict=True)
    ]
    return _digits("MNIST", *arrays, white=255)


def _content(path: Path, md5: str) -> bytes:
    """Return what the gzip file holds, if that is what it should be."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing; unset WSR_DATA to have MNIST downloaded"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    arrived = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if arrived != md5:
        raise ValueError(f"{path} is damaged: the MD5 of its content is {arrived}, not {md5}")
    return content


def _download() -> list[Path]:
    with warnings.catch_warnings():
        # In a notebook pooch misses ipywidgets, for a progress bar that is not used here.
        warnings.simplefilter("ignore", TqdmWarning)
        import pooch

    pooch.get_logger().setLevel("WARNING")  # it tells of each file on stderr
    store = pooch.create(
        path=pooch.os_cache("wsr"),
        base_url=MIRROR,
        registry={file.name: f"md5:{file.compressed}" for file in MNIST},
    )
    paths = []
    for file in MNIST:
        # On stdout, for the book takes a word on stderr for a failure. Pooch puts in the true total
        # later, but asks before whether the bar is true, and without a total tqdm cannot say.
        with tqdm(
            desc=file.name,
            total=1,
            unit="B",
            unit_scale=True,
            leave=False,
            delay=0.1,
            file=sys.stdout,
        ) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=10)
            paths.append(Path(store.fetch(file.name, downloader=downloader)))
    return paths


def _bundled() -> Digits:
    """Return scikit-learn's digits; the last fifth of them is the test set."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    n = len(images) * 4 // 5
    return _digits(
        "scikit-learn's digits", images[:n], labels[:n], images[n:], labels[n:], white=16
    )


def _digits(
    name: str,
    train_images: NDArray[np.generic],
    train_labels: NDArray[np.generic],
    test_images: NDArray[np.generic],
    test_labels: NDArray[np.generic],
    *,
    white: int,
) -> Digits:
    def pixels(images: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(images.astype(np.float32) / np.float32(white))

    def classes(labels: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(labels.astype(np.int64))

    return Digits(
        name,
        pixels(train_images),
        classes(train_labels),
        pixels(test_images),
        classes(test_labels),
    )
