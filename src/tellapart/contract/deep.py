"""Pixels of more than 8 bits: from an image's numbers to levels of 0..255.

`Levels` (the contract's ``range``) says which numbers are black and white. Without, the file's whole range counts:
unsigned grey of 16 bits is divided by 257 and rounded, colour keeps its upper byte. Signed and 32-bit numbers have no
range of their own: they count as 16-bit ones where all lie in 0..65535 and are refused otherwise; floating point is
refused. Levels are whole numbers, or with the depth float32 the same without rounding. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
"""Levels of 0..255: uint8, or float32 where the contract's ``depth`` says so."""
Levels = tuple[float, float]  # what becomes 0, and what becomes 255
WHOLE = 65_535


class BadImage(Exception):  # noqa: N818 - a finding that is caught and listed, not an error of the program
    """An image that cannot be read; ``reason`` is a short phrase for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def mismatch(has: int, channels: int) -> BadImage:
    """Return that an image has another number of channels than the input."""
    return BadImage(f"has {has} channel{'s' if has > 1 else ''}; the input has {channels}")


def uses_little(largest: float) -> bool:
    """Return whether images with this largest number use less than half of 16 bits, so that they become dark."""
    return 0 < largest < (WHOLE + 1) // 2


def likely_range(largest: float) -> str:
    """Return the range of the sensor with the fewest bits that gives this number, such as 0-4095."""
    return f"0-{(1 << max(1, int(largest).bit_length())) - 1}"


@dataclass(frozen=True)
class Deep:
    """An image's numbers, [H, W, 1 (grey), 3 (RGB) or 4 (CMYK)], as the file stores them; with ``bands`` any number.

    top: the largest number that the file can hold, 0: it has no range of its own. what: the file in words.
    alpha: [H, W] of the same kind; premultiplied: the colours were multiplied by it. inverted: 0 is white.
    """

    values: npt.NDArray[Any]
    top: int
    what: str
    alpha: npt.NDArray[Any] | None = None
    premultiplied: bool = False
    inverted: bool = False
    orientation: int = 1
    bands: bool = False

    @property
    def largest(self) -> float | None:
        """The largest number; None for 8 bits."""
        return None if self.top and self.top <= 255 else float(self.values.max())

    def floats(self, levels: Levels | None) -> Pixels:
        """Return the image in levels that are not rounded, float32, of `pixels`' shape. Raises BadImage."""
        colours = _unrounded(self.values, self.top, self.what, levels)
        if self.inverted:
            colours = np.float32(255) - colours
        if self.alpha is None:
            return colours
        alpha = _unrounded(self.alpha, self.top, self.what, None)[..., None]
        if self.premultiplied:
            colours = np.where(alpha > 0, np.minimum(colours * 255 / np.maximum(alpha, 1e-3), 255), 0)
        if colours.shape[2] == 1:
            colours = np.repeat(colours, 3, axis=2)
        return np.concatenate([colours, alpha], axis=2, dtype=np.float32)

    def pixels(self, levels: Levels | None) -> Pixels:
        """Return the image in levels, uint8 [H, W, 1, 3 or 4 (RGBA)] (CMYK and bands: as ``values``).

        Raises BadImage where no range is known.
        """
        colours = _scaled(self.values, self.top, self.what, levels, self.bands)
        if self.inverted:
            colours = 255 - colours
        if self.alpha is None:
            return colours
        alpha = _scaled(self.alpha, self.top, self.what, None)[..., None]
        if self.premultiplied:
            divided = colours.astype(np.uint32) * 255 // np.maximum(alpha, 1)
            colours = np.where(alpha > 0, np.minimum(divided, 255), 0).astype(np.uint8)
        if colours.shape[2] == 1:
            colours = np.repeat(colours, 3, axis=2)
        return np.concatenate([colours, alpha], axis=2)


def _scaled(
    values: npt.NDArray[Any], top: int, what: str, levels: Levels | None, bands: bool = False
) -> Pixels:
    """Return numbers as levels; 16-bit colour by its upper byte, as Pillow does, grey and ``bands`` rounded."""
    if top and top <= 255:
        return values.astype(np.uint8)
    if levels is None and not top:
        _check_sixteen_bits(values, what)
        values = values.astype(np.uint16)
    if levels is None:
        if bands or values.shape[-1] == 1 or values.ndim == 2:
            return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind == "f":
        _check_finite(values, what)
        _check_scale(values, what, levels)
    if values.dtype == np.uint16:
        table: Pixels = _in_levels(np.arange(WHOLE + 1), levels)[values]
        return table
    return np.concatenate(
        [_in_levels(part, levels) for part in np.array_split(values, max(1, len(values) // 64))]
    )


def _unrounded(values: npt.NDArray[Any], top: int, what: str, levels: Levels | None) -> Pixels:
    """Return numbers as levels, float32; what lies beyond the range is clipped."""
    if top and top <= 255:
        return values.astype(np.float32)
    if levels is None and not top:
        _check_sixteen_bits(values, what)
    if values.dtype.kind == "f":
        _check_finite(values, what)
    low, high = levels or (0, WHOLE)
    if values.dtype.kind == "f" and (float(values.min()) > high or float(values.max()) < low):
        raise BadImage(f"all of its numbers are outside of the range {low:g}-{high:g} ({what})")
    parts = np.array_split(values, max(1, len(values) // 64))
    scaled = [np.clip((part.astype(np.float64) - low) * (255 / (high - low)), 0, 255) for part in parts]
    return np.concatenate(scaled, dtype=np.float32)


def _check_finite(values: npt.NDArray[Any], what: str) -> None:
    if not np.isfinite(values).all():
        raise BadImage(f"has pixels that are not finite numbers ({what})")


def _in_levels(values: npt.NDArray[Any], levels: Levels) -> Pixels:
    low, high = levels
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.floor(np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)


def _check_scale(values: npt.NDArray[Any], what: str, levels: Levels) -> None:
    """Raise BadImage where floating-point numbers are of another scale than the range, such as 0..1 in 0-4095."""
    low, high, level = float(values.min()), float(values.max()), (levels[1] - levels[0]) / 255
    if high - low < level or low > levels[1] or high < levels[0]:
        raise BadImage(
            f"its numbers from {low:g} to {high:g} are of another scale than the range {levels[0]:g}-{levels[1]:g} "
            f"({what})"
        )


def _check_sixteen_bits(values: npt.NDArray[Any], what: str) -> None:
    """Raise BadImage where numbers without a range of their own do not lie within 16 bits."""
    advice = "give one with --input.range LOW-HIGH"
    if values.dtype.kind == "f":
        raise BadImage(f"floating-point pixels, which have no defined range ({what}); {advice}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHOLE or values.dtype.itemsize == 1:
        raise BadImage(f"pixels from {low} to {high}, which have no defined range ({what}); {advice}")
