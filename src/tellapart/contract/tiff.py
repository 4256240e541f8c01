"""TIFF files that Pillow's reader takes for something else, or calls damaged: what they are, and their samples.

The first directory's tags (TIFF 6.0; BigTIFF) decide. Files of at most 8 unsigned bits a sample, interleaved, are left
to Pillow, which reads those rightly. Of all others the strips or tiles are handed to Pillow as rows of bytes, so that
its decompressors are used and nothing of how it understands pixels; the numbers are then put together here. What has
no agreed meaning is refused by name. Knows nothing of how numbers become levels of 0..255 (`deep`).
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from tellapart.contract.deep import WHOLE, BadImage, Deep

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 317, 322, 323, 324, 325
_INKS, _EXTRA, _FORMAT, _SUBFILE, _SUBDIRECTORIES = 332, 338, 339, 254, 330
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_VALUES = 1 << 24  # of one tag
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples of a photometric interpretation
_NAMES = {
    0: "grey (0 is white)", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab",
    9: "ICCLab", 10: "ITULab", 32803: "a camera's raw colour filter", 32844: "LogL", 32845: "LogLuv",
    34892: "a camera's linear raw", 51177: "depth",
}  # fmt: skip
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned", 5: "complex", 6: "complex"}
_LOSSY = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 50001: "WebP", 34887: "LERC", 50002: "JPEG XL"}


@dataclass(frozen=True)
class _Tags:
    """A directory's numbers, and how the file stores them. ``order``: < or >."""

    order: str
    big: bool
    values: dict[int, tuple[int, ...]]

    def one(self, tag: int, default: int) -> int:
        values = self.values.get(tag)
        return values[0] if values else default

    @property
    def samples(self) -> int:
        return self.one(_SAMPLES, len(self.values.get(_BITS, (1,))))

    @property
    def bits(self) -> tuple[int, ...]:
        return self.values.get(_BITS, (1,))[: max(1, self.samples)]

    @property
    def kind(self) -> str:
        kinds = {_FORMATS.get(value, "unknown") for value in self.values.get(_FORMAT, (1,))[: self.samples]}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def separate(self) -> bool:
        return self.samples > 1 and self.one(_PLANAR, 1) == 2

    def describe(self) -> str:
        """Return what the pixels are, in words."""
        depth = "/".join(map(str, dict.fromkeys(self.bits)))
        photometric = self.one(_PHOTOMETRIC, 0)
        bands = "" if self.samples == 1 else f", {self.samples} bands"
        layout = " in separate planes" if self.separate else ""
        compression = _LOSSY.get(self.one(_COMPRESSION, 1))
        packed = f", {compression}-compressed" if compression else ""
        name = _NAMES.get(photometric, f"photometric {photometric}")
        return f"{self.kind} {depth}-bit {name}{bands}{layout}{packed}"


def _read_tags(content: bytes) -> _Tags | None:
    """Return the first directory's integers; None where it is damaged."""
    order = "<" if content[:2] == b"II" else ">"
    with contextlib.suppress(struct.error):
        big = struct.unpack_from(order + "H", content, 2)[0] == 43
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, start)
        start, size, room = start + (8 if big else 2), (20 if big else 12), (8 if big else 4)
        values: dict[int, tuple[int, ...]] = {}
        for place in range(start, start + size * min(count, 4096), size):
            tag, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), content, place)
            if kind not in _TYPES or not 0 < length <= _MOST_VALUES or not 254 <= tag <= 340:
                continue
            form = f"{order}{length}{_TYPES[kind]}"
            at = place + size - room
            if struct.calcsize(form) > room:
                (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, at)
            values.setdefault(tag, struct.unpack_from(form, content, at))
        return _Tags(order, big, values)
    return None


def describe(content: bytes) -> str:
    """Return what the pixels of a TIFF are, in words; empty where its directory cannot be read."""
    tags = _read_tags(content)
    return tags.describe() if tags else ""


