"""Which column of a list has the path, the label, the split, the group and the box: as given, or guessed.

A guess needs a usual name and content that fits it; a choice by content alone is reported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.sources import levels
from tellapart.data.sources.folders.split_names import is_plain, split_cells
from tellapart.data.sources.listing import Note, clean_label, printable, some
from tellapart.data.sources.lists.column_names import (
    FLAGS,
    LABEL,
    PATH,
    SPLIT,
    WEAK_LABEL,
    WEAK_SPLIT,
    pick,
    plain,
)
from tellapart.data.sources.lists.files import Table, cell
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("roix1", "roiy1", "roix2", "roiy2"),
)
_YES = frozenset(("1", "1.0", "true", "yes", "t", "y"))
_NO = frozenset(("0", "0.0", "false", "no", "f", "n"))
_SAMPLE = 200
MISSING = frozenset(("nan", "NaN", "NAN", "n/a", "N/A", "#N/A", "<NA>", "NA", "#NA", "-nan"))
"""Cells that programs write for a missing value."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns in use; ``labels`` of several are one-hot, or with ``mark`` the levels of one label,
    which it joins. ``splits``: the split of each cell.
    """

    path: str
    labels: tuple[str, ...]
    split: str = ""
    splits: dict[str, str] | None = None
    group: str = ""
    box: tuple[str, ...] = ()
    mark: str = ""


def choose(table: Table, spec: DataSpec, share: Callable[[Sequence[str]], float], note: Note) -> Columns:
    """Return the columns of a list; ``share`` returns the share of some cells that name images. Raises DataError."""
    path = _path_column(table, spec, share)
    split, splits = _split_column(table, spec, path, note)
    if splits and table.header and plain(split) not in ("fold", "kfold"):
        _say_splits(table, split, splits, note)
    box = () if not table.header else _box_columns(table.columns)
    group = _group_column(table, spec)
    used = {path, split, group, *box}
    labels = _label_columns(table, spec, path, used, note)
    if not path or not labels:
        raise DataError(_lacking(table, path, labels))
    if not table.header:
        box = _bare_box(table, {path, split, *labels})
    return Columns(path, labels, split, splits, group, box, _mark(table, labels, spec))


def choose_beside(table: Table, spec: DataSpec, declared: Sequence[str], note: Note) -> Columns:
    """Return the columns of a table whose rows come with their images: labels, split and group; no path.

    ``declared``: the columns that hold classes according to the file's format; they take precedence. Columns that name
    images are not labels, nor, without a usual name, those whose values hardly repeat. Raises DataError.
    """
    split, splits = _split_column(table, spec, "", note)
    if splits and plain(split) not in ("fold", "kfold"):
        _say_splits(table, split, splits, note)
    group = _group_column(table, spec)
    used = {split, group}
    if not spec.label_column and (classes := [column for column in declared if column not in used]):
        return Columns("", (_declared_label(table, classes, used, note),), split, splits, group)
    names = [c for c in table.columns if plain(c) in PATH and plain(c) not in WEAK_LABEL]
    alone = [
        c for c in table.columns if plain(c) not in LABEL and 2 * len(set(table.cells(c))) > len(table.rows)
    ]
    labels = _label_columns(table, spec, "", {*used, *names, *alone}, note)
    return Columns("", labels, split, splits, group, mark=_mark(table, labels, spec))


def _mark(table: Table, labels: Sequence[str], spec: DataSpec) -> str:
    """Return what joins the cells of several label columns, "" where these are one-hot."""
    if len(labels) < 2 or not spec.label_column:
        return ""
    hot = all(is_yes_or_no(cell) for column in labels for cell in table.cells(column) if cell)
    return "" if hot else levels.given(spec)


def _declared_label(table: Table, declared: Sequence[str], used: set[str], note: Note) -> str:
    usual = [column for name in LABEL for column in declared if plain(column) == name]
    if len(declared) > 1 and not usual:
        raise DataError(
            f"{printable(table.path)!r} has several columns of classes ({some(declared)}), and it is not "
            "clear which is the label: name one with --data.label-column."
        )
    first = (usual or declared)[0]
    others = [c for c in table.columns if plain(c) in LABEL and c not in declared and c not in used]
    return _best_label(table, [first, *(c for c in declared if c != first), *others], note)


def told(table: Table, name: str, field: str) -> str:
    """Return the column that the user names (in its exact spelling, otherwise in any). Raises DataError."""
    if name in table.columns:
        return name
    found = pick(table.columns, (plain(name),)) if plain(name) else ""
    if not found:
        what = "columns" if table.header else "no header, and the columns"
        raise DataError(
            f"data.{field} is {name!r}, and {printable(table.path)!r} has no such column. It has {what}: "
            f"{some(table.columns, 20)}."
        )
    return found


def _lacking(table: Table, path: str, labels: tuple[str, ...]) -> str:
    needs = []
    if not path:
        needs.append("a path column (path, file, filename, image, image_id, …; --data.path-column names it)")
    if not labels:
        needs.append(
            "a label column (label, class, category, …; --data.label-column names it or one-hot columns)"
        )
    columns = some(table.columns if table.header else [str(v) for v in table.rows[0][1].values()], 20)
    return f"{printable(table.path)!r} lacks {' and '.join(needs)}. It has the columns: {columns}."


def _path_column(table: Table, spec: DataSpec, share: Callable[[Sequence[str]], float]) -> str:
    if spec.path_column:
        return told(table, spec.path_column, "path_column")
    cells = {column: [c for c in table.cells(column, _SAMPLE) if c] for column in table.columns}
    order = [c for name in PATH for c in table.columns if plain(c) == name]
    shares = {column: share(cells[column]) for column in order}
    best = max(order, key=lambda column: shares[column], default="")
    if best and shares[best] > 0:
        return best
    others = [c for c in table.columns if c not in order and plain(c) and plain(c) not in LABEL]
    found = max(others, key=lambda column: share(cells[column]), default="")
    if found and share(cells[found]) >= 0.5:
        return found
    strong = [
        c for c in order if plain(c) not in ("id", "name", "idcode", "fileid", "photo", "picture", "bild")
    ]
    return strong[0] if strong else ""


# --- Labels -----------------------------------------------------------------------------------------------


def _label_columns(table: Table, spec: DataSpec, path: str, used: set[str], note: Note) -> tuple[str, ...]:
    if spec.label_column:
        return tuple(told(table, name, "label_column") for name in spec.label_column)
    free = [column for column in table.columns if column not in used]
    named = [column for name in LABEL for column in free if plain(column) == name]
    if named:
        return (_best_label(table, named, note),)
    rest = [column for column in free if not _is_index(table, column)]
    if not rest and not table.header:
        rest = free[-1:]  # as many rows as classes: a label may count too
    if not table.header and len(rest) == 5:  # path, four numbers, label (RetinaNet)
        numbers = [column for column in rest if _numeric(table, column)]
        rest = [column for column in rest if column not in numbers] if len(numbers) == 4 else rest
    if len(rest) == 1:
        if table.header:
            note(f"Labels are the column {printable(rest[0])!r} of {printable(_name(table))!r}.")
        return (rest[0],)
    hot = one_hot(table, rest, spec.labels)
    twice = sorted(table.doubled.intersection(hot))
    if twice:
        raise DataError(
            f"{printable(table.path)!r} has more than one column {twice[0].rpartition('.')[0]!r}: as one-hot labels "
            "they would be two classes of one name. Rename or remove one, or name the columns with "
            "--data.label-column."
        )
    if hot:
        note(f"One-hot labels of {printable(_name(table))!r}: {some((c.strip() for c in hot), 6)}.")
        return hot
    if not table.header and len(rest) == 2 and _same(table, rest[0], rest[1]):
        return (_best_label(table, rest, note),)
    weak = [c for name in WEAK_LABEL for c in free if plain(c) == name and _repeats(table, c)]
    return (weak[0],) if weak else ()


def _name(table: Table) -> str:
    return re.split(r"[/\\]", table.path)[-1]


def _best_label(table: Table, named: Sequence[str], note: Note) -> str:
    """Return the label column of several: of those that say the same, the one with words; else the first."""
    first = named[0]
    same = [column for column in named[1:] if _same(table, first, column)]
    words = next((c for c in (first, *same) if not _numeric(table, c)), first)
    if len(named) > 1:
        other = [column for column in named if column != words]
        note(
            f"Labels are the column {printable(words)!r} of {printable(_name(table))!r}, not {some(other, 4)} "
            "(--data.label-column)."
        )
    return words


def _same(table: Table, one: str, other: str) -> bool:
    pairs = set(zip(table.cells(one), table.cells(other), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 1


def _numeric(table: Table, column: str) -> bool:
    cells = [c for c in table.cells(column, _SAMPLE) if c]
    return bool(cells) and all(map(is_number, cells))


def _is_index(table: Table, column: str) -> bool:
    """Return whether a column only counts the rows: consecutive whole numbers."""
    if table.header and (not plain(column) or re.fullmatch(r"unnamed\d*", plain(column))):
        return True
    cells = table.cells(column)
    if len(cells) < 2 or not all(re.fullmatch(r"\d+", c) for c in cells):
        return False
    return all(int(b) - int(a) == 1 for a, b in itertools.pairwise(cells))


def _repeats(table: Table, column: str) -> bool:
    cells = table.cells(column)
    return len(set(cells)) < len(cells)


def one_hot(table: Table, columns: Sequence[str], labels: str = "auto") -> tuple[str, ...]:
    """Return those of ``columns`` that are one-hot labels: yes or no, and in 19 of 20 rows exactly one yes.

    Where images may have several labels (``labels``: multi, or auto and nothing else is in the list, with three columns
    at least) any number of yes will do.
    """
    binary = [c for c in columns if all(v.casefold() in _YES | _NO | {""} for v in set(table.cells(c)))]
    if len(binary) < 2:
        return ()
    ones = [sum(is_yes(str(record.get(c, "")).strip()) for c in binary) for _, record in table.rows]
    if ones and 20 * ones.count(1) >= 19 * len(ones):
        return tuple(binary)
    several = labels == "multi" or (labels == "auto" and len(binary) == len(columns) >= 3)
    return tuple(binary) if several and any(count > 1 for count in ones) else ()


def is_yes(text: str) -> bool:
    """Return whether a cell says yes (1, true)."""
    return text.casefold() in _YES


def is_number(text: str) -> bool:
    """Return whether a cell is a number."""
    return bool(re.fullmatch(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?", text, re.I))


def hot_labels(record: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names of the one-hot columns that say yes. Raises DataError for a cell that is neither yes nor no."""
    found = []
    for column in columns:
        text = cell(record, column)
        if text and not is_yes_or_no(text):
            raise DataError(
                f"{where}: the one-hot column {column.strip()!r} is {text!r}; expected 0 or 1. Probabilities and "
                "ratings are no labels."
            )
        if is_yes(text):
            found.append(clean_label(column))
    return tuple(found)


