"""JSON annotations of plain structure: CreateML, COCO and labelme."""

from __future__ import annotations

import ntpath
from collections.abc import Iterator, Mapping
from typing import Any

from tellapart.data.sources.annotations.entries import (
    NO_BOX,
    Box,
    Entry,
    Files,
    around,
    attempt,
    label_of,
    number,
)
from tellapart.data.sources.listing import clean_label, printable
from tellapart.errors import DataError


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


def is_labelme(value: Any) -> bool:
    """Return whether a JSON value is what labelme writes for one image."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def read_createml(files: Files, source: str) -> Iterator[Entry]:
    """Yield the entries of a CreateML file (Apple; boxes are centre x, y, width, height in pixels)."""
    value = files.json(source)
    for item in value if is_createml(value) else ():
        entry = Entry(source, str(_createml_image(item)), own=len(value) == 1)
        where = f"{printable(source)}: an annotation of {printable(entry.image)!r}"

        def read(item: Mapping[str, Any] = item, entry: Entry = entry, where: str = where) -> None:
            for found in _createml_objects(item):
                label = label_of(found.get("label") if isinstance(found, dict) else None, where)
                box = found.get("coordinates")
                if not isinstance(box, dict):
                    entry.objects.append((label, NO_BOX))
                    continue
                x, y, w, h = (number(box.get(key), where) for key in ("x", "y", "width", "height"))
                entry.objects.append((label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))

        yield attempt(entry, read)


def read_coco(files: Files, source: str, crowds: bool = False) -> Iterator[Entry]:
    """Yield the entries of a COCO file (cocodataset.org; boxes are x, y, width, height in pixels).

    Crowds (``iscrowd`` 1) are left out, as their box holds many; with ``crowds`` they are labels of the image, which
    shows them too. Annotations without a box count for the whole image. An annotation of an image that is not listed
    is a problem of its own.
    """
    value = files.json(source)
    if not is_coco(value):
        return
    try:
        names = {item["id"]: clean_label(str(item["name"])) for item in value["categories"]}
        entries = {item["id"]: Entry(source, str(item["file_name"])) for item in value["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{printable(source)} is not valid COCO: {error!r}.") from error
    for found in value["annotations"]:
        if not isinstance(found, dict):
            raise DataError(f"{printable(source)} is not valid COCO: {found!r} is not an annotation.")
        if found.get("iscrowd"):
            if not crowds:
                continue
            found = {**found, "bbox": None}
        entry = _coco_entry(found, entries, names, source)
        if entry is not None:
            yield entry
    yield from entries.values()


def _coco_entry(
    found: Mapping[str, Any], entries: Mapping[Any, Entry], names: Mapping[Any, str], source: str
) -> Entry | None:
    """Put an annotation into its image's entry; return an entry for one of no image."""
    image, category = found.get("image_id"), found.get("category_id")
    known = isinstance(image, (str, int, float)) and image in entries
    entry = entries[image] if known else Entry(source, "")

    def read() -> None:
        where = printable(source)
        if not known or not isinstance(category, (str, int, float)) or not names.get(category):
            raise DataError(
                f"{where}: an annotation names image {image!r} and category {category!r}, one of which is not "
                "listed."
            )
        entry.objects.append((names[category], _coco_box(found.get("bbox"), where)))

    if not entry.problem:
        attempt(entry, read)
    return None if known else entry


def _coco_box(box: Any, where: str) -> Box:
    if not box:
        return NO_BOX
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where}: the box {box!r} is not x, y, width, height.")
    x, y, w, h = (number(value, where) for value in box)
    return x, y, x + w, y + h


def read_labelme(files: Files, source: str) -> Iterator[Entry]:
    """Yield the entry of a labelme file: true flags are labels of the image, shapes have boxes in pixels."""
    entry = Entry(source, "", own=True)
    found: list[Any] = []
    attempt(entry, lambda: found.append(files.json(source)))
    if found and not is_labelme(found[0]):
        return  # another program's

    def read() -> None:
        value = found[0]
        entry.image = ntpath.normpath(str(value["imagePath"] or "")).replace("\\", "/")
        flags = value.get("flags")
        names = [key for key, on in flags.items() if on is True] if isinstance(flags, dict) else []
        entry.tags = [label_of(name, printable(source)) for name in names]
        for shape in value["shapes"]:
            where = f"{printable(source)}: a shape"
            label = label_of(shape.get("label") if isinstance(shape, dict) else None, where)
            entry.objects.append((label, _labelme_box(shape, where)))

    yield attempt(entry, read) if found else entry


def _labelme_box(shape: Mapping[str, Any], where: str) -> Box:
    points = shape.get("points")
    pairs = points if isinstance(points, list) else []
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise DataError(f"{where} has points that are not pairs.")
    if shape.get("shape_type") == "circle" and len(pairs) == 2:
        (x, y), (a, b) = ((number(p[0], where), number(p[1], where)) for p in pairs)
        radius = ((a - x) ** 2 + (b - y) ** 2) ** 0.5
        return x - radius, y - radius, x + radius, y + radius
    if shape.get("shape_type") in ("point", "points", "line", "linestrip"):
        return NO_BOX
    return around((p[0] for p in pairs), (p[1] for p in pairs), where)
