"""What this machine offers for training and serving, and what to do about it.

Asks torch, the operating system and the installed packages; changes nothing and needs no network. Every probe
is guarded: what cannot be found out is listed in ``Report.unknown`` and the rest is still reported. Knows
nothing of data, models or runs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

from tellapart import packages

T = TypeVar("T")
GIB = 1024**3

# distribution, module, extra of ours that installs it ("" where it is installed by its own name), purpose
PACKAGES = (
    ("timm", "timm", "models", "more models and pretrained weights"),
    ("torchvision", "torchvision", "models", "more models and pretrained weights"),
    ("tensorboard", "tensorboard", "tensorboard", "curves and pictures in the browser"),
    ("mlflow-skinny", "mlflow", "mlflow", "tracking of runs on a server"),
    ("onnxruntime", "onnxruntime", "", "fast inference from ONNX files"),
    ("openvino", "openvino", "", "fast inference on Intel and AMD processors"),
    ("optuna", "optuna", "", "search of hyper-parameters"),
    ("ray", "ray", "", "search on many machines"),
    ("open_clip_torch", "open_clip", "", "classification without training"),
)

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
    """Memory for this process in bytes: the machine's, or less where a container sets a limit."""

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
    """An optional package; ``imports`` and ``note`` only where importing it was tried."""

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


def examine(quick: bool = False) -> Report:
    """Look at this machine; never raises.

    With ``quick`` it does not try to import torchvision (seconds) and does not ask GPUs for their memory in
    use (which takes some of it on each): what a training run needs for its record.
    """
    unknown: list[str] = []

    def probe(what: str, function: Callable[[], T], default: T) -> T:
        try:
            return function()
        except Exception as error:  # one thing that cannot be asked must not hide all the others
            unknown.append(f"{what}: {_reason(error)}")
            return default

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_report = probe("torch", lambda: _torch(unknown), Torch())
        report = Report(
            tellapart=probe("tellapart", lambda: packages.version("tellapart"), None),
            python=f"{platform.python_version()} ({sys.executable})",
            system=probe("system", _system, sys.platform),
            torch=torch_report,
            gpus=probe("GPUs", lambda: _gpus(torch_report, unknown, quick), ()),
            nvidia=probe("NVIDIA driver", _nvidia, ""),
            cpu=probe("processor", lambda: _cpu(unknown), Cpu()),
            memory=probe("memory", _memory, Memory()),
            disk=probe("disk", _disk, Disk()),
            packages=probe(
                "packages", lambda: tuple(_package(*row, quick) for row in PACKAGES), tuple[Package, ...]()
            ),
        )
    advice = probe("advice", lambda: list(_advice(report)), list[str]())
    return dataclasses.replace(report, advice=tuple(advice), unknown=tuple(unknown))


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def _run(*command: str) -> str:
    """Return a command's output, or "" where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _text(path: str) -> str:
    """Return a small file's text, or "" where it cannot be read."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _system() -> str:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text("/etc/os-release"), re.M)
    return f"{found[1]}, {name}" if found else name


# --- torch and GPUs ----------------------------------------------------------------------------------------


def _torch(unknown: list[str]) -> Torch:
    try:
        import torch
    except Exception as error:  # also OSError, where a library of CUDA's is missing
        unknown.append(f"torch: {_reason(error)}")
        return Torch(version=packages.version("torch"), error=_reason(error))

    def ask(what: str, function: Callable[[], Any], default: Any = None) -> Any:
        try:
            return function()
        except Exception as error:  # builds differ in what they can be asked
            unknown.append(f"{what}: {_reason(error)}")
            return default

    with warnings.catch_warnings(record=True) as caught:  # a driver that is too old is told by a warning
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


def _gpus(about: Torch, unknown: list[str], quick: bool) -> tuple[Gpu, ...]:
    if not about.cuda_available:
        return ()
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        try:
            gpus.append(_gpu(index, about, unknown, quick))
        except Exception as error:  # one broken device must not hide the others
            unknown.append(f"GPU {index}: {_reason(error)}")
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
        unknown.append(f"GPU {index}, memory in use: {_reason(error)}")
    if about.hip_version:
        bf16, cores, supported = torch.cuda.is_bf16_supported(), None, None
    else:
        bf16 = (major, minor) >= (8, 0)  # older ones emulate it, slower than fp32
        cores = (
            major >= 7 and "GTX 16" not in properties.name
        )  # TU116/117: capability 7.5 without tensor cores
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


def _nvidia() -> str:
    """Return "driver" where NVIDIA's driver is loaded, "device" where only the hardware is seen, or ""."""
    if _text("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidia0"):
        return "driver"
    if shutil.which("nvidia-smi") and _run("nvidia-smi", "-L"):
        return "driver"
    for device in pathlib.Path("/sys/bus/pci/devices").glob("*"):
        is_display = _text(f"{device}/class").startswith("0x03")
        if is_display and _text(f"{device}/vendor").strip() == "0x10de":
            return "device"
    return ""


