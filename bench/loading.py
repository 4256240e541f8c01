"""Loading alone: JPEG photographs to augmented batches, torchvision's ImageFolder and DataLoader against tellapart.

    python bench/loading.py --data FOLDER [--rounds 5] [--size 224] [--batch-size 32] [--copies 8]

FOLDER has a folder of JPEG files for each class (such as hymenoptera_data/train). Both sides make normalised float
batches of [B, 3, size, size] by RandomResizedCrop and a random flip, from the same files on the same cores, without
any training. With a GPU the batches of both sides end there (the peer's from pinned memory). The peer is ImageFolder
with PIL transforms and a DataLoader with two workers (beside a GPU one for each processor, up to 16), which does the
same work in each epoch; its batches have torch's usual memory order. tellapart's are channels-last, as it trains on
them (``--contiguous``: in the usual order too). tellapart is timed in its first epoch, with an empty cache (looking at
the files, decoding them and writing the store included), and in a later one, with a GPU also with the store resident
there. Each round times all, one after the other; the table has the medians, the median of the rounds' ratios, and the
same of the time that all processors together spent on an image, which other programs disturb less. The page cache is
warm for both.

``--copies N`` reads each file under N names, with a comment of its own in each copy so that no two have the same
content: for the fixed costs of a set of a realistic size. The copies lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import common
from common import fresh
from tellapart import augment, packages
from tellapart.contract import jpeg
from tellapart.data.loader import ImageSet, batches, source_sizes
from tellapart.data.sources import opening
from tellapart.data.stores import images
from tellapart.data.transfer import resident_limit
from tellapart.devices import tune_allocator
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec, DataSpec

packages.prepare_torchvision()
from torchvision import datasets, transforms  # noqa: E402 - torchvision imports only after the line above

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Times = tuple[float, float]  # seconds on the clock, and of all processors
Round = tuple[int, dict[str, Times]]  # images, and the times of each kind of epoch


class Clock:
    """Runs from when it is made; the time of child processes counts once they have ended."""

    def __init__(self) -> None:
        self.started, self.used = time.perf_counter(), self._used()

    @staticmethod
    def _used() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))

    def read(self) -> Times:
        return time.perf_counter() - self.started, self._used() - self.used


def their_epoch(folder: str, size: int, batch_size: int, workers: int) -> Times:
    """Return the times of one epoch of torchvision's, its workers' start included."""
    torch.zeros(1, device=common.device())  # a GPU's start is not loading
    clock = Clock()
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = datasets.ImageFolder(folder, transforms.Compose(steps))
    device, gpu, count = common.device(), common.on_gpu(), 0
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, num_workers=workers, pin_memory=gpu)
    for inputs, labels in loader:
        inputs, _ = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        count += len(inputs)
    common.wait()
    assert count == len(data)
    del loader  # its workers have ended
    return clock.read()


def read(folder: str, size: int, cache: str, mode: str) -> ImageSet:
    """Return the decoded images, from an empty cache or a full one."""
    spec = DataSpec(
        source=folder, format="folder", val_fraction=0, test_fraction=0, cache_dir=cache, cache=mode
    )
    samples = opening.open_source(spec, lambda text: None)
    contract = Preprocessing(size, 3, "crop", "bilinear", 0.875, MEAN, STD, decode="scaled")
    found, bad = images.augmentation_sources(samples, contract, spec)
    assert not bad
    return found


def our_epoch(found: ImageSet, size: int, batch_size: int, epoch: int, channels_last: bool = True) -> int:
    """Make one epoch's batches, as training does; return how many images there were."""
    contract = Preprocessing(size, 3, "crop", "bilinear", 0.875, MEAN, STD, decode="scaled")
    chosen = augment.resolve(AugmentSpec(preset="none", crop="resized", hflip=0.5), size)
    change = augment.Augment(chosen, contract, len(found.samples.classes), channels_last)
    order = np.random.default_rng(epoch).permutation(len(found))
    count, device = 0, common.device()
    for step, batch in batches(found, order, batch_size, device=device):
        batch = batch.to(device)
        generator = torch.Generator().manual_seed(step)
        drawn = change.draw(batch.count, source_sizes(batch), generator)
        count += len(change.apply(batch.images, batch.sizes, drawn))
    common.wait()
    return count


def attempt(times: dict[str, Times], name: str, work: Callable[[], Any]) -> Any:
    """Note the times of ``work`` and return its result; where it fails say so and note nothing."""
    clock = Clock()
    try:
        result = work()
    except Exception as error:
        print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        return None
    times[name] = clock.read()
    return result


def one_round(args: argparse.Namespace, folder: str) -> Round:
    """Return the number of images, and the times of each kind of epoch."""
    times: dict[str, Times] = {}
    peer: dict[str, Times] = {}
    theirs = functools.partial(fresh, their_epoch, folder, args.size, args.batch_size, args.workers)
    if result := attempt(peer, "torchvision", theirs):
        times["torchvision"] = result  # without its process's start
    found: list[ImageSet] = []

    def epoch(number: int) -> int:
        return our_epoch(found[-1], args.size, args.batch_size, number, not args.contiguous)

    with tempfile.TemporaryDirectory() as cache:

        def first() -> int:
            found.append(read(folder, args.size, cache, "on"))
            return epoch(0)

        count = attempt(times, "first epoch", first)
        attempt(times, "later epochs", lambda: epoch(1))
        if common.on_gpu():
            found.append(found[0].on_device(common.device(), resident_limit(common.device())))
            attempt(times, "later, resident", lambda: epoch(1))
        if args.stream:
            found.append(read(folder, args.size, cache, "off"))
            attempt(times, "streamed", lambda: epoch(1))
        found.clear()
    return count, times


def show(args: argparse.Namespace, rounds: list[Round]) -> None:
    """Print the table."""
    count = rounds[0][0]
    decoder = "simplejpeg" if jpeg._decoder() else "Pillow"
    common.introduce(
        f"{count} photographs to {args.size} px, batches of {args.batch_size}, {args.rounds} rounds; tellapart decodes "
        f"by {decoder}"
    )
    print(f"{'':<16}{'images/s':>10}{common.RATIOS}{'ms of processor':>18}{'ratio':>8}")
    for name in dict.fromkeys(name for _, times in rounds for name in times):
        ours = [times[name] for _, times in rounds if name in times]
        both = [
            (times["torchvision"], times[name]) for _, times in rounds if {"torchvision", name} <= set(times)
        ]
        clock, used = (([peer[kind] for peer, _ in both], [us[kind] for _, us in both]) for kind in (0, 1))
        rate, busy = (statistics.median(column) for column in zip(*ours, strict=True))
        print(
            f"{name:<16}{count / rate:>10,.0f}{common.ratios(*clock)}{1000 * busy / count:>18.2f}"
            f"{common.ratios(*used)[:8]}",
            flush=True,
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=common.default_workers(), help="of the DataLoader")
    parser.add_argument("--copies", type=int, default=0, help="of each file, under other names")
    parser.add_argument("--contiguous", action="store_true", help="batches in torch's usual memory order")
    parser.add_argument("--stream", action="store_true", help="also without the cache (--data.cache off)")
    args = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as folder:
        if args.copies:
            args.data = str(common.copies(pathlib.Path(args.data), args.copies, pathlib.Path(folder)))
        one_round(args, args.data)  # warm-up, of the page cache too
        rounds = []
        for number in range(args.rounds):
            rounds.append(one_round(args, args.data))
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
        show(args, rounds)


if __name__ == "__main__":
    main()
