"""Full fine-tuning of a ResNet at 224 pixels on photographs: images a second in steady state.

    python bench/finetune_speed.py --data hymenoptera_data --rounds 5 [--peers PYTHON]
    python bench/finetune_speed.py --data hymenoptera_data --model timm/resnet50 --batch 256 --copies 40 [--sides …]

Every side trains all layers of the network (ResNet-18) with SGD on the same files in batches of 32, each with its own
usual augmentation (random resized crop, flip, and what else its reference script has by default), on the GPU where
there is one, and is measured from the first step after a warm-up: loading, augmentation, forward, backward, update.

- tellapart: its loop from a warm store, with the precision that autotuning chooses on this machine (printed), and in
  the others.
- timm: `create_loader` with train.py's defaults (beside a GPU its prefetcher), timm's model, `create_optimizer_v2`.
- torchvision: the classification reference's transforms, DataLoader and loop.
- with --peers, in the environment of that Python: fastai, lightning, ultralytics, transformers
  (bench/peers/finetune_*.py), those that are installed there.

The others compute in fp32, as they do by default; with --bf16 (the default beside a GPU) each but fastai and
ultralytics runs a second time with bf16 autocast and channels-last. Beside a GPU their DataLoaders have a worker for
each processor, up to 16, and pinned memory. Runs are interleaved; figures are medians, and the ratios are tellapart's
rate over the side's, round by round: as it runs by itself, and in the precision that the side has.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import common
from common import fresh
from tellapart.data.sources import opening
from tellapart.devices import tune_allocator
from tellapart.packages import require
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.speed import autotune

SIZE = 224
PEERS = ("fastai", "lightning", "ultralytics", "transformers")
IN_BF16 = ("timm", "torchvision", "lightning", "transformers")
Measure = Callable[[], float]


@dataclass(frozen=True)
class Setting:
    """What a reference loop is run with; ``data`` is a folder of a folder of photographs for each class."""

    data: Path
    model: str  # as torchvision calls it
    batch: int
    workers: int
    steps: int
    bf16: bool = False


def tellapart_ways(args: argparse.Namespace, cache: str) -> dict[str, Measure]:
    """Return the ways to run tellapart: as autotuning chooses in a long run, and in each precision."""
    changes = {
        "data.source": str(args.data),
        "data.cache_dir": cache,
        "model.name": args.model,
        "model.finetune": "full",
        "input.size": SIZE,
        "training.batch_size": args.batch,
        "training.optimizer": "sgd",
        "training.lr": 0.001,
        "training.epochs": 2000,
        "speed.compile": args.compile,
    }
    spec = update(Spec(), changes)
    samples = opening.open_source(spec.data, lambda text: None)
    prepared = setup.prepare(spec, samples, lambda count: None)
    model = setup.build_model(prepared)[0]
    chosen = autotune.choose(
        dataclasses.replace(prepared, train=common.repeated(prepared.train, 32 * args.batch)),
        model,
        Processes(0, 1, common.device()),
    )
    print(*chosen.resolution.choices, sep="\n", flush=True)

    def way(changes: dict[str, Any]) -> Measure:
        ready = dataclasses.replace(prepared, resolution=chosen.resolution.asking(changes))
        trainer = common.trainer(ready, args.steps + common.WARM_UP, Path(cache))
        return lambda: common.training_rate(trainer, args.steps)

    own = chosen.spec.training.precision
    ways = {"tellapart": way({}), f"tellapart, {own}": None}
    for precision in ("fp32", "bf16") if args.bf16 else ("fp32",):
        if precision != own:
            ways[f"tellapart, {precision}"] = way({"training.precision": precision, "training.accumulate": 1})
    return ways


def timm_way(setting: Setting) -> Measure:
    """Return timm's training loop, with train.py's defaults."""
    timm = require("timm", "models", "The comparison")
    data, optim = require("timm.data", "models", "It"), require("timm.optim", "models", "It")
    common.peers_speed(tf32=True)
    loader = data.create_loader(
        data.create_dataset("", root=str(setting.data), is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=setting.batch,
        is_training=True,
        use_prefetcher=common.on_gpu(),
        interpolation="random",
        color_jitter=0.4,
        hflip=0.5,
        num_workers=setting.workers,
        pin_memory=common.on_gpu(),
        persistent_workers=True,
        device=common.device(),
    )
    model = placed(timm.create_model(setting.model, num_classes=2), setting)
    optimizer = optim.create_optimizer_v2(model, opt="sgd", lr=0.001, momentum=0.9, weight_decay=2e-5)
    return loop_of(model, optimizer, loader, setting)


def torchvision_way(setting: Setting) -> Measure:
    """Return torchvision's classification reference."""
    vision = require("torchvision", "models", "The comparison")
    transforms = require("torchvision.transforms", "models", "It")
    datasets = require("torchvision.datasets", "models", "It")
    common.peers_speed()
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
        datasets.ImageFolder(str(setting.data), change),
        batch_size=setting.batch,
        shuffle=True,
        num_workers=setting.workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=common.on_gpu(),
    )
    model = placed(getattr(vision.models, setting.model)(num_classes=2), setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    return loop_of(model, optimizer, loader, setting)


def placed(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """Return the network on the device, ready to train."""
    layout = torch.channels_last if setting.bf16 else torch.preserve_format
    return model.to(common.device(), memory_format=layout).train()


def endless(loader: Any) -> Iterator[Any]:
    if not len(loader):
        raise ValueError("there is not one whole batch of photographs; give --copies")
    for _ in itertools.count():
        yield from loader


def loop_of(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Any, setting: Setting
) -> Measure:
    """Return the loop that both reference scripts have at their core."""
    criterion, batches, device = torch.nn.CrossEntropyLoss(), endless(loader), common.device()
    layout = torch.channels_last if setting.bf16 else torch.preserve_format

    def step() -> None:
        images, targets = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.bf16):
            loss = criterion(model(images.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # both keep a running mean

    return lambda: setting.batch * setting.steps / common.timed(step, setting.steps)


REFERENCES: dict[str, Callable[[Setting], Measure]] = {"timm": timm_way, "torchvision": torchvision_way}


def reference(side: str, setting: Setting) -> float:
    """Return images a second of a reference loop."""
    return REFERENCES[side](setting)()


def others(args: argparse.Namespace) -> dict[str, Measure]:
    """Return the other sides, those with bf16 beside their own."""
    ways: dict[str, Measure] = {}
    name = args.model.removeprefix("timm/")
    setting = Setting(args.data / "train", name, args.batch, args.workers, args.steps)
    options = {"data": args.data.resolve(), "model": name, "batch": args.batch, "size": SIZE}
    options |= {"steps": args.steps, "workers": args.workers}
    for side in args.sides:
        if side in PEERS and not (args.peers and common.installed(args.peers, side)):
            print(f"{side} is not installed for --peers {args.peers or ''}: left out")
            continue
        for bf16 in (False, True) if args.bf16 and side in IN_BF16 else (False,):
            words = f"{side}, bf16" if bf16 else side
            if side in REFERENCES:
                ways[words] = functools.partial(
                    fresh, reference, side, dataclasses.replace(setting, bf16=bf16)
                )
            else:
                ways[words] = functools.partial(
                    common.peer, args.peers, f"finetune_{side}", **options, bf16=bf16
                )
    return ways


def main() -> None:
    parser = common.parser(__doc__)
    gpu = common.on_gpu()
    parser.add_argument("--data", type=Path, required=True, help="photographs with train/ and val/ in it")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--model", default="timm/resnet18", help="timm/NAME, which torchvision has too")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--copies", type=int, default=0, help="read each file under so many names")
    parser.add_argument(
        "--workers", type=int, default=common.default_workers(), help="of the others' DataLoaders"
    )
    parser.add_argument("--sides", nargs="*", default=[*REFERENCES, *PEERS], help="of the others; all")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=gpu, help="the others too")
    parser.add_argument(
        "--compile", choices=["off", "on", "auto"], default="off", help="tellapart's torch.compile"
    )
    parser.add_argument("--peers", metavar="PYTHON", help="Python of an environment with the peers")
    args = parser.parse_args()
    tune_allocator()
    common.introduce(
        f"{args.model}, batches of {args.batch}; {args.rounds} rounds of {args.steps} steps; {args.workers} workers "
        "for the others"
    )
    with tempfile.TemporaryDirectory() as scratch:
        if args.copies:
            args.data = common.copies(args.data, args.copies, Path(scratch) / "copies")
        ways = tellapart_ways(args, scratch) | others(args)
        same = next(name for name, way in ways.items() if way is None)  # as autotuning has chosen
        found = common.in_turns({name: way for name, way in ways.items() if way}, args.rounds)
    found[same] = found.get("tellapart", [])
    print(f"\n{'':<20}{'':>9}  tellapart is, times:     in the same precision:")
    print(f"{'side':<20}{'images/s':>9}{common.RATIOS}  {common.RATIOS}")
    for name, rates in found.items():
        like = found.get("tellapart, bf16" if name.endswith("bf16") else "tellapart, fp32", [])
        if name == same or not rates:
            continue
        print(
            f"{name:<20}{statistics.median(rates):>9.1f}{common.ratios(found[same], rates)}  "
            f"{common.ratios(like, rates) if name != 'tellapart' else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
