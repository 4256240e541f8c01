"""Loading alone: JPEG photographs to augmented batches, torchvision's ImageFolder and DataLoader against tellapart.

    python bench/loading.py --data FOLDER [--rounds 5] [--size 224] [--batch-size 32]

FOLDER has a folder of JPEG files for each class (such as hymenoptera_data/train). Both sides make normalised float
batches of [B, 3, size, size] by RandomResizedCrop and a random flip, from the same files on the same cores, without
any training. The peer is ImageFolder with PIL transforms and a DataLoader with two workers, which does the same
work in each epoch. tellapart is timed in its first epoch, with an empty cache (looking at the files, decoding them
and writing the store included), and in a later one. Each round times all three, one after the other; the table has
the medians and the median of the rounds' ratios. The page cache is warm for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch

import common
from common import fresh
from tellapart import augment, packages
from tellapart.data import images, sources
from tellapart.data.loader import ImageSet, batches, source_sizes
from tellapart.devices import tune_allocator
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec, DataSpec

packages.prepare_torchvision()
from torchvision import datasets, transforms  # noqa: E402 - torchvision imports only after the line above

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def their_epoch(folder: str, size: int, batch_size: int, workers: int) -> float:
    """Return the seconds of one epoch of torchvision's, its workers' start included."""
    started = time.perf_counter()
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, num_workers=workers)
    count = sum(len(inputs) for inputs, _ in loader)
    assert count == len(data)
    return time.perf_counter() - started


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


def our_epoch(found: ImageSet, size: int, batch_size: int, epoch: int) -> int:
    """Make one epoch's batches, as training does; return how many images there were."""
    contract = Preprocessing(size, 3, "crop", "bilinear", 0.875, MEAN, STD, decode="scaled")
    chosen = augment.resolve(AugmentSpec(preset="none", crop="resized", hflip=0.5), size)
    change = augment.Augment(chosen, contract, len(found.samples.classes))
    order = np.random.default_rng(epoch).permutation(len(found))
    count = 0
    for step, batch in batches(found, order, batch_size):
        generator = torch.Generator().manual_seed(step)
        drawn = change.draw(batch.count, source_sizes(batch), generator)
        count += len(change.apply(batch.images, batch.sizes, drawn))
    return count


def one_round(args: argparse.Namespace) -> tuple[int, dict[str, float]]:
    """Return the number of images, and the seconds of each kind of epoch."""
    seconds = {"torchvision": fresh(their_epoch, args.data, args.size, args.batch_size, args.workers)}
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        found = read(args.data, args.size, cache, "on")
        count = our_epoch(found, args.size, args.batch_size, 0)
        seconds["first epoch"] = time.perf_counter() - started
        started = time.perf_counter()
        our_epoch(found, args.size, args.batch_size, 1)
        seconds["later epochs"] = time.perf_counter() - started
        if args.stream:
            found = read(args.data, args.size, cache, "off")
            started = time.perf_counter()
            our_epoch(found, args.size, args.batch_size, 1)
            seconds["streamed"] = time.perf_counter() - started
        del found
    return count, seconds


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--stream", action="store_true", help="also without the cache (--data.cache off)")
    args = parser.parse_args()
    tune_allocator()
    one_round(args)  # warm-up, of the page cache too
    rounds = [one_round(args) for _ in range(args.rounds)]
    count = rounds[0][0]
    common.introduce(
        f"{count} photographs to {args.size} px, batches of {args.batch_size}, {args.rounds} rounds"
    )
    print(f"{'':<14}{'images/s':>10}{'ratio':>8}{'lowest':>8}{'highest':>9}")
    for name in rounds[0][1]:
        ratios = [seconds["torchvision"] / seconds[name] for _, seconds in rounds]
        rate = count / statistics.median(seconds[name] for _, seconds in rounds)
        print(
            f"{name:<14}{rate:>10,.0f}{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}{max(ratios):>9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
