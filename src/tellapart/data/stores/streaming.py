"""Images decoded on demand, for sources that do not fit into the cache.

Has the interface of `cache.ImageStore`. What can be read, at which size, is known beforehand (an index without pixels,
from one pass that decodes every image and discards it), so that an epoch's images and the random numbers drawn for them
are those of a cached run, and a run is resumed exactly. Each epoch decodes again, in threads or processes (`workers`).
Knows nothing of labels or augmentation.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.samples import Samples
from tellapart.data.stores.cache import ImageStore
from tellapart.data.stores.decoded import Decode, Decoded, decoded, kind
from tellapart.data.stores.workers import Workers
from tellapart.errors import DataError
from tellapart.preprocess import Images, Pixels, Ragged

BATCHES_AHEAD = 3  # batches that the reader is ahead, and so the batches in memory
_TOGETHER = 64  # images that `each` reads at a time


class StreamedStore:
    """N images, decoded again in each call. ``index``: a store of the same samples, of which only the index is used."""

    images_NHWC: torch.Tensor | None = None
    ahead = BATCHES_AHEAD
    ready = on_gpu = False  # see ImageStore

    def __init__(self, index: ImageStore, samples: Samples, decode: Decode, workers: Workers) -> None:
        self.index, self.samples, self.decode, self.workers = index, samples, decode, workers
        self.heights, self.widths, self.channels = index.heights, index.widths, index.channels
        self.hashes, self.reasons, self.kind = index.hashes, index.reasons, kind(decode)
        self._begun: dict[bytes, list[Future[list[Decoded]]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Mask of the images that could be decoded, bool [N]."""
        return self.index.good

    def image(self, row: int) -> Pixels:
        """Return one image, [H, W, C]. Raises DataError if the file has changed."""
        return self._checked(row, decoded(self.samples, self.decode, row))

    def _checked(self, row: int, result: Decoded) -> Pixels:
        image, digest, reason = result
        if image is None or digest != self.hashes[row]:
            raise DataError(
                f"{self.samples.file(row)} has changed since the run began"
                f"{f' ({reason})' if reason else ''}. Restore the file, or start a new run."
            )
        return image

    def batch(self, rows: npt.NDArray[np.int64]) -> Images:
        """Return images [B, H, W, C], or a `Ragged` where those of the store differ in size."""
        with self._lock:
            parts = self._begun.pop(rows.tobytes(), None)
        results = (result for part in parts or self._begin(rows) for result in part.result())
        images = Ragged(
            [self._checked(row, result) for row, result in zip(rows.tolist(), results, strict=True)],
            self.channels,
            self.kind,
        )
        return images.canvas() if self.index.alike else images

    def each(self, rows: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        """Yield the images at ``rows`` one after the other, [H, W, C]; the next are decoded meanwhile."""
        parts = [rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER)]
        for part, following in itertools.zip_longest(parts, parts[1:]):
            self.expect(part)
            if following is not None:
                self.expect(following)
            yield from (np.asarray(image) for image in self.batch(part))

    def _begin(self, rows: npt.NDArray[np.int64]) -> list[Future[list[Decoded]]]:
        sizes = self.heights[rows].astype(np.int64) * self.widths[rows] * self.channels * self.kind.itemsize
        return self.workers.batch(self.samples, self.decode, rows.tolist(), sizes.tolist())

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Begin to decode the images at ``rows``, for which `batch` will be asked."""
        with self._lock:
            if rows.tobytes() not in self._begun:
                self._begun[rows.tobytes()] = self._begin(rows)

    def forget(self) -> None:
        """Drop what was expected and is no longer needed."""
        with self._lock:
            for part in [part for parts in self._begun.values() for part in parts]:
                part.cancel()
            self._begun.clear()

    def sizes(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Return heights and widths, int64 [B, 2], or None where all images of the store are alike."""
        return None if self.index.alike else self.index.sizes(rows)
