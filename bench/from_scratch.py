"""Compare what small pictures are trained with by default against `fast-cnn` with AdamW, on few images.

    python bench/from_scratch.py --data cifar10 --images 500 --epochs 20 --against 10 --seeds 0 1 2

``--data`` has a folder for each class below train/ and test/. Of train/ the same number of images of each class is
taken, the same ones for every seed; of test/ ``--test`` images. There is no validation split, so the last epoch's
weights are measured. Both sides take turns; the seconds are processor time of the whole call, measuring included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tellapart
from common import introduce, parser

Pair = tuple[np.ndarray, np.ndarray]


def some(folder: Path, count: int) -> Pair:
    """Return ``count`` images in all, as many of each class, and their labels."""
    names = sorted(part.name for part in folder.iterdir() if part.is_dir())
    rng = np.random.default_rng(0)
    pixels, labels = [], []
    for label, name in enumerate(names):
        files = sorted((folder / name).iterdir())
        for row in rng.permutation(len(files))[: count // len(names)]:
            pixels.append(np.asarray(Image.open(files[row]).convert("RGB")))
            labels.append(label)
    return np.stack(pixels), np.array(labels)


def once(
    train: Pair, test: Pair, seed: int, epochs: int | None, changes: dict[str, Any]
) -> tuple[float, float]:
    """Train and measure; return the accuracy and the seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        spec: dict[str, Any] = {
            "seed": seed,
            "data.val_fraction": 0.0,
            "data.cache_dir": f"{folder}/cache",
            "run.dir": f"{folder}/run",
            "run.report": False,
            **({"training.epochs": epochs} if epochs else {}),
            **changes,
        }
        began = time.process_time()
        result = tellapart.train({"train": train, "test": test}, quiet=True, **spec)
        return float(result.metrics["accuracy"]), time.process_time() - began


def main() -> None:
    arguments = parser(__doc__, rounds=None)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--images", type=int, default=500)
    arguments.add_argument("--test", type=int, default=2000)
    arguments.add_argument("--epochs", type=int, default=0, help="of the default; 0: as chosen")
    arguments.add_argument("--against", type=int, default=10, help="epochs of fast-cnn")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = arguments.parse_args()
    introduce()
    train, test = some(given.data / "train", given.images), some(given.data / "test", given.test)
    sides = {
        "default": (given.epochs or None, {}),
        "fast-cnn": (given.against, {"model.name": "fast-cnn"}),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for seed in given.seeds:
        for name, (epochs, changes) in sides.items():
            found[name].append(once(train, test, seed, epochs, changes))
            accuracy, seconds = found[name][-1]
            print(f"{name}, seed {seed}: {accuracy:.2%}, {seconds:.0f} s", flush=True)
    for name, values in found.items():
        accuracy, seconds = (statistics.mean(column) for column in zip(*values, strict=True))
        print(f"{name}: mean {accuracy:.2%}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
