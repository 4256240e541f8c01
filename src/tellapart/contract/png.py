"""PNG and PPM files of 16 bits: the numbers in full, of which Pillow gives the upper bytes of colour.

Pillow's readers decompress and undo the filters; what is asked of them twice, or under another name, is the lower
bytes. Knows nothing of how numbers become levels of 0..255 (`deep`).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tellapart.contract.deep import WHOLE, Deep

_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6
_KINDS = {_GREY: "16-bit grey", _RGB: "16-bit RGB", _GREY_ALPHA: "16-bit grey", _RGBA: "16-bit RGB"}
_PPM_WIDTH = re.compile(rb"P6((?:\s|#[^\r\n]*[\r\n])+)(\d+)")


def is_deep(content: bytes) -> bool:
    """Return whether a PNG's header says 16 bits."""
    return content[12:16] == b"IHDR" and content[24:25] == b"\x10" and content[25] in _KINDS


def dimensions(content: bytes) -> tuple[int, int]:
    """Return width and height by the header of a PNG that `is_deep`."""
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def read(content: bytes, reader: Any, all_bits: bool) -> tuple[Deep, Mapping[Any, Any]] | None:
    """Return the numbers of a PNG that `is_deep`, and its metadata.

    None where upper bytes suffice (not ``all_bits``) and Pillow finds what is transparent. Raises what Pillow does.
    """
    kind = content[25]
    if kind == _GREY_ALPHA:
        return _grey_and_alpha(content, reader) if all_bits else None
    with reader(io.BytesIO(content)) as image:
        if not all_bits and "transparency" not in image.info:
            return None
        size = dimensions(content)[::-1]
        if kind == _GREY:
            values = np.asarray(image).astype(np.uint16).reshape(*size, 1)
        else:
            upper = np.asarray(image).astype(np.uint16)
            with reader(io.BytesIO(content)) as again:
                again.tile = _lower(again)
                values = upper << 8 | np.asarray(again)
        clear = image.info.get("transparency")
        alpha = values[..., 3] if kind == _RGBA else None
        values = values[..., :3] if kind == _RGBA else values
        if clear is not None and alpha is None:
            alpha = np.where((values == np.array(clear)).all(axis=2), 0, WHOLE).astype(np.uint16)
        return Deep(values, WHOLE, _KINDS[kind], alpha), dict(image.info)


def _lower(image: Any) -> list[Any]:
    """Return the parts of an image of big-endian numbers, to be read as little-endian: the lower bytes."""
    return [part._replace(args=part.args.replace(";16B", ";16L")) for part in image.tile]


def _grey_and_alpha(content: bytes, reader: Any) -> tuple[Deep, Mapping[Any, Any]]:
    """Read two numbers of two bytes as four of one, which takes the same filters."""
    header = content[12:24] + b"\x08\x06" + content[26:29]
    disguised = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    with reader(io.BytesIO(disguised)) as image:
        parts: npt.NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
        grey, alpha = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
        return Deep(grey[..., None], WHOLE, _KINDS[_GREY_ALPHA], alpha), dict(image.info)


def mend_transparency(content: bytes, image: Image.Image) -> None:
    """Scale the transparent grey of a PNG of 2 or 4 bits as Pillow scales its pixels, which Pillow forgets."""
    clear = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int) and content[24] in (2, 4) and content[25] == _GREY:
        image.info["transparency"] = clear * 255 // ((1 << content[24]) - 1)


def read_ppm(content: bytes, reader: Any, check: Callable[[int, int], None]) -> Deep | None:
    """Return the numbers of a binary colour PPM of more than 8 bits, scaled to 16; None for any other.

    ``check`` is asked about width and height. Raises what it and Pillow raise.
    """
    found = _PPM_WIDTH.match(content)
    if found is None:
        return None
    with reader(io.BytesIO(content)) as image:
        width, height = image.size
        check(width, height)
    disguised = b"P5" + found[1] + str(3 * width).encode() + content[found.end() :]
    with reader(io.BytesIO(disguised)) as grey:
        if grey.mode[0] != "I":
            return None
        values = np.asarray(grey).astype(np.uint16).reshape(height, width, 3)
    return Deep(values, WHOLE, "16-bit RGB")
