"""RetinaNet's CSV: no header, and ``path,x1,y1,x2,y2,class`` in each row; five empty cells for an empty image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

from tellapart.data.sources.annotations.entries import Entry, Files, attempt, image_like, label_of, number
from tellapart.data.sources.listing import printable
from tellapart.errors import DataError


def looks_like(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether these first rows of a CSV file are RetinaNet's."""
    filled = [row for row in rows if row]
    return bool(filled) and all(map(_fits, filled)) and any(row[5].strip() for row in filled)


def _fits(row: Sequence[str]) -> bool:
    if len(row) != 6 or not image_like(row[0].strip()):
        return False
    corners = [cell.strip() for cell in row[1:5]]
    return not any(corners) or all(map(_is_number, corners))


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def read_csv(files: Files, source: str) -> Iterator[Entry]:
    """Yield an entry for each row (boxes in pixels)."""
    reader = csv.reader(io.StringIO(files.text(source), newline=""))
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{printable(files.path(source))}, line {reader.line_num}"
        entry = Entry(source, row[0].strip())

        def read(row: list[str] = row, entry: Entry = entry, where: str = where) -> None:
            if len(row) != 6:
                raise DataError(f"{where}: {len(row)} cells; expected path, x1, y1, x2, y2, class.")
            if any(cell.strip() for cell in row[1:]):
                x0, y0, x1, y1 = (number(cell, where) for cell in row[1:5])
                entry.objects.append((label_of(row[5], where), (x0, y0, x1, y1)))

        yield attempt(entry, read)
