"""Pixels of the depth float32: levels of 0..255 that are not rounded, and what becomes of their channels.

The counterparts of what Pillow computes on whole levels: opacity on white, Rec. 601 luma, CMYK to RGB. Knows nothing of
files, but for those of more than 8 bits that only 8 can be read of.
"""

from __future__ import annotations

import re

import numpy as np

from tellapart.contract.deep import BadImage, Pixels, mismatch

DEPTH = "float32"
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PPM_TEXT = re.compile(rb"P3" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def checked(pixels: Pixels) -> Pixels:
    """Return float32 levels. Raises BadImage where one is no number of 0..255, or where there are none."""
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise BadImage(f"an array of {pixels.dtype} {list(pixels.shape)} is not an image")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):  # also where one is not a number
        raise BadImage(f"has levels from {low:g} to {high:g}; they must be from 0 to 255")
    return pixels


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return float32 [H, W] or [H, W, 1, 3 or 4] (opacity, put on white) as [H, W, channels]. Raises BadImage.

    Any other number of channels has to be the one that is wanted.
    """
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    has = pixels.shape[2]
    if has == channels:
        return pixels
    if channels not in (1, 3) or has not in (1, 3, 4):
        raise mismatch(has, channels)
    if has == 4:
        opacity = pixels[..., 3:] / np.float32(255)
        pixels = 255 - (255 - pixels[..., :3]) * opacity
    if channels == 1:
        return (pixels @ _LUMA)[..., None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def of_cmyk(pixels: Pixels) -> Pixels:
    """Return RGB of CMYK, as Pillow does: (1 - ink) * (1 - black)."""
    return (255 - pixels[..., :3]) * ((255 - pixels[..., 3:]) / np.float32(255))


def refuse_coarse(name: str, content: bytes) -> None:
    """Raise BadImage for a file of more than 8 bits of which the decoders that there are give 8."""
    bits = _hidden_bits(name, content)
    if bits > 8:
        raise BadImage(
            f"is {name} of {bits} bits, of which only 8 can be read; save it as TIFF or PNG of 16 bits, or use "
            "--input.depth uint8"
        )


def _hidden_bits(name: str, content: bytes) -> int:
    """Return how many bits a file of a format has whose decoder gives 8 of them; 0: not known, or all are given."""
    if name == "JPEG 2000":  # the marker SIZ (ISO 15444-1, A.5.1); grey is read in full
        start = content.find(b"\xff\x4f\xff\x51")
        size = content[start + 40 : start + 44] if start >= 0 else b""
        count = int.from_bytes(size[:2], "big")
        return (size[2] & 127) + 1 if len(size) == 4 and count > 1 else 0
    if name in ("HEIF", "AVIF"):  # the property pixi (ISO 23008-12, 6.5.6): bits of each channel
        found = re.search(rb"pixi\0\0\0\0([\1-\4])(.)", content[:65_536], re.DOTALL)
        return found[2][0] if found else 0
    if name == "SGI":
        return 8 * content[3] if len(content) > 3 else 0
    if name == "ICO":  # a PNG inside
        return 16 if re.search(rb"IHDR.{8}\x10", content, re.DOTALL) else 0
    if name == "PPM":  # colour as text
        said = _PPM_TEXT.match(content)
        return max(1, int(said[3][:6]).bit_length()) if said else 0
    return 0