def is_yes_or_no(text: str) -> bool:
    """Return whether a cell says yes or no."""
    return text.casefold() in _YES | _NO


def labels_of(record: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, ...]:
    """Return the labels of a row: one, or those of its one-hot columns that say yes. Raises DataError."""
    if len(columns.labels) == 1:
        label = clean_label(cell(record, columns.labels[0]))
        return (label,) if label else ()
    if columns.mark:
        return _of_levels(record, columns, where)
    return hot_labels(record, columns.labels, where)


def _of_levels(record: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, ...]:
    """Return the label whose levels are in several columns, the first the topmost; the last ones may be empty."""
    cells = [clean_label(cell(record, column)) for column in columns.labels]
    cells = ["" if text in MISSING else text for text in cells]
    found = [text for text in cells if text]
    if found != cells[: len(found)]:
        raise DataError(
            f"{where}: the level {columns.labels[cells.index('')].strip()!r} is empty, and a lower one is not "
            f"({some(found)})."
        )
    wrong = next((text for text in found if columns.mark in text), "")
    if wrong:
        raise DataError(
            f"{where}: {wrong!r} has {columns.mark!r} in it, which would make it two levels; choose another separator "
            "with --data.levels."
        )
    return (columns.mark.join(found),) if found else ()


# --- Splits, groups, boxes --------------------------------------------------------------------------------


