"""OpenVINO files (IR) behind the seam. Loads no torch. Owner of OpenVINO's runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import packages
from tellapart.contract import Card, Pixels
from tellapart.errors import ArtifactError
from tellapart.runtime.host import upright

PURPOSE = "An OpenVINO model"
PIXELS, LOGITS = "pixels", "logits"


class OpenVinoBackend:
    """The file's graph cut at ``pixels``: its first part prepares an image, its second answers a batch."""

    format = "openvino"

    def __init__(self, openvino: Any, model: Any, card: Card, threads: int) -> None:
        self.card = card
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        first, second = cut(openvino, model, card)
        core = openvino.Core()
        self._prepare = core.compile_model(first, "CPU", settings)
        self._logits = core.compile_model(second, "CPU", settings)

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        image = upright(content, self.card.preprocessing)
        answer = self._prepare.create_infer_request().infer([image[None]], share_outputs=False)
        pixels: Pixels = answer[0][0]
        return pixels

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, size, size, C]."""
        request = self._logits.create_infer_request()
        answer = request.infer([np.ascontiguousarray(images_NHWC)], share_outputs=False)
        return np.asarray(answer[LOGITS], np.float32)


def cut(openvino: Any, model: Any, card: Card) -> tuple[Any, Any]:
    """Cut a whole graph at ``pixels``: (images -> pixels, pixels -> probabilities and logits). Changes ``model``."""
    pixels = next(node for node in model.get_ordered_ops() if node.get_friendly_name() == PIXELS)
    first = openvino.Model([pixels.output(0)], model.get_parameters(), "prepare").clone()
    contract = card.preprocessing
    shape = openvino.PartialShape([-1, contract.size, contract.size, contract.channels])
    start = openvino.opset13.parameter(shape, np.uint8, name=PIXELS)
    pixels.output(0).replace(start.output(0))
    return first, openvino.Model(model.get_results(), [start], "classify")


def open_file(path: str | os.PathLike[str], threads: int = 0) -> OpenVinoBackend:
    """Open a model.xml with its model.bin beside it. Raises ArtifactError, MissingPackageError."""
    openvino = packages.require("openvino", "openvino", PURPOSE)
    weights = Path(path).with_suffix(".bin")
    if not weights.is_file():
        raise ArtifactError(f"{path} needs its weights beside it: {weights} does not exist.")
    try:
        model = openvino.Core().read_model(str(path), str(weights))
        card = Card.from_json(model.get_rt_info(["tellapart", "card"]).value)
        kind = model.get_rt_info(["tellapart", "graph"]).value
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not an OpenVINO file that tellapart wrote, or is damaged: {error}"
        ) from None
    if kind != "whole":
        raise ArtifactError(
            f"{path} holds the bare network (--plain), which takes normalised floats; export it without --plain "
            "to open it here."
        )
    return OpenVinoBackend(openvino, model, card, threads)
