"""Pictures of numbers and of samples, for TensorBoard and for a first look: plain pixels made with Pillow.

Knows nothing of where they are shown. Text is drawn with the first font of this machine that has its
characters (Chinese and others need one such as Noto Sans CJK); if there is none, a box stands for a character. A
missing font is never an error.
"""

from __future__ import annotations

import functools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "simsun.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "unifont.ttf",
)
FONT_FOLDERS = {
    "win32": ("C:/Windows/Fonts",),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
}
LINUX_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
INK, PAPER, FAINT = (32, 36, 42), (255, 255, 255), (214, 218, 224)
LOW, HIGH = np.array([247.0, 249.0, 252.0]), np.array([8.0, 48.0, 107.0])  # light to dark blue


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Return this machine's fonts out of FONT_NAMES, in that order."""
    found: dict[str, str] = {}
    for folder in FONT_FOLDERS.get(sys.platform, LINUX_FOLDERS):
        for path in pathlib.Path(folder).expanduser().rglob("*.[to]t[fc]"):
            found.setdefault(path.name, str(path))
    return tuple(found[name] for name in FONT_NAMES if name in found)


@functools.lru_cache(maxsize=256)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        return None


def _draws(font: Font, text: str) -> bool:
    """Return whether ``font`` has a glyph of its own for every visible character."""
    missing = _mask(font, "\U0010fffe")
    return all(character.isspace() or _mask(font, character) != missing for character in set(text))


@functools.lru_cache(maxsize=4096)
def _mask(font: Font, character: str) -> bytes:
    mask: Any = font.getmask(character)
    return bytes(mask) + repr(mask.size).encode()


def font_for(text: str, size: int) -> Font:
    """Return the first font that has all of ``text``'s characters, otherwise Pillow's own."""
    for path in _font_files():
        font = _load(path, size)
        if font is not None and _draws(font, text):
            return font
    return ImageFont.load_default(size)


def _fitted(text: str, size: int, width: float) -> tuple[str, Font]:
    """Return ``text``, cut with an ellipsis if it is wider than ``width`` pixels, and its font."""
    text = " ".join(text.split()) or " "
    font = font_for(text, size)
    if font.getlength(text) <= width:
        return text, font
    keep = len(text)
    while keep > 1 and font.getlength(text[:keep] + "…") > width:
        keep -= 1
    return text[:keep] + "…", font


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: Font, fill: Any, anchor: str
) -> None:
    try:
        draw.text(at, text, font=font, fill=fill, anchor=anchor)
    except (
        ValueError,
        UnicodeError,
        OSError,
    ):
        # Pillow's bitmap font knows neither anchors nor all characters
        draw.text(at, text.encode("ascii", "replace").decode(), fill=fill)


def picture_grid(
    images: npt.NDArray[np.uint8],
    labels: Sequence[str],
    columns: int = 0,
    side: int = 128,
    title: str = "",
) -> Pixels:
    """Return the pictures side by side with their names below, uint8 [h, w, 3].

    images: uint8 [N, H, W, 1 or 3] (H and W of all equal); labels: N captions. Each picture is scaled to
    ``side`` pixels of width; small ones without smoothing, so that every pixel is seen. columns: 0 for about
    16 : 10.
    """
    if images.shape[3] not in (1, 3):  # channels without colours' names: the first three, or the first
        images = images[..., : 3 if images.shape[3] > 3 else 1]
    count, height, width = images.shape[:3]
    if count != len(labels):
        raise ValueError(f"{count} images and {len(labels)} labels")
    columns = min(count, columns or max(1, math.ceil(math.sqrt(count * 1.4)))) or 1
    tall = max(1, round(side * height / width))
    gap, line, top = 8, 20, 30 if title else 0
    rows = math.ceil(count / columns)
    size = (columns * (side + gap) + gap, rows * (tall + line + gap) + gap + top)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        text, font = _fitted(title, 16, size[0] - 2 * gap)
        _write(draw, (gap, gap + 10), text, font, INK, "lm")
    smooth = Image.Resampling.NEAREST if width <= 64 else Image.Resampling.LANCZOS
    for row in range(count):
        x = gap + row % columns * (side + gap)
        y = top + gap + row // columns * (tall + line + gap)
        pixels = images[row] if images.shape[3] == 3 else images[row].repeat(3, axis=2)
        canvas.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, tall), smooth), (x, y))
        text, font = _fitted(str(labels[row]), 13, side)
        _write(draw, (x + side / 2, y + tall + 10), text, font, INK, "mm")
    return np.asarray(canvas)


def confusion_image(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Pixels:
    """Return a picture of a confusion matrix, uint8 [h, w, 3].

    matrix: int64 [K, K], rows are true classes, columns predicted ones. The shade is the share of the row. Up
    to 60 classes have their names, up to 20 their counts; with more than 400 several classes share a pixel.
    """
    matrix = np.asarray(matrix, np.float64)
    if len(classes) > 400:
        block = math.ceil(len(classes) / 400)
        edges = np.arange(0, len(classes), block)
        matrix = np.add.reduceat(np.add.reduceat(matrix, edges, 0), edges, 1)
        classes = [""] * len(edges)
    count = len(classes)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell = 44 if count <= 10 else 34 if count <= 20 else 15 if count <= 60 else max(2, 800 // count)
    colours = (LOW + (HIGH - LOW) * np.sqrt(share)[:, :, None]).round().astype(np.uint8)
    named, size = count <= 60, 13 if count <= 20 else 11
    margin = 44 if not named else 54 + round(max(min(160.0, _width(name, size)) for name in classes))
    canvas = Image.new("RGB", (margin + count * cell + 12, margin + count * cell + 12), PAPER)
    canvas.paste(Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1)), (margin, margin))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((margin - 1, margin - 1, margin + count * cell, margin + count * cell), outline=FAINT)
    if named:
        _name_axes(canvas, draw, classes, size, margin, cell)
    middle = margin + count * cell / 2
    _write(draw, (middle, 16), "predicted", font_for("predicted", 14), INK, "mm")
    _sideways(canvas, "true", 14, (16, middle), "m")
    if count <= 20:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            fill = PAPER if share[i, j] > 0.25 else INK
            text, font = _fitted(f"{matrix[i, j]:.0f}", 12, cell)
            _write(draw, (margin + (j + 0.5) * cell, margin + (i + 0.5) * cell), text, font, fill, "mm")
    return np.asarray(canvas)


def _width(text: str, size: int) -> float:
    return float(font_for(text, size).getlength(text or " "))


def _name_axes(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, classes: Sequence[str], size: int, margin: int, cell: int
) -> None:
    for k, name in enumerate(classes):
        text, font = _fitted(str(name), size, margin - 46)
        middle = margin + (k + 0.5) * cell
        _write(draw, (margin - 8, middle), text, font, INK, "rm")
        _sideways(canvas, text, size, (middle, margin - 8), "b")


def _sideways(canvas: Image.Image, text: str, size: int, at: tuple[float, float], anchor: str) -> None:
    """Draw ``text`` upwards; ``at`` is its middle ("m") or its lower end ("b")."""
    font = font_for(text, size)
    length, height = math.ceil(font.getlength(text)) + 2, size + 8
    strip = Image.new("L", (length, height), 0)
    _write(ImageDraw.Draw(strip), (0, height / 2), text, font, 255, "lm")
    upright = strip.rotate(90, expand=True)
    x, y = at
    corner = (round(x - height / 2), round(y - (length if anchor == "b" else length / 2)))
    canvas.paste(Image.new("RGB", upright.size, INK), corner, upright)
