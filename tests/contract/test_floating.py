"""Pixels of the depth float32: levels that are not rounded, against formulas in float64 and torch's interpolation."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tellapart.contract import Architecture, BadImage, Card, Preprocessing, decode
from tellapart.contract.card import FORMAT, CardError
from tellapart.contract.decoding import in_depth, shown
from tellapart.contract.given import UnfitImage, _tiff, content_of
from tellapart.contract.resizing import load, resize, scaled_size
from tellapart.errors import SpecError
from tellapart.preprocess import as_module

rng = np.random.default_rng(0)
DEEP = rng.integers(0, 65_536, (9, 7), dtype=np.uint16)
COLOUR = rng.integers(0, 65_536, (9, 7, 3), dtype=np.uint16)


def contract(**changes: Any) -> Preprocessing:
    values: dict[str, Any] = {
        "size": 16, "channels": 1, "resize": "squash", "interpolation": "bilinear", "crop_fraction": 1.0,
        "mean": (0.5,), "std": (0.25,), "depth": "float32",
    }  # fmt: skip
    return Preprocessing(**{**values, **changes})


def npy(values: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def png(values: np.ndarray[Any, Any]) -> bytes:
    """Return a 16-bit PNG of grey, grey and alpha, RGB or RGBA, written by hand: Pillow writes grey only."""
    import zlib

    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    made = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


FILES = {
    "grey PNG": (png(DEEP), DEEP[..., None]),
    "RGB PNG": (png(COLOUR), COLOUR),
    "grey TIFF": (_tiff(DEEP[..., None]), DEEP[..., None]),
    "RGB TIFF": (_tiff(COLOUR), COLOUR),
    "NumPy": (npy(COLOUR), COLOUR),
    "NumPy, channels first": (npy(COLOUR.transpose(2, 0, 1)), COLOUR),
}


@pytest.mark.parametrize("levels", [None, (1000.0, 50_000.0)], ids=["whole", "range"])
@pytest.mark.parametrize("name", FILES)
def test_sixteen_bits_are_levels_without_rounding(name: str, levels: tuple[float, float] | None) -> None:
    content, values = FILES[name]
    found = decode(content, values.shape[2], levels=levels, depth="float32")
    low, high = levels or (0, 65_535)
    wanted = np.clip((values.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert (found % 1 != 0).mean() > 0.5
    # and the eight bits are what they always were
    eight = decode(content, values.shape[2], levels=levels)
    assert eight.dtype == np.uint8
    assert np.abs(eight - found).max() < 1  # 16-bit colour keeps its upper byte


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_eight_bits_are_the_same_levels(mode: str, channels: int) -> None:
    pixels = rng.integers(0, 256, (11, 8, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode) if mode in ("P", "CMYK") else (
        Image.fromarray(pixels, "RGBA").convert(mode)
    )  # fmt: skip
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    found = decode(stream.getvalue(), channels, depth="float32")
    assert found.dtype == np.float32
    assert np.array_equal(found, decode(stream.getvalue(), channels))
    jpeg = io.BytesIO()
    image.convert("RGB").save(jpeg, "JPEG")
    assert np.array_equal(
        decode(jpeg.getvalue(), channels, depth="float32"), decode(jpeg.getvalue(), channels)
    )


def test_luma_opacity_and_grey_are_computed_in_floating_point() -> None:
    levels = COLOUR.astype(np.float64) / 257
    luma = decode(png(COLOUR), 1, depth="float32")
    np.testing.assert_allclose(luma[..., 0], levels @ [0.299, 0.587, 0.114], atol=1e-4)
    assert np.array_equal(
        decode(png(DEEP), 3, depth="float32")[..., 2], decode(png(DEEP), 1, depth="float32")[..., 0]
    )
    alpha = rng.integers(0, 65_536, (9, 7, 1), dtype=np.uint16)
    share = alpha / 65_535
    over = decode(png(np.concatenate([COLOUR, alpha], axis=2)), 3, depth="float32")
    np.testing.assert_allclose(over, levels * share + 255 * (1 - share), atol=1e-3)
    grey = decode(png(np.concatenate([DEEP[..., None], alpha], axis=2)), 1, depth="float32")
    np.testing.assert_allclose(grey, DEEP[..., None] / 257 * share + 255 * (1 - share), atol=1e-3)
    premultiplied = np.array([[[30_000, 10_000, 0, 40_000]]], np.uint16)
    tiff = bytearray(_tiff(premultiplied))
    place = tiff.find(struct.pack("<HHI", 338, 3, 1))
    tiff[place + 8] = 1  # the fourth sample is opacity by which the colours were multiplied
    found = decode(bytes(tiff), 3, depth="float32")[0, 0]
    opacity = 40_000 / 65_535
    np.testing.assert_allclose(
        found, np.array([30_000, 10_000, 0]) / 40_000 * 255 * opacity + 255 * (1 - opacity), atol=1e-3
    )


def test_twelve_bands_of_floating_point_keep_their_precision() -> None:
    values = rng.normal(280.0, 0.01, (6, 5, 12)).astype(np.float32)  # kelvin: all within a few hundredths
    found = decode(npy(values), 12, levels=(200.0, 400.0), depth="float32")
    np.testing.assert_allclose(found, (values.astype(np.float64) - 200) / 200 * 255, atol=1e-5)
    assert len(np.unique(decode(npy(values + 1e-4), 12, levels=(200.0, 400.0), depth="float32"))) > 200
    with pytest.raises(BadImage, match="of another scale than the range"):  # in whole levels nothing is left
        decode(npy(values), 12, levels=(200.0, 400.0))


def test_what_lies_beyond_the_range_is_clipped() -> None:
    values = np.array([[-5.0, 0.0, 1.5, 7.0]], np.float32)
    found = decode(npy(values), 1, levels=(0.0, 3.0), depth="float32")
    np.testing.assert_allclose(found[0, :, 0], [0, 0, 127.5, 255])


BAD = {
    "not a number": (np.array([[0.5, np.nan]], np.float32), (0.0, 1.0), "not finite numbers"),
    "infinite": (np.array([[0.5, np.inf]], np.float64), (0.0, 1.0), "not finite numbers"),
    "no range": (np.array([[0.5, 0.25]], np.float32), None, "no defined range .* --input.range"),
    "32 bits": (np.array([[5, 70_000]], np.int32), None, "no defined range"),
    "outside": (
        np.array([[5.0, 9.0]], np.float32),
        (0.0, 1.0),
        "all of its numbers are outside of the range 0-1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_say_why(name: str) -> None:
    values, levels, reason = BAD[name]
    with pytest.raises(BadImage, match=reason):
        decode(npy(values), 1, levels=levels, depth="float32")


def test_a_file_of_hidden_bits_is_refused() -> None:
    """What only 8 bits can be read of is no image of the depth float32, and one of 8 bits is."""
    sgi = b"\x01\xda\x00\x02" + struct.pack(">HHHH", 3, 4, 4, 3) + bytes(500 + 4 * 4 * 3 * 2)
    with pytest.raises(
        BadImage, match=r"is SGI of 16 bits, of which only 8 can be read.*--input.depth uint8"
    ):
        decode(sgi, 3, depth="float32")
    for most, fits in ((255, True), (1023, False)):
        text = f"P3 # colour as text\n2 1\n{most}\n1 2 3 4 5 6\n".encode()
        if fits:
            assert decode(text, 3, depth="float32").shape == (1, 2, 3)
        else:
            with pytest.raises(BadImage, match="is PPM of 10 bits"):
                decode(text, 3, depth="float32")
    head = b"\xff\x4f\xff\x51" + struct.pack(">HH8I", 47, 0, 4, 4, 0, 0, 4, 4, 0, 0)
    with pytest.raises(BadImage, match="is JPEG 2000 of 12 bits"):
        decode(head + struct.pack(">H", 3) + bytes([11, 1, 1] * 3) + bytes(64), 3, depth="float32")
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x10pixi\0\0\0\0\x03\x0a\x0a\x0a" + bytes(64)
    with pytest.raises(BadImage, match="is AVIF of 10 bits"):
        decode(avif, 3, depth="float32")
    ppm = b"P6 2 1 65535\n" + np.array([[[1, 300, 65_535], [256, 7, 9]]], ">u2").tobytes()
    np.testing.assert_allclose(
        decode(ppm, 3, depth="float32")[0, 0], np.array([1, 300, 65_535]) / 257, rtol=1e-5
    )


# Resizing


def interpolated(image: np.ndarray[Any, Any], made: Preprocessing) -> np.ndarray[Any, Any]:
    """Return what torch's anti-aliased interpolation in float64 gives, cut or bordered by the policy."""
    height, width = scaled_size(*image.shape[:2], made)
    tensor = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    scaled = F.interpolate(
        tensor, (height, width), mode=made.interpolation, antialias=True, align_corners=False
    )
    found = scaled[0].permute(1, 2, 0).clamp(0, 255).numpy()
    rows, columns = made.sides
    if made.resize == "crop":
        top, left = made.start(height, rows), made.start(width, columns)
        return found[top : top + rows, left : left + columns]
    canvas = np.full((rows, columns, image.shape[2]), float(made.fill))
    top, left = (rows - height) // 2, (columns - width) // 2
    canvas[top : top + height, left : left + width] = found
    return canvas


