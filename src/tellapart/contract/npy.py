"""NumPy files (.npy) that hold one image each: [H, W], [H, W, C] or [C, H, W], of any whole or floating-point numbers.

Objects are never read (they would run code). Knows nothing of how numbers become levels of 0..255 (`deep`).
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.architecture import MOST_CHANNELS
from tellapart.contract.deep import WHOLE, BadImage, Deep

_MOST_HEADER = 10_000
_NAMES = {"u": "unsigned", "i": "signed", "f": "floating-point"}
_BITS = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}
Header = tuple[
    tuple[int, ...], bool, np.dtype[Any], int
]  # shape, in Fortran's order, kind of number, where data begin


def could_be_image(head: bytes) -> bool:
    """Return whether an array's shape is one image's, by the beginning of its file; also where it is damaged."""
    try:
        shape = _said(head)[0]
    except BadImage:
        return True
    return len(shape) == 2 or (len(shape) == 3 and min(shape[0], shape[2]) <= MOST_CHANNELS)


def _said(content: bytes) -> Header:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, kind = read(stream, max_header_size=_MOST_HEADER)
    except Exception as error:  # numpy reads the head as a literal of Python, which raises many kinds
        raise BadImage("damaged NumPy file") from error
    return tuple(map(int, shape)), fortran, kind, stream.tell()


def header(content: bytes) -> Header:
    """Return what the head of a file says. Raises BadImage for what is no image."""
    shape, fortran, kind, start = _said(content)
    whole = kind.kind == "b" or 8 * kind.itemsize in _BITS.get(kind.kind, ())
    if not whole or kind.hasobject:
        raise BadImage(f"is a NumPy array of {kind.name}, which are no pixels")
    if len(shape) not in (2, 3) or not all(shape):
        raise BadImage(
            f"is a NumPy array of shape {list(shape)}; one image is [height, width], [height, width, channels] or "
            "[channels, height, width]"
        )
    return shape, fortran, kind, start


def dimensions(content: bytes, channels: int) -> tuple[int, int]:
    """Return width and height. Raises BadImage."""
    shape = header(content)[0]
    height, width = shape[:2] if _axis(shape, channels) == 2 else shape[1:]
    return width, height


def bands(content: bytes) -> int:
    """Return how many channels an array has, by its shape alone. Raises BadImage where that does not say it.

    Channels are the axis that is left where the two others are equal and neighbours, else the first or last where it
    is at most half as long as the other: [H, H, 200], [4, H, W].
    """
    shape = header(content)[0]
    if len(shape) == 2:
        return 1
    first, middle, last = shape
    if first == middle != last:
        return last
    if middle == last != first:
        return first
    if 2 * min(first, last) <= max(first, last):
        return min(first, last)
    raise BadImage(
        f"is a NumPy array of shape {list(shape)}, which does not say whether its channels are the first axis or the "
        "last; give --input.channels"
    )


def _axis(shape: tuple[int, ...], channels: int) -> int:
    """Return the axis of the channels, 2 or 0; 2 for [H, W]. Raises BadImage where both could be meant."""
    if len(shape) == 2:
        return 2
    counts = (channels, 3) if channels == 1 else (channels, 1) if channels == 3 else (channels,)
    for count in counts:
        first, last = shape[0] == count, shape[2] == count
        if first and last and shape[1] != count:
            raise BadImage(
                f"is a NumPy array of shape {list(shape)}, of which both the first and the last axis may be "
                f"the {count} channels"
            )
        if first or last:
            return 2 if last else 0
    return 2 if shape[2] <= shape[0] else 0


def read(content: bytes, channels: int) -> Deep:
    """Return an array's numbers, [H, W, C]; ``channels`` are wanted, by which the axis is known. Raises BadImage."""
    shape, fortran, kind, start = header(content)
    count = math.prod(shape)
    if len(content) - start < count * kind.itemsize:
        raise BadImage("truncated NumPy file")
    values: npt.NDArray[Any] = np.frombuffer(content, kind, count, start)
    values = values.reshape(shape, order="F" if fortran else "C")
    if kind.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    values = values.astype(values.dtype.newbyteorder("="))
    values = values[:, :, None] if values.ndim == 2 else values
    values = values if _axis(shape, channels) == 2 else np.moveaxis(values, 0, 2)
    bits = 8 * values.dtype.itemsize
    top = {"uint8": 255, "uint16": WHOLE}.get(values.dtype.name, 0)
    what = f"{_NAMES[values.dtype.kind]} {bits}-bit numbers"
    return Deep(np.ascontiguousarray(values), top, what, bands=True)
