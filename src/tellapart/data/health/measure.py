"""One pass over the files: some 1,300 bytes of numbers for each image, whatever its size.

These numbers are all that duplicates, suspects and findings are judged by. Judges nothing itself.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from tellapart.contract.decoding import bands, largest, shown
from tellapart.contract.deep import Levels
from tellapart.contract.formats import BY_EXTENSION
from tellapart.data.health.result import Pixels, Read
from tellapart.data.samples import Samples, content_hash
from tellapart.doctor import processors
from tellapart.preprocess import BadImage

Table = npt.NDArray[Any]  # of RECORD

_BLOCK = 512
# Simple features of an image: weight in the score, words for an unusually low value and for a high one.
FEATURES: dict[str, tuple[float, str, str]] = {
    "colours": (1.0, "few colours", "very many colours"),
    "entropy": (1.0, "mostly one colour", "no dominant colours"),
    "contrast": (0.7, "hardly any contrast", "very high contrast"),
    "texture": (1.0, "hardly any detail", "very busy"),
    "structure": (0.7, "fine pattern, no large shapes", "large plain shapes"),
    "saturation": (0.7, "unusually grey", "unusually colourful"),
    "brightness": (0.7, "unusually dark", "unusually bright"),
    "aspect": (0.5, "unusually tall", "unusually wide"),
    "pixels": (0.3, "unusually small", "unusually large"),
}

RECORD = np.dtype(
    [
        ("width", np.int32),
        ("height", np.int32),
        ("size", np.int64),
        ("format", "S12"),
        ("mode", "S12"),
        ("rotated", bool),
        ("grey", bool),
        ("misnamed", bool),
        ("largest", np.float64),  # number of an image of more than 8 bits; 0: it has no more
        ("content", "S32"),
        ("luma", np.uint8, 1_024),  # 32x32
        ("colour", np.uint8, 48),  # 4x4x3
        ("features", np.float32, len(FEATURES)),
    ]
)


def measure_all(
    samples: Samples,
    rows: npt.NDArray[np.int64],
    read: Read,
    progress: Callable[[int, int], None] | None,
    max_pixels: int,
    workers: int,
    levels: Levels | None = None,
    depth: str = "uint8",
) -> tuple[Table, dict[int, str]]:
    """Return one record for each of ``rows``, and the reason for each index that could not be read."""
    table = np.zeros(len(rows), dtype=RECORD)
    reasons: dict[int, str] = {}

    def measure(index: int) -> str | None:
        row = int(rows[index])
        try:
            table[index] = _measure(read(row), str(samples.paths[row]), max_pixels, levels, depth)
        except BadImage as error:
            return error.reason
        except MemoryError:
            return "does not fit in memory"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(workers or processors()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about broken metadata
        for start in range(0, len(rows), _BLOCK):  # a block at a time: no queue of 200,000 tasks
            block = range(start, min(start + _BLOCK, len(rows)))
            for index, reason in zip(block, pool.map(measure, block), strict=True):
                if reason is not None:
                    reasons[index] = reason
                if progress and (index % 32 == 31 or index + 1 == len(rows)):
                    progress(index + 1, len(rows))
    return table, reasons


def _measure(
    content: bytes | Pixels, path: str, max_pixels: int, levels: Levels | None, depth: str
) -> tuple[Any, ...]:
    """Return the fields of RECORD for one image. Raises BadImage."""
    if isinstance(content, bytes):
        pixels = shown(content, max_pixels, levels, depth)
        kind, mode, rotated = _header(content)
        most = largest(content, max_pixels) or 0.0
        named = BY_EXTENSION.get(os.path.splitext(path)[1].lower())
        misnamed = named is not None and kind not in (named.pillow, "", "MPO")
        size = len(content)
    else:
        pixels = shown(content)
        kind, mode, rotated, misnamed = "array", "L" if content.ndim == 2 else "RGB", False, False
        most = 0.0
        size = content.nbytes
    picture = PillowImage.fromarray(pixels)
    grey = picture.convert("L")
    luma = np.asarray(grey.resize((32, 32), PillowImage.Resampling.BOX))
    coarse = np.asarray(grey.resize((16, 16), PillowImage.Resampling.BOX))
    colour = np.asarray(picture.resize((4, 4), PillowImage.Resampling.BOX))
    points = _points(pixels)
    colourful = _colourfulness(points)
    is_grey = int(colourful.max()) <= 4  # JPEG's colour noise
    return (
        pixels.shape[1], pixels.shape[0], size, kind.encode(), mode.encode(), rotated, is_grey, misnamed,
        most, content_hash(content).encode(), luma.ravel(), colour.ravel(),
        _features(points, colourful, coarse, pixels.shape[0], pixels.shape[1]),
    )  # fmt: skip


def _header(content: bytes) -> tuple[str, str, bool]:
    """Return Pillow's names of format and mode, and whether EXIF turns the picture; "" where unknown.

    Of files whose channels have no colours' names, the mode is how many there are.
    """
    count = bands(content)
    if count:
        return ("NumPy" if content.startswith(b"\x93NUMPY") else "TIFF"), f"{count} bands", False
    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(0x0112, 1)
            return image.format or "", image.mode, turned in range(2, 9)
    except Exception:  # decoded, so it counts; broken metadata raises nearly every kind of error
        return "", "", False


def _points(pixels: Pixels) -> Pixels:
    """Return 64x64 pixels of the image on an even grid, not interpolated: no colour that is not there."""
    height, width = pixels.shape[:2]
    y, x = ((2 * np.arange(64) + 1) * side // 128 for side in (height, width))
    points: Pixels = pixels[y[:, None], x[None, :]]
    return points


def _colourfulness(points: Pixels) -> Pixels:
    """Return the largest minus the smallest channel of each pixel, uint8."""
    red, green, blue = (points[..., channel] for channel in range(3))
    high = np.maximum(np.maximum(red, green), blue)
    return high - np.minimum(np.minimum(red, green), blue)


def _features(
    points: Pixels, colourful: Pixels, luma: Pixels, height: int, width: int
) -> npt.NDArray[np.float32]:
    """Return the values of FEATURES, in its order. points: uint8 [64, 64, 3]; luma: uint8 [16, 16]."""
    values = points.astype(np.float32)
    fine = points.astype(np.int64) >> 3  # 32 levels a channel
    counts = np.bincount((fine[..., 0] << 10 | fine[..., 1] << 5 | fine[..., 2]).ravel())
    shares = counts[counts > 0] / counts.sum()
    grey = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return np.array(
        [
            np.log2(len(shares)),
            -(shares * np.log2(shares)).sum(),
            grey.std(),
            np.log(steps + 0.5),
            np.log((luma.std() + 1) / (grey.std() + 1)),
            colourful.mean(),
            grey.mean(),
            np.log(width / height),
            np.log(width * height),
        ],
        dtype=np.float32,
    )
