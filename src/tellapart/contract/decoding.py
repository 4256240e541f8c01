"""From an image file's bytes to upright pixels, uint8 or float32, by stated rules. Knows nothing of networks.

The content decides, never the file's name:

- Formats: those of `formats` (JPEG also as the first picture of MPO), HEIF where pi-heif is installed, others where
  Pillow was built with them. Nothing that needs an interpreter (EPS, PDF, SVG).
- An animation or a file of several pages gives its first frame.
- The EXIF orientation (or, without one, XMP's) is obeyed, as `PIL.ImageOps.exif_transpose` does.
- CMYK, YCCK, YCbCr, LAB and HSV become RGB as Pillow converts them. Colour profiles are not applied.
- Transparency (alpha channel, palette or a transparent colour) is composited on white.
- More than 8 bits (PNG, TIFF, PPM, and what Pillow reads so): without ``levels``, 16-bit greyscale is divided by 257
  and rounded (65535 becomes 255), and 16-bit colour keeps its upper byte; signed and 32-bit numbers count as 16-bit
  ones where all lie in 0..65535. With ``levels`` (low, high), low becomes 0, high 255, and what lies beyond is clipped.
  What has no range (floating point; other numbers outside 0..65535) is refused without levels. 1-bit becomes 0 and 255.
- With the depth float32, levels are the same numbers without rounding: 16 bits divided by 257 (colour too), or by
  ``levels``. Luma, opacity on white and CMYK are then computed in floating point (`floating`). What has 8 bits gives
  exactly its 8-bit pixels. A file of more bits that Pillow gives in 8 is refused.
- A TIFF whose bands have no stated meaning is refused where 1 or 3 channels are wanted; `tiff` says by which tags.
- Any other number of channels: all bands of a TIFF or NumPy file that has so many, in its order, 16 bits divided by
  257 and rounded; 4 also of red, green, blue and opacity (RGBA), 2 of grey and opacity. Other files are refused.
- NumPy files hold one image each; `npy` says in which layouts.
- Greyscale becomes three equal channels where three are wanted; colour becomes Rec. 601 luma where one is.
- A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (by its DCT coefficients, as libjpeg does) where the
  caller says that this suffices; its header's size is what the limits below are about.
- Refused, with `BadImage`: what cannot be read to its end, more than ``max_pixels`` pixels (looked up in the
  header, before anything is decoded), a side above 65535 pixels, a long side above 200 times the short one; a
  JPEG of more than 100 scans or 1,000 segments, a PNG of more than 10,000 chunks of under 1 KiB on average.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

from tellapart.contract import floating, jpeg, npy, png, tiff
from tellapart.contract.deep import BadImage as BadImage
from tellapart.contract.deep import Deep, Levels, mismatch
from tellapart.contract.deep import Pixels as Pixels
from tellapart.contract.formats import BY_NAME, FORMATS, NOT_IMAGES, Format
from tellapart.contract.tedious import tedious

MAX_PIXELS = 178_000_000
MAX_SIDE = 65_535
MAX_ASPECT = 200
_FACTORS = (8, 4, 2)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's JPEG reader, except that it parses no EXIF on opening (broken EXIF would warn)."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


_warnings_lock = threading.Lock()


@contextlib.contextmanager
def _quiet(format_name: str, content: bytes) -> Iterator[None]:
    """Keep Pillow's warnings in, for the readers that have any.

    Before 3.14 Python has no filter of one thread's own, hence the lock; common formats never wait for it.
    """
    if format_name in ("JPEG", "WebP", "BMP", "PPM") or (
        format_name == "PNG" and b"acTL" not in content[:65536]
    ):
        yield
        return
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _recognise(content: bytes) -> tuple[str, Any]:
    """Return the format's name and Pillow's reader; raise BadImage where the content is no image."""
    weak, head = BY_NAME["TGA"], content[:2048]
    found = next((one for one in FORMATS if one is not weak and one.begins.match(content)), None)
    if found is None:
        if not content:
            raise BadImage("empty file")
        for pattern, reason in NOT_IMAGES:
            if pattern.match(head):
                raise BadImage(reason)
        if not head.strip(b"\0"):
            raise BadImage("holds only zeros")
        if b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0:
            with contextlib.suppress(UnicodeDecodeError):
                head[:-4].decode("utf-8")
                raise BadImage(
                    "is a HTML/text page, not an image"
                    if b"<html" in head.lower()
                    else "is text, not an image"
                )
        if not weak.begins.match(content):
            raise BadImage("is not an image of a known format")
        found = weak
    if found.name == "JPEG":
        return found.name, _Jpeg
    reader = _reader(found)
    if found.name == "NumPy":
        return found.name, None
    if reader is None and found.package:
        raise BadImage(f"is {found.name}, which needs a further package: pip install '{found.package}'")
    if reader is None:
        raise BadImage(f"is {found.name}, which this Pillow cannot read")
    return found.name, reader


@functools.cache
def _reader(one: Format) -> Any:
    for module, name in one.readers:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(module), name)
    return None


def recognise(content: bytes) -> str:
    """Return the format's name by how the content begins, as this module's list has it. Raises BadImage."""
    return _recognise(content)[0]


def check_dimensions(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImage for a size that `decode` refuses."""
    if width < 1 or height < 1:
        raise BadImage(f"absurd dimensions: {width}x{height}")
    if width * height > max_pixels:
        raise BadImage(f"decompression bomb? {width}x{height} is more than {max_pixels} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadImage(f"absurd dimensions: {width}x{height}, a side above {MAX_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"absurd dimensions: {width}x{height}, more than {MAX_ASPECT}:1")


def _damage(name: str, error: Exception, content: bytes = b"") -> BadImage:
    """Return the reason for which Pillow's reader of a recognised format gave up."""
    text = str(error).lower()
    if "decompression bomb" in text:
        return BadImage("decompression bomb? larger than Pillow reads")
    if (
        isinstance(error, (EOFError, IndexError, struct.error))
        or "truncated" in text
        or "unexpected end" in text
    ):
        return BadImage(f"truncated {name} file")
    if "codec" in text or "not available" in text:
        return BadImage(f"is {name}, which this Pillow cannot read")
    if name == "JPEG" and "-bit layers" in text:
        return BadImage("is a JPEG of 12 bits, which is not supported")
    if name == "TIFF" and "unknown pixel mode" in text:
        return BadImage(f"is a TIFF of {tiff.describe(content)}, which is not supported")
    return BadImage(f"damaged {name} file")


def _reduce(image: Image.Image, suffices: Callable[[int, int], bool]) -> bool:
    """Let a JPEG be decoded at the smallest of 1/8, 1/4 and 1/2 that ``suffices`` (height, width) allows, if any."""
    width, height = image.size
    for factor in _FACTORS:
        if min(width, height) >= factor and suffices(-(-height // factor), -(-width // factor)):
            image.draft(None, (width // factor, height // factor))
            return True
    return False


def decode(
    content: bytes,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    suffices: Callable[[int, int], bool] | None = None,
    levels: Levels | None = None,
    depth: str = "uint8",
) -> Pixels:
    """Decode an image by the rules that this module states.

    Args:
        content: the whole file.
        channels: 1 (luma), 3 (RGB), or any other number that the file itself has.
        max_pixels: the most pixels that an image may have.
        suffices: whether a JPEG decoded to this height and width (before EXIF's orientation turns it) is large
            enough; without it every image is decoded at its own size.
        levels: of images of more than 8 bits, what becomes 0 and what 255; None: the file's whole range.
        depth: uint8, or float32: levels are not rounded.

    Returns: [H, W, channels] of the depth, upright, writable. Raises BadImage. Safe to call from many threads.
    """
    name, reader = _recognise(content)
    if tedious(name, content):
        raise BadImage(f"{name} of very many parts")
    exact = depth == floating.DEPTH
    if exact:
        floating.refuse_coarse(name, content)
    try:
        pixels = _pixels(name, reader, content, channels, max_pixels, suffices, levels, exact)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly every kind of error on damaged data
        raise _damage(name, error, content) from error
    return pixels.astype(np.float32, copy=False) if exact else pixels


def _pixels(
    name: str,
    reader: Any,
    content: bytes,
    channels: int,
    max_pixels: int,
    suffices: Callable[[int, int], bool] | None,
    levels: Levels | None,
    exact: bool,
) -> Pixels:
    """Return what `decode` does; what has 8 bits as uint8 in any case. Raises BadImage, and what Pillow does."""
    deep = _deep(name, content, reader, max_pixels, exact or levels is not None, channels)
    if deep is not None:
        return _upright(_levelled(deep, channels, levels, exact), deep.orientation)
    with _quiet(name, content), reader(io.BytesIO(content)) as image:
        check_dimensions(image.width, image.height, max_pixels)
        if name == "JPEG" and not (suffices is not None and _reduce(image, suffices)):
            pixels = jpeg.pixels(content, image.mode, image.width, image.height)
            if pixels is not None:
                return _upright(to_channels(pixels, channels), _orientation(image.info))
        image.load()
        if name == "PNG":
            png.mend_transparency(content, image)
        orientation = 1 if name == "TIFF" else _orientation(image.info)
        if exact and image.mode[0] in "IF":
            return _upright(floating.to_channels(_numbers(image).floats(levels), channels), orientation)
        return _to_pixels(image, channels, orientation, levels)


def bands(content: bytes) -> int:
    """Return how many channels a file has whose channels have no colours' names; 0 for any other file.

    Only the head of the file is read. Raises BadImage.
    """
    name, _ = _recognise(content)
    return tiff.bands(content) if name == "TIFF" else npy.bands(content) if name == "NumPy" else 0


def shown(
    content: bytes | Pixels,
    max_pixels: int = MAX_PIXELS,
    levels: Levels | None = None,
    depth: str = "uint8",
) -> Pixels:
    """Return an image to look at, RGB [H, W, 3]: of channels that have no colours' names the first three, or the first.

    ``levels``, ``depth``: as for `decode`; the picture has 8 bits in any case. Raises BadImage.
    """
    if isinstance(content, np.ndarray):
        content = whole(content)
        return to_channels(content, 3) if content.ndim == 2 or content.shape[2] == 4 else to_shown(content)
    count = bands(content)
    channels = count if count not in (0, 1, 3) else 3
    return to_shown(decode(content, channels, max_pixels, levels=levels, depth=depth))


def to_shown(pixels: Pixels) -> Pixels:
    """Return [H, W(, C)] to look at, uint8 RGB: of 2 channels the first, as grey, of 4 or more the first three."""
    pixels = whole(pixels)
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        pixels = np.ascontiguousarray(pixels[..., : 3 if pixels.shape[2] > 3 else 1])
    return to_channels(pixels, 3)


def whole(pixels: Pixels) -> Pixels:
    """Return levels as whole ones, uint8: to look at."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).clip(0, 255).astype(np.uint8)


def in_depth(pixels: Pixels, channels: int, depth: str) -> Pixels:
    """Return levels, uint8 or float32 [H, W(, C)], as [H, W, channels] of a depth (see `to_channels`).

    Raises BadImage, also for what would have to be rounded.
    """
    if depth != floating.DEPTH:
        return to_channels(pixels, channels)
    if pixels.dtype == np.float32:
        return floating.to_channels(floating.checked(pixels), channels)
    return to_channels(pixels, channels).astype(np.float32)


def largest(content: bytes, max_pixels: int = MAX_PIXELS, channels: int = 0) -> float | None:
    """Return the largest number in an image of more than 8 bits; None for any other. Raises BadImage.

    ``channels``: those of the input; 0: the file's own.
    """
    name, reader = _recognise(content)
    if name not in _DEEP:
        return None
    try:
        deep = _deep(name, content, reader, max_pixels, True, channels or bands(content) or 3)
        if deep is not None:
            return _finite(deep.largest)
        with _quiet(name, content), reader(io.BytesIO(content)) as image:
            check_dimensions(image.width, image.height, max_pixels)
            if image.mode[0] not in "IF":
                return None
            image.load()
            return _finite(_numbers(image).largest)
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise _damage(name, error, content) from error


def _finite(number: float | None) -> float | None:
    if number is not None and not np.isfinite(number):
        raise BadImage("has pixels that are not finite numbers")
    return number


_DEEP = (
    "NumPy",
    "PNG",
    "TIFF",
    "PPM",
    "JPEG 2000",
)  # formats that hold more than 8 bits, and that Pillow gives so


def _deep(
    name: str, content: bytes, reader: Any, max_pixels: int, all_bits: bool, channels: int
) -> Deep | None:
    """Return an image's numbers where Pillow would not give them, or not rightly; with ``all_bits`` not in full.

    Raises BadImage, and what Pillow's readers raise.
    """
    if name == "TIFF":
        width, height = tiff.dimensions(content)
        if width and height:
            check_dimensions(width, height, max_pixels)
        return tiff.read(content, max_pixels, channels)
    if name == "NumPy":
        check_dimensions(*npy.dimensions(content, channels), max_pixels)
        return npy.read(content, channels)
    if name == "PNG" and png.is_deep(content):
        width, height = png.dimensions(content)
        check_dimensions(width, height, max_pixels)
        found = png.read(content, reader, all_bits)
        return dataclasses.replace(found[0], orientation=_orientation(found[1])) if found else None
    if name == "PPM" and all_bits:
        return png.read_ppm(content, reader, lambda w, h: check_dimensions(w, h, max_pixels))
    return None


def _levelled(deep: Deep, channels: int, levels: Levels | None, exact: bool) -> Pixels:
    """Return an image's numbers as [H, W, channels]; with ``exact`` as float32, not rounded."""
    pixels = deep.floats(levels) if exact else deep.pixels(levels)
    if deep.bands and pixels.shape[2] == 4 != channels:  # whether the fourth is opacity is not said
        raise mismatch(4, channels)
    cmyk = deep.values.shape[2] == 4 and not deep.bands
    if exact:
        return floating.to_channels(floating.of_cmyk(pixels) if cmyk else pixels, channels)
    if cmyk:
        return _to_pixels(Image.fromarray(pixels, "CMYK"), channels, 1)
    return to_channels(pixels, channels)


def _numbers(image: Image.Image) -> Deep:
    """Return a loaded image of mode I;16, I;16B, I or F as numbers."""
    values = np.asarray(image)[:, :, None]
    if image.mode == "F":
        return Deep(values, 0, "32-bit floating-point grey")
    if image.mode == "I":
        return Deep(values, 0, "32-bit grey")
    return Deep(values.astype(np.uint16), 65_535, "16-bit grey")


def _to_pixels(image: Image.Image, channels: int, orientation: int, levels: Levels | None = None) -> Pixels:
    """Return a loaded image's pixels [H, W, channels]: its mode converted, turned upright."""
    if image.mode[0] in "IF":
        return _upright(to_channels(_numbers(image).pixels(levels), channels), orientation)
    if channels not in (1, 3):
        return _upright(_with_opacity(image, channels), orientation)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted:
        image = image.convert(wanted)
    pixels = np.array(image)
    return _upright(pixels[:, :, None] if channels == 1 else pixels, orientation)


def _with_opacity(image: Image.Image, channels: int) -> Pixels:
    """Return the channels of an image with transparency, opacity the last: RGBA for 4, LA for 2. Raises BadImage."""
    clear = image.has_transparency_data
    grey = image.mode in ("L", "LA", "La", "1")
    if clear and channels == 4:
        return np.array(image.convert("RGBA"))
    if clear and channels == 2 and grey:
        return np.array(image.convert("LA"))
    raise mismatch((1 if grey else 3) + clear, channels)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1..8; others mean none): 5..8 are stored transposed, then mirrored."""
    if orientation < 2 or orientation > 8:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation 1..8 in a loaded image's metadata; 1 where there is none or it is broken."""
    exif = info.get("exif")
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        if exif is None and "Raw profile type exif" in info:
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        found = _exif_orientation(exif) if exif else None
        if found is not None:
            return found
    for key in ("XML:com.adobe.xmp", "xmp"):
        xmp = info.get(key)
        if not xmp:
            continue
        text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp)
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
        if match:
            return int(match[1])
    return 1


def _exif_orientation(exif: bytes) -> int | None:
    """Return tag 0x0112 of the first directory of a TIFF structure (TIFF 6.0, section 2), or None."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, start)
        for entry in range(entries):
            tag, kind = struct.unpack_from(order + "HH", data, start + 2 + 12 * entry)
            if tag == 0x0112:
                form = {1: "B", 3: "H", 4: "I"}.get(kind, "H")
                return int(struct.unpack_from(order + form, data, start + 10 + 12 * entry)[0])
    return None


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return uint8 [H, W] or [H, W, 1, 3 or 4] (alpha, put on white) as [H, W, channels]. Raises BadImage.

    Any other number of channels has to be the one that is wanted.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    own = pixels.ndim == 3 and pixels.shape[2] == channels
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise BadImage(f"an array of {pixels.dtype} {list(pixels.shape)} is not an image")
    if not own and (channels not in (1, 3) or pixels.shape[2] not in (1, 3, 4)):
        raise mismatch(pixels.shape[2], channels)
    if own:
        return pixels
    if pixels.shape[2] == 4:
        return _to_pixels(Image.fromarray(pixels), channels, 1)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.array(Image.fromarray(pixels).convert("L"))[:, :, None]


def crop_box(image_HWC: Pixels, box: npt.NDArray[np.float64] | tuple[float, ...]) -> Pixels:
    """Return the pixels that the box x0, y0, x1, y1 touches, clipped to the image.

    A box of NaN means the whole image. Raises BadImage where nothing is left.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if any(np.isnan((x0, y0, x1, y1))):
        return image_HWC
    height, width = image_HWC.shape[:2]
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
        raise BadImage(f"the box {x0:g} {y0:g} {x1:g} {y1:g} holds no pixel of the {width}x{height} image")
    return image_HWC[top:bottom, left:right]
