"""The tables and the page of `defaults.py`: accuracy over seconds on each set, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import default_results as results
from default_results import Cell, Compared
from tellapart import numerals, pages
from tellapart.evaluation import charts

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 62, 26, 14, 44
SHORTEST = 60.0  # seconds of what is told of ours by its limits
COLOURS = ("ours", "one", "two", "three", "four")
CSS = """
:root { --under: #fff; --text: #1c1f23; --faint: #5d656f; --line: #dfe3e8; --ours: #0b62c4; --one: #c2410c;
  --two: #15803d; --three: #7e22ce; --four: #a16207; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --under: #15181c; --text: #e8eaed; --faint: #a2abb5; --line: #333a42;
  --ours: #6cb0ff; --one: #fb923c; --two: #4ade80; --three: #c084fc; --four: #facc15; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--under); max-width: 1120px;
  margin: 0 auto; padding: 24px; }
h2 { margin: 40px 0 8px; } p { max-width: 46em; } .faint { color: var(--faint); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } th:first-child, td:first-child, .words { text-align: left; }
svg text { font-size: 13px; fill: var(--faint); } svg .axis { stroke: var(--line); }
svg .limit { stroke: var(--faint); stroke-dasharray: 3 4; }
svg path { fill: none; stroke-width: 2; } svg .ours { stroke-width: 3; }
""" + "".join(f"svg .{c} {{ stroke: var(--{c}); }} svg .dot-{c} {{ fill: var(--{c}); stroke: var(--under); }}\n"
              f".key-{c} {{ color: var(--{c}); }}\n" for c in COLOURS)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A set that is shown."""

    name: str
    title: str
    limit: float


Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Page:
    """All that is told of the cells."""

    sets: Sequence[Picture]
    cells: Sequence[Cell]
    ours: str
    peers: Sequence[str]
    variants: Sequence[str]
    settings: Mapping[str, Sequence[str]]
    machine: str

    def of(self, name: str, side: str, limit: float | None = None) -> list[Cell]:
        """Return a side's runs on a set, in the order of their seeds."""
        found = [c for c in self.cells if c.set == name and c.side == side and limit in (None, c.limit)]
        return sorted(found, key=lambda cell: (cell.limit, cell.seed))

    def rows(self) -> list[Compared]:
        """Return ours against each side on each set that both were run on, with the same limit."""
        found = []
        for one in self.sets:
            own = [cell for cell in self.of(one.name, self.ours) if cell.limit <= one.limit]
            for side in self.peers:
                theirs = self.of(one.name, side, one.limit)
                if theirs and any(cell.limit == one.limit for cell in own):
                    found.append(results.compared(own, theirs))
        return found

    def medians(self) -> list[str]:
        """Return what item by item follows over the suite."""
        rows, lines = self.rows(), []
        for side in dict.fromkeys("the tutorial" if side in self.variants else side for side in self.peers):
            mine = [r for r in rows if r.side in (self.variants if side == "the tutorial" else (side,))]
            mine = results.better(mine, self.variants)
            if mine:
                ratio = results.median_ratio(mine) or 0.0
                held = sum(row.holds for row in mine)
                best = ", the better of its variants on each set" if side == "the tutorial" else ""
                lines.append(
                    f"Against {side}{best}: more accurate, or equal and at least {results.SOONER:g}× sooner, on "
                    f"{held} of {len(mine)} sets; at its final accuracy {ratio:.1f}× sooner (median; a set where "
                    "that was not reached counts as 0)."
                )
        return lines

    def against(self, one: Picture) -> Table:
        """Return the table of a set."""
        head = ["", "accuracy", "seconds", "runs", "ours is ahead by", "ours to it, s", "sooner", "ours is"]
        body, limits = [], dict.fromkeys(cell.limit for cell in self.of(one.name, self.ours))
        for limit in limits:
            own = self.of(one.name, self.ours, limit)
            mean, half = results.accuracy(own)
            took = sum(cell.seconds for cell in own) / len(own)
            name = f"{self.ours}, {results.time_text(limit)}" if len(limits) > 1 else self.ours
            body.append([name, _share(mean, half), f"{took:,.0f}", str(len(own)), "", "", "", ""])
        for row in (row for row in self.rows() if row.set == one.name):
            count = str(len(self.of(one.name, row.side, one.limit)))
            gap = f"{numerals.points(row.ahead)} ± {100 * row.ahead_half:.2f}"
            reached = "not reached" if row.ours_to_it is None else f"{row.ours_to_it:,.0f}"
            soon = "–" if row.ratio is None else f"{row.ratio:.1f}×"
            body.append([row.side, _share(row.accuracy, row.half), f"{row.seconds:,.0f}", count, gap, reached, soon,
                         row.verdict])  # fmt: skip
        return head, body

    def times(self) -> Table:
        """Return how ours does with each limit: whether it ends in time, and whether more time makes it worse."""
        head, body = ["", "limit", "seconds", "of the limit", "", "accuracy", "with more time"], []
        for one in self.sets:
            limits = sorted({c.limit for c in self.of(one.name, self.ours) if c.limit >= SHORTEST})
            for shorter, limit in zip([None, *limits], limits, strict=False):
                own = self.of(one.name, self.ours, limit)
                took = max((cell.seconds for cell in own), key=lambda s: abs(s / limit - 1))
                less = self.of(one.name, self.ours, shorter) if shorter else []
                trend = "" if not less else "falls" if results.falls(less, own) else "does not fall"
                body.append([one.title, results.time_text(limit), f"{took:,.0f}", f"{took / limit:.0%}",
                             results.punctual(limit, took), _share(*results.accuracy(own)), trend])  # fmt: skip
        return head, body if any(row[-1] for row in body) else []

    def by_hand(self) -> Table:
        """Return the best of the hand-chosen settings on each set beside ours."""
        head, body = ["", "best setting", "accuracy", "ours", "ours is ahead by", "settings run"], []
        for one in self.sets:
            own = self.of(one.name, self.ours, one.limit)
            tried = {side: found for side in self.settings if (found := self.of(one.name, side, one.limit))}
            if own and tried:
                best = max(tried, key=lambda side: results.accuracy(tried[side])[0])
                gap, half = results.difference(own, tried[best])
                body.append([one.title, best, _share(*results.accuracy(tried[best])), _share(*results.accuracy(own)),
                             f"{numerals.points(gap)} ± {100 * half:.2f}", str(len(tried))])  # fmt: skip
        return head, body

    def shown(self) -> list[Picture]:
        """Return the sets that something was run on."""
        names = {cell.set for cell in self.cells}
        return [one for one in self.sets if one.name in names]

    def text(self) -> list[str]:
        """Return everything as lines for a terminal."""
        lines = []
        for one in self.shown():
            lines += [
                "",
                f"{one.title}: {results.time_text(one.limit)} for each side",
                *_columns(*self.against(one)),
            ]
        for title, table in self.tables():
            lines += ["", title, *_columns(*table)]
        return [*lines, "", *self.medians()]

    def tables(self) -> list[tuple[str, Table]]:
        """Return the tables on all sets that have rows."""
        titled = [
            ("With more time", self.times()),
            ("Against the best of the settings chosen by hand", self.by_hand()),
        ]
        return [(title, table) for title, table in titled if table[1]]

    def html(self) -> str:
        """Return the page, in one file."""
        parts = [f"<p>{escape(line)}</p>" for line in self.medians()]
        for one in self.shown():
            parts.append(f"<h2>{escape(one.title)}</h2>")
            parts.append(
                f'<p class="faint">{results.time_text(one.limit)} for each side: the dashed line</p>'
            )
            parts += [self.picture(one), _html_table(*self.against(one))]
        for title, table in self.tables():
            parts += [f"<h2>{escape(title)}</h2>", _html_table(*table)]
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Good by default</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{CSS}{pages.SCROLL_CSS}</style><h1>Good by default</h1>"
            "<p>Accuracy on the test split over the seconds since the start of the process, mean of the seeds. Every "
            "side has the same files, the same weights where it uses any, and the same seconds. Intervals are of 95 %, "
            f'over test images and seeds.</p><p class="faint">{escape(self.machine)}{self._busy()}</p>'
            + "\n".join(parts)
        )

    def _busy(self) -> str:
        loads = [load for cell in self.cells if (load := cell.about.get("load")) is not None]
        return f"; load of the machine before a run: {min(loads):.1f} to {max(loads):.1f}" if loads else ""

    def courses(self, one: Picture) -> list[tuple[str, str, list[tuple[float, float]]]]:
        """Return name, colour and points of each side on a set."""
        own = self.of(one.name, self.ours)
        found = [(self.ours, COLOURS[0], results.curve(own))] if own else []
        for side, colour in zip(self.peers, COLOURS[1:], strict=True):
            if theirs := self.of(one.name, side, one.limit):
                found.append((side, colour, results.within(theirs)))
        return found

    def picture(self, one: Picture) -> str:
        """Return the picture of a set as SVG, with its legend; seconds on a logarithmic scale."""
        courses = self.courses(one)
        if not courses:
            return ""
        every = [point for _, _, points in courses for point in points]
        shown = [one.limit, *(s for s, _ in every)]
        x_ticks = _log_ticks(min(shown), max(shown))
        y_ticks = [y for y in charts.nice_ticks(*_range([a for _, a in every])) if -1e-9 <= y <= 1 + 1e-9]
        low, high = math.log(x_ticks[0]), math.log(x_ticks[-1])
        bottom, top = y_ticks[0], y_ticks[-1]

        def at(s: float, a: float) -> tuple[float, float]:
            x = LEFT + (math.log(s) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
            return round(x, 1), round(TOP + (top - a) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

        drawn = [_axes(x_ticks, y_ticks, at)]
        (x, y), end = at(one.limit, top), at(one.limit, bottom)[1]
        drawn.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{y}" y2="{end}"/>')
        for name, colour, points in reversed(courses):
            places = [at(*point) for point in points]
            drawn.append(f'<path class="{colour}" d="M{"L".join(f"{x},{y}" for x, y in places)}"/>')
            for (x, y), (s, a) in zip(places, points, strict=True):
                text = escape(f"{name}: {numerals.percent(a)} after {s:,.0f} s")
                drawn.append(
                    f'<circle class="dot-{colour}" cx="{x}" cy="{y}" r="4.5"><title>{text}</title></circle>'
                )
        keys = " ".join(f'<span class="key-{c}">● </span>{escape(name)} &nbsp;' for name, c, _ in courses)
        return (
            f'<p>{keys}</p><div class="scroll" tabindex="0"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" role="img" aria-label="{escape(one.title)}: accuracy over seconds">'
            f"{''.join(drawn)}</svg></div>"
        )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return what the axis of accuracy has to show: never less than 4 points."""
    low, high = min(values), max(values)
    return (low, high) if high - low >= 0.04 else (max(0.0, high - 0.04), high)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, … from at most ``low`` to at least ``high``."""
    steps = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= max(low, steps[0]))
    last = min(i for i, step in enumerate(steps) if step >= high and i > first)
    return steps[first : last + 1]


def _axes(x_ticks, y_ticks, at) -> str:  # type: ignore[no-untyped-def]
    parts = []
    for y in y_ticks:
        _, line = at(x_ticks[0], y)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{line}" y2="{line}"/>')
        text = charts.number(y, "share", tick=True)
        parts.append(f'<text x="{LEFT - 8}" y="{line + 4}" text-anchor="end">{text}</text>')
    for x in x_ticks:
        place, _ = at(x, y_ticks[0])
        parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">seconds</text>')
    return "".join(parts)


def _share(mean: float, half: float) -> str:
    return f"{100 * mean:.2f} ± {100 * half:.2f} %"


def _columns(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in (head, *body)) for k in range(len(head))]
    return [
        "  ".join(text.ljust(w) if k in (0, len(head) - 1) else text.rjust(w)
                  for k, (text, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (head, *body)
    ]  # fmt: skip


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        last = len(cells) - 1
        marked = (
            f"<{tag}{' class=words' if k == last else ''}>{escape(text)}</{tag}>"
            for k, text in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    rows = "".join(row(cells, "td") for cells in body)
    return f'<div class="scroll" tabindex="0"><table>{row(head, "th")}{rows}</table></div>'
