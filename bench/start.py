"""How long tellapart takes to start: its help, its import, and the first training step on the embedded digits.

    python bench/start.py [--rounds 9]

Each is a process of its own, timed from before it starts: `tellapart --help` to its end, `import tellapart` (that of
an empty Python taken off), and `tellapart train digits` to the end of the first step of the optimizer, reading the
data and building everything included. The targets are 0.3, 0.1 and 4 seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

import common

FIRST_STEP = """
import os, sys
from tellapart import cli
from tellapart.training import step
take = step.Stepper.take
def once(*args, **kwargs):
    take(*args, **kwargs)
    os._exit(0)
step.Stepper.take = once
sys.exit(cli.main(["train", "digits", "--run.dir", sys.argv[1]]) or 1)
"""


def seconds(words: list[str]) -> float:
    """Return how long a command takes; raises where it fails."""
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = common.parser(__doc__, 9)
    args = parser.parse_args()
    found: dict[str, list[float]] = {
        "tellapart --help": [],
        "import tellapart": [],
        "first step on digits": [],
    }
    for _ in range(args.rounds + 1):
        found["tellapart --help"].append(seconds([sys.executable, "-m", "tellapart", "--help"]))
        empty = seconds([sys.executable, "-c", "pass"])
        found["import tellapart"].append(seconds([sys.executable, "-c", "import tellapart"]) - empty)
        with tempfile.TemporaryDirectory() as folder:
            found["first step on digits"].append(seconds([sys.executable, "-c", FIRST_STEP, f"{folder}/run"]))
    common.introduce(f"{args.rounds} rounds")
    print(f"{'':<22}{'median s':>10}{'lowest':>8}{'highest':>9}")
    for name, times in found.items():
        times = times[1:]  # the first reads the disk
        print(f"{name:<22}{statistics.median(times):>10.2f}{min(times):>8.2f}{max(times):>9.2f}")


if __name__ == "__main__":
    main()
