"""Images decoded when they are wanted, for sources that the cache has no room for.

Has the interface of `cache.ImageStore`. What can be read, at which size, is known beforehand (an index without
pixels, from one pass that decodes every image and forgets it), so that an epoch's images and the random numbers
drawn for them are what they would be with the cache, and a run goes on exactly. Each epoch decodes anew, in
threads: Pillow and torch release the interpreter while they work. Knows nothing of labels or augmentation.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.cache import Decode, ImageStore, Pixels, decoded
from tellapart.data.samples import Samples
from tellapart.devices import thread_pool
from tellapart.errors import DataError
from tellapart.preprocess import Images, Ragged

BATCHES_AHEAD = 3  # of the reader; so many batches lie in memory


class StreamedStore:
    """N images, decoded anew at each call. ``index``: a store of the same samples, of which only the index counts."""

    images_NHWC: torch.Tensor | None = None
    ahead = BATCHES_AHEAD
    ready = on_gpu = False  # see ImageStore

    def __init__(self, index: ImageStore, samples: Samples, decode: Decode, workers: int = 0) -> None:
        self.index, self.samples, self.decode = index, samples, decode
        self.heights, self.widths, self.channels = index.heights, index.widths, index.channels
        self.hashes, self.reasons = index.hashes, index.reasons
        self._pool = thread_pool(workers or (os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Mask of the images that could be decoded, bool [N]."""
        return self.index.good

    def image(self, row: int) -> Pixels:
        """Return one image, uint8 [H, W, C]. Raises DataError where the file is not what it was."""
        image, digest, reason = decoded(self.samples, self.decode, row)
        if image is None or digest != self.hashes[row]:
            raise DataError(
                f"{self.samples.file(row)} is not what it was when the run began"
                f"{f' ({reason})' if reason else ''}. Restore the file, or start anew."
            )
        return image

    def batch(self, rows: npt.NDArray[np.int64]) -> Images:
        """Return images uint8 [B, H, W, C], or a `Ragged` where those of the store differ in size."""
        images = Ragged(list(self._pool.map(self.image, rows.tolist())), self.channels)
        return images.canvas() if self.index.alike else images

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Do nothing: these images are decoded when they are asked for."""

    def sizes(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Return heights and widths, int64 [B, 2], or None where all images of the store are alike."""
        return None if self.index.alike else self.index.sizes(rows)

    def __del__(self) -> Any:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
