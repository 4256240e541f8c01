"""Evaluation of photographs, images a second: `tellapart evaluate` against the loop of timm's validate.py.

    python bench/evaluate_speed.py --data hymenoptera_data --rounds 5

Both evaluate the same network with the same weights on the same files, from the files to the accuracy:

- timm: `timm.data.create_dataset` and `create_loader` (its evaluation transform, DataLoader workers; beside a GPU with
  its prefetcher and pinned memory), the network in eval and inference mode, fp32, batches of 256 as by default. With
  `--channels-last` as its flag of that name.
- tellapart, cold: an empty cache, so every image is decoded, written to the store and read again.
- tellapart, warm: the store is there, as after training or an earlier evaluation.
- with `--bf16`: the same with `tellapart evaluate --precision bf16`, and timm with `--amp --amp-dtype bfloat16
  --channels-last`.

Runs are interleaved; figures are medians, with the lowest and highest ratio to timm in the same precision. The
networks: ResNet-18 (random weights) and EfficientNet-Lite0, whose ImageNet rows for "ant" and "bee" serve as the head,
so that its accuracy means something.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import common
from common import fresh
from tellapart import artifact
from tellapart.contract import Card
from tellapart.data.sources import opening
from tellapart.data.stores import images as decoded
from tellapart.devices import tune_allocator
from tellapart.evaluation import infer
from tellapart.models import weights, zoo
from tellapart.packages import require
from tellapart.preprocess import Preprocessing
from tellapart.spec import DataSpec

ANT, BEE = 310, 309  # ImageNet's classes
SIZE = 224


def networks(names: list[str]) -> dict[str, torch.nn.Module]:
    """Return the networks with two classes, in the order ants, bees."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        model = zoo.build(zoo.Architecture(name, 2, 3, SIZE))
        if name.endswith("tf_efficientnet_lite0"):
            whole = zoo.Architecture(name, 1000, 3, SIZE)
            source = zoo.build(whole)
            weights.load(source, whole, "efficientnet-lite0")
            state = source.state_dict()
            for key in ("classifier.weight", "classifier.bias"):
                state[key] = state[key][[ANT, BEE]]
            model.load_state_dict(state)
        found[name] = model
    return found


def timm_validate(
    name: str, folder: Path, workers: int, channels_last: bool, bf16: bool
) -> tuple[float, float]:
    """Return (images a second, accuracy) of what timm's validate.py does."""
    device = common.device()
    common.peers_speed(tf32=True)
    data = require("timm.data", "models", "The comparison")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = networks([name])[name].eval().to(device, memory_format=layout)
    common.timed(
        lambda: model(torch.zeros(8, 3, SIZE, SIZE, device=device)), 0, 1
    )  # it has a first batch too
    criterion = torch.nn.CrossEntropyLoss()
    started = time.perf_counter()
    dataset = data.create_dataset("", root=str(folder), split="")
    loader = data.create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=256,
        use_prefetcher=common.on_gpu(),
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=workers,
        crop_pct=0.875,
        pin_memory=common.on_gpu(),
        device=device,
    )
    right, seen, losses = 0, 0, 0.0
    with torch.inference_mode():
        for inputs, targets in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(inputs.contiguous(memory_format=layout))
            losses += criterion(logits, targets).item() * len(targets)
            right += int((logits.argmax(1) == targets).sum())
            seen += len(targets)
    return seen / (time.perf_counter() - started), right / seen


def ours(predictor: artifact.Predictor, folder: Path, cache: Path) -> tuple[float, float]:
    """Return (images a second, accuracy) from the folder to the accuracy, as `tellapart evaluate` gets there."""
    started = time.perf_counter()
    spec = DataSpec(source=str(folder), cache_dir=str(cache), val_fraction=0.0, test_fraction=0.0)
    samples = opening.open_source(spec, lambda text: None)
    images, _ = decoded.evaluation_images(samples, predictor.preprocessing, spec)
    batch_size = infer.batch_that_pays(SIZE, predictor.device)
    logits = infer.collect_logits(predictor, images, batch_size=batch_size)
    right = (logits.argmax(1).numpy() == images.samples.labels).sum()
    return len(images) / (time.perf_counter() - started), right / len(images)


def run(name: str, model: torch.nn.Module, args: argparse.Namespace, scratch: Path) -> None:
    """Measure one network and print its lines."""
    contract = Preprocessing(
        size=SIZE, channels=3, resize="crop", interpolation="bicubic", crop_fraction=0.875,
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    card = Card(zoo.Architecture(name, 2, 3, SIZE), ("ants", "bees"), contract)
    path = scratch / "model.safetensors"
    artifact.save(path, model.state_dict(), card)
    folder, warm = Path(args.data), scratch / "warm"

    def cold(precision: str = "fp32") -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=scratch) as empty:
            return ours(opened(precision), folder, Path(empty))

    def opened(precision: str = "fp32") -> artifact.Predictor:
        return artifact.open_model(path, common.device(), precision)

    def timm(bf16: bool) -> tuple[float, float]:
        return fresh(timm_validate, name, folder, args.workers, args.channels_last or bf16, bf16)

    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "timm": lambda: timm(False),
        "tellapart, cold": cold,
        "tellapart, warm": lambda: ours(opened(), folder, warm),
    }
    if args.bf16:
        ways["timm, bf16"] = lambda: timm(True)
        ways["tellapart, cold, bf16"] = lambda: cold("bf16")
        ways["tellapart, warm, bf16"] = lambda: ours(opened("bf16"), folder, warm)
    for precision in ("fp32", "bf16") if args.bf16 else ("fp32",):
        ours(opened(precision), folder, warm)  # fills the store, and is a warm-up
    found = common.in_turns(ways, args.rounds)
    for way, results in found.items():
        base = found.get("timm, bf16" if way.endswith("bf16") else "timm", [])
        rates, bases = ([rate for rate, _ in side] for side in (results, base))
        print(
            f"{name.removeprefix('timm/'):<23}{way:<23}{statistics.median(rates):>8.1f}{results[0][1]:>10.2%}"
            f"{common.ratios(rates, bases)}",
            flush=True,
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="a folder of photographs: ants/, bees/ (such as …/val)")
    parser.add_argument("--workers", type=int, default=common.default_workers(), help="of timm's DataLoader")
    parser.add_argument("--channels-last", action="store_true", help="for timm too")
    parser.add_argument("--bf16", action="store_true", help="measure both in bf16 too")
    parser.add_argument("--copies", type=int, default=0, help="read each file under so many names")
    parser.add_argument("--models", nargs="+", default=["timm/resnet18", "timm/tf_efficientnet_lite0"])
    args = parser.parse_args()
    tune_allocator()
    common.introduce(f"{args.rounds} rounds; {args.workers} workers for timm")
    print(
        f"{'network':<23}{'way':<23}{'images/s':>8}{'accuracy':>10}{common.RATIOS}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        if args.copies:
            args.data = common.copies(Path(args.data), args.copies, Path(scratch) / "copies")
        for name in args.models:
            try:
                run(name, networks([name])[name], args, Path(scratch))
            except Exception as error:  # the weights may not be there; the other networks go on
                print(f"{name} failed: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
