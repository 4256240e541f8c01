"""Annotation files that are wrong in places: stale names, damage, other encodings, leftovers beside class folders."""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from tests.pictures import blank

from tellapart.data.health import examine
from tellapart.data.samples import Samples
from tellapart.data.sources.opening import open_source
from tellapart.data.stores.images import write_bad_images
from tellapart.errors import DataError
from tellapart.spec import DataSpec, Spec, update
from tellapart.training import setup

NAMES = ("cat", "dog", "bird")


picture = functools.partial(blank, size=(20, 10))


def read(source: pathlib.Path, **options: Any) -> Samples:
    return open_source(DataSpec(source=str(source), **options), lambda _: None)


def labels(samples: Samples) -> dict[str, str]:
    return {path: samples.classes[label] for path, label in zip(samples.paths, samples.labels, strict=True)}


def told(samples: Samples) -> str:
    return " ".join(samples.notes)


def voc(name: str, label: str, folder: str = "f", head: str = "") -> str:
    return (
        f"{head}<annotation><folder>{folder}</folder><filename>{name}</filename><object><name>{label}</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )


def write_voc(
    root: pathlib.Path, count: int, named: Callable[[int], str] = "{}.jpg".format
) -> dict[str, str]:
    for number in range(count):
        picture(root / f"{number}.jpg")
        (root / f"{number}.xml").write_text(voc(named(number), NAMES[number % 3]))
    return {f"{number}.jpg": NAMES[number % 3] for number in range(count)}


# --- Which image is meant ---------------------------------------------------------------------------------


def test_the_image_of_the_same_stem_goes_before_a_stale_name(tmp_path: pathlib.Path) -> None:
    truth = write_voc(tmp_path, 40, lambda n: f"{8 if n == 7 else n}.jpg")
    samples = read(tmp_path)
    assert labels(samples) == truth
    assert "1 annotation whose own name" in told(samples)
    assert "7.xml says '8.jpg', taken was '7.jpg'" in told(samples)


def test_many_stale_names_are_an_error_and_an_option_decides(tmp_path: pathlib.Path) -> None:
    truth = write_voc(tmp_path, 12, lambda n: f"{(n + 1) % 12}.jpg")
    with pytest.raises(
        DataError, match=r"12 annotations of 12 name another image.*0\.xml says '1\.jpg'.*--data\.match"
    ):
        read(tmp_path)
    assert labels(read(tmp_path, match="stem")) == truth
    named = {f"{(n + 1) % 12}.jpg": NAMES[n % 3] for n in range(12)}
    assert labels(read(tmp_path, match="name")) == named


STALE = {
    "another name that is not there": lambda n: f"old_{n}.jpg",
    "no extension": lambda n: f"{n}",
    "another case": lambda n: f"{n}.JPG",
    "another extension": lambda n: f"{n}.png",
    "a path of Windows": lambda n: f"C:\\Users\\me\\Pictures\\{n}.jpg",
    "nothing": lambda n: "",
    "a placeholder": lambda n: "%s",
}


@pytest.mark.parametrize("kind", sorted(STALE))
def test_names_that_lead_nowhere_do_no_harm(tmp_path: pathlib.Path, kind: str) -> None:
    truth = write_voc(tmp_path, 6, STALE[kind])
    samples = read(tmp_path)
    assert labels(samples) == truth
    assert "whose own name" not in told(samples)


def test_labelme_pairs_that_were_renamed_together(tmp_path: pathlib.Path) -> None:
    for number in range(9):
        picture(tmp_path / f"{number}.jpg")
        content = {
            "shapes": [{"label": NAMES[number % 3], "points": [[1, 1], [5, 5]]}],
            "imagePath": f"{number + 1}.jpg",
        }
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="8 annotations of 9 name another image"):
        read(tmp_path)
    assert labels(read(tmp_path, match="stem")) == {f"{n}.jpg": NAMES[n % 3] for n in range(9)}


