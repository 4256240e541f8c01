"""Does the input keep up with the accelerator? Training of a network against its bare steps, and the memory of both.

    python bench/gpu_input.py --data FOLDER [--copies 40] [--batch 256] [--steps 20] [--rounds 3] [--compile]
    python bench/gpu_input.py --data FOLDER --only memory [--networks timm/resnet50:224:256 …]

FOLDER has train/CLASS/*.jpg; --copies N reads each file under N names. Everything runs in bf16 (--precision) on the
GPU where there is one. The sides, in turns, each built anew and freed again so that its memory is its own:

- bare: forward, loss, backward and update of the same network and optimizer, channels-last and autocast alike, on one
  synthetic batch that lies on the device, with cuDNN's search for the fastest kernels and no loop around: the ceiling.
- resident: tellapart's own loop from a warm store, with the images on the card where they fit.
- mapped: the same with --speed.no-on-device: read from the store, copied from pinned memory beside the computation.
- streamed: the same with --data.cache off: every image is decoded while the network computes.

The last three crop at random (RandomResizedCrop) and flip. The rate is that of steps within an epoch, after a warm-up;
what is computed once for an epoch (validation, a checkpoint) is left out. Memory is the most that torch had allocated,
and reserved, on the card; "-" without one. "memory" trains each of a few networks for some steps in fp32 and bf16.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import common
from tellapart.data.sources import opening
from tellapart.devices import AMP_DTYPES, release, tune_allocator
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.speed.compiled import Compiled

INPUTS: dict[str, dict[str, Any]] = {
    "resident": {},
    "mapped": {"speed.on_device": False},
    "streamed": {"data.cache": "off"},
}
NETWORKS = (
    "timm/resnet18:224:256",
    "timm/resnet50:224:128",
    "timm/resnet50:224:256",
    "timm/vit_small_patch16_224:224:256",
    "whitened-cnn:32:2000",
)
MIB = 2**20
Found = tuple[
    float, float, float
]  # images a second; MiB allocated and reserved at most, NaN where nobody knows


def prepared(args: argparse.Namespace, data: Path, cache: Path, **changes: Any) -> setup.RunData:
    """Return the photographs with the augmentation that all sides have, of which the first run fills the store."""
    chosen = {
        "data.source": str(data),
        "data.cache_dir": str(cache),
        "data.val_fraction": 0.0,
        "data.test_fraction": 0.0,
        "model.name": args.model,
        "input.size": args.size,
        "augment.preset": "none",
        "augment.crop": "resized",
        "augment.hflip": 0.5,
        "training.batch_size": args.batch,
        "training.optimizer": "sgd",
        "training.lr": 1e-6,  # the weights do not matter, but must stay finite
        "training.epochs": 1,
        "training.precision": args.precision,
        "training.accumulate": 1,
        "speed.compile": "on" if args.compile else "off",
        "speed.cuda_graphs": args.cuda_graphs,
        "speed.kernel_search": "on",  # as in a long run
        **changes,
    }
    spec = update(Spec(), chosen)
    return setup.prepare(spec, opening.open_source(spec.data, lambda text: None), lambda count: None)


def measured(work: Callable[[], float]) -> Found:
    """Return the rate that ``work`` finds, and the most memory of the card meanwhile; frees what it leaves."""
    device = common.device()
    release(device)
    if common.on_gpu():
        torch.cuda.reset_peak_memory_stats()
    try:
        rate = work()
        if not common.on_gpu():
            return rate, float("nan"), float("nan")
        return rate, torch.cuda.max_memory_allocated() / MIB, torch.cuda.max_memory_reserved() / MIB
    finally:
        torch._dynamo.reset()
        gc.collect()
        release(device)


def training(ready: setup.RunData, steps: int, warm_up: int, folder: Path) -> float:
    """Return images a second of tellapart's loop."""
    return common.training_rate(common.trainer(ready, steps + warm_up, folder), steps, warm_up)


