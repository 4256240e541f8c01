"""What every kind of model file opens to, and what follows from logits. Loads no torch.

Prediction, evaluation, parity checks and serving use nothing but this, and so cannot tell the formats apart.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from tellapart.contract import Card, Pixels

LARGE = 16_000_000
"""Pixels of an image from which on a runtime must not keep the memory that resizing took: some 20 bytes for each."""


class Backend(Protocol):
    """A model that is ready to answer. Its methods may be called from several threads at once."""

    @property
    def format(self) -> str:
        """The name of the file's format, as in ``tellapart export --to``; ``artifact`` for our own."""
        ...

    @property
    def card(self) -> Card:
        """All that goes with the weights."""
        ...

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Return an image sized by the contract: a file's bytes or uint8 [H, W(, C)] -> uint8 [size, size, C].

        Raises BadImage.
        """
        ...

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for images that `prepare` gave: uint8 [B, size, size, C]."""
        ...


def is_large(image_HWC: Pixels) -> bool:
    """Return whether an image has more pixels than `LARGE`."""
    height, width = image_HWC.shape[:2]
    return bool(height * width > LARGE)


def probabilities(logits: npt.NDArray[np.float32], card: Card) -> npt.NDArray[np.float64]:
    """Return the softmax of the logits over the card's temperature: [B, K] -> float64 [B, K]."""
    scaled = logits.astype(np.float64) / card.temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result
