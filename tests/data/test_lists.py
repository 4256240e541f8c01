"""Lists as people have them: columns by their names and content, images found by rules, splits in many words."""

from __future__ import annotations

import json
import os
import pathlib
import unicodedata

import pytest

from tellapart.data.samples import Conflict, Samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

KINDS = ("cat", "dog", "frog")
NUMBER = {kind: str(number) for number, kind in enumerate(KINDS)}


def put(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def stems(count: int = 12) -> list[tuple[str, str]]:
    """Return (stem of a file's name, class); the name holds the class, so that each row can be checked."""
    return [(f"{number:02x}{KINDS[number % 3]}", KINDS[number % 3]) for number in range(count)]


def write(path: pathlib.Path, rows: list[str], encoding: str = "utf-8") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def read(source: object, **options: object) -> Samples:
    options = {"val_fraction": 0.0, "test_fraction": 0.0, **options}
    return open_source(DataSpec(source=str(source), **options), lambda _: None)


def noted(samples: Samples, *words: str) -> bool:
    return any(all(word in note for word in words) for note in samples.notes)


def right(samples: Samples, count: int = 12) -> None:
    """Check that every image is there and has the class that its name says, by name or by number."""
    assert len(samples) == count
    for row, path in enumerate(samples.paths):
        assert os.path.isfile(samples.file(row))
        label = samples.classes[samples.labels[row]]
        assert (label if label in KINDS else KINDS[int(float(label))]) in os.path.basename(path)


# --- Columns ------------------------------------------------------------------------------------------------------

HEADS = [
    "image_id,label", "id,breed", "id_code,diagnosis", "image_name,label", "img,classname", "Image,Id", "Path,ClassId",
    "filename,choice", "image,labels", "Filename,dx", "file_path,category_name", "图片,标签", "Datei,Klasse", "name,species",
    "Image Index,Finding Labels", "filepaths,class id", "id,has_cactus", "picture,what is shown", "weird name,label",
    "uri,tag", "ImageID,Target", "IMG_PATH,CLASS_NAME",
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_columns_by_usual_names_or_content(tmp_path: pathlib.Path, head: str) -> None:
    put(tmp_path, *(f"train/{stem}.jpg" for stem, _ in stems()))
    write(tmp_path / "train.csv", [head, *(f"{stem}.jpg,{kind}" for stem, kind in stems())])
    right(read(tmp_path))
    right(read(tmp_path / "train.csv"))


def test_metadata_around_path_and_label(tmp_path: pathlib.Path) -> None:
    for part in (1, 2):
        put(tmp_path, *(f"HAM_images_part_{part}/{s}.jpg" for s, _ in stems()[part - 1 :: 2]))
    head = ",lesion_id,image_id,dx,dx_type,age,sex"
    write(
        tmp_path / "HAM_metadata.csv",
        [head, *(f"{n},L{n},{s},{k},histo,80.0,male" for n, (s, k) in enumerate(stems()))],
    )
    samples = read(tmp_path)
    right(samples)
    assert noted(samples, "6 paths", "below HAM_images_part_1/, with .jpg")


@pytest.mark.parametrize("values", [("1", "0"), ("1.0", "0.0"), ("True", "False")])
@pytest.mark.parametrize("space", ["", " "])
def test_one_hot_columns(tmp_path: pathlib.Path, values: tuple[str, str], space: str) -> None:
    put(tmp_path, *(f"images/{stem}.jpg" for stem, _ in stems()))
    head = "image," + ",".join(space + kind for kind in KINDS)
    rows = [f"{s},{','.join(values[k != kind] for kind in KINDS)}" for s, k in stems()]
    write(tmp_path / "truth.csv", [head, *rows])
    samples = read(tmp_path)
    right(samples)
    assert samples.classes == KINDS
    assert noted(samples, "One-hot", "cat, dog, frog")
    two = read(tmp_path, label_column=("cat", "dog"))
    assert two.classes == ("cat", "dog")
    assert len(two) == 8
    assert noted(two, "4 rows without")


def test_one_hot_columns_with_two_labels_or_probabilities(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{s},{','.join(str(int(k == kind)) for kind in KINDS)}" for s, k in stems()]
    write(tmp_path / "l.csv", ["image,cat,dog,frog", *rows[:-1], f"{stems()[-1][0]},1,0,1"])
    samples = read(tmp_path / "l.csv", label_column=KINDS)
    right(samples, 11)
    assert samples.conflicts == (Conflict("0bfrog.jpg", ("cat", "frog")),)
    write(tmp_path / "l.csv", ["image,cat,dog,frog", f"{stems()[0][0]},0.3,0.3,0.4"])
    with pytest.raises(DataError, match="lacks a label column"):
        read(tmp_path / "l.csv")
    with pytest.raises(DataError, match=r"line 2: the one-hot column 'cat' is '0\.3'.*Probabilities"):
        read(tmp_path / "l.csv", label_column=KINDS)


def test_of_two_label_columns_that_say_the_same_the_words_are_taken(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{s}.jpg,{NUMBER[k]},{k}" for s, k in stems()]
    samples = read(write(tmp_path / "l.csv", ["image,label,class", *rows]))
    assert samples.classes == KINDS
    right(samples)
    assert noted(samples, "'class'", "not label", "--data.label-column")
    assert read(tmp_path / "l.csv", label_column=("label",)).classes == ("0", "1", "2")
    other = [f"{s}.jpg,{k},{'wild' if n < 5 else 'tame'}" for n, (s, k) in enumerate(stems())]
    samples = read(write(tmp_path / "m.csv", ["image,label,category", *other]))
    assert samples.classes == KINDS
    assert noted(samples, "not category")


def test_columns_that_are_named(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "pics", *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{n},{s},x{n},{k},{('fit', 'check')[n % 2]}" for n, (s, k) in enumerate(stems())]
    path = write(tmp_path / "l.csv", ["a,b,c,d,e", *rows])
    with pytest.raises(DataError, match=r"lacks a label column .*--data\.label-column .*a, b, c, d, e"):
        read(path)
    options = {"path_column": "b", "label_column": ("d",), "root": str(tmp_path / "pics"), "suffix": ".jpg"}
    right(read(path, **options))
    right(read(tmp_path, **options))
    right(read(tmp_path, **{**options, "root": "pics"}))
    for field, value in (("path_column", "q"), ("label_column", ("q",)), ("split_column", "q")):
        with pytest.raises(DataError, match=rf"data\.{field} is 'q', .* It has columns: a, b, c, d, e"):
            read(path, **{**options, field: value})
    with pytest.raises(DataError, match="line 2: e is 'fit'; expected train, val or test"):
        read(path, **options, split_column="e")
    with pytest.raises(DataError, match="no such folder"):
        read(path, **{**options, "root": "nowhere"})


@pytest.mark.parametrize(
    "order", ["path label", "label path", "index path label", "path index label", "split path label"]
)
def test_lists_without_a_header(tmp_path: pathlib.Path, order: str) -> None:
    put(tmp_path, *(f"img/{stem}.jpg" for stem, _ in stems()))
    rows = []
    for n, (stem, kind) in enumerate(stems()):
        cells = {"path": f"img/{stem}.jpg", "label": kind, "index": str(n), "split": ("TRAIN", "TEST")[n % 2]}
        rows.append(",".join(cells[name] for name in order.split()))
    samples = read(write(tmp_path / "l.csv", rows))
    right(samples)
    assert samples.classes == KINDS
    assert set(samples.splits) == ({"train", "test"} if "split" in order else {"train"})


def test_columns_without_a_header_are_named_by_number(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    path = write(tmp_path / "l.csv", [f"x{n % 2},{s}.jpg,{k},y{n % 4}" for n, (s, k) in enumerate(stems())])
    with pytest.raises(DataError, match="lacks a label column"):
        read(path)
    right(read(path, label_column=("3",)))


def test_boxes_without_a_header(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    samples = read(write(tmp_path / "l.csv", [f"{s}.jpg,10,20,30,40,{k}" for s, k in stems()]), boxes="crop")
    right(samples)
    assert samples.boxes is not None
    assert samples.boxes[0].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("mark", [" ", "\t"])
def test_text_lists(tmp_path: pathlib.Path, mark: str) -> None:
    put(tmp_path, *(f"my img/{stem}.jpg" for stem, _ in stems()))
    for name, part in (("train.txt", stems()[:9]), ("val.txt", stems()[9:])):
        write(tmp_path / name, ["# comment", *(f"my img/{s}.jpg{mark}{NUMBER[k]}" for s, k in part)])
    write(tmp_path / "README.txt", ["Photographs of animals.", "See a.jpg for an example."])
    write(tmp_path / "classes.txt", list(KINDS))
    samples = read(tmp_path)
    right(samples)
    assert samples.classes == KINDS
    assert (samples.splits == "val").sum() == 3
    right(read(tmp_path / "train.txt"), 9)


@pytest.mark.parametrize("said", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_line_that_excel_writes_first(tmp_path: pathlib.Path, said: str) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{s}.jpg;{k}" for s, k in stems()]
    right(read(write(tmp_path / "l.csv", [said, "filename;label", *rows])))
    with pytest.raises(DataError, match="line 3: split is 'third'"):
        read(write(tmp_path / "l.csv", [said, "filename;label;split", f"{stems()[0][0]}.jpg;cat;third"]))


def test_a_folder_named_like_a_header_is_no_image(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"image/{stem}.jpg" for stem, _ in stems()), "label/x/1.jpg")
    right(read(write(tmp_path / "l.csv", ["image,label", *(f"image/{s}.jpg,{k}" for s, k in stems())])))


# --- Labels -------------------------------------------------------------------------------------------------------


def test_labels_that_say_nothing_are_no_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()), *(f"x{n}.jpg" for n in range(7)))
    empty = [f"x{n}.jpg,{word}" for n, word in enumerate(("", "nan", "NaN", "N/A", "<NA>", " "))]
    samples = read(
        write(tmp_path / "l.csv", ["filename,label", *(f"{s}.jpg,{k}" for s, k in stems()), *empty, "x6.jpg"])
    )
    right(samples)
    assert noted(samples, "3 rows without a path or a label")
    assert noted(samples, "Skipped 4 rows", "'<NA>', 'N/A', 'NaN', 'nan'")
    samples = read(write(tmp_path / "l.csv", ["filename,label", "x0.jpg,None", "x1.jpg,cat"]))
    assert samples.classes == ("None", "cat")
    assert noted(samples, "'None'", "count as classes")
    lines = [
        json.dumps({"image": f"{stems()[0][0]}.jpg", "label": "cat"}),
        '{"image": "x1.jpg", "label": null}',
    ]
    samples = read(write(tmp_path / "l.jsonl", [*lines, '{"image": "x2.jpg", "label": NaN}']))
    right(samples, 1)


@pytest.mark.parametrize("mark", [" ", ";", "|", ", "])
def test_several_labels_in_a_cell_are_a_conflict(tmp_path: pathlib.Path, mark: str) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()), "x.jpg", "y.jpg")
    rows = [f'{s}.jpg,"{k}"' for s, k in stems()]
    samples = read(
        write(tmp_path / "l.csv", ["f,labels", *rows, f'x.jpg,"cat{mark}dog"', f'y.jpg,"cat{mark}cat"'])
    )
    assert samples.classes == KINDS
    assert samples.conflicts == (Conflict("x.jpg", ("cat", "dog")),)
    assert len(samples) == 13
    write(tmp_path / "l.csv", ["f,labels", *rows, 'x.jpg,"hot dog"'])
    assert read(tmp_path / "l.csv").classes == ("cat", "dog", "frog", "hot dog")


@pytest.mark.parametrize("name", ["label_num_to_disease_map.json", "names.csv"])
def test_numbers_with_names_beside(tmp_path: pathlib.Path, name: str) -> None:
    put(
        tmp_path,
        *(f"train_images/{s}.jpg" for s, _ in stems()),
        *(f"test_images/{s}.jpg" for s, _ in stems()),
    )
    write(tmp_path / "train.csv", ["image_id,label", *(f"{s}.jpg,{NUMBER[k]}" for s, k in stems())])
    write(tmp_path / "sample_submission.csv", ["image_id,label", f"{stems()[0][0]}.jpg,1"])
    pairs = {number: kind for kind, number in NUMBER.items()}
    text = (
        json.dumps(pairs)
        if name.endswith("json")
        else "\n".join(("id,name", *(f"{a},{b}" for a, b in pairs.items())))
    )
    (tmp_path / name).write_text(text)
    samples = read(tmp_path)
    assert samples.classes == KINDS
    right(samples)
    assert all(path.startswith("train_images/") for path in samples.paths)
    assert noted(samples, "sample_submission.csv is not used", "form")


# --- Splits -------------------------------------------------------------------------------------------------------

COLUMNS = {
    "TRAIN VALIDATION TEST": ("split", "train val test"),
    "train dev eval": ("subset", "train val test"),
    "Training PublicTest PrivateTest": ("Usage", "train val test"),
    "False True": ("is_valid", "train val"),
    "0 1": ("is_test", "train test"),
    "1 0": ("is_train", "train test"),
    "3 0": ("fold", "train val"),
    "1.0 0.0 -1.0": ("fold", "train val test"),
    "train valid test": ("data set", "train val test"),
    "训练 验证 测试": ("split", "train val test"),
    "TRAIN UNASSIGNED TEST": ("set", "train train test"),
    "t2017 v2017": ("phase", "train train"),
    "red blue": ("set", "train train"),
}


@pytest.mark.parametrize(("cells", "column", "wanted"), [(c, *rest) for c, rest in COLUMNS.items()])
def test_columns_of_splits(tmp_path: pathlib.Path, cells: str, column: str, wanted: str) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    words, splits = cells.split(), wanted.split()
    rows = [f"{s}.jpg,{k},{words[n % len(words)]}" for n, (s, k) in enumerate(stems())]
    samples = read(write(tmp_path / "l.csv", [f"filename,label,{column}", *rows]))
    right(samples)
    found = dict(zip(samples.paths, samples.splits, strict=True))
    assert [found[f"{s}.jpg"] for s, _ in stems()] == [splits[n % len(splits)] for n in range(12)]
    assert set(read(tmp_path / "l.csv", split_column="none").splits) == {"train"}


def test_several_columns_of_splits_are_asked_about(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{s}.jpg,{k},{n % 2},{n % 3 // 2}" for n, (s, k) in enumerate(stems())]
    path = write(tmp_path / "l.csv", ["filename,label,is_valid,is_test", *rows])
    with pytest.raises(DataError, match=r"is_valid, is_test.*--data\.split-column"):
        read(path)
    assert set(read(path, split_column="is_test").splits) == {"train", "test"}


def test_lists_in_the_folders_of_splits(tmp_path: pathlib.Path) -> None:
    for part in ("train", "valid", "test"):
        put(tmp_path, *(f"{part}/{part}{stem}.jpg" for stem, _ in stems()))
        write(
            tmp_path / part / "metadata.csv", ["file_name,label", *(f"{part}{s}.jpg,{k}" for s, k in stems())]
        )
    samples = read(tmp_path)
    right(samples, 36)
    for path, split in zip(samples.paths, samples.splits, strict=True):
        assert path.startswith({"val": "valid"}.get(split, split))
    for part in ("train", "valid", "test"):
        (tmp_path / part / "metadata.csv").rename(tmp_path / part / "_annotations.csv")
        write(tmp_path / part / "_classes.csv", [f"{kind},{number}" for kind, number in NUMBER.items()])
    right(read(tmp_path), 36)


def test_missing_images_take_no_place_in_a_split(tmp_path: pathlib.Path) -> None:
    names = [f"{number:03d}.png" for number in range(100)]
    put(tmp_path, *names[:20])
    write(tmp_path / "l.csv", ["path,label", *(f"{name},{'ab'[n % 2]}" for n, name in enumerate(names))])
    samples = read(tmp_path / "l.csv", val_fraction=0.1, test_fraction=0.2)
    there = [os.path.isfile(samples.file(row)) for row in range(len(samples))]
    for split, count in (("val", 2), ("test", 4)):
        rows = [row for row in range(len(samples)) if samples.splits[row] == split]
        assert len(rows) == count
        assert all(there[row] for row in rows)
    assert noted(samples, "80 images of 100 images", "not there: 020.png")


# --- Paths --------------------------------------------------------------------------------------------------------

PREFIXES = [
    "C:\\Users\\me\\data\\", "/kaggle/input/flowers/", "/home/other/x/", "D:/x/", "gone/", "../elsewhere/", "https://host/x/",
    "data\\", "./", "",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", ["", "jpg", "JPG"])
def test_paths_of_other_machines_cases_and_without_extension(
    tmp_path: pathlib.Path, prefix: str, ending: str
) -> None:
    root = tmp_path / "below" / "here"
    put(root, *(f"img/{kind}/{stem}.jpg" for stem, kind in stems()))
    mark = "\\" if "\\" in prefix else "/"
    rows = [f"{prefix}img{mark}{k}{mark}{s}{'.' + ending if ending else ''},{k}" for s, k in stems()]
    write(root / "list.csv", ["filename,label", *rows])
    right(read(root))
    right(read(root / "list.csv"))


def test_paths_in_another_unicode_form(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(unicodedata.normalize("NFD", f"blüten/ü{stem}.jpg") for stem, _ in stems()))
    rows = [unicodedata.normalize("NFC", f"blüten/ü{s}.jpg,{k}") for s, k in stems()]
    samples = read(write(tmp_path / "l.csv", ["filename,label", *rows]))
    right(samples)
    assert noted(samples, "Unicode form")


@pytest.mark.parametrize("folder", ["train", "images", "list", "train/deep/er", "x"])
def test_images_below_another_folder(tmp_path: pathlib.Path, folder: str) -> None:
    put(tmp_path, *(f"{folder}/{stem}.jpg" for stem, _ in stems()))
    write(tmp_path / "list.csv", ["id,label", *(f"{s},{k}" for s, k in stems())])
    right(read(tmp_path))


@pytest.mark.parametrize("place", ["labels/train.csv", "Task3_GroundTruth/truth.csv", "annotations/all.csv"])
def test_images_beside_the_folder_of_the_list(tmp_path: pathlib.Path, place: str) -> None:
    put(tmp_path, *(f"images/{stem}.jpg" for stem, _ in stems()))
    write(tmp_path / place, ["id,label", *(f"{s},{k}" for s, k in stems())])
    right(read(tmp_path))
    right(read(tmp_path / place))


def test_a_name_in_train_and_test_is_the_one_in_train(tmp_path: pathlib.Path) -> None:
    for part in ("test", "train"):
        put(tmp_path, *(f"{part}/{stem}.jpg" for stem, _ in stems()))
    (tmp_path / "train" / f"{stems()[5][0]}.jpg").unlink()
    write(tmp_path / "labels.csv", ["id,label", *(f"{s},{k}" for s, k in stems())])
    samples = read(tmp_path)
    assert noted(samples, "1 image of 12 images", "not there")
    there = [path for row, path in enumerate(samples.paths) if os.path.exists(samples.file(row))]
    assert len(there) == 11
    assert all(path.startswith("train/") for path in there)
    (tmp_path / "labels.csv").rename(tmp_path / "test.csv")
    assert all(path.startswith("test/") for path in read(tmp_path).paths)


def test_a_name_in_two_folders_alike_is_not_decided(tmp_path: pathlib.Path) -> None:
    for part in ("colour", "grey"):
        put(tmp_path, *(f"{part}/{kind}/{stem}.jpg" for stem, kind in stems()))
    write(tmp_path / "labels.csv", ["id,label", *(f"{k}/{s},{k}" for s, k in stems())])
    with pytest.raises(DataError, match=r"in colour/ and in grey/ of .* alike.*--data\.root"):
        read(tmp_path, format="list")
    samples = read(tmp_path, root=str(tmp_path / "grey"))
    right(samples)
    assert all(path.startswith("grey/") for path in samples.paths)


def test_an_image_of_the_same_name_in_another_folder_is_not_taken(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"p{n}/1.jpg" for n in range(8)), "p9/2.jpg")
    rows = [f"p{n}/1.jpg,{KINDS[n % 3]}" for n in range(8)]
    samples = read(write(tmp_path / "l.csv", ["path,label", *rows, "p8/2.jpg,cat", "p8/1.jpg,cat"]))
    assert noted(samples, "2 images of 10 images", "p8/2.jpg, p8/1.jpg")
    assert "p9/2.jpg" not in set(samples.paths)


def test_two_names_never_mean_one_file(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"img/{stem}.jpg" for stem, _ in stems()))
    rows = [f"img/{s}.jpg,{k}" for s, k in stems()] + [f"gone/img/{s}.jpg,{KINDS[0]}" for s, _ in stems()]
    samples = read(write(tmp_path / "l.csv", ["path,label", *rows]))
    assert noted(samples, "12 images of 24 images")
    assert samples.conflicts == ()
    for row, path in enumerate(samples.paths):
        if os.path.exists(samples.file(row)):
            assert samples.classes[samples.labels[row]] in path


# --- Lists and folders --------------------------------------------------------------------------------------------


def test_a_list_that_is_not_used_is_named_with_its_reason(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"train_images/{k}/{s}.jpg" for s, k in stems()), "test_images/1.jpg")
    write(tmp_path / "train.csv", ["image_id,label,age", *(f"{s}.jpg,{k},45" for s, k in stems())])
    samples = read(tmp_path)
    right(samples)
    assert noted(samples, "train.csv is not used: the folders make splits", "--data.format list")
    right(read(tmp_path, format="list"))
    write(tmp_path / "more.csv", ["a,b,c", "x,y,z"])
    assert noted(read(tmp_path), "more.csv is not used: lacks a path column", "a, b, c")


def test_without_class_folders_the_error_says_why_the_list_is_not_used(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"img/{stem}.jpg" for stem, _ in stems()))
    write(tmp_path / "l.csv", ["path,label", "none/of/these.jpg,cat"])
    with pytest.raises(
        DataError, match=r"l\.csv is not used: .*names no existing image, such as 'none/of/these"
    ):
        read(tmp_path)
    write(tmp_path / "l.csv", ["path,label", f"img/{stems()[0][0]}.jpg,Gänseblümchen"], "cp1252")
    with pytest.raises(DataError, match=r"l\.csv is not used: line 2: the bytes e4 .*--data\.encoding"):
        read(tmp_path)
    assert read(tmp_path, encoding="cp1252").classes == ("Gänseblümchen",)


def test_lists_that_label_more_than_the_folders_are_read(tmp_path: pathlib.Path) -> None:
    put(
        tmp_path,
        *(f"Train/{NUMBER[k]}/{s}.png" for s, k in stems()),
        *(f"Test/t{s}.png" for s, k in stems()),
        "Meta/0.png",
    )
    write(
        tmp_path / "Train.csv",
        ["Width,ClassId,Path", *(f"30,{NUMBER[k]},Train/{NUMBER[k]}/{s}.png" for s, k in stems())],
    )
    write(
        tmp_path / "Test.csv", ["Width,ClassId,Path", *(f"30,{NUMBER[k]},Test/t{s}.png" for s, k in stems())]
    )
    write(tmp_path / "Meta.csv", ["Path,ClassId,ShapeId", "Meta/0.png,0,1"])
    samples = read(tmp_path)
    right(samples, 24)
    assert (samples.splits == "test").sum() == 12
    assert noted(samples, "Meta.csv is not used")


def test_lists_of_splits_over_class_folders(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{k}/{s}.jpg" for s, k in stems()))
    for name, part in (("train", stems()[:6]), ("validation", stems()[6:9]), ("test", stems()[9:])):
        rows = [f"{n},{k}/{s}.jpg,{NUMBER[k]},{k}" for n, (s, k) in enumerate(part)]
        write(tmp_path / f"{name}.csv", [",Filename,Label,ClassName", *rows])
    (tmp_path / "label_map.json").write_text(
        json.dumps({kind: int(number) for kind, number in NUMBER.items()})
    )
    samples = read(tmp_path)
    right(samples)
    assert samples.classes == KINDS
    assert [(samples.splits == s).sum() for s in ("train", "val", "test")] == [6, 3, 3]


def test_a_list_of_a_few_images_does_not_hide_class_folders(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{k}/{s}.jpg" for s, k in stems()))
    write(
        tmp_path / "examples.csv",
        ["path,label", f"cat/{stems()[0][0]}.jpg,cat", f"dog/{stems()[1][0]}.jpg,dog"],
    )
    samples = read(tmp_path)
    right(samples)
    assert noted(samples, "examples.csv is not used: it names 2 images of the 12")


def test_an_image_in_two_lists_counts_in_the_last_split(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{stem}.jpg" for stem, _ in stems()))
    rows = [f"{s}.jpg,{k}" for s, k in stems()]
    write(tmp_path / "train.csv", ["path,label", *rows])
    write(tmp_path / "test.csv", ["path,label", *rows[:3], f"{stems()[3][0]}.jpg,frog"])
    samples = read(tmp_path)
    assert (samples.splits == "test").sum() == 3
    assert len(samples) == 11
    assert noted(samples, "several lists name", "last of train, val, test")
    assert noted(samples, "1 image with different labels in several lists")


def test_of_several_lists_the_one_of_all_images_is_read(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"images_{n % 2:03d}/images/{s}.png" for n, (s, _) in enumerate(stems())))
    write(
        tmp_path / "Data_Entry.csv",
        ["Image Index,Finding Labels,Age", *(f"{s}.png,{k},30" for s, k in stems())],
    )
    write(tmp_path / "BBox_List.csv", ["Image Index,label,x", f"{stems()[0][0]}.png,{stems()[0][1]},3"])
    samples = read(tmp_path)
    right(samples)
    assert noted(samples, "BBox_List.csv is not used: Data_Entry.csv names most images")


def test_images_that_no_list_names_are_counted(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"train/{s}.png" for s, _ in stems()), "test/x.png", "test/y.png")
    write(tmp_path / "labels.csv", ["id,label", *(f"{s},{k}" for s, k in stems())])
    samples = read(tmp_path)
    right(samples)
    assert noted(samples, "Skipped 2 images that no list gives a label (in test/)")


@pytest.mark.parametrize("cell", ["", "unassigned", "-"])
@pytest.mark.parametrize("told", ["", "split"])
def test_a_column_of_splits_that_decides_nothing_leaves_them_to_be_dealt(
    cell: str, told: str, tmp_path: pathlib.Path
) -> None:
    put(tmp_path, *(f"{stem}.png" for stem, _ in stems()))
    write(tmp_path / "labels.csv", ["path,label,split", *(f"{s}.png,{kind},{cell}" for s, kind in stems())])
    samples = read(tmp_path / "labels.csv", split_column=told)
    right(samples)
    assert noted(samples, "'split'", "names no split")


def test_a_list_of_a_header_alone_is_reported(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "labels.csv", ["path,label,split"])
    with pytest.raises(DataError):
        read(tmp_path / "labels.csv")


def test_one_hot_columns_of_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    rows = ["image,cat,dog,cat", "a.png,1,0,0", "b.png,0,1,0", "c.png,0,0,1"]
    with pytest.raises(DataError, match="more than one column 'cat'"):
        read(write(tmp_path / "labels.csv", rows))
