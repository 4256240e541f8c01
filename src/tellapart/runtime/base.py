"""What every kind of model file opens to, and what follows from logits. Loads no torch.

Prediction, evaluation, parity checks and serving use nothing but this, and so cannot tell the formats apart.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tellapart.contract import Card, Pixels
from tellapart.errors import ArtifactError

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
        """Return an image sized by the contract: a file's bytes or uint8 [H, W(, C)] -> uint8 [height, width, C].

        Raises BadImage.
        """
        ...

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for images that `prepare` gave: uint8 [B, height, width, C]."""
        ...


def card_of(text: str | bytes, path: str | os.PathLike[str]) -> Card:
    """Return the card in a file's description. Raises ArtifactError, which names the file."""
    try:
        return Card.from_json(text if isinstance(text, str) else text.decode("utf-8"))
    except ValueError as error:
        raise ArtifactError(f"The description inside {os.fspath(path)} cannot be used: {error}") from None


def checked(logits: npt.NDArray[np.float32], card: Card) -> npt.NDArray[np.float32]:
    """Return logits [B, K] where they are an answer: finite, one for each class. Raises ArtifactError."""
    if logits.ndim != 2 or logits.shape[1] != len(card.classes):
        raise ArtifactError(
            f"The model answers with {list(logits.shape[1:])} values for an image; its description has "
            f"{len(card.classes)} classes."
        )
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "The model's answer is not a number (its weights are damaged, or its values overflow)."
        )
    return logits


def is_large(image_HWC: Pixels) -> bool:
    """Return whether an image has more pixels than `LARGE`."""
    height, width = image_HWC.shape[:2]
    return bool(height * width > LARGE)


def probabilities(logits: npt.NDArray[np.float32], card: Card) -> npt.NDArray[np.float64]:
    """Return the softmax of the logits over the card's temperature: [B, K] -> float64 [B, K]. Raises ArtifactError."""
    return softmax(checked(logits, card), card)


def softmax(logits: npt.NDArray[np.float32], card: Card) -> npt.NDArray[np.float64]:
    """Return the same as `probabilities`, also of logits that are no answer: not a number then."""
    scaled = logits.astype(np.float64) / card.temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result
