"""An ONNX file that tellapart exported, opened with ONNX Runtime. Loads no torch.

The file's own graph does the resizing: it is cut at the tensor ``pixels`` into a part for single images of any size
and one for batches of the contract's size. Owner of ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import packages
from tellapart.contract import BadImage, Card, Pixels, Preprocessing
from tellapart.contract.resizing import normalise, open_pixels
from tellapart.errors import ArtifactError
from tellapart.runtime import base, providers
from tellapart.runtime.plain import PlainNetwork, SizedOutside

IMAGES, PIXELS, INPUT, PROBABILITIES, LOGITS = "images", "pixels", "input", "probabilities", "logits"
FEATURES = "features"
"""The output of a file with features: the input of the last layer, float32 [batch, F]."""
_PURPOSE = "An ONNX model"
DYNAMIC = "int8-dynamic"
"""The precision of a file whose ranges are computed for each batch, so that an answer depends on the other images."""
_NEEDED = {  # by the property "graph": inputs and outputs
    "whole": {IMAGES, PROBABILITIES, LOGITS},
    "plain": {INPUT, LOGITS},
    "pixels": {PIXELS, PROBABILITIES, LOGITS},
    "normalised": {INPUT, PROBABILITIES, LOGITS},
}


class OnnxBackend(base.Opened):
    """A whole graph: images in, probabilities and logits out, and features if it was exported with them."""

    format = "onnx"

    def __init__(
        self, path: Path, model: Any, card: Card, threads: int, device: str = "cpu", single: bool = False
    ) -> None:
        """Open a whole graph; ``single``: images are answered one at a time, if they would affect each other."""
        self.path, self.card, self.threads, self.device = path, card, threads, device
        self.single = single
        resizing, network = split(model)
        # The caller prepares images in threads of its own; one image is too little work for several.
        self._resizing = session(resizing.SerializeToString(), 1)
        self._network = _computing(network, threads, device)
        self._has_features = FEATURES in {value.name for value in network.graph.output}
        self.provider = providers.used(self._network, device)
        self._whole: Any = None

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode by the contract's rules and size an image by the graph. Raises BadImage."""
        pixels = open_pixels(content, self.card.preprocessing)
        options = None
        try:
            if base.is_large(pixels):
                options = _giving_back()
                # The runtime never frees its first block of memory; make it a small one.
                self._resizing.run([PIXELS], {IMAGES: np.ascontiguousarray(pixels[None, :8, :8])})
            (sized,) = self._resizing.run([PIXELS], {IMAGES: np.ascontiguousarray(pixels)[None]}, options)
        except Exception as error:  # the runtime has no error class that says more
            height, width = pixels.shape[:2]
            raise BadImage(f"{width}x{height} pixels cannot be resized: {error}") from error
        result: Pixels = sized[0]
        return result

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        return self._run(images_NHWC, [LOGITS])[0]

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return logits [B, K] and features [B, F] of one run. Raises ArtifactError if the file has none."""
        if not self._has_features:
            return super().with_features(images)
        logits, features = self._run(images, [LOGITS, FEATURES])
        return logits, features

    def _run(self, images_NHWC: Pixels, outputs: list[str]) -> list[npt.NDArray[np.float32]]:
        images = np.ascontiguousarray(images_NHWC)
        return _in_parts(self._network, PIXELS, images, self.device, 1 if self.single else 0, outputs)

    def whole(self, images_NHWC: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the file as a program without tellapart would: uint8 [B, H, W, C] -> (probabilities, logits)."""
        if self._whole is None:
            # TensorRT would build an engine for each image size.
            device = self.device.replace("tensorrt", "cuda")
            self._whole = session(os.fspath(self.path), self.threads, device)
        probabilities, logits = self._whole.run([PROBABILITIES, LOGITS], {IMAGES: images_NHWC})
        return probabilities, logits


