"""The HTML page of `tellapart check`: one self-contained file that needs no network.

Shows what `tellapart.data.health` found, with thumbnails inside the file. Judges nothing itself, and knows nothing of
training; augmented images are passed to it ready-made.
"""

from __future__ import annotations

import base64
import io
import math
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tellapart import files, pages
from tellapart.contract.decoding import shown, to_shown
from tellapart.contract.deep import Levels
from tellapart.data.health import Health, Read
from tellapart.data.samples import SPLITS, Samples
from tellapart.errors import UserError, WriteError
from tellapart.preprocess import MAX_PIXELS, BadImage, crop_box

Pixels = npt.NDArray[np.uint8]
Augmented = tuple[str, Pixels, Sequence[Pixels]]

MAX_CLASSES = 60  # rows of the table of classes; beyond, the largest and the smallest
MAX_SAMPLES = 320  # images in the grid of samples
MAX_GROUPS = 40
MAX_COPIES = 5
MAX_LINES = 200
TEXT_RESERVE = 1_500_000  # bytes of the page kept for everything that is not an image


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI; "" if there is none (unreadable, or the page is full)."""

    source: str
    width: int = 0
    height: int = 0
    is_small: bool = False


class Thumbnails:
    """Makes thumbnails of at most ``side`` pixels until ``max_bytes`` of data URIs are spent."""

    def __init__(
        self,
        samples: Samples,
        read: Read,
        side: int,
        max_bytes: int,
        max_pixels: int,
        levels: Levels | None = None,
        depth: str = "uint8",
    ) -> None:
        self.levels, self.depth = levels, depth
        self.samples, self.read, self.side, self.max_pixels = samples, read, side, max_pixels
        self.left = max_bytes
        self.made: dict[int, Picture] = {}

    def of(self, row: int, use_box: bool = False) -> Picture:
        """Return the thumbnail of a row of the samples (cut to its box with ``use_box``)."""
        boxes = self.samples.boxes if use_box else None
        if boxes is None and row in self.made:
            return self.made[row]
        try:
            content = self.read(row)
            pixels = shown(content, self.max_pixels, self.levels, self.depth)
            picture = self.make(pixels if boxes is None else crop_box(pixels, boxes[row]))
        except (BadImage, OSError, MemoryError):
            return Picture("")
        if boxes is None:
            self.made[row] = picture
        return picture

    def make(self, pixels: Pixels) -> Picture:
        """Return the thumbnail of uint8 [H, W] or [H, W, C]; small images are kept losslessly at their size."""
        image = Image.fromarray(to_shown(pixels))
        is_small = max(image.size) <= 64
        if not is_small:
            image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        if is_small:
            image.save(stream, "PNG")
        else:
            image.save(stream, "JPEG", quality=80, optimize=True)
        kind = "png" if is_small else "jpeg"
        source = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
        if len(source) > self.left:
            return Picture("")
        self.left -= len(source)
        return Picture(source, image.width, image.height, is_small)


def write_check_page(
    health: Health,
    samples: Samples,
    out_path: str | os.PathLike[str],
    *,
    read: Read | None = None,
    augmented: Sequence[Augmented] = (),
    per_class: int = 8,
    thumbnail: int = 192,
    max_bytes: int = 9_500_000,
    max_pixels: int = MAX_PIXELS,
    levels: Levels | None = None,
    depth: str = "uint8",
) -> pathlib.Path:
    """Write the page and return its path.

    Args:
        health: what `tellapart.data.health.examine` found in ``samples``.
        samples: the table that was examined.
        out_path: the file to write, replaced atomically; its folder is created if it does not exist.
        read: row -> encoded bytes or pixels; by default the table's own.
        augmented: for each example its label, the image before (uint8 [H, W, C]) and several after
            augmentation (uint8 [h, w, C], de-normalised), exactly as the network sees them.
        per_class: sample images of each class, fewer if there are many classes.
        thumbnail: longest side of a thumbnail in pixels.
        max_bytes: the page is smaller than this; thumbnails that do not fit are left out.
        max_pixels: larger images get no thumbnail.
        levels: for images of more than 8 bits, what is black and what is white.
        depth: as for `examine`.

    Raises UserError if the file cannot be written.
    """
    path = pathlib.Path(out_path)
    budget = max(0, max_bytes - TEXT_RESERVE)
    thumbnails = Thumbnails(samples, read or samples.read, thumbnail, budget, max_pixels, levels, depth)
    environment = pages.environment("tellapart.evaluation")
    environment.filters["flags"] = _mark_flags
    page = environment.get_template("check.html.j2").render(
        health=health,
        title=health.name or pathlib.PurePath(health.root).name or "data",
        levels=_levels(health),
        splits=list(health.counts),
        table=_class_table(health),
        sizes=_size_chart(health),
        quantiles=_quantile_rows(health),
        # Most important first: thumbnails are made until the page is full.
        suspects=[(suspect, thumbnails.of(suspect.image.row)) for suspect in health.suspects],
        groups=_groups(health, thumbnails),
        augmented=_augmented(augmented, thumbnails),
        samples=_samples(health, samples, thumbnails, per_class),
        max_lines=MAX_LINES,
    )
    _write(path, page)
    return path


def _write(path: pathlib.Path, page: str) -> None:
    """Write the file atomically, and its folder if needed. Raises UserError, WriteError."""
    page = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", page)  # in names
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, page, "backslashreplace")  # names may hold other bytes
    except OSError as error:
        if isinstance(error, WriteError) and error.exit_code == 1:  # the disk's, not the user's
            raise
        raise UserError(f"The page cannot be written to {str(path)!r}: {error.strerror or error}.") from error


def _mark_flags(text: str) -> Any:
    """Return the text as markup, escaped, with flags such as ``--data.group`` set as code."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?<![\w-])(--[a-z][a-z0-9.-]*[a-z0-9])", text)
    marked = (Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(parts))
    return Markup("").join(marked)


