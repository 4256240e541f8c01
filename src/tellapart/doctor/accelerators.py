"""What torch says about itself and its GPUs, and whether an NVIDIA driver is there.

torch is imported here, inside the functions, and may be missing or broken.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Any

from tellapart import packages
from tellapart.doctor.probing import output_of, reason_of, text_of
from tellapart.doctor.report import Gpu, Torch


def about_torch(unknown: list[str]) -> Torch:
    """Return what torch reports; what it cannot report is added to ``unknown``."""
    try:
        import torch
    except Exception as error:  # also OSError, where a library of CUDA's is missing
        unknown.append(f"torch: {reason_of(error)}")
        return Torch(version=packages.version("torch"), error=reason_of(error))

    def ask(what: str, function: Callable[[], Any], default: Any = None) -> Any:
        try:
            return function()
        except Exception as error:  # builds differ in what they can be asked
            unknown.append(f"{what}: {reason_of(error)}")
            return default

    with warnings.catch_warnings(
        record=True
    ) as caught:  # torch reports a driver that is too old by a warning
        warnings.simplefilter("always")
        available = ask("CUDA", torch.cuda.is_available, False)
    cudnn = ask("cuDNN", torch.backends.cudnn.version)
    return Torch(
        version=str(torch.__version__),
        cuda_available=bool(available),
        cuda_version=torch.version.cuda,
        hip_version=getattr(torch.version, "hip", None),
        cuda_warning=" ".join(str(caught[0].message).split()) if caught else "",
        cudnn_version=None if cudnn is None else _cudnn(int(cudnn)),
        mps_built=bool(ask("MPS", torch.backends.mps.is_built, False)),
        mps_available=bool(ask("MPS", torch.backends.mps.is_available, False)),
        onednn=ask("oneDNN", torch.backends.mkldnn.is_available),
        threads=ask("threads", torch.get_num_threads),
        interop_threads=ask("threads", torch.get_num_interop_threads),
        compiled_for=tuple(ask("GPU kernels", torch.cuda.get_arch_list, [])) if available else (),
    )


def _cudnn(number: int) -> str:
    """Return 8907 or 91002 as cuDNN itself counts: 8.9.7, 9.10.2."""
    base = 10_000 if number >= 90_000 else 1_000
    return f"{number // base}.{number % base // 100}.{number % 100}"


def find_gpus(about: Torch, unknown: list[str], quick: bool) -> tuple[Gpu, ...]:
    """Return every CUDA device; with ``quick`` without its memory in use. A broken one is listed by its index."""
    if not about.cuda_available:
        return ()
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        try:
            gpus.append(_gpu(index, about, unknown, quick))
        except Exception as error:  # one broken device must not hide the others
            unknown.append(f"GPU {index}: {reason_of(error)}")
            gpus.append(Gpu(index))
    return tuple(gpus)


def _gpu(index: int, about: Torch, unknown: list[str], quick: bool) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    free: int | None = None
    total: int | None = int(properties.total_memory)
    try:
        if not quick:
            free, total = torch.cuda.mem_get_info(index)
    except Exception as error:  # exclusive mode: another process holds the device
        unknown.append(f"GPU {index}, memory in use: {reason_of(error)}")
    if about.hip_version:
        bf16, cores, supported = torch.cuda.is_bf16_supported(), None, None
    else:
        bf16 = (major, minor) >= (8, 0)  # older ones emulate it, slower than fp32
        # TU116/117: capability 7.5 without tensor cores
        cores = major >= 7 and "GTX 16" not in properties.name
        supported = _has_kernels(about.compiled_for, major, minor)
    return Gpu(
        index=index,
        name=str(properties.name),
        capability=f"{major}.{minor}",
        total_memory=total,
        free_memory=free,
        used_memory=None if free is None or total is None else total - free,
        bf16=bf16,
        tensor_cores=cores,
        supported=supported,
    )


def _has_kernels(compiled_for: tuple[str, ...], major: int, minor: int) -> bool | None:
    """Whether a build runs on a device: same major and no newer minor, or PTX (compute_) of any older one."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in compiled_for]
    pairs = [(match[1], int(match[2]), int(match[3])) for match in found if match]
    if not pairs:
        return None
    return any(
        (kind == "sm" and m == major and n <= minor) or (kind == "compute" and (m, n) <= (major, minor))
        for kind, m, n in pairs
    )


def nvidia_state() -> str:
    """Return "driver" if NVIDIA's driver is loaded, "device" if only the hardware is seen, or ""."""
    if text_of("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidia0"):
        return "driver"
    if shutil.which("nvidia-smi") and output_of("nvidia-smi", "-L"):
        return "driver"
    for device in pathlib.Path("/sys/bus/pci/devices").glob("*"):
        is_display = text_of(f"{device}/class").startswith("0x03")
        if is_display and text_of(f"{device}/vendor").strip() == "0x10de":
            return "device"
    return ""
