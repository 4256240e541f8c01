"""Pascal VOC, CreateML, YOLO and COCO, as the programs that write them lay them out."""

from __future__ import annotations

import json
import pathlib
import zlib
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from tellapart.data.samples import Conflict, Samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

Boxes = list[tuple[str, tuple[float, float, float, float]]]
SIZE = (200, 100)
DATA: dict[str, Boxes] = {
    "train/one.jpg": [("cat", (10, 20, 110, 70))],
    "train/two.jpg": [("dog", (0, 0, 50, 50)), ("dog", (60, 10, 200, 100))],
    "train/mixed.jpg": [("cat", (0, 0, 20, 20)), ("dog", (30, 30, 90, 80))],
    "val/three.jpg": [("собака", (1, 2, 101, 52))],
    "test/four.jpg": [("cat", (5, 5, 15, 25))],
    "test/bare.jpg": [],
}


def picture(path: pathlib.Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    colour = zlib.crc32(path.name.encode()) & 0xFFFFFF  # no two names are copies of one picture
    Image.new("RGB", SIZE, f"#{colour:06x}").save(path, exif=exif)


def voc(name: str, boxes: Boxes, head: str = "") -> str:
    objects = "".join(
        f"<object><name>{escape(label)}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x0:g}</xmin><ymin>{y0:g}</ymin><xmax>{x1:g}</xmax><ymax>{y1:g}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in boxes
    )
    return f"{head}<annotation verified='yes'><folder>f</folder><filename>{escape(name)}</filename>{objects}</annotation>"


def yolo(boxes: Boxes, names: list[str]) -> str:
    w, h = SIZE
    return "".join(
        f"{names.index(k)} {(a + c) / 2 / w:.6f} {(b + d) / 2 / h:.6f} {(c - a) / w:.6f} {(d - b) / h:.6f}\n"
        for k, (a, b, c, d) in boxes
    )


def createml(items: dict[str, Boxes], key: str, objects: str) -> str:
    return json.dumps(
        [
            {
                key: name,
                objects: [
                    {
                        "label": k,
                        "coordinates": {"x": (a + c) / 2, "y": (b + d) / 2, "width": c - a, "height": d - b},
                    }
                    for k, (a, b, c, d) in boxes
                ],
            }
            for name, boxes in items.items()
        ]
    )


def coco(items: dict[str, Boxes]) -> str:
    names = sorted({label for boxes in items.values() for label, _ in boxes})
    return json.dumps(
        {
            "info": {},
            "images": [
                {"id": i + 10, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
                for i, name in enumerate(items)
            ],
            "categories": [{"id": i * 7 + 1, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "id": 100 * i + j,
                    "image_id": i + 10,
                    "category_id": names.index(k) * 7 + 1,
                    "bbox": [a, b, c - a, d - b],
                    "iscrowd": 0,
                }
                for i, boxes in enumerate(items.values())
                for j, (k, (a, b, c, d)) in enumerate(boxes)
            ],
        }
    )


def lay_out(root: pathlib.Path, layout: str) -> None:
    names = ["dog", "собака", "cat"]
    by_split: dict[str, dict[str, Boxes]] = {}
    for path, boxes in DATA.items():
        split, name = path.split("/")
        by_split.setdefault(split, {})[name] = boxes
        mirrored = layout in ("yolo-mirror",)
        picture(root / (f"images/{path}" if mirrored else path))
        stem = path.removesuffix(".jpg")
        if layout == "voc":
            (root / f"{stem}.xml").write_text(voc(name, boxes), encoding="utf-8")
        elif layout == "yolo-beside":
            (root / f"{stem}.txt").write_text(yolo(boxes, names))
            (root / split / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        elif mirrored:
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / f"labels/{stem}.txt").write_text(yolo(boxes, names))
            (root / "data.yaml").write_text(
                f"train: images/train\nnc: 3\nnames: {json.dumps(names)}\n", encoding="utf-8"
            )
    for split, items in by_split.items():
        if layout == "createml":
            (root / split / "annotations.json").write_text(createml(items, "image", "annotations"))
        elif layout == "createml-new":
            (root / split / "_annotations.createml.json").write_text(
                createml(items, "imageFilename", "annotation")
            )
        elif layout == "coco":
            (root / split / "_annotations.coco.json").write_text(coco(items))
        elif layout == "coco-instances":
            (root / "annotations").mkdir(exist_ok=True)
            (root / f"annotations/instances_{split}2017.json").write_text(coco(items))


LAYOUTS = ["voc", "yolo-beside", "yolo-mirror", "createml", "createml-new", "coco", "coco-instances"]


def read(source: pathlib.Path, **options: object) -> Samples:
    said: list[str] = []
    samples = open_source(DataSpec(source=str(source), **options), said.append)
    assert tuple(said) == samples.notes
    return samples


def found(samples: Samples) -> set[tuple[str, str, str]]:
    names = (path.removeprefix("images/") for path in samples.paths)
    return set(zip(names, (samples.classes[k] for k in samples.labels), samples.splits, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_label_for_each_image(tmp_path: pathlib.Path, layout: str) -> None:
    lay_out(tmp_path, layout)
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog", "собака")
    assert found(samples) == {
        ("train/one.jpg", "cat", "train"),
        ("train/two.jpg", "dog", "train"),
        ("val/three.jpg", "собака", "val"),
        ("test/four.jpg", "cat", "test"),
    }
    assert samples.boxes is None
    assert [(c.path.removeprefix("images/"), c.labels) for c in samples.conflicts] == [
        ("train/mixed.jpg", ("cat", "dog"))
    ]
    assert any("more than one label" in note for note in samples.notes)
    assert any("1 image without" in note for note in samples.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_crop_for_each_box(tmp_path: pathlib.Path, layout: str) -> None:
    lay_out(tmp_path, layout)
    samples = read(tmp_path, boxes="crop")
    assert samples.boxes is not None
    table = {
        (path.removeprefix("images/"), samples.classes[label], tuple(np.round(box, 2).tolist()))
        for path, label, box in zip(samples.paths, samples.labels, samples.boxes, strict=True)
    }
    assert table == {
        (path, label, tuple(map(float, box))) for path, boxes in DATA.items() for label, box in boxes
    }
    assert len(samples) == sum(map(len, DATA.values()))
    assert samples.conflicts == ()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_yolo_boxes_are_of_the_upright_image(tmp_path: pathlib.Path, orientation: int) -> None:
    picture(tmp_path / "a.jpg", orientation)
    (tmp_path / "a.txt").write_text("0 0.5 0.25 1 0.5\n1 0 0 0.5 0.25 0.25 1\n")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("0 0.5 0.5 1 1\n")
    samples = read(tmp_path, boxes="crop", val_fraction=0, test_fraction=0)
    width, height = SIZE if orientation < 5 else SIZE[::-1]
    assert samples.boxes is not None
    assert samples.boxes[0].tolist() == [0, 0, width, height / 2]
    assert samples.boxes[1].tolist() == [0, 0, width / 2, height] or samples.boxes[1].tolist() == [
        0,
        0,
        width / 4,
        height,
    ]
    assert np.isnan(samples.boxes[2]).all()  # decoding will list it
    assert samples.classes == ("0", "1")


def test_yolo_polygons_become_their_bounding_box(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("0 0.1 0.5 0.4 0.2 0.3 0.9\n")
    samples = read(tmp_path, boxes="crop")
    assert samples.boxes is not None
    np.testing.assert_allclose(samples.boxes[0], [20, 20, 80, 90])


def test_labelimg_orders_classes_per_folder(tmp_path: pathlib.Path) -> None:
    """LabelImg writes one classes.txt for each folder, in the order in which labels were first used there."""
    for split, names in (("train", "cat\ndog\n"), ("val", "dog\ncat\n")):
        for number, name in enumerate(("x", "y")):
            picture(tmp_path / split / f"{name}.jpg")
            (tmp_path / split / f"{name}.txt").write_text(f"{number} 0.5 0.5 0.5 0.5\n")
        (tmp_path / split / "classes.txt").write_text(names)
    assert found(read(tmp_path)) == {
        ("train/x.jpg", "cat", "train"),
        ("train/y.jpg", "dog", "train"),
        ("val/x.jpg", "dog", "val"),
        ("val/y.jpg", "cat", "val"),
    }


def test_crops_of_one_image_stay_in_one_split(tmp_path: pathlib.Path) -> None:
    for number in range(30):
        picture(tmp_path / f"{number}.jpg")
        boxes: Boxes = [("ab"[k % 2], (k, k, k + 9, k + 9)) for k in range(4)]
        (tmp_path / f"{number}.xml").write_text(voc(f"{number}.jpg", boxes))
    samples = read(tmp_path, boxes="crop")
    assert len(samples) == 120
    assert set(samples.splits) == {"train", "val", "test"}
    assert len(set(zip(samples.paths, samples.splits, strict=True))) == 30


def test_voc_devkit_layout_with_image_sets(tmp_path: pathlib.Path) -> None:
    for name in ("0001", "0002", "0003"):
        picture(tmp_path / f"VOC2007/JPEGImages/{name}.jpg")
        path = tmp_path / f"VOC2007/Annotations/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc(f"{name}.jpg", [("cat", (1, 1, 9, 9))]))
    (tmp_path / "VOC2007/ImageSets/Main").mkdir(parents=True)
    for split, name in (("train", "0001"), ("val", "0002"), ("test", "0003")):
        (tmp_path / f"VOC2007/ImageSets/Main/{split}.txt").write_text(name + "\n")
    assert read(tmp_path).splits.tolist() == ["train", "val", "test"]


def test_the_annotation_file_itself_is_a_source(tmp_path: pathlib.Path) -> None:
    lay_out(tmp_path, "coco-instances")
    samples = read(tmp_path / "annotations/instances_val2017.json")
    assert found(samples) == {("val/three.jpg", "собака", "val")}
    lay_out(tmp_path / "v", "voc")
    assert read(tmp_path / "v/train/one.xml").paths.tolist() == ["one.jpg"]
    lay_out(tmp_path / "c", "createml")
    assert set(read(tmp_path / "c/train/annotations.json").paths) == {"one.jpg", "two.jpg"}
    assert len(read(tmp_path / "c/train/annotations.json", format="createml")) == 2


def test_flat_annotations_are_split_by_the_rules(tmp_path: pathlib.Path) -> None:
    items: dict[str, Boxes] = {f"{n:02d}.jpg": [("ab"[n % 2], (0, 0, 9, 9))] for n in range(40)}
    for name in items:
        picture(tmp_path / name)
    (tmp_path / "labels.json").write_text(coco(items))
    samples = read(tmp_path)
    assert [samples.counts(s).tolist() for s in ("train", "val", "test")] == [[14, 14], [2, 2], [4, 4]]


def test_missing_images_and_empty_boxes_are_noted(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "unmentioned.jpg")
    (tmp_path / "a.xml").write_text(
        voc("a.jpg", [("cat", (5, 5, 5, 9)), ("dog", (1, 1, 8, 8)), ("dog", (1, 1, 8, 8))])
    )
    (tmp_path / "gone.xml").write_text(voc("gone.jpg", [("cat", (1, 1, 8, 8))]))
    samples = read(tmp_path, boxes="crop")
    assert len(samples) == 1
    text = " ".join(samples.notes)
    assert "Skipped 1 annotation whose image is missing: gone.jpg" in text
    assert "1 image without an annotation" in text
    assert "1 empty box" in text


def test_one_box_with_two_labels_is_a_conflict(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "a.jpg")
    boxes: Boxes = [("cat", (1, 1, 8, 8)), ("dog", (1, 1, 8, 8)), ("dog", (2, 2, 8, 8))]
    (tmp_path / "a.xml").write_text(voc("a.jpg", boxes))
    samples = read(tmp_path, boxes="crop")
    assert len(samples) == 1
    assert samples.conflicts == (Conflict("a.jpg", ("cat", "dog")),)


def test_labels_without_boxes(tmp_path: pathlib.Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
    value = json.loads(
        coco({"a.jpg": [("cat", (0, 0, 5, 5))], "b.jpg": [("dog", (0, 0, 5, 5)), ("cat", (0, 0, 6, 6))]})
    )
    del value["annotations"][0]["bbox"]
    value["annotations"][2]["iscrowd"] = 1
    (tmp_path / "c.json").write_text(json.dumps(value))
    assert found(read(tmp_path, val_fraction=0, test_fraction=0)) == {
        ("a.jpg", "cat", "train"),
        ("b.jpg", "dog", "train"),
    }
    (tmp_path / "c.json").write_text(json.dumps([{"image": "a.jpg", "annotations": [{"label": "cat"}]}]))
    samples = read(tmp_path, boxes="crop")
    assert samples.boxes is not None
    assert np.isnan(samples.boxes).all()


BOMB = '<!DOCTYPE annotation [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "head", [BOMB, "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'>", "<!DOCTYPE annotation>"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_entities_are_refused(tmp_path: pathlib.Path, head: str, encoding: str) -> None:
    picture(tmp_path / "a.jpg")
    text = f"<?xml version='1.0' encoding='{encoding}'?>" + voc("a.jpg", [("cat", (1, 1, 8, 8))], head)
    (tmp_path / "a.xml").write_text(text, encoding=encoding)
    with pytest.raises(DataError, match="document type"):
        read(tmp_path)
    (tmp_path / "a.xml").write_text(text.replace(head, ""), encoding=encoding)
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "text", "kind", "words"),
    [
        ("a.xml", "<annotation><object>", "voc", "not well-formed"),
        (
            "a.xml",
            "<annotation><object><name>x</name><bndbox><xmin>one</xmin></bndbox></object></annotation>",
            "voc",
            "not a number",
        ),
        ("a.json", "{", "coco", "not valid JSON"),
        ("a.json", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "coco", "not valid COCO"),
        (
            "a.json",
            '{"images": [], "annotations": [{"image_id": 3, "category_id": 1}], "categories": []}',
            "coco",
            "not listed",
        ),
        ("a.json", '[{"image": "a.jpg", "annotations": [{"coordinates": {}}]}]', "createml", "has no label"),
        (
            "a.json",
            '[{"image": "a.jpg", "annotations": [{"label": "x", "coordinates": {"x": 1}}]}]',
            "createml",
            "not a number",
        ),
        ("a.txt", "0 0.5 0.5 1 1\n0 1 1\n", "yolo", "line 2|No YOLO"),
        ("a.txt", "7 0.5 0.5 1 1\n", "yolo", "class 7 has no name"),
        ("a.txt", "0 0.5 0.5 1 1 0.5 0.5 0.1\n", "yolo", "pairs of coordinates"),
        ("a.txt", "0 0.5 0.5 1 1\n" * 6 + "what\n", "yolo", "line 7"),
    ],
)
def test_damaged_annotations_are_named(
    tmp_path: pathlib.Path, name: str, text: str, kind: str, words: str
) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / name).write_text(text)
    (tmp_path / "classes.txt").write_text("only\n")
    with pytest.raises(DataError, match=words):
        read(tmp_path, format=kind)


def test_class_folders_with_captions_are_still_class_folders(tmp_path: pathlib.Path) -> None:
    for label in ("cat", "dog"):
        for number in range(4):
            picture(tmp_path / f"{label}/{number}.jpg")
            (tmp_path / f"{label}/{number}.txt").write_text(f"a photo of a {label}")
            (tmp_path / f"{label}/{number}.json").write_text('{"author": "me"}')
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert len(samples) == 8
