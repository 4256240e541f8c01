"""An image file's pixels as a program without tellapart decodes them: plain Pillow, by the documented rules.

It exists for comparison, so it shares no code with `contract.decoding`. It leaves out what plain Pillow does not give
(more than 8 bits, TIFF files that it does not know).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from tellapart.contract import Pixels, Preprocessing

_TIFF_BITS, _TIFF_PLANES = 258, 284


def pixels(content: bytes, contract: Preprocessing, whole: bool = False) -> Pixels | None:
    """Return [H, W, channels] of the contract's depth, upright; None if plain Pillow or numpy does not give it.

    ``whole``: decode a JPEG at full size, even if the contract decodes at reduced size.
    """
    if contract.depth == "float32":
        deep = _deep(content, contract)
        if deep is not None:
            return deep
    found = _whole(content, contract, whole)
    return None if found is None else found.astype(contract.depth, copy=False)


def _deep(content: bytes, contract: Preprocessing) -> Pixels | None:
    """Return a NumPy file of other than 8 bits, or a grey PNG of 16, as the user's own program would scale it."""
    try:
        if content.startswith(b"\x93NUMPY"):
            found = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(content)) as opened:
                if opened.format != "PNG" or opened.mode != "I;16" or opened.getexif() or opened.info:
                    return None
                found = np.array(opened)[..., None]
    except Exception:
        return None
    if found.dtype == np.uint8 or found.ndim != 3 or (contract.range is None and found.dtype != np.uint16):
        return None
    if found.shape[2] not in (1, contract.channels) or contract.channels == found.shape[0]:
        return None
    low, high = contract.range or (0, 65_535)
    levels = np.clip((found.astype(np.float64) - low) / (high - low), 0, 1) * 255
    return np.broadcast_to(levels, (*levels.shape[:2], contract.channels)).astype(np.float32)


def _whole(content: bytes, contract: Preprocessing, whole: bool) -> Pixels | None:
    if contract.channels not in (1, 3):
        return _bands(content, contract.channels)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as opened:
            warnings.simplefilter("ignore")
            if _is_beyond(opened, content):
                return None
            if contract.decode == "scaled" and opened.format == "JPEG" and not whole:
                _reduce(opened, contract)
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                layers = image.convert("RGBA")
                image = Image.new("RGBA", layers.size, "white")
                image.alpha_composite(layers)
            if image.mode not in ("L", "RGB"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            found = np.array(image.convert("L" if contract.channels == 1 else "RGB"))
            return found.reshape(image.height, image.width, contract.channels)
    except Exception:  # Pillow's readers raise nearly every kind of error
        return None


def _bands(content: bytes, channels: int) -> Pixels | None:
    """Return a NumPy file of 8 bits as numpy reads it, its channels last; None for any other file."""
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:
        return None
    if found.dtype != np.uint8 or found.ndim != 3 or channels not in (found.shape[0], found.shape[2]):
        return None
    return np.ascontiguousarray(found if found.shape[2] == channels else found.transpose(1, 2, 0))


def _is_beyond(image: Image.Image, content: bytes) -> bool:
    """Return whether an image has more than 8 bits, or anything else that Pillow's conversion does not keep."""
    if image.mode[0] in "IF" or image.format not in _PLAIN:
        return True
    if image.format == "PNG":
        return content[24] == 16 or (content[24] < 8 and content[25] == 0 and "transparency" in image.info)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return bool(max(tags.get(_TIFF_BITS, (1,))) > 8 or tags.get(_TIFF_PLANES, 1) != 1)
    return image.format == "PPM" and image.mode == "RGB" and b" 255" not in content[:64].replace(b"\n", b" ")


_PLAIN = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")


def _reduce(image: Image.Image, contract: Preprocessing) -> None:
    for factor in (8, 4, 2):
        rows, columns = (-(-side // factor) for side in (image.height, image.width))
        if min(image.size) >= factor and contract.suffices(rows, columns):
            image.draft(None, (image.width // factor, image.height // factor))
            return
