"""A faster decoder of JPEG files, used if its pixels equal those of the usual one. The owner of simplejpeg.

Pillow and simplejpeg decode with the same library, libjpeg-turbo, but Pillow passes the pixels on through two copies,
with four bytes each. The rules of `decoding` are defined by Pillow. So the two are compared on a few images before the
first use, and whatever simplejpeg does not decode without complaint is left to Pillow. Knows nothing of EXIF or of what
is refused.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Decoder = Callable[[bytes, str], Pixels]
_COLOURS = {"RGB": "RGB", "L": "GRAY"}  # simplejpeg's names of Pillow's modes


def pixels(content: bytes, mode: str, width: int, height: int) -> Pixels | None:
    """Return a JPEG's pixels, uint8 [height, width, 3 (RGB) or 1 (L)], writable; None: Pillow should decode it.

    ``mode``, ``width`` and ``height`` are what Pillow read in the header. Safe to call from many threads.
    """
    decoder = _decoder()
    if decoder is None or mode not in _COLOURS:
        return None
    try:
        found = decoder(content, _COLOURS[mode])
    except Exception:  # damaged, or unusual: Pillow decodes it, or says what is wrong with it
        return None
    return found if found.shape[:2] == (height, width) else None


@functools.cache
def _decoder() -> Decoder | None:
    """Return simplejpeg's function, or None if it is not installed or its pixels differ from Pillow's."""
    try:
        decoder: Decoder = importlib.import_module("simplejpeg").decode_jpeg
        alike = all(_agree(decoder, *picture) for picture in _pictures())
    except Exception:  # not installed, or unusable here
        return None
    return decoder if alike else None


def _agree(decoder: Decoder, content: bytes, mode: str) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image)
    return np.array_equal(decoder(content, _COLOURS[mode]).reshape(expected.shape), expected)


def _pictures() -> list[tuple[bytes, str]]:
    """Return small JPEG files, of each kind that the two libraries may decode differently, and their modes."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    smooth = Image.fromarray(noise).resize((53, 45), Image.Resampling.BICUBIC)
    kinds: list[tuple[str, dict[str, Any]]] = [("L", {})]
    kinds += [
        ("RGB", {"subsampling": subsampling, "progressive": progressive, "quality": quality})
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive, quality in ((False, 90), (True, 60))
    ]
    return [(_encoded(smooth.convert(mode), options), mode) for mode, options in kinds]


def _encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()
