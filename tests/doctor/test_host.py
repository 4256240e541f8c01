from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tellapart import doctor
from tellapart.doctor import GIB, Memory, host

Make = Callable[..., Any]


X86 = """processor\t: {n}
model name\t: AMD EPYC 9654
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16

"""


ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n\n"


def test_x86_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = "".join(
        X86.format(n=n, socket=n // 4, core=n % 4 // 2) for n in range(8)
    )  # 2 sockets, 2 cores, 2 threads
    monkeypatch.setattr(host, "text_of", lambda path: cpuinfo if path == "/proc/cpuinfo" else "")
    monkeypatch.setattr(host, "_affinity", lambda: {0, 1, 2, 4})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    cpu = host.about_cpu([])
    assert (cpu.model, cpu.logical, cpu.physical) == ("AMD EPYC 9654", 4, 3)
    assert cpu.fast_bf16 is True
    assert cpu.instructions == {
        "AVX2": True, "AVX512F": True, "AVX512-VNNI": True, "AVX512-BF16": True, "AMX": False, "AMX-BF16": False
    }  # fmt: skip


def test_arm_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "text_of", lambda path: ARM if path == "/proc/cpuinfo" else "")
    monkeypatch.setattr(
        host, "output_of", lambda *command: "Model name:  Neoverse-V2" if command == ("lscpu",) else ""
    )
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpu = host.about_cpu([])
    assert cpu.model == "Neoverse-V2"
    assert cpu.instructions == {"NEON": True, "SVE": True, "BF16": True}
    assert cpu.fast_bf16 is True


def test_apple_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("sysctl", "hw.optional"): "hw.optional.neon: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.x: 0",
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M3",
        ("sysctl", "-n", "hw.physicalcpu"): "8",
    }
    monkeypatch.setattr(host, "text_of", lambda path: "")
    monkeypatch.setattr(host, "output_of", lambda *command: answers.get(command, ""))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    cpu = host.about_cpu([])
    assert (cpu.model, cpu.physical) == ("Apple M3", 8)
    assert cpu.instructions == {"NEON": True, "SVE": False, "BF16": True}


def test_unknown_processor(report: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "text_of", lambda path: "")
    monkeypatch.setattr(host, "output_of", lambda *command: "")
    unknown: list[str] = []
    cpu = host.about_cpu(unknown)
    assert cpu.instructions is None
    assert cpu.fast_bf16 is None
    assert unknown
    assert "Instruction sets    unknown" in doctor.render(report(cpu=cpu))


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{root}/"


def test_cgroup_v2_limits_are_the_smallest_of_the_path(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "proc/meminfo": "MemTotal:       33554432 kB\nMemAvailable:   25165824 kB\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/pod/container/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
            "sys/fs/cgroup/pod/container/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/container/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/container/memory.stat": f"anon 1\ninactive_file {GIB}\n",
        },
    )
    assert host._cpu_quota(root) == 2.5
    assert host.about_memory(root) == Memory(total=4 * GIB, free=2 * GIB, limit=4 * GIB)


def test_cgroup_v1_inside_a_container(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            # As a container sees it: the path is the host's and does not exist below the mount.
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
            "proc/meminfo": "MemTotal:       8388608 kB\nMemAvailable:   1048576 kB\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB // 2}\n",
        },
    )
    assert host._cpu_quota(root) == 1.5
    assert host.about_memory(root) == Memory(total=2 * GIB, free=GIB, limit=2 * GIB)


def test_no_limits(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
            "proc/meminfo": "MemTotal:       8388608 kB\nMemAvailable:   4194304 kB\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert host._cpu_quota(root) is None
    assert host.about_memory(root) == Memory(total=8 * GIB, free=4 * GIB, limit=None)
