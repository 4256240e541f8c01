"""Label Studio's exports: JSON, JSON-MIN and CSV.

Finished annotations count; predictions and cancelled (skipped) ones do not, and a task without a finished one says
nothing of its image. Annotators who disagree give an image two labels, or two sets of labels, which is a conflict.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tellapart.data.sources.annotations.entries import (
    NO_BOX,
    Box,
    Entry,
    Files,
    around,
    attempt,
    image_like,
    label_of,
    number,
    turned,
)
from tellapart.data.sources.listing import printable, some
from tellapart.errors import DataError

_ABOUT = ("annotation_id", "annotator", "created_at", "updated_at", "lead_time", "agreement")
_NEEDED = 2  # of those, the first among them, with an image


def is_full(value: Any) -> bool:
    """Return whether a JSON value is an export with tasks and their annotations."""
    return _all_objects(value) and all(
        isinstance(task.get("data"), dict)
        and isinstance(task.get("annotations", task.get("completions")), list)
        for task in value
    )


def is_min(value: Any) -> bool:
    """Return whether a JSON value is a JSON-MIN export."""
    return _all_objects(value) and all(is_header(list(row)) and _image_of(row) is not None for row in value)


def is_header(columns: Sequence[str]) -> bool:
    """Return whether these are the columns of a CSV export."""
    return _ABOUT[0] in columns and sum(key in columns for key in _ABOUT) >= _NEEDED


def _all_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _image_of(row: Mapping[str, Any]) -> str | None:
    for key in ("image", "img", "photo", "picture", *row):
        if isinstance(row.get(key), str) and (key == "image" or image_like(row[key])):
            return str(row[key])
    return None


def read_json(files: Files, source: str, questions: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of a JSON or JSON-MIN export; ``questions``: the control tags whose answer is the label."""
    value = files.json(source)
    if is_full(value):
        yield from _full(value, source, questions)
    elif is_min(value):
        yield from _rows(value, source, questions)


