"""What this machine can do at best: the rates against which the other measurements are to be read.

    python bench/machine.py [--rounds 7]

Matrix products (arithmetic), copies (memory bandwidth, counted once read and once written), and the steps of two
networks with nothing around them: random inputs that are already there, no data, no augmentation, no log. No
training of these networks with torch's own operators can be faster than these steps. Medians of the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import common
from tellapart.devices import plain_kernels, tune_allocator
from tellapart.models import zoo


def seconds(work: Callable[[], object], rounds: int, repeats: int = 1) -> float:
    """Return the median time of one call."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - started) / repeats)
    return statistics.median(times)


def product(dtype: torch.dtype, rounds: int) -> float:
    """Return the rate of a matrix product in GFLOP/s."""
    side = 2048
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / seconds(lambda: a @ b, rounds) / 1e9


def copies(rounds: int) -> float:
    """Return the memory bandwidth of a copy in GB/s."""
    source = torch.randn(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), rounds) / 1e9


def steps(name: str, size: int, batch: int, rounds: int, bf16: bool = False) -> float:
    """Return images a second of bare training steps: forward, loss, backward, SGD with momentum."""
    model = zoo.build(zoo.Architecture(name, 10, 3, size)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    tiny = name == "tutorial-net" and batch < 16
    if not tiny:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    with plain_kernels(tiny):
        return batch / seconds(step, rounds, 200 if tiny else 3)


def main() -> None:
    parser = common.parser(__doc__, 7)
    rounds = parser.parse_args().rounds
    tune_allocator()
    common.introduce(f"{rounds} rounds")
    print(f"matrix product, fp32         {product(torch.float32, rounds):>8,.0f} GFLOP/s")
    print(f"matrix product, bf16         {product(torch.bfloat16, rounds):>8,.0f} GFLOP/s")
    print(f"copy                         {copies(rounds):>8,.1f} GB/s")
    print(f"tutorial-net, batch 4        {steps('tutorial-net', 32, 4, rounds):>8,.0f} images/s, bare steps")
    print(
        f"tutorial-net, batch 128      {steps('tutorial-net', 32, 128, rounds):>8,.0f} images/s, bare steps"
    )
    print(
        f"ResNet-18, 224 px, fp32      {steps('timm/resnet18', 224, 32, rounds):>8,.1f} images/s, bare steps"
    )
    print(
        f"ResNet-18, 224 px, bf16      {steps('timm/resnet18', 224, 32, rounds, True):>8,.1f} images/s, bare steps"
    )


if __name__ == "__main__":
    main()
