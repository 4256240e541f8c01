"""An artifact as a backend: torch runs the network as it is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart import artifact
from tellapart.contract import Card, Pixels
from tellapart.preprocess import load
from tellapart.references import Trust
from tellapart.runtime.base import Opened


class EagerBackend(Opened):
    """`artifact.Predictor` as a backend."""

    format = "artifact"

    def __init__(self, predictor: artifact.Predictor) -> None:
        self.predictor = predictor

    @property
    def card(self) -> Card:
        """The model card: what goes with the weights."""
        return self.predictor.card

    @property
    def device(self) -> str:
        """Where it computes, as torch names it."""
        return str(self.predictor.device)

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        return load(content, self.card.preprocessing)

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        result: npt.NDArray[np.float32] = self.predictor(torch.from_numpy(images_NHWC)).numpy()
        return result

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return logits [B, K] and features [B, F] of one run. Raises ModelError."""
        logits, features = self.predictor.with_features(torch.from_numpy(images))
        return logits.numpy(), features.numpy()


def open_artifact(
    path: str | os.PathLike[str], device: str, precision: str, trust: Trust = False, model: Any = None
) -> EagerBackend:
    """Open a run folder or an artifact. Raises ArtifactError, ModelError."""
    return EagerBackend(artifact.open_model(path, device, precision, trust=trust, model=model))
