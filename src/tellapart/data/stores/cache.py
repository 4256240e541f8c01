"""Decoded images on disk: every image is read and decoded once, and is then stored as plain pixels.

A store is a folder with ``pixels.bin`` (uint8 or float32, one image after the other), ``index.npz`` (height, width,
offset in bytes, content hash and, for an unreadable image, the reason) and ``about.json`` (for people). It is written
under a temporary name and renamed when complete, so that an interruption, or two processes at once, cannot leave a
wrong store, and is locked while it is open, so that no other process removes it (`housekeeping`). Memory stays bounded:
images are written as they come (`building`), and large stores are read row by row and never mapped. A store can also be
made without pixels: an index of what can be read, for `streaming`.

Knows nothing of labels, splits, augmentation or models; what "decoded" means is the caller's function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.samples import Samples, content_hash
from tellapart.data.stores import building, housekeeping
from tellapart.data.stores.decoded import Decode
from tellapart.data.stores.workers import Workers
from tellapart.devices import put
from tellapart.preprocess import Images, Pixels, Ragged

MAPPED_BYTES = 1 << 30  # stores up to this size are memory-mapped whole
_PART = 64 << 20  # bytes that go to a GPU at a time


class NoRoom(Exception):  # noqa: N818 - an answer for the caller, not an error of the program
    """The store may not be built: the cache has no room for it."""


@dataclass(frozen=True)
class ImageStore:
    """N decoded images. heights, widths int32 [N] (0 for a bad image); offsets int64 [N]; hashes str [N]."""

    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    channels: int
    hashes: npt.NDArray[Any]
    reasons: npt.NDArray[Any]
    images_NHWC: torch.Tensor | None = None
    places: npt.NDArray[np.int64] | None = (
        None  # of each row in images_NHWC, if there are bad images in between
    )
    path: Path | None = None
    offsets: npt.NDArray[np.int64] | None = None
    mapped: mmap.mmap | None = None  # all bytes, if images differ in size and are not too many
    unread: npt.NDArray[np.bool_] | None = None  # images of ``mapped`` that may not be in memory yet
    resident: torch.Tensor | None = None  # all bytes, on a GPU, if images differ in size
    kind: np.dtype[Any] = np.dtype(np.uint8)  # of a pixel's numbers: uint8, or float32  # noqa: RUF009
    lock: housekeeping.Lock | None = field(default=None, repr=False)
    _file: list[int] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """Mask of the images that could be decoded, bool [N]."""
        return np.asarray(self.heights > 0)

    @functools.cached_property
    def alike(self) -> bool:
        """Whether all good images are of one size, and there are any."""
        good = self.good
        return all(len(np.unique(side[good])) == 1 for side in (self.heights, self.widths))

    @property
    def ready(self) -> bool:
        """Whether reading is so quick that it needs no thread of its own."""
        return self.images_NHWC is not None or self.mapped is not None

    @property
    def on_gpu(self) -> bool:
        """Whether the images are in a GPU's memory."""
        return self.resident is not None or (self.images_NHWC is not None and self.images_NHWC.is_cuda)

    def _bytes(self, rows: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.int64]:
        """Return how many bytes the images at ``rows`` take."""
        counts = self.heights[rows].astype(np.int64) * self.widths[rows]
        return counts * (self.channels * self.kind.itemsize)

    def image(self, row: int) -> Pixels:
        """Return one image, [H, W, C] of the store's kind of number."""
        if self.images_NHWC is not None:
            place = row if self.places is None else int(self.places[row])
            return np.asarray(self.images_NHWC[place].cpu().numpy())
        assert self.offsets is not None
        height, width = int(self.heights[row]), int(self.widths[row])
        if self.mapped is not None:
            return np.ndarray((height, width, self.channels), self.kind, self.mapped, int(self.offsets[row]))
        pixels: Pixels = np.empty((height, width, self.channels), self.kind)
        os.preadv(self._descriptor(), [pixels.reshape(-1).data.cast("B")], int(self.offsets[row]))
        return pixels

    def each(self, rows: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        """Yield the images at ``rows`` one after the other, [H, W, C]."""
        return map(self.image, rows.tolist())

    def batch(self, rows: npt.NDArray[np.int64]) -> Images:
        """Return images [B, H, W, C], or a `Ragged` if they differ in size and are not on a GPU."""
        if self.images_NHWC is not None:
            rows = rows if self.places is None else self.places[rows]
            return self.images_NHWC.index_select(0, put(torch.from_numpy(rows), self.images_NHWC.device))
        if self.resident is not None:
            return self._resident_batch(rows)
        if self.mapped is not None and self.offsets is not None:
            places = (column[rows].tolist() for column in (self.heights, self.widths, self.offsets))
            views = [
                np.ndarray((height, width, self.channels), self.kind, self.mapped, start)
                for height, width, start in zip(*places, strict=True)
            ]
            return Ragged(views, self.channels, self.kind)
        images = Ragged([self.image(row) for row in rows.tolist()], self.channels, self.kind)
        return images.canvas() if self.alike else images

    def expect(self, rows: npt.NDArray[np.int64]) -> None:
        """Let the system start to read the images at ``rows`` from disk if they are mapped; do not wait.

        Once for each image: the call takes as long as copying the image does.
        """
        if self.unread is None or self.mapped is None or self.offsets is None:
            return
        rows = rows[self.unread[rows]]
        self.unread[rows] = False
        if not len(rows) or not hasattr(mmap, "MADV_WILLNEED"):
            return
        for start, size in zip(self.offsets[rows].tolist(), self._bytes(rows).tolist(), strict=True):
            page = start - start % mmap.PAGESIZE
            self.mapped.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _resident_batch(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        assert self.resident is not None
        assert self.offsets is not None
        device = self.resident.device
        heights, widths, starts = (
            put(torch.from_numpy(column[rows].astype(np.int64)), device)[:, None]
            for column in (self.heights, self.widths, self.offsets // self.kind.itemsize)
        )
        high, wide = (int(column[rows].max(initial=1)) for column in (self.heights, self.widths))
        y, x = torch.arange(high, device=device), torch.arange(wide, device=device)
        # One gather for the whole batch: a line of the canvas begins where a row of the image does. What lies behind a
        # shorter row, or below the last, is some other image's and is set to zero.
        lines = self.resident.as_strided(
            (len(self.resident) - wide * self.channels + 1, wide * self.channels), (1, 1)
        )
        begins = starts + torch.minimum(y, heights - 1) * widths * self.channels
        images = lines.index_select(0, begins.flatten()).view(len(rows), high, wide, self.channels)
        inside = (y < heights).unsqueeze(2) & (x < widths).unsqueeze(1)
        return images.masked_fill_(~inside.unsqueeze(3), 0)

    def on_device(self, device: torch.device, limit: int) -> ImageStore:
        """Return this store with its images on ``device``, or itself if they take more than ``limit`` bytes."""
        size = int(self._bytes().sum())
        if not 0 < size <= limit:
            return self
        if self.images_NHWC is not None:
            return dataclasses.replace(self, images_NHWC=self.images_NHWC.to(device))
        assert self.path is not None
        # a batch reads whole lines of its widest image
        line = int(self.widths.max()) * self.channels * self.kind.itemsize
        resident = torch.zeros(size + line, dtype=torch.uint8, device=device)
        with open(self.path / "pixels.bin", "rb") as stream:
            for part in resident[:size].split(_PART):
                part.copy_(torch.frombuffer(bytearray(stream.read(len(part))), dtype=torch.uint8))
        if self.kind == np.float32:
            resident = resident.view(torch.float32)
        return dataclasses.replace(self, resident=resident, _file=[])

    def sizes(self, rows: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """Return heights and widths, int64 [B, 2], or None if all images of the store have one size."""
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

    Files count by path, size and modification time; pixel arrays, and images in objects, by their content.
    """
    digest = hashlib.blake2b(
        f"store 2\0{policy}\0{samples.root}".encode(errors="surrogateescape"), digest_size=16
    )
    if samples.pixels is not None:
        digest.update(content_hash(samples.pixels).encode())
        digest.update(b"" if samples.keys is None else samples.keys.tobytes())
        return digest.hexdigest()
    if samples.items is not None:
        keys = np.arange(len(samples)) if samples.keys is None else samples.keys
        digest.update("".join(f"{samples.items.hashes[key]}\n" for key in keys.tolist()).encode())
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
    workers: Workers,
    advance: Callable[[int], None] = lambda count: None,
    about: Mapping[str, Any] | None = None,
    pixels: bool = True,
    room: Callable[[], bool] = lambda: True,
) -> ImageStore:
    """Return the store of ``samples`` decoded by ``decode``; build it if it does not exist yet.

    ``policy`` names what ``decode`` does, for the key. ``advance`` is called with the number of images
    done. ``about`` is recorded for people. Without ``pixels`` images are decoded and discarded: the result has their
    sizes and hashes, but no images. ``room`` is called before building. Raises NoRoom if it returns False, OSError if
    the disk is full; an unreadable image only marks its row.
    """
    policy = policy if pixels else f"{policy} index"
    target = folder / "decoded" / store_key(samples, policy)
    store = open_store(target)
    if store is not None and (not _readable_now(samples, store) or not _removed(target, store)):
        return store
    if not room():
        raise NoRoom
    temporary, held = housekeeping.begin(target.parent)
    try:
        building.build(samples, decode, channels, temporary, workers, advance, pixels)
        notes = {"source": samples.root or samples.name, "images": len(samples), "policy": policy}
        housekeeping.write_about(temporary, {**notes, **(about or {})})
        housekeeping.publish(temporary, target, held)
    except BaseException:
        housekeeping.abandon(temporary, held)
        raise
    store = open_store(target)
    if store is None:
        raise FileNotFoundError(2, "the store was removed while it was being opened", str(target))
    return dataclasses.replace(store, unread=None)  # just written: it is still in memory


def open_store(target: Path) -> ImageStore | None:
    """Open a store and protect it from being removed; None if there is none."""
    held = housekeeping.hold(target, housekeeping.INDEX)
    return None if held is False else _open(target, held if isinstance(held, housekeeping.Lock) else None)


def _removed(target: Path, store: ImageStore) -> bool:
    """Remove a store that should be built again; return False if another process uses it."""
    if store.lock is not None:
        store.lock.release()
    return housekeeping.remove(housekeeping.describe(target))


def _readable_now(samples: Samples, store: ImageStore) -> bool:
    """Return whether a file can be read that could not be before (a permission granted, a disk mounted again)."""
    for row in np.flatnonzero(~store.good & (store.hashes == "")):
        with contextlib.suppress(OSError):
            samples.read(int(row))
            return True
    return False


def _open(folder: Path, held: housekeeping.Lock | None) -> ImageStore:
    with np.load(folder / "index.npz") as index:
        columns = {name: index[name] for name in ("heights", "widths", "hashes", "offsets")}
        reasons = np.full(len(columns["heights"]), "", dtype=object)
        reasons[index["failed"]] = index["reasons"]
        columns["reasons"] = reasons
        channels = int(index["channels"])
        kind = np.dtype(str(index["depth"])) if "depth" in index else np.dtype(np.uint8)
    store = ImageStore(channels=channels, path=folder, lock=held, kind=kind, **columns)
    heights, widths, good = store.heights, store.widths, store.good
    pixels = folder / "pixels.bin"
    size = pixels.stat().st_size if pixels.exists() else 0
    if not 0 < size <= MAPPED_BYTES:
        return store
    if not store.alike:
        with open(pixels, "rb") as stream:  # copy-on-write, here and below: torch wants writable memory
            mapped = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
        return dataclasses.replace(store, mapped=mapped, unread=np.ones(len(store), np.bool_))
    first = int(good.argmax())
    shape = (int(good.sum()), int(heights[first]), int(widths[first]), channels)
    places = None if good.all() else np.cumsum(good) - 1
    images = torch.from_numpy(np.memmap(pixels, kind, "c", shape=shape))
    return dataclasses.replace(store, images_NHWC=images, places=places)


def from_array(pixels_NHWC: Pixels, hashes: npt.NDArray[Any]) -> ImageStore:
    """Return a store over images that are in memory already, uint8 or float32 [N, H, W, C]."""
    count, height, width, channels = pixels_NHWC.shape
    return ImageStore(
        heights=np.full(count, height, np.int32),
        widths=np.full(count, width, np.int32),
        channels=channels,
        hashes=hashes,
        reasons=np.full(count, "", dtype=object),
        images_NHWC=torch.from_numpy(np.ascontiguousarray(pixels_NHWC)),
        kind=pixels_NHWC.dtype,
    )
