"""Several labels for an image from every annotation format, in files as the programs write them; read as one label too."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.data.samples import Samples
from tellapart.data.sources.opening import open_source
from tellapart.spec import DataSpec

WANTED = [("cat", "dog"), ("cat",), ("dog", "owl"), (), ("cat", "dog", "owl"), ("owl",)] * 2
Names = tuple[str, ...]


def opened(folder: Path, **fields: Any) -> tuple[Samples, str]:
    said: list[str] = []
    spec = DataSpec(source=str(folder), **{"val_fraction": 0.0, "test_fraction": 0.0, **fields})
    return open_source(spec, said.append), " ".join(said)


def sets(samples: Samples) -> dict[str, set[str]]:
    assert samples.targets is not None
    return {
        Path(path).stem: {samples.classes[k] for k in np.flatnonzero(row)}
        for path, row in zip(samples.paths, samples.targets, strict=True)
    }


def name_of(number: int) -> str:
    return f"{number:02}.jpg"


def shape(k: int) -> tuple[int, int, int, int]:
    return 10 * k + 1, 5, 10 * k + 9, 35


def cvat_tags(folder: Path, wanted: list[Names]) -> None:
    """CVAT 1.1 for images: several tags of a frame."""
    frames = "".join(
        f'<image id="{n}" name="{name_of(n)}" subset="default" task_id="3" width="60" height="40">'
        + "".join(f'<tag label="{label}" source="manual">\n</tag>' for label in names)
        + "</image>"
        for n, names in enumerate(wanted)
    )
    head = "<version>1.1</version><meta><task><id>3</id><labels><label><name>cat</name></label></labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{head}{frames}</annotations>'
    (folder / "annotations.xml").write_text(text)


def cvat_boxes(folder: Path, wanted: list[Names]) -> None:
    def box(k: int, label: str) -> str:
        x0, y0, x1, y1 = shape(k)
        corners = f'xtl="{x0}.00" ytl="{y0}.00" xbr="{x1}.00" ybr="{y1}.00"'
        return f'<box label="{label}" source="manual" occluded="0" {corners} z_order="0"></box>'

    frames = "".join(
        f'<image id="{n}" name="{name_of(n)}" width="60" height="40">'
        + "".join(box(k, label) for k, label in enumerate((*names, *names)))
        + "</image>"
        for n, names in enumerate(wanted)
    )
    (folder / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta></meta>{frames}</annotations>"
    )


def voc(folder: Path, wanted: list[Names]) -> None:
    """A file for each image, objects of several classes, some twice, truncated and difficult as LabelImg says it."""
    for n, names in enumerate(wanted):
        objects = ""
        for k, label in enumerate((*names, *names[:1])):
            x0, y0, x1, y1 = shape(k)
            box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            flags = "<pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>"
            objects += f"<object><name>{label}</name>{flags}<bndbox>{box}</bndbox></object>"
        size = "<size><width>60</width><height>40</height><depth>3</depth></size><segmented>0</segmented>"
        text = f"<annotation><folder>x</folder><filename>{name_of(n)}</filename>{size}{objects}</annotation>"
        (folder / name_of(n)).with_suffix(".xml").write_text(text)


def coco(folder: Path, wanted: list[Names]) -> None:
    numbers = {"cat": 17, "dog": 18, "owl": 90}
    annotations = []
    for n, names in enumerate(wanted):
        for k, label in enumerate((*names, *names)):
            x0, y0, x1, y1 = shape(k)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": n, "category_id": numbers[label], "iscrowd": 0,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 240, "segmentation": [],
                }
            )  # fmt: skip
    images = [
        {"id": n, "file_name": name_of(n), "width": 60, "height": 40, "license": 1}
        for n in range(len(wanted))
    ]
    categories = [{"id": k, "name": label, "supercategory": "animal"} for label, k in numbers.items()]
    content = {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "instances.json").write_text(json.dumps(content))


def labelme_flags(folder: Path, wanted: list[Names]) -> None:
    for n, names in enumerate(wanted):
        flags = {label: label in names for label in ("cat", "dog", "owl")}
        content = {
            "version": "5.5.0", "flags": flags, "shapes": [], "imagePath": name_of(n), "imageData": None,
            "imageHeight": 40, "imageWidth": 60,
        }  # fmt: skip
        (folder / name_of(n)).with_suffix(".json").write_text(json.dumps(content))


def labelme_shapes(folder: Path, wanted: list[Names]) -> None:
    for n, names in enumerate(wanted):
        shapes = [
            {
                "label": label, "points": [shape(k)[:2], shape(k)[2:]], "group_id": None, "description": "",
                "shape_type": "rectangle", "flags": {}, "mask": None,
            }
            for k, label in enumerate(names)
        ]  # fmt: skip
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": name_of(n),
            "imageData": None,
        }
        (folder / name_of(n)).with_suffix(".json").write_text(json.dumps(content))


def via_check_boxes(folder: Path, wanted: list[Names]) -> None:
    """VIA 2: a file attribute of type checkbox."""
    content = {
        f"{name_of(n)}1234": {
            "filename": name_of(n), "size": 1234, "regions": [],
            "file_attributes": {"animal": dict.fromkeys(names, True)},
        }
        for n, names in enumerate(wanted)
    }  # fmt: skip
    (folder / "via_export_json.json").write_text(json.dumps(content))


def via_regions_csv(folder: Path, wanted: list[Names]) -> None:
    with open(folder / "via_export_csv.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        head = (
            "file_attributes",
            "region_count",
            "region_id",
            "region_shape_attributes",
            "region_attributes",
        )
        writer.writerow(["filename", "file_size", *head])
        for n, names in enumerate(wanted):
            for k, label in enumerate(names):
                x0, y0, x1, y1 = shape(k)
                rect = json.dumps({"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0})
                writer.writerow([name_of(n), 1, "{}", len(names), k, rect, json.dumps({"type": label})])
            if not names:
                writer.writerow([name_of(n), 1, "{}", 0, 0, "{}", "{}"])


def _choices(n: int, names: Names) -> list[dict[str, Any]]:
    value = {"value": {"choices": list(names)}, "id": f"r{n}", "from_name": "animal", "to_name": "image"}
    return [{**value, "type": "choices", "origin": "manual"}] if names else []


def _task(n: int, *annotations: list[dict[str, Any]]) -> dict[str, Any]:
    found = [
        {"id": 10 * n + k, "completed_by": k, "result": result, "was_cancelled": False, "ground_truth": False}
        for k, result in enumerate(annotations)
    ]
    return {"id": n, "annotations": found, "data": {"image": f"/data/upload/1/0a1b2c3d-{name_of(n)}"}}


def label_studio(folder: Path, wanted: list[Names]) -> None:
    """<Choices choice="multiple">."""
    tasks = [_task(n, _choices(n, names)) for n, names in enumerate(wanted)]
    (folder / "project-1-at-2025-01-01.json").write_text(json.dumps(tasks))


def label_studio_min(folder: Path, wanted: list[Names]) -> None:
    rows = []
    for n, names in enumerate(wanted):
        answer = {"choices": list(names)} if len(names) > 1 else names[0] if names else None
        row: dict[str, Any] = {
            "image": f"/data/upload/1/{name_of(n)}",
            "id": n,
            "annotator": 1,
            "annotation_id": n,
        }
        rows.append({**row, "created_at": "2025", "lead_time": 1.5} | ({"animal": answer} if answer else {}))
    (folder / "project-min.json").write_text(json.dumps(rows))


def label_studio_csv(folder: Path, wanted: list[Names]) -> None:
    with open(folder / "project.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["annotation_id", "animal", "annotator", "created_at", "id", "image", "lead_time"])
        for n, names in enumerate(wanted):
            answer = json.dumps({"choices": list(names)}) if len(names) > 1 else "".join(names)
            writer.writerow([n, answer, 1, "2025", n, f"/data/upload/1/{name_of(n)}", 1.5])


def createml(folder: Path, wanted: list[Names]) -> None:
    content = [
        {
            "image": name_of(n),
            "annotations": [
                {"label": label, "coordinates": {"x": 10 * k + 5, "y": 20, "width": 8, "height": 30}}
                for k, label in enumerate(names)
            ],
        }
        for n, names in enumerate(wanted)
    ]
    (folder / "annotations.json").write_text(json.dumps(content))


def yolo(folder: Path, wanted: list[Names]) -> None:
    classes = ("cat", "dog", "owl")
    (folder / "classes.txt").write_text("\n".join(classes))
    for n, names in enumerate(wanted):
        lines = [f"{classes.index(label)} 0.{k + 1} 0.5 0.1 0.5" for k, label in enumerate(names)]
        (folder / name_of(n)).with_suffix(".txt").write_text("\n".join(lines))


def retinanet(folder: Path, wanted: list[Names]) -> None:
    with open(folder / "annotations.csv", "w", newline="") as stream:
        for n, names in enumerate(wanted):
            rows = [[name_of(n), *shape(k), label] for k, label in enumerate(names)]
            csv.writer(stream).writerows(rows or [[name_of(n), "", "", "", "", ""]])


FORMATS: tuple[Callable[[Path, list[Names]], None], ...] = (
    cvat_tags, cvat_boxes, voc, coco, labelme_flags, labelme_shapes, via_check_boxes, via_regions_csv,
    label_studio, label_studio_min, label_studio_csv, createml, yolo, retinanet,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(len(WANTED)):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name_of(n))
    return tmp_path


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_every_format_gives_all_labels(folder: Path, write: Callable[[Path, list[Names]], None]) -> None:
    write(folder, WANTED)
    samples, said = opened(folder, labels="multi")
    assert sets(samples) == {f"{n:02}": set(names) for n, names in enumerate(WANTED)}
    assert "6 images with several, 2 annotated with none" in said


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_read_as_one_label_the_others_are_conflicts(
    folder: Path, write: Callable[[Path, list[Names]], None]
) -> None:
    """Nobody decides which of several labels an image has; without them it is said how to read all."""
    write(folder, WANTED)
    samples, said = opened(folder)
    assert samples.targets is None
    found = {Path(p).stem: samples.classes[k] for p, k in zip(samples.paths, samples.labels, strict=True)}
    assert found == {f"{n:02}": names[0] for n, names in enumerate(WANTED) if len(names) == 1}
    conflicts = {Path(one.path).stem: set(one.labels) for one in samples.conflicts}
    assert conflicts == {f"{n:02}": set(names) for n, names in enumerate(WANTED) if len(names) > 1}
    assert "Skipped 6 images with boxes of more than one label" in said
    assert "--data.labels multi" in said


def test_annotators_who_give_other_sets_are_a_conflict(folder: Path) -> None:
    tasks = [_task(n, _choices(n, names), _choices(n, names[::-1])) for n, names in enumerate(WANTED)]
    tasks[0] = _task(0, _choices(0, ("cat", "dog")), _choices(0, ("cat",)))
    tasks[1] = _task(1, _choices(1, ("cat",)), [])  # one says that there is none
    note = {"type": "textarea", "from_name": "note", "value": {"text": ["blurred"]}}
    tasks[2] = _task(2, _choices(2, ("dog", "owl")), [note])  # who answers another question
    (folder / "export.json").write_text(json.dumps(tasks))
    samples, said = opened(folder, labels="multi")
    assert sets(samples) == {f"{n:02}": set(names) for n, names in enumerate(WANTED) if n > 1}
    assert {one.path for one in samples.conflicts} == {"00.jpg", "01.jpg"}
    assert "Skipped 2 images whose annotators gave other labels" in said


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_task_that_waits_says_nothing_of_its_image(folder: Path, form: str) -> None:
    """It is not one in which no class is."""
    if form == "json":
        tasks = [_task(n, _choices(n, names)) for n, names in enumerate(WANTED)]
        tasks[0]["annotations"] = []
        tasks[1]["annotations"][0]["was_cancelled"] = True
        (folder / "export.json").write_text(json.dumps(tasks))
    else:
        label_studio_csv(folder, WANTED)
        lines = (folder / "project.csv").read_text().splitlines()
        lines[1:3] = [f",,,,{n},/data/upload/1/{name_of(n)}," for n in range(2)]
        (folder / "project.csv").write_text("\n".join(lines) + "\n")
    samples, said = opened(folder, labels="multi")
    assert sets(samples) == {f"{n:02}": set(names) for n, names in enumerate(WANTED) if n > 1}
    assert "Skipped 2 images without an annotation" in said


def test_a_crowd_is_a_label_of_its_image(folder: Path) -> None:
    coco(folder, WANTED)
    content = json.loads((folder / "instances.json").read_text())
    for one in content["annotations"]:
        one["iscrowd"] = int(one["image_id"] == 5)
    (folder / "instances.json").write_text(json.dumps(content))
    samples, _ = opened(folder, labels="multi")
    assert sets(samples)["05"] == {"owl"}


def test_a_few_annotations_do_not_hide_linked_folders(tmp_path: Path) -> None:
    """Beside class folders, annotations that speak of few images are left over, and that is said."""
    for n, names in enumerate(WANTED):
        for name in names:
            target = tmp_path / "set" / name / name_of(n)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (20 * n, 0, 0)).save(target)
    head = f"<annotation><filename>{name_of(1)}</filename>"
    (tmp_path / "set" / "cat" / "01.xml").write_text(f"{head}<object><name>x</name></object></annotation>")
    samples, said = opened(tmp_path / "set", labels="multi")
    assert sets(samples) == {f"{n:02}": set(names) for n, names in enumerate(WANTED) if names}
    assert "Class folders are read" in said


def test_copies_in_two_class_folders_are_warned_of_in_a_single_reading(tmp_path: Path) -> None:
    for n in range(20):
        for name in ("cat", "dog") if n < 3 else (("cat", "dog")[n % 2],):
            target = tmp_path / name / name_of(n)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (12 * n, 0, 0)).save(target)
    warned: list[str] = []
    open_source(DataSpec(source=str(tmp_path)), lambda text: None, warned.append)
    assert any("3 " in text and "labels" in text for text in warned), warned


def test_a_text_of_several_labels_is_taken_apart_where_that_is_asked_for(folder: Path) -> None:
    """VIA has attributes of type text, in which people write what they like."""
    content = {
        name_of(n): {
            "filename": name_of(n), "size": 1, "regions": [], "file_attributes": {"animals": ", ".join(names)}
        }
        for n, names in enumerate(WANTED)
    }  # fmt: skip
    (folder / "via.json").write_text(json.dumps(content))
    samples, _ = opened(folder, labels="multi", label_separator=",")
    assert sets(samples) == {f"{n:02}": set(names) for n, names in enumerate(WANTED)}
    samples, _ = opened(folder, labels="multi")
    assert "cat, dog" in samples.classes  # nothing says that it is not a name
