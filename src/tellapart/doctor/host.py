"""The operating system, the processor, and the memory and disk that this process may use.

A container's limits (cgroups v1 and v2) count, not only what the machine has.
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shutil
import sys
from collections.abc import Iterator

from tellapart import places
from tellapart.doctor.probing import output_of, text_of
from tellapart.doctor.report import Cpu, Disk, Memory

# name to print -> names in /proc/cpuinfo (x86 "flags", ARM "Features") or in sysctl (macOS)
INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86": {
        "AVX2": ("avx2",),
        "AVX512F": ("avx512f",),
        "AVX512-VNNI": ("avx512_vnni",),
        "AVX512-BF16": ("avx512_bf16",),
        "AMX": ("amx_tile",),
        "AMX-BF16": ("amx_bf16",),
    },
    "arm": {
        "NEON": ("asimd", "neon", "hw.optional.neon"),
        "SVE": ("sve",),
        "BF16": ("bf16", "hw.optional.arm.feat_bf16"),
    },
}
FAST_BF16 = ("AVX512-BF16", "AMX-BF16", "BF16")


def system_name() -> str:
    """Return the operating system's name and release, and the machine's kind."""
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', text_of("/etc/os-release"), re.M)
    return f"{found[1]}, {name}" if found else name


def about_cpu(unknown: list[str]) -> Cpu:
    """Return what is known about the processor; what is not known is added to ``unknown``."""
    cpuinfo = text_of("/proc/cpuinfo")
    usable = _affinity()
    flags = _flags(cpuinfo)
    family = INSTRUCTIONS["arm" if platform.machine().lower().startswith(("arm", "aarch")) else "x86"]
    instructions = {name: any(f in flags for f in spelt) for name, spelt in family.items()} if flags else None
    if instructions is None:
        unknown.append("instruction sets: this system does not list them")
    return Cpu(
        model=_cpu_model(cpuinfo),
        machine=platform.machine(),
        machine_logical=os.cpu_count(),
        logical=len(usable) if usable else os.cpu_count(),
        physical=_physical_cores(cpuinfo, usable),
        quota=_cpu_quota(),
        instructions=instructions,
        fast_bf16=None if instructions is None else any(instructions.get(name) for name in FAST_BF16),
    )


def processors() -> int:
    """Return how many processors this process may use at a time: of the machine, and by cgroups' limits."""
    usable = len(_affinity()) or os.cpu_count() or 1
    return max(1, min(usable, round(_cpu_quota() or usable)))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _flags(cpuinfo: str) -> set[str]:
    """Return the processor's features in lower case."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)
    if found:
        return set(found[1].lower().split())
    names = re.findall(r"^(hw\.optional\.\S+): 1$", output_of("sysctl", "hw.optional"), re.M)
    features = {name.lower() for name in names}
    return features | {name.rpartition(".")[2].removesuffix("_0") for name in features}


def _cpu_model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.M)
    if found:
        return found[1].strip()
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string") or None
    found = re.search(r"^Model name:\s*(.+)$", output_of("lscpu"), re.M)
    return found[1].strip() if found else platform.processor() or None


def _physical_cores(cpuinfo: str, usable: set[int]) -> int | None:
    """Count the different cores behind the logical processors ``usable``."""
    cores = set()
    for block in cpuinfo.split("\n\n"):
        values = dict(re.findall(r"^([\w ]+?)\s*:\s*(\d+)\s*$", block, re.M))
        if "core id" in values and int(values.get("processor", -1)) in usable:
            cores.add((values.get("physical id"), values["core id"]))
    if cores:
        return len(cores)
    counted = output_of("sysctl", "-n", "hw.physicalcpu") if sys.platform == "darwin" else ""
    return int(counted) if counted.isdigit() else None


def _cgroups(controller: str, root: str = "/") -> Iterator[str]:
    """Yield the folders that may hold this process's limits, innermost first (cgroup v1 and v2).

    Inside a container the path in /proc/self/cgroup may not exist below the mount; its parents are tried.
    """
    for line in text_of(f"{root}proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0":
            mounts = [f"{root}sys/fs/cgroup", f"{root}sys/fs/cgroup/unified"]
        elif controller in names.split(","):
            mounts = [f"{root}sys/fs/cgroup/{names}", f"{root}sys/fs/cgroup/{controller}"]
        else:
            continue
        inner = pathlib.PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            yield from (f"{mount}/{part}" for part in (inner, *inner.parents))


def _cpu_quota(root: str = "/") -> float | None:
    """Return the number of processors that cgroups allow, or None if there is no limit."""
    found = []
    for folder in _cgroups("cpu", root):
        quota, _, period = text_of(f"{folder}/cpu.max").strip().partition(" ")
        if not quota:
            quota = text_of(f"{folder}/cpu.cfs_quota_us").strip()
            period = text_of(f"{folder}/cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def about_memory(root: str = "/") -> Memory:
    """Return the memory for this process: the smallest limit of its cgroups counts. ``root``: for tests."""
    total, free = _machine_memory(root)
    limit = None
    for folder in _cgroups("memory", root):
        text = text_of(f"{folder}/memory.max") or text_of(f"{folder}/memory.limit_in_bytes")
        if not text.strip().isdigit() or (total and int(text) >= total):  # "max", or v1's huge number
            continue
        bound = int(text)
        limit = bound if limit is None else min(limit, bound)
        used = text_of(f"{folder}/memory.current") or text_of(f"{folder}/memory.usage_in_bytes")
        if used.strip().isdigit():
            stat = text_of(f"{folder}/memory.stat")
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.M)  # given back on demand
            left = bound - int(used) + (int(cache[1]) if cache else 0)
            free = max(0, left if free is None else min(free, left))
    return Memory(total=limit or total, free=free, limit=limit)


def _machine_memory(root: str) -> tuple[int | None, int | None]:
    """Return the machine's memory, whole and free, in bytes."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", text_of(f"{root}proc/meminfo"), re.M))
    if "MemTotal" in values:
        return int(values["MemTotal"]) * 1024, int(values.get("MemAvailable", 0)) * 1024 or None
    total = output_of("sysctl", "-n", "hw.memsize")
    pages = sum(
        map(int, re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", output_of("vm_stat"), re.M))
    )
    return int(total) if total.isdigit() else None, pages * os.sysconf("SC_PAGE_SIZE") or None


def about_disk() -> Disk:
    """Return the disk that holds, or will hold, the cache folder."""
    folder = places.cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return Disk(str(folder), usage.total, usage.free)
