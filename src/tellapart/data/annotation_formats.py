"""Annotation files: Pascal VOC XML, CreateML JSON, YOLO text and COCO JSON, each parsed to the same entries.

One parser for each format, from a file's text to which image has which labels and boxes. Knows nothing of
splits, conflicts or which image file is meant, and opens no image.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from tellapart import yaml_text
from tellapart.data.listing import NO_BOX, Box, clean_label, printable
from tellapart.errors import DataError

Labelled = tuple[str, Box]
_LINE = re.compile(r"\d+(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?){4,}")


@dataclass
class Entry:
    """What one annotation file says of one image.

    ``source``: the annotation file; ``image``: the name that it gives the image; ``objects``: (label, box),
    boxes in pixels as x0, y0, x1, y1, or as parts of width and height if ``relative``; the NO_BOX for the
    whole image.
    """

    source: str
    image: str
    objects: list[Labelled] = field(default_factory=list)
    relative: bool = False


def read_text(path: str) -> str:
    """Return a text file's content. Raises DataError."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"{printable(path)!r} cannot be read: {error.strerror}.") from error


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {value!r} is not a number.")
    return number


# --- Pascal VOC -------------------------------------------------------------------------------------------


def parse_xml(path: str) -> ElementTree.Element:
    """Return the root of an XML file. A document type or an entity is refused: entities can expand without "
    "bound.
    """

    def refuse(*_: object) -> None:
        raise DataError(
            f"{printable(path)!r} declares a document type or entities, which annotations do not need."
        )

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        with open(path, "rb") as stream:
            parser.Parse(stream.read(), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{printable(path)!r} is not well-formed XML: {error}.") from error
    except OSError as error:
        raise DataError(f"{printable(path)!r} cannot be read: {error.strerror}.") from error
    return builder.close()


def looks_like_voc(path: str) -> bool:
    """Return whether an XML file's first element is ``annotation``."""
    try:
        with open(path, "rb") as stream:
            return b"<annotation" in stream.read(4096).replace(b"\0", b"")
    except OSError:
        return False


def read_voc(root: str, source: str) -> Entry:
    """Return the entry of a Pascal VOC file (VOC devkit, 2012; boxes are xmin, ymin, xmax, ymax in "
    "pixels).
    """
    path = os.path.join(root, source)
    tree = parse_xml(path)
    entry = Entry(source, (tree.findtext("filename") or "").strip())
    for item in tree.iter("object"):
        label = clean_label(item.findtext("name") or "")
        box = item.find("bndbox")
        if not label:
            continue
        if box is None:
            entry.objects.append((label, NO_BOX))
            continue
        where = f"{printable(path)}, object {label!r}"
        corners = [_number(box.findtext(name), where) for name in ("xmin", "ymin", "xmax", "ymax")]
        entry.objects.append((label, (corners[0], corners[1], corners[2], corners[3])))
    return entry


# --- JSON: CreateML and COCO ------------------------------------------------------------------------------


def load_json(path: str) -> Any:
    """Return a JSON file's value. Raises DataError."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(path)!r} is not valid JSON: {error}.") from error


def is_coco(value: Any) -> bool:
    """Return whether a JSON value has COCO's three lists."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    )


def _createml_image(item: Mapping[str, Any]) -> Any:
    return next((item[key] for key in ("image", "imagefilename", "imageFilename") if key in item), None)


def _createml_objects(item: Mapping[str, Any]) -> Any:
    return next((item[key] for key in ("annotations", "annotation") if key in item), None)


def is_createml(value: Any) -> bool:
    """Return whether a JSON value is a list of objects with an image and its annotations."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, dict)
            and isinstance(_createml_image(item), str)
            and isinstance(_createml_objects(item), list)
            for item in value
        )
    )


def read_createml(value: Sequence[Mapping[str, Any]], source: str) -> Iterator[Entry]:
    """Yield the entries of a CreateML file (Apple; boxes are centre x, y, width, height in pixels)."""
    for item in value:
        entry = Entry(source, str(_createml_image(item)))
        for found in _createml_objects(item):
            if not isinstance(found, dict) or not clean_label(str(found.get("label") or "")):
                raise DataError(
                    f"{printable(source)}: an annotation of {printable(entry.image)!r} has no label."
                )
            label, box = clean_label(str(found["label"])), found.get("coordinates")
            if not isinstance(box, dict):
                entry.objects.append((label, NO_BOX))
                continue
            where = f"{printable(source)}, {printable(entry.image)!r}"
            x, y, w, h = (_number(box.get(key), where) for key in ("x", "y", "width", "height"))
            entry.objects.append((label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
        yield entry


def read_coco(value: Mapping[str, Any], source: str) -> Iterator[Entry]:
    """Yield the entries of a COCO file (cocodataset.org; boxes are x, y, width, height in pixels).

    Crowds (``iscrowd`` 1) are left out: their box holds many. Annotations without a box count for the whole
    image.
    """
    try:
        names = {item["id"]: clean_label(str(item["name"])) for item in value["categories"]}
        entries = {item["id"]: Entry(source, str(item["file_name"])) for item in value["images"]}
        for found in value["annotations"]:
            if found.get("iscrowd"):
                continue
            image, category = found["image_id"], found["category_id"]
            if image not in entries or category not in names:
                raise DataError(
                    f"{printable(source)}: an annotation names image {image!r} and category {category!r}, "
                    "one of which is not listed."
                )
            entries[image].objects.append((names[category], _coco_box(found.get("bbox"), source)))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{printable(source)} is not valid COCO: {error!r}.") from error
    yield from entries.values()


def _coco_box(box: Any, source: str) -> Box:
    if not box:
        return NO_BOX
    if len(box) != 4:
        raise DataError(f"{printable(source)}: the box {box!r} is not x, y, width, height.")
    x, y, w, h = (_number(value, printable(source)) for value in box)
    return x, y, x + w, y + h


# --- YOLO -------------------------------------------------------------------------------------------------


def looks_like_yolo(path: str) -> bool:
    """Return whether each line of a text file is a class number and coordinates (an empty file: False)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = [line.strip() for line in stream.read(4096).splitlines()[:5]]
    except OSError:
        return False
    return any(lines) and all(_LINE.fullmatch(line) for line in lines[:4] if line)


def read_yolo(root: str, source: str, names: Sequence[str] | Mapping[int, str]) -> Entry:
    """Return the entry of a YOLO file: class, centre x, centre y, width, height as parts of the image.

    A sixth value is a confidence and is ignored; seven or more are a polygon, of which the bounding box
    counts. Without ``names`` the class number is the label.
    """
    path = os.path.join(root, source)
    entry = Entry(source, "", relative=True)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        if not _LINE.fullmatch(line.strip()):
            raise DataError(f"{where}: {line.strip()[:60]!r} is not a class number and four coordinates.")
        first, *rest = line.split()
        entry.objects.append(
            (_yolo_name(int(first), names, where), _yolo_box([float(v) for v in rest], where))
        )
    return entry


def _yolo_name(index: int, names: Sequence[str] | Mapping[int, str], where: str) -> str:
    if not names:
        return str(index)
    try:
        return names[index] or str(index)
    except LookupError:
        raise DataError(f"{where}: class {index} has no name; there are {len(names)} names.") from None


def _yolo_box(values: Sequence[float], where: str) -> Box:
    if len(values) <= 5:
        x, y, w, h = values[:4]
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) % 2:
        raise DataError(f"{where}: a polygon needs pairs of coordinates; there are {len(values)} numbers.")
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def yolo_yaml(path: str) -> dict[int, str]:
    """Return the class names of a ``data.yaml`` by number; {} if it has none."""
    try:
        value = yaml_text.load(read_text(path))
    except ValueError as error:
        raise DataError(f"{printable(path)!r} is not valid YAML: {error}.") from error
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        return {}
    return {key: clean_label(str(name)) for key, name in names.items()}
