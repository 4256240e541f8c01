"""Records of a container, written once into the cache folder as image files with an index.

The index holds path, label and split of every image, the official class names, and what there is to tell. Knows
no format: a reader gives an iterator of records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tellapart.data.sources.archives import cache_folder, fresh_folder
from tellapart.data.sources.listing import Listing, Note, clean_label, many, printable
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_INDEX = "index.jsonl"
_VERSION = 1
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_SHARE = 0.9  # of the free disk space may be written


@dataclass
class Record:
    """One image: its encoded bytes, its label ("" where it has none), its split and its name ("" where unknown).

    ``problem`` says why the label cannot be used, where it cannot; such a record is counted, never guessed.
    """

    content: bytes
    label: str = ""
    split: str = ""
    name: str = ""
    problem: str = ""


@dataclass
class Container:
    """What a reader found before it reads the images: the files, and the official class names, if any."""

    kind: str
    files: Sequence[str]
    classes: tuple[str, ...] = ()
    choices: tuple[str, ...] = field(default=())  # what else changes the records: names of columns


def listing_of(container: Container, records: Iterable[Record], spec: DataSpec, note: Note) -> Listing:
    """Return the listing of a container, writing its images into the cache folder where that was not done.

    The folder's name is a hash of the files' paths, sizes and times of change and of ``choices``. It appears
    whole or not at all. Raises DataError where the disk is too small or where no record has a label.
    """
    cache = cache_folder(spec)
    target = os.path.join(cache, "archives", _folder_name(container))
    if not os.path.isdir(target):
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            free = shutil.disk_usage(cache).free
        except OSError as error:
            raise DataError(f"Nothing can be unpacked into {printable(cache)!r}: {error}.") from error
        first = printable(container.files[0])
        note(f"Unpacking the images of {first} ({container.kind}) into {printable(target)}.")
        with fresh_folder(target) as temporary:
            _write(container, records, temporary, int(free * _SHARE))
    return _read_index(target, note)


def _folder_name(container: Container) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for text in (str(_VERSION), container.kind, *container.choices):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    for path in container.files:
        status = os.stat(path)
        digest.update(os.path.abspath(path).encode("utf-8", "surrogateescape"))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    stem = re.sub(r"[^\w.-]", "_", printable(os.path.basename(container.files[0])))[:80]
    return f"{stem}-{digest.hexdigest()}"


def _write(container: Container, records: Iterable[Record], folder: str, limit: int) -> None:
    written, number = 0, 0
    problems: Counter[str] = Counter()
    with open(os.path.join(folder, _INDEX), "w", encoding="utf-8", errors="surrogateescape") as index:
        index.write(json.dumps({"classes": container.classes}) + "\n")
        for number, record in enumerate(records):
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
            index.write(json.dumps([path, clean_label(record.label), record.split]) + "\n")
        for problem, count in sorted(problems.items()):
            index.write(json.dumps({"note": f"Left out {many(count, 'image')}: {problem}."}) + "\n")


def _place(number: int, record: Record) -> str:
    """Return the relative path of an image: numbered, so that no name of a stranger's file decides it."""
    name = printable(record.name.replace("\\", "/").rpartition("/")[2])
    stem = re.sub(r"[^\w.-]", "_", _SUFFIX.sub("", name)).strip(".")[:60]
    found = _SUFFIX.search(name)
    suffix = found[0].lower() if found else ""
    return f"{record.split or 'all'}/{number // 1000:05d}/{number:08d}{'-' + stem if stem else ''}{suffix}"


def _read_index(folder: str, note: Note) -> Listing:
    listing = Listing(root=folder)
    for row in _lines(os.path.join(folder, _INDEX)):
        if isinstance(row, list):
            listing.add(*row)
        elif "classes" in row:
            listing.classes = tuple(row["classes"])
        else:
            note(row["note"])
    return listing


def _lines(path: str) -> Iterator[list[str] | dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            yield json.loads(line)
