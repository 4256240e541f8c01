"""Loading alone: JPEG photographs to augmented batches, torchvision's ImageFolder and DataLoader against tellapart.

    python bench/loading.py --data FOLDER [--rounds 5] [--size 224] [--batch-size 32] [--copies 8]

FOLDER has a folder of JPEG files for each class (such as hymenoptera_data/train). Both sides make normalised float
batches of [B, 3, size, size] by RandomResizedCrop and a random flip, from the same files on the same cores, without
any training. The peer is ImageFolder with PIL transforms and a DataLoader with two workers, which does the same
work in each epoch; its batches have torch's usual memory order. tellapart's are channels-last, as it trains on them
(``--contiguous``: in the usual order too). tellapart is timed in its first epoch, with an empty cache (looking at the
files, decoding them and writing the store included), and in a later one. Each round times all three, one after the
other; the table has the medians, the median of the rounds' ratios, and the same of the time that all processors
together spent on an image, which other programs disturb less. The page cache is warm for both.

``--copies N`` reads each file under N names, with a comment of its own in each copy so that no two have the same
content: for the fixed costs of a set of a realistic size. The copies lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import statistics
import tempfile
import time

import numpy as np
import torch

import common
from common import fresh
from tellapart import augment, packages
from tellapart.contract import jpeg
from tellapart.data import images, sources
from tellapart.data.loader import ImageSet, batches, source_sizes
from tellapart.devices import tune_allocator
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec, DataSpec

packages.prepare_torchvision()
from torchvision import datasets, transforms  # noqa: E402 - torchvision imports only after the line above

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Times = tuple[float, float]  # seconds on the clock, and of all processors


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


def copies(source: pathlib.Path, count: int, target: pathlib.Path) -> None:
    """Write each JPEG file of ``source`` ``count`` times, with a comment of its own in each."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        content = path.read_bytes()
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            comment = f"copy {number}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / f"{path.stem}-{number}.jpg").write_bytes(content[:2] + segment + content[2:])


def their_epoch(folder: str, size: int, batch_size: int, workers: int) -> Times:
    """Return the times of one epoch of torchvision's, its workers' start included."""
    clock = Clock()
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, num_workers=workers)
    count = sum(len(inputs) for inputs, _ in loader)
    assert count == len(data)
    del loader  # its workers have ended
    return clock.read()


def read(folder: str, size: int, cache: str, mode: str) -> ImageSet:
    """Return the decoded images, from an empty cache or a full one."""
    spec = DataSpec(
        source=folder, format="folder", val_fraction=0, test_fraction=0, cache_dir=cache, cache=mode
    )
    samples = sources.open_source(spec, lambda text: None)
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
    count = 0
    for step, batch in batches(found, order, batch_size):
        generator = torch.Generator().manual_seed(step)
        drawn = change.draw(batch.count, source_sizes(batch), generator)
        count += len(change.apply(batch.images, batch.sizes, drawn))
    return count


def one_round(args: argparse.Namespace, folder: str) -> tuple[int, dict[str, Times]]:
    """Return the number of images, and the times of each kind of epoch."""
    times = {"torchvision": fresh(their_epoch, folder, args.size, args.batch_size, args.workers)}

    def epoch(found: ImageSet, number: int) -> int:
        return our_epoch(found, args.size, args.batch_size, number, not args.contiguous)

    with tempfile.TemporaryDirectory() as cache:
        clock = Clock()
        found = read(folder, args.size, cache, "on")
        count = epoch(found, 0)
        times["first epoch"] = clock.read()
        clock = Clock()
        epoch(found, 1)
        times["later epochs"] = clock.read()
        if args.stream:
            found = read(folder, args.size, cache, "off")
            clock = Clock()
            epoch(found, 1)
            times["streamed"] = clock.read()
        del found
    return count, times


def show(args: argparse.Namespace, rounds: list[tuple[int, dict[str, Times]]]) -> None:
    """Print the table."""
    count = rounds[0][0]
    decoder = "simplejpeg" if jpeg._decoder() else "Pillow"
    common.introduce(
        f"{count} photographs to {args.size} px, batches of {args.batch_size}, {args.rounds} rounds; tellapart decodes "
        f"by {decoder}"
    )
    print(
        f"{'':<14}{'images/s':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}{'ms of processor':>18}{'ratio':>8}"
    )
    for name in rounds[0][1]:
        clock, used = ([times[name][kind] for _, times in rounds] for kind in (0, 1))
        peer, peer_used = ([times["torchvision"][kind] for _, times in rounds] for kind in (0, 1))
        ratios = [theirs / ours for theirs, ours in zip(peer, clock, strict=True)]
        less = statistics.median(theirs / ours for theirs, ours in zip(peer_used, used, strict=True))
        print(
            f"{name:<14}{count / statistics.median(clock):>10,.0f}{statistics.median(ratios):>8.2f}"
            f"{min(ratios):>8.2f}{max(ratios):>9.2f}{1000 * statistics.median(used) / count:>18.2f}{less:>8.2f}",
            flush=True,
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--copies", type=int, default=0, help="of each file, under other names")
    parser.add_argument("--contiguous", action="store_true", help="batches in torch's usual memory order")
    parser.add_argument("--stream", action="store_true", help="also without the cache (--data.cache off)")
    args = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as folder:
        if args.copies:
            copies(pathlib.Path(args.data), args.copies, pathlib.Path(folder))
        data = folder if args.copies else args.data
        one_round(args, data)  # warm-up, of the page cache too
        rounds = [one_round(args, data) for _ in range(args.rounds)]
    show(args, rounds)


if __name__ == "__main__":
    main()
