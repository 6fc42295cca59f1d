"""Which networks learn: fully connected ones, and the convolutions that they might find by sharing.

Each fully connected network has the layer sizes of the convolutional one beside it, so that it can
represent every function of that one: a convolution is a fully connected layer with shared weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

DROPOUT = 0.4


class Network(nn.Module, ABC):
    """A network that tells which of its weights might be shared."""

    @abstractmethod
    def weights(self) -> list[nn.Parameter]:
        """Return them, a tensor for each layer."""


class _TorusNetwork(Network):
    """Two layers of channels at every position of a torus, their mean over positions, a head."""

    def __init__(
        self, side: int, channels: tuple[int, int], first: nn.Module, second: nn.Module
    ) -> None:
        super().__init__()
        self.side, self.channels = side, channels
        self.first, self.second = first, second
        self.head = nn.Linear(channels[1], 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x)).view(len(x), self.channels[1], -1)
        logits: Tensor = self.head(y.mean(-1))
        return logits


class TorusFC(_TorusNetwork):
    """Fully connected layers side^2 -> side^2 a -> side^2 b on images (n, side^2).

    Parameters
    ----------
    side : int
        Pixels along a side of the torus.
    a, b : int
        Channels of the two layers.
    """

    def __init__(self, side: int, a: int, b: int) -> None:
        n = side**2
        layers = [
            nn.Sequential(
                nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(DROPOUT)
            )
            for inputs, outputs in ((n, n * a), (n * a, n * b))
        ]
        super().__init__(side, (a, b), *layers)

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of the two layers that might become convolutions."""
        return _weights(self.first, self.second)


class TorusCNN(_TorusNetwork):
    """Circular 3 x 3 convolutions with a and b channels on images (n, side^2)."""

    def __init__(self, side: int, a: int, b: int) -> None:
        layers = [
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular"),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
            )
            for inputs, outputs in ((1, a), (a, b))
        ]
        super().__init__(side, (a, b), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), 1, self.side, self.side))

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of the two convolutions."""
        return _weights(self.first, self.second)


class PhotoFC(Network):
    """S-FC: 3072 -> 256 ch -> 24 ch -> 10, fully connected, on photos (n, 3, 32, 32)."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 32 * 32, 256 * ch)
        self.rest = _classifier(ch)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rest(self.first(x.flatten(1)))
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of the first layer."""
        return _weights(self.first)


class PhotoConv(Network):
    """S-Conv: in the place of S-FC's first layer a convolution 9 x 9 with stride 2, ch channels."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, ch, 9, stride=2, padding=4)  # 16 x 16 positions
        self.rest = _classifier(ch)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rest(self.first(x).flatten(1))
        return logits

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of the convolution."""
        return _weights(self.first)


def _classifier(ch: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(256 * ch),
        nn.ReLU(),
        nn.Linear(256 * ch, 24 * ch),
        nn.BatchNorm1d(24 * ch),
        nn.ReLU(),
        nn.Linear(24 * ch, 10),
    )


def _weights(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the linear layers and convolutions in these modules, in order."""
    return [
        parameter
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
        for name, parameter in part.named_parameters()
        if name == "weight"
    ]


def as_fully_connected(conv: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the matrix of a linear map of images: its columns are the images of unit vectors.

    Parameters
    ----------
    conv : callable
        A linear map without bias from images (n, *shape) to anything (n, ...).
    shape : tuple of int
        The shape of one image.
    """
    n = torch.Size(shape).numel()
    with torch.no_grad():
        return conv(torch.eye(n).view(n, *shape)).flatten(1).T


def cropped_and_flipped(photos: Tensor, generator: torch.Generator) -> Tensor:
    """Return photos (n, 3, h, w), each moved by up to 4 pixels and mirrored by chance."""
    n, _, h, w = photos.shape
    windows = pad(photos, (4, 4, 4, 4)).unfold(2, h, 1).unfold(3, w, 1)
    down, right, mirrored = (torch.randint(limit, (n,), generator=generator) for limit in (9, 9, 2))
    moved = windows[torch.arange(n), :, down, right]
    return torch.where(mirrored.bool().view(n, 1, 1, 1), moved.flip(3), moved)
