"""From decoded images to batches: which rows, in which order, for which process.

Knows nothing of augmentation, models or losses.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.samples import Samples
from tellapart.data.stores.cache import ImageStore
from tellapart.data.stores.streaming import StreamedStore
from tellapart.data.transfer import Transfer, exclusive
from tellapart.devices import put
from tellapart.preprocess import Images, as_tensor

Store = ImageStore | StreamedStore
WINDOW_BYTES = 1 << 20  # of small images in memory that are read for several steps together


@dataclass(frozen=True)
class ImageSet:
    """Samples with their decoded images: row i of the table is row ``rows[i]`` of the store."""

    samples: Samples
    store: Store
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ImageSet:
        """Return the subset that ``chosen`` (mask or indices) selects."""
        return ImageSet(self.samples.select(chosen), self.store, self.rows[chosen])

    def on_device(self, device: torch.device, limit: int) -> ImageSet:
        """Return the set with its images on ``device`` if they need at most ``limit`` bytes, otherwise itself."""
        if isinstance(self.store, StreamedStore) or not limit:
            return self
        return dataclasses.replace(self, store=self.store.on_device(device, limit))

    def batch(self, chosen: npt.NDArray[np.int64], rank: int = 0, world: int = 1) -> RawBatch:
        """Return process ``rank``'s contiguous slice of the images and labels at the positions ``chosen``."""
        count = len(chosen)
        ours, filler = _share(count, rank, world)
        rows = self.rows[chosen]
        images = self.store.batch(rows[ours])
        samples, places = self.samples, chosen[ours]
        labels = (
            torch.from_numpy(samples.labels[places])
            if samples.targets is None
            else torch.from_numpy(samples.targets[places]).float()
        )
        return RawBatch(images, labels, self.store.sizes(rows), ours.start, count, filler, positions=chosen)

    def expect(self, chosen: npt.NDArray[np.int64], rank: int = 0, world: int = 1) -> None:
        """Say that `batch` will be asked for these images next."""
        if len(chosen):
            self.store.expect(self.rows[chosen][_share(len(chosen), rank, world)[0]])


