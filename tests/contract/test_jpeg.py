"""The faster decoder changes no pixel and no reason for a refusal, and is left aside where it would."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.contract import BadImage, decode, jpeg


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    jpeg._decoder.cache_clear()
    yield
    jpeg._decoder.cache_clear()


def picture(
    mode: str = "RGB", size: tuple[int, int] = (61, 43), orientation: int = 1, **options: Any
) -> bytes:
    noise = np.random.default_rng(sum(size)).integers(0, 256, (8, 11, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, **options)
    return stream.getvalue()


def outcome(content: bytes, channels: int = 3, suffices: Any = None) -> Any:
    try:
        return decode(content, channels, suffices=suffices).tolist()
    except BadImage as error:
        return error.reason


def by_pillow(monkeypatch: pytest.MonkeyPatch, content: bytes, *args: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "pixels", lambda *given: None)
        return outcome(content, *args)


KINDS: list[dict[str, Any]] = [
    *({"subsampling": way, "quality": 85} for way in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")),
    {"progressive": True},
    {"optimize": True, "restart_marker_blocks": 3},
    {"keep_rgb": True, "quality": 95},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"size": (1, 1)},
    {"size": (1, 150)},
    {"size": (17, 8), "subsampling": "4:2:0"},
    *({"orientation": turned} for turned in range(2, 9)),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_gives_the_pixels_of_pillow(
    kind: dict[str, Any], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    assert jpeg._decoder() is not None
    content = picture(**kind)
    found = decode(content, channels)
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert found.tolist() == by_pillow(monkeypatch, content, channels)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_pixels_of_files_that_turbojpeg_wrote(subsampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    noise = np.random.default_rng(0).integers(0, 256, (90, 77, 3), np.uint8)
    content = simplejpeg.encode_jpeg(noise, quality=70, colorsubsampling=subsampling)
    assert jpeg.pixels(content, "RGB", 77, 90) is not None
    assert outcome(content) == by_pillow(monkeypatch, content)


def test_damage_is_found_as_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    content, rng = picture(quality=80), np.random.default_rng(0)
    damaged = [content[:length] for length in range(0, len(content), 37)]
    damaged += [content + b"\0more", content[:-2], content[:2] + b"\xff\xfe\0\x05abc" + content[2:]]
    for _ in range(150):
        broken = np.frombuffer(content, np.uint8).copy()
        broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
        damaged.append(broken.tobytes())
    outcomes = [outcome(one) for one in damaged]
    assert outcomes == [by_pillow(monkeypatch, one) for one in damaged]
    assert {type(one) for one in outcomes} == {str, list}


def stand_in(change: Callable[[np.ndarray], np.ndarray], calls: list[str]) -> types.ModuleType:
    """Return a module like simplejpeg that decodes with Pillow and then changes the pixels."""

    def decode_jpeg(content: bytes, colorspace: str) -> np.ndarray:
        calls.append(colorspace)
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(image)
        return change(pixels if pixels.ndim == 3 else pixels[:, :, None])

    module = types.ModuleType("simplejpeg")
    module.decode_jpeg = decode_jpeg  # type: ignore[attr-defined]
    return module


def fail(pixels: np.ndarray) -> np.ndarray:
    raise ValueError("no")


def one_level_more(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels == 255, pixels, pixels + 1).astype(np.uint8)


@pytest.mark.parametrize("change", [fail, one_level_more])
def test_a_decoder_that_differs_is_not_used(
    change: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "simplejpeg", stand_in(change, calls))
    content = picture()
    expected = by_pillow(monkeypatch, content)
    assert outcome(content) == expected
    tried = len(calls)
    assert tried > 0
    assert outcome(content) == expected
    assert len(calls) == tried


def test_a_decoder_that_agrees_is_used_for_whole_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "simplejpeg", stand_in(lambda pixels: pixels, calls))
    contents = [picture(), picture("L"), picture("CMYK"), picture(size=(160, 120))]
    assert jpeg._decoder() is not None
    calls.clear()
    for content in contents[:3]:
        assert outcome(content) == by_pillow(monkeypatch, content)
    assert calls == ["RGB", "GRAY"]

    def half(height: int, width: int) -> bool:
        return height >= 60

    assert outcome(contents[3], 3, half) == by_pillow(monkeypatch, contents[3], 3, half)
    assert calls == ["RGB", "GRAY"]
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_decoder", lambda: fail)  # it agreed, but cannot decode this one
        assert outcome(contents[0]) == by_pillow(monkeypatch, contents[0])


def test_without_the_package_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert jpeg._decoder() is None
    assert isinstance(outcome(picture()), list)
