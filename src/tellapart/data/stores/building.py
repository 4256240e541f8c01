"""How a store of decoded images is filled: decoded by several workers, written in order, flushed to disk at the end.

Knows nothing of where stores are, or of how they are read (`cache`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import Samples
from tellapart.data.stores.decoded import Decode, Decoded, bytes_of, kind
from tellapart.data.stores.workers import Workers

_CHUNK = 64  # images that a worker decodes at a time, at most
_CHUNK_BYTES = 1 << 20  # decoded bytes after which a worker takes no more
_BUFFER = 1 << 16  # bytes of small images that are written together; larger ones go straight to the system
_FLUSHED = 32 << 20  # bytes after which they are flushed to disk, while decoding goes on
_STEP = 32  # images between reports of progress


def _in_order(samples: Samples, decode: Decode, workers: Workers) -> Iterator[Decoded]:
    """Decode a bounded number of images ahead.

    Workers take a few images at a time: few enough that the decoded pixels are still in the processor's cache when
    written.
    """
    most = max(1, min(_CHUNK, len(samples) // (16 * workers.count)))  # short, so that workers end together
    length, start = min(most, 4), 0
    waiting: collections.deque[concurrent.futures.Future[list[Decoded]]] = collections.deque()
    try:
        while waiting or start < len(samples):
            while start < len(samples) and len(waiting) < 2 * workers.count:
                stop = min(start + length, len(samples))
                waiting.append(workers.submit(samples, decode, range(start, stop)))
                start = stop
            results = waiting.popleft().result()
            length = max(1, min(most, _CHUNK_BYTES // max(1, bytes_of(results) // len(results))))
            yield from results
    finally:
        concurrent.futures.wait([chunk for chunk in waiting if not chunk.cancel()])


def build(
    samples: Samples,
    decode: Decode,
    channels: int,
    folder: Path,
    workers: Workers,
    advance: Callable[[int], None],
    pixels: bool,
) -> None:
    """Write a store's files into ``folder``; without ``pixels`` only the index. Raises OSError."""
    if pixels:
        with open(folder / "pixels.bin", "wb", buffering=_BUFFER) as stream, _Flushing(stream) as flushing:
            columns = scan(samples, decode, workers, advance, flushing.write)
    else:
        columns = scan(samples, decode, workers, advance)
    reasons = columns.pop("reasons")
    failed = np.flatnonzero(columns["heights"] == 0)
    with open(folder / "index.npz", "wb") as index:
        columns["failed"], columns["channels"] = failed, np.array(channels)
        if kind(decode) != np.uint8:
            columns["depth"] = np.array(kind(decode).name)
        columns["reasons"] = reasons[failed].astype(np.str_)  # not all: as wide as the widest
        np.savez(index, allow_pickle=False, **columns)
        index.flush()
        os.fsync(index.fileno())


class _Flushing:
    """Writes to a file and flushes it in a thread: at the end everything is on disk, or OSError was raised."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._waiting = stream, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._sync: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> _Flushing:
        return self

    def write(self, content: memoryview) -> None:
        """Write ``content``."""
        self._stream.write(content)
        self._waiting += content.nbytes
        if self._waiting >= _FLUSHED and (self._sync is None or self._sync.done()):
            self._begin()

    def _begin(self) -> None:
        if self._sync is not None:
            self._sync.result()
        self._waiting = 0
        self._sync = self._thread.submit(os.fsync, self._stream.fileno())

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._stream.flush()
                self._begin()
        finally:
            self._thread.shutdown()
        if kind is None and self._sync is not None:
            self._sync.result()


def scan(
    samples: Samples,
    decode: Decode,
    workers: Workers,
    advance: Callable[[int], None] = lambda count: None,
    write: Callable[[memoryview], Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Decode every image, pass its bytes to ``write``, and return the index's columns as ImageStore has them."""
    count, position = len(samples), 0
    heights, widths = np.zeros(count, np.int32), np.zeros(count, np.int32)
    offsets = np.zeros(count, np.int64)
    hashes, reasons = np.zeros(count, "U32"), np.full(count, "", dtype=object)
    for row, (image, digest, reason) in enumerate(_in_order(samples, decode, workers)):
        hashes[row], reasons[row], offsets[row] = digest, reason, position
        if image is not None:
            heights[row], widths[row] = image.shape[:2]
            position += image.nbytes
            if write is not None:
                write(np.ascontiguousarray(image).data.cast("B"))
        if (row + 1) % _STEP == 0 or row + 1 == count:
            advance(row % _STEP + 1)
    return {"heights": heights, "widths": widths, "hashes": hashes, "offsets": offsets, "reasons": reasons}
