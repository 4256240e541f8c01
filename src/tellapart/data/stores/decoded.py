"""The result for one image: its pixels, its hash, or what is wrong with it; and the two functions that decode.

The functions are data, so that they can be sent to another process (`workers`), and load torch only where it computes.
Knows nothing of stores, threads or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.decoding import BadImage, Pixels, crop_box, decode, in_depth
from tellapart.contract.preprocessing import REDUCED_MARGIN, Preprocessing
from tellapart.contract.resizing import load
from tellapart.contract.sides import Size, sides
from tellapart.data.samples import Samples, content_hash

Box = npt.NDArray[np.float64] | None
Decode = Callable[[bytes | Pixels, Box], Pixels]
Decoded = tuple[Pixels | None, str, str]  # see `decoded`


def decoded(samples: Samples, decode: Decode, row: int) -> Decoded:
    """Return a row's pixels (None: it is bad), its content's hash, and what is wrong with it."""
    box = None if samples.boxes is None else samples.boxes[row]
    return attempt(lambda: samples.read(row), decode, box)


def attempt(read: Callable[[], bytes | Pixels], decode: Decode, box: Box) -> Decoded:
    """Return the result for what ``read`` returns."""
    try:
        content = read()
    except OSError as error:
        return None, "", f"cannot be read: {error.strerror or error}"
    digest = content_hash(content)
    try:
        return decode(content, box), digest, ""
    except BadImage as error:
        return None, digest, error.reason
    except MemoryError:
        return None, digest, "does not fit in memory"


@dataclass(frozen=True)
class AsContracted:
    """Decodes exactly by the contract: [height, width, C] of its depth."""

    contract: Preprocessing
    max_pixels: int

    @property
    def depth(self) -> str:
        """Kind of number of the pixels."""
        return self.contract.depth

    def __call__(self, content: bytes | Pixels, box: Box) -> Pixels:
        """Return the image. Raises BadImage."""
        return load(content, self.contract, max_pixels=self.max_pixels, box=box)


@dataclass(frozen=True)
class AsSource:
    """Decodes to the image in its own shape, scaled down to the smallest that covers ``size``: [H, W, C] of ``depth``.

    If that is a square, the short side is then the size.
    """

    channels: int
    size: Size
    max_pixels: int
    reduced: bool  # whether a JPEG may be decoded at a part of its size
    levels: tuple[float, float] | None = None  # see `decode`
    depth: str = "uint8"

    def __call__(self, content: bytes | Pixels, box: Box) -> Pixels:
        """Return the image. Raises BadImage."""
        whole = box is None or bool(np.isnan(box).any())
        reduce = self._suffices if whole and self.reduced else None
        image = pixels(content, self.channels, self.max_pixels, reduce, self.levels, self.depth)
        image = image if box is None else crop_box(image, box)
        short_side = self._short_side(*image.shape[:2])
        if min(image.shape[:2]) <= short_side:
            return image
        from tellapart.preprocess import fit_short_side  # loads torch

        return fit_short_side(image, short_side)

    def _short_side(self, height: int, width: int) -> int:
        """Return the short side of an image of this shape that just covers the size."""
        rows, columns = sides(self.size)
        short = min(height, width)
        return max(-(-rows * short // height), -(-columns * short // width))

    def _suffices(self, height: int, width: int) -> bool:
        return min(height, width) >= REDUCED_MARGIN * self._short_side(height, width)


def pixels(
    content: bytes | Pixels,
    channels: int,
    max_pixels: int,
    suffices: Callable[[int, int], bool] | None = None,
    levels: tuple[float, float] | None = None,
    depth: str = "uint8",
) -> Pixels:
    """Return [H, W, channels] of a depth, of a file's bytes (see `decode`), or of pixels. Raises BadImage."""
    if isinstance(content, np.ndarray):
        return in_depth(content, channels, depth)
    return decode(content, channels, max_pixels, suffices, levels, depth)


def kind(decode: Decode) -> np.dtype[Any]:
    """Return the kind of number of the pixels that a function gives: uint8 unless it says otherwise."""
    return np.dtype(getattr(decode, "depth", "uint8"))


def bytes_of(results: list[Any]) -> int:
    """Return how many bytes of pixels some `Decoded` hold."""
    return sum(image.nbytes for image, _, _ in results if image is not None)
