"""Lists of images: CSV, TSV, JSONL and text with a path, a label and, if there, split, group and box.

Puts together what `files` reads, `column_choice` chooses and `paths` finds. Knows nothing of folders of
classes or of annotation formats, and opens no image.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.samples import Conflict
from tellapart.data.sources import levels
from tellapart.data.sources.folders import walk
from tellapart.data.sources.folders.walk import Tree
from tellapart.data.sources.listing import NO_BOX, Box, Listing, Note, many, printable, some
from tellapart.data.sources.lists import column_choice, files, paths, several
from tellapart.data.sources.lists.column_choice import Columns
from tellapart.data.sources.lists.files import Table, is_list
from tellapart.data.sources.lists.paths import Finder
from tellapart.data.sources.lists.several import Several
from tellapart.errors import DataError
from tellapart.spec import DataSpec

__all__ = ["Plan", "is_list", "is_list_of_images", "names_images", "plan", "read_list", "read_plan"]

_RANK = {"test": 3, "val": 2, "train": 1, "": 0}
_BESIDE = re.compile(
    r"labels?|annotations?|lists?|csvs?|meta(?:data)?|splits?|.*ground_?truth", re.IGNORECASE
)


def is_list_of_images(path: str) -> bool:
    """Return whether a file is a list by its name, or by its first lines (`path label` text)."""
    if is_list(path):
        return True
    if walk.extension(path) != ".txt":
        return False
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = [line.split() for line in stream.read(4096).split("\n")[:5]]
    except OSError:
        return False
    full = [line for line in lines if line and not line[0].startswith("#")]
    return bool(full) and all(
        len(line) > 1 and walk.extension(" ".join(line[:-1])) in walk.IMAGE_EXTENSIONS for line in full
    )


@dataclass
class _Row:
    path: str
    label: str
    split: str
    group: str
    box: Box
    several: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A list that can be read: its cells, its columns, and how its images are found."""

    table: Table
    columns: Columns
    finder: Finder
    notes: tuple[str, ...]


