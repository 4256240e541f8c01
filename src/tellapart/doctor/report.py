"""What was found about a machine, as plain data. Probes nothing itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3


@dataclass(frozen=True)
class Torch:
    """The installed torch; ``error`` says why it could not be imported or asked."""

    version: str | None = None
    error: str = ""
    cuda_available: bool = False
    cuda_version: str | None = None
    hip_version: str | None = None
    cuda_warning: str = ""
    cudnn_version: str | None = None
    mps_built: bool = False
    mps_available: bool = False
    onednn: bool | None = None
    threads: int | None = None
    interop_threads: int | None = None
    compiled_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """One CUDA device (or ROCm's, under the same names); memory in bytes, over all processes."""

    index: int
    name: str = "unknown"
    capability: str | None = None
    total_memory: int | None = None
    free_memory: int | None = None
    used_memory: int | None = None
    bf16: bool | None = None
    tensor_cores: bool | None = None
    supported: bool | None = None


@dataclass(frozen=True)
class Cpu:
    """The processor; ``logical``, ``physical``: cores that this process may use; ``quota``: cgroup's."""

    model: str | None = None
    machine: str = ""
    machine_logical: int | None = None
    logical: int | None = None
    physical: int | None = None
    quota: float | None = None
    instructions: dict[str, bool] | None = None
    fast_bf16: bool | None = None

    @property
    def usable(self) -> float | None:
        """Cores' worth of time that this process can have."""
        known = [value for value in (self.logical, self.quota) if value]
        return min(known) if known else None


@dataclass(frozen=True)
class Memory:
    """Memory for this process in bytes: the machine's, or less if a container sets a limit."""

    total: int | None = None
    free: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Disk:
    """The disk of tellapart's cache folder; bytes."""

    cache_dir: str = ""
    total: int | None = None
    free: int | None = None


@dataclass(frozen=True)
class Package:
    """An optional package; ``imports`` and ``note`` only if importing it was tried."""

    name: str
    version: str | None
    purpose: str
    install: str
    imports: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that was found; ``advice`` in sentences, ``unknown`` lists the probes that failed."""

    tellapart: str | None
    python: str
    system: str
    torch: Torch
    gpus: tuple[Gpu, ...]
    nvidia: str
    cpu: Cpu
    memory: Memory
    disk: Disk
    packages: tuple[Package, ...]
    advice: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return dataclasses.asdict(self)


def gibibytes(number: int | None) -> str:
    """Format a number of bytes for people."""
    return "unknown" if number is None else f"{number / GIB:.1f} GiB"