class PlainOnnxBackend(PlainNetwork):
    """A bare network: everything around it is computed by `PlainNetwork`."""

    format = "onnx"

    def __init__(self, model: Any, card: Card, threads: int, device: str = "cpu") -> None:
        self._outputs = [name for name in (LOGITS, FEATURES) if name in {v.name for v in model.graph.output}]
        super().__init__(card, FEATURES in self._outputs)
        self._session = _computing(model, threads, device)
        self.device, self.provider = device, providers.used(self._session, device)

    def network(self, images_NCHW: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return what the file gives for normalised float32 [B, C, height, width]."""
        return tuple(_in_parts(self._session, INPUT, images_NCHW, self.device, outputs=self._outputs))


class ReadyOnnxBackend(SizedOutside):
    """A file for a vendor's compiler: all but the resizing, or all but resizing and normalisation, in one graph."""

    def __init__(self, name: str, model: Any, card: Card, threads: int, device: str = "cpu") -> None:
        super().__init__(card)
        self.format = name
        (entry,) = model.graph.input
        self._input = str(entry.name)
        self._batch = int(entry.type.tensor_type.shape.dim[0].dim_value)  # 0: any
        self._session = _computing(model, threads, device)
        self.device, self.provider = device, providers.used(self._session, device)

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]; a file with a fixed batch is called for each chunk."""
        contract = self.card.preprocessing
        images: Any = images_NHWC if self._input == PIXELS else normalise(images_NHWC, contract)
        if not self._batch:
            return _in_parts(self._session, self._input, images, self.device)[0]
        step, answers = self._batch, [np.zeros((0, len(self.card.classes)), np.float32)]
        for start in range(0, len(images), step):
            part = images[start : start + step]
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            (logits,) = self._session.run([LOGITS], {self._input: filled})
            answers.append(np.asarray(logits, np.float32)[: len(part)])
        return np.concatenate(answers)


def open_onnx(
    path: str | os.PathLike[str], threads: int = 0, device: str = "cpu"
) -> OnnxBackend | PlainOnnxBackend | ReadyOnnxBackend:
    """Open an ONNX file that `tellapart export` wrote. Raises ArtifactError, MissingPackageError, SpecError.

    ``device``: cpu, cuda, cuda:N, tensorrt or tensorrt:N; images are resized on the CPU.
    """
    onnx = packages.require("onnx", "onnx", _PURPOSE)
    packages.require("onnxruntime", "onnx", _PURPOSE)
    file = Path(path)
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf's own errors, and those of files
        raise ArtifactError(f"{file} cannot be read as ONNX: {error}") from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    card = card_of(properties, file)
    kind = properties.get("graph", "whole")
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    needed = _NEEDED.get(kind, _NEEDED["whole"])
    if not needed <= names:
        raise ArtifactError(
            f"{file} lacks {', '.join(sorted(needed - names))}; was it changed after the export?"
        )
    _check_numbers(model, card, file)
    if kind in ("pixels", "normalised"):
        return ReadyOnnxBackend(properties.get("format", "onnx"), model, card, threads, device)
    if kind == "plain":
        return PlainOnnxBackend(model, card, threads, device)
    return OnnxBackend(file, model, card, threads, device, properties.get("precision") == DYNAMIC)


def _check_numbers(model: Any, card: Card, file: Path) -> None:
    """Raise ArtifactError if a weight is not a number, or if there is not one logit for each class."""
    to_array = packages.require("onnx.numpy_helper", "onnx", _PURPOSE).to_array
    for tensor in model.graph.initializer:
        if tensor.data_type in (tensor.FLOAT, tensor.FLOAT16, tensor.DOUBLE):
            try:
                broken = np.isnan(to_array(tensor)).any()
            except Exception as error:  # its declared size does not match its bytes
                raise ArtifactError(f"{file} is damaged: {tensor.name[:80]!a}: {error}") from None
            if broken:
                raise ArtifactError(f"{file} has weights that are not numbers ({tensor.name[:80]!a}).")
    (logits,) = (value for value in model.graph.output if value.name == LOGITS)
    sizes = [size.dim_value for size in logits.type.tensor_type.shape.dim]
    if len(sizes) != 2 or sizes[1] not in (0, len(card.classes)):  # 0: not known
        raise ArtifactError(
            f"{file} gives {sizes[-1:]} values for each image; its description has {len(card.classes)} classes."
        )


def card_of(properties: Mapping[str, str], file: Path) -> Card:
    """Return the card in an ONNX model's own properties. Raises ArtifactError."""
    if "tellapart" not in properties:
        raise ArtifactError(
            f"{file} is an ONNX file, but tellapart did not export it: its properties have no 'tellapart' (class names "
            "and preprocessing), without which its answers have no names and its input no meaning. Export the "
            "model with: tellapart export MODEL --to onnx"
        )
    return base.card_of(properties["tellapart"], file)


