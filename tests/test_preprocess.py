"""Decoding against Pillow's own means, resizing against its definition, the graph against the code."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from tellapart import packages
from tellapart.contract import resizing
from tellapart.preprocess import (
    BadImage,
    Preprocessing,
    as_module,
    crop_box,
    decode,
    denormalise,
    fit_short_side,
    load,
    normalise,
    resize,
    to_channels,
)

LIMIT = 1_000_000
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def contract(policy: str = "crop", size: int = 32, interpolation: str = "bilinear", **more) -> Preprocessing:
    values = {"crop_fraction": 0.875, "mean": MEAN, "std": STD, "channels": 3} | more
    return Preprocessing(size=size, resize=policy, interpolation=interpolation, **values)


def picture(height: int = 40, width: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth waves with a little noise: pixels that JPEG keeps and that tell every orientation apart."""
    y, x = np.mgrid[:height, :width]
    waves = [
        128 + 90 * np.sin(x / (5 + c) + y / (9 - c)) + 30 * (x > width / 2) * (y < height / 3)
        for c in range(3)
    ]
    noise = np.random.default_rng(seed).normal(0, 3, (height, width, 3))
    return (np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8)[:, :, :channels]


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def pillow(content: bytes, mode: str = "RGB") -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def reason(content: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, 3, max_pixels)
    assert caught.value.reason == str(caught.value)
    return caught.value.reason


# ------------------------------------------------------------------------------------------ formats and modes


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_decode_as_pillow_decodes_them(kind, channels):
    plugin = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind)
    if plugin and not features.check(plugin):
        pytest.skip(f"this Pillow has no {kind}")
    image = Image.fromarray(picture(48, 48))
    content = encode(image.quantize(64) if kind == "GIF" else image, kind)
    pixels = decode(content, channels, LIMIT)
    expected = pillow(content)
    if channels == 1:
        expected = np.asarray(Image.fromarray(expected).convert("L"))[:, :, None]
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a maker whose name is longer than four bytes"
    exif[0x0112] = orientation
    content = encode(picture(), kind, exif=exif)
    pixels = decode(content, 3, LIMIT)
    np.testing.assert_array_equal(pixels, pillow(content))
    assert pixels.shape[:2] == ((40, 60) if orientation <= 4 else (60, 40))


def test_orientation_from_xmp_and_from_a_text_chunk():
    from PIL.PngImagePlugin import PngInfo

    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}")
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>')
    for info in (text, xmp):
        content = encode(picture(), "PNG", pnginfo=info)
        np.testing.assert_array_equal(decode(content, 3, LIMIT), pillow(content))
    xmp_bytes = encode(picture(), "JPEG", xmp=b"<x><tiff:Orientation>3</tiff:Orientation></x>")
    np.testing.assert_array_equal(decode(xmp_bytes, 3, LIMIT), pillow(xmp_bytes))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\xff\xff\xff\x7f",  # a directory beyond the end
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0",  # more entries than there are
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",  # orientation 99
        b"Exif\0\0nonsense",
        b"Exif\0\0",
    ],
)
def test_broken_exif_neither_warns_nor_turns(exif):
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encode(picture(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode(content, 3, LIMIT).shape == (40, 60, 3)


def test_broken_tiff_tags_do_not_warn():
    content = bytearray(encode(picture(), "TIFF", software="x" * 40))
    at = content.index(struct.pack("<HH", 305, 2))
    struct.pack_into("<I", content, at + 8, 0x7FFFFFFF)  # the text's place: far behind the end
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(bytes(content), 3, LIMIT).shape == (40, 60, 3)
    assert warnings.filters == filters


def test_other_colour_modes_become_rgb():
    image = Image.fromarray(picture())
    for content in (
        encode(image.convert("CMYK"), "JPEG"),
        encode(image.convert("CMYK"), "TIFF"),
        encode(image.convert("YCbCr"), "TIFF"),
        encode(Image.new("LAB", (20, 10), (200, 150, 90)), "TIFF"),
        encode(image.convert("P"), "PNG"),
        encode(image.convert("L"), "PNG"),
        encode(image.convert("1"), "PNG"),
    ):
        np.testing.assert_array_equal(decode(content, 3, LIMIT), pillow(content))


def test_transparency_is_put_on_white():
    colour = picture()
    alpha = np.random.default_rng(1).integers(0, 256, (40, 60, 1), np.uint8)
    content = encode(np.concatenate([colour, alpha], 2))
    share = alpha / 255
    np.testing.assert_allclose(decode(content, 3, LIMIT), colour * share + 255 * (1 - share), atol=1)

    grey = encode(_la(colour, alpha))
    np.testing.assert_allclose(decode(grey, 1, LIMIT), colour[:, :, :1] * share + 255 * (1 - share), atol=1)

    palette = Image.fromarray(colour).quantize(16)
    clear = decode(encode(palette, transparency=3), 3, LIMIT)
    held = np.asarray(palette) == 3
    assert held.any()
    assert (clear[held] == 255).all()
    np.testing.assert_array_equal(clear[~held], np.asarray(palette.convert("RGB"))[~held])
    partly = decode(encode(palette, transparency=bytes([0, 128] + [255] * 14)), 3, LIMIT)
    assert (partly[np.asarray(palette) == 0] == 255).all()

    one_colour = encode(Image.new("RGB", (4, 4), (10, 20, 30)), transparency=(10, 20, 30))
    assert (decode(one_colour, 3, LIMIT) == 255).all()


def _la(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(colour[:, :, 0]), Image.fromarray(alpha[:, :, 0])])


def test_sixteen_bit_grey_is_divided_by_257():
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(wide / 257).astype(np.uint8)[:, :, None]
    for kind in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(encode(wide, kind), 1, LIMIT), expected)
        np.testing.assert_array_equal(decode(encode(wide, kind), 3, LIMIT), expected.repeat(3, 2))
    big = encode(np.array([[0, 257, 65535]], np.int32), "TIFF")
    assert decode(big, 1, LIMIT).ravel().tolist() == [0, 1, 255]
    for beyond in (-5, 1_000_000):
        with pytest.raises(BadImage, match=f"{beyond}.*no defined range.*--input.range"):
            decode(encode(np.array([[0, beyond]], np.int32), "TIFF"), 1, LIMIT)


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode(content, 3, LIMIT) == (255, 0, 0)).all()


