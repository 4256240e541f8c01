"""What this machine can do at best: the rates against which the other measurements are to be read.

    python bench/machine.py [--rounds 7]

Matrix products (arithmetic), copies (memory bandwidth, counted once read and once written; beside a GPU also to it
and from it, in pinned memory, counted once), and the steps of networks with nothing around them: random inputs that
are already there, no data, no augmentation, no log. No training of these networks with torch's own operators can be
faster than these steps. Medians of the rounds. All of it on the GPU where there is one, with cuDNN's search for the
fastest kernels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

import common
from tellapart.devices import plain_kernels, tune_allocator
from tellapart.models import zoo


def seconds(work: Callable[[], object], rounds: int, repeats: int = 1) -> float:
    """Return the median time of one call."""
    return statistics.median(common.timed(work, repeats, int(not turn)) / repeats for turn in range(rounds))


def _many() -> int:
    """Return how many quick calls to time together: beside a GPU several, for it takes them up one by one."""
    return 10 if common.on_gpu() else 1


def product(dtype: torch.dtype, rounds: int, tf32: bool = False) -> float:
    """Return the rate of a matrix product in GFLOP/s."""
    side = 8192 if common.on_gpu() else 2048
    a, b = (torch.randn(side, side, device=common.device()).to(dtype) for _ in "ab")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * side**3 / seconds(lambda: a @ b, rounds, _many()) / 1e9


def copy(rounds: int, source: str, target: str) -> float:
    """Return the bandwidth of a copy between devices in GB/s, in both directions where it is the same memory."""
    held, given = (
        torch.ones(64 * 2**20, device=name, pin_memory=name == "cpu" and common.on_gpu())
        for name in (source, target)
    )
    times = 2 if source == target else 1
    return times * held.nbytes / seconds(lambda: given.copy_(held, non_blocking=True), rounds, _many()) / 1e9


def steps(name: str, size: int, batch: int, rounds: int, bf16: bool = False) -> float:
    """Return images a second of bare training steps: forward, loss, backward, SGD with momentum."""
    device = common.device()
    model = zoo.build(zoo.Architecture(name, 10, 3, size)).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device) % 10
    tiny = device.type == "cpu" and name == "tutorial-net" and batch < 16
    if not tiny:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    step = common.bare_step(model, optimizer, images, labels, torch.bfloat16 if bf16 else None)
    with plain_kernels(tiny):
        return batch / seconds(step, rounds, 200 if tiny else 10 * _many() if name == "tutorial-net" else 3)


def main() -> None:
    parser = common.parser(__doc__, 7)
    rounds = parser.parse_args().rounds
    tune_allocator()
    torch.backends.cudnn.benchmark = True
    common.introduce(f"{rounds} rounds")
    gpu, here = common.on_gpu(), common.device().type

    def show(what: str, unit: str, measure: Callable[..., float], *arguments: Any) -> None:
        for value in common.in_turns({what: lambda: measure(*arguments)}, 1).get(what, []):
            print(f"{what:<34}{value:>12,.{0 if value > 1000 else 1}f} {unit}", flush=True)

    show("matrix product, fp32", "GFLOP/s", product, torch.float32, rounds)
    if gpu:
        show("matrix product, TF32", "GFLOP/s", product, torch.float32, rounds, True)
    show("matrix product, bf16", "GFLOP/s", product, torch.bfloat16, rounds)
    for ends in [(here, here), ("cpu", "cuda"), ("cuda", "cpu")] if gpu else [(here, here)]:
        show(f"copy, {ends[0]} to {ends[1]}", "GB/s", copy, rounds, *ends)
    for batch in (4, 128):
        show(f"tutorial-net, batch {batch}", "images/s, bare steps", steps, "tutorial-net", 32, batch, rounds)
    for name in ("resnet18", "resnet50") if gpu else ("resnet18",):
        for precision in ("fp32", "bf16"):
            batch, words = (256 if gpu else 32), "images/s, bare steps"
            what = f"{name}, 224 px, batch {batch}, {precision}"
            show(what, words, steps, f"timm/{name}", 224, batch, rounds, precision == "bf16")


if __name__ == "__main__":
    main()