def _split_column(table: Table, spec: DataSpec, path: str, note: Note) -> tuple[str, dict[str, str] | None]:
    if spec.split_column.casefold() == "none" and "none" not in map(plain, table.columns):
        return "", None
    if spec.split_column:
        column = told(table, spec.split_column, "split_column")
        return column, _splits_wanted(table, column, note)
    free = [column for column in table.columns if column != path and column not in spec.label_column]
    strong = pick(free, SPLIT)
    if strong:
        return strong, _splits_wanted(table, strong, note)
    flags = tuple(name for names in FLAGS.values() for name in names)
    flagged = [c for c in free if plain(c) in flags and all(is_yes_or_no(v) for v in table.cells(c) if v)]
    if len(flagged) > 1:
        raise DataError(
            f"{printable(table.path)!r} has several columns that may hold the split ({some(flagged)}): name one "
            "with --data.split-column, or none."
        )
    for column in free:
        named = table.header and plain(column) in (*WEAK_SPLIT, *flags)
        if not named and plain(column) in LABEL:
            continue
        splits = _splits_of(table, column, note, bare=not named)
        if splits is not None and (named or len(set(splits.values())) > 1):
            return column, splits
        if table.header and plain(column) in WEAK_SPLIT:
            note(
                f"The column {printable(column)!r} of {printable(_name(table))!r} names no split "
                f"({some(dict.fromkeys(table.cells(column)), 4)})."
            )
    return "", None


