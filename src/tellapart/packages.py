"""Optional packages: imported when needed, with an error that names the extra to install.

Owner of torchvision's import, which needs care: its published build expects CUDA's libraries, so beside a
CPU build of torch its compiled operators do not load and ``import torchvision`` fails.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tellapart.errors import MissingPackageError

_TORCH_FREE = frozenset(  # must not load torch by preparing torchvision
    {
        "onnx",
        "onnxruntime",
        "openvino",
        "fastapi",
        "uvicorn",
        "python_multipart",
        "prometheus_client",
        "pyarrow",
    }
)

_kept_alive: list[Any] = []  # a torch.library.Library takes its operators with it when it is collected


def installed(package: str) -> bool:
    """Return whether ``package`` can be found, without importing it."""
    return importlib.util.find_spec(package) is not None


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import and return ``package``; raise MissingPackageError naming ``extra`` if it is not installed."""
    if not installed(package.partition(".")[0]):
        raise MissingPackageError(package, extra, purpose)
    if package.partition(".")[0] not in _TORCH_FREE:
        prepare_torchvision()
    with no_collection():
        return importlib.import_module(package)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Leave out garbage collection inside: what an import makes stays, and looking through it takes a fifth longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def prepare_torchvision() -> None:
    """Make ``import torchvision`` (also by timm and others) work beside any build of torch.

    Loads torchvision's operators; where that fails for want of CUDA's libraries, declares the two that its
    Python modules name at import. Models, transforms and data sets then work; ``ops.nms`` does not.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    import torch

    libraries = sorted(pathlib.Path(found.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        fragment.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        fragment.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(fragment)


def version(package: str) -> str | None:
    """Return the installed version of the distribution ``package``, or None."""
    from importlib import metadata  # takes a moment, and help need not wait for it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
