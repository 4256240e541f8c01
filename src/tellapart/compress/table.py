"""The comparison of candidates: compress.json, a table as text, and which candidates no other beats.

Knows nothing of how candidates were made or measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart import numerals, runs
from tellapart.compress.measuring import BATCHES, Row
from tellapart.evaluation.measurement import NAMES, Naming

FILE_NAME = "compress.json"
NO_ENERGY = "not readable on this machine (no RAPL counter under /sys/class/powercap that this user may read)"


@dataclass(frozen=True)
class Comparison:
    """The table of one compression: rows, the first of which is the model itself, with the machine and the split."""

    folder: Path
    model: str
    split: str
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        best = best_of(self.rows)
        readable = any(row.energy is not None for row in self.rows)
        return {
            "model": self.model,
            "split": self.split,
            "metric": self.rows[0].metric,
            "machine": dict(self.machine),
            "energy": "millijoules an image, by RAPL" if readable else NO_ENERGY,
            "rows": [{**row.to_dict(), "unbeaten": row in best} for row in self.rows],
            "notes": list(self.notes),
        }

    @property
    def metric(self) -> Naming:
        """What the models are judged by."""
        return NAMES[self.rows[0].metric]

    def write(self) -> Path:
        """Write compress.json into the folder; return its path."""
        target = self.folder / FILE_NAME
        runs.write_json(target, self.to_dict())
        return target

    def to_text(self) -> str:
        """Return the table for a terminal."""
        names = {"test": "test", "val": "validation"}
        head = ["", self.metric.name, "95 % interval", "points", "same", "MB", "size"]
        head += [text for batch in BATCHES for text in (f"ms at {batch}", "ratio")]
        lines = [head, *(_cells(row, self.rows[0], row in best_of(self.rows)) for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        body = [
            "  ".join(
                cell.ljust(width) if k == 0 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        where = f"{self.rows[0].n:,} {names.get(self.split, self.split)} images; * no other is as accurate and as fast"
        return os.linesep.join([where, "", *body, *(["", *self.notes] if self.notes else [])])


def _cells(row: Row, first: Row, best: bool) -> list[str]:
    low, high = row.interval
    cells = [
        ("* " if best else "  ") + row.candidate.name,
        numerals.percent(row.value),
        numerals.interval(low, high),
        numerals.points(row.value - first.value),
        numerals.percent(row.agreement),
        numerals.fixed(row.bytes / 1e6, 2),
        f"{row.size_ratio:.2f}x",
    ]
    for batch in BATCHES:
        cells += [numerals.number(row.p50[batch]), f"{row.ratios[batch]:.2f}x"]
    return cells


def best_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats: none is as accurate and as fast (p50 at batch 1) and better in one."""

    def beaten(row: Row) -> bool:
        ours = (row.value, -row.p50[1])
        others = [(other.value, -other.p50[1]) for other in rows]
        return any(o[0] >= ours[0] and o[1] >= ours[1] and o != ours for o in others)

    return [row for row in rows if not beaten(row)]
