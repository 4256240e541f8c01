"""A quick look for near copies across splits, among images that are decoded already; `duplicates` looks at all.

Bounded by a number of images (a second at most), so what it counts is a lower bound. Knows nothing of files or words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tellapart.contract.preprocessing import Preprocessing
from tellapart.data.health.duplicates import are_near
from tellapart.data.health.measure import RECORD, Table
from tellapart.data.loader import ImageSet
from tellapart.data.stores.streaming import StreamedStore

TRAIN, OTHERS = 3000, 400  # images that are looked at
_SIDE = 16
_ALIKE = 0.85  # correlation of thumbnails from which on two pictures are compared


@dataclass(frozen=True)
class Leak:
    """How many of ``looked`` images are nearly a copy of one of ``among`` others, with the same label, and the paths of
    one such pair.
    """

    count: int
    looked: int
    among: int
    example: tuple[str, str]

    @property
    def serious(self) -> bool:
        """Whether so many are that figures will be too good: at least two, and one in a hundred."""
        return self.count >= 2 and 100 * self.count >= self.looked


def near_leak(train: ImageSet, others: ImageSet | None, contract: Preprocessing) -> Leak | None:
    """Look for near copies of training images among ``others``; None where that cannot be told cheaply.

    Copies byte for byte do not count.
    """
    if others is None or not (_readable(train) and _readable(others)):
        return None
    known = set() if train.samples.hashes is None else set(train.samples.hashes)
    hashes = others.samples.hashes
    fresh = np.array([hashes is None or hashes[n] not in known for n in range(len(others))], dtype=bool)
    ours, theirs = _spread(np.arange(len(train)), TRAIN), _spread(np.flatnonzero(fresh), OTHERS)
    if not len(ours) or not len(theirs):
        return None
    table = np.concatenate([_table(train, ours, contract), _table(others, theirs, contract)])
    pairs, flips = _candidates(table["luma"][: len(ours)], table["luma"][len(ours) :])
    labels = np.concatenate([train.samples.labels[ours], others.samples.labels[theirs]])
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]  # others make no figure too good
    pairs, flips = pairs[same], flips[same]
    near = np.flatnonzero(are_near(table, labels, pairs, flips)) if len(pairs) else pairs
    if not len(near):
        return Leak(0, len(theirs), len(ours), ("", ""))
    first = pairs[near[0]]
    example = (
        str(others.samples.paths[theirs[first[1] - len(ours)]]),
        str(train.samples.paths[ours[first[0]]]),
    )
    return Leak(len(near), len(theirs), len(ours), example)


def _readable(images: ImageSet) -> bool:
    plain = images.store.channels in (1, 3) and images.store.kind == np.uint8
    return plain and not isinstance(images.store, StreamedStore) and images.samples.boxes is None


def _spread(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


def _table(images: ImageSet, rows: npt.NDArray[np.int64], contract: Preprocessing) -> Table:
    """Return what is compared: thumbnails of what the contract keeps of each image."""
    table = np.zeros(len(rows), RECORD)
    fraction = contract.crop_fraction if contract.resize == "crop" else 1.0
    for place, image in enumerate(images.store.each(images.rows[rows])):
        pixels = image
        if contract.resize == "crop" and image.shape[:2] != contract.sides:  # whole, for random crops
            side = max(1, round(fraction * min(image.shape[:2])))
            top, left = ((length - side) // 2 for length in image.shape[:2])
            pixels = image[top : top + side, left : left + side]
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        luma = picture.convert("L").resize((32, 32), Image.Resampling.BOX)
        colour = picture.convert("RGB").resize((4, 4), Image.Resampling.BOX)
        table["luma"][place] = np.asarray(luma).ravel()
        table["colour"][place] = np.asarray(colour).ravel()
        table["grey"][place] = pixels.shape[2] == 1
    return table


def _candidates(
    ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return of each of ``theirs`` the most alike of ``ours`` as rows of both together, and whether it is mirrored."""
    small = [_standard(thumbs) for thumbs in (ours, theirs, _mirrored(theirs))]
    plain, mirrored = small[1] @ small[0].T, small[2] @ small[0].T
    flips = (mirrored.max(1) > plain.max(1)).astype(np.int64)
    best = np.where(flips, mirrored.argmax(1), plain.argmax(1))
    alike = np.flatnonzero(np.maximum(mirrored.max(1), plain.max(1)) > _ALIKE)
    pairs = np.stack([best[alike], len(ours) + alike], axis=1).astype(np.int64)
    return pairs, flips[alike]


def _mirrored(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return thumbs.reshape(-1, 32, 32)[:, :, ::-1].reshape(len(thumbs), -1)


def _standard(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    halves = thumbs.reshape(-1, _SIDE, 2, _SIDE, 2).astype(np.float32).mean((2, 4)).reshape(len(thumbs), -1)
    centred = halves - halves.mean(1, keepdims=True)
    scaled: npt.NDArray[np.float32] = centred / np.maximum(
        np.linalg.norm(centred, axis=1, keepdims=True), 1e-3
    )
    return scaled
