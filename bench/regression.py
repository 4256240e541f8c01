"""Has tellapart become slower? Two commits of this repository, run in turns on the same work, compared by ratio.

    python bench/regression.py BASE [HEAD] [--rounds 5] [--allowed 1.15]

BASE and HEAD (by default the working tree) are anything that git takes for a commit. Each is checked out into a
folder of its own and run with this environment's packages: its command line, in processes of its own, with an empty
cache. The works are generated from a fixed seed, so that nothing needs to be fetched. A ratio is HEAD's time over
BASE's in one round; the exit code is 1 where the median of a work's ratios is above --allowed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import introduce, parser, pictures

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--run.no-report", "--run.no-tensorboard", "--training.epochs", "2"]
WORKS: dict[str, list[str]] = {
    "help": ["--help"],
    "digits": ["train", "digits", *QUICK],
    "small images, batches of 4": ["train", "{small}", "--recipe", "tutorial", *QUICK],
    "small images, fast-cnn": ["train", "{small}", *QUICK],
    "photographs": ["train", "{photographs}", "--model.name", "fast-cnn", "--input.size", "128", *QUICK],
}


def checkout(commit: str, folder: Path) -> Path:
    """Return a folder with the sources of ``commit``, or this working tree where it is empty."""
    if not commit:
        return ROOT / "src"
    packed = subprocess.run(["git", "-C", ROOT, "archive", commit, "src"], check=True, capture_output=True)
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder / "src"


def seconds(sources: Path, words: list[str], scratch: Path) -> float:
    """Return how long a command of these sources takes."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        more = (
            ["--run.dir", f"{folder}/run", "--data.cache-dir", f"{folder}/cache"] if "train" in words else []
        )
        command = [sys.executable, "-m", "tellapart", *words, *more]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {sources}:\n{done.stderr[-1000:]}")
    return took


def main() -> int:
    options = parser(__doc__)
    options.add_argument("base")
    options.add_argument("head", nargs="?", default="")
    options.add_argument("--allowed", type=float, default=1.15, help="highest ratio that passes")
    options.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    args = options.parse_args()
    introduce(f"{args.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        places = {
            "small": pictures(scratch / "small", 2000, (32, 32), "png"),
            "photographs": pictures(scratch / "photographs", 200, (400, 300), "jpg"),
        }
        base, head = checkout(args.base, scratch / "base"), checkout(args.head, scratch / "head")
        print(
            f"{'work':<28}{args.base[:9] + ' s':>12}{(args.head or 'tree')[:9] + ' s':>12}{'ratio':>8}",
            flush=True,
        )
        slower = False
        for work in args.works:
            filled = [word.format(**places) for word in WORKS[work]]
            rounds = [
                (seconds(base, filled, scratch), seconds(head, filled, scratch))
                for _ in range(args.rounds + 1)
            ]
            rounds = rounds[1:]  # the first compiles and reads the disk
            ratio = statistics.median(ours / theirs for theirs, ours in rounds)
            before, now = (statistics.median(side) for side in zip(*rounds, strict=True))
            slower = slower or ratio > args.allowed
            print(
                f"{work:<28}{before:>12.2f}{now:>12.2f}{ratio:>8.2f}{'  slower' * (ratio > args.allowed)}",
                flush=True,
            )
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
