"""OpenVINO files (IR) as a backend. Loads no torch. Owner of OpenVINO's runtime."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import packages
from tellapart.contract import Card, Pixels
from tellapart.contract.resizing import open_pixels
from tellapart.errors import ArtifactError
from tellapart.runtime import base
from tellapart.runtime.plain import PlainNetwork

PURPOSE = "An OpenVINO model"
PIXELS, PROBABILITIES, LOGITS, FEATURES = "pixels", "probabilities", "logits", "features"
_DISABLED = 2  # SS_DISABLE of signal.h


class Requests:
    """A compiled model's inference requests, shared by any number of threads, one request each at a time.

    Requests are reused, and get a tensor: of the 200 us that a small network takes, the first call of a new request
    costs 15, and resolving which input an array is for 25.
    """

    def __init__(self, openvino: Any, model: Any) -> None:
        self._tensor, self._model = openvino.Tensor, model
        self._free = collections.deque[Any]()

    def __call__(self, images: npt.NDArray[Any]) -> Any:
        """Return copies of the outputs, by name or number, for the model's only input."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._model.create_infer_request()
        request.set_input_tensor(self._tensor(np.ascontiguousarray(images)))
        answer = request.infer(share_outputs=False)
        self._free.append(request)
        return answer


class OpenVinoBackend(base.Opened):
    """The file's graph cut at ``pixels``: its first part prepares an image, its second answers a batch."""

    format = "openvino"

    def __init__(self, openvino: Any, model: Any, card: Card, threads: int) -> None:
        self.card = card
        self._openvino, self._model, self._settings = openvino, model.clone(), settings(threads)
        self._has_features = any(FEATURES in output.get_names() for output in model.outputs)
        first, second = cut(openvino, model, card)
        # The caller prepares images in threads of its own; one image is too little work for several.
        self._prepare = compiled(openvino, first, settings(1))
        self._logits = Requests(openvino, compiled(openvino, second, self._settings))
        self._whole: Any = None

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        image = open_pixels(content, self.card.preprocessing)
        answer = self._prepare.create_infer_request().infer(
            [np.ascontiguousarray(image)[None]], share_outputs=False
        )
        pixels: Pixels = answer[0][0]
        if base.is_large(image):
            # another image is being resized; after some later one, then
            with contextlib.suppress(RuntimeError):
                self._prepare.release_memory()
        return pixels

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        return np.asarray(self._logits(images_NHWC)[LOGITS], np.float32)

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return logits [B, K] and features [B, F] of one run. Raises ArtifactError if the file has none."""
        if not self._has_features:
            return super().with_features(images)
        answer = self._logits(images)
        return np.asarray(answer[LOGITS], np.float32), np.asarray(answer[FEATURES], np.float32)

    def whole(self, images_NHWC: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the file as a program without tellapart would: uint8 [B, H, W, C] -> (probabilities, logits)."""
        if self._whole is None:
            self._whole = compiled(self._openvino, self._model, self._settings)
        answer = self._whole.create_infer_request().infer([images_NHWC], share_outputs=False)
        return answer[PROBABILITIES], answer[LOGITS]


