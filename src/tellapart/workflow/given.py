"""Python objects as data: read with progress, named in the spec, and required again when a run is resumed."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tellapart import runs, tables
from tellapart.data.samples import LEFT_OUT, SPLITS, Samples
from tellapart.data.sources import opening
from tellapart.data.sources.objects import Objects, explain, is_objects, take
from tellapart.errors import RunError
from tellapart.spec import DataSpec, Spec, to_dict
from tellapart.tracking import Console


def open_data(
    spec: DataSpec,
    given: Objects | None,
    console: Console,
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
) -> Samples:
    """Return the samples of a source or of objects, which are read once for it (see `opening.open_source`)."""
    if given is not None:
        with console.busy("Reading images and labels", len(given)) as busy:
            given.look(spec, busy.advance)
    return opening.open_source(spec, say, warn, given)


def named(
    data: Any, val: Any = None, test: Any = None, classes: Iterable[str] | None = None
) -> tuple[Objects | None, dict[str, Any]]:
    """Return the objects that are given as data, if any, and the fields of the data section that are given with it.

    ``data``: a path or a name; objects as for `train`; a ``Spec``, a ``DataSpec``, or a mapping of its fields such as
    ``{"source": "photos.csv", "label_column": "kind"}``. A mapping of splits alone is objects. Raises DataError.
    """
    fields = _fields(data)
    objects = take((fields or {}).get("source") if fields is not None else data, val, test, classes)
    if objects is not None:
        return objects, {"source": objects.name}
    if fields is not None:
        return None, fields
    return None, {} if data is None else {"source": os.fspath(data)}


def _fields(data: Any) -> dict[str, Any] | None:
    """Return the fields that a section, or a mapping that is no mapping of splits, gives; None for anything else."""
    if isinstance(data, Spec):
        data = data.data
    if isinstance(data, DataSpec):
        default = to_dict(DataSpec())
        return {
            name: value for name, value in to_dict(data).items() if name == "source" or value != default[name]
        }
    if not isinstance(data, Mapping):
        return None
    known = {field.name for field in dataclasses.fields(DataSpec)}
    return dict(data) if set(data) <= known and set(data) - set(SPLITS) else None


def write(folder: Path, given: Objects | None) -> None:
    """Record what the user said about the objects of a new run, so that it need not be said again."""
    if given is not None:
        runs.write_json(folder / runs.OBJECTS_FILE, {"source": given.name, "classes": list(given.classes)})


def again(
    folder: Path, source: str, data: Any, val: Any, test: Any, classes: Iterable[str] | None
) -> Objects | None:
    """Return the objects with which a run is resumed; None for a run on files. Raises RunError."""
    given = any(value is not None for value in (data, val, test))
    if not is_objects(source):
        if given:
            raise RunError(
                f"{folder} was trained on {source}, which is read again: resume it without data, val or test."
            )
        return None
    if not given:
        raise RunError(f"{folder} cannot be resumed without its data. {explain(source)}")
    if isinstance(data, (str, os.PathLike)):
        raise RunError(f"{folder} was trained on an object, and data is a path. {explain(source)}")
    if classes is None:
        stored = runs.read_json(folder / runs.OBJECTS_FILE).get("classes")
        classes = stored if isinstance(stored, list) and stored else None
    return take(data, val, test, classes)


def check_same(folder: Path, source: str, given: Objects | None, samples: Samples) -> None:
    """Raise RunError if objects are not those that the run began with: others, or with different content."""
    path = folder / runs.SAMPLES_FILE
    if given is None or not path.is_file():
        return
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        try:
            before = {row["path"]: row for row in tables.rows(stream)}
        except (KeyError, csv.Error):
            return  # the error comes when the tables are compared
    found = _difference(before, samples)
    if found:
        began = f"It began with {source}; this is {given.name}."
        raise RunError(
            f"This is not the data that {folder} began with: {found}. {began} Give the same data, or start a new run."
        )


def _difference(before: Mapping[str, Mapping[str, str]], samples: Samples) -> str:
    """Return in words the first difference between a run's table and ``samples``, "" if there is none."""
    now = {str(path): row for row, path in enumerate(samples.paths) if samples.splits[row] != LEFT_OUT}
    hashes = None if samples.items is None else samples.items.hashes
    gone = [path for path in before if path not in now]
    if gone:
        return f"{len(gone):,} of its {len(before):,} images are missing, the first: {gone[0]}"
    fresh = [path for path in now if path not in before]
    if hashes is not None and samples.keys is not None:  # images that were bad at the time are in no table
        fresh = [path for path in fresh if hashes[int(samples.keys[now[path]])]]
    if fresh and hashes is not None:
        return f"{len(fresh):,} images are new, the first: {fresh[0]}"
    changed: dict[str, list[str]] = {"label": [], "split": [], "content": []}
    for path, old in before.items():
        row = now[path]
        label = old.get("label", old.get("labels"))
        if samples.label_text(row) != label:
            changed["label"].append(f"{path} was {label!r} and is {samples.label_text(row)!r}")
        elif samples.splits[row] != old["split"]:
            changed["split"].append(f"{path} was in {old['split']} and is in {samples.splits[row]}")
        elif (
            hashes is not None and samples.keys is not None and hashes[int(samples.keys[row])] != old["hash"]
        ):
            changed["content"].append(path)
    for what, places in changed.items():
        if places:
            return f"{len(places):,} of its {len(before):,} images have a different {what}, the first: {places[0]}"
    return ""


def several(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return what was given where one name, or a sequence of names, may be."""
    return (value,) if isinstance(value, str) else tuple(value)