def bare(ready: setup.RunData, steps: int, warm_up: int, folder: Path) -> float:
    """Return images a second of bare steps of the network and optimizer that the loop has."""
    alone = dataclasses.replace(ready, resolution=ready.resolution.asking({"speed.on_device": False}))
    trainer = common.trainer(alone, 1, folder)
    trainer.set_stage()  # all layers train
    plan, device, contract = trainer.plan, common.device(), ready.contract
    batch = ready.spec.training.batch_size
    images = torch.randn(batch, contract.channels, contract.size, contract.size, device=device)
    if plan.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % len(ready.classes)
    model = Compiled(plan.model, print) if ready.spec.speed.compile == "on" else plan.model
    step = common.bare_step(
        model.train(), plan.optimizer, images, labels, AMP_DTYPES[plan.spec.training.precision]
    )
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        return batch * steps / common.timed(step, steps, warm_up)
    finally:
        torch.backends.cudnn.benchmark = before


def memory(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"


def speed(args: argparse.Namespace, data: Path, scratch: Path) -> None:
    """Measure the sides in turns and print their table."""
    sets = {
        name: prepared(args, data, scratch, **changes)
        for name, changes in INPUTS.items()
        if name in args.sides
    }
    first = next(iter(sets.values()), None) or prepared(args, data, scratch)
    count = len(first.train)
    size = sum(first.train.store.heights.astype(int) * first.train.store.widths) * first.contract.channels
    print(f"{count} photographs, {size / MIB:,.0f} MiB decoded", flush=True)
    plain = {"steps": args.steps, "warm_up": args.warm_up, "folder": scratch}
    ways: dict[str, Callable[[], Found]] = {"bare": lambda: measured(lambda: bare(first, **plain))}
    for name, ready in sets.items():
        ways[name] = lambda ready=ready: measured(lambda: training(ready, **plain))
    found = common.in_turns(ways, args.rounds)
    ceiling = [rate for rate, *_ in found.get("bare", [])]
    print(f"\n{args.model}, {args.size} px, batch {args.batch}, {args.precision}, compile {args.compile}")
    print(f"{'side':<12}{'images/s':>10}   of bare:{common.RATIOS}{'MiB':>10}{'reserved':>10}")
    for name, results in found.items():
        rates = [rate for rate, *_ in results]
        most = (memory(max(column)) for column in list(zip(*results, strict=True))[1:])
        print(
            f"{name:<12}{statistics.median(rates):>10,.1f}{'':<11}{common.ratios(rates, ceiling)}"
            + "".join(f"{value:>10}" for value in most),
            flush=True,
        )


def memories(args: argparse.Namespace, data: Path, scratch: Path) -> None:
    """Train each network for a few steps in each precision; print its rate and memory."""
    print(
        f"\n{'network, training':<32}{'size':>6}{'batch':>7}{'':>6}{'images/s':>10}{'MiB':>9}{'reserved':>10}",
        flush=True,
    )
    for network in args.networks:
        name, size, batch = network.split(":")
        args.model, args.size, args.batch = name, int(size), int(batch)
        for args.precision in ("fp32", "bf16"):
            ready = prepared(args, data, scratch, **{"speed.on_device": False})
            way = {name: lambda: measured(lambda: training(ready, args.steps, args.warm_up, scratch))}  # noqa: B023
            for rate, allocated, reserved in common.in_turns(way, 1).get(name, []):
                print(
                    f"{name:<32}{size:>6}{batch:>7}{args.precision:>6}{rate:>10,.1f}{memory(allocated):>9}"
                    f"{memory(reserved):>10}",
                    flush=True,
                )


def main() -> None:
    parser = common.parser(__doc__, 3)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/*.jpg")
    parser.add_argument("--copies", type=int, default=0, help="read each file under so many names")
    parser.add_argument("--model", default="timm/resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", choices=list(AMP_DTYPES), default="bf16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile, for the bare steps too")
    parser.add_argument(
        "--cuda-graphs", choices=["auto", "on", "off"], default="auto", help="tellapart's --speed.cuda-graphs"
    )
    parser.add_argument(
        "--sides", nargs="*", choices=list(INPUTS), default=list(INPUTS), help="beside the bare steps"
    )
    parser.add_argument("--only", choices=("speed", "memory"), help="instead of both")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="NAME:SIZE:BATCH")
    args = parser.parse_args()
    tune_allocator()
    common.introduce(f"{args.rounds} rounds of {args.steps} steps after {args.warm_up}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch), args.data / "train"
        if args.copies:
            data = common.copies(data, args.copies, folder / "copies")
        if args.only != "memory":
            speed(args, data, folder)
        if args.only != "speed":
            args.steps, args.warm_up = min(args.steps, 5), min(args.warm_up, 2)
            memories(args, data, folder)


if __name__ == "__main__":
    main()