class PlainOpenVinoBackend(PlainNetwork):
    """A bare network: everything around it is computed by `PlainNetwork`."""

    format = "openvino"

    def __init__(self, openvino: Any, model: Any, card: Card, threads: int) -> None:
        super().__init__(card, any(FEATURES in output.get_names() for output in model.outputs))
        self._network = Requests(openvino, compiled(openvino, model, settings(threads)))

    def network(self, images_NCHW: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return what the file gives for normalised float32 [B, C, height, width]."""
        answer = self._network(images_NCHW)
        return tuple(np.asarray(answer[place], np.float32) for place in range(1 + self._has_features))


class _Stack(ctypes.Structure):
    """The C library's ``stack_t``."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def own_signal_stack() -> Iterator[None]:
    """Restore the thread's signal stack, which OpenVINO's compiler replaces.

    It installs its own and frees it with the compiled model, after which the first Ctrl-C or SIGTERM ends the program
    with a segmentation fault (seen with 2026.4; Python's signal handlers run on that stack). Linux only.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    before = _Stack()
    known = hasattr(libc, "sigaltstack") and libc.sigaltstack(None, ctypes.byref(before)) == 0  # type: ignore[union-attr]
    try:
        yield
    finally:
        if known and libc is not None and libc.sigaltstack(ctypes.byref(before), None):
            libc.sigaltstack(ctypes.byref(_Stack(flags=_DISABLED)), None)  # the old one has become too small


def drop_signal_stack() -> None:
    """Make signal handlers run on the thread's ordinary stack, whatever a library has installed."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and hasattr(libc, "sigaltstack"):
        libc.sigaltstack(ctypes.byref(_Stack(flags=_DISABLED)), None)


def compiled(openvino: Any, model: Any, wanted: dict[str, Any]) -> Any:
    """Return a model compiled for this processor, with the settings ``wanted``."""
    # At its first array OpenVINO looks up parts of NumPy, under a lock of its own and with the GIL released:
    # two threads that pass their first arrays deadlock (seen with 2026.4). So this call is the first.
    openvino.Tensor(np.zeros(1, np.uint8)).data[:]
    with own_signal_stack():
        return openvino.Core().compile_model(model, "CPU", wanted)


def settings(threads: int) -> dict[str, Any]:
    """Return how to compile: in float32 (OpenVINO's default here would be bf16), for one call at a time."""
    values: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return {**values, "INFERENCE_NUM_THREADS": threads} if threads else values


def cut(openvino: Any, model: Any, card: Card) -> tuple[Any, Any]:
    """Cut a whole graph at ``pixels``: (images -> pixels, pixels -> probabilities and logits). Changes ``model``."""
    pixels = next(node for node in model.get_ordered_ops() if node.get_friendly_name() == PIXELS)
    first = openvino.Model([pixels.output(0)], model.get_parameters(), "prepare").clone()
    contract = card.preprocessing
    shape = openvino.PartialShape([-1, *contract.sides, contract.channels])
    start = openvino.opset13.parameter(shape, np.dtype(contract.depth), name=PIXELS)
    pixels.output(0).replace(start.output(0))
    return first, openvino.Model(model.get_results(), [start], "classify")


def open_openvino(path: str | os.PathLike[str], threads: int = 0) -> OpenVinoBackend | PlainOpenVinoBackend:
    """Open a model.xml with its model.bin beside it. Raises ArtifactError, MissingPackageError."""
    openvino = packages.require("openvino", "openvino", PURPOSE)
    weights = Path(path).with_suffix(".bin")
    if not weights.is_file():
        raise ArtifactError(f"{path} needs its weights beside it: {weights} does not exist.")
    try:
        model = openvino.Core().read_model(str(path), str(weights))
        text, kind = (model.get_rt_info(["tellapart", name]).value for name in ("card", "graph"))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not an OpenVINO file that tellapart wrote, or is damaged: {error}"
        ) from None
    card = base.card_of(str(text), path)
    _check_numbers(model, card, path)
    if kind == "plain":
        return PlainOpenVinoBackend(openvino, model, card, threads)
    try:
        return OpenVinoBackend(openvino, model, card, threads)
    except (StopIteration, RuntimeError) as error:
        raise ArtifactError(f"{path} cannot be used; was it changed after the export? {error}") from None


def _check_numbers(model: Any, card: Card, path: str | os.PathLike[str]) -> None:
    """Raise ArtifactError if a weight is not a number, or if there is not one logit for each class."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            values = np.asarray(node.data)
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise ArtifactError(
                    f"{path} has weights that are not numbers ({node.get_friendly_name()[:80]!a})."
                )
    for output in model.outputs:
        if FEATURES in output.get_names():
            continue
        sizes = output.get_partial_shape()
        if len(sizes) != 2 or (sizes[1].is_static and sizes[1].get_length() != len(card.classes)):
            raise ArtifactError(
                f"{path} gives {sizes} values for images; its description has {len(card.classes)} classes."
            )