def _share(count: int, rank: int, world: int) -> tuple[slice, bool]:
    """Return process ``rank``'s slice of a batch, and False; if it would be empty, a neighbour's image, and True."""
    start, stop = -(-count * rank // world), -(-count * (rank + 1) // world)
    return (slice(start - 1, stop), True) if start == stop else (slice(start, stop), False)


class Window:
    """The images of several small steps, read together: what is the same for each step is computed once for all.

    images: [N, H, W, C].
    """

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self._made: torch.Tensor | None = None

    def part(self, rows: slice, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return rows of ``make(images)``, which is called the first time only."""
        if self._made is None:
            self._made = make(self.images)
        return self._made[rows]


@dataclass(frozen=True)
class RawBatch:
    """One process's slice of a step's global batch.

    images: [B, H, W, C], uint8 or float32 by the contract's depth, or a `Ragged` if they differ in size; labels: int64
    [B], or float32 [B, K], 0 or 1, if an image can have several; sizes: int64 [count, 2],
    height and width of every image of the global batch, or None if each fills the canvas; start: index of the
    first image in the global batch; count: size of the global batch; filler: whether the batch is too small for
    all processes and this one's image does not count; weights: float32 [B], how much each image's loss counts, or
    None if all count 1; positions: int64 [count], index of every image of the global batch in its set; epoch: in
    which the batch is used, counted from 0; window: the `Window` whose rows ``within`` the images are, if several
    steps were read together.
    """

    images: Images
    labels: torch.Tensor
    sizes: torch.Tensor | None
    start: int
    count: int
    filler: bool = False
    weights: torch.Tensor | None = None
    positions: npt.NDArray[np.int64] | None = None
    epoch: int = 0
    window: Window | None = None
    within: slice | None = None

    @property
    def ours(self) -> npt.NDArray[np.int64]:
        """Indices of this process's images in their set, int64 [B]."""
        assert self.positions is not None
        return self.positions[self.start : self.start + len(self.labels)]

    @property
    def pixels(self) -> torch.Tensor:
        """The images as one tensor, [B, H, W, C]; smaller ones are in the upper left of a common canvas."""
        return as_tensor(self.images)

    def to(self, device: torch.device) -> RawBatch:
        """Return the batch on ``device`` (sizes stay on the CPU, where augmentation draws)."""
        parts = (
            (self.images, self.labels) if self.weights is None else (self.images, self.labels, self.weights)
        )
        if all(tensor.device == device for tensor in parts):
            return self
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=put(self.labels, device),
            weights=None if self.weights is None else put(self.weights, device),
        )


def source_sizes(batch: RawBatch) -> torch.Tensor:
    """Return height and width of every image of the global batch, int64 [count, 2] on the CPU."""
    if batch.sizes is not None:
        return batch.sizes
    return torch.tensor(batch.images.shape[1:3]).expand(batch.count, 2)


def batches(
    images: ImageSet,
    order: npt.NDArray[np.int64],
    batch_size: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    epoch: int = 0,
    device: torch.device | None = None,
) -> Iterator[tuple[int, RawBatch]]:
    """Yield (step in epoch, this process's slice of the global batch on ``device``), from ``first_step`` on.

    The last batch is smaller if the order does not divide evenly. If reading involves the disk, decoding, or
    a copy to a GPU, the next batch (of a stream: the next few) is read by a thread while this one is used.
    """
    starts = range(first_step * batch_size, len(order), batch_size)
    transfer = Transfer(device)

    # A thread that reads ahead must not use the GPU while a CUDA graph is recorded, which holds the same lock. Decoding
    # does not touch the GPU, so it runs without the lock unless the store's images are there.
    def load(start: int) -> tuple[int, RawBatch]:
        with exclusive() if transfer.needed and images.store.on_gpu else contextlib.nullcontext():
            batch = images.batch(order[start : start + batch_size], rank, world)
        with exclusive() if transfer.needed else contextlib.nullcontext():
            return start // batch_size, transfer.begin(dataclasses.replace(batch, epoch=epoch))

    # Nothing to wait for: the images are mapped or in memory, so a thread would cost more than it hides.
    if images.store.ready and not transfer.needed:
        if images.store.images_NHWC is not None and world == 1:
            yield from _windows(images, order, batch_size, first_step, epoch)
            return
        for start in starts:
            # The system reads the next batch's pages of a mapped store while this batch is computed.
            images.expect(order[start + batch_size : start + 2 * batch_size], rank, world)
            yield load(start)
        return
    streamed = images.store if isinstance(images.store, StreamedStore) else None
    reader = concurrent.futures.ThreadPoolExecutor(1)

    def begin(start: int) -> concurrent.futures.Future[tuple[int, RawBatch]]:
        if (
            streamed is not None
        ):  # so that its workers go on with later batches instead of waiting at the end of each
            images.expect(order[start : start + batch_size], rank, world)
        return reader.submit(load, start)

    # One thread, so batches arrive in order; a stream has a few in flight, whose decoding its own workers share.
    try:
        coming = iter(starts)
        waiting = collections.deque(map(begin, itertools.islice(coming, streamed.ahead if streamed else 1)))
        while waiting:
            step, batch = waiting.popleft().result()
            waiting.extend(map(begin, itertools.islice(coming, 1)))
            yield step, transfer.end(batch)
    finally:  # also when the caller stops in the middle of an epoch
        reader.shutdown(cancel_futures=True)
        if streamed is not None:
            streamed.forget()


def _windows(
    images: ImageSet, order: npt.NDArray[np.int64], batch_size: int, first_step: int, epoch: int
) -> Iterator[tuple[int, RawBatch]]:
    """Yield what `batches` does for images in memory and one process, reading many small steps at once."""
    assert images.store.images_NHWC is not None
    bytes_per_image = max(1, images.store.images_NHWC[:1].nbytes)
    # Whole batches only, so that a window begins where a step does and a resumed epoch finds the same steps.
    together = batch_size * max(1, WINDOW_BYTES // (bytes_per_image * batch_size))
    for begin in range(first_step * batch_size, len(order), together):
        whole = images.batch(order[begin : begin + together])
        assert whole.positions is not None
        window = Window(whole.pixels)
        for start in range(0, whole.count, batch_size):
            rows = slice(start, min(start + batch_size, whole.count))
            step = RawBatch(
                images=window.images[rows],
                labels=whole.labels[rows],
                sizes=None,
                start=0,
                count=rows.stop - rows.start,
                positions=whole.positions[rows],
                epoch=epoch,
                window=window,
                within=rows,
            )
            yield (begin + start) // batch_size, step
