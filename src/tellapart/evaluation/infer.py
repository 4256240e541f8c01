"""Running a predictor over a set of images: batch by batch, exact to the sample.

A predictor is anything that turns uint8 images [B, height, width, C] into logits [B, K]; formats and devices
cannot be told apart here. Knows nothing of training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tellapart.contract.sides import Size, sides
from tellapart.data.loader import ImageSet
from tellapart.devices import is_out_of_memory
from tellapart.errors import TrainingError

Predict = Callable[[torch.Tensor], torch.Tensor]

# Pixels of a batch beyond which images a second hardly rise, and the bounds of the batch. Measured on a CPU
# with AVX-512, images/s: at 224 pixels 26 in batches of 8, 31 of 32, 30 of 128; at 32 pixels 456 of 8, 627 of 128.
_PIXELS = {"cpu": 64 * 224 * 224}
_PIXELS_ELSEWHERE = 512 * 224 * 224
_SMALLEST, _LARGEST = {"cpu": 32}, {"cpu": 512}


def batch_that_pays(size: Size, device: torch.device) -> int:
    """Return how many images of ``size`` pixels to compute at once on ``device``.

    The largest batch that pays: a larger one needs more memory and is not faster.
    """
    pixels = _PIXELS.get(device.type, _PIXELS_ELSEWHERE)
    low, high = _SMALLEST.get(device.type, 64), _LARGEST.get(device.type, 4096)
    return min(max(pixels // math.prod(sides(size)), low), high)


def collect_logits(
    predict: Predict,
    images: ImageSet,
    positions: npt.NDArray[np.int64] | None = None,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """Return logits float32 [n, K] for the images at ``positions`` (all of them where None), in that order.

    Where memory does not suffice the batch is halved and tried again.
    """
    chosen = np.arange(len(images)) if positions is None else positions
    parts: list[torch.Tensor] = []
    start = 0
    while start < len(chosen):
        batch = chosen[start : start + batch_size]
        try:
            logits = predict(images.batch(batch).pixels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise TrainingError(
                    f"Out of memory in evaluation, with one image at a time. ({error})"
                ) from error
            batch_size = max(1, batch_size // 2)
            continue
        parts.append(logits.float().cpu())
        start += len(batch)
        advance(len(batch))
    return torch.cat(parts) if parts else torch.empty(0, 0)


def measure_latency(predict: Predict, images: ImageSet, calls: int = 30) -> list[float]:
    """Return the time of single-image calls in milliseconds, after three that do not count."""
    times = []
    for call in range(calls + 3):
        image = images.batch(np.array([call % len(images)])).pixels
        started = time.perf_counter()
        predict(image)
        times.append((time.perf_counter() - started) * 1000)
    return times[3:]