def test_two_images_of_one_stem(tmp_path: pathlib.Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.xml").write_text(voc(f"{number}.png" if number < 3 else "", NAMES[number % 2]))
    picture(tmp_path / "0.png")
    picture(tmp_path / "3.png")
    samples = read(tmp_path)
    assert labels(samples) == {"0.png": "cat", "1.jpg": "dog", "2.jpg": "cat"}
    assert [item.path for item in samples.unusable] == ["3.xml"]
    assert "3.jpg or 3.png" in samples.unusable[0].reason


def test_one_name_in_two_folders(tmp_path: pathlib.Path) -> None:
    for folder, label in (("red", "cat"), ("blue", "dog")):
        picture(tmp_path / f"images/{folder}/1.jpg")
        (tmp_path / "xml").mkdir(exist_ok=True)
        (tmp_path / f"xml/{folder}.xml").write_text(voc("1.jpg", label, folder))
    assert labels(read(tmp_path, format="voc")) == {"images/red/1.jpg": "cat", "images/blue/1.jpg": "dog"}


def test_names_in_other_cases_and_forms_are_found_by_lists_of_images(tmp_path: pathlib.Path) -> None:
    picture(tmp_path / "images/Löwe.jpg")
    picture(tmp_path / "images/b.JPG")
    picture(tmp_path / "images/c.jpg")
    names = ("Lo\u0308we.jpg", "D:\\data\\B.jpg", "photos/c")
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "category_id": number} for number in range(3)],
    }
    (tmp_path / "1.json").write_text(json.dumps(content))
    picture(tmp_path / "images/1.jpg")  # the file's own stem means nothing where it speaks of many
    found = {"images/Löwe.jpg": "cat", "images/b.JPG": "dog", "images/c.jpg": "bird"}
    assert labels(read(tmp_path)) == found


# --- Damage -----------------------------------------------------------------------------------------------


def damage_voc(root: pathlib.Path) -> None:
    write_voc(root, 12)
    (root / "5.xml").write_text("<annotation><filename>5.jpg</filename><obj")


def damage_empty(root: pathlib.Path) -> None:
    write_voc(root, 12)
    (root / "5.xml").write_text("")


def damage_number(root: pathlib.Path) -> None:
    write_voc(root, 12)
    (root / "5.xml").write_text(voc("5.jpg", "cat").replace("<xmin>1<", "<xmin><"))


def damage_yolo(root: pathlib.Path) -> None:
    write_yolo(root, b"cat\ndog\nbird\n")
    (root / "5.txt").write_text("7 0.5 0.5 1 1\n")


def damage_yolo_line(root: pathlib.Path) -> None:
    write_yolo(root, b"cat\ndog\nbird\n")
    (root / "5.txt").write_text("cat 0.5 0.5 1 1\n")


def damage_labelme(root: pathlib.Path) -> None:
    for number in range(12):
        picture(root / f"{number}.jpg")
        content = {
            "shapes": [{"label": NAMES[number % 3], "points": [[1, 1], [5, 5]]}],
            "imagePath": f"{number}.jpg",
        }
        (root / f"{number}.json").write_text(json.dumps(content)[: -30 if number == 5 else None])


def damage_createml(root: pathlib.Path) -> None:
    for number in range(12):
        picture(root / f"{number}.jpg")
    found = [[{"label": NAMES[n % 3] if n != 5 else ""}, {"label": NAMES[n % 3]}] for n in range(12)]
    (root / "a.json").write_text(
        json.dumps([{"image": f"{n}.jpg", "annotations": f} for n, f in enumerate(found)])
    )


def damage_coco(root: pathlib.Path) -> None:
    for number in range(12):
        picture(root / f"{number}.jpg")
    boxes: list[dict[str, Any]] = [
        {"image_id": n, "category_id": n % 3, "bbox": [1, 1, 5, 5]} for n in range(12)
    ]
    boxes[5]["bbox"] = [1, 2, float("nan"), 3]
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(12)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)],
        "annotations": [*boxes, {"image_id": 5, "category_id": 2, "bbox": [1, 1, 2, 2]}],
    }
    (root / "a.json").write_text(json.dumps(content))


