"""Running a model over a set of images: batch by batch, every image exactly once.

`run` is the one loop that measures files of every format; `collect_logits` is its counterpart for a network in memory,
which training validates. Formats and devices make no difference here. Knows nothing of training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tellapart.contract import Pixels, answers
from tellapart.contract.sides import Size, sides
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.devices import halved, is_out_of_memory
from tellapart.runtime import Backend, timing

Predict = Callable[[torch.Tensor], torch.Tensor]
Rows = npt.NDArray[np.int64]
T = TypeVar("T")
SAMPLE = 32
"""Images on which logits that were computed in another way must equal the backend's own."""
_CALLS, _WARM_UP = 30, 3  # of single images, for latency

# Pixels in a batch beyond which images per second hardly rise, and the limits of the batch. Measured on a CPU
# with AVX-512, images/s: at 224 pixels 26 in batches of 8, 31 of 32, 30 of 128; at 32 pixels 456 of 8, 627 of 128.
_PIXELS = {"cpu": 64 * 224 * 224}
_PIXELS_ELSEWHERE = 512 * 224 * 224
_SMALLEST, _LARGEST = {"cpu": 32}, {"cpu": 512}


def batch_that_pays(size: Size, device: torch.device) -> int:
    """Return how many images of ``size`` pixels to compute at once on ``device``.

    The largest useful batch: a larger one needs more memory and is not faster.
    """
    return _batch_that_pays(size, device.type)


def _batch_that_pays(size: Size, kind: str) -> int:
    pixels = _PIXELS.get(kind, _PIXELS_ELSEWHERE)
    low, high = _SMALLEST.get(kind, 64), _LARGEST.get(kind, 4096)
    return min(max(pixels // math.prod(sides(size)), low), high)


class Pictures(Protocol):
    """Labelled images that a backend can take. `pixels` leaves out images that cannot be read."""

    def __len__(self) -> int: ...

    @property
    def samples(self) -> Samples:
        """The table of the images."""
        ...

    @property
    def bad(self) -> Mapping[int, str]:
        """The rows that could not be read so far, each with the reason."""
        ...

    def pixels(self, rows: Rows) -> tuple[Rows, Pixels]:
        """Return those of the rows that can be read, and their images: uint8 [n, size, size, C]."""
        ...

    def picture(self, row: int) -> Pixels:
        """Return one image for display: uint8 [H, W, C]."""
        ...


class Stored:
    """Decoded images of a store."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.samples, self.bad = images, images.samples, dict[int, str]()

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Rows) -> tuple[Rows, Pixels]:
        """Return all rows, and their images."""
        pixels: Pixels = self.images.batch(rows).pixels.numpy()
        return rows, pixels

    def picture(self, row: int) -> Pixels:
        """Return an image of the store."""
        return self.images.store.image(int(self.images.rows[row]))


@dataclass(frozen=True)
class Ran:
    """What `run` found: ``rows`` that could be read, the answers for them, and the time taken.

    ``seconds``: the backend's time for all of them, without reading and resizing; ``latencies_ms``: of calls with a
    single image.
    """

    rows: Rows
    answers: answers.Answers
    seconds: float
    latencies_ms: list[float]


def run(
    backend: Backend,
    pictures: Pictures,
    *,
    known: npt.NDArray[np.float32] | None = None,
    advance: Callable[[int], None] = lambda count: None,
    latency: bool = True,
) -> Ran:
    """Return a backend's answers for all images, in their order; ``rows`` is empty if none can be read.

    ``known``: the images' logits computed in a faster way, float32 [N, K]. They are used if the backend, run on a
    sample, gives the same except for rounding; otherwise it runs on all images. Raises ArtifactError, TrainingError.
    """
    count = len(pictures)
    batch_size = _batch_that_pays(backend.card.preprocessing.size, _kind(backend))
    if known is not None and count > SAMPLE:
        rows = np.linspace(0, count - 1, SAMPLE).astype(np.int64)
        sample, few = _over(backend, pictures, rows, batch_size, lambda done: None)
        scale = float(np.abs(sample.logits).max())
        if np.allclose(sample.logits, known[rows], rtol=1e-3, atol=1e-3 * scale):
            advance(count)
            every = answers.of(known, backend.card)
            times = _latencies(backend, few) if latency else []
            return Ran(np.arange(count), every, sample.seconds * count / len(rows), times)
    over, few = _over(backend, pictures, np.arange(count), batch_size, advance)
    told = (
        answers.of(over.logits, backend.card)
        if len(over.rows)
        else answers.unchecked(over.logits, backend.card)
    )
    times = _latencies(backend, few) if latency and len(few) else []
    return Ran(over.rows, told, over.seconds, times)


@dataclass(frozen=True)
class _Over:
    rows: Rows
    logits: npt.NDArray[np.float32]
    seconds: float


def _over(
    backend: Backend, pictures: Pictures, rows: Rows, batch_size: int, advance: Callable[[int], None]
) -> tuple[_Over, Pixels]:
    """Return a backend's logits for rows, and a few images that could be read."""
    watch = timing.Stopwatch()
    few: list[Pixels] = []

    def answer(batch: Rows) -> tuple[Rows, npt.NDArray[np.float32]]:
        good, pixels = pictures.pixels(batch)
        if not len(good):
            return good, np.zeros((0, len(backend.card.classes)), np.float32)
        if sum(map(len, few)) < _CALLS:
            few.append(pixels[:_CALLS].copy())
        with watch:
            return good, backend.logits(pixels)

    parts = in_batches(rows, batch_size, answer, advance)
    images = np.concatenate(few) if few else np.zeros((0, 0, 0, 0), np.uint8)
    found = _Over(
        np.concatenate([good for good, _ in parts]),
        np.concatenate([part for _, part in parts]),
        watch.seconds,
    )
    return found, images


def _kind(backend: Backend) -> str:
    """Return the device that a backend computes on, such as cpu or cuda; cpu if it does not say."""
    return str(getattr(backend, "device", "cpu")).partition(":")[0]


def _latencies(backend: Backend, images: Pixels) -> list[float]:
    """Return the time of calls with single images in milliseconds."""
    turn = itertools.cycle(range(len(images)))

    def call() -> None:
        row = next(turn)
        backend.logits(images[row : row + 1])

    return timing.milliseconds(call, least=_CALLS, warm_up=_WARM_UP)


def collect_logits(
    predict: Predict,
    images: ImageSet,
    positions: Rows | None = None,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """Return logits float32 [n, K] for the images at ``positions`` (None: all of them), in that order.

    If memory runs out, the batch is halved and tried again.
    """
    chosen = np.arange(len(images)) if positions is None else positions
    parts = in_batches(
        chosen, batch_size, lambda batch: predict(images.batch(batch).pixels).float().cpu(), advance
    )
    return torch.cat(parts) if parts else torch.empty(0, 0)


def in_batches(
    rows: Rows, batch_size: int, call: Callable[[Rows], T], advance: Callable[[int], None]
) -> list[T]:
    """Return the results of ``call`` for each batch of rows; if memory runs out, the batch is halved and tried again.

    ``advance`` is called with the size of each batch that is done. Raises TrainingError if one row is too many.
    """
    parts: list[T] = []
    start = 0
    while start < len(rows):
        batch = rows[start : start + batch_size]
        try:
            parts.append(call(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            batch_size = halved(min(batch_size, len(batch)), error, " in evaluation")
            continue
        start += len(batch)
        advance(len(batch))
    return parts
