"""The files of lists: CSV, TSV, JSONL, Parquet without images, `path label` text; each read to one kind of table.

Finds the separator and whether there is a header; knows nothing of what the columns mean.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tellapart.data.sources.folders.walk import IMAGE_EXTENSIONS, extension
from tellapart.data.sources.listing import Note, printable
from tellapart.data.sources.lists import table_files
from tellapart.data.sources.text import read_text
from tellapart.errors import DataError
from tellapart.spec import DataSpec

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SEPARATOR = re.compile(r'\s*"?sep=(.)"?[;,\t]*\s*', re.IGNORECASE)
_TEXT_LINE = re.compile(r"(?P<path>\S.*?)[ \t]+(?P<label>[^\s/\\]+)")


@dataclass(frozen=True)
class Table:
    """A list's cells: the columns' names, and (line number, cells by name) for each row.

    Without a header the names are the columns' numbers, from "1".
    """

    path: str
    columns: list[str]
    rows: list[tuple[int, Mapping[str, Any]]] = field(repr=False)
    header: bool = True
    # names that a number was put behind, as they are in the head already
    doubled: frozenset[str] = frozenset()

    def cells(self, column: str, limit: int | None = None) -> list[str]:
        """Return the text of a column's cells (of the first ``limit`` rows)."""
        return [cell(record, column) for _, record in self.rows[:limit]]


def cell(record: Mapping[str, Any], column: str) -> str:
    """Return a cell as text without outer white space, "" where there is none."""
    value = record.get(column) if column else None
    return "" if value is None or value == [] else str(value).strip()


def is_list(path: str) -> bool:
    """Return whether a file's name is a list's."""
    return path.lower().endswith(EXTENSIONS)


def read_table(path: str, spec: DataSpec, exists: Callable[[str], bool], note: Note) -> Table:
    """Return the table of a list; ``exists`` says whether a cell names an image. Raises DataError."""
    kind = extension(path)
    if kind == ".parquet":
        columns, cells = table_files.plain_columns(path)
        return Table(path, columns, list(enumerate(cells)))
    text = read_text(path, spec.encoding, note)
    if kind in (".jsonl", ".ndjson"):
        records = list(_json_lines(text, path))
        names = dict.fromkeys(str(key) for _, record in records for key in record)
        return Table(path, list(names), [(line, _flat(record)) for line, record in records])
    if kind == ".txt":
        return _text_table(text, path)
    return _csv_table(text, path, exists)


def _csv_table(text: str, path: str, exists: Callable[[str], bool]) -> Table:
    first, _, rest = text.partition("\n")
    said = _SEPARATOR.fullmatch(first.strip())
    skipped = 0
    if said:  # what Excel writes and reads
        text, skipped = rest, 1
    mark = said[1] if said else _delimiter(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        lines = [(reader.line_num + skipped, line) for line in reader if any(c.strip() for c in line)]
    except csv.Error as error:
        raise DataError(f"{printable(path)}, line {reader.line_num + skipped}: {error}.") from error
    if not lines:
        raise DataError(f"{printable(path)!r} is empty.")
    head = [text.strip() for text in lines[0][1]]
    bare = len(head) > 1 and any(_names_image(text, exists) for text in head)
    if bare:
        head = [str(number) for number in range(1, len(head) + 1)]
    else:
        lines = lines[1:]
    written, head = head, _distinct(head)
    rows: list[tuple[int, Mapping[str, Any]]] = [
        (number, dict(zip(head, line, strict=False))) for number, line in lines
    ]
    return Table(path, head, rows, header=not bare, doubled=frozenset(head) - frozenset(written))


def _distinct(head: list[str]) -> list[str]:
    """Return the names with a number behind those that are there already."""
    seen: dict[str, int] = {}
    found = []
    for name in head:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}.{seen[name] - 1}")
    return found


def _names_image(text: str, exists: Callable[[str], bool]) -> bool:
    return extension(text) in IMAGE_EXTENSIONS or ("." in text and exists(text))


def _delimiter(text: str, path: str) -> str:
    if path.lower().endswith(".tsv"):
        return "\t"
    head = text.lstrip().partition("\n")[0]
    return max(",;\t|", key=lambda mark: (head.count(mark), mark == ","))


def _json_lines(text: str, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{printable(path)}, line {number}: not JSON ({error}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{printable(path)}, line {number}: expected an object with a path and a label.")
        yield number, record


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose lists of one text are that text, and of several are joined by bars."""
    return {
        key: "|".join(value)
        if value and isinstance(value, list) and all(isinstance(v, str) for v in value)
        else value
        for key, value in record.items()
    }


def _text_table(text: str, path: str) -> Table:
    """Return the table of lines `path label`; the path may hold spaces, the label not."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _TEXT_LINE.fullmatch(line.strip())
        if found is None:
            raise DataError(
                f"{printable(path)}, line {number}: {line.strip()[:60]!r} is not a path and a label."
            )
        rows.append((number, {"1": found["path"], "2": found["label"]}))
    if not rows:
        raise DataError(f"{printable(path)!r} is empty.")
    return Table(path, ["1", "2"], rows, header=False)
