from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from tellapart import doctor
from tellapart.doctor import Cpu, Disk, Gpu, Memory, Package, Report, Torch

GIB = 1024**3


def report(**changes: object) -> Report:
    """A machine about which there is nothing to say, with changes."""
    plain = Report(
        tellapart="0.1.0",
        python="3.12.0 (/usr/bin/python)",
        system="Linux",
        torch=Torch(version="2.11.0", threads=8, interop_threads=4, onednn=True),
        gpus=(),
        nvidia="",
        cpu=Cpu("A processor", "x86_64", 8, 8, 4, None, {"AVX2": True, "AMX": False}, None),
        memory=Memory(32 * GIB, 20 * GIB),
        disk=Disk("/home/me/.cache/tellapart", 500 * GIB, 100 * GIB),
        packages=(),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def advice(**changes: object) -> str:
    return " | ".join(doctor._advice(report(**changes)))


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ())


DEVICES = {
    "NVIDIA H100 80GB HBM3": ((9, 0), 80 * GIB, 79 * GIB),
    "Tesla V100-SXM2-16GB": ((7, 0), 16 * GIB, 2 * GIB),
    "NVIDIA GeForce GTX 1660": ((7, 5), 6 * GIB, 6 * GIB),
    "Tesla P100-PCIE-16GB": ((6, 0), 16 * GIB, 16 * GIB),
}


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    rows = list(DEVICES.items())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(rows))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: types.SimpleNamespace(name=rows[i][0], total_memory=rows[i][1][1]),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: rows[i][1][0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (rows[i][1][2], rows[i][1][1]))
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"]
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


# --- this machine ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> Report:
    return doctor.examine()


def test_this_machine_is_described(here: Report) -> None:
    assert here.torch.version == torch.__version__
    assert here.torch.cuda_available == torch.cuda.is_available()
    assert here.torch.threads == torch.get_num_threads()
    assert len(here.gpus) == torch.cuda.device_count()
    assert here.memory.total is not None
    assert here.memory.free is not None
    assert 0 < here.memory.free <= here.memory.total
    assert here.disk.free is not None
    assert here.disk.free > 0
    if hasattr(os, "sched_getaffinity"):
        assert here.cpu.logical == len(os.sched_getaffinity(0))
    vision = next(package for package in here.packages if package.name == "torchvision")
    assert vision.imports is (True if vision.version else None)
    assert {package.name for package in here.packages} == {row[1] for row in doctor.PACKAGES}


def test_json_holds_what_the_dataclass_holds(here: Report) -> None:
    plain = json.loads(json.dumps(here.to_dict()))
    assert plain["torch"]["version"] == torch.__version__
    assert plain["cpu"]["logical"] == here.cpu.logical
    assert len(plain["packages"]) == len(doctor.PACKAGES)


def test_text_has_80_columns(here: Report) -> None:
    lines = doctor.render(here).splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)
    assert torch.__version__ in doctor.render(here)


def test_an_importable_package_of_a_wrong_build_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.packages, "prepare_torchvision", lambda: None)
    monkeypatch.setattr(
        doctor.importlib,
        "import_module",
        lambda name: (_ for _ in ()).throw(RuntimeError("operator torchvision::nms")),
    )
    about = doctor._try_torchvision(Package("torchvision", "0.1", "", ""))
    assert about.imports is False
    assert "nms" in about.note
    assert "belongs to torch" in advice(packages=(about,))


# --- GPUs, faked -------------------------------------------------------------------------------------------


def test_gpus_are_described(fake_cuda: None) -> None:
    found = doctor.examine()
    h100, v100, gtx, p100 = found.gpus
    assert [gpu.name for gpu in found.gpus] == list(DEVICES)
    assert (h100.capability, h100.bf16, h100.tensor_cores, h100.supported) == ("9.0", True, True, True)
    assert (v100.capability, v100.bf16, v100.tensor_cores) == ("7.0", False, True)
    assert (gtx.capability, gtx.bf16, gtx.tensor_cores) == ("7.5", False, False)
    assert (p100.bf16, p100.tensor_cores, p100.supported) == (False, False, False)
    assert h100.used_memory == 1 * GIB
    assert v100.used_memory == 14 * GIB
    assert found.torch.cudnn_version == "9.10.2"
    text = doctor.render(found)
    assert "GPU 0: NVIDIA H100 80GB HBM3" in text
    assert "14.0 GiB, free 2.0 GiB" in text
    sentences = " ".join(found.advice)
    assert "torchrun --nproc-per-node 4" in sentences
    assert "GPU 0 (NVIDIA H100 80GB HBM3): use --training.precision bf16" in sentences
    assert "GPU 1 (Tesla V100-SXM2-16GB): use --training.precision fp16" in sentences
    assert "no kernels for GPU 3 (Tesla P100-PCIE-16GB, capability 6.0)" in sentences
    assert "GPU 1: 88 % of its memory" in sentences
    assert "No GPU" not in sentences


