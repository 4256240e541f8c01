"""The geometry of the report's charts: where lines, ticks and cells are. The template turns it into SVG.

Knows numbers and pixels; knows nothing of runs, files or HTML.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tellapart import numerals

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 36
MOST_POINTS = 300
PAGE_WIDTH = 1062  # width of a matrix on a wide screen before it scrolls
NAMED_CLASSES = 150  # with more classes a matrix is an image without names


@dataclass(frozen=True)
class Tick:
    """A tick: its position in pixels and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: ``path`` of an SVG path, and the points that can be pointed at (x, y, text)."""

    name: str
    kind: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Chart:
    """A chart of WIDTH by HEIGHT."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    mark: float | None
    mark_text: str


@dataclass(frozen=True)
class Cell:
    """A cell of the matrix that is not empty. strength in (0, 1]: the opacity of its fill."""

    row: int
    column: int
    count: int
    share: float
    strength: float


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as drawn: ``size`` pixels for each cell, ``margin`` for the names."""

    names: tuple[str, ...]
    short: tuple[str, ...]
    cells: tuple[Cell, ...]
    size: int
    margin: int
    font: float
    counts: bool

    @property
    def side(self) -> int:
        """Height and width of the cells together."""
        return self.size * len(self.names)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from at most ``low`` to at least ``high``."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        span = abs(high) or 1.0
    raw = span / max(1, count - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most ``most`` points, each the mean of neighbours."""
    if len(points) <= most:
        return list(points)
    groups = np.array_split(np.asarray(points, np.float64), most)
    return [(float(x), float(y)) for x, y in (group.mean(0) for group in groups)]


def line_chart(
    title: str,
    series: Sequence[tuple[str, str, Points]],
    unit: str,
    x_label: str,
    mark: float | None = None,
    mark_text: str = "",
) -> Chart | None:
    """Return a chart of (name, kind, points), or None if there is no finite point.

    unit: "number", "share" (shown in percent, 0 to 1) or "rate" (scientific). kind is the CSS class of the
    line; a "faint" one has no dots. mark: position of a vertical line.
    """
    finite = [
        (name, kind, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for name, kind, points in series
    ]
    finite = [(name, kind, points) for name, kind, points in finite if points]
    if not finite:
        return None
    xs = [x for _, _, points in finite for x, _ in points]
    ys = np.array([y for _, _, points in finite for _, y in points])
    low, high = (float(ys.min()), float(ys.max())) if unit == "share" else (0.0, _ceiling(ys))
    y_values = [v for v in nice_ticks(low, high) if unit != "share" or -1e-9 <= v <= 1 + 1e-9]
    x_low = 0.0 if min(xs) < 1 else 1.0
    x_high = max(*xs, x_low + 1)
    bottom, top = min(y_values[0], low), max(y_values[-1], high)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * plot_width, 2)

    def y_at(y: float) -> float:
        return round(TOP + (1 - (min(y, top) - bottom) / ((top - bottom) or 1)) * plot_height, 2)

    lines = []
    for name, kind, points in finite:
        drawn = thin(points)
        path = "M" + "L".join(f"{x_at(x):g},{y_at(y):g}" for x, y in drawn)
        texts = [f"{name}, {x_label} {numerals.setting(round(x, 4))}: {number(y, unit)}" for x, y in drawn]
        dots = (
            [] if kind == "faint" else [(x_at(x), y_at(y), t) for (x, y), t in zip(drawn, texts, strict=True)]
        )
        lines.append(Line(name, kind, path, tuple(dots)))
    x_values = [x for x in nice_ticks(x_low, x_high, 6) if x_low <= x <= x_high and x == round(x)]
    return Chart(
        title,
        tuple(lines),
        tuple(Tick(x_at(x), f"{x:,.0f}") for x in x_values),
        tuple(Tick(y_at(y), number(y, unit, tick=True)) for y in y_values),
        x_label,
        None if mark is None else x_at(mark),
        mark_text,
    )


def _ceiling(values: npt.NDArray[np.float64]) -> float:
    """Return the highest value, ignoring those far above nearly all others (the first steps of training)."""
    usual = float(np.percentile(values, 98)) * 1.5
    return min(float(values.max()), usual) if usual > 0 else float(values.max())


def number(value: float, unit: str, tick: bool = False) -> str:
    """Return a value as the charts write it."""
    if unit == "share":
        return f"{numerals.setting(round(100 * value, 6))} %" if tick else numerals.percent(value)
    if unit == "rate" and value and abs(value) < 0.01:
        mantissa, _, exponent = (
            f"{value:.{0 if tick and f'{value:.6e}'[1:8] == '.000000' else 1}e}".partition("e")
        )
        return f"{mantissa}e{int(exponent)}"
    return numerals.setting(float(f"{value:.4g}")) if tick else numerals.number(value, 4)


def matrix_chart(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> Matrix:
    """Return the drawing of a confusion matrix, int64 [K, K], rows true; the share is that of the row."""
    count = len(names)
    font = 12.0 if count <= 20 else 11.0 if count <= 40 else 8.5
    short = told_apart(names, 20)
    margin = round(max((cells_of(name) for name in short), default=1) * font * 0.58) + 34
    largest = 46 if count <= 6 else 38 if count <= 12 else 30 if count <= 20 else 18 if count <= 40 else 12
    size = max(9, min(largest, (PAGE_WIDTH - margin) // max(1, count)))
    totals = np.maximum(confusion.sum(1), 1)
    cells = []
    for row, column in zip(*np.nonzero(confusion), strict=True):
        share = float(confusion[row, column] / totals[row])
        cells.append(
            Cell(
                int(row), int(column), int(confusion[row, column]), share, round(0.06 + 0.94 * share**0.6, 3)
            )
        )
    return Matrix(tuple(names), short, tuple(cells), size, margin, font, counts=count <= 20)


def confused_pairs(confusion: npt.NDArray[np.int64], most: int = 15) -> list[tuple[int, int, int, float]]:
    """Return (true, predicted, count, share of the true class) of the most frequent mistakes in order."""
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    totals = np.maximum(confusion.sum(1), 1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [
        (int(r), int(c), int(wrong[r, c]), float(wrong[r, c] / totals[r]))
        for r, c in zip(rows, columns, strict=True)
        if wrong[r, c]
    ]


def cells_of(text: str) -> int:
    """Return the width of ``text`` in half-width characters (a Chinese character is two)."""
    from rich.cells import cell_len

    return cell_len(text)


def told_apart(names: Sequence[str], width: int) -> tuple[str, ...]:
    """Return names cut to ``width`` half-width characters: at the end, or where that leaves two alike in the middle."""
    cut = [shorten(name, width) for name in names]
    often = Counter(cut)
    return tuple(
        short if often[short] == 1 else _without_middle(name, width)
        for name, short in zip(names, cut, strict=True)
    )


def _without_middle(text: str, width: int) -> str:
    tail = text
    while cells_of(tail) > width - width // 2 - 1:
        tail = tail[1:]
    return shorten(text, width // 2).removesuffix("…").rstrip() + "…" + tail if tail != text else text


def shorten(text: str, width: int) -> str:
    """Return ``text``, cut with an ellipsis if it is wider than ``width`` half-width characters."""
    from rich.cells import set_cell_size

    return text if cells_of(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
