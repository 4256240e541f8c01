"""The report as text for a terminal."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator

from tellapart.doctor.report import Gpu, Report, gibibytes


def render(report: Report) -> str:
    """Return the report as text of at most 80 columns (but for long words)."""
    lines = [f"tellapart {report.tellapart or '?'}"]
    lines += _section("System", (("Python", report.python), ("Operating system", report.system)))
    lines += _section("PyTorch", _torch_rows(report))
    for gpu in report.gpus:
        lines += _section(f"GPU {gpu.index}: {gpu.name}", _gpu_rows(gpu))
    lines += _section("Processor, memory, disk", _host_rows(report))
    lines += ["", "Optional packages"]
    for about in report.packages:
        state = about.version or "not installed"
        if about.imports is False:
            state += ", does not import"
        lines.append(f"  {about.name:<14}{state:<19} {'' if about.version else about.install}".rstrip())
        if about.note:
            lines += _wrap(about.note, " " * 16, " " * 16)
    if report.advice:
        lines += ["", "Advice"]
        for sentence in report.advice:
            lines += _wrap(sentence, "  - ", "    ")
    if report.unknown:
        lines += ["", "Unknown"]
        for sentence in report.unknown:
            lines += _wrap(sentence, "  - ", "    ")
    return "\n".join(lines)


def _torch_rows(report: Report) -> Iterator[tuple[str, str]]:
    about = report.torch
    yield "torch", f"does not import: {about.error}" if about.error else about.version or "unknown"
    yield "CUDA available", _yes(about.cuda_available)
    if about.hip_version:
        yield "ROCm version", about.hip_version
    else:
        yield "CUDA version", about.cuda_version or "none (this torch is not built for CUDA)"
    yield "cuDNN version", about.cudnn_version or "none"
    yield "GPUs", str(len(report.gpus))
    yield "Apple GPU (MPS)", _yes(about.mps_available)
    yield "oneDNN", _yes(about.onednn)
    if about.threads is not None:
        yield (
            "CPU threads",
            f"{about.threads} within an operation, {about.interop_threads} between operations",
        )


def _gpu_rows(gpu: Gpu) -> Iterator[tuple[str, str]]:
    yield "Compute capability", gpu.capability or "unknown"
    yield "Memory", gibibytes(gpu.total_memory)
    yield "Memory in use", f"{gibibytes(gpu.used_memory)}, free {gibibytes(gpu.free_memory)}"
    yield "bf16", _yes(gpu.bf16)
    yield "Tensor cores", _yes(gpu.tensor_cores)


def _host_rows(report: Report) -> Iterator[tuple[str, str]]:
    cpu, memory, disk = report.cpu, report.memory, report.disk
    yield "Processor", cpu.model or "unknown"
    usable = f"{cpu.logical or '?'} of {cpu.machine_logical or '?'} logical usable"
    usable += f", {cpu.physical} physical" if cpu.physical else ""
    yield "Cores", usable + (f", container limit {cpu.quota:g}" if cpu.quota else "")
    if cpu.instructions is None:
        yield "Instruction sets", "unknown"
    else:
        has = [name for name, there in cpu.instructions.items() if there]
        lacks = [name for name, there in cpu.instructions.items() if not there]
        yield (
            "Instruction sets",
            (", ".join(has) or "none") + (f" (not: {', '.join(lacks)})" if lacks else ""),
        )
    yield "bf16 on the CPU", {True: "fast", False: "slow (emulated)", None: "unknown"}[cpu.fast_bf16]
    limited = " (container limit)" if memory.limit else ""
    yield "Memory", f"{gibibytes(memory.total)}{limited}, free {gibibytes(memory.free)}"
    yield (
        "Cache folder",
        f"{disk.cache_dir or 'unknown'}, free {gibibytes(disk.free)} of {gibibytes(disk.total)}",
    )


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = ["", title]
    for name, value in rows:
        lines += _wrap(value, f"  {name:<20}", " " * 22)
    return lines


def _wrap(text: str, first: str, rest: str) -> list[str]:
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return textwrap.wrap(
        plain,
        80,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"
