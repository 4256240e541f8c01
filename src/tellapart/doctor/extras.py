"""The optional packages: which are installed, and whether torchvision fits the torch beside it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import re
from types import ModuleType

from tellapart import packages
from tellapart.doctor.probing import reason_of
from tellapart.doctor.report import Package

# distribution, module, extra of ours that installs it ("" where it is installed by its own name), purpose
PACKAGES = (
    ("timm", "timm", "models", "more models and pretrained weights"),
    ("torchvision", "torchvision", "models", "more models and pretrained weights"),
    ("simplejpeg", "simplejpeg", "jpeg", "faster decoding of JPEG files"),
    ("pi-heif", "pi_heif", "heif", "HEIC and HEIF photographs"),
    ("tensorboard", "tensorboard", "tensorboard", "curves and images in the browser"),
    ("mlflow-skinny", "mlflow", "mlflow", "tracking of runs on a server"),
    ("onnx", "onnx", "onnx", "export to ONNX"),
    ("onnxruntime", "onnxruntime", "onnx", "fast inference from ONNX files"),
    ("openvino", "openvino", "openvino", "fast inference on Intel and AMD processors"),
    ("nncf", "nncf", "compress", "quantisation for OpenVINO"),
    ("torch-pruning", "torch_pruning", "compress", "pruning of channels"),
    ("fastapi", "fastapi", "serve", "an HTTP service"),
    ("pyarrow", "pyarrow", "parquet", "images and labels in Parquet files"),
)


def about_package(distribution: str, module: str, extra: str, purpose: str, quick: bool) -> Package:
    """Return a row of `PACKAGES` with what is installed; torchvision is imported unless ``quick``."""
    install = f'pip install "tellapart[{extra}]"' if extra else f"pip install {distribution}"
    version = packages.version(distribution) or _version_of_module(module)
    about = Package(module, version, purpose, install)
    return _try_torchvision(about) if module == "torchvision" and version and not quick else about


def _version_of_module(module: str) -> str | None:
    """Return the version of whichever distribution holds ``module`` (mlflow or mlflow-skinny)."""
    if not packages.installed(module):
        return None
    owners = _module_owners().get(module, [])
    return packages.version(owners[0]) if owners else "unknown version"


@functools.cache
def _module_owners() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _try_torchvision(about: Package) -> Package:
    try:
        packages.prepare_torchvision()
        module: ModuleType = importlib.import_module("torchvision")
        import torch
    except Exception as error:  # a build for another torch fails in many ways
        return dataclasses.replace(about, imports=False, note=reason_of(error))
    try:
        module.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
        note = ""
    except Exception:  # NotImplementedError or RuntimeError, by version
        note = "imports without its compiled operators (nms, codecs), which do not fit this torch"
    return dataclasses.replace(about, imports=True, note=note)


def wanted_torch() -> str | None:
    """Return the version of torch that the installed torchvision asks for."""
    for line in importlib.metadata.requires("torchvision") or []:
        found = re.match(r"torch\s*\(?==\s*([\d.]+)", line)
        if found:
            return found[1]
    return None
