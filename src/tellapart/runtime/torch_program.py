"""Files that torch runs without the network's source, behind the seam: `torch.export`, AOTInductor and TorchScript.

Each holds a whole classifier, which takes images of any size. An image that is sized already goes through it
unchanged when it is put in the middle of a larger one (`embedded`), so that one program serves both.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.contract import Card, Pixels, Preprocessing
from tellapart.errors import ArtifactError
from tellapart.preprocess import load
from tellapart.runtime.plain import PlainNetwork

CARD, GRAPH = "card.json", "graph.txt"  # the names of the extra files
Program = Callable[[torch.Tensor], Any]


class _Runner:
    """Calls a program with so many threads (0: as torch is set), one call at a time."""

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


class TorchProgramBackend:
    """A program of images, uint8 [B, H, W, C] -> (probabilities, logits), float32 [B, K]."""

    def __init__(self, name: str, program: Program, card: Card, threads: int) -> None:
        self.format, self.card = name, card
        self._run = _Runner(program, threads)

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        return load(content, self.card.preprocessing)

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, size, size, C]."""
        return self.whole(embedded(images_NHWC, self.card.preprocessing))[1]

    def whole(self, images_NHWC: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the file as it is: uint8 [B, H, W, C] of any size -> (probabilities, logits)."""
        probabilities, logits = self._run(images_NHWC)
        return probabilities.float().numpy(), logits.float().numpy()


class PlainTorchBackend(PlainNetwork):
    """A bare network: everything around it is computed by `PlainNetwork`."""

    def __init__(self, name: str, program: Program, card: Card, threads: int) -> None:
        super().__init__(card)
        self.format = name
        self._run = _Runner(program, threads)

    def network(self, images_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for normalised float32 [B, C, size, size]."""
        logits: npt.NDArray[np.float32] = self._run(images_NCHW).float().numpy()
        return logits


TorchBackend = TorchProgramBackend | PlainTorchBackend


def embedded(pixels_NHWC: Pixels, contract: Preprocessing) -> Pixels:
    """Return images that the contract's resizing turns into these pixels: uint8 [B, size, size, C] -> [B, E, E, C].

    Squashing and letterboxing leave an image of the contract's size as it is. ``crop`` leaves one of the size that
    it scales to as it is and takes its centre.
    """
    if contract.resize != "crop":
        return pixels_NHWC
    size, edge = contract.size, contract.edge
    start = contract.start(edge)
    canvas = np.zeros((len(pixels_NHWC), edge, edge, contract.channels), np.uint8)
    canvas[:, start : start + size, start : start + size] = pixels_NHWC
    return canvas


def open_program(path: str | os.PathLike[str], threads: int = 0) -> TorchBackend:
    """Open a ``.pt2`` file, compiled or not. Raises ArtifactError."""
    file = Path(path)
    try:
        with zipfile.ZipFile(file) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{file} is not a .pt2 file, or is damaged: {error}") from None
    return _open_compiled(file, threads) if compiled else _open_exported(file, threads)


def open_torchscript(path: str | os.PathLike[str], threads: int = 0) -> TorchBackend:
    """Open a TorchScript file. Raises ArtifactError."""
    extra = {CARD: "", GRAPH: ""}
    try:
        with _no_warnings():
            module = torch.jit.load(os.fspath(path), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{os.fspath(path)} is not a TorchScript file, or is damaged: {_short(error)}"
        ) from None
    return _backend("torchscript", module, _text(extra[CARD]), _text(extra[GRAPH]), path, threads)


def refuse_code(path: Path) -> None:
    """Refuse a ``.pt2`` file that could run code while torch reads it. Raises ArtifactError.

    torch falls back to unpickling anything where its safe reader refuses, and evaluates symbolic sizes as Python.
    Ours have neither pickled weights nor sizes with anything but arithmetic.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/sample_inputs/" in name and name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception as error:  # refused, or damaged
                    raise ArtifactError(
                        f"{path} holds pickled objects ({name}); it is not opened."
                    ) from error
            elif name.endswith("_config.json"):
                text = archive.read(name).decode("utf-8", "replace")
                if re.search(r'"use_pickle"\s*:\s*true', text):
                    raise ArtifactError(f"{path} holds pickled weights ({name}); it is not opened.")
            elif "/models/" in name and name.endswith(".json"):
                for expression in _expressions(json.loads(archive.read(name))):
                    if not _is_arithmetic(expression):
                        raise ArtifactError(
                            f"{path} has a size that is not arithmetic ({expression[:60]!r})."
                        )


def _expressions(value: Any) -> Iterator[str]:
    """Yield every symbolic size in a program's JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str":
                yield str(inner)
            else:
                yield from _expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)


def _is_arithmetic(text: str) -> bool:
    """Return whether an expression is made of sympy's classes, numbers and symbols' names, and of nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        (isinstance(node, ast.Name) and re.fullmatch(r"[A-Z][A-Za-z]+", node.id))
        or (isinstance(node, ast.Constant) and _is_plain(node.value))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
        or isinstance(node, (ast.Expression, ast.keyword, ast.Load, ast.UnaryOp, ast.USub, ast.Tuple))
        for node in nodes
    )


def _is_plain(value: Any) -> bool:
    """Return whether a constant is a number or names a symbol, such as ``s32``."""
    if isinstance(value, str):
        return re.fullmatch(r"[a-z]{1,8}\d*|-?[\d.]+", value) is not None
    return isinstance(value, (bool, int, float))


def _open_exported(path: Path, threads: int) -> TorchBackend:
    extra = {CARD: "", GRAPH: ""}
    try:
        refuse_code(path)
        with _no_warnings():
            program = torch.export.load(path, extra_files=extra)
            # Without checks: tracing notes as a condition what only tells memory layouts apart (a side of one pixel).
            module = program.module(check_guards=False)
    except ArtifactError:
        raise
    except Exception as error:  # a damaged archive raises nearly every kind of error
        raise ArtifactError(f"{path} cannot be read by torch {torch.__version__}: {_short(error)}") from None
    return _backend("torch-export", module, _text(extra[CARD]), _text(extra[GRAPH]), path, threads)


def _open_compiled(path: Path, threads: int) -> TorchBackend:
    from torch._inductor import aoti_load_package

    try:
        with _no_warnings():
            module = aoti_load_package(str(path))
            metadata = module.get_metadata()
    except Exception as error:  # the loader compiles nothing, but opens a shared library
        raise ArtifactError(
            f"{path} cannot be run by torch {torch.__version__} here: {_short(error)}"
        ) from None
    return _backend("aot-inductor", module, metadata.get("tellapart", ""), "whole", path, threads)


def _backend(
    name: str, program: Program, card: str, graph: str, path: str | os.PathLike[str], threads: int
) -> TorchBackend:
    """Return the backend of a file by what its description says. Raises ArtifactError."""
    if not card:
        raise ArtifactError(
            f"{os.fspath(path)} has no description of tellapart's in it (class names and preprocessing), without "
            "which its answers have no names; export the model with tellapart export."
        )
    try:
        described = Card.from_json(card)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"The description inside {os.fspath(path)} cannot be used: {error}") from None
    if graph == "plain":
        return PlainTorchBackend(name, program, described, threads)
    return TorchProgramBackend(name, program, described, threads)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _short(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
