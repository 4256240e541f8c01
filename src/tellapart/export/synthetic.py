"""Generated images for the comparison when there are no real ones: a seeded set of files of many kinds and odd sizes.

They prove less than real images: the network's answers to them may hardly differ from each other.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image

from tellapart.contract import Preprocessing
from tellapart.export.outcome import Case, Cases

_KINDS = (("JPEG", "RGB"), ("PNG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "L"), ("JPEG", "RGB"))


def synthetic(count: int, seed: int = 0, channels: int = 3, contract: Preprocessing | None = None) -> Cases:
    """Return ``count`` images: JPEG and PNG, colour, grey and with alpha, all orientations, 9 to 700 pixels.

    For a model with another number of channels than 1 or 3 (``channels``, or its contract's): NumPy files with that
    many; of 16 bits, or of the range's numbers, where the contract's pixels are float32.
    """
    channels = contract.channels if contract else channels
    deep = contract is not None and contract.depth == "float32"
    levels = contract.range if contract else None
    make = draw if channels in (1, 3) and not deep else functools.partial(_bands, channels, deep, levels)
    images = [
        Case(f"synthetic-{number:04d}", functools.partial(make, number, seed)) for number in range(count)
    ]
    return Cases(images, f"{count} synthetic images (seed {seed}); there were no real ones", real=False)


def _bands(channels: int, deep: bool, levels: tuple[float, float] | None, number: int, seed: int) -> bytes:
    """Return one image as a NumPy file, [H, W, channels] of blobs and noise: uint8, ``deep`` uint16 or float32."""
    rng = np.random.default_rng([seed, number])
    width, height = (int(side) for side in rng.integers(9, 300, 2))
    planes = []
    for _ in range(channels):
        coarse = Image.fromarray(
            rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9))), np.uint8)
        )
        planes.append(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32))
    pixels = np.stack(planes, axis=2)
    pixels += rng.normal(0, float(rng.uniform(0, 30)), pixels.shape).astype(np.float32)
    stream = io.BytesIO()
    pixels = np.clip(pixels, 0, 255)
    if deep and levels:
        np.save(
            stream, (levels[0] + pixels.astype(np.float64) * (levels[1] - levels[0]) / 255).astype(np.float32)
        )
    else:
        np.save(stream, (pixels * 257).astype(np.uint16) if deep else pixels.astype(np.uint8))
    return stream.getvalue()


def draw(number: int, seed: int = 0) -> bytes:
    """Return one image's file: blobs of colour and noise."""
    rng = np.random.default_rng([seed, number])
    width, height = (int(side) for side in rng.integers(9, 700, 2))
    kind, mode = _KINDS[number % len(_KINDS)]
    channels = len(mode) if mode != "L" else 1
    coarse = rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), channels), np.uint8)
    picture = Image.fromarray(coarse[..., 0] if mode == "L" else coarse)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    pixels += rng.normal(0, float(rng.uniform(0, 30)), pixels.shape).astype(np.float32)
    exif = Image.Exif()
    exif[0x0112] = number % 8 + 1
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, kind, exif=exif)
    return stream.getvalue()