def _levels(health: Health) -> list[tuple[str, str, int]]:
    names = (("error", "errors"), ("warning", "warnings"), ("info", "good to know"))
    return [(level, name, sum(f.level == level for f in health.findings)) for level, name in names]


def _class_table(health: Health) -> dict[str, Any]:
    """Return the rows of the table of classes, bars as percentages of the largest class."""
    total = health.total()
    chosen = np.arange(len(health.classes))
    if len(chosen) > MAX_CLASSES:
        order = np.argsort(-total, kind="stable")
        chosen = np.concatenate([order[: MAX_CLASSES // 2], order[-MAX_CLASSES // 2 :]])
    most = max(1, int(total.max(initial=1)))
    rows = []
    for k in chosen:
        counts = [health.counts[split][k] for split in health.counts]
        bars = [round(100 * count / most, 3) for count in counts]
        rows.append({"name": health.classes[k], "counts": counts, "bars": bars, "total": int(total[k])})
    sums = list(health.in_splits().values())
    return {"rows": rows, "sums": sums, "total": sum(sums), "hidden": len(health.classes) - len(rows)}


def _quantile_rows(health: Health) -> list[tuple[str, list[str]]]:
    shown = {"width": "Width", "height": "Height", "aspect": "Width / height", "bytes": "File size"}
    rows = []
    for name, values in health.quantiles().items():
        spelt = {"aspect": "{:.2f}".format, "bytes": _size}.get(name, "{:,.0f}".format)
        rows.append((shown[name], [spelt(value) for value in values]))
    return rows


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


# The chart of sizes, in SVG's units.
_CHART = {"width": 640, "height": 340, "left": 56, "right": 14, "top": 28, "bottom": 44}


def _size_chart(health: Health) -> dict[str, Any] | None:
    """Return circles of a chart of height over width, both logarithmic; None if all sizes are the same.

    Sizes are put in cells of a sixth of an octave, so that there are few circles for any number of images.
    """
    sides = np.stack([health.widths, health.heights], axis=1)
    if len(np.unique(sides, axis=0)) < 2:
        return None
    logs = np.log2(sides)
    low, high = np.floor(logs.min(axis=0) * 2 - 0.2) / 2, np.ceil(logs.max(axis=0) * 2 + 0.2) / 2
    cells, counts = np.unique(np.round(logs * 6), axis=0, return_counts=True)
    c = _CHART
    span = (c["width"] - c["left"] - c["right"], c["height"] - c["top"] - c["bottom"])

    def place(values: Any, axis: int) -> Any:
        part = (values - low[axis]) / (high[axis] - low[axis])
        return c["left"] + part * span[0] if axis == 0 else c["top"] + (1 - part) * span[1]

    order = np.argsort(-counts, kind="stable")  # small circles last, on top
    radii = 3 + 15 * np.sqrt(counts / counts.max())
    circles = [
        {
            "x": round(float(np.clip(place(cells[i, 0] / 6, 0), c["left"], c["width"] - c["right"])), 1),
            "y": round(float(np.clip(place(cells[i, 1] / 6, 1), c["top"], c["height"] - c["bottom"])), 1),
            "r": round(float(radii[i]), 1),
            "count": int(counts[i]),
            "label": f"about {2 ** (cells[i, 0] / 6):.0f} x {2 ** (cells[i, 1] / 6):.0f}",
        }
        for i in order
    ]
    ticks = [
        [(round(float(place(math.log2(v), axis)), 1), f"{v:,}") for v in _ticks(low[axis], high[axis])]
        for axis in (0, 1)
    ]
    square = [max(low), min(high)]
    diagonal = (
        [round(float(place(v, axis)), 1) for v in square for axis in (0, 1)] if square[0] < square[1] else []
    )
    return {**c, "circles": circles, "x_ticks": ticks[0], "y_ticks": ticks[1], "diagonal": diagonal}


def _ticks(low: float, high: float) -> list[int]:
    """Return round numbers within 2**low and 2**high, about six at most."""
    numbers = [m * 10**e for e in range(6) for m in (1, 2, 5) if low <= math.log2(m * 10**e) <= high]
    if len(numbers) < 3:
        step = max(1, round((2**high - 2**low) / 4))
        numbers = list(range(math.ceil(2**low / step) * step, math.floor(2**high) + 1, step))
    return numbers[:: max(1, math.ceil(len(numbers) / 7))]


def _groups(health: Health, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    return [
        {
            "images": [(image, thumbnails.of(image.row)) for image in group.images[:MAX_COPIES]],
            "more": max(0, len(group.images) - MAX_COPIES),
            "exact": group.exact,
            "changes": group.changes,
            "splits": [split for split in SPLITS if any(image.split == split for image in group.images)],
            "crosses": group.differing("split", same_bytes=False),
            "conflicts": group.differing("label", same_bytes=False),
        }
        for group in health.groups[:MAX_GROUPS]
    ]


def _augmented(augmented: Sequence[Augmented], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "before": thumbnails.make(before),
            "size": f"{before.shape[1]} x {before.shape[0]}",
            "after": [thumbnails.make(image) for image in after],
        }
        for label, before, after in augmented
    ]


def _samples(health: Health, samples: Samples, thumbnails: Thumbnails, per_class: int) -> dict[str, Any]:
    """Return seeded random images of each class; only of the first classes if there are very many."""
    present = np.flatnonzero(health.total())
    shown = present[:MAX_SAMPLES]
    number = max(1, min(per_class, MAX_SAMPLES // max(1, len(present))))
    bad = {item.image.path for item in health.bad}
    generator = np.random.default_rng(0)
    classes = []
    for k in shown:
        of_class = samples.labels == k if samples.targets is None else samples.targets[:, k] > 0
        drawn = generator.permutation(np.flatnonzero(of_class)).tolist()
        rows = [row for row in drawn if samples.paths[row] not in bad][:number]
        pictures = [
            (str(samples.paths[row]), str(samples.splits[row]), thumbnails.of(row, use_box=True))
            for row in rows
        ]
        classes.append({"name": health.classes[k], "total": int(health.total()[k]), "pictures": pictures})
    return {"classes": classes, "hidden": len(present) - len(shown)}
