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

from tellapart.data.sources.archives import TAR_EXTENSIONS, check_end
from tellapart.data.sources.containers.records import Container, Record, listing_of
from tellapart.data.sources.folders.walk import IMAGE_EXTENSIONS
from tellapart.data.sources.listing import Listing, Note, printable, some, split_of_folders, split_of_stem
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_CLASS = ("cls", "cls.txt", "class", "label", "target")
_JSON = ("label", "class", "category", "target", "class_name", "cls")
_NAMES = ("classnames.txt", "classes.txt", "labels.txt", "class_names.txt")
_PEEK = 64
_LARGEST_TEXT = 1 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(source: str) -> list[str]:
    """Return the shards that ``shards-{000..012}.tar`` names; [] where there are no such braces."""
    found = _RANGE.search(source)
    if not found:
        return []
    first, last = int(found[1]), int(found[2])
    if last < first or last - first > 100_000:
        raise DataError(
            f"{printable(source)!r}: {found[0]} is no range of shards; expected like {{000..012}}."
        )
    names = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    return [source[: found.start()] + name + source[found.end() :] for name in names]


def is_tar(path: str) -> bool:
    """Return whether a file's name is that of a tar archive."""
    return path.lower().endswith(TAR_EXTENSIONS)


def is_webdataset(path: str) -> bool:
    """Return whether a tar archive begins like a shard: images and their labels, member by member."""
    keys: dict[str, set[str]] = {}
    try:
        for key, suffix, _ in _members(path, _PEEK, only=("json",)):
            keys.setdefault(key, set()).add(suffix)
    except (tarfile.TarError, EOFError, OSError, DataError):
        return False
    labelled = [found for found in keys.values() if any(name in found for name in (*_CLASS, "json:label"))]
    return any(any(map(_is_image, found)) for found in labelled)


def read_shards(root: str, shards: Sequence[str], spec: DataSpec, note: Note) -> Listing:
    """Return the listing of shards (paths relative to ``root``), whose names may say a split.

    Numbers become names where a file such as ``classnames.txt`` lies beside. Raises DataError for a damaged
    shard, a sample with several images, and where no sample has a label.
    """
    files = [os.path.join(root, shard) for shard in shards]
    splits = [split_of_folders(shard) or split_of_stem(shard) for shard in shards]
    if any(splits) and not all(splits):
        unknown = [shard for shard, split in zip(shards, splits, strict=True) if not split]
        raise DataError(f"The names of some shards in {printable(root)!r} say no split: {some(unknown)}.")
    names = _class_names(root)
    container = Container("WebDataset", files, names)
    return listing_of(container, _records(files, splits, names), spec, note)


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


def _members(path: str, limit: int = 0, only: Sequence[str] = ()) -> Iterator[tuple[str, str, bytes]]:
    """Yield (key, suffix, content) of a shard's files; with ``only`` the content of those suffixes alone.

    While peeking (``limit``), a JSON member with a label has the suffix ``json:label``.
    """
    with tarfile.open(path, "r:*") as archive:
        seen = 0
        for member in archive:
            if not member.isreg():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not dot or not stem:  # hidden files, and files that name no part of a sample
                continue
            suffix = suffix.lower()
            if not _is_image(suffix) and member.size > _LARGEST_TEXT:
                continue
            content = b""
            if not only or suffix in only:
                stream = archive.extractfile(member)
                content = b"" if stream is None else stream.read()
            if limit and suffix == "json" and _json_label(content):
                suffix = "json:label"
            yield f"{folder}/{stem}", suffix, content
            seen += 1
            if limit and seen >= limit:
                return
        check_end(archive)


def _records(files: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> Iterator[Record]:
    for path, split in zip(files, splits, strict=True):
        try:
            for key, parts in _samples(path):
                yield _record(key, parts, split, names, path)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"The shard {printable(path)!r} is damaged: {error}.") from error


def _samples(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    current = ""
    parts: dict[str, bytes] = {}
    for key, suffix, content in _members(path):
        if key != current and parts:
            yield current, parts
            parts = {}
        current = key
        if suffix in parts:
            raise DataError(f"{printable(path)!r} has {printable(key)}.{suffix} twice in one sample.")
        parts[suffix] = content
    if parts:
        yield current, parts


def _record(key: str, parts: Mapping[str, bytes], split: str, names: Sequence[str], path: str) -> Record:
    where = f"{printable(path)}, sample {printable(key.lstrip('/'))}"
    images = [suffix for suffix in parts if _is_image(suffix)]
    if len(images) > 1:
        raise DataError(f"{where}: several images ({some(images)}); expected one image for each sample.")
    if not images:
        return Record(b"", problem="samples without an image")
    label, problem = _name(_label(parts), names, where)
    return Record(parts[images[0]], label, split, f"{key}.{images[0]}", problem)


def _label(parts: Mapping[str, bytes]) -> str:
    for suffix in _CLASS:
        if suffix in parts:
            return parts[suffix].decode("utf-8", "backslashreplace").strip()
    return _json_label(parts["json"]) if "json" in parts else ""


def _json_label(content: bytes) -> str:
    """Return the label in a JSON member: a text or a whole number under a usual name; else ""."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(record, dict):
        return ""
    for name in _JSON:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value).strip()
    return ""


def _name(label: str, names: Sequence[str], where: str) -> tuple[str, str]:
    if not names or not label or label in names:
        return label, "" if label else "no label (.cls, .json)"
    if label == "-1":
        return "", "no label (-1)"
    if not label.isdecimal() or int(label) >= len(names):
        raise DataError(
            f"{where}: the label is {printable(label)!r}, which is none of the {len(names)} class names beside."
        )
    return names[int(label)], ""
