"""The health of a data set as text for a terminal."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping

import numpy as np

from tellapart.data.health.findings import counted
from tellapart.data.health.result import Health


def render(health: Health, examples: int = 5) -> str:
    """Return the health as text of 80 columns (paths are never cut), each finding with some examples.

    Four times as many unreadable files are listed: each has a reason of its own.
    """
    images = counted(len(health.rows) + len(health.bad), "image")
    classes = counted(len(health.classes), "class", "classes")
    lines = [f"{health.name or health.root or 'data'}: {images}, {classes}", "", *_table_lines(health), ""]
    quantiles = health.quantiles()
    if quantiles:
        w, h = (quantiles[side] for side in ("width", "height"))
        lines.append(
            f"Width {w[0]:g} to {w[4]:g} (median {w[2]:g}), height {h[0]:g} to {h[4]:g} (median {h[2]:g})"
        )
        lines += textwrap.wrap("Formats: " + _pairs(health.formats) + "; modes: " + _pairs(health.modes), 80)
    is_cut = False
    for level, heading in (("error", "Errors"), ("warning", "Warnings"), ("info", "Good to know")):
        chosen = [finding for finding in health.findings if finding.level == level]
        lines += ["", heading] if chosen else []
        for finding in chosen:
            lines += textwrap.wrap(finding.message, 80, initial_indent="  - ", subsequent_indent="    ")
            limit = 4 * examples if finding.code == "unreadable" else examples
            lines += [f"      {path}" for path in finding.paths[:limit]]
            rest = len(finding.paths) - limit
            lines += [f"      … and {rest:,} more"] if rest > 0 else []
            is_cut = is_cut or rest > 0
            lines += textwrap.wrap(finding.advice, 80, initial_indent="    → ", subsequent_indent="      ")
    if not any(finding.level != "info" for finding in health.findings):
        lines += ["", "No problems found."]
    for note in health.notes:
        lines += textwrap.wrap(note, 80, initial_indent="  * ", subsequent_indent="    ")
    lines += ["", "Full lists: --json; with pictures: --html FILE"] if is_cut else []
    return "\n".join(map(_plain, lines))


def _plain(line: str) -> str:
    """Spell what no line of text may hold: control characters, and bytes of paths that are not UTF-8."""
    shown = "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in line)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def _table_lines(health: Health, limit: int = 40) -> list[str]:
    """Return the counts of each class in each split; the largest and smallest where there are very many."""
    names = list(health.counts)
    total = health.total()
    chosen = np.arange(len(health.classes))
    if len(chosen) > limit:
        chosen = np.argsort(-total, kind="stable")
        chosen = np.concatenate([chosen[: limit // 2], chosen[-limit // 2 :]])
    width = min(30, max([8, *(_columns(health.classes[k]) for k in chosen)]))
    lines = [_pad("class", width) + "".join(f"{name:>10}" for name in names)]
    for place, k in enumerate(chosen):
        if len(health.classes) > limit and place == limit // 2:
            lines.append(f"… {len(health.classes) - limit:,} more classes …")
        cells = "".join(f"{health.counts[name][k]:>10,}" for name in names)
        lines.append(_pad(health.classes[k], width) + cells)
    images = health.in_splits()
    sums = "".join(f"{images[name]:>10,}" for name in names)
    return [*lines, _pad("all" if health.images is None else "images", width) + sums]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two, accents none."""
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in shown)


def _pad(text: str, width: int) -> str:
    while _columns(text) > width:
        text = text[:-2] + "…"
    return text + " " * (width - _columns(text))


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