# --- processor, memory, disk -------------------------------------------------------------------------------


def _cpu(unknown: list[str]) -> Cpu:
    cpuinfo = _text("/proc/cpuinfo")
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


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _flags(cpuinfo: str) -> set[str]:
    """Return the processor's features in lower case."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)
    if found:
        return set(found[1].lower().split())
    names = re.findall(r"^(hw\.optional\.\S+): 1$", _run("sysctl", "hw.optional"), re.M)
    features = {name.lower() for name in names}
    return features | {name.rpartition(".")[2].removesuffix("_0") for name in features}


def _cpu_model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.M)
    if found:
        return found[1].strip()
    if sys.platform == "darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or None
    found = re.search(r"^Model name:\s*(.+)$", _run("lscpu"), re.M)
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
    counted = _run("sysctl", "-n", "hw.physicalcpu") if sys.platform == "darwin" else ""
    return int(counted) if counted.isdigit() else None


def _cgroups(controller: str, root: str = "/") -> Iterator[str]:
    """Yield the folders that may hold this process's limits, innermost first (cgroup v1 and v2).

    Inside a container the path in /proc/self/cgroup may not exist below the mount; its parents are tried.
    """
    for line in _text(f"{root}proc/self/cgroup").splitlines():
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
    """Return the processors' worth of time that cgroups allow, or None where there is no limit."""
    found = []
    for folder in _cgroups("cpu", root):
        quota, _, period = _text(f"{folder}/cpu.max").strip().partition(" ")
        if not quota:
            quota = _text(f"{folder}/cpu.cfs_quota_us").strip()
            period = _text(f"{folder}/cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _memory(root: str = "/") -> Memory:
    total, free = _machine_memory(root)
    limit = None
    for folder in _cgroups("memory", root):
        text = _text(f"{folder}/memory.max") or _text(f"{folder}/memory.limit_in_bytes")
        if not text.strip().isdigit() or (total and int(text) >= total):  # "max", or v1's huge number
            continue
        bound = int(text)
        limit = bound if limit is None else min(limit, bound)
        used = _text(f"{folder}/memory.current") or _text(f"{folder}/memory.usage_in_bytes")
        if used.strip().isdigit():
            stat = _text(f"{folder}/memory.stat")
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.M)  # given back on demand
            left = bound - int(used) + (int(cache[1]) if cache else 0)
            free = max(0, left if free is None else min(free, left))
    return Memory(total=limit or total, free=free, limit=limit)


