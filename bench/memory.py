"""Peak memory of training on many images: a bound that does not grow with their number.

    python bench/memory.py [--images 200000] [--size 64] [--folder DIR]

Generates a folder of small JPEG files (unless DIR has one already), trains one epoch of simple-cnn on it in a
process of its own, and prints that process's peak resident memory (VmHWM, sampled as anonymous and file-backed
parts every 50 ms: file-backed pages are the system's cache and are given back when others need memory) beside
the size of the decoded images. Run it with two numbers of images to see that the peak hardly grows.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import common

CLASSES = 10


def generate(folder: Path, count: int, size: int) -> None:
    """Write ``count`` different JPEG files in ten classes, below train/, and a hundredth of that below val/."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", count // 100)):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True, exist_ok=True)
        base = [rng.integers(0, 255, (size // 8, size // 8, 3), np.uint8) for _ in range(CLASSES)]
        for index in range(number):
            small = base[index % CLASSES] // 2 + rng.integers(0, 128, base[0].shape, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((size, size)).save(buffer, "JPEG", quality=80)
            (folder / split / f"class{index % CLASSES}" / f"{index:06d}.jpg").write_bytes(buffer.getvalue())


def watch(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return the largest anonymous and the largest whole resident memory of a process, in MiB."""
    anonymous = whole = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        values = {
            line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmHWM"))
        }
        anonymous = max(anonymous, int(values.get("RssAnon", 0)) // 1024)
        whole = max(whole, int(values.get("VmHWM", 0)) // 1024)
        time.sleep(0.05)
    return anonymous, whole


def main() -> None:
    parser = common.parser(__doc__, rounds=None)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    common.introduce()
    print(
        f"{'images':>9}{'decoded MiB':>13}{'peak anonymous MiB':>20}{'peak resident MiB':>19}{'seconds':>9}"
    )
    for count in args.images:
        with tempfile.TemporaryDirectory(dir=args.folder or None) as scratch:
            generate(Path(scratch) / "data", count, args.size)
            command = [
                sys.executable,
                "-m",
                "tellapart",
                "train",
                f"{scratch}/data",
                "--run.dir",
                f"{scratch}/run",
            ]
            command += ["--model.name", "simple-cnn", "--input.size", "32", "--training.epochs", "1"]
            command += ["--training.batch-size", "256", "--augment.preset", "photo", "--run.no-report"]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{scratch}/cache"}
            started = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            anonymous, whole = watch(process)
            seconds = time.monotonic() - started
            stored = sum(f.stat().st_size for f in Path(scratch).glob("cache/tellapart/decoded/*/pixels.bin"))
            print(
                f"{count:>9,}{stored >> 20:>13,}{anonymous:>20,}{whole:>19,}{seconds:>9.0f}  exit {process.returncode}",
                flush=True,
            )


if __name__ == "__main__":
    main()