def read_list(path: str, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of one list; paths in it are relative to its folder, or absolute, or found by the rules of
    `paths`.

    One image with two labels is a conflict: listed, and left out. With ``spec.boxes`` "crop" that holds for
    each box. Raises DataError for missing columns, unreadable lines, or when none of the images exists.
    """
    folder = os.path.dirname(os.path.abspath(path))
    trees: list[Tree] = []

    def tree() -> Tree:
        if not trees:
            trees.append(walk.walk(root, lambda _: None))
        return trees[0]

    root = folder
    if _BESIDE.fullmatch(os.path.basename(folder)) and not walk.walk(folder, lambda _: None).images:
        root = os.path.dirname(folder)
    return read_plan(plan(path, root, tree, spec), spec, note)


def plan(path: str, root: str, tree: Callable[[], Tree], spec: DataSpec) -> Plan:
    """Return how a list would be read, with its paths relative to ``root``. Raises DataError if it cannot be."""
    notes: list[str] = []
    given = os.path.expanduser(spec.root)
    if given and not os.path.isdir(given):
        given = os.path.join(root, given)
    if given and not os.path.isdir(given):
        raise DataError(f"data.root is {spec.root!r}, and there is no such folder.")
    given = os.path.abspath(given) if given else ""
    if given and not _inside(given, root):
        root, outside = given, walk.walk(given, lambda _: None)
        finder = Finder(path, root, given, spec.suffix, lambda: outside)
    else:
        finder = Finder(path, root, given, spec.suffix, tree)
    table = files.read_table(path, spec, finder.is_file, notes.append)
    columns = column_choice.choose(table, spec, finder.share, notes.append)
    return Plan(table, columns, finder, tuple(notes))


def _inside(path: str, root: str) -> bool:
    one, other = os.path.realpath(path), os.path.realpath(root)
    return one == other or one.startswith(other.rstrip(os.sep) + os.sep)


def names_images(found: Plan) -> bool:
    """Return whether the list names images that are there."""
    return found.finder.share([c for c in found.table.cells(found.columns.path) if c]) > 0


def read_plan(found: Plan, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of a list that `plan` looked at. Raises DataError."""
    for text in found.notes:
        note(text)
    several_labels = several.decide(found.table, found.columns, spec, note)
    rows = _rows(found, several_labels, note)
    path = found.table.path
    if not rows:
        raise DataError(f"{printable(path)!r} lists no image with a label.")
    if not spec.label_column and several_labels is None:
        _split_labels(rows, levels.given(spec))
    places = found.finder.find(list(dict.fromkeys(row.path for row in rows)))
    if not any(places.paths.values()):
        first = os.path.join(found.finder.given or os.path.dirname(os.path.abspath(path)), rows[0].path)
        raise DataError(
            f"None of the images that {printable(path)!r} lists exists; the first would be {printable(first)!r}. "
            "Paths must be absolute or relative to the list's folder, or --data.root must name the folder they "
            "start from (and --data.suffix an ending that they lack)."
        )
    paths.report(places, path, note)
    missing = set()
    for row in rows:
        place = places.paths[row.path]
        if not place:
            missing.add(row.path)
        row.path = place or row.path
    listing = (
        _table(rows, bool(found.columns.box), spec, found.finder.root, note)
        if several_labels is None
        else _table_of_sets(rows, found.finder.root, note)
    )
    listing.missing = missing & set(listing.paths)
    if not found.columns.group:
        listing.groups = None
    return listing


def _rows(found: Plan, several_labels: Several | None, note: Note) -> list[_Row]:
    rows: list[_Row] = []
    empty: Counter[str] = Counter()
    for line, record in found.table.rows:
        row = _row(record, found, several_labels, f"{printable(found.table.path)}, line {line}", empty)
        if row is not None:
            rows.append(row)
    if empty[""]:
        note(f"Skipped {many(empty.pop(''), 'row')} without a path or a label.")
    words = [word for word in sorted(empty) if word]
    if words:
        note(
            f"Skipped {many(sum(empty[word] for word in words), 'row')} whose label is {some(map(repr, words))}: no "
            "label is known."
        )
    doubtful = {row.label for row in rows if row.label.casefold() in ("none", "null", "unknown", "?", "-")}
    if doubtful:
        note(f"The labels {some(sorted(map(repr, doubtful)))} count as classes, as others do.")
    return rows


def _row(
    record: Mapping[str, Any], found: Plan, several_labels: Several | None, where: str, empty: Counter[str]
) -> _Row | None:
    columns = found.columns
    raw = record.get(columns.path)
    path = found.finder.clean("" if raw is None else str(raw))
    split = (columns.splits or {}).get(files.cell(record, columns.split), "")
    group = files.cell(record, columns.group)
    if several_labels is not None:
        names = several_labels.labels(record, where)
        if not path or names is None:
            empty[""] += 1
            return None
        return _Row(path, "", split, group, NO_BOX, names)
    labels = column_choice.labels_of(record, columns, where)
    label = labels[0] if labels else ""
    if not path or not label or (label in column_choice.MISSING and len(labels) == 1):
        empty[label if path and label else ""] += 1
        return None
    box = _box(record, columns.box, where)
    return _Row(path, label, split, group, box, labels if len(labels) > 1 else ())


def _split_labels(rows: Sequence[_Row], of_levels: str) -> None:
    """Find rows with several labels in one cell ("cat dog", "cat|dog"): each is the label of other rows.

    ``of_levels``: the mark that separates the levels of one label, and so no labels.
    """
    known = {row.label for row in rows}
    several: dict[str, tuple[str, ...]] = {}
    for label in known:
        for mark in "|;, /":
            if mark in of_levels:
                continue
            parts = [part.strip() for part in label.split(mark)]
            if len(parts) > 1 and (mark == "|" or all(part in known for part in parts)):
                several[label] = tuple(dict.fromkeys(filter(None, parts))) or (label,)
    for row in rows:
        found = row.several or several.get(row.label, ())
        if len(found) == 1:
            row.label = found[0]
        else:
            row.several = found


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


def _table(rows: Sequence[_Row], has_boxes: bool, spec: DataSpec, folder: str, note: Note) -> Listing:
    crop = has_boxes and spec.boxes == "crop"
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.path, str(row.box) if crop else ""].update(row.several or (row.label,))
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


def _table_of_sets(rows: Sequence[_Row], folder: str, note: Note) -> Listing:
    """Return a row for each image, with the labels of all its rows."""
    listing = Listing(root=folder, groups=[], sets=[])
    sets: dict[str, dict[str, None]] = defaultdict(dict)
    splits: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, str] = {}
    for row in rows:
        sets[row.path].update(dict.fromkeys(row.several))
        splits[row.path].add(row.split)
        groups.setdefault(row.path, row.group)
    for path, names in sets.items():
        listing.add_set(path, tuple(names), max(splits[path], key=_RANK.__getitem__))
    listing.groups = list(groups.values())
    if len(sets) < len(rows):
        note(
            f"{many(len(rows), 'row')} of {many(len(sets), 'image')}: an image has the labels of all its rows."
        )
    if bare := sum(not names for names in sets.values()):
        note(f"{many(bare, 'image')} without any label: none of the classes is in them.")
    _report(Counter(), 0, sum(len(found) > 1 for found in splits.values()), note)
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
            f"Skipped {many(conflicts, 'image')} listed with more than one label "
            f"({many(left['conflict'], 'row')})."
        )
    if left["duplicate"]:
        note(f"{many(left['duplicate'], 'row')} that repeat an image and its label merged.")
    if crossing:
        note(
            f"{many(crossing, 'image')} listed in more than one split kept in the last of train, val, test "
            "only."
        )
