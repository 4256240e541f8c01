"""The interface of every opened model file. Loads no torch.

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
"""Pixels of an image above which a runtime must free the memory that resizing took: some 20 bytes for each."""


class Backend(Protocol):
    """A model that is ready to answer. Its methods may be called from several threads at once."""

    @property
    def format(self) -> str:
        """The name of the file's format, as in ``tellapart export --to``; ``artifact`` for tellapart's own."""
        ...

    @property
    def card(self) -> Card:
        """The model card: what goes with the weights."""
        ...

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Return an image sized by the contract: a file's bytes or levels [H, W(, C)] -> [height, width, C].

        Levels are uint8, or float32 where the contract's depth is. Raises BadImage.
        """
        ...

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for images that `prepare` gave: [B, height, width, C]."""
        ...

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return logits [B, K] and features [B, F], float32, of one run. Raises ArtifactError if there are none.

        Features are the input of the last layer, averaged over the card's views as the logits are.
        """
        ...

    def features(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Return the features alone."""
        ...


class Opened:
    """What backends share: features, which an exported file has only with ``export --features``."""

    format: str

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Raise ArtifactError: this file has none."""
        raise ArtifactError(
            f"This {self.format} file does not give features. Use the artifact itself, or export it with them: "
            "tellapart export MODEL --features --to onnx (or openvino, torch-export, aot-inductor, torchscript)."
        )

    def features(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Return features, float32 [B, F]. Raises ArtifactError if there are none."""
        return self.with_features(images)[1]


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
