"""What progressive resizing and leaving out learned images save on photographs at 224 px, and what they cost.

    python bench/photo_recipes.py --data FOLDER [--rounds 3] [--epochs 10] [--size 224]

FOLDER holds train/CLASS/* and val/CLASS/*. Each variant is the same full fine-tuning of EfficientNet-Lite0 with
ImageNet weights but for the named flags; the variants take turns, one seed a round, each `tellapart train` in a
process of its own with a store that is already filled. Accuracy is on val, of
the last epoch and, beside it, of the best. Seconds are those of the epochs alone; processor seconds, of the whole
process, swing less on a shared machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import common

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "start-size 128": ["--training.start-size", "128"],
    "start-size 160": ["--training.start-size", "160"],
    "prune 0.5": ["--training.prune", "0.5"],
    "start-size 128, prune 0.5": ["--training.start-size", "128", "--training.prune", "0.5"],
}


class Row(NamedTuple):
    seconds: float
    processor: float
    last: float
    best: float


def run(args: argparse.Namespace, flags: list[str], seed: int, cache: str, work: str) -> Row:
    folder = Path(work) / f"run-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "tellapart", "train", str(args.data), "--json", "--seed", str(seed)]
    command += ["--data.cache-dir", cache, "--run.dir", str(folder), "--input.size", str(args.size)]
    command += ["--model.name", "timm/tf_efficientnet_lite0", "--model.weights", "efficientnet-lite0"]
    command += ["--model.finetune", "full", "--training.epochs", str(args.epochs), *flags]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"tellapart failed:\n{done.stderr[-3000:]}")
    json.loads(done.stdout)  # one object and nothing else
    with open(folder / "metrics.csv", newline="") as stream:
        values: dict[str, list[float]] = {}
        for name, value, _ in csv.reader(stream):
            if name in ("seconds", "val/accuracy"):
                values.setdefault(name, []).append(float(value))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    accuracies = values["val/accuracy"]
    return Row(sum(values["seconds"]), processor, accuracies[-1], max(accuracies))


def main() -> None:
    parser = common.parser(__doc__, 3)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    args, extra = parser.parse_known_args()  # what is not ours goes to tellapart
    common.introduce(f"{args.rounds} rounds; {args.epochs} epochs at {args.size} px")
    rows: dict[str, list[Row]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as work:
        cache = f"{work}/cache"
        run(args, ["--training.epochs", "1", *extra], 0, cache, work)  # fills the store
        for seed in range(args.rounds):
            for name, flags in VARIANTS.items():
                rows[name].append(run(args, [*flags, *extra], seed, cache, work))
                print(f"seed {seed}  {name:<28}{rows[name][-1]}", flush=True)
    print("\nMedians; of the accuracies, means.")
    print(f"{'variant':<28}{'epochs s':>9}{'ratio':>7}{'cpu ratio':>10}{'last':>9}{'best':>9}")
    for name, measured in rows.items():
        middle = statistics.median
        wall = middle(row.seconds / plain.seconds for row, plain in zip(measured, rows["plain"], strict=True))
        cpu = middle(
            row.processor / plain.processor for row, plain in zip(measured, rows["plain"], strict=True)
        )
        last, best = (statistics.mean(getattr(row, field) for row in measured) for field in ("last", "best"))
        seconds = middle(row.seconds for row in measured)
        print(f"{name:<28}{seconds:>9.1f}{wall:>7.2f}{cpu:>10.2f}{last:>9.2%}{best:>9.2%}")


if __name__ == "__main__":
    main()
