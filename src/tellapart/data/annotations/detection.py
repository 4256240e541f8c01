"""Which annotation format a folder or a file is in, by its content. Reads no more than it must to know."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections import defaultdict

from tellapart.data.annotations import json_files, label_studio, retinanet, via, xml_files, yolo
from tellapart.data.annotations.entries import Files
from tellapart.data.annotations.index import ImageIndex
from tellapart.data.folders import Tree, extension
from tellapart.data.text import DEFAULT
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


def detect(tree: Tree, encoding: str = DEFAULT) -> str:
    """Return the annotation format that a folder holds, or "" for none."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in tree.others:
        kinds[extension(path)].append(path)
    for kind in (".xml", ".json", ".csv", ".tsv"):
        for path in kinds[kind][:_LOOKS]:
            found = file_format(os.path.join(tree.root, path), encoding)
            if found:
                return found
    if not kinds[".txt"]:
        return ""
    index = ImageIndex(tree.images)
    paired = (os.path.join(tree.root, path) for path in kinds[".txt"] if index.beside_or_twin(path))
    filled = [path for path in itertools.islice(paired, _LOOKS) if os.stat(path).st_size]
    return "yolo" if 2 * sum(map(yolo.looks_like_yolo, filled)) > len(filled) else ""


def file_format(path: str, encoding: str = DEFAULT) -> str:
    """Return the annotation format of an XML, JSON, CSV or TSV file, "" for none."""
    kind = extension(path)
    if kind == ".xml":
        return {"annotation": "voc", "annotations": "cvat", "": ""}[xml_files.root_name(path)]
    if kind == ".json":
        return _json_format(path, encoding)
    return _table_format(path, encoding) if kind in (".csv", ".tsv") else ""


def _json_format(path: str, encoding: str) -> str:
    try:
        with open(path, "rb") as stream:
            head = stream.read(64).lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")
        if head[:1] not in (b"{", b"["):
            return ""
        value = Files("", encoding).json(path)
    except (DataError, OSError):
        return ""
    tests = {
        "coco": json_files.is_coco,
        "createml": json_files.is_createml,
        "labelme": json_files.is_labelme,
        "label-studio": lambda value: label_studio.is_full(value) or label_studio.is_min(value),
        "via": lambda value: via.images_of(value) is not None or via.is_version_3(value),
    }
    return next((name for name, fits in tests.items() if fits(value)), "")


def _table_format(path: str, encoding: str) -> str:
    try:
        text = Files("", encoding).text(path)
    except DataError:
        return ""
    delimiter = "\t" if extension(path) == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
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
