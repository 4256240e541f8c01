"""Whether a larger input would help: the finished model at another size, on the same validation images.

A network that accepts a larger input is run on the files decoded for it: networks often gain at test from objects that
are larger than in training (Touvron et al. 2019), and what they gain without being trained for it is the least that a
larger input brings. One that does not gain so, or accepts no other size, is run on its own images with the finest
detail removed: what it does not miss, more of it would not help.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tellapart import artifact
from tellapart.contract import Pixels, Preprocessing, sides
from tellapart.data.loader import ImageSet
from tellapart.data.stores.decoded import pixels as decoded
from tellapart.evaluation.advice import SIZE, Missing, NoHelp, Sized
from tellapart.evaluation.infer import batch_that_pays
from tellapart.preprocess import BadImage, crop_box, resize
from tellapart.runtime.eager import EagerBackend
from tellapart.spec import DataSpec

LARGER, SMALLER = 1.25, 0.75
MOST_IMAGES, LEAST_IMAGES = 400, 50
_LOOK = 12  # images that show whether the files have more pixels than the input
_BYTES = 1 << 28  # that the images may take at the larger size

_TOO_LONG = Missing(SIZE, "a second size would take too long")

Right = npt.NDArray[np.bool_]


def measure(backend: EagerBackend, val: ImageSet, spec: DataSpec, seconds: float) -> Sized | Missing | NoHelp:
    """Return how the model answers the same images at two sizes, or why that is not known, or of no use."""
    begun = time.monotonic()
    contract = backend.card.preprocessing
    larger = _enlarged(contract)
    each = math.prod(larger.sides) * contract.channels * np.dtype(contract.depth).itemsize
    order = np.random.default_rng(1).permutation(len(val))[: min(MOST_IMAGES, _BYTES // each)]
    kept, bigger = list[int](), list[Pixels]()
    for tried, row in enumerate(order, 1):
        if tried > _LOOK and time.monotonic() - begun > 0.3 * seconds:
            break
        if (image := _source(val, int(row), contract, spec)) is not None and _covers(image, larger):
            kept.append(int(row))
            bigger.append(resize(image, larger))
        if tried == _LOOK and len(kept) < tried // 2:
            return NoHelp(
                SIZE, f"most files have hardly more pixels than the input ({sides.words(contract.size)})"
            )
    if len(kept) < LEAST_IMAGES:
        return Missing(SIZE, f"in the time, {len(kept)} files with more pixels could be looked at")
    rows = np.array(kept, np.int64)
    images = val.batch(rows).pixels.cpu().numpy()
    truth = val.samples.labels[rows]
    left = seconds - (time.monotonic() - begun)
    first, count = _right(backend.predictor, images, truth, left * 0.35)
    if count < LEAST_IMAGES:
        return _TOO_LONG
    second = _at_larger(backend, larger, np.stack(bigger[:count]), truth[:count], left * 0.65)
    if second is not None and len(second) >= LEAST_IMAGES:
        sized = _sized(first[: len(second)], second, sides.words(contract.size), sides.words(larger.size))
        if sized.difference > 0:
            return sized
    if contract.depth != "uint8":
        return Missing(SIZE, "a larger one did not do better, and images are not of 8 bits")
    fewer, done = _right(backend.predictor, _blurred(images[:count]), truth[:count], left * 0.35)
    if done < LEAST_IMAGES:
        return _TOO_LONG
    return _sized(first[:done], fewer, sides.words(contract.size), f"{SMALLER:g}", reduced=True)


def _enlarged(contract: Preprocessing) -> Preprocessing:
    """Return the contract with larger sides, in steps that networks can halve a few times."""
    found = []
    for side in contract.sides:
        step = 32 if side >= 128 else 8
        found.append(max(side + step, round(side * LARGER / step) * step))
    return dataclasses.replace(contract, size=sides.of(*found))


def _source(val: ImageSet, row: int, contract: Preprocessing, spec: DataSpec) -> Pixels | None:
    """Return an image in its own size; None if it cannot be read any more."""
    samples = val.samples
    try:
        image = decoded(
            samples.read(row), contract.channels, spec.max_pixels, None, contract.range, contract.depth
        )
    except (OSError, BadImage):
        return None
    return image if samples.boxes is None else crop_box(image, samples.boxes[row])


def _covers(image: Pixels, contract: Preprocessing) -> bool:
    """Return whether an image has at least the pixels that the contract asks for, on its short side."""
    return bool(min(image.shape[:2]) >= min(contract.sides))


def _at_larger(
    backend: EagerBackend,
    contract: Preprocessing,
    images: Pixels,
    truth: npt.NDArray[np.int64],
    seconds: float,
) -> Right | None:
    """Return which of the images are answered right at a larger size; None if the network takes no other size."""
    predictor = backend.predictor
    card = dataclasses.replace(backend.card, preprocessing=contract)
    other = artifact.Predictor(predictor.model, card, predictor.device)
    try:
        return _right(other, images, truth, seconds)[0]
    except Exception:  # of any kind: the network may be anybody's
        return None


def _right(
    predict: Callable[[torch.Tensor], torch.Tensor],
    images: Pixels,
    truth: npt.NDArray[np.int64],
    seconds: float,
) -> tuple[Right, int]:
    """Return which images are answered right, as many of them as the time allows, and how many these are."""
    begun, found = time.monotonic(), []
    size = min(32, batch_that_pays(sides.of(*images.shape[1:3]), torch.device("cpu")))
    for start in range(0, len(images), size):
        logits = predict(torch.from_numpy(images[start : start + size])).numpy()
        found.append(logits.argmax(1) == truth[start : start + size])
        done = start + len(found[-1])
        if (time.monotonic() - begun) * (done + size) / done > seconds:
            break
    right = np.concatenate(found)
    return right, len(right)


def _blurred(images: Pixels) -> Pixels:
    """Return images made smaller and large again, uint8 [n, H, W, C]."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = _resampled(values, [max(1, round(side * SMALLER)) for side in images.shape[1:3]])
    large = _resampled(small, list(images.shape[1:3]))
    found: Pixels = large.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found


def _resampled(values: torch.Tensor, size: list[int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)


def _sized(first: Right, second: Right, size: str, other: str, reduced: bool = False) -> Sized:
    counts = (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
    )
    return Sized(size, other, counts, reduced)
