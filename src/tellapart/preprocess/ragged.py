"""Batches of images of several sizes, without a copy of them.

Knows nothing of files, of stores or of the use of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tellapart.contract.decoding import Pixels


class Ragged:
    """B images [h, w, C] of one kind of number, uint8 or float32, on the CPU, each at its own place in memory.

    Stands for the tensor that `canvas` makes of them: it has that tensor's shape, device and slices.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        images: Sequence[Pixels],
        channels: int,
        kind: np.dtype[Any] = np.dtype(np.uint8),  # noqa: B008
    ) -> None:
        self.images, self.channels, self.kind = images, channels, kind

    @property
    def dtype(self) -> torch.dtype:
        """The canvas's kind of number."""
        return torch.float32 if self.kind == np.float32 else torch.uint8

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Pixels]:
        return iter(self.images)

    def __getitem__(self, rows: slice) -> Ragged:
        return Ragged(self.images[rows], self.channels, self.kind)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the canvas: B, the greatest height, the greatest width, C."""
        height, width = (max((image.shape[side] for image in self.images), default=1) for side in (0, 1))
        return len(self.images), height, width, self.channels

    def canvas(self) -> torch.Tensor:
        """Return the images in the upper left of a common canvas, zero elsewhere: [B, H, W, C]."""
        result = np.empty(self.shape, self.kind)
        for place, image in zip(result, self.images, strict=True):
            rows, columns = image.shape[:2]
            place[:rows, :columns] = image
            place[:rows, columns:] = 0
            place[rows:] = 0
        return torch.from_numpy(result)

    def to(self, device: torch.device) -> Ragged | torch.Tensor:
        """Return the images for ``device``: themselves on the CPU, otherwise the canvas there."""
        return self if device.type == "cpu" else self.canvas().to(device)


Images = torch.Tensor | Ragged


def as_tensor(images: Images) -> torch.Tensor:
    """Return [B, H, W, C]: the images themselves, or their canvas."""
    return images.canvas() if isinstance(images, Ragged) else images
