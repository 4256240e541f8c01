"""Names for classes that are numbers, from a small JSON, CSV or text file beside the images.

A file counts only if it names every number that occurs, and no other file contradicts it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tellapart.data.sources.folders.walk import extension
from tellapart.data.sources.listing import Listing, Note, clean_label, many, printable, some
from tellapart.data.sources.text import read_text
from tellapart.errors import DataError

_LARGEST = 1 << 20  # bytes of a file of names
_MOST = 200  # files looked into
_WORDS = re.compile(r"name|class|label|categor|map|index|idx|cat_to|类别|标签|类名", re.IGNORECASE)


def name_numbers(listing: Listing, root: str, others: Iterable[str], encoding: str, note: Note) -> Listing:
    """Give the classes of ``listing`` their names, if all are whole numbers and a file of ``others`` names them.

    Two numbers with one name stay numbers, and so do all if files disagree; a message says so.
    """
    numbers = (
        set(listing.labels) if listing.sets is None else {name for names in listing.sets for name in names}
    )
    if (
        listing.classes
        or not numbers
        or not all(re.fullmatch(r"\d{1,6}(?:\.0)?", label) for label in numbers)
    ):
        return listing
    if len({int(float(label)) for label in numbers}) < len(numbers):
        return listing
    found: dict[str, dict[int, str]] = {}
    guesses: list[str] = []
    for path in [path for path in others if path.count("/") < 2][:_MOST]:
        if extension(path) in (".json", ".csv", ".txt") and _WORDS.search(os.path.basename(path)):
            said: list[str] = []
            names = _read(os.path.join(root, path), encoding, said.append)
            if names and all(int(float(label)) in names for label in numbers):
                guesses.extend(said)
                found[path] = {int(float(label)): names[int(float(label))] for label in numbers}
    if not found:
        return listing
    for text in guesses:
        note(text)
    first = next(iter(found.values()))
    if any(names != first for names in found.values()):
        note(f"The classes stay numbers: {some(found)} give them different names.")
        return listing
    if len(set(first.values())) < len(first):
        note(f"The classes stay numbers: {printable(next(iter(found)))} gives one name to several.")
        return listing
    note(
        f"The names of {many(len(first), 'class', 'classes')} come from {printable(next(iter(found)))}: "
        f"{some((f'{number} is {first[number]}' for number in sorted(first)), 4)}."
    )
    if listing.sets is not None:
        listing.sets = [tuple(first[int(float(name))] for name in names) for names in listing.sets]
        return listing
    listing.labels = [first[int(float(label))] for label in listing.labels]
    listing.numbered = tuple(first[number] for number in sorted(first))
    return listing


def _read(path: str, encoding: str, note: Note) -> dict[int, str]:
    """Return the names by number in a file, {} if it has none."""
    try:
        if os.stat(path).st_size > _LARGEST:
            return {}
        text = read_text(path, encoding, note)
        kind = extension(path)
        if kind == ".json":
            return _of_json(json.loads(text))
        return _of_csv(text) if kind == ".csv" else _of_lines(text)
    except (DataError, OSError, ValueError, RecursionError, csv.Error):
        return {}


def _of_json(value: Any) -> dict[int, str]:
    """Return the names of {"0": "cat"}, {"cat": 0}, ["cat", …] or {"0": ["n01440764", "tench"]}."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {number: clean_label(name) for number, name in enumerate(value)}
    if not isinstance(value, Mapping):
        return {}
    if all(isinstance(name, str) for name in value.values()) and all(map(_whole, value)):
        return {int(number): clean_label(name) for number, name in value.items()}
    if all(isinstance(number, int) and not isinstance(number, bool) for number in value.values()):
        return {number: clean_label(name) for name, number in value.items()}
    return {}


def _whole(text: str) -> bool:
    return re.fullmatch(r"\d{1,6}", text.strip()) is not None


def _of_csv(text: str) -> dict[int, str]:
    """Return the names of a table of two columns, a number and a name, in either order, with or without a header."""
    mark = max(",;\t", key=text.partition("\n")[0].count)
    rows = [
        [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=mark) if any(row)
    ]
    if not rows or any(len(row) != 2 for row in rows):
        return {}
    for number in (0, 1):
        body = rows if _whole(rows[0][number]) else rows[1:]
        if body and all(
            _whole(row[number]) and row[1 - number] and not _whole(row[1 - number]) for row in body
        ):
            names = {int(row[number]): clean_label(row[1 - number]) for row in body}
            return names if len(names) == len(body) else {}
    return {}


def _of_lines(text: str) -> dict[int, str]:
    """Return the names of lines `0 cat`, `0: cat`, or of one name a line from 0."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(\d{1,6})\s*[:,\s]\s*(\S.*)", line) for line in lines]
    if lines and all(pairs):
        return {int(pair[1]): clean_label(pair[2]) for pair in pairs if pair}
    if any(re.search(r"\d\s|\.\w{3,4}$", line) for line in lines):
        return {}
    return {number: clean_label(line) for number, line in enumerate(lines)}
