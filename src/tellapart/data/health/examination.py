"""The whole examination: look at every image once, then judge by the numbers that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.deep import Levels
from tellapart.data.health.duplicates import find_duplicates
from tellapart.data.health.findings import judge
from tellapart.data.health.measure import Table, measure_all
from tellapart.data.health.result import Bad, Health, Read, image_at, images_at
from tellapart.data.health.suspects import find_suspects
from tellapart.data.samples import SPLITS, Samples
from tellapart.preprocess import MAX_PIXELS

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


def examine(
    samples: Samples,
    read: Read | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
    levels: Levels | None = None,
    depth: str = "uint8",
) -> Health:
    """Look at every image of ``samples`` once and judge the whole.

    Args:
        samples: the table; every row has its split. Rows of one file (boxes) are looked at once.
        read: row -> encoded bytes or pixels (uint8 [H, W] or [H, W, 3]); by default the table's own.
        progress: called with (images done, images in all).
        say: called with a sentence when a new stage begins.
        max_pixels: larger images count as unreadable.
        workers: threads; 0: one for each processor.
        levels: of images of more than 8 bits, what is black and what white (see `contract.decoding.decode`).
        depth: of the pixels that training would take; what is measured has 8 bits.
    """
    first: dict[str, int] = {}
    for row, path in enumerate(samples.paths):
        first.setdefault(path, row)
    rows = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    table, reasons = measure_all(
        samples, rows, read or samples.read, progress, max_pixels, workers, levels, depth
    )
    if say:
        say(f"Looking for duplicates and outliers among {len(rows):,}")
    bad = tuple(Bad(image_at(samples, rows[index]), reason) for index, reason in sorted(reasons.items()))
    if reasons:
        fine = np.array([index not in reasons for index in range(len(rows))], dtype=bool)
        table, rows = table[fine], rows[fine]
    health = _assemble(samples, table, rows, bad)
    findings = sorted(judge(health, samples), key=lambda finding: _ORDER[finding.level])
    return dataclasses.replace(health, findings=tuple(findings))


def _assemble(samples: Samples, table: Table, rows: npt.NDArray[np.int64], bad: tuple[Bad, ...]) -> Health:
    """Put everything together but the findings. ``table`` describes the readable ``rows``."""
    bad_paths = {item.image.path for item in bad}
    readable = samples.select(np.array([path not in bad_paths for path in samples.paths], dtype=bool))
    groups, complete = find_duplicates(samples, table, rows)
    is_colour = len(rows) == 0 or float(table["grey"].mean()) < 0.5
    return Health(
        name=samples.name,
        root=samples.root,
        classes=samples.classes,
        counts={
            split: readable.counts(split).tolist() for split in SPLITS if (samples.splits == split).any()
        },
        rows=rows,
        widths=table["width"].copy(),
        heights=table["height"].copy(),
        sizes=table["size"].copy(),
        formats=_tally(table["format"]),
        modes=_tally(table["mode"]),
        is_colour=is_colour,
        rotated=images_at(samples, rows[table["rotated"]]),
        grey=images_at(samples, rows[table["grey"]]) if is_colour else (),
        deep=images_at(samples, rows[table["largest"] > 0]),
        largest=float(table["largest"].max(initial=0.0)),
        wrong_extension=images_at(samples, rows[table["misnamed"]]),
        bad=bad,
        groups=groups,
        complete=complete,
        suspects=find_suspects(samples, table, rows),
        notes=samples.notes,
        images=None
        if readable.targets is None
        else {
            split: int((readable.splits == split).sum())
            for split in SPLITS
            if (samples.splits == split).any()
        },
        unlabelled=0 if readable.targets is None else int((~readable.targets.any(axis=1)).sum()),
    )


def _tally(column: npt.NDArray[Any]) -> dict[str, int]:
    names, counts = np.unique(column, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {names[i].decode() or "unknown": int(counts[i]) for i in order}
