"""Decoding JPEGs at a reduced scale: the pixels are libjpeg's, the rule is kept, and nothing else changes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tellapart.preprocess import REDUCED_MARGIN, BadImage, Preprocessing, decode, load, resize

NONE, ONE = (0.0,) * 3, (1.0,) * 3


def contract(
    resize: str = "crop", size: int = 16, decode: str = "scaled", fraction: float = 1.0
) -> Preprocessing:
    return Preprocessing(size, 3, resize, "bilinear", fraction, NONE, ONE, decode=decode)  # type: ignore[arg-type]


def jpeg(width: int, height: int, mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    rng = np.random.default_rng(width * height)
    small = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    picture = small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    picture.save(stream, "JPEG", quality=92, exif=exif, **options)
    return stream.getvalue()


def by_pillow(content: bytes, factor: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        if factor > 1:
            picture.draft(None, (picture.width // factor, picture.height // factor))
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("size", "factor"), [(16, 8), (40, 4), (41, 2), (60, 2), (90, 1), (300, 1)])
def test_the_smallest_scale_that_suffices(size: int, factor: int, orientation: int, mode: str) -> None:
    content = jpeg(301, 243, mode, orientation)
    wanted = contract(size=size)
    pixels = by_pillow(content, factor)
    assert np.array_equal(decode(content, 3, suffices=wanted.suffices), pixels)
    assert np.array_equal(load(content, wanted), resize(pixels, wanted))
    assert np.array_equal(
        load(content, contract(size=size, decode="full")), resize(by_pillow(content, 1), wanted)
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 80),
    st.sampled_from(["squash", "crop", "letterbox"]),
    st.floats(0.5, 1),
)
def test_every_side_that_is_scaled_down_keeps_its_margin(
    height: int, width: int, size: int, policy: str, fraction: float
) -> None:
    content = jpeg(width, height)
    wanted = contract(policy, size, fraction=fraction if policy == "crop" else 1.0)
    try:
        pixels = decode(content, 3, suffices=wanted.suffices)
    except BadImage:
        assert max(height, width) > 200 * min(height, width)
        return
    rows, columns = pixels.shape[:2]
    factor = next(f for f in (1, 2, 4, 8) if (-(-height // f), -(-width // f)) == (rows, columns))
    if factor == 1:
        assert np.array_equal(pixels, decode(content, 3))
        return
    edge = size / fraction if policy == "crop" else size
    relevant = max(rows, columns) if policy == "letterbox" else min(rows, columns)
    assert relevant >= REDUCED_MARGIN * edge


def test_limits_are_about_the_whole_image() -> None:
    content = jpeg(400, 300)
    assert decode(content, 3, 120_000, contract().suffices).shape == (38, 50, 3)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(content, 3, 119_999, contract().suffices)
    with pytest.raises(BadImage, match="truncated"):
        decode(content[: len(content) // 2], 3, suffices=contract().suffices)


def test_boxes_and_other_formats_are_decoded_whole() -> None:
    content = jpeg(400, 300)
    box = (100.0, 50.0, 300.0, 250.0)
    assert np.array_equal(load(content, contract(), box=box), load(content, contract(decode="full"), box=box))
    whole = (np.nan,) * 4
    assert np.array_equal(load(content, contract(), box=whole), load(content, contract()))
    assert not np.array_equal(load(content, contract()), load(content, contract(decode="full")))
    stream = io.BytesIO()
    Image.open(io.BytesIO(content)).save(stream, "PNG")
    assert np.array_equal(load(stream.getvalue(), contract()), load(content, contract(decode="full")))


def test_a_photograph_hardly_changes() -> None:
    """On a smooth picture, at the smallest margin that the rule allows."""
    y, x = np.mgrid[:384, :512]
    waves = np.stack([128 + 100 * np.sin(x / (9 + c)) * np.cos(y / (13 - c)) for c in range(3)], axis=2)
    stream = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(stream, "JPEG", quality=90)
    size = int(192 / REDUCED_MARGIN)
    assert decode(stream.getvalue(), 3, suffices=contract(size=size).suffices).shape == (192, 256, 3)
    scaled, full = (
        load(stream.getvalue(), contract(size=size, decode=d)).astype(float) for d in ("scaled", "full")
    )
    assert np.abs(scaled - full).mean() < 1.5


def test_an_older_contract_means_full() -> None:
    values = contract().to_dict()
    assert values["decode"] == "scaled"
    assert Preprocessing.from_dict(values) == contract()
    del values["decode"]
    assert Preprocessing.from_dict(values) == contract(decode="full")
    with pytest.raises(ValueError, match="decode is 'half'"):
        contract(decode="half")
