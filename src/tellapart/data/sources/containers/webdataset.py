"""WebDataset: tar shards in which the members `KEY.jpg` and `KEY.cls` (or `KEY.json`) are one sample.

A member's key is its path up to the first dot of its name, and members of one key follow one another
(https://github.com/webdataset/webdataset, "The WebDataset Format"). Knows nothing of where images are written.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tellapart.data.sources.archives import TAR_EXTENSIONS, check_end
from tellapart.data.sources.containers.records import Container, Found, Record, answer, listing_of
from tellapart.data.sources.folders.walk import IMAGE_EXTENSIONS
from tellapart.data.sources.listing import Listing, Note, printable, some, split_of_folders, split_of_stem
from tellapart.data.sources.lists import column_choice
from tellapart.data.sources.lists.column_choice import Columns
from tellapart.data.sources.lists.files import Table
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_CLASS = ("cls", "cls.txt", "class", "label", "target")
_JSON = ("label", "class", "category", "target", "class_name", "cls")
_NAMES = ("classnames.txt", "classes.txt", "labels.txt", "class_names.txt")
_PEEK = 64
_LARGEST_TEXT = 1 << 20
_LONG = 300  # characters of a text that is no label, but a caption
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(source: str) -> list[str]:
    """Return the shards that ``shards-{000..012}.tar`` names; [] if it has no braces."""
    found = _RANGE.search(source)
    if not found:
        return []
    first, last = int(found[1]), int(found[2])
    if last < first or last - first > 100_000:
        raise DataError(
            f"{printable(source)!r}: {found[0]} is not a range of shards; expected something like {{000..012}}."
        )
    names = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    return [source[: found.start()] + name + source[found.end() :] for name in names]


def is_tar(path: str) -> bool:
    """Return whether a file's name is that of a tar archive."""
    return path.lower().endswith(TAR_EXTENSIONS)


def is_webdataset(path: str, spec: DataSpec) -> bool:
    """Return whether a tar archive begins like a shard: images and their labels, member by member."""
    keys: dict[str, set[str]] = {}
    try:
        for key, suffix, content in _members(path, _PEEK, only=("json",)):
            labelled = suffix == "json" and {*_JSON, *spec.label_column}.intersection(_scalars(content))
            keys.setdefault(key, set()).add("json:label" if labelled else suffix)
    except (tarfile.TarError, EOFError, OSError, DataError):
        return False
    telling = {*_CLASS, "json:label", *spec.label_column}
    return any(telling & found and any(map(_is_image, found)) for found in keys.values())


def read_shards(root: str, shards: Sequence[str], spec: DataSpec, note: Note) -> Listing:
    """Return the listing of shards (paths relative to ``root``), whose names may say a split.

    Numbers become names if a file such as ``classnames.txt`` is beside the shards. Raises DataError for a damaged
    shard, a sample with several images, or if no sample has a label.
    """
    files = [os.path.join(root, shard) for shard in shards]
    splits = [split_of_folders(shard) or split_of_stem(shard) for shard in shards]
    if any(splits) and not all(splits):
        unknown = [shard for shard, split in zip(shards, splits, strict=True) if not split]
        raise DataError(f"The names of some shards in {printable(root)!r} say no split: {some(unknown)}.")
    names = _class_names(root)

    def find(said: Note) -> Found:
        table, members = _table(root, files, names)
        columns = column_choice.choose_beside(table, spec, [c for c in _CLASS if c in members][:1], said)
        if not columns.labels:
            raise DataError(
                f"{printable(table.path)!r}: no member or key of the samples is the label for certain (.cls, or label, "
                f"class, … in .json); --data.label-column names it. There are: {some(table.columns, 20)}."
            )
        records = _records(files, splits, table, columns, names, spec)
        return Found(records, names, bool(columns.group))

    return listing_of(Container("WebDataset", files, names, find), spec, note)


def _class_names(root: str) -> tuple[str, ...]:
    for name in _NAMES:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8-sig") as stream:
                    return tuple(line.strip() for line in stream if line.strip())
            except UnicodeDecodeError as error:
                raise DataError(f"{printable(path)!r} is not UTF-8: {error}.") from error
    return ()


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in IMAGE_EXTENSIONS


