"""Files that torch runs without the network's source, as backends: `torch.export`, AOTInductor and TorchScript.

Each contains a whole classifier, which takes images of any size. An image that already has the contract's size passes
through it unchanged if it is put in the middle of a larger one (`embedded`), so that one program serves both.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.contract import Card, Pixels, Preprocessing
from tellapart.errors import ArtifactError
from tellapart.preprocess import load
from tellapart.runtime import pt2
from tellapart.runtime.base import Opened, card_of
from tellapart.runtime.plain import PlainNetwork
from tellapart.runtime.trust import read

CARD, GRAPH = "card.json", "graph.txt"  # the names of the extra files
WITH_FEATURES = " with features"  # after a graph's kind, plain or whole
Program = Callable[[torch.Tensor], Any]


class _Runner:
    """Calls a program with this many threads (0: as torch is set), one call at a time."""

    def __init__(self, program: Program, threads: int) -> None:
        self._program, self._threads = program, threads
        self._lock = threading.Lock()  # these programs do not promise to be safe for several threads

    def __call__(self, values: npt.NDArray[Any]) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        with self._lock, torch.inference_mode():
            before = torch.get_num_threads()
            if self._threads in (0, before):
                return self._program(tensor)
            torch.set_num_threads(self._threads)
            try:
                return self._program(tensor)
            finally:
                torch.set_num_threads(before)


class TorchProgramBackend(Opened):
    """A program of images, uint8 [B, H, W, C] -> (probabilities, logits), float32 [B, K], and maybe features [B, F]."""

    def __init__(
        self, name: str, program: Program, card: Card, threads: int, has_features: bool = False
    ) -> None:
        self.format, self.card, self._has_features = name, card, has_features
        self._run = _Runner(program, threads)

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        return load(content, self.card.preprocessing)

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C]."""
        return self.whole(embedded(images_NHWC, self.card.preprocessing))[1]

    def with_features(self, images: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return logits [B, K] and features [B, F] of one run. Raises ArtifactError where the file has none."""
        if not self._has_features:
            return super().with_features(images)
        _, logits, features = self._run(embedded(images, self.card.preprocessing))
        return logits.float().numpy(), features.float().numpy()

    def whole(self, images_NHWC: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the file as it is: uint8 [B, H, W, C] of any size -> (probabilities, logits)."""
        probabilities, logits = self._run(images_NHWC)[:2]
        return probabilities.float().numpy(), logits.float().numpy()


class PlainTorchBackend(PlainNetwork):
    """A bare network: everything around it is computed by `PlainNetwork`."""

    def __init__(
        self, name: str, program: Program, card: Card, threads: int, has_features: bool = False
    ) -> None:
        super().__init__(card, has_features)
        self.format = name
        self._run = _Runner(program, threads)

    def network(self, images_NCHW: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return what the file gives for normalised float32 [B, C, height, width]."""
        found = self._run(images_NCHW)
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        return tuple(output.float().numpy() for output in outputs)


TorchBackend = TorchProgramBackend | PlainTorchBackend


def embedded(pixels_NHWC: Pixels, contract: Preprocessing) -> Pixels:
    """Return images that the contract's resizing turns into these pixels: uint8 [B, height, width, C] -> larger ones.

    Squashing and letterboxing leave an image of the contract's size as it is. ``crop`` leaves an image of the size that
    it scales to unchanged and takes its centre.
    """
    if contract.resize != "crop":
        return pixels_NHWC
    (height, width), edges = contract.sides, contract.edges
    top, left = (contract.start(edge, side) for edge, side in zip(edges, contract.sides, strict=True))
    canvas = np.zeros((len(pixels_NHWC), *edges, contract.channels), pixels_NHWC.dtype)
    canvas[:, top : top + height, left : left + width] = pixels_NHWC
    return canvas


def open_program(path: str | os.PathLike[str], threads: int = 0, trust: bool = False) -> TorchBackend:
    """Open a ``.pt2`` file, compiled or not. Raises ArtifactError, also for a stranger's without ``trust``."""
    file = Path(path)
    content, ours = read(file, trust)
    try:
        native = pt2.compiled(content)
        if not native and not ours:
            pt2.refuse_code(content)
    except pt2.CodeError as error:
        raise ArtifactError(
            f"{file} is not opened, even with --trust: {error}, which no program written by tellapart export has."
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{file} is not a .pt2 file, or is damaged: {error}") from None
    return _open_compiled(file, content, threads) if native else _open_exported(file, content, threads)


def open_torchscript(path: str | os.PathLike[str], threads: int = 0, trust: bool = False) -> TorchBackend:
    """Open a TorchScript file. Raises ArtifactError, also for a stranger's without ``trust``."""
    content, _ = read(Path(path), trust)
    extra = {CARD: "", GRAPH: ""}
    try:
        with _no_warnings():
            module = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is not a TorchScript file, or is damaged: {_short(error)}"
        ) from None
    return _backend("torchscript", module, _text(extra[CARD]), _text(extra[GRAPH]), path, threads)


def _open_exported(path: Path, content: bytes, threads: int) -> TorchBackend:
    extra = {CARD: "", GRAPH: ""}
    try:
        with _no_warnings(), pt2.only_tensors():
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
            # Without guards: tracing records conditions that only distinguish memory layouts (a side of one pixel).
            module = program.module(check_guards=False)
    except Exception as error:  # a damaged archive raises nearly every kind of error
        raise ArtifactError(f"{path} cannot be read by torch {torch.__version__}: {_short(error)}") from None
    return _backend("torch-export", module, _text(extra[CARD]), _text(extra[GRAPH]), path, threads)


def _open_compiled(path: Path, content: bytes, threads: int) -> TorchBackend:
    from torch._inductor import aoti_load_package

    try:
        with _no_warnings():
            module = aoti_load_package(io.BytesIO(content))
            metadata = module.get_metadata()
    except Exception as error:  # the loader compiles nothing, but opens a shared library
        raise ArtifactError(
            f"{path} cannot be run by torch {torch.__version__} here: {_short(error)}"
        ) from None
    return _backend(
        "aot-inductor", module, metadata.get("tellapart", ""), metadata.get("graph", "whole"), path, threads
    )


def _backend(
    name: str, program: Program, card: str, graph: str, path: str | os.PathLike[str], threads: int
) -> TorchBackend:
    """Return the backend of a file according to its description. Raises ArtifactError."""
    if not card:
        raise ArtifactError(
            f"{os.fspath(path)} has no description of tellapart's in it (class names and preprocessing), without "
            "which its answers have no names; export the model with tellapart export."
        )
    described = card_of(card, path)
    kind, *more = graph.partition(WITH_FEATURES)[:2]
    opened = PlainTorchBackend if kind == "plain" else TorchProgramBackend
    return opened(name, program, described, threads, bool(more[0]))


def kind_of(plain: bool, features: bool) -> str:
    """Return what a file's description says of its graph."""
    return ("plain" if plain else "whole") + WITH_FEATURES * features


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _short(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
