"""Full fine-tuning of ResNet-18 at 224 pixels on photographs, batch 32: images a second in steady state.

    python bench/finetune_speed.py --data hymenoptera_data --rounds 5 [--peers PYTHON]

Every side trains all layers of a ResNet-18 with two classes with SGD on the same files, each with its own usual
augmentation (random resized crop, flip, and what else its reference script has by default), and is measured from the
first step after a warm-up: loading, augmentation, forward, backward and update.

- tellapart: its loop from a warm store, with what its probe chooses on this machine (printed), and in fp32.
- timm: `create_loader` with train.py's defaults, timm's model and `create_optimizer_v2`.
- torchvision: the classification reference's transforms, DataLoader and loop.
- with --peers, in the environment of that Python: fastai, lightning, ultralytics, transformers
  (bench/peers/finetune_*.py), those that are installed there.

Runs are interleaved; figures are medians, and the ratio is tellapart's median over the side's, round by round.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from common import Silent, fresh
from tellapart.data import sources
from tellapart.devices import tune_allocator
from tellapart.packages import require
from tellapart.spec import Spec, update
from tellapart.training import loop, probe, setup
from tellapart.training.distributed import Processes

BATCH, SIZE, WARM_UP = 32, 224, 3
PEERS = ("fastai", "lightning", "ultralytics", "transformers")
Measure = Callable[[], float]


def timed(step: Callable[[], Any], steps: int) -> float:
    """Return images a second over ``steps`` steps, after the warm-up."""
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return BATCH * steps / (time.perf_counter() - started)


def endless(loader: Any) -> Iterator[Any]:
    for _ in itertools.count():
        yield from loader


def tellapart_ways(data: str, cache: str, steps: int, compiling: str) -> dict[str, Measure]:
    """Return the ways to run tellapart: as the probe chooses in a long run, and fp32."""
    changes = {
        "data.source": data,
        "data.cache_dir": cache,
        "model.name": "timm/resnet18",
        "model.finetune": "full",
        "input.size": SIZE,
        "training.batch_size": BATCH,
        "training.optimizer": "sgd",
        "training.lr": 0.001,
        "training.epochs": 100,
        "speed.compile": compiling,
    }
    spec = update(Spec(), changes)
    processes = Processes(0, 1, torch.device("cpu"))
    prepared = setup.prepare(spec, sources.open_source(spec.data, lambda text: None), lambda count: None)
    # Whole batches only: an epoch's smaller last one would count as one.
    whole = prepared.train.select(np.arange(len(prepared.train) // BATCH * BATCH))
    prepared = dataclasses.replace(prepared, train=whole)
    chosen = probe.choose(prepared, setup.build_model(prepared)[0], processes, print)
    plain = probe.choose(
        dataclasses.replace(prepared, spec=update(prepared.spec, {"speed.probe": False})),
        setup.build_model(prepared)[0],
        processes,
        print,
    )

    def way(ready: setup.Prepared) -> Measure:
        model = setup.build_model(ready)[0]
        trainer = loop.Trainer(setup.plan(ready, model, processes), processes, Path(cache), Silent())
        step = trainer.steps_at()
        return lambda: timed(lambda: step(0.001), steps)

    return {"tellapart": way(chosen), "tellapart, fp32": way(plain)}


def timm_way(folder: Path, workers: int, steps: int) -> Measure:
    """Return timm's training loop, with train.py's defaults for the CPU."""
    timm = require("timm", "models", "The comparison")
    data, optim = require("timm.data", "models", "It"), require("timm.optim", "models", "It")
    loader = data.create_loader(
        data.create_dataset("", root=str(folder), is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        interpolation="random",
        color_jitter=0.4,
        hflip=0.5,
        num_workers=workers,
        pin_memory=False,
        persistent_workers=True,
    )
    model = timm.create_model("resnet18", num_classes=2).train()
    optimizer = optim.create_optimizer_v2(model, opt="sgd", lr=0.001, momentum=0.9, weight_decay=2e-5)
    return loop_of(model, optimizer, loader, steps)


def torchvision_way(folder: Path, workers: int, steps: int) -> Measure:
    """Return torchvision's classification reference."""
    vision = require("torchvision", "models", "The comparison")
    transforms = require("torchvision.transforms", "models", "It")
    datasets = require("torchvision.datasets", "models", "It")
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, antialias=True),
            transforms.RandomHorizontalFlip(0.5),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            normalise,
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folder), change),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    model = vision.models.resnet18(num_classes=2).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    return loop_of(model, optimizer, loader, steps)


def loop_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Any, steps: int) -> Measure:
    """Return the loop that both reference scripts have at their core."""
    criterion, batches = torch.nn.CrossEntropyLoss(), None

    def step() -> None:
        images, targets = next(batches)
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # both keep a running mean

    def measure() -> float:
        nonlocal batches
        batches = endless(loader)
        return timed(step, steps)

    return measure


REFERENCES: dict[str, Callable[[Path, int, int], Measure]] = {
    "timm": timm_way,
    "torchvision": torchvision_way,
}


def reference(side: str, folder: Path, workers: int, steps: int) -> float:
    """Return images a second of a reference loop."""
    return REFERENCES[side](folder, workers, steps)()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="photographs with train/ and val/ in it")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2, help="of the others' DataLoaders")
    parser.add_argument(
        "--compile", choices=["off", "on", "auto"], default="off", help="tellapart's torch.compile"
    )
    parser.add_argument("--peers", metavar="PYTHON", help="Python of an environment with the peers")
    args = parser.parse_args()
    tune_allocator()
    common.introduce(f"{args.rounds} rounds of {args.steps} steps; {args.workers} workers for the others")
    with tempfile.TemporaryDirectory() as cache:
        ways = tellapart_ways(args.data, cache, args.steps, args.compile)
        train = Path(args.data) / "train"
        for side in REFERENCES:
            ways[side] = functools.partial(fresh, reference, side, train, args.workers, args.steps)
        options = {"data": Path(args.data).resolve(), "batch": BATCH, "size": SIZE}
        options |= {"steps": args.steps, "workers": args.workers}
        for peer in PEERS if args.peers else ():
            if common.installed(args.peers, peer):
                ways[peer] = functools.partial(common.peer, args.peers, f"finetune_{peer}", **options)
            else:
                print(f"{peer} is not installed for {args.peers}: left out")
        found = common.in_turns(ways, args.rounds)
    print(f"\n{'side':<18}{'images/s':>9}{'tellapart is':>14}{'lowest':>8}{'highest':>9}")
    for name, rates in found.items():
        ratios = [us / them for us, them in zip(found["tellapart"], rates, strict=True)]
        print(
            f"{name:<18}{statistics.median(rates):>9.1f}{statistics.median(ratios):>13.2f}x"
            f"{min(ratios):>8.2f}{max(ratios):>9.2f}"
        )


if __name__ == "__main__":
    main()
