"""Decoding alone: threads of this process against other processes, into a store and as a stream.

    python bench/decoding.py --data FOLDER [--rounds 5] [--images 2000] [--size 224] [--workers 2] [--whole]

FOLDER has a folder of images for each class. Each round times both, one after the other, with as many workers: until
the first image is there (processes have to start), a pass that writes the decoded images to a file, as a store is
built, and a pass in batches of 64, as what does not fit is streamed. Images are what training takes random crops from
(a short side of 1.15 times ``--size``; ``--whole``: not scaled, which loads no torch), or with ``--evaluation`` of the
contract's size. The table has medians of the clock and of the processors' time (this process's, and that of the
processes that decode). Needs Linux, whose /proc tells the time of processes that live.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import common
from tellapart.data.loader import ImageSet, batches
from tellapart.data.samples import Samples
from tellapart.data.sources import opening
from tellapart.data.stores import building, workers
from tellapart.data.stores.cache import ImageStore
from tellapart.data.stores.decoded import AsContracted, AsSource, Decode
from tellapart.data.stores.images import SOURCE_MARGIN
from tellapart.data.stores.streaming import StreamedStore
from tellapart.devices import tune_allocator
from tellapart.preprocess import MAX_PIXELS, Preprocessing
from tellapart.spec import DataSpec

KINDS = {"threads": workers.Threads, "processes": workers.Processes}
BATCH = 64
COLUMNS = ("start s", "store /s", "ours us", "theirs us", "stream /s", "ours us", "theirs us")


def theirs() -> float:
    """Return the seconds that this process's living children have computed."""
    used = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used += int(fields[11]) + int(fields[12]) if int(fields[1]) == os.getpid() else 0
    return used / os.sysconf("SC_CLK_TCK")


class Clock:
    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time(), theirs()

    def read(self, count: int) -> tuple[float, float, float]:
        """Return images a second, and microseconds of ours and of theirs for each."""
        now = time.perf_counter(), time.process_time(), theirs()
        clock, ours, other = (b - a for a, b in zip(self.started, now, strict=True))
        return count / clock, 1e6 * ours / count, 1e6 * other / count


def once(kind: str, samples: Samples, decode: Decode, count: int) -> tuple[float, ...]:
    """Return a round's figures, as in COLUMNS."""
    who, began = KINDS[kind](count), time.perf_counter()
    for first in [who.submit(samples, decode, [row]) for row in range(2 * count)]:
        first.result()
    start = time.perf_counter() - began
    with tempfile.TemporaryFile() as file:
        clock = Clock()
        columns = building.scan(samples, decode, who, write=file.write)
        stored = clock.read(len(samples))
    good = np.flatnonzero(columns["heights"])
    store = StreamedStore(ImageStore(channels=3, **columns), samples, decode, who)
    clock = Clock()
    for _ in batches(ImageSet(samples.select(good), store, good), np.arange(len(good)), BATCH):
        pass
    return start, *stored, *clock.read(len(good))


def table(folder: Path, count: int) -> Samples:
    spec = DataSpec(source=str(folder), format="folder", val_fraction=0, test_fraction=0)
    samples = opening.open_source(spec, lambda text: None)
    return samples.select(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=workers.processors())
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--evaluation", action="store_true")
    args: argparse.Namespace = parser.parse_args()
    tune_allocator()
    samples = table(args.data, args.images)
    contract = Preprocessing(args.size, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3, decode="scaled")
    short = 1 << 20 if args.whole else round(args.size * SOURCE_MARGIN)
    decode: Decode = AsSource(3, short, MAX_PIXELS, reduced=not args.whole)
    if args.evaluation:
        decode = AsContracted(contract, MAX_PIXELS)
    common.introduce(f"{len(samples)} images, {args.rounds} rounds; {args.workers} workers")
    ways = {kind: lambda kind=kind: once(kind, samples, decode, args.workers) for kind in KINDS}
    print(f"{'':12}" + "".join(f"{name:>11}" for name in COLUMNS))
    for kind, rounds in common.in_turns(ways, args.rounds).items():
        print(f"{kind:12}" + "".join(f"{statistics.median(v):>11.4g}" for v in zip(*rounds, strict=True)))


if __name__ == "__main__":
    main()