def split(model: Any) -> tuple[Any, Any]:
    """Cut a whole graph at ``pixels``: (images -> pixels, pixels -> probabilities, logits, and features if any).

    Raises ArtifactError if it cannot be cut there.
    """
    extractor = packages.require("onnx.utils", "onnx", _PURPOSE).Extractor(model)
    try:
        resizing = extractor.extract_model([IMAGES], [PIXELS])
        outputs = [value.name for value in model.graph.output]
        network = extractor.extract_model(
            [PIXELS], [PROBABILITIES, LOGITS, *([FEATURES] if FEATURES in outputs else [])]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"The graph has no tensor 'pixels' to be cut at: {error}") from None
    return resizing, network


def network_of(model: Any) -> Any:
    """Return a whole graph's part from ``pixels`` on; any other graph as it is. Raises ArtifactError."""
    return split(model)[1] if model.graph.input[0].name == IMAGES else model


def feed(graph: str, contract: Preprocessing, pixels: Pixels) -> dict[str, Any]:
    """Return what the network of a file takes for uint8 [B, height, width, C], by the file's property ``graph``."""
    if graph in ("whole", "pixels"):
        return {PIXELS: np.ascontiguousarray(pixels)}
    return {INPUT: normalise(pixels, contract)}


def showing(onnx: Any, model: Any, names: Sequence[str]) -> Any:
    """Return a session of a network (protobuf) that also returns the intermediate values ``names``, as the graph
    defines them.

    Nothing is fused or left out.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(network_of(model))
    known = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in known)
    return session(shown.SerializeToString(), 0, optimise=False)


def _giving_back() -> Any:
    """Return options for a call after which ONNX Runtime frees its memory; the next call has to allocate it again."""
    options = packages.require("onnxruntime", "onnx", _PURPOSE).RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _computing(model: Any, threads: int, device: str) -> Any:
    """Return a session of a network (protobuf) on a device. Raises ArtifactError, SpecError."""
    (entry,) = model.graph.input
    batch, *rest = (size.dim_value for size in entry.type.tensor_type.shape.dim)
    half = any(tensor.data_type == tensor.FLOAT16 for tensor in model.graph.initializer)
    chosen = providers.chain(device, () if batch else rest, entry.name, half)
    return session(model.SerializeToString(), threads, device, chosen)


def _in_parts(
    session: Any, name: str, images: Any, device: str, most: int = 0, outputs: Sequence[str] = (LOGITS,)
) -> list[npt.NDArray[np.float32]]:
    """Return the outputs for a batch, computed in chunks of ``most`` images; 0: all at once.

    For TensorRT the chunks are no larger than its engine takes.
    """
    step = providers.PROFILE[-1] if device.startswith("tensorrt") else max(1, len(images))
    step = min(step, most or step)
    parts = [images[start : start + step] for start in range(0, max(1, len(images)), step)]
    answers = [session.run(list(outputs), {name: part}) for part in parts]
    if len(answers) == 1:
        return [np.asarray(value, np.float32) for value in answers[0]]
    return [np.concatenate(values).astype(np.float32, copy=False) for values in zip(*answers, strict=True)]


def session(
    model: bytes | str,
    threads: int,
    device: str = "cpu",
    chosen: providers.Chain | None = None,
    optimise: bool = True,
) -> Any:
    """Return an ONNX Runtime session for a file's path or its content. Raises ArtifactError, SpecError.

    ``chosen``: the execution providers with their options; None: the device's default.
    """
    runtime = packages.require("onnxruntime", "onnx", _PURPOSE)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they are raised as well
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers.ready(runtime, device)
    try:
        return runtime.InferenceSession(
            model, options, providers=chosen or providers.chain(device), enable_fallback=0
        )
    except Exception as error:  # the runtime's own classes are private
        raise ArtifactError(f"ONNX Runtime cannot open the model: {error}") from None
