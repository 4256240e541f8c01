"""JSON annotations with any value at any place: entries, or a DataError; never another exception."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tellapart.data.sources.annotations import json_files, label_studio, via
from tellapart.data.sources.annotations.entries import Entry, Files
from tellapart.errors import DataError

RECTANGLE = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 5, "rectanglelabels": ["b"]}
REGION = {
    "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
    "region_attributes": {"t": "b"},
}
VALUES: dict[str, Any] = {
    "label-studio": [
        {
            "annotations": [
                {
                    "result": [
                        {"value": {"choices": ["a"]}, "from_name": "c", "type": "choices"},
                        {"value": RECTANGLE, "from_name": "c", "type": "rectanglelabels"},
                    ]
                }
            ],
            "data": {"image": f"/d/{n}.jpg"},
        }
        for n in range(2)
    ],
    "label-studio rows": [
        {
            "annotation_id": n,
            "annotator": 1,
            "image": f"/d/{n}.jpg",
            "choice": {"choices": ["a", "b"]},
            "id": n,
        }
        for n in range(2)
    ],
    "labelme": {
        "flags": {"a": True},
        "shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "circle"}],
        "imagePath": "0.jpg",
    },
    "coco": {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"image_id": n, "category_id": 1 + n, "bbox": [1, 2, 3, 4]} for n in range(2)],
    },
    "createml": [
        {
            "image": "0.jpg",
            "annotations": [{"label": "a", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}],
        }
    ],
    "via": {
        f"{n}": {"filename": f"{n}.jpg", "file_attributes": {"k": "a"}, "regions": [REGION]} for n in range(2)
    },
}
READERS: dict[str, Callable[[Files, str], Iterator[Entry]]] = {
    "label-studio": lambda files, source: label_studio.read_json(files, source, ()),
    "label-studio rows": lambda files, source: label_studio.read_json(files, source, ()),
    "labelme": json_files.read_labelme,
    "coco": json_files.read_coco,
    "createml": json_files.read_createml,
    "via": lambda files, source: via.read_json(files, source, ()),
}
ODD = [
    None,
    True,
    0,
    1e308,
    float("nan"),
    10**400,
    "",
    "x",
    "a\0b",
    "[",
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    [1, 2],
    [True],
]


class Given(Files):
    """Has one value for every file."""

    def __init__(self, value: Any) -> None:
        super().__init__("")
        self.value = value

    def json(self, source: str) -> Any:
        """Return the value."""
        return self.value


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*before, key)
        yield from places(value[key], (*before, key))


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_any_value_at_any_place(kind: str) -> None:
    read = READERS[kind]
    whole = list(read(Given(copy.deepcopy(VALUES[kind])), "a.json"))
    assert any(entry.objects for entry in whole) or any(entry.tags for entry in whole)
    assert not any(entry.problem for entry in whole)
    refused = 0
    for place in places(VALUES[kind]):
        for odd in ODD:
            value = copy.deepcopy(VALUES[kind])
            inner = value
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = copy.deepcopy(odd)
            try:
                entries = list(read(Given(value), "a.json"))
            except DataError:
                refused += 1
                continue
            refused += any(entry.problem for entry in entries)
            assert all(isinstance(label, str) and label for e in entries for label, _ in e.objects)
            assert all(isinstance(tag, str) and tag for e in entries for tag in e.tags)
    assert refused