def _members(
    path: str, limit: int = 0, only: Sequence[str] = (), texts: bool = False
) -> Iterator[tuple[str, str, bytes]]:
    """Yield (key, suffix, content) of a shard's files.

    The content is that of ``only`` those suffixes, or of all but images (``texts``), if given; otherwise of all.
    """
    with tarfile.open(path, "r:*") as archive:
        seen = 0
        for member in archive:
            if not member.isreg():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not dot or not stem:  # hidden files, and files without a sample's key
                continue
            suffix = suffix.lower()
            if not _is_image(suffix) and member.size > _LARGEST_TEXT:
                continue
            content = b""
            if (not only or suffix in only) and not (texts and _is_image(suffix)):
                stream = archive.extractfile(member)
                content = b"" if stream is None else stream.read()
            yield f"{folder}/{stem}", suffix, content
            seen += 1
            if limit and seen >= limit:
                return
        check_end(archive)


def _table(root: str, files: Sequence[str], names: Sequence[str]) -> tuple[Table, set[str]]:
    """Return the texts and JSON values of all samples, and the members' suffixes; numbers of `.cls` become names."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    members: set[str] = set()
    for path in files:
        for _, parts in _samples(path, texts=True):
            rows.append((len(rows), _cells(parts, names)))
            members.update(parts)
    columns = dict.fromkeys(column for _, cells in rows for column in cells)
    return Table(files[0] if len(files) == 1 else root, list(columns), rows), members


def _cells(parts: Mapping[str, bytes], names: Sequence[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for suffix, content in parts.items():
        if suffix == "json" or _is_image(suffix):
            continue
        text = content.decode("utf-8", "backslashreplace").strip()
        if suffix in _CLASS and text.isdecimal() and int(text) < len(names):
            text = names[int(text)]
        if len(text) <= _LONG and "\0" not in text:
            cells[suffix] = text
    for key, value in _scalars(parts.get("json", b"")).items():
        cells[f"json.{key}" if key in parts else key] = value
    return cells


def _scalars(content: bytes) -> dict[str, Any]:
    """Return the short texts, whole numbers and truth values of a JSON member; {} where it is none."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, str | int) and len(str(value)) <= _LONG
    }


def _records(
    files: Sequence[str],
    splits: Sequence[str],
    table: Table,
    columns: Columns,
    names: Sequence[str],
    spec: DataSpec,
) -> Iterator[Record]:
    cells = iter(table.rows)
    for path, split in zip(files, splits, strict=True):
        for key, parts in _samples(path):
            where = f"{printable(path)}, sample {printable(key.lstrip('/'))}"
            image = _image(parts, where, spec)
            found = answer(next(cells)[1], columns, split, where)
            if found.label and len(columns.labels) == 1:
                found.label, found.problem = _name(found.label, names, where)
            if not image:
                found.problem = "samples without an image"
            found.content, found.name = parts.get(image, b""), f"{key}.{image}"
            yield found


def _image(parts: Mapping[str, bytes], where: str, spec: DataSpec) -> str:
    """Return the member that is the image, "" if there is none."""
    images = [suffix for suffix in parts if _is_image(suffix)]
    wanted = spec.path_column.lower().lstrip(".")
    if wanted:
        if wanted not in parts:
            raise DataError(
                f"data.path_column is {spec.path_column!r}, and {where} has no such member. It has: {some(parts)}."
            )
        return wanted
    if len(images) > 1:
        raise DataError(
            f"{where}: several images ({some(images)}); expected one image for each sample. --data.path-column names "
            "the member that is it."
        )
    return images[0] if images else ""


def _samples(path: str, texts: bool = False) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, content by suffix) of a shard; with ``texts`` without the images' content. Raises DataError."""
    current = ""
    parts: dict[str, bytes] = {}
    try:
        for key, suffix, content in _members(path, texts=texts):
            if key != current and parts:
                yield current, parts
                parts = {}
            current = key
            if suffix in parts:
                raise DataError(f"{printable(path)!r} has {printable(key)}.{suffix} twice in one sample.")
            parts[suffix] = content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"The shard {printable(path)!r} is damaged: {error}.") from error
    if parts:
        yield current, parts


def _name(label: str, names: Sequence[str], where: str) -> tuple[str, str]:
    if not names or not label or label in names:
        return label, "" if label else "no label (.cls, .json)"
    if label == "-1":
        return "", "no label (-1)"
    if not label.isdecimal() or int(label) >= len(names):
        raise DataError(
            f"{where}: the label is {printable(label)!r}, which is not one of the {len(names)} class names."
        )
    return names[int(label)], ""
