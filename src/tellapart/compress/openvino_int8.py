"""INT8 for OpenVINO by NNCF, between the preprocessing and the softmax, which stay as they are.

Knows nothing of image files. Owner of NNCF for files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import packages
from tellapart.contract import Card, answers
from tellapart.evaluation import multilabel
from tellapart.runtime.openvino import PIXELS, cut, own_signal_stack

_PURPOSE = "INT8 for OpenVINO"
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
_RANKED = 32  # images on which NNCF ranks layers
Pixels = npt.NDArray[np.uint8]


class Quantizer:
    """One exported file and the images to measure ranges on; makes quantised models."""

    def __init__(self, file: Path, card: Card, batches: Sequence[Pixels]) -> None:
        """``file``: the .xml of a whole graph. ``batches``: uint8 [B, height, width, C]."""
        self.openvino = packages.require("openvino", "openvino", _PURPOSE)
        with _quiet():
            self.nncf = packages.require("nncf", "compress", _PURPOSE)
        self.file, self.card = file, card
        self.images = [batch[place : place + 1] for batch in batches for place in range(len(batch))]

    def _parts(self) -> tuple[Any, Any]:
        model = self.openvino.Core().read_model(str(self.file))
        parts: tuple[Any, Any] = cut(self.openvino, model, self.card)
        return parts

    def _settings(self, network: Any) -> dict[str, Any]:
        """Return what both ways of quantising have in common."""
        fixed = _before_weights(network)
        return {
            "calibration_dataset": self.nncf.Dataset(self.images),
            "subset_size": len(self.images),
            "preset": self.nncf.QuantizationPreset.MIXED,
            "ignored_scope": self.nncf.IgnoredScope(names=fixed, validate=False),
        }

    def quantised(self) -> Any:
        """Return the network, pixels -> probabilities and logits, with every layer quantised."""
        _, network = self._parts()
        with _quiet():
            return self.nncf.quantize(network, **self._settings(network), fast_bias_correction=True)

    def within(self, drop: float, images: Sequence[Pixels], labels: npt.NDArray[Any]) -> Any:
        """Return the network with the most harmful layers left in float, so that accuracy falls by at most ``drop``.

        Where an image can have several labels (``labels``: targets [N, K]), mAP takes the place of accuracy.

        NNCF's accuracy-aware quantisation: layers are ranked by their effect on the answers, and returned to float one
        by one. ``images``: uint8 [B, height, width, C] each, with ``labels`` int64 [N] of all; ``drop``: 0 to 1.
        """
        _, network = self._parts()
        single = [batch[place : place + 1] for batch in images for place in range(len(batch))]
        data = list(zip(single, labels, strict=True))
        settings = self._settings(network)
        settings["calibration_dataset"] = self.nncf.Dataset(
            [(one, None) for one in self.images], lambda pair: pair[0]
        )
        with _quiet():
            return self.nncf.quantize_with_accuracy_control(
                network,
                validation_dataset=self.nncf.Dataset(data, lambda pair: pair[0]),
                validation_fn=_accuracy if labels.ndim == 1 else _mean_average_precision,
                max_drop=drop,
                drop_type=self.nncf.DropType.ABSOLUTE,
                fast_bias_correction=True,
                advanced_accuracy_restorer_parameters=self.nncf.AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=_RANKED
                ),
                **settings,
            )

    def float_layers(self, network: Any) -> list[str]:
        """Return the layers of a quantised network whose weights are not quantised."""
        return [
            node.get_friendly_name()
            for node in network.get_ordered_ops()
            if node.get_type_name() in _WEIGHTED and not _is_quantised(node)
        ]

    def write(self, network: Any, target: Path, precision: str = "int8") -> None:
        """Write resizing and ``network`` as one .xml and .bin, with the exported file's runtime information."""
        first, _ = self._parts()
        (start,) = [
            node for node in network.get_parameters() if PIXELS in (node.get_friendly_name(), *_names(node))
        ]
        pixels = first.get_results()[0].input_value(0)
        start.output(0).replace(pixels)
        whole = self.openvino.Model(network.get_results(), first.get_parameters(), "tellapart")
        pixels.get_node().set_friendly_name(PIXELS)
        pixels.get_tensor().add_names({PIXELS})
        original = self.openvino.Core().read_model(str(self.file))
        whole.set_friendly_name(original.get_friendly_name())
        for key, value in _information(original):
            whole.set_rt_info(precision if key == "precision" else value, ["tellapart", key])
        self.openvino.save_model(whole, str(target), compress_to_fp16=False)

    def weights_only(self) -> Any:
        """Return the network with the weights of matrix products in eight bits and everything computed in float."""
        _, network = self._parts()
        with _quiet():
            return self.nncf.compress_weights(network, mode=self.nncf.CompressWeightsMode.INT8_ASYM)


def _information(model: Any) -> list[tuple[str, str]]:
    keys = ("card", "graph", "precision", "licence", "version")
    return [
        (key, model.get_rt_info(["tellapart", key]).value)
        for key in keys
        if model.has_rt_info(["tellapart", key])
    ]


def _names(node: Any) -> set[str]:
    names: set[str] = node.output(0).get_names()
    return names


def _before_weights(network: Any) -> list[str]:
    """Return the operations before the first that has weights: normalisation, which stays in float."""
    names = []
    for node in network.get_ordered_ops():
        if node.get_type_name() in _WEIGHTED:
            break
        if node.get_type_name() not in ("Parameter", "Constant"):
            names.append(node.get_friendly_name())
    return names


def _is_quantised(node: Any) -> bool:
    """Return whether a layer's weights come through a FakeQuantize or from integers."""
    source = node.input_value(1).get_node()
    for _ in range(4):
        if source.get_type_name() == "FakeQuantize":
            return True
        if source.get_type_name() == "Constant":
            return str(source.get_element_type().get_type_name()) in ("i8", "u8")
        if not source.get_input_size():
            break
        source = source.input_value(0).get_node()
    return False


def _accuracy(model: Any, data: Any) -> tuple[float, list[float]]:
    right = [float(answers.best(model([image])["logits"])[0] == label) for image, label in data]
    return float(np.mean(right)), right


def _mean_average_precision(model: Any, data: Any) -> tuple[float, None]:
    """Return mAP, and no figure of single images: NNCF then ranks layers by what each does to the outputs."""
    pairs = [(model([image])["logits"][0], targets) for image, targets in data]
    logits, targets = (np.stack(column) for column in zip(*pairs, strict=True))
    return multilabel.mean_average_precision(logits, targets), None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's messages and progress bars, and undo what it does to the signal stack."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with own_signal_stack(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