POLICIES = ["squash", "crop", "letterbox"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(50, 37), (16, 24), (9, 130), (5, 4), (16, 16)])
def test_resizing_is_interpolation_in_floating_point(
    shape: tuple[int, int], policy: str, interpolation: str
) -> None:
    """numpy and the graph agree with torch's own interpolation in float64 within a thousandth of a level."""
    made = contract(
        size=(16, 20), channels=2, resize=policy, interpolation=interpolation,
        crop_fraction=0.875 if policy == "crop" else 1.0, mean=(0.5, 0.4), std=(0.25, 0.3),
    )  # fmt: skip
    image = (255 * rng.random((*shape, 2))).astype(np.float32)
    wanted = interpolated(image, made)
    found = resize(image, made)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-3
    with torch.inference_mode():
        graph = as_module(made).sized(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(graph - wanted).max() < 1e-3
    if interpolation == "bilinear":
        rounded = resize(image.round().astype(np.uint8), dataclasses.replace(made, depth="uint8"))
        assert np.abs(rounded - wanted).max() < 1.2  # the same picture


def test_an_image_of_its_own_size_is_not_changed() -> None:
    image = (255 * rng.random((16, 16, 1))).astype(np.float32)
    assert np.array_equal(load(image, contract()), image)


def test_boxes_are_cut_before_resizing() -> None:
    image = (255 * rng.random((40, 40, 1))).astype(np.float32)
    assert np.array_equal(load(image, contract(), box=(4, 8, 20, 24)), image[8:24, 4:20])


# What Python hands over


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floating_point_from_0_to_1_is_levels(kind: type) -> None:
    values = rng.random((6, 5, 3)).astype(kind)
    found = content_of(values, depth="float32")
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, values.astype(np.float64) * 255, atol=2e-5)
    np.testing.assert_allclose(
        content_of(torch.from_numpy(values.transpose(2, 0, 1).copy()), depth="float32"), found
    )
    with pytest.raises(UnfitImage, match=r"input\.depth float32"):
        content_of(values)
    assert load(found, contract(channels=3, size=6, mean=(0.0,) * 3, std=(1.0,) * 3)).dtype == np.float32


