"""Pictures that Python hands over: Pillow images, arrays and tensors, as what `decode` and `to_channels` take.

Pictures of 8 bits stay pixels; what has more bits, or a mode with rules of its own, becomes the bytes of a lossless
file, so that the rules for files (`decoding`) hold for it too. Floating-point numbers from 0 to 1 are levels: of the
depth uint8 each has to be a 255th, of float32 it may be any; others need a range (`deep`). Loads no torch. Knows
nothing of data sets.
"""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.deep import BadImage, Pixels

_CHANNELS = (1, 3, 4)
# Modes that no lossless file has; YCbCr in a TIFF cannot be read again by Pillow before 13.
_KEPT_AS = {"HSV": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA"}
_OFF = 1e-3  # of a level: what float32 loses between 0..255 and 0..1


class UnfitImage(BadImage):
    """A picture of a kind that cannot be taken, whichever it is: all others of its source are probably alike."""


def is_picture(value: object) -> bool:
    """Return whether ``value`` may be a picture: of Pillow, an array, a tensor, or a file's bytes."""
    return isinstance(value, (bytes, bytearray, np.ndarray)) or _is_pillow(value) or is_tensor(value)


def is_tensor(value: object) -> bool:
    """Return whether ``value`` is a tensor of torch, which nobody loads here."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_pillow(value: object) -> bool:
    return hasattr(value, "save") and hasattr(value, "convert") and hasattr(value, "mode")


def content_of(image: Any, ranged: bool = False, depth: str = "uint8") -> bytes | Pixels:
    """Return a picture as levels, uint8 (or of ``depth``) [H, W] or [H, W, 3 or 4], or as a file's bytes.

    Args:
        image: of Pillow (its EXIF orientation is obeyed); an array [H, W] or [H, W, C]; a tensor [H, W] or [C, H, W].
            The other order is seen by where 1, 3 or 4 stands. Of bool, uint8, uint16 or floating point.
        ranged: floating point keeps its numbers, for a range that says what is black and white; else they must be
            from 0 to 1, and of the depth uint8 whole 255ths.
        depth: uint8, or float32: floating-point numbers are not rounded.

    Raises UnfitImage where the kind of picture is not taken, BadImage where one cannot be read, and what reading a file
    lazily raises.
    """
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if _is_pillow(image):
        return _of_pillow(image)
    if is_tensor(image):
        return _of_array(_numbers(image), True, ranged, depth)
    if isinstance(image, np.ndarray):
        return _of_array(image, False, ranged, depth)
    raise UnfitImage(
        f"a {type(image).__name__} is not an image; expected a Pillow image, an array or a tensor"
    )


def _numbers(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        raise UnfitImage("bfloat16 has not enough digits for 256 levels; give uint8")
    return np.asarray(tensor.numpy())


def _of_pillow(image: Any) -> bytes | Pixels:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)  # neither pixels nor the bytes below hold an orientation
    image = image.convert(_KEPT_AS[image.mode]) if image.mode in _KEPT_AS else image
    if image.mode == "RGBA" or (image.mode in ("L", "RGB") and "transparency" not in image.info):
        return np.array(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if image.mode in ("1", "P", "L", "LA", "RGB") else "TIFF")
    return buffer.getvalue()


def _of_array(image: npt.NDArray[Any], channels_first: bool, ranged: bool, depth: str) -> bytes | Pixels:
    image = _upright(image, channels_first)
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype.kind == "f" and not ranged and depth == "float32":
        return _unrounded(image)
    elif image.dtype.kind == "f":
        image = _floats(image, ranged)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if image.dtype in (np.uint16, np.float32):
        return _tiff(image if image.ndim == 3 else image[..., None])
    raise UnfitImage(
        f"pixels of type {image.dtype}, whose range is not known; give uint8 from 0 to 255, or uint16 from 0 to 65535"
    )


def _upright(image: npt.NDArray[Any], channels_first: bool) -> npt.NDArray[Any]:
    """Return [H, W] or [H, W, 3 or 4]."""
    if image.ndim == 3 and image.size:
        first, last = image.shape[0] in _CHANNELS, image.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            image, last = image.transpose(1, 2, 0), True
        if last:
            return image[..., 0] if image.shape[2] == 1 else image
    if image.ndim == 2 and image.size:
        return image
    expected = "[1, 3 or 4, height, width]" if channels_first else "[height, width, 1, 3 or 4]"
    raise UnfitImage(f"an array of the shape {list(image.shape)}; expected [height, width] or {expected}")


def _floats(image: npt.NDArray[Any], ranged: bool) -> npt.NDArray[Any]:
    """Return uint8 where that loses nothing; float32 where there is a range."""
    if ranged:
        return image.astype(np.float32)
    _check_unit(image)
    levels = image.astype(np.float64) * 255
    whole = np.rint(levels)
    off = float(np.abs(levels - whole).max())
    if off > max(_OFF, 255 * float(np.finfo(image.dtype).eps) / 2):
        raise UnfitImage(
            f"floating-point numbers that are not the 256 levels of 8 bits (one is {off:.2g} of a level off): rounding "
            "would change them. Give uint8 images, and leave changes in floating point (resizing, say) out; keep them "
            "with input.depth float32; or say what is black and white with input.range"
        )
    return whole.astype(np.uint8)


def _unrounded(image: npt.NDArray[Any]) -> Pixels:
    """Return numbers from 0 to 1 as levels, float32."""
    _check_unit(image)
    return np.ascontiguousarray((image.astype(np.float64) * 255).astype(np.float32))


def _check_unit(image: npt.NDArray[Any]) -> None:
    """Raise BadImage for floating-point numbers of which one is not from 0 to 1."""
    if not np.isfinite(image).all():
        raise BadImage("has pixels that are not finite numbers")
    low, high = float(image.min()), float(image.max())
    if low < 0:
        raise UnfitImage(
            f"numbers from {low:.3g} to {high:.3g}: normalised already, so that nobody knows what 8-bit images they "
            "were. Leave the normalisation out (each model keeps mean and deviation and applies them itself), or say "
            "what is black and white with input.range"
        )
    if high > 1:
        raise UnfitImage(
            f"floating-point numbers up to {high:.6g}, which have no range of their own; give uint8, or floating point "
            "from 0 to 1, or say what is black and white with input.range"
        )


def _tiff(values: npt.NDArray[Any]) -> bytes:
    """Return an uncompressed TIFF file of numbers [H, W, 1, 3 or 4 (RGB and alpha)], uint16 or float32."""
    height, width, count = values.shape
    data = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()
    bits, kind = 8 * values.dtype.itemsize, 3 if values.dtype.kind == "f" else 1
    tags: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * count), (259, 3, (1,)),
        (262, 3, (1 if count == 1 else 2,)), (273, 4, (8,)), (277, 3, (count,)), (278, 4, (height,)),
        (279, 4, (len(data),)), (284, 3, (1,)), *([(338, 3, (2,))] if count == 4 else []),
        (339, 3, (kind,) * count),
    ]  # fmt: skip
    place = 8 + len(data) + len(data) % 2
    after = place + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, code, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if code == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", after + len(extra)), extra + packed
        entries += struct.pack("<HHI", tag, code, len(numbers)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", place)
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return head + data + b"\0" * (len(data) % 2) + directory + extra
