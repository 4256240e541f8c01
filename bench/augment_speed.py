"""Augmentation: images a second of `Augment.apply` and of torchvision's transforms v2 on the same images.

    python bench/augment_speed.py [--threads 1] [--rounds 9]

torchvision's transforms run image by image on uint8 tensors, as in a worker of a DataLoader that has its images
decoded already; each side has the same number of threads. Images lie in memory; bench/loading.py measures loading
as a whole. The two take turns; a ratio is one round's, the median of rounds counts.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import common
from tellapart import packages
from tellapart.augment import Augment, resolve
from tellapart.devices import tune_allocator
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec

packages.prepare_torchvision()

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES: tuple[tuple[str, int, tuple[int, int], int], ...] = (  # preset, size, source, batch
    ("photo", 224, (258, 344), 32),
    ("tutorial", 224, (258, 344), 32),
    ("strong", 224, (258, 344), 32),
    ("cifar", 32, (32, 32), 128),
    ("tutorial", 32, (32, 32), 128),
    ("light", 28, (28, 28), 128),
    ("strong", 32, (32, 32), 128),
)


def contract(size: int) -> Preprocessing:
    """Return ImageNet's normalisation at ``size``."""
    return Preprocessing(size, 3, "crop", "bilinear", 1.0, MEAN, STD)


def peer(spec: AugmentSpec, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the same changes as transforms of torchvision, for a uint8 image [C, H, W]."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if spec.crop == "resized":
        steps.append(v2.RandomResizedCrop(size, spec.crop_scale, spec.crop_ratio, antialias=True))
    elif spec.crop == "pad":
        mode = "reflect" if spec.padding_mode == "reflect" else "constant"
        steps.append(v2.RandomCrop(size, padding=spec.crop_padding, padding_mode=mode))
    if spec.hflip:
        steps.append(v2.RandomHorizontalFlip(spec.hflip))
    if spec.policy == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    if spec.brightness:
        steps.append(v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if spec.erasing:
        steps.append(v2.RandomErasing(spec.erasing))
    return v2.Compose(steps)


def alternate(
    ours: Callable[[], None], theirs: Callable[[], None], rounds: int
) -> tuple[float, float, list[float]]:
    """Return both sides' median seconds and the ratio (theirs / ours) of each round."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, other, [b / a for a, b in pairs]


def seconds(work: Callable[[], None]) -> float:
    """Return how long ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(name: str, images: int, times: tuple[float, float, list[float]]) -> None:
    """Print one line of the table."""
    ours, theirs, ratios = times
    print(
        f"{name:<28}{images / theirs:>16,.0f}{images / ours:>16,.0f}{statistics.median(ratios):>8.1f}"
        f"{min(ratios):>8.1f}{max(ratios):>9.1f}",
        flush=True,
    )


def augmentation(preset: str, size: int, source: tuple[int, int], batch: int, rounds: int) -> None:
    """Measure one preset."""
    spec = resolve(AugmentSpec(preset=preset), size)  # type: ignore[arg-type]
    spec = dataclasses.replace(spec, mixup=0.0, cutmix=0.0)  # a batch's affair on both sides
    augment = Augment(spec, contract(size), 10, channels_last=True)
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (batch, 3, 9, 9)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, source, mode="bicubic").clamp(0, 255)
    images_NHWC = smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    separate = list(images_NHWC.permute(0, 3, 1, 2).contiguous())
    sizes = torch.tensor([source] * batch) if augment.needs_large_source else None
    generator, transform = torch.Generator().manual_seed(0), peer(spec, size)

    def ours() -> None:
        augment.apply(images_NHWC, sizes, augment.draw(batch, sizes, generator))

    def theirs() -> None:
        torch.stack([transform(image) for image in separate])

    row(f"{preset} {size}px batch {batch}", batch, alternate(ours, theirs, rounds))


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__, 9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tune_allocator()
    common.introduce(f"{args.threads} threads for each side, {args.rounds} rounds")
    print(f"{'':<28}{'torchvision img/s':>16}{'ours img/s':>15}{'ratio':>8}{'lowest':>8}{'highest':>9}")
    for case in CASES:
        augmentation(*case, args.rounds)


if __name__ == "__main__":
    main()