def _machine_memory(root: str) -> tuple[int | None, int | None]:
    """Return the machine's memory, whole and free, in bytes."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(f"{root}proc/meminfo"), re.M))
    if "MemTotal" in values:
        return int(values["MemTotal"]) * 1024, int(values.get("MemAvailable", 0)) * 1024 or None
    total = _run("sysctl", "-n", "hw.memsize")
    pages = sum(map(int, re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", _run("vm_stat"), re.M)))
    return int(total) if total.isdigit() else None, pages * os.sysconf("SC_PAGE_SIZE") or None


def _disk() -> Disk:
    import platformdirs

    folder = pathlib.Path(platformdirs.user_cache_dir("tellapart"))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return Disk(str(folder), usage.total, usage.free)


# --- packages ----------------------------------------------------------------------------------------------


def _package(distribution: str, module: str, extra: str, purpose: str, quick: bool) -> Package:
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
        return dataclasses.replace(about, imports=False, note=_reason(error))
    try:
        module.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
        note = ""
    except Exception:  # NotImplementedError or RuntimeError, by version
        note = "imports without its compiled operators (nms, codecs), which do not fit this torch"
    return dataclasses.replace(about, imports=True, note=note)


def _wanted_torch() -> str | None:
    """Return the version of torch that the installed torchvision asks for."""
    for line in importlib.metadata.requires("torchvision") or []:
        found = re.match(r"torch\s*\(?==\s*([\d.]+)", line)
        if found:
            return found[1]
    return None


# --- advice ------------------------------------------------------------------------------------------------


def _advice(report: Report) -> Iterator[str]:
    if report.torch.error:
        yield f"torch does not import ({report.torch.error}); nothing works without it: pip install torch"
    yield from _accelerator_advice(report)
    for gpu in report.gpus:
        yield from _gpu_advice(gpu)
    yield from _host_advice(report)
    yield from _package_advice(report)


def _accelerator_advice(report: Report) -> Iterator[str]:
    about, cpu = report.torch, report.cpu
    if report.gpus:
        if len(report.gpus) > 1:
            count = len(report.gpus)
            yield f"Use all {count} GPUs: torchrun --nproc-per-node {count} -m tellapart train …"
        return
    if about.mps_available:
        yield "Training uses the Apple GPU by itself; --training.device cpu turns that off."
        return
    if about.cuda_warning:
        yield f"CUDA cannot be used: {about.cuda_warning}"
    elif about.cuda_version and report.nvidia == "driver":
        yield (
            "torch is built for CUDA and NVIDIA's driver is there, but this process sees no GPU: check "
            "CUDA_VISIBLE_DEVICES and, in a container, that it was started with --gpus all."
        )
    elif about.cuda_version and report.nvidia == "device":
        yield "There is an NVIDIA GPU without a driver: install the driver (torch needs no CUDA toolkit)."
    elif about.cuda_version:
        yield (
            f"torch is built for CUDA {about.cuda_version}, but no NVIDIA driver is loaded, so it computes "
            "on the CPU. If there is no GPU, the CPU build is smaller: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
    elif report.nvidia and about.version and not about.hip_version:
        yield (
            "There is an NVIDIA GPU, but this torch is a CPU build. Choose a CUDA build on "
            "https://pytorch.org/get-started/locally and install it in place of this one."
        )
    yield (
        "No GPU: training runs on the CPU. Start with small networks and images (--input.size 128 to 224), "
        "and with pretrained weights train only the head: --model.finetune head."
    )
    if cpu.fast_bf16:
        yield "This processor computes bf16 in hardware: try --training.precision bf16, often much faster."
    elif cpu.fast_bf16 is False:
        yield "This processor has no bf16 instructions: stay with --training.precision fp32."


def _gpu_advice(gpu: Gpu) -> Iterator[str]:
    if gpu.supported is False:
        yield (
            f"This torch has no kernels for GPU {gpu.index} ({gpu.name}, capability {gpu.capability}): "
            "install a torch built for it (https://pytorch.org/get-started/locally), or use "
            "--training.device cpu."
        )
    elif gpu.bf16:
        yield f"GPU {gpu.index} ({gpu.name}): use --training.precision bf16, much faster than fp32."
    elif gpu.tensor_cores:
        yield f"GPU {gpu.index} ({gpu.name}): use --training.precision fp16; it has tensor cores but no bf16."
    if gpu.used_memory and gpu.total_memory and gpu.used_memory > gpu.total_memory / 2:
        share = 100 * gpu.used_memory / gpu.total_memory
        yield (
            f"GPU {gpu.index}: {share:.0f} % of its memory is in use already; nvidia-smi shows by whom. "
            "Another GPU is chosen with --training.device cuda:N."
        )


def _host_advice(report: Report) -> Iterator[str]:
    cpu, memory, disk = report.cpu, report.memory, report.disk
    if cpu.usable is not None and cpu.usable < 4:
        yield (
            f"Only {cpu.usable:g} processor core{'s' * (cpu.usable != 1)} for this process: decoding "
            "photographs will take a good part of the first epoch; later epochs read the cache."
        )
    if cpu.quota and cpu.logical and report.torch.threads and report.torch.threads > cpu.quota + 0.5:
        yield (
            f"The container may use {cpu.quota:g} cores, but torch would start {report.torch.threads} "
            f"threads: --training.threads {max(1, int(cpu.quota))}"
        )
    if memory.limit and memory.limit < 4 * GIB:
        yield (
            f"The container's memory limit is {_size(memory.limit)}: use a small --training.batch-size, or "
            "raise the limit (docker run --memory 8g)."
        )
    elif memory.free is not None and memory.free < 2 * GIB:
        yield f"Only {_size(memory.free)} of memory free: close programs or lower --training.batch-size."
    if disk.free is not None and disk.free < 5 * GIB:
        yield f"Only {_size(disk.free)} free for the cache ({disk.cache_dir}): set --data.cache-dir FOLDER."


def _package_advice(report: Report) -> Iterator[str]:
    missing = [about for about in report.packages if about.version is None and "tellapart[" in about.install]
    for install in dict.fromkeys(about.install for about in missing):
        names = " and ".join(about.name for about in missing if about.install == install)
        purpose = next(about.purpose for about in missing if about.install == install)
        yield f"For {purpose} ({names}): {install}"
    vision = next((about for about in report.packages if about.name == "torchvision"), None)
    if vision is not None and vision.imports is False:
        pair = f"torch {_wanted_torch() or 'of the same release'}"
        yield (
            f"torchvision {vision.version} does not import beside torch {report.torch.version}; "
            f"it belongs to {pair}. Install the two together: pip install torch torchvision"
        )


# --- text --------------------------------------------------------------------------------------------------


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
        lines += ["", "Could not be found out"]
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
    yield "Memory", _size(gpu.total_memory)
    yield "Memory in use", f"{_size(gpu.used_memory)}, free {_size(gpu.free_memory)}"
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
    yield "Memory", f"{_size(memory.total)}{limited}, free {_size(memory.free)}"
    yield "Cache folder", f"{disk.cache_dir or 'unknown'}, free {_size(disk.free)} of {_size(disk.total)}"


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


def _size(number: int | None) -> str:
    return "unknown" if number is None else f"{number / GIB:.1f} GiB"
