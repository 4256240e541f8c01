"""Image files that several tests make."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    """A picture as a file with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def photograph(
    number: int, width: int, height: int, orientation: int = 1, kind: str = "JPEG", **options: Any
) -> bytes:
    """A smooth picture as a file."""
    pixels = np.random.default_rng(number).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8
    )
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return encoded(picture, kind, orientation, **options)


def blank(path: Path, size: tuple[int, int]) -> None:
    """A black picture in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
