"""compress.html: the comparison as one self-contained page with a plot of accuracy against latency.

Knows numbers and pixels; measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart import files, numerals, pages
from tellapart.compress.measuring import BATCHES, Row
from tellapart.compress.table import NO_ENERGY, Comparison, best_of
from tellapart.evaluation.charts import Tick, cells_of, nice_ticks
from tellapart.evaluation.measurement import in_full

FILE_NAME = "compress.html"
WIDTH, NARROW, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 360, 440, 58, 24, 20, 46
_CHARACTER, _BOLD, _LINE = 7.2, 8.3, 16.0  # pixels of a label's letter, of a bold one, and of its line
_SPLITS = {"test": "test", "val": "validation"}
_FAMILIES = {
    "none": "model",
    "export": "export",
    "int8": "int8",
    "prune": "prune",
    "sparse": "prune",
    "distill": "student",
    "alone": "student",
}
_LEGEND = {
    "model": "the model",
    "export": "float exports",
    "int8": "INT8",
    "prune": "pruned",
    "student": "smaller networks",
}


@dataclass(frozen=True)
class Point:
    """A candidate in the plot: its position, the ends of its interval, its radius and the position of its label."""

    x: float
    y: float
    low: float
    high: float
    radius: float
    label_x: float
    label_y: float
    anchor: str
    name: str
    family: str
    best: bool
    text: str


@dataclass(frozen=True)
class Picture:
    """Accuracy against latency, larger discs for larger files; the line joins candidates that no other beats."""

    width: int
    points: tuple[Point, ...]
    line: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def write_page(comparison: Comparison) -> Path:
    """Write the page beside compress.json; return its path."""
    environment = pages.environment("tellapart.compress")
    target = comparison.folder / FILE_NAME
    text = environment.get_template("compress.html.j2").render(_content(comparison))
    files.write_text(target, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return target


def _content(comparison: Comparison) -> dict[str, Any]:
    rows, first = comparison.rows, comparison.rows[0]
    best = best_of(rows)
    classes = sorted(first.change)
    shown = classes if len(classes) <= 30 else _most_changed(rows, classes)
    return {
        "model": comparison.model,
        "metric": in_full(first.metric),
        "short": comparison.metric.name,
        "split": _SPLITS.get(comparison.split, comparison.split),
        "machine": comparison.machine,
        "notes": comparison.notes,
        "rows": [
            {"row": row, "best": row in best, "family": family(row), "number": number}
            for number, row in enumerate(rows, 1)
        ],
        "legend": {key: text for key, text in _LEGEND.items() if key in map(family, rows)},
        "first": first,
        "batches": BATCHES,
        "classes": shown,
        "all_classes": len(classes),
        "pictures": {"wide": picture(rows), "narrow": picture(rows, NARROW, numbers=True)},
        "energy": any(row.energy is not None for row in rows),
        "no_energy": NO_ENERGY,
        "size": {
            "height": HEIGHT,
            "left": LEFT,
            "right": RIGHT,
            "top": TOP,
            "bottom": BOTTOM,
        },
    }


def family(row: Row) -> str:
    """Return the family of a candidate, which decides its colour."""
    return _FAMILIES.get(row.candidate.method, "model")


def _most_changed(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """Return the 30 classes that any candidate changes most."""
    change = {name: max(abs(row.change[name]) for row in rows) for name in classes}
    return sorted(sorted(classes, key=lambda name: -change[name])[:30])


def picture(rows: Sequence[Row], across: int = WIDTH, numbers: bool = False) -> Picture:
    """Return the geometry: latency at batch 1 to the right (logarithmic), accuracy upwards, with intervals.

    ``across``: pixels. ``numbers``: label with the rows' numbers, from 1, where there is no room for names.
    """
    times = [row.p50[1] for row in rows]
    low, high = math.log(min(times) / 1.25), math.log(max(times) * 1.25)
    y_values = nice_ticks(min(row.interval[0] for row in rows), max(row.interval[1] for row in rows))
    bottom, top = y_values[0], y_values[-1]

    def x_at(milliseconds: float) -> float:
        return LEFT + (math.log(milliseconds) - low) / (high - low) * (across - LEFT - RIGHT)

    def y_at(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    largest = max(row.bytes for row in rows)
    best = best_of(rows)
    placed: list[tuple[float, float, float, float]] = []
    discs = [(x_at(row.p50[1]), y_at(row.value), 4 + 9 * math.sqrt(row.bytes / largest)) for row in rows]
    points = []
    for number, (row, (x, y, radius)) in enumerate(zip(rows, discs, strict=True), 1):
        label = str(number) if numbers else row.candidate.name
        width = (_BOLD if row in best else _CHARACTER) * cells_of(label)
        label_x, label_y, anchor = _free_place(x, y, radius, width, placed, discs, across)
        text = (
            f"{row.candidate.name}: {numerals.percent(row.value)}, {numerals.milliseconds(row.p50[1])}, "
            f"{numerals.megabytes(row.bytes)}"
        )
        names = ("x", "y", "low", "high", "radius", "label_x", "label_y")
        values = (x, y, y_at(row.interval[0]), y_at(row.interval[1]), radius, label_x, label_y)
        places = {name: round(value, 1) for name, value in zip(names, values, strict=True)}
        named = {"anchor": anchor, "name": label, "family": family(row), "text": text}
        points.append(Point(**places, **named, best=row in best))  # type: ignore[arg-type]
    line = sorted((x_at(row.p50[1]), y_at(row.value)) for row in best)
    return Picture(
        across,
        tuple(points),
        "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in line),
        tuple(
            Tick(round(x_at(value), 1), numerals.setting(value))
            for value in _log_ticks(math.exp(low), math.exp(high))
        ),
        tuple(
            Tick(round(y_at(value), 1), f"{numerals.setting(round(100 * value, 6))} %") for value in y_values
        ),
    )


def _free_place(
    x: float,
    y: float,
    radius: float,
    width: float,
    placed: list[tuple[float, float, float, float]],
    discs: Sequence[tuple[float, float, float]],
    across: int,
) -> tuple[float, float, str]:
    """Return a position at which a label meets no other label, no disc and no edge: (x, y, anchor); store its box."""
    gap = radius + 5
    best, least = (x + gap, y + 4, "start"), math.inf
    for lift in (0.0, -_LINE, _LINE, -2 * _LINE, 2 * _LINE, -3 * _LINE, 3 * _LINE, -4 * _LINE, 4 * _LINE):
        for anchor, left in (("start", x + gap), ("end", x - gap - width)):
            box = (left, y + lift - _LINE / 2, left + width, y + lift + _LINE / 2)
            meets = sum(_overlap(box, other) for other in placed)
            meets += 2 * sum(_overlap(box, (a - r, b - r, a + r, b + r)) for a, b, r in discs)
            outside = max(LEFT + 4 - box[0], 0) + max(box[2] - across, 0) + max(TOP - box[1], 0)
            outside += max(box[3] - (HEIGHT - BOTTOM), 0)
            cost = meets + 40 * outside + abs(lift) / 10
            if cost < least:
                least, best = cost, (left if anchor == "start" else left + width, y + lift + 4, anchor)
    left = best[0] if best[2] == "start" else best[0] - width
    placed.append((left, best[1] - 4 - _LINE / 2, left + width, best[1] - 4 + _LINE / 2))
    return best


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten, all of those within the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if found else [math.sqrt(low * high)]
