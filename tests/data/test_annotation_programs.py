"""CVAT, Label Studio, labelme, VIA and RetinaNet, as these programs write them."""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from typing import Any

import pytest
from tests.pictures import blank

from tellapart.data.samples import Conflict, Samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

NAMES = ("cat", "dog", "bird")


picture = functools.partial(blank, size=(200, 100))


def read(source: pathlib.Path, **options: Any) -> Samples:
    return open_source(DataSpec(source=str(source), **options), lambda _: None)


def labels(samples: Samples) -> dict[str, str]:
    return {path: samples.classes[label] for path, label in zip(samples.paths, samples.labels, strict=True)}


def boxes(samples: Samples) -> dict[str, tuple[str, list[float]]]:
    assert samples.boxes is not None
    rows = zip(samples.paths, samples.labels, samples.boxes, strict=True)
    return {path: (samples.classes[label], [round(v, 3) for v in box.tolist()]) for path, label, box in rows}


def told(samples: Samples) -> str:
    return " ".join(samples.notes)


# --- CVAT -------------------------------------------------------------------------------------------------


def cvat(images: str, root: str = "annotations") -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<{root}><version>1.1</version><meta><task><labels><label><name>cat'
        f"</name></label></labels></task></meta>{images}</{root}>"
    )


def test_cvat_tags_and_subsets(tmp_path: pathlib.Path) -> None:
    text = ""
    for number in range(9):
        picture(tmp_path / f"images/{number}.jpg")
        subset = ("Train", "Validation", "Test")[number % 3]
        text += (
            f'<image id="{number}" name="{number}.jpg" subset="{subset}" task_id="1" width="200" height="100">'
            f'<tag label="{NAMES[number // 3]}" source="manual"></tag></image>'
        )
    (tmp_path / "annotations.xml").write_text(cvat(text))
    samples = read(tmp_path)
    assert labels(samples) == {f"images/{n}.jpg": NAMES[n // 3] for n in range(9)}
    assert samples.splits.tolist() == ["train", "val", "test"] * 3


def test_cvat_shapes_become_boxes(tmp_path: pathlib.Path) -> None:
    shapes = {
        "box": (
            '<box label="cat" occluded="0" xtl="10" ytl="20" xbr="110.5" ybr="70"/>',
            [10, 20, 110.5, 70],
        ),
        "turned": ('<box label="cat" xtl="0" ytl="20" xbr="100" ybr="40" rotation="90"/>', [40, -20, 60, 80]),
        "polygon": ('<polygon label="cat" points="1,2;30,4;5,60"/>', [1, 2, 30, 60]),
        "ellipse": ('<ellipse label="cat" cx="50" cy="40" rx="20" ry="10"/>', [30, 30, 70, 50]),
        "mask": ('<mask label="cat" rle="1" left="3" top="4" width="10" height="20"/>', [3, 4, 13, 24]),
    }
    text = ""
    for name, (shape, _) in shapes.items():
        picture(tmp_path / f"{name}.jpg")
        text += f'<image id="1" name="{name}.jpg">{shape}<box label="dog" outside="1" xtl="0" ytl="0" xbr="1" ybr="1"/></image>'
    (tmp_path / "annotations.xml").write_text(cvat(text))
    assert boxes(read(tmp_path, boxes="crop")) == {f"{n}.jpg": ("cat", box) for n, (_, box) in shapes.items()}
    assert set(labels(read(tmp_path)).values()) == {"cat"}


def test_cvat_tags_go_before_boxes_of_parts(tmp_path: pathlib.Path) -> None:
    text = ""
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
        tag = f'<tag label="{NAMES[number % 2]}"/>'
        text += f'<image name="{number}.jpg">{tag}<box label="eye" xtl="1" ytl="1" xbr="9" ybr="9"/></image>'
    (tmp_path / "annotations.xml").write_text(cvat(text))
    samples = read(tmp_path)
    assert labels(samples) == {f"{n}.jpg": NAMES[n % 2] for n in range(4)}
    assert "--data.boxes crop takes the boxes" in told(samples)
    assert set(labels(read(tmp_path, boxes="crop")).values()) == {"eye"}


def test_cvat_for_video_says_what_to_export(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "frame_000000.jpg")
    track = '<track id="0" label="cat"><box frame="0" outside="0" xtl="1" ytl="1" xbr="9" ybr="9"/></track>'
    (tmp_path / "annotations.xml").write_text(cvat(track))
    with pytest.raises(DataError, match='"CVAT for images'):
        read(tmp_path)


# --- Label Studio -----------------------------------------------------------------------------------------


def choice(label: Any, name: str = "choice", **more: Any) -> dict[str, Any]:
    value = {"choices": label if isinstance(label, list) else [label]}
    return {"result": [{"value": value, "from_name": name, "to_name": "image", "type": "choices"}], **more}


PLACES = (
    "/data/upload/1/{0:08x}-{1}",
    "/data/local-files/?d=photos/{1}",
    "s3://bucket/photos/{1}",
    "https://example.org/photos/{1}?token=x",
    "upload/1/{0:08x}-{1}",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("prefixed", [False, True])
def test_label_studio_finds_its_images(tmp_path: pathlib.Path, place: str, prefixed: bool) -> None:
    if prefixed and "{0" not in place:
        return
    tasks = []
    for number in range(6):
        name = f"my cat {number}.jpg" if "http" not in place else f"my%20cat%20{number}.jpg"
        kept = f"{number:08x}-{name}" if prefixed else name.replace("%20", " ")
        picture(tmp_path / f"photos/{kept}")
        data = {"image": place.format(number, name), "note": "n"}
        tasks.append(
            {"id": number, "annotations": [choice(NAMES[number % 3])], "predictions": [], "data": data}
        )
    (tmp_path / "project-1-at-2024.json").write_text(json.dumps(tasks))
    assert sorted(labels(read(tmp_path)).values()) == sorted(NAMES * 2)


def test_label_studio_annotators_predictions_and_skips(tmp_path: pathlib.Path) -> None:
    annotations = {
        "agree": [choice("cat"), choice("cat")],
        "differ": [choice("cat"), choice("dog")],
        "skipped": [choice("dog", was_cancelled=True), choice("cat")],
        "only-skipped": [choice("dog", was_cancelled=True)],
        "none": [],
        "two": [choice(["cat", "dog"])],
        "text": [
            choice("dog"),
            {"result": [{"type": "textarea", "from_name": "t", "value": {"text": ["x"]}}]},
        ],
    }
    tasks = []
    for name, found in annotations.items():
        picture(tmp_path / f"{name}.jpg")
        guess = [{"result": choice("bird")["result"], "score": 0.9}]
        tasks.append(
            {"data": {"image": f"/data/upload/2/{name}.jpg"}, "annotations": found, "predictions": guess}
        )
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    samples = read(tmp_path)
    assert labels(samples) == {"agree.jpg": "cat", "skipped.jpg": "cat", "text.jpg": "dog"}
    assert samples.conflicts == (Conflict("differ.jpg", ("cat", "dog")), Conflict("two.jpg", ("cat", "dog")))


def test_label_studio_asks_which_question(tmp_path: pathlib.Path) -> None:
    tasks = []
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
        found = [choice(NAMES[number % 2], "animal"), choice("good", "quality")]
        tasks.append({"data": {"img": f"/data/upload/2/{number}.jpg"}, "annotations": found})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=r"2 questions.*animal, quality.*--data\.label-column"):
        read(tmp_path)
    assert labels(read(tmp_path, label_column=("animal",))) == {f"{n}.jpg": NAMES[n % 2] for n in range(4)}
    with pytest.raises(DataError, match="no such control"):
        read(tmp_path, label_column=("breed",))


RECTANGLE = {"x": 10, "y": 20, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
POLYGON = {"points": [[10, 20], [60, 30], [20, 60]], "polygonlabels": ["cat"], "closed": True}
ELLIPSE = {"x": 35, "y": 40, "radiusX": 25, "radiusY": 20, "ellipselabels": ["cat"]}


@pytest.mark.parametrize("value", [RECTANGLE, POLYGON, ELLIPSE])
@pytest.mark.parametrize("form", ["json", "min", "csv"])
def test_label_studio_regions(tmp_path: pathlib.Path, value: dict[str, Any], form: str) -> None:
    picture(tmp_path / "a.jpg")
    kind = next(key for key in value if key.endswith("labels"))
    row = {"image": "/data/upload/1/a.jpg", "id": 1, "annotator": 1, "annotation_id": 7, "lead_time": 2.5}
    if form == "json":
        found = [{"result": [{"value": value, "type": kind, "from_name": "label", "original_width": 200}]}]
        content = json.dumps([{"data": {"image": row["image"]}, "annotations": found}])
    elif form == "min":
        content = json.dumps([{**row, "label": [{**value, "original_width": 200}]}])
    if form == "csv":
        with open(tmp_path / "project.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([[*row, "label"], [*row.values(), json.dumps([value])]])
    else:
        (tmp_path / "project.json").write_text(content)
    assert boxes(read(tmp_path, boxes="crop")) == {"a.jpg": ("cat", [20, 20, 120, 60])}


@pytest.mark.parametrize("form", ["min", "csv"])
def test_label_studio_rows(tmp_path: pathlib.Path, form: str) -> None:
    rows = []
    for number, answer in enumerate(["cat", "dog", "cat", "dog", {"choices": ["cat", "dog"]}, "bird"]):
        picture(tmp_path / f"images/{number:08x}-{number}.jpg")
        image = f"/data/upload/1/{number:08x}-{number}.jpg"
        rows.append({"annotation_id": number, "annotator": 1, "choice": answer, "id": number, "image": image})
    rows.append({**rows[0], "annotator": 2, "choice": "dog"})
    if form == "csv":
        cells = [[json.dumps(v) if isinstance(v, dict) else v for v in row.values()] for row in rows]
        with open(tmp_path / "project.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([list(rows[0]), *cells])
    else:
        (tmp_path / "project.json").write_text(json.dumps(rows))
    samples = read(tmp_path)
    assert sorted(labels(samples).values()) == ["bird", "cat", "dog", "dog"]
    assert [c.path[-5:] for c in samples.conflicts] == ["0.jpg", "4.jpg"]
    if form == "csv":
        assert len(read(tmp_path / "project.csv")) == 4


# --- labelme ----------------------------------------------------------------------------------------------


def labelme(name: str, shapes: list[dict[str, Any]], **flags: bool) -> str:
    content = {"version": "5.2", "flags": flags, "shapes": shapes, "imagePath": name, "imageData": None}
    return json.dumps({**content, "imageHeight": 100, "imageWidth": 200})


def shape(label: str, points: list[list[float]], kind: str = "rectangle") -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def test_labelme_shapes(tmp_path: pathlib.Path) -> None:
    shapes = {
        "a": (shape("cat", [[90, 70], [10, 20]]), [10, 20, 90, 70]),
        "b": (shape("dog", [[1, 2], [30, 4], [5, 60]], "polygon"), [1, 2, 30, 60]),
        "c": (shape("cat", [[50, 50], [53, 54]], "circle"), [45, 45, 55, 55]),
    }
    for name, (item, _) in shapes.items():
        picture(tmp_path / f"images/{name}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{name}.json").write_text(labelme(f"..\\images\\{name}.jpg", [item]))
    (tmp_path / "labels/settings.json").write_text('{"theme": "dark"}')
    samples = read(tmp_path, boxes="crop")
    assert boxes(samples) == {f"images/{n}.jpg": (s["label"], box) for n, (s, box) in shapes.items()}
    assert labels(read(tmp_path)) == {f"images/{n}.jpg": s["label"] for n, (s, _) in shapes.items()}


def test_labelme_flags_are_classes_where_most_images_have_one(tmp_path: pathlib.Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.jpg")
        flags = {name: name == NAMES[number % 2] for name in NAMES}
        (tmp_path / f"{number}.json").write_text(labelme(f"{number}.jpg", [], **flags))
    assert labels(read(tmp_path)) == {f"{n}.jpg": NAMES[n % 2] for n in range(10)}
    for number in range(10):
        item = shape(NAMES[number % 2], [[1, 1], [9, 9]])
        (tmp_path / f"{number}.json").write_text(labelme(f"{number}.jpg", [item], blurred=number == 3))
    samples = read(tmp_path)
    assert labels(samples) == {f"{n}.jpg": NAMES[n % 2] for n in range(10)}
    assert "do not count" in told(samples)


# --- VIA --------------------------------------------------------------------------------------------------


def via(items: dict[str, tuple[Any, list[Any]]]) -> dict[str, Any]:
    return {
        f"{name}123": {"filename": name, "size": 123, "file_attributes": file, "regions": regions}
        for name, (file, regions) in items.items()
    }


RECT = {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 40}
VIA_SHAPES = [
    (RECT, [10, 20, 40, 60]),
    ({"name": "circle", "cx": 50, "cy": 40, "r": 10}, [40, 30, 60, 50]),
    ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10}, [30, 30, 70, 50]),
    ({"name": "polygon", "all_points_x": [1, 30, 5], "all_points_y": [2, 4, 60]}, [1, 2, 30, 60]),
]


@pytest.mark.parametrize("form", ["annotations", "project", "csv", "version 1"])
def test_via_regions(tmp_path: pathlib.Path, form: str) -> None:
    items = {}
    for number, (geometry, _) in enumerate(VIA_SHAPES):
        picture(tmp_path / f"{number}.jpg")
        region = {"shape_attributes": geometry, "region_attributes": {"animal": NAMES[number % 2]}}
        items[f"{number}.jpg"] = ({"caption": "", "public_domain": "no", "image_url": ""}, [region])
    content = via(items)
    if form == "version 1":
        for item in content.values():
            item["regions"] = {str(n): region for n, region in enumerate(item["regions"])}
    if form == "csv":
        header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
        with open(tmp_path / "via.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(header.split(","))
            for name, (file, regions) in items.items():
                cells = [json.dumps(regions[0][key]) for key in ("shape_attributes", "region_attributes")]
                writer.writerow([name, 123, json.dumps(file), 1, 0, *cells])
    else:
        whole = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}}
        (tmp_path / "via.json").write_text(json.dumps(whole if form == "project" else content))
    expected = {f"{n}.jpg": (NAMES[n % 2], box) for n, (_, box) in enumerate(VIA_SHAPES)}
    assert boxes(read(tmp_path, boxes="crop")) == expected


@pytest.mark.parametrize("value", ["text", "boxes"])
def test_via_file_attributes(tmp_path: pathlib.Path, value: str) -> None:
    items: dict[str, tuple[Any, list[Any]]] = {}
    for number in range(6):
        picture(tmp_path / f"{number}.jpg")
        name = NAMES[number % 2]
        answer = name if value == "text" else {other: other == name for other in NAMES}
        items[f"{number}.jpg"] = ({"kind": answer, "caption": "a"}, [])
    items["5.jpg"] = ({"kind": {"cat": True, "dog": True}}, [])
    (tmp_path / "via.json").write_text(json.dumps(via(items)))
    samples = read(tmp_path)
    assert labels(samples) == {f"{n}.jpg": NAMES[n % 2] for n in range(5)}
    assert samples.conflicts == (Conflict("5.jpg", ("cat", "dog")),)


def test_via_asks_which_attribute(tmp_path: pathlib.Path) -> None:
    items = {}
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
        region = {
            "shape_attributes": RECT,
            "region_attributes": {"animal": NAMES[number % 2], "pose": "left"},
        }
        items[f"{number}.jpg"] = ({}, [region])
    (tmp_path / "via.json").write_text(json.dumps(via(items)))
    with pytest.raises(DataError, match=r"2 region_attributes \(animal, pose\).*--data\.label-column"):
        read(tmp_path)
    assert set(labels(read(tmp_path, label_column=("animal",))).values()) == {"cat", "dog"}


def test_via_3_says_what_to_export(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.jpg")
    content = {key: {} for key in ("project", "config", "attribute", "file", "metadata", "view")}
    (tmp_path / "via.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="VIA 3"):
        read(tmp_path)


# --- RetinaNet --------------------------------------------------------------------------------------------


def test_retinanet_rows(tmp_path: pathlib.Path) -> None:
    lines = []
    for number in range(6):
        picture(tmp_path / f"img/{number}.jpg")
        lines.append(f"/home/me/img/{number}.jpg,10,20,110,70,{NAMES[number % 2]}")
    picture(tmp_path / "img/none.jpg")
    lines += ["img/none.jpg,,,,,", "img/5.jpg,1,2,30,40,cat"]
    (tmp_path / "annotations.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "classes.csv").write_text("cat,0\ndog,1\n")
    samples = read(tmp_path)
    assert labels(samples) == {f"img/{n}.jpg": NAMES[n % 2] for n in range(5)}
    assert samples.conflicts == (Conflict("img/5.jpg", ("cat", "dog")),)
    assert "1 image without a labelled box" in told(samples)
    crops = read(tmp_path / "annotations.csv", boxes="crop")
    assert len(crops) == 7
    assert boxes(crops)["img/0.jpg"] == ("cat", [10, 20, 110, 70])
