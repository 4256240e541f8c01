"""Records of a container, written once into the cache folder as image files with an index.

The index holds path, label, split and group of every image, the official class names, and the messages.
Knows no format: a reader chooses the columns and gives an iterator of records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.sources.archives import cache_folder, fresh_folder
from tellapart.data.sources.listing import Listing, Note, clean_label, many, printable
from tellapart.data.sources.lists import column_choice, files
from tellapart.data.sources.lists.column_choice import Columns
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_INDEX = "index.jsonl"
_VERSION = 2
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_SHARE = 0.9  # share of the free disk space that may be written


@dataclass
class Record:
    """One image: its encoded bytes, its label ("" for none), its split, its name and its group.

    ``problem`` says why the label cannot be used, if it cannot; those records are counted, never guessed.
    """

    content: bytes
    label: str = ""
    split: str = ""
    name: str = ""
    problem: str = ""
    group: str = ""


@dataclass(frozen=True)
class Found:
    """What a reader chose: the records, the official class names, if any, and whether there are groups."""

    records: Iterable[Record]
    classes: tuple[str, ...] = ()
    grouped: bool = False


@dataclass(frozen=True)
class Container:
    """Files of images with labels. ``choices``: what else than the files and the options changes the records.

    ``find`` chooses the columns, with messages, and opens the records; it is called if they are not unpacked yet.
    """

    kind: str
    files: Sequence[str]
    choices: tuple[str, ...]
    find: Callable[[Note], Found]


def answer(row: Mapping[str, Any], columns: Columns, split: str, where: str) -> Record:
    """Return the record of a row's cells, without its image; ``split`` is that of the file."""
    given = (columns.splits or {}).get(files.cell(row, columns.split), "")
    labels = column_choice.labels_of(row, columns, where)
    problem = "" if len(labels) == 1 else "several labels" if labels else "no label"
    if labels and labels[0] in column_choice.MISSING and len(columns.labels) == 1:
        problem = f"no label is known ({labels[0]})"
    group = files.cell(row, columns.group)
    return Record(b"", "" if problem else labels[0], given or split, problem=problem, group=group)


def listing_of(container: Container, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of a container, writing its images into the cache folder if that was not done.

    The folder's name is a hash of the files' paths, sizes and modification times and of the options that choose the
    columns. It appears whole or not at all. Raises DataError if the disk is too small or no record has a label.
    """
    cache = cache_folder(spec)
    target = os.path.join(cache, "archives", _folder_name(container, spec))
    if not os.path.isdir(target):
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            free = shutil.disk_usage(cache).free
        except OSError as error:
            raise DataError(f"Nothing can be unpacked into {printable(cache)!r}: {error}.") from error
        first = printable(container.files[0])
        note(f"Unpacking the images of {first} ({container.kind}) into {printable(target)}.")
        said: list[str] = []
        found = container.find(said.append)
        with fresh_folder(target) as temporary:
            _write(container, found, said, temporary, int(free * _SHARE))
    return _read_index(target, note)


def _folder_name(container: Container, spec: DataSpec) -> str:
    digest = hashlib.blake2b(digest_size=6)
    options = (spec.path_column, repr(spec.label_column), spec.split_column, spec.group)
    for text in (str(_VERSION), container.kind, *container.choices, *options):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    for path in container.files:
        status = os.stat(path)
        digest.update(os.path.abspath(path).encode("utf-8", "surrogateescape"))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    stem = re.sub(r"[^\w.-]", "_", printable(os.path.basename(container.files[0])))[:80]
    return f"{stem}-{digest.hexdigest()}"


def _write(container: Container, found: Found, said: Sequence[str], folder: str, limit: int) -> None:
    written, number = 0, 0
    problems: Counter[str] = Counter()
    with open(os.path.join(folder, _INDEX), "w", encoding="utf-8", errors="surrogateescape") as index:
        index.write(json.dumps({"classes": found.classes, "grouped": found.grouped}) + "\n")
        for text in said:
            index.write(json.dumps({"note": text}) + "\n")
        for number, record in enumerate(found.records):
            if record.problem or not record.label:
                problems[record.problem or "no label"] += 1
                continue
            written += len(record.content)
            if written > limit:
                raise DataError(
                    f"{printable(container.files[0])!r} unpacks to more than {limit:,} bytes, which is the "
                    "bound for the free disk space there; --data.cache-dir chooses another disk."
                )
            path = _place(number, record)
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            with open(os.path.join(folder, path), "wb") as sink:
                sink.write(record.content)
            index.write(json.dumps([path, clean_label(record.label), record.split, record.group]) + "\n")
        for problem, count in sorted(problems.items()):
            index.write(json.dumps({"note": f"Left out {many(count, 'image')}: {problem}."}) + "\n")


def _place(number: int, record: Record) -> str:
    """Return the relative path of an image: numbered, so that no name from a stranger's file decides it."""
    name = printable(record.name.replace("\\", "/").rpartition("/")[2])
    stem = re.sub(r"[^\w.-]", "_", _SUFFIX.sub("", name)).strip(".")[:60]
    found = _SUFFIX.search(name)
    suffix = found[0].lower() if found else ""
    return f"{record.split or 'all'}/{number // 1000:05d}/{number:08d}{'-' + stem if stem else ''}{suffix}"


def _read_index(folder: str, note: Note) -> Listing:
    listing = Listing(root=folder)
    for row in _lines(os.path.join(folder, _INDEX)):
        if isinstance(row, list):
            listing.add(*row[:3])
            if listing.groups is not None:
                listing.groups.append(row[3])
        elif "classes" in row:
            listing.classes = listing.numbered = tuple(row["classes"])
            listing.groups = [] if row["grouped"] else None
        else:
            note(row["note"])
    return listing


def _lines(path: str) -> Iterator[list[str] | dict[str, Any]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            yield json.loads(line)
