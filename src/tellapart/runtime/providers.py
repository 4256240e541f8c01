"""Where ONNX Runtime computes: a device's name -> its execution providers, with a check that they are used.

ONNX Runtime by itself falls back to the CPU with only a warning if a provider is missing or does not start. Here that
is an error. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from tellapart import places
from tellapart.errors import ArtifactError, SpecError

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
PROFILE = (1, 8, 32)  # the smallest, the usual and the largest batch that TensorRT builds an engine for
_NEEDS = {
    "cuda": "ONNX Runtime for GPUs (pip install onnxruntime-gpu in place of onnxruntime), CUDA and cuDNN",
    "tensorrt": "ONNX Runtime for GPUs (pip install onnxruntime-gpu in place of onnxruntime), CUDA, cuDNN and TensorRT",
}
Chain = list[tuple[str, dict[str, str]]]


def parse(device: str) -> tuple[str, int]:
    """Return kind and number of a device: cpu, cuda, cuda:N, tensorrt or tensorrt:N. Raises SpecError."""
    kind, colon, number = device.partition(":")
    if kind not in NAMES or (colon and (kind == "cpu" or not number.isdecimal())):
        raise SpecError(
            f"device is {device!r}; an ONNX file computes on cpu, cuda, cuda:N, tensorrt or tensorrt:N."
        )
    return kind, int(number or 0)


def chain(device: str, sizes: Sequence[int] = (), tensor: str = "pixels", half: bool = False) -> Chain:
    """Return the execution providers for a device with their options, the wanted one first. Raises SpecError.

    Args:
        device: as `parse` takes it.
        sizes: of the input ``tensor`` without its batch, if the batch may vary; empty: its batch is fixed.
        tensor: the input's name.
        half: whether the file has fp16 in it.

    float32 is computed as float32: TF32, which rounds products to 10 bits, is off for CUDA. TensorRT's provider has no
    option for that; the environment variable NVIDIA_TF32_OVERRIDE=0 turns it off.
    """
    kind, number = parse(device)
    providers: Chain = [(NAMES["cpu"], {})]
    if kind == "cpu":
        return providers
    # Without the heuristic, cuDNN tries all algorithms again for each new batch size.
    cuda = {"device_id": str(number), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    providers.insert(0, (NAMES["cuda"], cuda))
    if kind == "tensorrt":
        folder = places.cache_folder() / "tensorrt"
        options = {
            "device_id": str(number),
            "trt_engine_cache_enable": "1",  # an engine takes minutes to build
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
            "trt_fp16_enable": "1" if half else "0",
        }
        if sizes:
            for name, batch in zip(("min", "opt", "max"), PROFILE, strict=True):
                shape = "x".join(str(size) for size in (batch, *sizes))
                options[f"trt_profile_{name}_shapes"] = f"{tensor}:{shape}"
        providers.insert(0, (NAMES["tensorrt"], options))
    return providers


def ready(runtime: Any, device: str) -> None:
    """Raise ArtifactError if ONNX Runtime lacks what a device needs; otherwise load the device's libraries."""
    kind, _ = parse(device)
    if kind == "cpu":
        return
    if NAMES[kind] not in runtime.get_available_providers():
        raise ArtifactError(
            f"This ONNX Runtime ({runtime.__version__}) does not compute on {kind}: that needs {_NEEDS[kind]}."
        )
    if hasattr(runtime, "preload_dlls"):  # since 1.21: those of torch, or of NVIDIA's Python packages
        with contextlib.redirect_stdout(sys.stderr):
            runtime.preload_dlls()


def used(session: Any, device: str) -> str:
    """Return the provider that a session computes with. Raises ArtifactError if it is not the wanted one."""
    kind, _ = parse(device)
    found: list[str] = session.get_providers()
    if NAMES[kind] not in found:
        raise ArtifactError(
            f"ONNX Runtime could not start {NAMES[kind]} (it has {', '.join(found)}); that needs {_NEEDS[kind]}."
        )
    session.disable_fallback()
    return NAMES[kind]
