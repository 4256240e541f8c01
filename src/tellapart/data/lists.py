"""Lists of images: CSV, TSV and JSONL with a path, a label and, if there, split, group and box.

Knows nothing of folders of classes or of annotation formats, and opens no image.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import math
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.listing import NO_BOX, Box, Listing, Note, clean_label, many, printable, some, split_name
from tellapart.data.samples import Conflict
from tellapart.errors import DataError
from tellapart.spec import DataSpec

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")
_PATH = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path")
_LABEL = ("label", "class", "category", "target", "class_name")
_SPLIT = ("split", "subset", "partition", "set", "fold")
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x0", "y0", "x1", "y1"))
_RANK = {"test": 3, "val": 2, "train": 1, "": 0}


@dataclass
class _Row:
    path: str
    label: str
    split: str
    group: str
    box: Box


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str
    split: str
    group: str
    box: tuple[str, ...]


def is_list(path: str) -> bool:
    """Return whether a file's name is a list's."""
    return path.lower().endswith(EXTENSIONS)


def read_list(path: str, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of one list; paths in it are relative to its folder, or absolute.

    One image with two labels is a conflict: listed, and left out. With ``spec.boxes`` "crop" that holds for
    each box. Raises DataError for missing columns, unreadable lines, or when none of the images exists.
    """
    folder = os.path.dirname(os.path.abspath(path))
    rows: list[_Row] = []
    empty = 0
    columns, records = _records(path, folder)
    found = _find_columns(columns, spec, path)
    for line, record in records:
        row = _row(record, found, f"{printable(path)}, line {line}", folder)
        if row is None:
            empty += 1
        else:
            rows.append(row)
    if empty:
        note(f"{many(empty, 'row')} without a path or a label left out.")
    if not rows:
        raise DataError(f"{printable(path)!r} lists no image with a label.")
    _check_files(rows, folder, path)
    listing = _table(rows, bool(found.box), spec, folder, note)
    if not found.group:
        listing.groups = None
    return listing


def _text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f"{printable(path)!r} cannot be read: {error.strerror}.") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", "replace" if wide else "surrogateescape")


def _records(path: str, folder: str) -> tuple[list[str], Iterator[tuple[int, Mapping[str, Any]]]]:
    """Return the names of the columns, and (line number, row) for each row."""
    text = _text(path)
    if path.lower().endswith((".jsonl", ".ndjson")):
        records = list(_json_lines(text, path))
        names = dict.fromkeys(str(key) for _, record in records for key in record)
        return list(names), iter(records)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, path))
    try:
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise DataError(f"{printable(path)}, line {reader.line_num}: {error}.") from error
    if not lines:
        raise DataError(f"{printable(path)!r} is empty.")
    first = lines[0][1]
    if len(first) == 2 and _exists(folder, _clean_path(first[0], folder)):
        header = ["path", "label"]
    else:
        header, lines = [cell.strip() for cell in first], lines[1:]
    return header, ((number, dict(zip(header, line, strict=False))) for number, line in lines)


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


def _delimiter(text: str, path: str) -> str:
    if path.lower().endswith(".tsv"):
        return "\t"
    head = text.lstrip().partition("\n")[0]
    return max(",;\t", key=lambda mark: (head.count(mark), mark == ","))


def _pick(columns: Sequence[str], names: Sequence[str]) -> str:
    lower = {column.strip().casefold(): column for column in reversed(columns)}
    return next((lower[name] for name in names if name in lower), "")


def _find_columns(columns: Sequence[str], spec: DataSpec, path: str) -> _Columns:
    file, label = _pick(columns, _PATH), _pick(columns, _LABEL)
    if not file or not label:
        missing = " and ".join(
            f"a {kind} column ({', '.join(names)})"
            for kind, column, names in (("path", file, _PATH), ("label", label, _LABEL))
            if not column
        )
        raise DataError(f"{printable(path)!r} lacks {missing}. It has the columns: {some(columns, 20)}.")
    group = _pick(columns, (spec.group.casefold(),)) if spec.group else ""
    if spec.group and not group and spec.group.isidentifier():
        raise DataError(
            f"data.group is {spec.group!r}, and {printable(path)!r} has no such column. It has: "
            f"{some(columns, 20)}."
        )
    box: tuple[str, ...] = (_pick(columns, ("box",)),)
    for corners in _CORNERS:
        if not box[0] and all(_pick(columns, (corner,)) for corner in corners):
            box = tuple(_pick(columns, (corner,)) for corner in corners)
    return _Columns(file, label, _pick(columns, _SPLIT), group, box if box[0] else ())