def read_csv(files: Files, source: str, questions: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of a CSV (or TSV) export."""
    text = files.text(source)
    delimiter = "\t" if source.lower().endswith(".tsv") else ","
    rows = [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)]
    for row in rows:
        row.pop(None, None)  # cells beyond the header's
    yield from _rows(rows, source, questions)


def _full(tasks: Sequence[Mapping[str, Any]], source: str, questions: Sequence[str]) -> Iterator[Entry]:
    results = {
        str(result.get("from_name"))
        for task in tasks
        for annotation in _annotations(task)
        for result in _results(annotation)
        if _labels(result) is not None
    }
    chosen = _chosen(sorted(results), questions, source)
    for task in tasks:
        if not _annotations(task):  # waits to be annotated, or was skipped
            continue
        entry = Entry(source, _image_of(task["data"]) or "", relative=True)
        where = f"{printable(source)}, {printable(entry.image)!r}"

        def read(task: Mapping[str, Any] = task, entry: Entry = entry, where: str = where) -> None:
            for annotation in _annotations(task):
                if annotation.get("result") and not _results(annotation):
                    raise DataError(f"{where}: the result is not a list of objects.")
                answers = [one for one in _results(annotation) if str(one.get("from_name")) in chosen]
                names = [_add(entry, one.get("value"), _labels(one), where) for one in answers]
                if answers or not _results(annotation):  # else it answers another question
                    entry.opinions.append(frozenset().union(*names))

        yield attempt(entry, read)


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = task.get("annotations", task.get("completions"))
    items = found if isinstance(found, list) else []
    return [item for item in items if isinstance(item, dict) and not item.get("was_cancelled")]


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = annotation.get("result")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _labels(result: Mapping[str, Any]) -> list[Any] | None:
    """Return the labels of a result, None for one that gives none (a text, a rating)."""
    value = result.get("value")
    if not isinstance(value, dict):
        return None
    kind = str(result.get("type", ""))
    for key in (kind, "choices", "taxonomy", *(name for name in value if name.endswith("labels"))):
        if isinstance(value.get(key), list) and key not in ("text", "points"):
            found: list[Any] = value[key]
            return found
    return None


def _chosen(found: Sequence[str], questions: Sequence[str], source: str) -> set[str]:
    wanted = [name for name in questions if name in found]
    if questions and not wanted:
        raise DataError(
            f"data.label-column is {', '.join(questions)!r}, and {printable(source)!r} has no such control. It has: "
            f"{some(found)}."
        )
    if len(found) > 1 and not wanted:
        raise DataError(
            f"{printable(source)!r} answers {len(found)} questions for each image ({some(found)}); name the one that "
            "is the class with --data.label-column."
        )
    return set(wanted or found)


def _add(entry: Entry, value: Any, labels: Sequence[Any] | None, where: str) -> set[str]:
    """Put an answer's labels into the entry; return them."""
    found = set()
    for label in labels or ():
        name = "/".join(map(str, label)) if isinstance(label, list) else label
        box = _box(value, where)
        if box is None:
            entry.tags.append(label_of(name, where))
        else:
            entry.objects.append((label_of(name, where), box))
        found.add(label_of(name, where))
    return found


def _box(value: Mapping[str, Any], where: str) -> Box | None:
    """Return a region's box as parts of the image, None for an answer about the whole image."""
    if isinstance(value.get("points"), list):
        points = [point for point in value["points"] if isinstance(point, list) and len(point) == 2]
        box = around((p[0] for p in points), (p[1] for p in points), where)
    elif "radiusX" in value:
        x, y, a, b = (number(value.get(key), where) for key in ("x", "y", "radiusX", "radiusY"))
        box = (x - a, y - b, x + a, y + b)
    elif "width" in value and "height" in value and "x" in value:
        x, y, w, h = (number(value.get(key), where) for key in ("x", "y", "width", "height"))
        box = turned((x, y, x + w, y + h), number(value.get("rotation") or 0, where), (x, y))
    elif "choices" in value or "taxonomy" in value:
        return None
    else:
        return NO_BOX
    return box[0] / 100, box[1] / 100, box[2] / 100, box[3] / 100


def _rows(rows: Sequence[Mapping[str, Any]], source: str, questions: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of rows with an image, and a column for each question."""
    if not rows:
        return
    images = [_image_of(row) or "" for row in rows]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in (*_ABOUT, "id")]
    answers = [
        key
        for key in columns
        if any(row.get(key) for row in rows)
        and not any(
            str(row.get(key) or "") == image for row, image in zip(rows, images, strict=True) if image
        )
    ]
    usual = [key for key in answers if key in ("choice", "label", "class", "tag")]
    if len(answers) > 1 and len(usual) == 1 and not questions:
        answers = usual
    chosen = _chosen(answers, questions, source)
    for row, image in zip(rows, images, strict=True):
        if row.get(_ABOUT[0]) in (None, ""):  # no annotation: the task waits
            continue
        entry = Entry(source, image, relative=True)
        where = f"{printable(source)}, {printable(image)!r}"

        def read(row: Mapping[str, Any] = row, entry: Entry = entry, where: str = where) -> None:
            names: set[str] = set()
            for key in chosen:
                for value in _answers(row.get(key)):
                    labels = value.get("choices") or next(
                        (v for k, v in value.items() if k.endswith("labels")), None
                    )
                    names |= _add(entry, value, labels if isinstance(labels, list) else [labels], where)
            entry.opinions.append(frozenset(names))

        yield attempt(entry, read)


def _answers(cell: Any) -> list[Mapping[str, Any]]:
    """Return a cell's answers as Label Studio's values: a word, or JSON of choices or regions."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    if isinstance(cell, dict):
        return [cell]
    if isinstance(cell, list):
        if all(isinstance(item, dict) for item in cell):
            return cell
        return [{"choices": cell}]
    return [{"choices": [cell]}] if cell not in (None, "") else []
