"""Model files of every format behind one interface: from an image's bytes to logits.

Importing it loads no torch; opening a file loads what its format needs. Knows nothing of training, and nothing of
how the files were made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tellapart.contract.answers import checked, probabilities
from tellapart.errors import ArtifactError, SpecError
from tellapart.references import Trust
from tellapart.runtime.base import Backend

__all__ = ["Backend", "checked", "is_export", "open_backend", "probabilities"]


def open_backend(
    path: str | os.PathLike[str],
    device: str = "cpu",
    precision: str = "fp32",
    threads: int = 0,
    trust: Trust = False,
    model: Any = None,
) -> Backend:
    """Open a run folder, an artifact or an exported file, by its content and name.

    Args:
        path: run folder, artifact or exported file.
        device: for an artifact cpu, cuda, cuda:N or mps; for an ONNX file cpu, cuda, cuda:N, tensorrt or tensorrt:N;
            other exported files compute on the CPU. ``auto`` is the CPU for every exported file.
        precision: fp32, bf16 or fp16, for an artifact.
        threads: threads that one call computes with; 0 leaves it to the runtime.
        trust: True: open a ``.pt2`` or TorchScript file even if tellapart did not write it here: these files are
            programs. Names of packages: import these for an artifact whose network is not tellapart's (True: any).
        model: that network itself, or a callable that makes it.

    Raises ArtifactError, ModelError, MissingPackageError, SpecError.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _BY_SUFFIX:
        if not Path(path).is_file():
            raise ArtifactError(f"No model: {os.fspath(path)} does not exist.")
        device = "cpu" if device == "auto" else device
        if suffix == ".onnx":
            return _onnx(path, threads, device)
        if device != "cpu":
            raise SpecError(
                f"{os.fspath(path)} computes on the CPU, not on {device}; only artifacts and ONNX files do."
            )
        if suffix in _PROGRAMS:
            return _PROGRAMS[suffix](path, threads, trust is True)
        return _BY_SUFFIX[suffix](path, threads)
    return _artifact(path, device, precision, trust, model)


def _artifact(path: str | os.PathLike[str], device: str, precision: str, trust: Trust, model: Any) -> Backend:
    from tellapart.runtime.eager import open_artifact

    return open_artifact(path, device, precision, trust, model)


def _onnx(path: str | os.PathLike[str], threads: int, device: str = "cpu") -> Backend:
    from tellapart.runtime.onnx import open_onnx

    return open_onnx(path, threads, device)


def _openvino(path: str | os.PathLike[str], threads: int) -> Backend:
    from tellapart.runtime.openvino import open_openvino

    return open_openvino(path, threads)


def _program(path: str | os.PathLike[str], threads: int, trust: bool = False) -> Backend:
    from tellapart.runtime.torch_program import open_program

    return open_program(path, threads, trust)


def _torchscript(path: str | os.PathLike[str], threads: int, trust: bool = False) -> Backend:
    from tellapart.runtime.torch_program import open_torchscript

    return open_torchscript(path, threads, trust)


def _litert(path: str | os.PathLike[str], threads: int) -> Backend:
    from tellapart.runtime.worker import open_litert

    return open_litert(path, threads)


def _executorch(path: str | os.PathLike[str], threads: int) -> Backend:
    from tellapart.runtime.worker import open_executorch

    return open_executorch(path, threads)


_PROGRAMS: dict[str, Callable[[str | os.PathLike[str], int, bool], Backend]] = {
    ".pt2": _program,
    ".torchscript": _torchscript,
}
_BY_SUFFIX: dict[str, Callable[[str | os.PathLike[str], int], Backend]] = {
    ".onnx": _onnx,
    ".pt2": _program,
    ".pte": _executorch,
    ".tflite": _litert,
    ".torchscript": _torchscript,
    ".xml": _openvino,
}


def is_export(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is named like an exported file, not like a run folder or an artifact."""
    return Path(path).suffix.lower() in _BY_SUFFIX and not Path(path).is_dir()