def is_usable(path: str) -> bool:
    """Return whether a list has a path and a label column (or no header), and one of its first 20 files "
    "exists.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        columns, records = _records(path, folder)
    except DataError:
        return False
    column = _pick(columns, _PATH)
    first = [_clean_path(_cell(record, column), folder) for _, record in itertools.islice(records, 20)]
    return bool(column and _pick(columns, _LABEL)) and any(_exists(folder, name) for name in first)


def _clean_path(text: str, folder: str) -> str:
    """Return a path with forward slashes and no needless parts; backslashes separate unless such a file "
    "exists.
    """
    text = text.strip()
    if "\\" in text and not _exists(folder, text):
        text = text.replace("\\", "/")
    return posixpath.normpath(text) if text else ""


def _exists(folder: str, path: str) -> bool:
    try:
        return bool(path) and os.path.lexists(os.path.join(folder, path))
    except ValueError:  # a NUL in the name
        return False


def _cell(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column) if column else None
    return "" if value is None else str(value).strip()


def _row(record: Mapping[str, Any], columns: _Columns, where: str, folder: str) -> _Row | None:
    path, label = _clean_path(_cell(record, columns.path), folder), clean_label(_cell(record, columns.label))
    if not path or not label:
        return None
    given = _cell(record, columns.split)
    split = split_name(given)
    if given and not split:
        raise DataError(f"{where}: {columns.split} is {given!r}; expected train, val or test.")
    return _Row(path, label, split, _cell(record, columns.group), _box(record, columns.box, where))


def _box(record: Mapping[str, Any], columns: tuple[str, ...], where: str) -> Box:
    raw: Any = [record.get(column) for column in columns]
    if len(columns) == 1:
        raw = raw[0]
        raw = raw.replace(",", " ").split() if isinstance(raw, str) else raw
    if not raw or all(value is None or value == "" for value in raw):
        return NO_BOX
    try:
        x0, y0, x1, y1 = (float(value) for value in raw)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the box {raw!r} is not four numbers x0 y0 x1 y1.") from None
    if not (math.isfinite(x0 + y0 + x1 + y1) and x0 < x1 and y0 < y1):
        raise DataError(f"{where}: the box {raw!r} is empty; expected x0 < x1 and y0 < y1, in pixels.")
    return x0, y0, x1, y1


def _check_files(rows: Sequence[_Row], folder: str, path: str) -> None:
    sample = rows[:: max(1, len(rows) // 200)]
    if not any(_exists(folder, row.path) for row in sample):
        first = os.path.join(folder, rows[0].path)
        raise DataError(
            f"None of the images that {printable(path)!r} lists exists; the first would be "
            f"{printable(first)!r}. Paths must be absolute or relative to the list's folder."
        )


def _table(rows: Sequence[_Row], has_boxes: bool, spec: DataSpec, folder: str, note: Note) -> Listing:
    crop = has_boxes and spec.boxes == "crop"
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.path, str(row.box) if crop else ""].add(row.label)
        splits[row.path].add(row.split)
    bad = sorted({path for (path, _), found in labels.items() if len(found) > 1})
    listing = Listing(root=folder, groups=[], boxes=[] if crop else None)
    seen: set[tuple[str, str]] = set()
    left: Counter[str] = Counter()
    for row in rows:
        key = (row.path, str(row.box) if crop else "")
        if len(labels[key]) > 1:
            left["conflict"] += 1
        elif key in seen:
            left["duplicate"] += 1
        else:
            seen.add(key)
            _add(listing, row, max(splits[row.path], key=_RANK.__getitem__))
    for path in bad:
        found = {
            label for (name, _), names in labels.items() if name == path and len(names) > 1 for label in names
        }
        listing.conflicts.append(Conflict(path, tuple(sorted(found))))
    _report(left, len(bad), sum(len(found) > 1 for found in splits.values()), note)
    return listing


def _add(listing: Listing, row: _Row, split: str) -> None:
    listing.add(row.path, row.label, split)
    if listing.groups is not None:
        listing.groups.append(row.group)
    if listing.boxes is not None:
        listing.boxes.append(row.box)


def _report(left: Counter[str], conflicts: int, crossing: int, note: Note) -> None:
    if conflicts:
        note(
            f"{many(conflicts, 'image')} listed with more than one label left out "
            f"({many(left['conflict'], 'row')})."
        )
    if left["duplicate"]:
        note(f"{many(left['duplicate'], 'row')} that repeat an image and its label merged.")
    if crossing:
        note(
            f"{many(crossing, 'image')} listed in more than one split kept in the last of train, val, test "
            "only."
        )
