"""Images of more than 8 bits: what their numbers become, with and without a range, against numpy's own arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.contract import BadImage, Preprocessing, decode
from tellapart.contract.decoding import largest
from tellapart.contract.resizing import load

HEIGHT, WIDTH = 13, 21
LEVELS = (100.0, 4000.0)


def numbers(bands: int, kind: str, seed: int = 0) -> np.ndarray:
    rng, dtype = np.random.default_rng(seed), np.dtype(kind)
    if dtype.kind == "f":
        return rng.uniform(0, 5000, (HEIGHT, WIDTH, bands)).astype(dtype)
    high = min(np.iinfo(dtype).max, 65_535)
    values = rng.integers(0, high + 1, (HEIGHT, WIDTH, bands))
    values[0, 0], values[0, 1] = 0, high
    return values.astype(dtype)


def tiff(
    values: np.ndarray,
    *,
    photometric: int,
    extra: tuple[int, ...] = (),
    planar: bool = False,
    order: str = "<",
    big: bool = False,
    tile: int = 0,
    deflate: bool = False,
    predictor: bool = False,
    bits: int = 0,
    more: dict[int, int] | None = None,
) -> bytes:
    """Write a TIFF by the specification, with nothing of Pillow's: strips of 5 rows, or square tiles."""
    height, width, bands = values.shape
    planes = [values[..., b : b + 1] for b in range(bands)] if planar else [values]
    parts = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            cut = [
                padded[y : y + tile, x : x + tile]
                for y in range(0, height, tile)
                for x in range(0, width, tile)
            ]
        else:
            cut = [plane[y : y + 5] for y in range(0, height, 5)]
        for piece in cut:
            if predictor:
                piece = np.diff(piece, axis=1, prepend=piece[:, :1] * 0)
            if bits:
                single = (piece[..., None] >> np.arange(bits - 1, -1, -1)) & 1
                raw = np.packbits(single.reshape(len(piece), -1).astype(np.uint8), axis=1).tobytes()
            else:
                raw = np.ascontiguousarray(piece).astype(piece.dtype.newbyteorder(order)).tobytes()
            parts.append(zlib.compress(raw) if deflate else raw)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    start = 16 if big else 8
    offsets = [start + sum(map(len, parts[:n])) for n in range(len(parts))]
    depth = bits or 8 * values.dtype.itemsize
    places = (322, 323, 324, 325) if tile else (0, 278, 273, 279)
    tags: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [depth] * bands, 259: [8 if deflate else 1], 262: [photometric],
        277: [bands], 284: [2 if planar else 1], 317: [2 if predictor else 1], 339: [kind] * bands,
        places[1]: [tile or 5], places[2]: offsets, places[3]: [len(part) for part in parts],
    }  # fmt: skip
    if tile:
        tags[322] = [tile]
    if extra:
        tags[338] = list(extra)
    tags |= {tag: [value] for tag, value in (more or {}).items()}
    body, room = b"".join(parts), 8 if big else 4
    at = start + len(body)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, at) if big else struct.pack(order + "I", at)
    directory = struct.pack(order + ("Q" if big else "H"), len(tags))
    beyond, behind = at + len(directory) + len(tags) * (12 + 2 * room - 8 + (4 if big else 0)) + room, b""
    beyond = at + len(directory) + len(tags) * (20 if big else 12) + room
    for tag, entries in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(entries)}I", *entries)
        directory += struct.pack(order + ("HHQ" if big else "HHI"), tag, 4, len(entries))
        if len(packed) <= room:
            directory += packed.ljust(room, b"\0")
        else:
            directory += struct.pack(order + ("Q" if big else "I"), beyond + len(behind))
            behind += packed
    return head + body + directory + bytes(room) + behind