def test_sixteen_bit_arrays_and_ranges_keep_their_numbers() -> None:
    wanted = DEEP[..., None] / 257
    for image in (DEEP, Image.fromarray(DEEP)):
        found = load(content_of(image, depth="float32"), contract(size=(9, 7)))
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    kelvin = 280 + rng.random((9, 7))
    content = content_of(kelvin, ranged=True, depth="float32")
    found = load(content, contract(size=(9, 7), range=(270.0, 290.0)))
    np.testing.assert_allclose(found[..., 0], (kelvin - 270) / 20 * 255, atol=1e-3)  # given as float32
    for wrong, reason in (
        (kelvin, "no range of their own"),
        (-kelvin, "normalised"),
        (kelvin * np.nan, "finite"),
    ):
        with pytest.raises(BadImage, match=reason):
            content_of(wrong, depth="float32")


def test_levels_are_checked() -> None:
    for low, high in ((-0.1, 3), (0, 255.1), (0, np.nan), (0, np.inf)):
        with pytest.raises(BadImage, match="they must be from 0 to 255"):
            in_depth(np.array([[low, high]], np.float32), 1, "float32")
    with pytest.raises(BadImage, match="float32"):
        in_depth(np.zeros((2, 2), np.float32), 1, "uint8")
    assert in_depth(np.full((2, 2), 7, np.uint8), 3, "float32").dtype == np.float32
    with pytest.raises(BadImage, match="has 5 channels; the input has 3"):
        in_depth(np.zeros((2, 2, 5), np.float32), 3, "float32")


def test_pictures_of_float_pixels_have_eight_bits() -> None:
    assert shown(np.array([[0.4, 254.6]], np.float32)).tolist() == [[[0] * 3, [255] * 3]]
    kelvin = (280 + rng.random((4, 4, 12))).astype(np.float32)
    assert shown(npy(kelvin), levels=(270.0, 290.0), depth="float32").shape == (4, 4, 3)


# The card


def card(made: Preprocessing) -> Card:
    return Card(Architecture("simple-cnn", 2, made.channels, made.size), ("a", "b"), made)


def test_the_card_says_the_depth_and_older_programs_refuse_it() -> None:
    written = json.loads(card(contract()).to_json())
    assert written["format"] == FORMAT == 5
    assert written["preprocessing"]["depth"] == "float32"
    assert Card.from_json(json.dumps(written)).preprocessing.depth == "float32"
    eight = json.loads(card(contract(depth="uint8")).to_json())
    assert eight["format"] == 1
    assert "depth" not in eight["preprocessing"]
    assert Card.from_json(json.dumps(eight)).preprocessing.depth == "uint8"
    with pytest.raises(CardError, match="depth"):
        Card.from_json(
            json.dumps({**written, "preprocessing": {**written["preprocessing"], "depth": "int4"}})
        )
    with pytest.raises(SpecError, match="depth is 'float64'"):
        contract(depth="float64")


def test_a_file_on_the_disk_is_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(DEEP))
    found = load((tmp_path / "a.png").read_bytes(), contract(size=(9, 7)))
    np.testing.assert_allclose(found[..., 0], DEEP / 257, atol=2e-5)
