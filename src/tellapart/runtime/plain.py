"""What a bare network's file leaves out: resizing, normalisation and views. Loads no torch."""

from __future__ import annotations

import abc

import numpy as np
import numpy.typing as npt

from tellapart.contract import Card, Pixels
from tellapart.contract.resizing import averaged, normalise, open_pixels, resize
from tellapart.runtime.base import Opened


class SizedOutside(Opened):
    """Shared by backends whose file does not include the resizing."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        contract = self.card.preprocessing
        return resize(open_pixels(content, contract), contract)


Floats = npt.NDArray[np.float32]


class PlainNetwork(SizedOutside, abc.ABC):
    """A backend whose file contains only ``network``."""

    def __init__(self, card: Card, has_features: bool = False) -> None:
        super().__init__(card)
        self._has_features = has_features

    @abc.abstractmethod
    def network(self, images_NCHW: Floats) -> tuple[Floats, ...]:
        """Return what the bare network gives for normalised float32 [B, C, height, width].

        Logits [B, K], and features [B, F] where the file has them, each float32.
        """

    def logits(self, images_NHWC: Pixels) -> Floats:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        images = normalise(images_NHWC, self.card.preprocessing)
        return averaged(lambda some: self.network(some)[0], images, self.card.views)

    def with_features(self, images: Pixels) -> tuple[Floats, Floats]:
        """Return logits [B, K] and features [B, F], averaged alike. Raises ArtifactError where the file has none."""
        if not self._has_features:
            return super().with_features(images)
        pixels, count = normalise(images, self.card.preprocessing), len(self.card.classes)
        both = averaged(lambda some: np.concatenate(self.network(some), 1), pixels, self.card.views, count)
        return both[:, :count], both[:, count:]