def test_quick_does_not_touch_the_gpus_memory(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: pytest.fail("asked"))
    gpu = doctor.examine(quick=True).gpus[0]
    assert gpu.total_memory == 80 * GIB
    assert gpu.used_memory is None


def test_one_broken_gpu_does_not_hide_the_others(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cuda.get_device_properties

    def broken(index: int) -> object:
        if index == 1:
            raise RuntimeError("CUDA error: device is lost\nmore")
        return whole(index)

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    found = doctor.examine()
    assert [gpu.name for gpu in found.gpus][:2] == ["NVIDIA H100 80GB HBM3", "unknown"]
    assert "GPU 1: RuntimeError: CUDA error: device is lost" in found.unknown
    assert "device is lost" in doctor.render(found)


def test_memory_of_a_gpu_that_another_process_holds(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(index: int) -> tuple[int, int]:
        raise RuntimeError("all CUDA-capable devices are busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    found = doctor.examine()
    assert found.gpus[0].total_memory == 80 * GIB
    assert found.gpus[0].used_memory is None
    assert any("memory in use" in line for line in found.unknown)


def test_rocm_is_named(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4.1", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    found = doctor.examine()
    assert (found.gpus[0].bf16, found.gpus[0].tensor_cores) == (True, None)
    assert "ROCm version        6.4.1" in doctor.render(found)


def test_a_driver_that_is_too_old_is_explained(no_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert any("too old" in sentence for sentence in doctor.examine().advice)


@pytest.mark.parametrize(
    ("compiled", "capability", "expected"),
    [
        (("sm_80", "sm_90"), (8, 6), True),
        (("sm_80", "sm_90"), (7, 5), False),
        (("sm_80", "sm_90"), (12, 0), False),
        (("sm_80", "compute_90"), (12, 0), True),
        (("sm_90a", "sm_120"), (12, 0), True),
        (("sm_86",), (8, 0), False),
        ((), (9, 0), None),
        (("gfx90a",), (9, 0), None),
    ],
)
def test_kernels_for_a_capability(
    compiled: tuple[str, ...], capability: tuple[int, int], expected: bool | None
) -> None:
    assert doctor._has_kernels(compiled, *capability) is expected


@pytest.mark.parametrize(
    ("number", "text"), [(8907, "8.9.7"), (91002, "9.10.2"), (90100, "9.1.0"), (7605, "7.6.5")]
)
def test_cudnn_version(number: int, text: str) -> None:
    assert doctor._cudnn(number) == text


# --- nothing makes it fail ---------------------------------------------------------------------------------


def test_without_torch_the_rest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.examine()
    assert found.torch.error
    assert "does not import" in doctor.render(found)
    assert found.memory.total
    assert any("nothing works without it" in sentence for sentence in found.advice)


def test_every_probe_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no such thing")

    names = ("_torch", "_gpus", "_nvidia", "_cpu", "_memory", "_disk", "_package", "_system", "_advice")
    for name in names:
        monkeypatch.setattr(doctor, name, fail)
    monkeypatch.setattr(doctor.packages, "version", fail)
    found = doctor.examine()
    assert len(found.unknown) == len(names) + 1
    assert "no such thing" in doctor.render(found)
    json.dumps(found.to_dict())


def test_single_questions_to_torch_may_fail(no_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", fail)
    found = doctor.examine()
    assert found.torch.onednn is None
    assert found.torch.version == torch.__version__
    assert "oneDNN: RuntimeError: no" in found.unknown


# --- processor and containers ------------------------------------------------------------------------------

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
    monkeypatch.setattr(doctor, "_text", lambda path: cpuinfo if path == "/proc/cpuinfo" else "")
    monkeypatch.setattr(doctor, "_affinity", lambda: {0, 1, 2, 4})
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    cpu = doctor._cpu([])
    assert (cpu.model, cpu.logical, cpu.physical) == ("AMD EPYC 9654", 4, 3)
    assert cpu.fast_bf16 is True
    assert cpu.instructions == {
        "AVX2": True, "AVX512F": True, "AVX512-VNNI": True, "AVX512-BF16": True, "AMX": False, "AMX-BF16": False
    }  # fmt: skip


def test_arm_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_text", lambda path: ARM if path == "/proc/cpuinfo" else "")
    monkeypatch.setattr(
        doctor, "_run", lambda *command: "Model name:  Neoverse-V2" if command == ("lscpu",) else ""
    )
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    cpu = doctor._cpu([])
    assert cpu.model == "Neoverse-V2"
    assert cpu.instructions == {"NEON": True, "SVE": True, "BF16": True}
    assert cpu.fast_bf16 is True


def test_apple_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("sysctl", "hw.optional"): "hw.optional.neon: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.x: 0",
        ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M3",
        ("sysctl", "-n", "hw.physicalcpu"): "8",
    }
    monkeypatch.setattr(doctor, "_text", lambda path: "")
    monkeypatch.setattr(doctor, "_run", lambda *command: answers.get(command, ""))
    monkeypatch.setattr(doctor.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    cpu = doctor._cpu([])
    assert (cpu.model, cpu.physical) == ("Apple M3", 8)
    assert cpu.instructions == {"NEON": True, "SVE": False, "BF16": True}


def test_unknown_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_text", lambda path: "")
    monkeypatch.setattr(doctor, "_run", lambda *command: "")
    unknown: list[str] = []
    cpu = doctor._cpu(unknown)
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
    assert doctor._cpu_quota(root) == 2.5
    assert doctor._memory(root) == Memory(total=4 * GIB, free=2 * GIB, limit=4 * GIB)


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
    assert doctor._cpu_quota(root) == 1.5
    assert doctor._memory(root) == Memory(total=2 * GIB, free=GIB, limit=2 * GIB)


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
    assert doctor._cpu_quota(root) is None
    assert doctor._memory(root) == Memory(total=8 * GIB, free=4 * GIB, limit=None)


# --- advice ------------------------------------------------------------------------------------------------


def test_a_plain_machine_hears_only_that_there_is_no_gpu() -> None:
    assert len(list(doctor._advice(report()))) == 1
    assert "--model.finetune head" in advice()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8")}, "no NVIDIA driver is loaded"),
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8"), "nvidia": "device"}, "install the driver"),
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8"), "nvidia": "driver"}, "--gpus all"),
        ({"torch": Torch("2.11.0+cpu"), "nvidia": "driver"}, "this torch is a CPU build"),
        ({"torch": Torch("2.11.0", mps_available=True)}, "Apple GPU"),
        ({"torch": Torch(error="ImportError: libcudart.so.12")}, "libcudart.so.12"),
        ({"cpu": Cpu(fast_bf16=True)}, "--training.precision bf16"),
        ({"cpu": Cpu(fast_bf16=False)}, "--training.precision fp32"),
        ({"cpu": Cpu(logical=2)}, "Only 2 processor cores"),
        ({"cpu": Cpu(logical=8, quota=0.5)}, "Only 0.5 processor cores"),
        ({"cpu": Cpu(logical=8, quota=2.0), "torch": Torch("2", threads=8)}, "--training.threads 2"),
        ({"memory": Memory(2 * GIB, GIB, 2 * GIB)}, "memory limit is 2.0 GiB"),
        ({"memory": Memory(8 * GIB, GIB)}, "Only 1.0 GiB of memory free"),
        ({"disk": Disk("/cache", 100 * GIB, GIB)}, "--data.cache-dir"),
    ],
)
def test_advice(changes: dict[str, object], expected: str) -> None:
    assert expected in advice(**changes)
    assert expected not in advice()


def test_missing_packages_come_with_their_pip_line() -> None:
    rows = tuple(
        doctor._package(f"tellapart-test-{n}", f"no_such_{n}", n, f"purpose {n}", False)
        for n in ("models", "")
    )
    assert [row.version for row in rows] == [None, None]
    text = doctor.render(report(packages=rows, advice=tuple(doctor._advice(report(packages=rows)))))
    assert 'For purpose models (no_such_models): pip install "tellapart[models]"' in text
    assert "pip install tellapart-test-" in text


def test_a_module_of_another_distribution_counts_as_installed() -> None:
    # PIL is installed by the distribution "pillow"; asking for another name must find it.
    about = doctor._package("no-such-distribution", "PIL", "", "", True)
    assert about.version == doctor.packages.version("pillow")


def test_several_gpus_of_one_kind_are_all_used() -> None:
    gpus = (Gpu(0, "A", "8.0", bf16=True), Gpu(1, "A", "8.0", bf16=True))
    assert "--nproc-per-node 2" in advice(gpus=gpus)
    assert "No GPU" not in advice(gpus=gpus)
