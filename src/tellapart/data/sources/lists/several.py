"""Lists whose images have several labels each: whether a list is one, and how its cells are taken apart.

Asked for by ``data.labels``; by itself only where a list plainly has several labels for many images, and that is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.sources import levels
from tellapart.data.sources.listing import Note, clean_label, many, printable
from tellapart.data.sources.lists import column_choice, files
from tellapart.data.sources.lists.column_choice import Columns
from tellapart.data.sources.lists.files import Table
from tellapart.errors import SpecError
from tellapart.spec import DataSpec

_SHARE, _LEAST = 0.05, 2  # of the rows, and rows; where no more have several labels, these are the mistake
_MARKS = "|;, "
_NONE = frozenset(("", "nan", "NaN", "NAN", "n/a", "N/A", "#N/A", "<NA>", "NA", "#NA", "-nan"))


@dataclass(frozen=True)
class Several:
    """How the labels of a row are read. ``mark``: what separates them in a cell, "" where a cell is one label.

    ``hot``: whether the columns are one-hot. ``empty``: whether an empty cell says that the image has no label.
    """

    columns: tuple[str, ...]
    mark: str = ""
    hot: bool = False
    empty: bool = False

    def labels(self, record: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
        """Return a row's labels, () where it says that there is none, None where it says nothing. Raises DataError."""
        if self.hot:
            return column_choice.hot_labels(record, self.columns, where)
        cells = [record.get(column) for column in self.columns]
        if any(isinstance(cell, list) for cell in cells):
            listed = [str(name) for cell in cells for name in (cell if isinstance(cell, list) else [cell])]
            return tuple(dict.fromkeys(filter(None, map(clean_label, listed))))
        names = [part for column in self.columns for part in self._parts(files.cell(record, column))]
        found = tuple(dict.fromkeys(name for name in names if name not in _NONE))
        return found if found or self.empty else None

    def _parts(self, text: str) -> list[str]:
        return [clean_label(part) for part in (text.split(self.mark) if self.mark else [text])]


def decide(table: Table, columns: Columns, spec: DataSpec, note: Note) -> Several | None:
    """Return how a list's rows with several labels are read; None where each image has one. Raises SpecError."""
    if spec.labels == "single" or (spec.boxes == "crop" and columns.box and spec.labels == "auto"):
        return None
    if spec.boxes == "crop" and columns.box:
        raise SpecError("data.labels multi is for whole images: with data.boxes crop each box has one label.")
    asked = spec.labels == "multi"
    if levels.given(spec):
        return None  # names with marks in them are what was asked for
    if len(columns.labels) > 1 and not (asked and _are_names(table, columns.labels)):
        ones = [
            sum(column_choice.is_yes(files.cell(record, c)) for c in columns.labels)
            for _, record in table.rows
        ]
        if not asked and not _plainly(sum(count > 1 for count in ones), table):
            return None
        _say(table, "one-hot columns with", sum(count > 1 for count in ones), asked, note)
        return Several(columns.labels, hot=True, empty=True)
    cells = [
        [str(n) for n in _listed(record, c)] or [files.cell(record, c)]
        for _, record in table.rows
        for c in columns.labels
    ]
    mark = spec.label_separator or _mark(cells, asked)
    lists = sum(len(cell) > 1 for cell in cells)
    several = lists + sum(
        len({p.strip() for p in cell[0].split(mark)} - {""}) > 1 for cell in cells if mark and len(cell) == 1
    )
    if not asked and not _plainly(several, table):
        return None
    _say(
        table,
        f"labels separated by {mark!r} in" if mark else "lists of labels in" if lists else "",
        several,
        asked,
        note,
    )
    return Several(columns.labels, mark, empty=asked)


def _plainly(several: int, table: Table) -> bool:
    return several >= _LEAST and several > _SHARE * len(table.rows)


def _listed(record: Mapping[str, Any], column: str) -> Sequence[Any]:
    value = record.get(column)
    return value if isinstance(value, list) else ()


def _are_names(table: Table, columns: Sequence[str]) -> bool:
    """Return whether several columns hold labels, and not yes and no, or other numbers."""
    cells = {cell for column in columns for cell in table.cells(column)} - _NONE
    return any(not column_choice.is_number(cell) and not column_choice.is_yes_or_no(cell) for cell in cells)


def _mark(cells: Sequence[Sequence[str]], asked: bool) -> str:
    """Return what separates the labels of a cell: a bar; another mark where the parts are plainly labels."""
    texts = [cell[0] for cell in cells if len(cell) == 1]
    alone = set(texts)
    for mark in _MARKS:
        split = [
            [part.strip() for part in text.split(mark) if part.strip()] for text in texts if mark in text
        ]
        if not split:
            continue
        times = Counter(part for parts in split for part in parts)
        words = {word for text in texts for word in text.split()}
        if mark == "|" or (asked and mark != " "):
            return mark
        if asked and len(words) < len(alone):
            return mark
        if mark == "," and not any(part in alone for part in times):
            continue  # 'cat, common' in each row is a name with a comma: somewhere a label would stand alone
        if all(part in alone or (mark != " " and times[part] > 1) for part in times):
            return mark
    return ""


def _say(table: Table, how: str, several: int, asked: bool, note: Note) -> None:
    name = printable(table.path.replace("\\", "/").rpartition("/")[2])
    if asked and not how:
        note(f"No cell of {name!r} has several labels (--data.label-separator says what separates them).")
        return
    other = "--data.label-separator names another separator" if "separated" in how else ""
    single = "" if asked else "--data.labels single leaves such images out"
    hint = "; ".join(filter(None, (other, single)))
    note(
        f"Several labels for an image: {name!r} has {how} {many(several, 'row')}{f' ({hint})' if hint else ''}."
    )
