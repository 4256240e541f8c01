"""From samples to decoded images: as evaluation needs them, or as the source of augmentation.

Bad images are listed and left out here, so that no later stage sees one. Knows nothing of models or losses.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import functools
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import files, numerals, tables
from tellapart.contract import sides
from tellapart.contract.decoding import bands, in_depth
from tellapart.contract.decoding import largest as largest_number
from tellapart.contract.deep import likely_range, uses_little
from tellapart.data.loader import ImageSet, Store
from tellapart.data.samples import Samples, content_hash
from tellapart.data.sources.archives import cache_folder
from tellapart.data.stores import building, cache, housekeeping, workers
from tellapart.data.stores.decoded import AsContracted, AsSource, Decode, decoded, pixels
from tellapart.data.stores.decoded import kind as number_kind
from tellapart.data.stores.streaming import StreamedStore
from tellapart.data.stores.thumbs import has_colour
from tellapart.errors import CacheError, DataError
from tellapart.preprocess import BadImage, Preprocessing, crop_box, resize
from tellapart.spec import DataSpec

Advance = Callable[[int], None]
SOURCE_MARGIN = 1.15  # a random resized crop is taken from images that cover this times the input


@dataclass(frozen=True)
class Bad:
    """An image that was left out, and why."""

    path: str
    reason: str


def evaluation_images(
    samples: Samples, contract: Preprocessing, spec: DataSpec, advance: Advance = lambda count: None
) -> tuple[ImageSet, list[Bad]]:
    """Return the images as the contract defines them, [height, width, C] of its depth, and what was left out."""
    if samples.pixels is not None and samples.boxes is None:
        shape = samples.pixels.shape[1:3]
        probe = resize(np.zeros((*shape, contract.channels), np.uint8), contract)
        if shape == probe.shape[:2] and (contract.resize != "crop" or contract.crop_fraction == 1):
            return _from_pixels(samples, contract), []
    named = {name: value for name, value in contract.to_dict().items() if name not in ("mean", "std")}
    policy = f"contract 3 {named}"
    kind = _Kind(
        policy,
        f"{contract.resize} {_size_words(contract.size)}",
        contract.channels,
        math.prod(contract.sides),
        np.dtype(contract.depth).itemsize,
    )
    return _stored(samples, AsContracted(contract, spec.max_pixels), kind, spec, advance)


def augmentation_sources(
    samples: Samples,
    contract: Preprocessing,
    spec: DataSpec,
    advance: Advance = lambda count: None,
    reduced: bool = False,
) -> tuple[ImageSet, list[Bad]]:
    """Return the images in their own shape, scaled down to what random resized crops need.

    ``reduced``: large JPEGs are decoded at reduced size if that leaves enough pixels.
    """
    reduced = reduced or contract.decode == "scaled"
    height, width = (round(side * SOURCE_MARGIN) for side in contract.sides)
    size, how = sides.of(height, width), "scaled" if reduced else "full"
    covered = f"short side {size}" if isinstance(size, int) else f"covering {sides.words(size)}"
    policy = f"sources 3, {covered} {contract.channels} {how} {contract.range}"
    policy += "" if contract.depth == "uint8" else f" {contract.depth}"
    kind = _Kind(policy, f"random crops, {covered}", contract.channels)
    decode = AsSource(contract.channels, size, spec.max_pixels, reduced, contract.range, contract.depth)
    return _stored(samples, decode, kind, spec, advance)


def _size_words(size: sides.Size) -> str:
    return str(size) if isinstance(size, int) else sides.words(size)


@dataclass(frozen=True)
class _Kind:
    """What a store contains: its policy for the key, words for people, and pixels per image if known, whose
    numbers are of ``size`` bytes.
    """

    policy: str
    purpose: str
    channels: int
    pixels: int = 0
    size: int = 1


def _from_pixels(samples: Samples, contract: Preprocessing) -> ImageSet:
    assert samples.pixels is not None
    keys = np.arange(len(samples)) if samples.keys is None else samples.keys
    pixels = samples.pixels[keys]
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.shape[3] != contract.channels or pixels.dtype != contract.depth:
        pixels = np.stack([in_depth(image, contract.channels, contract.depth) for image in pixels])
    hashes = np.array([content_hash(samples.pixels[key]) for key in keys], dtype=object)
    return ImageSet(_hashed(samples, hashes), cache.from_array(pixels, hashes), np.arange(len(samples)))


def _hashed(samples: Samples, hashes: npt.NDArray[Any]) -> Samples:
    return dataclasses.replace(samples, hashes=hashes)


def _stored(
    samples: Samples, decode: Decode, kind: _Kind, spec: DataSpec, advance: Advance
) -> tuple[ImageSet, list[Bad]]:
    store = _open_store(samples, decode, kind, spec, advance)
    rows = np.flatnonzero(store.good)
    failed = np.flatnonzero(~store.good)
    bad = [Bad(str(samples.paths[row]), str(store.reasons[row])) for row in failed]
    if bad and spec.on_bad_image == "error":
        raise DataError(
            f"{len(bad)} images cannot be used, the first: {samples.file(int(failed[0]))}: {bad[0].reason}. "
            "Repair or remove them, or use --data.on-bad-image skip."
        )
    return ImageSet(_hashed(samples, store.hashes).select(rows), store, rows), bad


def _open_store(samples: Samples, decode: Decode, kind: _Kind, spec: DataSpec, advance: Advance) -> Store:
    """Return decoded images from the cache, or a stream of them.

    With the cache every image is decoded once. A stream decodes once more at the beginning, to find the bad images, and
    again in each epoch: even for a single epoch it takes longer, so it is for sources that do not fit, or if
    ``data.cache`` is off.
    """
    folder = Path(cache_folder(spec))
    policy, about = f"{kind.policy} {spec.max_pixels}", {"purpose": kind.purpose}
    working = workers.choose(spec, samples)
    build = functools.partial(
        cache.open_or_build, samples, decode, policy, kind.channels, folder, working, advance, about
    )

    def room() -> bool:
        needed = kind.pixels * kind.channels * kind.size * len(samples) or _estimate(samples, decode)
        return housekeeping.make_room(folder / "decoded", needed + 200 * len(samples), spec.cache_limit)

    if spec.cache != "off":
        try:
            return build(room=room)
        except (cache.NoRoom, OSError) as error:
            full = isinstance(error, cache.NoRoom) or error.errno in (errno.ENOSPC, errno.EDQUOT)
            if spec.cache == "on" or not full:
                raise _cannot_keep(folder, error, spec) from error
    try:
        index = build(pixels=False)
    except OSError:  # there is no room for the index either: it is made in each run
        columns: dict[str, Any] = building.scan(samples, decode, working, advance)
        index = cache.ImageStore(channels=kind.channels, kind=number_kind(decode), **columns)
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun: each process streams its part
    return StreamedStore(index, samples, decode, workers.choose(spec, samples, together))


def _cannot_keep(folder: Path, error: Exception, spec: DataSpec) -> CacheError:
    if isinstance(error, cache.NoRoom):
        reason = (
            f"they would not fit ({numerals.setting(spec.cache_limit)} GiB are allowed by --data.cache-limit, "
            "or the disk is full)"
        )
    else:
        reason = str(getattr(error, "strerror", None) or error)
    return CacheError(
        f"Decoded images cannot be kept in {folder}: {reason}. Choose another folder with --data.cache-dir, make "
        "room (tellapart cache clear), or use --data.cache off, which decodes in every epoch."
    )


def _estimate(samples: Samples, decode: Decode) -> int:
    """Return roughly how many bytes the decoded images will take, from a few of them."""
    count = min(max(2, len(samples) // 100), 8)
    rows = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    images = [decoded(samples, decode, int(row))[0] for row in rows]
    sizes = [image.nbytes for image in images if image is not None]
    return int(1.1 * len(samples) * sum(sizes) / len(sizes)) if sizes else 0


@dataclass(frozen=True)
class Look:
    """What a few images of a source are like: sides in pixels, whether all are grey, and of ``deep`` ones of more
    than 8 bits the largest number.
    """

    longest: int
    shortest: int
    grey: bool
    same: bool
    deep: int = 0
    largest: float = 0.0
    bands: int = (
        0  # channels of files whose channels have no colours' names, where all that were read have so many
    )
    typical: int = dataclasses.field(default=0, compare=False)  # the median of the short sides

    def unused_range(self) -> str:
        """Return a warning if images of more than 8 bits use less than half of their range, otherwise nothing."""
        if not self.deep or not uses_little(self.largest):
            return ""
        return (
            f"Of the {self.deep} images of more than 8 bits that were looked at, the largest number is "
            f"{self.largest:,.0f} of 65,535, so they become nearly black. If that is all their sensor gives, use "
            f"--input.range {likely_range(self.largest)}, or --input.range max."
        )


def look(
    samples: Samples,
    spec: DataSpec,
    count: int = 48,
    levels: tuple[float, float] | None = None,
    channels: int = 0,
    depth: str = "uint8",
) -> Look:
    """Decode a few images, evenly over the table, as a basis for choices. Raises DataError if none is good.

    ``channels``: those of the input; 0: they are to be chosen, by the first file that can be read. ``depth``: of the
    pixels.
    """
    chosen, found = channels, 0
    sides: list[int] = []
    shapes: set[tuple[int, ...]] = set()
    grey, first = True, ""
    peaks: list[float] = []
    for row in np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)):
        try:
            content = samples.read(row)
            if not channels and not found:
                found = _bands(content)
                chosen = found
            wanted = 3 if chosen in (0, 1) else chosen
            image = pixels(content, wanted, spec.max_pixels, levels=levels, depth=depth)
            peak = largest_number(content, spec.max_pixels, chosen) if isinstance(content, bytes) else None
            peaks += [] if peak is None else [peak]
            if samples.boxes is not None:
                image = crop_box(image, samples.boxes[row])
        except (OSError, BadImage) as error:
            first = first or f"{samples.file(row)}: {error}"
            continue
        sides += image.shape[:2]
        shapes.add(image.shape[:2])
        grey = (
            grey
            and image.shape[2] == 3
            and bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
        )
    if not sides:
        raise DataError(f"None of the images that were tried can be read, for example {first}")
    typical = int(np.median(np.minimum(sides[::2], sides[1::2])))
    grey = grey and not (chosen == 0 and has_colour(samples, spec, levels))
    highest = max(peaks, default=0.0)
    return Look(max(sides), min(sides), grey, len(shapes) == 1, len(peaks), highest, found, typical)


def _bands(content: bytes | npt.NDArray[np.uint8]) -> int:
    """Return how many channels an image has that are neither grey nor colour; 0 for any other."""
    if isinstance(content, bytes):
        count = bands(content)
    else:
        count = content.shape[2] if content.ndim == 3 and content.shape[2] != 4 else 1
    return 0 if count in (1, 3) else count


def largest(samples: Samples, spec: DataSpec, channels: int = 0) -> float:
    """Return the largest number in the images of more than 8 bits; 65535 where there are none, or only zeros.

    Images that cannot be read do not count here.
    """

    def of(row: int) -> float:
        try:
            content = samples.read(row)
            return (isinstance(content, bytes) and largest_number(content, spec.max_pixels, channels)) or 0.0
        except (OSError, BadImage, MemoryError):
            return 0.0

    with concurrent.futures.ThreadPoolExecutor(spec.workers or None) as pool:
        return max(pool.map(of, range(len(samples))), default=0.0) or 65_535.0


def channel_statistics(images: ImageSet, limit: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel (range 0 to 1), over at most ``limit`` images.

    To 4 digits behind the point; of float32 images, where all may lie in a small part of the range, to 6 digits.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).astype(np.int64))
    channels = images.store.channels
    count, total, square = 0, np.zeros(channels), np.zeros(channels)
    for image in images.store.each(images.rows[rows]):
        values = image.reshape(-1, channels).astype(np.float64) / 255
        count += len(values)
        total += values.sum(0)
        square += (values**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    if images.store.kind == np.float32:
        return tuple(float(f"{m:.6g}") for m in mean), tuple(max(float(f"{s:.6g}"), 1e-6) for s in std)
    return tuple(round(float(m), 4) for m in mean), tuple(max(round(float(s), 4), 1e-3) for s in std)


def write_bad_images(bad: Iterable[Bad], path: str | os.PathLike[str]) -> None:
    """Write what was left out, as CSV: path, reason."""
    with files.writing(path, text=True, errors="surrogateescape") as stream:
        writer = tables.Writer(stream, "\r\n")
        writer.writerow(["path", "reason"])
        writer.writerows((item.path, item.reason) for item in bad)
