"""VGG Image Annotator (VIA 1 and 2): JSON of annotations or of a project, and CSV."""

from __future__ import annotations

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
    label_of,
    number,
)
from tellapart.data.sources.listing import printable, some
from tellapart.errors import DataError

HEADER = (
    "filename",
    "file_size",
    "file_attributes",
    "region_count",
    "region_id",
    "region_shape_attributes",
    "region_attributes",
)
_NOT_LABELS = ("caption", "public_domain", "image_url", "url", "comment", "comments", "note", "notes")
_USUAL = ("label", "class", "category", "class_name", "name", "type", "object", "species")


def images_of(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the records of images in VIA's JSON, None if it is not VIA's."""
    if isinstance(value, dict) and isinstance(value.get("_via_img_metadata"), dict):
        value = value["_via_img_metadata"]
        if not value:
            return []
    records = list(value.values()) if isinstance(value, dict) else []
    fits = bool(records) and all(
        isinstance(item, dict) and isinstance(item.get("filename"), str) and "regions" in item
        for item in records
    )
    return records if fits else None


def is_version_3(value: Any) -> bool:
    """Return whether a JSON value is a project of VIA 3, which has a different structure."""
    return isinstance(value, dict) and {"project", "config", "attribute", "file", "metadata"} <= value.keys()


def read_json(files: Files, source: str, wanted: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of VIA's JSON; ``wanted``: the attributes that may be the label."""
    value = files.json(source)
    if is_version_3(value):
        raise DataError(
            f"{printable(source)!r} is a project of VIA 3. Export its annotations as VIA 2 CSV or COCO JSON."
        )
    records = []
    for item in images_of(value) or ():
        regions = item["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions or []
        regions = regions if isinstance(regions, list) else [regions]  # reported below
        records.append((item["filename"], item.get("file_attributes") or {}, regions))
    yield from _entries(records, source, wanted)


def read_csv(files: Files, source: str, wanted: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of VIA's CSV, one row for each region."""
    reader = csv.DictReader(io.StringIO(files.text(source).lstrip("#"), newline=""))
    records: list[tuple[str, Any, list[Any]]] = []
    for row in reader:
        file, shape, region = (
            _cell(row, name) for name in ("file_attributes", "region_shape_attributes", "region_attributes")
        )
        regions = [{"shape_attributes": shape, "region_attributes": region}] if shape or region else []
        records.append((row.get("filename") or "", file, regions))
    yield from _entries(records, source, wanted)


def _cell(row: Mapping[str, str | None], name: str) -> Any:
    try:
        return json.loads(row.get(name) or "{}")
    except (ValueError, RecursionError):
        return None  # reported where it is used


def _entries(
    records: Sequence[tuple[str, Any, Sequence[Any]]], source: str, wanted: Sequence[str]
) -> Iterator[Entry]:
    regions = [region for _, _, found in records for region in found if isinstance(region, dict)]
    of_file = _attribute([file for _, file, _ in records], "file_attributes", source, wanted)
    of_region = _attribute([r.get("region_attributes") for r in regions], "region_attributes", source, wanted)
    for name, file, found in records:
        entry = Entry(source, name)
        where = f"{printable(source)}, {printable(name)!r}"

        def read(
            entry: Entry = entry, file: Any = file, found: Sequence[Any] = found, where: str = where
        ) -> None:
            if not isinstance(file, dict) or not all(map(_is_region, found)):
                raise DataError(f"{where}: the attributes are not JSON objects.")
            entry.tags += [label_of(v, where) for v in _values(file.get(of_file))]
            for region in found:
                for value in _values(region["region_attributes"].get(of_region)):
                    box = _box(region.get("shape_attributes") or {}, where)
                    entry.objects.append((label_of(value, where), box))

        yield attempt(entry, read)


def _is_region(region: Any) -> bool:
    return (
        isinstance(region, dict)
        and isinstance(region.setdefault("region_attributes", {}), dict)
        and isinstance(region.get("shape_attributes") or {}, dict)
    )


def _attribute(found: Sequence[Any], kind: str, source: str, wanted: Sequence[str]) -> str:
    """Return the attribute that is the label: the only one, one named like a label, or the wanted one; "" for none."""
    names = dict.fromkeys(
        name for item in found if isinstance(item, dict) for name in item if _values(item[name])
    )
    for choice in ([n for n in wanted if n in names], [n for n in names if n.lower() in _USUAL]):
        if len(choice) == 1:
            return choice[0]
    if wanted:
        return ""
    names = {name: None for name in names if name.lower() not in _NOT_LABELS}
    if len(names) > 1:
        raise DataError(
            f"{printable(source)!r} has {len(names)} {kind} ({some(names)}); name the one that is the class with "
            "--data.label-column."
        )
    return next(iter(names), "")


def _values(value: Any) -> list[Any]:
    """Return an attribute's values: a text, or those of its check boxes that are ticked."""
    if isinstance(value, dict):
        return [name for name, on in value.items() if on is True or on == "true"]
    return [value] if value not in (None, "", "undefined") else []


def _box(shape: Mapping[str, Any], where: str) -> Box:
    def values(*names: str) -> list[float]:
        return [number(shape.get(name), where) for name in names]

    kind = shape.get("name")
    if kind == "rect":
        x, y, w, h = values("x", "y", "width", "height")
        return x, y, x + w, y + h
    if kind == "circle":
        x, y, radius = values("cx", "cy", "r")
        return x - radius, y - radius, x + radius, y + radius
    if kind == "ellipse":
        x, y, a, b = values("cx", "cy", "rx", "ry")
        return x - a, y - b, x + a, y + b
    if kind in ("polygon", "polyline"):
        return around(shape.get("all_points_x") or (), shape.get("all_points_y") or (), where)
    return NO_BOX
