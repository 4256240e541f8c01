"""Tables of paths and labels in memory: frames of pandas or polars, and lists of (path, label).

They become the same table as a list's file, so that columns are chosen, paths found and conflicts reported in the same
way. Neither pandas nor polars is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.contract.given import is_picture
from tellapart.data.sources.folders import walk
from tellapart.data.sources.listing import Listing
from tellapart.data.sources.lists import column_choice, reading
from tellapart.data.sources.lists.files import Table
from tellapart.data.sources.lists.paths import Finder
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_PACKAGES = ("pandas", "polars")


def is_frame(value: object) -> bool:
    """Return whether ``value`` is a frame of pandas or polars. Raises DataError for others of their objects."""
    package = type(value).__module__.partition(".")[0]
    if package not in _PACKAGES:
        return False
    if type(value).__name__ == "LazyFrame":
        raise DataError("A LazyFrame of polars has no rows yet; give frame.collect().")
    if type(value).__name__ != "DataFrame":
        raise DataError(
            f"A {type(value).__name__} of {package} is not taken; give a DataFrame with a column of paths (or images) "
            "and one of labels."
        )
    return True


def records(frame: Any) -> list[dict[str, Any]]:
    """Return a frame's rows."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise DataError(f"The frame has several columns of one name among {', '.join(map(repr, names))}.")
    columns = [frame[name].to_list() for name in frame.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def picture_column(rows: Sequence[Mapping[str, Any]], spec: DataSpec) -> str:
    """Return the column of a frame that has the images themselves, "" if it names files."""
    for name in [spec.path_column] if spec.path_column else list(rows[0] if rows else ()):
        first = next((row[name] for row in rows if row.get(name) is not None), None)
        if is_picture(first) or (isinstance(first, Mapping) and "bytes" in first):
            return name
    return ""


def table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Return rows as a list's table: paths as text, whole numbers without a point."""
    cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
    return Table(title, list(dict.fromkeys(name for row in cells for name in row)), list(enumerate(cells)))


def pairs(items: Sequence[Any], title: str, plain: Callable[[Any], Any]) -> Table:
    """Return the table of (path, label); ``plain``: a label as text or number, None for none."""
    return table(({"path": item[0], "label": plain(item[1])} for item in items), title)


def _cell(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def listing(found: Table, spec: DataSpec, note: Callable[[str], None]) -> Listing:
    """Return the listing of a table; its paths are absolute, or start from ``data.root`` or the current folder."""
    if not found.rows:
        raise DataError(f"{found.path} is empty.")
    given = os.path.abspath(os.path.expanduser(spec.root)) if spec.root else ""
    if given and not os.path.isdir(given):
        raise DataError(f"data.root is {spec.root!r}, and there is no such folder.")
    root = given or str(Path.cwd())
    tree = walk.Tree(root, []) if not given else walk.walk(given, lambda _: None)
    finder = Finder(found.path, root, given, spec.suffix, lambda: tree)
    notes: list[str] = []
    columns = column_choice.choose(found, spec, finder.share, notes.append)
    return reading.read_plan(reading.Plan(found, columns, finder, tuple(notes)), spec, note)
