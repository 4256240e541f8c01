"""The table of formats: what is found in a folder is decoded, and what is not an image is called what it is."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tellapart.contract import BadImage, decode, decoding
from tellapart.contract.decoding import recognise
from tellapart.contract.formats import BY_EXTENSION, FORMATS
from tellapart.data.sources.folders import walk
from tellapart.serve.options import Options

HEIC = base64.b64decode(  # 16x12, a red square on grey
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAAKUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAMAAAAAf///9AAAAAC////zAAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAArW1kYXQAAAChKAGvCch+JEZAPewWaZ26IluDHrHBbJrTjtp7mA16"
    "2+Qe9oSiRwf+i9qA2IJOabyto7URmHZpro92A0vVslKUz69niWQLSm8qReYM8LnUcG9mfmyPBAm/poMZChgxRZlUElAASIshAbZx"
    "R1BeZ01DmsjKvzeF9Rnr1C307nnStqfy1qcMK3BAqUjlkTdAX9I24s7dfd7PxXBloLgyiVn2QcA="
)


def picture() -> Image.Image:
    image = Image.new("RGB", (40, 24), (90, 120, 200))
    ImageDraw.Draw(image).ellipse((5, 3, 30, 20), fill=(250, 200, 10))
    return image


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    if name == "NumPy":
        np.save(stream, np.asarray(image))
        return stream.getvalue()
    image.save(stream, name, **options)
    return stream.getvalue()


EXACT = ("NumPy", "PNG", "BMP", "TIFF", "PPM", "SGI", "PCX", "QOI", "TGA")


@pytest.mark.parametrize("one", [one for one in FORMATS if one.name != "HEIF"], ids=lambda one: one.name)
def test_every_format_that_is_walked_is_decoded(one: object, tmp_path: Path) -> None:
    options = {"sizes": [(40, 24)]} if one.name == "ICO" else {}  # type: ignore[attr-defined]
    content = encoded(picture(), one.pillow, **options)  # type: ignore[attr-defined]
    assert recognise(content) == one.name  # type: ignore[attr-defined]
    pixels = decode(content, 3)
    if one.name in EXACT:  # type: ignore[attr-defined]
        np.testing.assert_array_equal(pixels, np.asarray(picture()))
    for extension in one.extensions:  # type: ignore[attr-defined]
        (tmp_path / f"a{extension}").write_bytes(content)
    found = walk.walk(str(tmp_path), lambda note: None).images
    assert sorted(found) == sorted(f"a{extension}" for extension in one.extensions)  # type: ignore[attr-defined]


def test_heic_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognise_name(HEIC) == "HEIF"
    decoding._reader.cache_clear()
    monkeypatch.setattr(
        decoding.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(
        BadImage, match=r"is HEIF, which needs a further package: pip install 'tellapart\[heif\]'"
    ):
        decode(HEIC, 3)
    monkeypatch.undo()
    decoding._reader.cache_clear()


def recognise_name(content: bytes) -> str:
    return next(one.name for one in FORMATS if one.begins.match(content))


def test_heic_is_decoded() -> None:
    pytest.importorskip("pi_heif")
    pixels = decode(HEIC, 3)
    assert pixels.shape == (12, 16, 3)
    with Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "PNG"))) as again:
        np.testing.assert_array_equal(np.asarray(again), pixels)
    assert pixels.std() > 5


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_the_kinds_of_tga_pcx_and_sgi_are_those_of_pillow(mode: str) -> None:
    image = picture().convert(mode)
    for name in ("TGA", "PCX", "SGI"):
        try:
            content = encoded(image, name)
        except (ValueError, KeyError, OSError):
            continue  # it has no such kind
        np.testing.assert_array_equal(decode(content, 3), np.asarray(image.convert("RGB")), err_msg=name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0" * 128 + b"DICM" + b"\2\0" * 50, "DICOM"),
        (b"v/1\1" + b"0" * 50, "OpenEXR"),
        (b"\xff\x0a" + b"0" * 50, "JPEG XL"),
        (b"\xff\xd8\xff\xf7" + b"0" * 50, "JPEG-LS"),
        (b"8BPS\0\1", "Photoshop"),
        (b"PF\n4 4\n-1.0\n" + bytes(192), "colour PFM"),
        (b"Pf\n2 2\n-1.0\n" + bytes(16), "floating-point pixels"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (bytes(np.random.default_rng(0).integers(0, 256, 400, np.uint8)), "not an image of a known format"),
        (encoded(picture(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "JPEG of 12 bits"),
    ],
)
def test_other_files_are_called_what_they_are(content: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said) as caught:
        decode(content, 3)
    assert "damaged" not in caught.value.reason


def test_names_are_unique_and_the_service_knows_the_formats() -> None:
    assert len(BY_EXTENSION) == sum(len(one.extensions) for one in FORMATS)
    names = {one.name.lower().replace(" ", "") for one in FORMATS}
    assert set(Options().formats) <= names