def levels_of(values: np.ndarray, levels: tuple[float, float] | None) -> np.ndarray:
    """The rule in float64: uint8 of the same shape."""
    if levels is not None:
        scaled = (values.astype(np.float64) - levels[0]) / (levels[1] - levels[0]) * 255
        return np.floor(np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.shape[2] == 1:
        return np.rint(values / 257).astype(np.uint8)
    return (values.astype(np.uint32) >> 8).astype(np.uint8)


LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "big-endian": {"order": ">"},
    "tiles": {"tile": 16},
    "deflate": {"deflate": True},
    "predictor": {"deflate": True, "predictor": True, "order": ">"},
    "predictor in tiles": {"deflate": True, "predictor": True, "tile": 16},
    "big": {"big": True},
    "big, big-endian": {"big": True, "order": ">"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["u2", "u4", "i2", "i4"])
@pytest.mark.parametrize("bands", [1, 3])
def test_tiff_numbers_are_read_whatever_their_layout(
    layout: str, planar: bool, kind: str, bands: int
) -> None:
    values = numbers(bands, kind)
    content = tiff(values, photometric=2 if bands == 3 else 1, planar=planar, **LAYOUTS[layout])
    for levels in (None, LEVELS):
        expected = levels_of(values, levels)
        found = decode(content, 3, levels=levels)
        np.testing.assert_array_equal(found, expected if bands == 3 else expected.repeat(3, axis=2))
    assert largest(content) == values.max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_bits_in_planes_or_big_endian_are_read(layout: str) -> None:
    values = numbers(3, "u1")
    for planar in (False, True):
        content = tiff(values, photometric=2, planar=planar, **LAYOUTS[layout])
        np.testing.assert_array_equal(decode(content, 3, levels=LEVELS), values, "a range is not for 8 bits")
        assert largest(content) is None


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("planar", [False, True])
def test_floating_point_needs_a_range(kind: str, bands: int, planar: bool) -> None:
    values = numbers(bands, kind)
    content = tiff(values, photometric=2 if bands == 3 else 1, planar=planar)
    depth, colour = 8 * values.dtype.itemsize, "RGB" if bands == 3 else "grey"
    with pytest.raises(
        BadImage, match=rf"floating-point pixels.*\(floating-point {depth}-bit {colour}.*--input"
    ):
        decode(content, 3)
    expected = levels_of(values, LEVELS)
    np.testing.assert_array_equal(
        decode(content, 3, levels=LEVELS), np.broadcast_to(expected, (HEIGHT, WIDTH, 3))
    )
    for levels in ((0, 2_000_000), (-9, -1), (6000, 9000)):
        with pytest.raises(BadImage, match="another scale than the range"):
            decode(content, 3, levels=levels)
    values[3, 4] = np.nan
    with pytest.raises(BadImage, match="not finite numbers"):
        decode(tiff(values, photometric=2 if bands == 3 else 1), 3, levels=LEVELS)


def test_white_may_be_zero_and_numbers_may_be_packed() -> None:
    values = numbers(1, "u2")
    for levels in (None, LEVELS):
        content = tiff(values, photometric=0)
        np.testing.assert_array_equal(decode(content, 1, levels=levels), 255 - levels_of(values, levels))
    twelve, ten = numbers(1, "u2") & 4095, numbers(3, "u2") & 1023
    content = tiff(twelve, photometric=1, bits=12)
    assert np.abs(decode(content, 1) - twelve / 4095.0 * 255).max() < 0.6
    assert largest(content) == round(twelve.max() / 4095 * 65535), "such a file says its range"
    assert np.abs(decode(tiff(ten, photometric=2, bits=10, order=">"), 3) - ten / 1023.0 * 255).max() < 1


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    shown = colours.astype(float) * alpha / 255 + 255 * (1 - alpha / 255.0)
    return np.rint(shown)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_alpha_is_put_on_white_and_other_bands_are_left_out(planar: bool, kind: str) -> None:
    values = numbers(4, kind)
    eight = levels_of(values, None)
    expected = on_white(eight[..., :3], eight[..., 3:] if kind == "u1" else np.rint(values[..., 3:] / 257))
    found = decode(tiff(values, photometric=2, extra=(2,), planar=planar), 3)
    assert np.abs(found - expected).max() <= 1
    found = decode(tiff(values, photometric=2, extra=(0,), planar=planar), 3)
    np.testing.assert_array_equal(found, eight[..., :3])


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (numbers(5, "u1"), {"photometric": 1}, "unsigned 8-bit grey, 5 bands: it does not say which bands are red"),
        (numbers(3, "u2"), {"photometric": 1, "planar": True}, "3 bands in separate planes: it does not say which bands"),
        (numbers(3, "u2"), {"photometric": 8}, "unsigned 16-bit CIELab, 3 bands, which is not supported"),
        (numbers(1, "u2"), {"photometric": 32803}, "16-bit a camera's raw colour filter, which is not"),
        (numbers(1, "u2"), {"photometric": 3}, "16-bit palette, which is not supported"),
        (numbers(1, "i1"), {"photometric": 1}, "signed 8-bit grey"),
        (numbers(4, "f4"), {"photometric": 2, "extra": (2,)}, "floating-point 32-bit RGB, 4 bands, which"),
        (numbers(1, "u4") + np.uint32(70_000), {"photometric": 1}, "no defined range (unsigned 32-bit grey)"),
        (numbers(1, "i2") - np.int16(9), {"photometric": 1}, "pixels from -9 to"),
        (numbers(1, "u2"), {"photometric": 1, "more": {317: 3}}, "unsigned 16-bit grey, which"),
        (numbers(3, "u1"), {"photometric": 2, "more": {254: 1, 330: 8}}, "a camera's raw file"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_by_name(
    values: np.ndarray, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadImage) as caught:
        decode(tiff(values, **options), 3)
    assert said in caught.value.reason
    assert "damaged" not in caught.value.reason


def test_limits_and_ends_are_those_of_other_images() -> None:
    content = tiff(numbers(3, "u2"), photometric=2, planar=True)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(content, 3, HEIGHT * WIDTH - 1)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(tiff(numbers(9, "f8"), photometric=2, extra=(0,) * 6), 3, HEIGHT * WIDTH, levels=LEVELS)
    for end in (len(content) // 3, 9):
        with pytest.raises(BadImage, match=r"truncated|damaged"):
            decode(content[:end], 3)
    short = bytearray(content)
    place = content.index(struct.pack("<HHI", 279, 4, 9)) + 8
    table = struct.unpack_from("<I", content, place)[0]
    struct.pack_into("<I", short, table + 4 * 8, 1 << 20)
    with pytest.raises(BadImage, match="truncated"):
        decode(bytes(short), 3)


def test_orientation_counts_for_these_too() -> None:
    values = numbers(3, "u2")
    content = tiff(values, photometric=2, planar=True, more={274: 6})
    np.testing.assert_array_equal(decode(content, 3), np.rot90(levels_of(values, None), -1))


# --- PNG and PPM ----------------------------------------------------------------------------------------------


def png(values: np.ndarray, bits: int, kind: int, clear: tuple[int, ...] = ()) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    single = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + transparent
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("levels", [None, LEVELS])
@pytest.mark.parametrize(("kind", "bands", "colours"), [(0, 1, 1), (2, 3, 3), (4, 2, 1), (6, 4, 3)])
@pytest.mark.parametrize("clear", [False, True])
def test_all_bits_of_a_png_count(
    kind: int, bands: int, colours: int, clear: bool, levels: tuple[float, float] | None
) -> None:
    if clear and kind > 3:
        pytest.skip("PNG has either alpha or a transparent colour")
    values = numbers(bands, "u2")
    values[2, 3] = values[0, 4]
    values[2, 5] = values[0, 4]
    values[2, 5, -1] ^= 1  # not the transparent colour, by the lowest bit
    colour = levels_of(values[..., :colours], levels)
    alpha = np.full((HEIGHT, WIDTH, 1), 255)
    if kind > 3:
        colour = values[..., :colours] >> 8 if levels is None else colour
        alpha = values[..., -1:] / 257
    if clear:
        alpha = np.where((values == values[0, 4]).all(axis=2, keepdims=True), 0, 255)
    content = png(values, 16, kind, tuple(values[0, 4].tolist()) if clear else ())
    found = decode(content, 3, levels=levels)
    tolerance = 2 if kind > 3 else 0
    assert np.abs(found - on_white(np.broadcast_to(colour, found.shape), alpha)).max() <= tolerance
    assert largest(content) == values[..., :colours].max()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_few_bits_becomes_white(bits: int) -> None:
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) % (1 << bits)).astype(np.uint8)
    expected = values * (255 // ((1 << bits) - 1))
    np.testing.assert_array_equal(decode(png(values, bits, 0), 1), expected)
    expected[values == 1] = 255
    np.testing.assert_array_equal(decode(png(values, bits, 0, (1,)), 1), expected)


@pytest.mark.parametrize("most", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("colour", [False, True])
def test_a_netpbm_file_says_its_range(most: int, colour: bool) -> None:
    values = numbers(3 if colour else 1, "u2") & most
    form = np.dtype(">u2" if most > 255 else "u1")
    header = f"{'P6' if colour else 'P5'}\n# a comment\n{WIDTH} {HEIGHT}\n{most}\n".encode()
    content = header + values.astype(form).tobytes()
    expected = np.rint(values / most * 255)
    assert np.abs(decode(content, 3 if colour else 1) - expected).max() <= 1
    if most > 255:
        whole = np.round(values / most * 65535)
        found = decode(content, 3 if colour else 1, levels=(0, 16_000))
        assert np.abs(found - np.clip(whole / 16_000 * 255, 0, 255)).max() <= 1
        assert abs((largest(content) or 0) - whole.max()) <= 1


# --- The contract -----------------------------------------------------------------------------------------------


def test_a_range_is_part_of_the_contract() -> None:
    values = numbers(1, "u2") % 4096
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.0,) * 3, (1.0,) * 3, range=(0.0, 4095.0))
    assert Preprocessing.from_dict(contract.to_dict()) == contract
    content = tiff(values, photometric=1)
    same = io.BytesIO()
    Image.fromarray(levels_of(values, (0, 4095))[..., 0]).save(same, "PNG")
    np.testing.assert_array_equal(load(content, contract), load(same.getvalue(), contract))
    for wrong in ((5, 5), (0, float("nan")), (0,)):
        with pytest.raises(ValueError, match="range is"):
            Preprocessing(8, 1, "squash", "bilinear", 1.0, (0.0,), (1.0,), range=wrong)  # type: ignore[arg-type]
