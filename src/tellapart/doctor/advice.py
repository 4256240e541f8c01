"""Advice on the results, in sentences that name flags and commands. Probes nothing itself."""

from __future__ import annotations

from collections.abc import Iterator

from tellapart.doctor.extras import wanted_torch
from tellapart.doctor.report import GIB, Gpu, Report, gibibytes


def advise(report: Report) -> Iterator[str]:
    """Yield sentences, what matters most first."""
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
            "Choose another GPU with --training.device cuda:N."
        )


def _host_advice(report: Report) -> Iterator[str]:
    cpu, memory, disk = report.cpu, report.memory, report.disk
    if cpu.usable is not None and cpu.usable < 4:
        yield (
            f"Only {cpu.usable:g} processor core{'s' * (cpu.usable != 1)} for this process: decoding "
            "photographs will take much of the first epoch; later epochs read the cache."
        )
    if cpu.quota and cpu.logical and report.torch.threads and report.torch.threads > cpu.quota + 0.5:
        yield (
            f"The container may use {cpu.quota:g} cores, but torch would start {report.torch.threads} "
            f"threads: --training.threads {max(1, int(cpu.quota))}"
        )
    if memory.limit and memory.limit < 4 * GIB:
        yield (
            f"The container's memory limit is {gibibytes(memory.limit)}: use a small --training.batch-size, or "
            "raise the limit (docker run --memory 8g)."
        )
    elif memory.free is not None and memory.free < 2 * GIB:
        yield f"Only {gibibytes(memory.free)} of memory free: close programs or lower --training.batch-size."
    if disk.free is not None and disk.free < 5 * GIB:
        yield f"Only {gibibytes(disk.free)} free for the cache ({disk.cache_dir}): set --data.cache-dir FOLDER."


def _package_advice(report: Report) -> Iterator[str]:
    missing = [about for about in report.packages if about.version is None and "tellapart[" in about.install]
    for install in dict.fromkeys(about.install for about in missing):
        names = " and ".join(about.name for about in missing if about.install == install)
        purpose = next(about.purpose for about in missing if about.install == install)
        yield f"For {purpose} ({names}): {install}"
    vision = next((about for about in report.packages if about.name == "torchvision"), None)
    if vision is not None and vision.imports is False:
        pair = f"torch {wanted_torch() or 'of the same release'}"
        yield (
            f"torchvision {vision.version} does not import beside torch {report.torch.version}; "
            f"it belongs to {pair}. Install the two together: pip install torch torchvision"
        )
