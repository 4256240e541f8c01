"""What every kind of model file opens to. Loads no torch.

Prediction, evaluation, parity checks and serving use nothing but this, and so cannot tell the formats apart. What
follows from logits is in `tellapart.contract.answers`.
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
        """Return an image sized by the contract: a file's bytes or uint8 [H, W(, C)] -> uint8 [size, size, C].

        Raises BadImage.
        """
        ...

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for images that `prepare` gave: uint8 [B, size, size, C]."""
        ...


def card_of(text: str | bytes, path: str | os.PathLike[str]) -> Card:
    """Return the card in a file's description. Raises ArtifactError, which names the file."""
    try:
        return Card.from_json(text if isinstance(text, str) else text.decode("utf-8"))
    except ValueError as error:
        raise ArtifactError(f"The description inside {os.fspath(path)} cannot be used: {error}") from None


def is_large(image_HWC: Pixels) -> bool:
    """Return whether an image has more pixels than `LARGE`."""
    height, width = image_HWC.shape[:2]
    return bool(height * width > LARGE)
