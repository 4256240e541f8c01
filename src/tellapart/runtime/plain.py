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


class PlainNetwork(SizedOutside, abc.ABC):
    """A backend whose file contains only ``network``."""

    @abc.abstractmethod
    def network(self, images_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the bare network's logits, float32 [B, K], for normalised float32 [B, C, height, width]."""

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        images = normalise(images_NHWC, self.card.preprocessing)
        return averaged(self.network, images, self.card.views)
