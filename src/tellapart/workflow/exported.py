"""The images of a table as a backend's own code decodes and resizes them, from the files' bytes."""

from __future__ import annotations

import concurrent.futures
import os

import numpy as np

from tellapart.contract import BadImage, Pixels, Preprocessing, decode
from tellapart.contract.decoding import crop_box
from tellapart.data.samples import Samples
from tellapart.evaluation.infer import Rows
from tellapart.runtime import Backend
from tellapart.spec import DataSpec


class Read:
    """Images that are read from their source and prepared by a backend, in threads; use it as a context.

    ``bad``: the rows that could not be read so far, each with the reason.
    """

    def __init__(self, backend: Backend, samples: Samples, spec: DataSpec) -> None:
        self.samples, self.bad = samples, dict[int, str]()
        self._backend, self._spec = backend, spec
        self._pool = concurrent.futures.ThreadPoolExecutor(spec.workers or os.cpu_count() or 1)

    def __enter__(self) -> Read:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, rows: Rows) -> tuple[Rows, Pixels]:
        """Return those of the rows that can be read, and their images, as the contract has them."""
        found = list(self._pool.map(self._try, rows.tolist()))
        images = [pixels for pixels in found if pixels is not None]
        good = rows[[pixels is not None for pixels in found]]
        return good, np.stack(images) if images else np.zeros((0, 0, 0, 0), np.uint8)

    def picture(self, row: int) -> Pixels:
        """Return one image as the backend sees it."""
        content = content_of(self.samples, row, self._backend.card.preprocessing, self._spec.max_pixels)
        return self._backend.prepare(content)

    def _try(self, row: int) -> Pixels | None:
        try:
            return self.picture(row)
        except (BadImage, OSError) as error:
            self.bad[row] = str(error)
            return None


def content_of(samples: Samples, row: int, contract: Preprocessing, max_pixels: int) -> bytes | Pixels:
    """Return an image's bytes, or its pixels if the source has pixels or a box. Raises OSError, BadImage."""
    content = samples.read(row)
    if samples.boxes is None or np.isnan(samples.boxes[row]).any():
        return content
    if isinstance(content, bytes):
        content = decode(content, contract.channels, max_pixels, levels=contract.range, depth=contract.depth)
    return crop_box(content, samples.boxes[row])