def _say_splits(table: Table, column: str, splits: dict[str, str], note: Note) -> None:
    """Say what the cells of a column mean if they are not the plain words."""
    if any(cell and not is_plain(cell) for cell in splits):
        said = (f"{cell} is {split or 'no split'}" for cell, split in sorted(splits.items()) if cell)
        note(f"Splits by the column {printable(column)!r} of {printable(_name(table))!r}: {some(said)}.")


def _splits_wanted(table: Table, column: str, note: Note) -> dict[str, str]:
    """Return the split of each cell of a column that is one of splits. Raises DataError for another cell."""
    splits = _splits_of(table, column, note)
    if splits is not None:
        return splits
    undecided = split_cells(table.cells(column))
    if not set(table.cells(column)) <= set(undecided):
        raise _not_split(table, column)
    if table.rows:
        note(f"The column {printable(column)!r} of {printable(_name(table))!r} is there and names no split.")
    return undecided


def _not_split(table: Table, column: str) -> DataError:
    known = split_cells(table.cells(column))
    line, bad = next(
        (number, str(record.get(column, "")).strip())
        for number, record in table.rows
        if str(record.get(column) or "").strip() not in known
    )
    return DataError(
        f"{printable(table.path)}, line {line}: {column} is {bad!r}; expected train, val or test (or empty). "
        "--data.split-column names another column, or none."
    )


def _splits_of(table: Table, column: str, note: Note, bare: bool = False) -> dict[str, str] | None:
    """Return the split of each cell of a column, or None if not all are understood.

    Words; yes and no in a column such as `is_valid`; whole numbers in a column of folds, of which the lowest
    is val (and -1 test).
    """
    cells = set(table.cells(column))
    words = split_cells(sorted(cells))
    if len(words) == len(cells):
        return words if any(words.values()) else None
    if bare:
        return None
    flag = next((split for split, names in FLAGS.items() if plain(column) in names), "")
    if flag and all(is_yes_or_no(cell) for cell in cells if cell):
        other = "test" if flag == "train" else "train"
        return {cell: "" if not cell else flag if is_yes(cell) else other for cell in cells}
    if plain(column) in ("fold", "kfold") and all(
        re.fullmatch(r"-?\d+(?:\.0)?", cell) for cell in cells if cell
    ):
        return _folds(table, column, cells, note)
    return None


def _folds(table: Table, column: str, cells: set[str], note: Note) -> dict[str, str] | None:
    numbers = {cell: int(float(cell)) for cell in cells if cell}
    folds = sorted({number for number in numbers.values() if number >= 0})
    if len(folds) < 2:
        return None
    note(
        f"The column {printable(column)!r} holds the folds {some(map(str, folds), 12)}: fold {folds[0]} is val, the "
        "others are train. (--data.split-column none ignores it and makes new splits.)"
    )
    found = {
        cell: "test" if number < 0 else "val" if number == folds[0] else "train"
        for cell, number in numbers.items()
    }
    return {**found, **({"": ""} if "" in cells else {})}


def _group_column(table: Table, spec: DataSpec) -> str:
    group = pick(table.columns, (plain(spec.group),)) if plain(spec.group) else ""
    if spec.group and not group and spec.group.isidentifier():
        raise DataError(
            f"data.group is {spec.group!r}, and {printable(table.path)!r} has no such column. It has: "
            f"{some(table.columns, 20)}."
        )
    return group


def _box_columns(columns: Sequence[str]) -> tuple[str, ...]:
    box = pick(columns, ("box",))
    if box:
        return (box,)
    for corners in _CORNERS:
        found = tuple(pick(columns, (corner,)) for corner in corners)
        if all(found):
            return found
    return ()


def _bare_box(table: Table, used: set[str]) -> tuple[str, ...]:
    rest = [column for column in table.columns if column not in used]
    return tuple(rest) if len(rest) == 4 and all(_numeric(table, column) for column in rest) else ()
