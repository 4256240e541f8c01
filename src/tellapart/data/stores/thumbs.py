"""Thumbnails of a few images of each class, for measurements that choices rest on.

Bounded by a number of images and by what decoding them costs, not by time: the same data gives the same thumbnails on
every machine. Knows nothing of what is measured.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from tellapart.data.samples import Samples
from tellapart.data.stores.decoded import pixels
from tellapart.errors import DataError
from tellapart.preprocess import BadImage, crop_box
from tellapart.spec import DataSpec

COLOURS = 512  # images that are looked at for colour, where a few were all grey
CLASSES = 40  # that are looked at, spread over all of them
DECODED = 60_000_000  # pixels after which no more images are decoded: about a second of one core


def rows_of_classes(
    labels: npt.NDArray[np.int64], most: int, classes: int = CLASSES
) -> npt.NDArray[np.int64]:
    """Return up to ``most`` rows, drawn at random with a fixed seed: one of each class, then a second, and so on.

    So the first few are as balanced as all of them. With more than ``classes`` classes, only so many are drawn from.
    """
    names = np.unique(labels)
    if len(names) > classes:
        names = names[np.linspace(0, len(names) - 1, classes).astype(int)]
    rng = np.random.default_rng(0)
    places, turns = [], []
    for name in names:
        mine = rng.permutation(np.flatnonzero(labels == name))[:most]
        places.append(mine)
        turns.append(np.arange(len(mine)))
    rows, turn = np.concatenate(places), np.concatenate(turns)
    return rows[np.argsort(turn, kind="stable")][:most].astype(np.int64)


def thumbnails(
    samples: Samples,
    spec: DataSpec,
    rows: npt.NDArray[np.int64],
    side: int,
    levels: tuple[float, float] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return grey thumbnails uint8 [n, side, side] of ``rows``, squashed to squares, and of which rows they are.

    What cannot be read is left out. Stops after `DECODED` pixels; JPEGs are decoded at a part of their size.
    """
    found: list[npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    spent = 0
    for row in rows.tolist():
        if spent > DECODED:
            break
        try:
            content = samples.read(row)
            box = None if samples.boxes is None or np.isnan(samples.boxes[row]).any() else samples.boxes[row]
            suffices = (lambda high, wide: min(high, wide) >= 2 * side) if box is None else None
            image = pixels(content, 1, spec.max_pixels, suffices, levels)
            spent += image.shape[0] * image.shape[1]
            if box is not None:
                image = crop_box(image, box)
        except (OSError, BadImage, MemoryError, DataError):
            continue
        small = Image.fromarray(image[..., 0]).resize((side, side), Image.Resampling.BOX)
        found.append(np.asarray(small))
        kept.append(row)
    if not found:
        return np.zeros((0, side, side), np.uint8), np.zeros(0, np.int64)
    return np.stack(found), np.asarray(kept, np.int64)


def has_colour(samples: Samples, spec: DataSpec, levels: tuple[float, float] | None = None) -> bool:
    """Whether one of up to `COLOURS` images, evenly over the table, is not grey; bounded as `thumbnails`."""
    spent = 0
    for row in np.unique(np.linspace(0, len(samples) - 1, min(COLOURS, len(samples))).astype(int)).tolist():
        if spent > DECODED:
            break
        try:
            content = samples.read(row)
            if isinstance(content, np.ndarray) and content.ndim == 2:
                continue
            image = pixels(content, 3, spec.max_pixels, lambda high, wide: min(high, wide) >= 64, levels)
        except (OSError, BadImage, MemoryError):
            continue
        spent += image.shape[0] * image.shape[1]
        if (image != image[..., :1]).any():
            return True
    return False