def dimensions(content: bytes) -> tuple[int, int]:
    """Return width and height by the tags; 0, 0 where they cannot be read."""
    tags = _read_tags(content)
    return (tags.one(_WIDTH, 0), tags.one(_HEIGHT, 0)) if tags else (0, 0)


def bands(content: bytes) -> int:
    """Return how many bands a TIFF has, where more than one of them have no colour's name; else 0."""
    tags = _read_tags(content)
    if tags is None:
        return 0
    photometric = tags.one(_PHOTOMETRIC, 0)
    further = tags.samples - _COLOURS.get(photometric, 0)  # one more may be opacity, or be left out
    return tags.samples if photometric in (0, 1, 2) and further > 1 else 0


def read(content: bytes, max_pixels: int, channels: int = 3) -> Deep | None:
    """Return a TIFF's numbers; None: Pillow reads it rightly, or says how it is damaged. Raises BadImage.

    ``channels``: how many are wanted. Where that is neither 1 nor 3, all bands are given, in the file's order.
    """
    tags = _read_tags(content)
    if tags is None or tags.samples < 1 or not tags.values.get(_BITS, (1,)):
        return None
    if (tags.one(_SUBFILE, 0) & 1 and _SUBDIRECTORIES in tags.values) or content[8:10] == b"CR":
        raise BadImage("is a camera's raw file, whose first picture is a preview; develop it to JPEG or TIFF")
    photometric, bits, extra = tags.one(_PHOTOMETRIC, 0), tags.bits[0], tags.values.get(_EXTRA, ())
    colours = _COLOURS.get(photometric, 0)
    if tags.one(_COMPRESSION, 1) == 6 and bits == 8:  # the older JPEG: Pillow knows what it is
        return None
    simple = max(tags.bits) <= 8 and tags.kind == "unsigned" and not tags.separate
    foreign = tags.big and tags.order == ">"  # which Pillow does not know
    if channels not in (1, 3) and tags.samples == channels:
        return _read_bands(content, tags, max_pixels)
    bands = tags.samples - colours
    if colours == 1 and photometric != 3 and (bands > 1 or (bands and not extra and max(tags.bits) > 8)):
        if tags.samples not in (1, 3) and channels not in (1, 3):
            raise BadImage(f"is a TIFF of {tags.describe()}; the input has {channels} channels")
        advice = f"; --input.channels {tags.samples} takes all" if tags.samples != 3 else ""
        raise BadImage(
            f"is a TIFF of {tags.describe()}: which bands are red, green and blue is not said{advice}"
        )
    if simple and not (foreign and bits == 8):
        return None
    used = colours + (1 if extra and extra[0] in (1, 2) and bands > 0 else 0)
    _check(tags, used, colours, photometric)
    width, height = tags.one(_WIDTH, 0), tags.one(_HEIGHT, 0)
    if width * height * (used if tags.separate else tags.samples) * -(-bits // 8) > 8 * max_pixels:
        raise BadImage(f"decompression bomb? {width}x{height} of {tags.describe()}")
    values = _values(content, tags, used)
    alpha = values[..., colours] if used > colours else None
    return Deep(
        values=values[..., :colours],
        top=(255 if bits == 8 else WHOLE) if tags.kind == "unsigned" and bits <= 16 else 0,
        what=tags.describe(),
        alpha=alpha,
        premultiplied=alpha is not None and extra[0] == 1,
        inverted=photometric == 0,
        orientation=tags.one(_ORIENTATION, 1),
    )


def _read_bands(content: bytes, tags: _Tags, max_pixels: int) -> Deep:
    """Return all bands of a TIFF of grey or RGB and further ones, as they are."""
    bits, samples = tags.bits[0], tags.samples
    if tags.one(_PHOTOMETRIC, 0) not in (1, 2):
        raise BadImage(f"is a TIFF of {tags.describe()}, whose bands are not taken one by one")
    _check(tags, samples, samples, 1)
    width, height = tags.one(_WIDTH, 0), tags.one(_HEIGHT, 0)
    if width * height * samples * -(-bits // 8) > 8 * max(max_pixels, 1) * max(1, samples // 4):
        raise BadImage(f"decompression bomb? {width}x{height} of {tags.describe()}")
    return Deep(
        values=_values(content, tags, samples),
        top=(255 if bits == 8 else WHOLE) if tags.kind == "unsigned" and bits <= 16 else 0,
        what=tags.describe(),
        orientation=tags.one(_ORIENTATION, 1),
        bands=True,
    )


def _check(tags: _Tags, used: int, colours: int, photometric: int) -> None:
    """Refuse by name what has no agreed meaning, or is not read here."""
    bits = tags.bits[0]
    ranged = tags.kind == "unsigned" and bits <= 16
    plain = tags.kind in ("unsigned", "signed", "floating-point") and photometric in (0, 1, 2, 5)
    sizes = {
        "unsigned": (8, *range(9, 17), 32, 64),
        "signed": (8, 16, 32, 64),
        "floating-point": (16, 32, 64),
    }
    fits = len(set(tags.bits)) == 1 and bits in sizes.get(tags.kind, ())
    packed = bits not in (8, 16, 32, 64)
    odd = (
        not plain
        or not fits
        or tags.one(_COMPRESSION, 1) in _LOSSY
        or tags.samples < colours
        or (packed and (_TILE_WIDTH in tags.values or tags.one(_PREDICTOR, 1) != 1))
        or (not ranged and (photometric in (0, 5) or used > colours))
        or (photometric == 5 and (tags.one(_INKS, 1) != 1 or tags.samples > 4))
        or tags.one(_PREDICTOR, 1) > (3 if tags.kind == "floating-point" else 2)
    )
    if odd:
        raise BadImage(f"is a TIFF of {tags.describe()}, which is not supported")


def _values(content: bytes, tags: _Tags, used: int) -> npt.NDArray[Any]:
    """Return the first ``used`` samples of each pixel: [H, W, used], in the machine's byte order."""
    if tags.separate:
        return np.concatenate([_plane(content, tags, number, 1) for number in range(used)], axis=2)
    return _plane(content, tags, 0, tags.samples)[..., :used]


def _plane(content: bytes, tags: _Tags, number: int, together: int) -> npt.NDArray[Any]:
    """Return one plane's numbers [H, W, together]."""
    width, height, bits = tags.one(_WIDTH, 0), tags.one(_HEIGHT, 0), tags.bits[0]
    rows = _rows_of_bytes(content, tags, number, together)
    if bits not in (8, 16, 32, 64):  # packed, the highest bit first; scaled to 16 bits
        single = np.unpackbits(rows, axis=1)[:, : width * together * bits].reshape(height, -1, bits)
        whole = (single @ (1 << np.arange(bits - 1, -1, -1))).reshape(height, width, together)
        most = (1 << bits) - 1
        scaled: npt.NDArray[np.uint16] = ((whole * (2 * WHOLE) + most) // (2 * most)).astype(np.uint16)
        return scaled
    if tags.one(_PREDICTOR, 1) == 3:
        return _of_byte_planes(rows, bits // 8, together, tags.one(_TILE_WIDTH, width)).reshape(
            height, width, together
        )
    letter = {"unsigned": "u", "signed": "i", "floating-point": "f"}[tags.kind]
    values = (
        np.ascontiguousarray(rows).view(f"{tags.order}{letter}{bits // 8}").reshape(height, width, together)
    )
    values = values.astype(values.dtype.newbyteorder("="))
    if tags.one(_PREDICTOR, 1) == 2:  # each number is the difference to that on its left
        step = tags.one(_TILE_WIDTH, width)
        for left in range(0, width, step):
            part = values[:, left : left + step]
            np.cumsum(part, axis=1, dtype=values.dtype, out=part)
    return values


def _of_byte_planes(rows: npt.NDArray[np.uint8], size: int, together: int, step: int) -> npt.NDArray[Any]:
    """Undo the floating-point predictor (TIFF technical note 3): each row of a strip or tile of ``step`` pixels holds
    the highest bytes of all its numbers, then the next ones, each byte less the one of the pixel on its left.
    """
    parts = []
    for left in range(0, rows.shape[1], step * together * size):
        part = rows[:, left : left + step * together * size]
        lines = part.reshape(len(part), -1, together).cumsum(axis=1, dtype=np.uint8)
        planes = lines.reshape(len(part), size, -1).transpose(0, 2, 1)
        parts.append(np.ascontiguousarray(planes).view(f">f{size}")[..., 0])
    values: npt.NDArray[Any] = np.concatenate(parts, axis=1)
    return values.astype(values.dtype.newbyteorder("="))


def _rows_of_bytes(content: bytes, tags: _Tags, number: int, together: int) -> npt.NDArray[np.uint8]:
    """Return one plane, decompressed: uint8 [H, bytes of a row]. Raises BadImage where it is cut short."""
    width, height, bits = tags.one(_WIDTH, 0), tags.one(_HEIGHT, 0), tags.bits[0]
    tiled = _TILE_WIDTH in tags.values
    across, down = (
        1,
        min(tags.one(_TILE_LENGTH if tiled else _ROWS, height), height if not tiled else 1 << 30),
    )
    wide = tags.one(_TILE_WIDTH, width)
    if wide < 1 or down < 1:
        raise BadImage("damaged TIFF file")
    across = -(-width // wide) if tiled else 1
    count = across * -(-height // down)
    offsets, sizes = (
        tags.values.get(tag, ()) for tag in ((_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_OFFSETS, _COUNTS))
    )
    offsets, sizes = offsets[number * count :][:count], sizes[number * count :][:count]
    row = -(-wide * together * bits // 8)
    if len(sizes) < count and tags.one(_COMPRESSION, 1) == 1:
        sizes = tuple(row * min(down, height - down * (n // across)) for n in range(count))
    parts = [content[at : at + size] for at, size in zip(offsets, sizes, strict=False)]
    if len(parts) < count or any(len(part) < size for part, size in zip(parts, sizes, strict=False)):
        raise BadImage("truncated TIFF file")
    disguised = _disguised(tags, parts, (-(-width * together * bits // 8), height), (row, down), tiled)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(disguised)) as image:
        image.load()
        return np.asarray(image)


def _disguised(
    tags: _Tags, parts: list[bytes], size: tuple[int, int], part: tuple[int, int], tiled: bool
) -> bytes:
    """Return a TIFF file of 8-bit grey that holds these strips or tiles: each byte is a pixel."""
    starts = np.cumsum([8, *(len(one) for one in parts)]).tolist()
    entries: list[tuple[int, list[int]]] = [
        (_WIDTH, [size[0]]), (_HEIGHT, [size[1]]), (_BITS, [8]), (_COMPRESSION, [tags.one(_COMPRESSION, 1)]),
        (_PHOTOMETRIC, [1]), (_FILL, [tags.one(_FILL, 1)]), (_SAMPLES, [1]),
    ]  # fmt: skip
    lengths = [len(one) for one in parts]
    if tiled:
        entries += [(_TILE_WIDTH, [part[0]]), (_TILE_LENGTH, [part[1]])]
        entries += [(_TILE_OFFSETS, starts[:-1]), (_TILE_COUNTS, lengths)]
    else:
        entries += [(_OFFSETS, starts[:-1]), (_ROWS, [part[1]]), (_COUNTS, lengths)]
    directory, behind = struct.pack("<H", len(entries)), b""
    beyond = starts[-1] + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries):
        packed = struct.pack(f"<{len(values)}I", *values)
        where = packed if len(values) == 1 else struct.pack("<I", beyond + len(behind))
        directory += struct.pack("<HHI", tag, 4, len(values)) + where
        behind += packed if len(values) > 1 else b""
    return b"".join([b"II*\0", struct.pack("<I", starts[-1]), *parts, directory, bytes(4), behind])
