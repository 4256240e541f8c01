"""Decoded images on disk: every image is read and decoded once, and then lies there as plain pixels.

A store is a folder with ``pixels.bin`` (uint8, one image after the other) and ``index.npz`` (height, width,
offset, content hash and, for an unreadable image, the reason). It is written under a temporary name and
renamed when complete, so that an interruption, or two processes at once, leave nothing wrong. Memory stays
bounded: images are written as they come, and large stores are read row by row and never mapped.

Knows nothing of labels, splits, augmentation or models; what "decoded" means is the caller's function.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.samples import Samples, content_hash
from tellapart.preprocess import BadImage

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes | Pixels, npt.NDArray[np.float64] | None], Pixels]
MAPPED_BYTES = 1 << 30  # stores up to this size are memory-mapped whole
_CHUNK = 64


@dataclass(frozen=True)
class ImageStore:
    """N decoded images. heights, widths int32 [N] (0 for a bad image); offsets int64 [N]; hashes str [N]."""

    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    channels: int
    hashes: npt.NDArray[Any]
    reasons: npt.NDArray[Any]
    images_NHWC: torch.Tensor | None = None
    places: npt.NDArray[np.int64] | None = None  # of each row in images_NHWC, where bad images lie between
    path: Path | None = None
    offsets: npt.NDArray[np.int64] | None = None
    _file: list[int] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Mask of the images that could be decoded, bool [N]."""
        return np.asarray(self.heights > 0)

    def image(self, row: int) -> Pixels:
        """Return one image, uint8 [H, W, C]."""
        if self.images_NHWC is not None:
            place = row if self.places is None else int(self.places[row])
            return np.asarray(self.images_NHWC[place].numpy())
        assert self.offsets is not None
        height, width = int(self.heights[row]), int(self.widths[row])
        size = height * width * self.channels
        content = os.pread(self._descriptor(), size, int(self.offsets[row]))
        return np.frombuffer(content, np.uint8).reshape(height, width, self.channels)

    def batch(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return images, uint8 [B, H, W, C]; smaller ones lie in the upper left of a common canvas."""
        if self.images_NHWC is not None:
            rows = rows if self.places is None else self.places[rows]
            return self.images_NHWC.index_select(0, torch.from_numpy(rows))
        height, width = (int(side[rows].max(initial=1)) for side in (self.heights, self.widths))
        images = np.zeros((len(rows), height, width, self.channels), np.uint8)
        for place, row in enumerate(rows):
            image = self.image(int(row))
            images[place, : image.shape[0], : image.shape[1]] = image
        return torch.from_numpy(images)

    def sizes(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Return heights and widths, int64 [B, 2], or None where all images of the store are alike."""
        if self.images_NHWC is not None:
            return None
        return torch.from_numpy(np.stack([self.heights[rows], self.widths[rows]], axis=1).astype(np.int64))

    def _descriptor(self) -> int:
        if not self._file:
            assert self.path is not None
            self._file.append(os.open(self.path / "pixels.bin", os.O_RDONLY))
        return self._file[0]

    def __del__(self) -> None:
        for descriptor in self._file:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def store_key(samples: Samples, policy: str) -> str:
    """Return the name of the store for these samples under this decode policy.

    Files count by path, size and time of change; pixel arrays by their content.
    """
    digest = hashlib.blake2b(
        f"store 2\0{policy}\0{samples.root}".encode(errors="surrogateescape"), digest_size=16
    )
    if samples.pixels is not None:
        digest.update(content_hash(samples.pixels).encode())
        digest.update(b"" if samples.keys is None else samples.keys.tobytes())
        return digest.hexdigest()
    for row in range(len(samples)):
        try:
            state = os.stat(samples.file(row))
            mark = f"{samples.paths[row]}\0{state.st_size}\0{state.st_mtime_ns}\n"
        except (OSError, ValueError):  # ValueError: a NUL in the name
            mark = f"{samples.paths[row]}\0missing\n"
        digest.update(mark.encode(errors="surrogateescape"))
    if samples.boxes is not None:
        digest.update(samples.boxes.tobytes())
    return digest.hexdigest()


def open_or_build(
    samples: Samples,
    decode: Decode,
    policy: str,
    channels: int,
    folder: Path,
    workers: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> ImageStore:
    """Return the store of ``samples`` decoded by ``decode``; build it where it is not there yet.

    ``policy`` names what ``decode`` does, for the key. ``advance`` is called with the number of images
    done. Raises OSError where the disk is full; an unreadable image only marks its row.
    """
    target = folder / "decoded" / store_key(samples, policy)
    if (target / "index.npz").exists():
        store = _open(target)
        if not _readable_now(samples, store):
            return store
        shutil.rmtree(target, ignore_errors=True)
    if not (target / "index.npz").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
        try:
            _build(samples, decode, channels, temporary, workers or (os.cpu_count() or 1), advance)
            with contextlib.suppress(OSError):  # another process was faster: its store is as good
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _open(target)


def _readable_now(samples: Samples, store: ImageStore) -> bool:
    """Return whether a file can be read that could not be (a permission given, a disk that came back)."""
    for row in np.flatnonzero(~store.good & (store.hashes == "")):
        with contextlib.suppress(OSError):
            samples.read(int(row))
            return True
    return False


def _decoded(samples: Samples, decode: Decode, row: int) -> tuple[Pixels | None, str, str]:
    try:
        content = samples.read(row)
    except OSError as error:
        return None, "", f"cannot be read: {error.strerror or error}"
    digest = content_hash(content)
    try:
        return decode(content, None if samples.boxes is None else samples.boxes[row]), digest, ""
    except BadImage as error:
        return None, digest, error.reason
    except MemoryError:
        return None, digest, "does not fit in memory"


def _in_order(samples: Samples, decode: Decode, workers: int) -> Iterator[tuple[Pixels | None, str, str]]:
    """Decode in threads (Pillow and torch release the interpreter), a bounded number of images ahead."""

    def chunk(start: int) -> list[tuple[Pixels | None, str, str]]:
        stop = min(start + _CHUNK, len(samples))
        return [_decoded(samples, decode, row) for row in range(start, stop)]

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        starts = iter(range(0, len(samples), _CHUNK))
        waiting = [pool.submit(chunk, start) for start in itertools.islice(starts, workers + 2)]
        while waiting:
            results = waiting.pop(0).result()
            waiting.extend(pool.submit(chunk, start) for start in itertools.islice(starts, 1))
            yield from results


def _build(
    samples: Samples,
    decode: Decode,
    channels: int,
    folder: Path,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    count = len(samples)
    heights, widths = np.zeros(count, np.int32), np.zeros(count, np.int32)
    offsets = np.zeros(count, np.int64)
    hashes, reasons, position = [], [], 0
    with open(folder / "pixels.bin", "wb", buffering=1 << 20) as stream:
        for row, (image, digest, reason) in enumerate(_in_order(samples, decode, workers)):
            hashes.append(digest)
            reasons.append(reason)
            offsets[row] = position
            if image is not None:
                heights[row], widths[row] = image.shape[:2]
                stream.write(np.ascontiguousarray(image).data)
                position += image.size
            if (row + 1) % _CHUNK == 0 or row + 1 == count:
                advance(row % _CHUNK + 1)
        stream.flush()
        os.fsync(stream.fileno())
    failed = np.flatnonzero(heights == 0)
    with open(folder / "index.npz", "wb") as index:
        np.savez(
            index,
            heights=heights,
            widths=widths,
            offsets=offsets,
            hashes=np.array(hashes, dtype="U32"),
            failed=failed,
            reasons=np.array(
                [reasons[row] for row in failed], dtype=np.str_
            ),  # not all: as wide as the widest
            channels=channels,
        )
        index.flush()
        os.fsync(index.fileno())


def _open(folder: Path) -> ImageStore:
    with np.load(folder / "index.npz") as index:
        columns = {name: index[name] for name in ("heights", "widths", "hashes", "offsets")}
        reasons = np.full(len(columns["heights"]), "", dtype=object)
        reasons[index["failed"]] = index["reasons"]
        columns["reasons"] = reasons
        channels = int(index["channels"])
    heights, widths = columns["heights"], columns["widths"]
    size = (folder / "pixels.bin").stat().st_size
    good = heights > 0
    uniform = bool(good.any()) and len(np.unique(heights[good])) == len(np.unique(widths[good])) == 1
    if not (uniform and size <= MAPPED_BYTES):
        return ImageStore(channels=channels, path=folder, **columns)
    first = int(good.argmax())
    shape = (int(good.sum()), int(heights[first]), int(widths[first]), channels)
    places = None if good.all() else np.cumsum(good) - 1
    pixels = np.memmap(
        folder / "pixels.bin", np.uint8, "c", shape=shape
    )  # copy-on-write: torch wants writable
    return ImageStore(
        channels=channels, path=folder, images_NHWC=torch.from_numpy(pixels), places=places, **columns
    )


def from_array(pixels_NHWC: Pixels, hashes: npt.NDArray[Any]) -> ImageStore:
    """Return a store over images that are in memory already, uint8 [N, H, W, C]."""
    count, height, width, channels = pixels_NHWC.shape
    return ImageStore(
        heights=np.full(count, height, np.int32),
        widths=np.full(count, width, np.int32),
        channels=channels,
        hashes=hashes,
        reasons=np.full(count, "", dtype=object),
        images_NHWC=torch.from_numpy(np.ascontiguousarray(pixels_NHWC)),
    )