# ------------------------------------------------------------------------------------------------- refusals


def test_what_is_no_image_is_named():
    assert reason(b"") == "empty file"
    page = "is a HTML/text page, not an image"
    assert reason(b"<!DOCTYPE html>\n<html><body>404</body></html>") == page
    assert reason(b"\xef\xbb\xbf  <!-- x -->\n<HTML lang='de'>") == page
    assert reason("<p>Не найдено, см. <html>".encode()) == page
    assert reason(b"Not found, sorry\n") == "is text, not an image"
    assert "SVG" in reason(b'<?xml version="1.0"?><svg xmlns="x"/>')
    assert "PDF" in reason(b"%PDF-1.7\n%\xe2\xe3")
    assert "PostScript" in reason(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert "LFS" in reason(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "archive" in reason(b"PK\x03\x04" + bytes(40))
    assert "HEIF" in reason(b"\0\0\0\x18ftypheic" + bytes(40))
    assert "video" in reason(b"\0\0\0\x18ftypisom" + bytes(40))
    assert reason(bytes(5000)) == "holds only zeros"
    noise = np.random.default_rng(0).bytes(5000)
    assert reason(b"\x01" + noise) == "is not an image of a known format"
    assert reason(b"\xff\xd8\xff" + noise).endswith("JPEG file")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_truncated_files_are_refused(kind):
    content = encode(picture(200, 200), kind)
    for part in (0.3, 0.6, 0.9):
        text = reason(content[: int(len(content) * part)])
        assert "truncated" in text or "damaged" in text
    if kind in ("JPEG", "PNG"):
        assert reason(content[: len(content) // 2]) == f"truncated {kind} file"


def _png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_bombs_and_absurd_dimensions_are_refused_from_the_header():
    data = b"IDAT" + zlib.compress(bytes(100))
    rest = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    assert "bomb" in reason(_png_header(20_000, 20_000) + rest, 178_000_000)
    assert "bomb" in reason(_png_header(12_000, 12_000) + rest, 100_000_000)
    assert "above 65535" in reason(_png_header(70_000, 400) + rest, 10**9)
    assert "200:1" in reason(_png_header(10_000, 49) + rest, 10**9)
    assert "bomb" in reason(encode(picture()), 40 * 60 - 1)
    assert decode(encode(picture()), 3, 40 * 60).shape == (40, 60, 3)
    assert decode(encode(picture(1, 200)), 3, LIMIT).shape == (1, 200, 3)


def test_max_pixels_and_not_pillows_own_limit_counts(monkeypatch):
    content = encode(picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(content, 3, LIMIT).shape == (40, 60, 3)


def test_floating_point_pixels_are_refused():
    assert "floating" in reason(encode(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), "TIFF"))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damage_never_raises_anything_but_bad_image(data):
    kinds = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO")
    content = bytearray(encode(picture(16, 16), data.draw(st.sampled_from(kinds))))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        pixels = decode(bytes(content), 3, 100_000)
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_decoding_in_threads_gives_the_same_and_leaves_warnings_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [
        encode(picture(seed=i), kind, exif=exif) for i in range(6) for kind in ("JPEG", "PNG", "TIFF")
    ]
    expected = [decode(content, 3, LIMIT) for content in contents]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, want in zip(pool.map(lambda c: decode(c, 3, LIMIT), contents), expected, strict=True):
                np.testing.assert_array_equal(got, want)
    assert warnings.filters == filters


# ------------------------------------------------------------------------------------------ arrays and boxes


def test_to_channels():
    colour = picture()
    np.testing.assert_array_equal(to_channels(colour[:, :, 0], 1), colour[:, :, :1])
    np.testing.assert_array_equal(to_channels(colour[:, :, 0], 3), colour[:, :, :1].repeat(3, 2))
    assert to_channels(colour, 3) is colour
    luma = np.rint(colour @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    np.testing.assert_allclose(to_channels(colour, 1), luma, atol=1)
    np.testing.assert_array_equal(
        to_channels(colour, 1)[:, :, 0], np.asarray(Image.fromarray(colour).convert("L"))
    )
    clear = np.concatenate([colour, np.zeros((40, 60, 1), np.uint8)], 2)
    assert (to_channels(clear, 3) == 255).all()
    for wrong in (colour.astype(np.float32), colour[None], colour[:0]):
        with pytest.raises(BadImage, match="is not an image"):
            to_channels(wrong, 3)
    with pytest.raises(BadImage, match="has 2 channels; the input has 3"):
        to_channels(colour[:, :, :2], 3)


def test_crop_box():
    image = picture()
    np.testing.assert_array_equal(crop_box(image, (5, 6, 25, 36)), image[6:36, 5:25])
    np.testing.assert_array_equal(crop_box(image, (5.9, 6.1, 24.1, 35.2)), image[6:36, 5:25])
    np.testing.assert_array_equal(crop_box(image, (-9, -9, 999, 999)), image)
    assert crop_box(image, np.full(4, np.nan)) is image
    for empty in ((60, 0, 80, 10), (10, 10, 10, 20), (20, 10, 10, 20), (-20, 0, -5, 10)):
        with pytest.raises(BadImage, match="holds no pixel"):
            crop_box(image, empty)


# -------------------------------------------------------------------------------------------------- resizing


def reference_scale(image: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    source = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    scaled = F.interpolate(source, (height, width), mode=mode, antialias=True, align_corners=False)
    return scaled[0].permute(1, 2, 0).round().clamp(0, 255).numpy().astype(np.uint8)


def close(found: np.ndarray, reference: np.ndarray) -> None:
    """Check that an image is torch's but for values close to a half: its weights are not rounded."""
    distance = np.abs(found.astype(int) - reference)
    assert found.shape == reference.shape
    assert distance.max() <= 1
    assert distance.mean() < 0.04


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (20, 20), (33, 101), (64, 64)])
def test_policies_follow_their_definition(mode, shape):
    image = picture(*shape)
    height, width = shape
    squashed = resize(image, contract("squash", 64, mode))
    close(squashed, reference_scale(image, 64, 64, mode))

    edge, short = round(64 / 0.875), min(shape)
    whole = reference_scale(image, edge * height // short, edge * width // short, mode)
    top, left = (round((side - 64) / 2) for side in whole.shape[:2])  # as torchvision's CenterCrop
    cropped = resize(image, contract("crop", 64, mode))
    close(cropped, whole[top : top + 64, left : left + 64])

    boxed = resize(image, contract("letterbox", 64, mode, fill=7))
    h, w = (max(1, int(np.floor(64 * side / max(shape) + 0.5))) for side in shape)
    top, left = (64 - h) // 2, (64 - w) // 2
    inner = boxed[top : top + h, left : left + w].copy()
    close(inner, reference_scale(image, h, w, mode))
    boxed[top : top + h, left : left + w] = 7
    assert (boxed == 7).all()


@pytest.mark.parametrize("size", [24, 31, 32])
@pytest.mark.parametrize("fraction", [0.5, 0.875, 0.9, 1.0])
def test_the_centre_is_torchvisions(size, fraction):
    """Of every length that the scaled image can have, also those that leave an odd border."""
    functional = packages.require("torchvision.transforms.v2.functional", "models", "a test")
    made = contract("crop", size, crop_fraction=fraction)
    for longer in range(made.edges[0], made.edges[0] + 9):
        image = picture(made.edges[0], longer)  # it is scaled already, so only the cut is left
        expected = functional.center_crop(torch.from_numpy(image).permute(2, 0, 1), [size, size])
        np.testing.assert_array_equal(resize(image, made), expected.permute(1, 2, 0).numpy())
        turned = np.ascontiguousarray(image.transpose(1, 0, 2))
        expected = functional.center_crop(torch.from_numpy(turned).permute(2, 0, 1), [size, size])
        np.testing.assert_array_equal(resize(turned, made), expected.permute(1, 2, 0).numpy())
    assert made.edges[0] == int(size / fraction + 1e-9), "timm's rule"


def test_contracts_of_before_keep_their_centre():
    values = contract("crop", 20, crop_fraction=0.9).to_dict()
    assert values["version"] == 2
    del values["version"], values["range"]
    old = Preprocessing.from_dict(values)
    assert (old.version, old.edges[0]) == (1, round(20 / 0.9))
    image = picture(old.edges[0], old.edges[0] + 1)
    top, left = (old.edges[0] - 20) // 2, (old.edges[0] + 1 - 20) // 2
    np.testing.assert_array_equal(resize(image, old), image[top : top + 20, left : left + 20])
    with pytest.raises(ValueError, match="version is 3"):
        Preprocessing.from_dict({**values, "version": 3})


def test_scaling_down_looks_like_pillows():
    image = picture(300, 400)
    ours = resize(image, contract("squash", 64)).astype(int)
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_images_of_the_right_size_pass_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for policy in ("squash", "crop", "letterbox"):
        for mode in ("bilinear", "bicubic"):
            np.testing.assert_array_equal(resize(image, contract(policy, 32, mode, crop_fraction=1.0)), image)
            np.testing.assert_array_equal(reference_scale(image, 32, 32, mode), image)
    zoomed = resize(image, contract("crop", 32))  # a fraction below 1 does zoom
    assert (zoomed != image).any()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_chunks_give_the_same_bits(monkeypatch, mode):
    image = picture(301, 220)
    made = contract("crop", 48, mode)
    expected = resize(image, made)
    monkeypatch.setattr(resizing, "_PART_VALUES", 5000)
    np.testing.assert_array_equal(resize(image, made), expected)


def test_views_and_read_only_arrays_are_accepted():
    image = picture()
    turned = image[:, ::-1]
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(resize(turned, contract()), resize(turned.copy(), contract()))
    np.testing.assert_array_equal(resize(frozen, contract()), resize(image, contract()))


def test_fit_short_side():
    image = picture(90, 120)
    assert fit_short_side(image, 45).shape == (45, 60, 3)
    assert fit_short_side(picture(120, 91), 45).shape == (59, 45, 3)
    assert fit_short_side(image, 90) is image
    assert fit_short_side(image, 500) is image
    for shape in ((90, 120, 3), (120, 90, 1)):
        image = picture(*shape)
        exact = reference_scale(image, shape[0] // 3, shape[1] // 3, "bilinear")
        assert np.abs(fit_short_side(image, 30).astype(int) - exact).max() <= 1
    frozen = image.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(fit_short_side(frozen, 30), fit_short_side(image, 30))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(["squash", "crop", "letterbox"]),
    st.floats(0.3, 1),
    st.sampled_from([1, 3]),
)
def test_any_image_becomes_size_by_size(height, width, size, policy, fraction, channels):
    made = contract(
        policy, size, crop_fraction=fraction, channels=channels, mean=(0.5,) * channels, std=(1.0,) * channels
    )
    value = np.full((height, width, channels), 200, np.uint8)
    result = resize(value, made)
    assert result.shape == (size, size, channels)
    assert result.dtype == np.uint8
    inside = result[(size - 1) // 2, (size - 1) // 2] if policy == "letterbox" else result
    assert (inside == 200).all()  # interpolation keeps a plain image plain


def test_load_takes_bytes_arrays_and_boxes():
    image = picture(90, 120)
    made = contract()
    expected = resize(image, made)
    np.testing.assert_array_equal(load(encode(image), made), expected)
    np.testing.assert_array_equal(load(image, made), expected)
    np.testing.assert_array_equal(load(image, made, box=np.full(4, np.nan)), expected)
    box = (10.0, 20.0, 70.0, 80.0)
    np.testing.assert_array_equal(load(encode(image), made, box=box), resize(image[20:80, 10:70], made))
    grey = contract(channels=1, mean=(0.5,), std=(0.5,))
    assert load(image[:, :, 0], grey).shape == (32, 32, 1)
    with pytest.raises(BadImage, match="bomb"):
        load(encode(image), made, max_pixels=100)


# ----------------------------------------------------------------------------------------------- normalising


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 32, 32), (3, 17, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_its_formula(shape, channels_last, channels):
    made = contract(channels=channels, mean=MEAN[:channels], std=STD[:channels])
    images = torch.randint(0, 256, (*shape, channels), dtype=torch.uint8)
    result = normalise(images, made, channels_last)
    assert result.dtype == torch.float32
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=order)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (made.mean, made.std))
    expected = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(result, normalise(images, made, not channels_last), atol=0, rtol=0)
    torch.testing.assert_close(denormalise(result, made), images, atol=0, rtol=0)
    other = images.flip(2).permute(0, 2, 1, 3)  # not contiguous
    torch.testing.assert_close(
        normalise(other, made, channels_last), normalise(other.contiguous(), made), atol=0, rtol=0
    )


def test_normalised_images_take_part_in_gradients_after_inference_mode():
    made = contract(mean=(0.123, 0.2, 0.3))
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        normalise(images, made)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(images, made) * weight).sum().backward()
    assert weight.grad is not None


# --------------------------------------------------------------------------------------------------- graph

SIZES = [(32, 32), (90, 120), (33, 101), (120, 35), (20, 28)]


def expected_input(images: torch.Tensor, made: Preprocessing) -> torch.Tensor:
    return normalise(torch.from_numpy(np.stack([load(image, made) for image in images.numpy()])), made)


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_module_agrees_with_load_and_normalise(policy, mode):
    made = contract(policy, 32, mode)
    module = as_module(made)
    assert not module.state_dict()
    for height, width in SIZES:
        images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
        torch.testing.assert_close(module(images), expected_input(images, made), atol=1e-6, rtol=0)


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
def test_the_module_exports_with_dynamic_height_and_width(policy):
    made = contract(policy, 32, "bicubic" if policy == "crop" else "bilinear")
    example = torch.randint(0, 256, (2, 70, 90, 3), dtype=torch.uint8)
    dim = torch.export.Dim
    shapes = ({0: dim("batch"), 1: dim("height", min=2), 2: dim("width", min=2)},)
    graph = torch.export.export(as_module(made), (example,), dynamic_shapes=shapes).module()
    for height, width in SIZES:
        images = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
        torch.testing.assert_close(graph(images), expected_input(images, made), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------- contract


def test_the_contract_survives_json_and_refuses_nonsense():
    made = contract("letterbox", fill=3)
    assert Preprocessing.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    for wrong in (
        {"size": 0},
        {"crop_fraction": 0.0},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"channels": 2},
        {"resize": "stretch"},
        {"interpolation": "nearest"},
        {"fill": 256},
    ):
        with pytest.raises(ValueError, match=r"size|std|channels|resize|interpolation"):
            Preprocessing.from_dict({**made.to_dict(), **wrong})


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise_writes_into_a_given_tensor(channels_last):
    contract = Preprocessing(6, 3, "squash", "bilinear", 1.0, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8)
    order = torch.channels_last if channels_last else torch.contiguous_format
    whole = torch.zeros(9, 3, 6, 7).contiguous(memory_format=order)
    assert normalise(images, contract, channels_last, out=whole[2:7]).data_ptr() == whole[2:7].data_ptr()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    expected = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(whole[2:7], expected, atol=1e-5, rtol=0)
    assert not whole[:2].any()
    assert not whole[7:].any()