def damage_cvat(root: pathlib.Path) -> None:
    text = ""
    for number in range(12):
        picture(root / f"{number}.jpg")
        label = "" if number == 5 else NAMES[number % 3]
        text += f'<image name="{number}.jpg"><tag label="{label}"/></image>'
    (root / "annotations.xml").write_text(f"<annotations>{text}</annotations>")


def damage_retinanet(root: pathlib.Path) -> None:
    for number in range(30):
        picture(root / f"{number}.jpg")
    lines = [f"{n}.jpg,1,1,9,9,{NAMES[n % 3]}" if n != 25 else "25.jpg,1,1,x,9,cat" for n in range(30)]
    (root / "annotations.csv").write_text("\n".join(lines))


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda value: value.__name__)
def test_one_bad_annotation_is_listed_and_its_image_left_out(
    tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    damage(tmp_path)
    count = len(list(tmp_path.glob("*.jpg")))
    bad = "25.jpg" if count == 30 else "5.jpg"
    samples = read(tmp_path)
    expected = {f"{n}.jpg": NAMES[n % 3] for n in range(count)}
    del expected[bad]
    assert labels(samples) == expected
    assert [item.path for item in samples.unusable] == [bad]
    assert samples.unusable[0].reason in told(samples)
    with pytest.raises(DataError, match=r"cannot be used, the first: (5|25)\.jpg: .*on-bad-image skip"):
        read(tmp_path, on_bad_image="error")


def test_an_annotation_of_no_image_is_listed(tmp_path: pathlib.Path) -> None:
    damage_coco(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][5] = {"image_id": 99, "category_id": 0}
    (tmp_path / "a.json").write_text(json.dumps(content))
    samples = read(tmp_path)
    assert len(samples) == 12
    assert [item.path for item in samples.unusable] == ["a.json"]
    assert "image 99" in samples.unusable[0].reason


def test_mostly_bad_annotations_are_an_error(tmp_path: pathlib.Path) -> None:
    write_voc(tmp_path, 9)
    for number in range(5):
        (tmp_path / f"{number}.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"5 of 9 Pascal VOC annotations cannot be used; the first: .*0\.xml"):
        read(tmp_path)


def test_check_and_train_list_a_bad_annotation(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "data"
    write_voc(root, 30)
    for number in range(30):  # no two alike
        Image.effect_noise((20, 20), 10 + number).convert("RGB").save(root / f"{number}.jpg")
    (root / "5.xml").write_text("")
    samples = read(root)
    health = examine(samples, workers=1)
    finding = next(finding for finding in health.findings if finding.code == "unusable")
    assert finding.message == "The reader skipped 1 image or annotation."
    assert finding.paths[0].startswith("5.jpg: ")
    spec = update(
        Spec(), {"data.source": str(root), "data.cache_dir": str(tmp_path / "cache"), "input.size": 16}
    )
    prepared = setup.prepare(spec, samples, lambda count: None)
    write_bad_images(prepared.bad, tmp_path / "bad-images.csv")
    with open(tmp_path / "bad-images.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["5.jpg"]
    assert "not well-formed XML" in rows[0]["reason"]


# --- Encodings --------------------------------------------------------------------------------------------


def write_yolo(root: pathlib.Path, names: bytes, file: str = "classes.txt") -> None:
    for number in range(12):
        picture(root / f"{number}.jpg")
        (root / f"{number}.txt").write_text(f"{number % 3} 0.5 0.5 1 1\n")
    (root / file).write_bytes(names)


WORDS = {
    "gbk": ("雏菊", "玫瑰", "月季"),
    "big5": ("雛菊", "玫瑰", "月季"),
    "shift_jis": ("薔薇", "表", "菊花"),
    "cp1251": ("роза", "мак", "лён"),
    "cp1252": ("Löwe", "Läwe", "Bär"),
    "utf-16": ("雏菊", "玫瑰", "月季"),
}


def quoted(names: tuple[str, ...]) -> str:
    return json.dumps(names, ensure_ascii=False)


@pytest.mark.parametrize("codec", sorted(WORDS))
@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "_darknet.labels", "data.yaml"])
def test_names_are_never_merged_or_mangled(tmp_path: pathlib.Path, codec: str, file: str) -> None:
    names = WORDS[codec]
    text = f"names: {quoted(names)}\n" if file == "data.yaml" else "\n".join(names) + "\n"
    write_yolo(tmp_path, text.encode(codec), file)
    expected = {f"{n}.jpg": names[n % 3] for n in range(12)}
    if codec == "utf-16":
        assert labels(read(tmp_path)) == expected
        return
    with pytest.raises(DataError, match=rf"{file}', line 1: the bytes .*--data\.encoding"):
        read(tmp_path)
    assert labels(read(tmp_path, encoding=codec)) == expected
    samples = read(tmp_path, encoding="auto")
    assert labels(samples) == expected
    assert "which was guessed" in told(samples)


@pytest.mark.parametrize("codec", sorted(set(WORDS) - {"utf-16"}))
def test_xml_in_other_encodings(tmp_path: pathlib.Path, codec: str) -> None:
    expected = {}
    for number in range(12):
        picture(tmp_path / f"{number}.jpg")
        expected[f"{number}.jpg"] = WORDS[codec][number % 3]
        head = f'<?xml version="1.0" encoding="{codec}"?>'
        (tmp_path / f"{number}.xml").write_bytes(voc("", WORDS[codec][number % 3], head=head).encode(codec))
    assert labels(read(tmp_path)) == expected
    for file in tmp_path.glob("*.xml"):
        file.write_bytes(file.read_bytes().partition(b"?>")[2])
    with pytest.raises(DataError, match=r"\.xml', line 1: the bytes"):  # not listed as one bad annotation
        read(tmp_path)
    assert labels(read(tmp_path, encoding=codec)) == expected
    assert labels(read(tmp_path, encoding="auto")) == expected


@pytest.mark.parametrize("codec", sorted(set(WORDS) - {"utf-16"}))
def test_json_in_other_encodings(tmp_path: pathlib.Path, codec: str) -> None:
    names = WORDS[codec]
    items = [{"image": f"{n}.jpg", "annotations": [{"label": names[n % 3]}]} for n in range(12)]
    for number in range(12):
        picture(tmp_path / f"{number}.jpg")
    (tmp_path / "a.json").write_bytes(json.dumps(items, ensure_ascii=False).encode(codec))
    with pytest.raises(DataError, match=r"a\.json', line 1: the bytes"):
        read(tmp_path)
    assert labels(read(tmp_path, encoding=codec)) == {f"{n}.jpg": names[n % 3] for n in range(12)}


def test_auto_does_not_take_a_name_for_utf8_beside_others_that_are_not(tmp_path: pathlib.Path) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.jpg")
        name = ("猫", "狗")[number % 2]  # the first is "è" in UTF-8
        (tmp_path / f"{number}.xml").write_bytes(voc("", name).encode("gbk"))
    with pytest.raises(DataError, match="the bytes b9 b7"):
        read(tmp_path)
    with pytest.raises(
        DataError, match=r"can be UTF-8 \('è'\) and gb18030 \('猫'\).*--data\.encoding gb18030"
    ):
        read(tmp_path, encoding="auto")
    assert set(labels(read(tmp_path, encoding="gb18030")).values()) == {"猫", "狗"}


def test_auto_reads_utf8_and_other_files_side_by_side(tmp_path: pathlib.Path) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.jpg")
        codec = ("utf-8", "cp1251")[number % 2]
        (tmp_path / f"{number}.xml").write_bytes(voc("", ("роза", "мак")[number // 2 % 2]).encode(codec))
    samples = read(tmp_path, encoding="auto")
    assert labels(samples) == {f"{n}.jpg": ("роза", "мак")[n // 2 % 2] for n in range(6)}
    assert "The same holds for 2 more" in told(samples)


def test_names_of_yaml_are_text(tmp_path: pathlib.Path) -> None:
    write_yolo(tmp_path, b"nc: 3\nnames: [no, 1.0, 2024-01-01]\n", "data.yaml")
    assert read(tmp_path).classes == ("1.0", "2024-01-01", "no")
    (tmp_path / "data.yaml").write_bytes(b"nc: 4\nnames:\n  0: on\n  1: ~\n  2: cat\n")
    samples = read(tmp_path)
    assert set(samples.classes) == {"on", "~", "cat"}
    assert "nc 4 and 3 names" in told(samples)
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
    )
    (tmp_path / "data.yaml").write_text(bomb + "names: [*a29, b, c]\n")
    with pytest.raises(DataError, match="aliases"):
        read(tmp_path)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_the_encoding_that_the_error_names_reads_the_source(tmp_path: pathlib.Path, codec: str) -> None:
    write_yolo(tmp_path, "雏菊\n玫瑰\n月季\n".encode(codec))  # the label files are ASCII
    with pytest.raises(DataError, match=f"--data.encoding {codec} reads it"):
        read(tmp_path)
    assert set(read(tmp_path, encoding=codec).classes) == {"雏菊", "玫瑰", "月季"}
    assert set(read(tmp_path, encoding="auto").classes) == {"雏菊", "玫瑰", "月季"}


def test_files_of_names_that_mislead(tmp_path: pathlib.Path) -> None:
    write_yolo(tmp_path, b"cat\ncat\ndog\n")
    assert "more than once (cat)" in told(read(tmp_path))
    (tmp_path / "classes.txt").write_bytes(b"cat\n\ndog\n")
    assert read(tmp_path).classes == ("1", "cat", "dog")
    (tmp_path / "classes.txt").write_bytes("cat\ufeffdog\nbird\nfish\n".encode())
    with pytest.raises(DataError, match="byte-order mark within a line"):
        read(tmp_path)
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\n\ufeffdo\x85g\nfish\n".encode())
    assert read(tmp_path).classes == ("cat", "do\x85g", "fish")
    (tmp_path / "a.yaml").write_text("names: [cat, fish, dog]")
    assert read(tmp_path).classes == ("cat", "dog", "fish")
    assert "a.yaml names the classes; other files of class names differ from it" in told(read(tmp_path))
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "a.yaml").unlink()
    assert "the classes are numbers" in told(read(tmp_path))
    (tmp_path / "a.yaml").write_text("names: [a, b, c]")
    (tmp_path / "b.yaml").write_text("names: [c, b, a]")
    with pytest.raises(DataError, match=r"a\.yaml and b\.yaml name the classes differently"):
        read(tmp_path)


# --- Beside class folders, and several at once ------------------------------------------------------------


def class_folders(root: pathlib.Path) -> None:
    for number in range(12):
        picture(root / f"{NAMES[number % 3]}/{number}.jpg")


def coco(root: pathlib.Path, found: dict[str, str]) -> None:
    names = sorted(set(found.values()))
    content = {
        "images": [{"id": n, "file_name": path} for n, path in enumerate(found)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "category_id": names.index(name)} for n, name in enumerate(found.values())
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))


LEFT = {
    "of one image": ({"cat/0.jpg": "petal"}, "speak of 1 of 12 images"),
    "of images that are gone": ({"x.jpg": "petal", "y.jpg": "leaf"}, "annotations beside them are not: "),
    "of one class": ({f"{NAMES[n % 3]}/{n}.jpg": "petal" for n in range(12)}, "name one class, petal"),
    "that correspond": (
        {f"{NAMES[n % 3]}/{n}.jpg": f"class {n % 3}" for n in range(12)},
        "correspond to the folders'",
    ),
    "that agree": (
        {f"{NAMES[n % 3]}/{n}.jpg": NAMES[n % 3].title() for n in range(12)},
        "for 12 of 12 images",
    ),
}


@pytest.mark.parametrize("kind", sorted(LEFT))
def test_class_folders_go_before_leftover_annotations(tmp_path: pathlib.Path, kind: str) -> None:
    class_folders(tmp_path)
    found, words = LEFT[kind]
    coco(tmp_path, found)
    samples = read(tmp_path)
    assert labels(samples) == {f"{NAMES[n % 3]}/{n}.jpg": NAMES[n % 3] for n in range(12)}
    assert "Class folders are read" in told(samples)
    assert words in told(samples)
    if "gone" not in kind:
        assert set(labels(read(tmp_path, format="coco")).values()) == set(found.values())


def test_class_folders_and_whole_annotations_that_disagree_are_an_error(tmp_path: pathlib.Path) -> None:
    class_folders(tmp_path)
    coco(tmp_path, {f"{NAMES[n % 3]}/{n}.jpg": ("young", "old")[n % 2] for n in range(12)})
    with pytest.raises(DataError, match=r"--data\.format folder or --data\.format coco"):
        read(tmp_path)
    assert set(read(tmp_path, format="folder").classes) == set(NAMES)
    assert set(read(tmp_path, format="coco").classes) == {"old", "young"}


def test_folders_that_say_where_images_come_from_are_no_classes(tmp_path: pathlib.Path) -> None:
    found = {f"VOC20{7 + n % 2:02}/JPEGImages/{n}.jpg": NAMES[n % 3] for n in range(12)}
    for path in found:
        picture(tmp_path / path)
    coco(tmp_path, found)
    assert labels(read(tmp_path)) == found


def test_other_annotations_are_named(tmp_path: pathlib.Path) -> None:
    write_voc(tmp_path, 6)
    coco(tmp_path, {"0.jpg": "cat"})
    assert "There are COCO annotations too; --data.format coco reads those" in told(read(tmp_path))


def test_damaged_files_of_something_else_are_ignored(tmp_path: pathlib.Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
    coco(tmp_path, {f"{n}.jpg": NAMES[n % 2] for n in range(4)})
    (tmp_path / "settings.json").write_bytes("{// 雏菊".encode("gbk"))
    (tmp_path / "a.yaml").write_bytes("# 雏菊".encode("gbk"))
    samples = read(tmp_path)
    assert len(samples) == 4
    assert samples.unusable == ()
    (tmp_path / "instances.json").write_text((tmp_path / "instances.json").read_text()[:-5])
    with pytest.raises(DataError, match=r"instances\.json' is not valid JSON"):
        read(tmp_path)


# --- Splits beside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_lists_of_images_give_the_splits(tmp_path: pathlib.Path, kind: str) -> None:
    if kind == "voc":
        write_voc(tmp_path, 12)
        folder, line = tmp_path / "ImageSets/Main", "{} 1"
        (tmp_path / "1x.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    else:
        write_yolo(tmp_path, b"cat\ndog\nbird\n")
        folder, line = tmp_path, "C:\\data\\images\\{}.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in {"train": range(7), "valid": range(6, 9), "test": range(8, 12)}.items():
        (folder / f"{split}.txt").write_text("\n".join(line.format(n) for n in numbers))
    samples = read(tmp_path)
    splits = dict(zip(samples.paths, samples.splits, strict=True))
    expected = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    assert splits == {f"{n}.jpg": split for n, split in enumerate(expected)}
    assert "2 images listed in more than one split" in told(samples)


def test_an_image_in_two_files_of_annotations_is_in_one_split(tmp_path: pathlib.Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.jpg")
    coco(tmp_path, {f"{n}.jpg": NAMES[n % 2] for n in range(4)})
    (tmp_path / "test.json").write_text((tmp_path / "instances.json").read_text())
    (tmp_path / "instances.json").rename(tmp_path / "train.json")
    samples = read(tmp_path)
    assert samples.splits.tolist() == ["test"] * 4
    assert "4 images listed in more than one split" in told(samples)


def test_annotations_are_found_among_many_other_files(tmp_path: pathlib.Path) -> None:
    for number in range(30):
        picture(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.json").write_text('{"author": "me"}')
    coco(tmp_path, {f"{n}.jpg": NAMES[n % 2] for n in range(30)})
    (tmp_path / "instances.json").rename(tmp_path / "z.json")
    assert len(read(tmp_path)) == 30
