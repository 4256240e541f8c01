"""Which annotation format a folder or a file is in, by its content. Reads no more than necessary."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tellapart.data.sources.annotations import json_files, label_studio, retinanet, via, xml_files, yolo
from tellapart.data.sources.annotations.entries import Files
from tellapart.data.sources.annotations.index import ImageIndex
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.errors import DataError

TITLES = {
    "voc": "Pascal VOC",
    "createml": "CreateML",
    "yolo": "YOLO",
    "coco": "COCO",
    "cvat": "CVAT",
    "label-studio": "Label Studio",
    "labelme": "labelme",
    "via": "VIA",
    "retinanet": "RetinaNet",
}
FORMATS = tuple(TITLES)
_LOOKS = 20  # files of each kind
_HEAD = 1 << 16
_WORDS = {  # of files that cannot be parsed
    "coco": ('"images"', '"file_name"'),
    "labelme": ('"shapes"', '"version"'),
    "label-studio": ('"result"', '"from_name"'),
    "via": ('"regions"', '"filename"'),
    "createml": ('"annotations"', '"label"', '"image"'),
}


def detect(tree: Tree) -> list[str]:
    """Return the annotation formats that a folder holds, the one to read first."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in tree.others:
        kinds[extension(path)].append(path)
    found: dict[str, None] = {}
    index = ImageIndex(tree.images)
    for kind in (".xml", ".json", ".csv", ".tsv"):
        paired = [path for path in kinds[kind] if index.beside_or_twin(path)]
        alone = sorted(set(kinds[kind]) - set(paired), key=lambda path: (path.count("/"), path))
        for path in alone[:_LOOKS] + paired[:_LOOKS]:
            found |= dict.fromkeys({file_format(os.path.join(tree.root, path))} - {""})
    if kinds[".txt"]:
        beside = (os.path.join(tree.root, path) for path in kinds[".txt"] if index.beside_or_twin(path))
        filled = [path for path in itertools.islice(beside, _LOOKS) if os.stat(path).st_size]
        if 2 * sum(map(yolo.looks_like_yolo, filled)) > len(filled):
            found["yolo"] = None
    return list(found)


def file_format(path: str) -> str:
    """Return the annotation format of an XML, JSON, CSV or TSV file, "" for none.

    A JSON file that is damaged, or in an encoding that is not known, is of the format whose keywords it contains:
    reading it will say what is wrong.
    """
    kind = extension(path)
    if kind == ".xml":
        return {"annotation": "voc", "annotations": "cvat", "": ""}[xml_files.root_name(path)]
    if kind == ".json":
        return _json_format(path)
    return _table_format(path) if kind in (".csv", ".tsv") else ""


def _json_format(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
        start = head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
        if start not in (b"{", b"["):
            return ""
        value = Files("").json(path)
    except DataError:
        return next((name for name, words in _WORDS.items() if all(w in _ascii(head) for w in words)), "")
    except OSError:
        return ""
    tests: dict[str, Callable[[Any], bool]] = {
        "coco": json_files.is_coco,
        "createml": json_files.is_createml,
        "labelme": json_files.is_labelme,
        "label-studio": lambda value: label_studio.is_full(value) or label_studio.is_min(value),
        "via": lambda value: via.images_of(value) is not None or via.is_version_3(value),
    }
    return next((name for name, fits in tests.items() if fits(value)), "")


def _ascii(head: bytes) -> str:
    """Return what of a file's first bytes is ASCII in whatever encoding they are, with something for the rest."""
    return head.replace(b"\0", b"").decode("latin-1").lstrip("\xef\xbb\xbf\xff\xfe")


def _table_format(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            text = _ascii(stream.read(_HEAD))
    except OSError:
        return ""
    whole, end, _ = text.rpartition("\n")
    delimiter = "\t" if extension(path) == ".tsv" else ","
    reader = csv.reader(io.StringIO(whole + end or text, newline=""), delimiter=delimiter)
    try:
        rows = list(itertools.islice(reader, _LOOKS))
    except csv.Error:
        return ""
    first = [cell.strip() for cell in rows[0]] if rows else []
    if first and [first[0].lstrip("#"), *first[1:]] == list(via.HEADER):
        return "via"
    if label_studio.is_header(first):
        return "label-studio"
    return "retinanet" if retinanet.looks_like(rows) else ""
