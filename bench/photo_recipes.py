"""What progressive resizing and leaving out learned images save on photographs at 224 px, and what they cost.

    python bench/photo_recipes.py --data FOLDER [--rounds 3] [--epochs 10] [--size 224]

FOLDER holds train/CLASS/* and val/CLASS/*. Each variant is the same full fine-tuning of EfficientNet-Lite0 with
ImageNet weights but for the named flags; the variants take turns, one seed a round, each `tellapart train` in a
process of its own with a store that is already filled, on the GPU where there is one. Accuracy is on val, of the last
epoch and, beside it, of the best. Seconds are those of the epochs alone; processor seconds, of the whole process, swing
less on a shared machine. --variants chooses some; what is not an option here goes to tellapart.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
        raise RuntimeError(f"tellapart failed:\n{done.stderr[-3000:]}")
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
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args, extra = parser.parse_known_args()  # what is not ours goes to tellapart
    common.introduce(f"{args.rounds} rounds; {args.epochs} epochs at {args.size} px")
    with tempfile.TemporaryDirectory() as work:

        def way(flags: list[str]) -> Callable[[], Row]:
            seeds = itertools.count()
            return lambda: run(args, [*flags, *extra], next(seeds), f"{work}/cache", work)

        run(args, [*extra, "--training.epochs", "1"], 0, f"{work}/cache", work)  # fills the store
        found = common.in_turns({name: way(VARIANTS[name]) for name in args.variants}, args.rounds)
    print(
        "\nMedians; of the accuracies, means. Ratios: of the seconds to those of plain, and of the processors'."
    )
    print(f"{'variant':<28}{'epochs s':>9}{common.RATIOS}{'cpu':>8}{'last':>9}{'best':>9}")
    plain = found.get("plain", [])
    for name, rows in found.items():
        wall, cpu = (
            common.ratios([getattr(row, clock) for row in rows], [getattr(row, clock) for row in plain])
            for clock in ("seconds", "processor")
        )
        last, best = (statistics.mean(getattr(row, field) for row in rows) for field in ("last", "best"))
        seconds = statistics.median(row.seconds for row in rows)
        print(f"{name:<28}{seconds:>9.1f}{wall}{cpu[:8]}{last:>9.2%}{best:>9.2%}", flush=True)


if __name__ == "__main__":
    main()
