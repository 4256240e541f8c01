"""Folders, lists, and how a source becomes a table with every split filled."""

from __future__ import annotations

import json
import os
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tellapart.data.samples import Conflict, Samples, write_samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, TellapartError
from tellapart.spec import DataSpec


def put(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Make small files of these names (their content is a PNG's first bytes)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def numbered(folder: str, count: int, ending: str = ".png") -> list[str]:
    return [f"{folder}/{number:03d}{ending}" for number in range(count)]


def read(source: object, **options: object) -> Samples:
    said: list[str] = []
    samples = open_source(DataSpec(source=str(source), **options), said.append)
    assert tuple(said) == samples.notes
    assert (
        len(samples)
        == len(samples.labels)
        == len(samples.splits)
        == len(set(zip(samples.paths, strict=True)))
    )
    assert set(samples.splits) <= {"train", "val", "test"}
    return samples


def rows(samples: Samples) -> set[tuple[str, str, str]]:
    labels = (samples.classes[label] for label in samples.labels)
    return set(zip(samples.paths, labels, samples.splits, strict=True))


def noted(samples: Samples, *words: str) -> bool:
    return any(all(word in note for word in words) for note in samples.notes)


# --- Folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "testing"), ("train", "valid", "test")]
)
def test_split_folders_by_any_name_with_nested_folders(
    tmp_path: pathlib.Path, names: tuple[str, str, str]
) -> None:
    put(tmp_path, *(f"{s}/{c}/deep/er/{n}.jpg" for s in names for c in ("cat", "dog") for n in "ab"))
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert rows(samples) == {
        (f"{name}/{c}/deep/er/{n}.jpg", c, split)
        for name, split in zip(names, ("train", "val", "test"), strict=True)
        for c in ("cat", "dog")
        for n in "ab"
    }
    assert samples.root == str(tmp_path)
    assert os.path.isfile(samples.file(0))


def test_classes_come_from_all_splits_and_a_missing_one_is_named(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png", "val/b/1.png")
    samples = read(tmp_path)
    assert samples.classes == ("a", "b", "c")
    assert ("test/c/1.png", "c", "test") in rows(samples)
    assert noted(samples, "not in train: a")
    assert noted(samples, "not in test: b")


def test_flat_folder_is_split_by_the_fractions(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("cat", 40), *numbered("dog", 20))
    samples = read(tmp_path)
    assert samples.counts("train").tolist() == [28, 14]
    assert samples.counts("val").tolist() == [4, 2]
    assert samples.counts("test").tolist() == [8, 4]
    assert noted(samples, "no splits: held out 6 as val and 12 as test of its 60 images")
    other = read(tmp_path, split_seed=1)
    assert rows(other) != rows(samples)
    assert rows(read(tmp_path)) == rows(samples)
    only_train = read(tmp_path, val_fraction=0, test_fraction=0)
    assert only_train.counts("train").tolist() == [40, 20]
    assert noted(only_train, "keeps the last epoch")


def test_split_does_not_depend_on_where_the_data_lies(tmp_path: pathlib.Path) -> None:
    one = put(tmp_path / "one", *numbered("cat", 30), *numbered("dog", 30))
    other = put(tmp_path / "other/wrapped", *numbered("dog", 30), *numbered("cat", 30)).parent
    assert rows(read(one)) == rows(read(other))


def test_val_is_taken_from_train_and_test_is_not(tmp_path: pathlib.Path) -> None:
    put(
        tmp_path,
        *numbered("train/a", 20),
        *numbered("train/b", 10),
        *numbered("test/a", 5),
        *numbered("test/b", 5),
    )
    samples = read(tmp_path, val_fraction=0.2)
    assert samples.counts("val").tolist() == [4, 2]
    assert samples.counts("test").tolist() == [5, 5]
    assert all(path.startswith("test/") for path in samples.paths[samples.splits == "test"])
    assert "val" not in set(read(tmp_path, val_fraction=0).splits)


def test_without_a_test_split_the_note_says_whose_figure_it_is(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("train/a", 9), *numbered("train/b", 9), "val/a/1.png", "val/b/1.png")
    samples = read(tmp_path)
    assert set(samples.splits) == {"train", "val"}
    assert samples.counts("val").tolist() == [1, 1]
    assert noted(samples, "those of validation")


def test_a_source_without_train_can_be_evaluated(tmp_path: pathlib.Path) -> None:
    samples = read(put(tmp_path, "test/a/1.png", "test/b/1.png"))
    assert set(samples.splits) == {"test"}
    assert noted(samples, "no train split")


def test_one_wrapping_folder_is_looked_through(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("photos/train/ants", 3), *numbered("photos/val/bees", 3))
    (tmp_path / "README.md").write_text("hello")
    samples = read(tmp_path)
    assert samples.classes == ("ants", "bees")
    assert samples.root == str(tmp_path / "photos")
    assert samples.paths[0] == "train/ants/000.png"


def test_a_class_may_be_called_train(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("bus", 5), *numbered("car", 5), *numbered("train", 5))
    assert read(tmp_path).classes == ("bus", "car", "train")
    put(tmp_path, "train/steam/1.png")
    assert read(tmp_path).classes == ("bus", "car", "train")


def test_hidden_and_empty_folders_are_no_classes(tmp_path: pathlib.Path) -> None:
    hidden = [
        ".ipynb_checkpoints/1.png",
        "__MACOSX/cat/1.png",
        "@eaDir/1.png",
        "cat/.hidden.png",
        "cat/._1.png",
    ]
    put(
        tmp_path,
        "cat/1.png",
        "dog/1.png",
        "cat/Thumbs.db",
        "cat/.DS_Store",
        "cat/.ipynb_checkpoints/x.png",
        *hidden,
    )
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert set(samples.paths) == {"cat/1.png", "dog/1.png"}


def test_files_are_taken_by_extension_else_by_their_first_bytes(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "a/noextension", "a/odd.xyz", "a/fake.txt", "a/UPPER.JPG", "b/1.png")
    (tmp_path / "a/text").write_text("no image")
    (tmp_path / "a/data.bin").write_bytes(bytes(100))
    (tmp_path / "a/zero.jpg").write_bytes(b"")
    (tmp_path / "a/dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    samples = read(tmp_path)
    assert set(samples.paths) == {
        "a/noextension",
        "a/odd.xyz",
        "a/UPPER.JPG",
        "a/zero.jpg",
        "a/dangling.jpg",
        "b/1.png",
    }
    assert noted(samples, "3 files that are not images ignored")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_first_bytes_of_every_common_format_are_known(tmp_path: pathlib.Path, kind: str) -> None:
    from tellapart.data.sources.folders.walk import looks_like_image

    Image.new("RGB", (40, 30)).save(tmp_path / "file", kind)
    assert looks_like_image(str(tmp_path / "file"))


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: pathlib.Path) -> None:
    put(tmp_path / "data", "cat/1.png", "dog/1.png")
    put(tmp_path / "elsewhere", "9.png", "inner/8.png")
    (tmp_path / "data/cat/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/cat/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/inner/round").symlink_to(tmp_path / "elsewhere")
    samples = read(tmp_path / "data")
    assert set(samples.paths) == {"cat/1.png", "dog/1.png", "cat/more/9.png", "cat/more/inner/8.png"}
    assert noted(samples, "not follow")


def test_links_between_many_folders_do_not_explode(tmp_path: pathlib.Path) -> None:
    for one in range(12):
        put(tmp_path / f"data/class{one:02d}", "own.png")
        for other in range(12):
            if one != other:
                (tmp_path / f"data/class{one:02d}/to{other:02d}").symlink_to(
                    tmp_path / f"data/class{other:02d}"
                )
    samples = read(tmp_path / "data", format="classes")
    assert 12 * 12 <= len(samples) <= 12 * 12 * 12
    assert all(f"class{one:02d}/to{(one + 1) % 12:02d}/own.png" in set(samples.paths) for one in range(12))


def test_pipes_are_left_out_and_never_opened(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    os.mkfifo(tmp_path / "a/pipe")
    samples = read(tmp_path)
    assert set(samples.paths) == {"a/1.png", "b/1.png"}
    assert noted(samples, "not regular files")


def test_names_in_any_language_and_none(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("猫", 5), *numbered("كلب", 5), *numbered("собака", 5))
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(raw)
    with open(os.path.join(raw, b"\xff.png"), "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
    samples = read(tmp_path)
    assert samples.classes == ("caf\\xe9", "собака", "كلب", "猫")
    row = [row for row, path in enumerate(samples.paths) if "\udcff" in path]
    assert samples.read(row[0]) == b"\x89PNG\r\n\x1a\n"
    "".join((*samples.classes, *samples.notes)).encode()  # printable everywhere
    write_samples(samples, tmp_path / "samples.csv")


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, f"train/{unicodedata.normalize('NFD', 'café')}/1.png", "train/b/1.png")
    put(tmp_path, f"val/{unicodedata.normalize('NFC', 'café')}/1.png")
    assert read(tmp_path).classes == ("b", "café")


def test_groups_by_pattern_are_never_cut(tmp_path: pathlib.Path) -> None:
    put(
        tmp_path,
        *(f"{c}/p{patient:02d}_{shot}.png" for c in "ab" for patient in range(20) for shot in range(4)),
    )
    for pattern, width in ((r"p(\d+)_", 2), (r"p\d+", 3)):
        samples = read(tmp_path, group=pattern)
        assert samples.groups is not None
        assert len(samples.groups[0]) == width
        splits = {g: set(samples.splits[samples.groups == g]) for g in samples.groups}
        assert len(splits) == 20
        assert all(len(found) == 1 for found in splits.values())
        assert set(samples.splits) == {"train", "val", "test"}


def test_given_splits_that_cut_a_group_are_reported(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{s}/{c}/p{n}.png" for s in ("train", "test") for c in "ab" for n in range(6)))
    assert noted(read(tmp_path, group=r"p\d"), "divide 6 groups")


def test_images_without_a_class_folder_are_left_out_with_a_note(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/loose.png", "test/1.png", "logo.png")
    samples = read(tmp_path)
    assert set(samples.paths) == {"train/a/1.png", "train/b/1.png"}
    assert noted(samples, "1 image in test/")
    assert noted(samples, "1 image in the top folder")


def test_one_class_is_allowed_and_noted(tmp_path: pathlib.Path) -> None:
    assert noted(read(put(tmp_path, *numbered("cat", 4))), "only one class", "training needs two")


# --- Errors ---------------------------------------------------------------------------------------------------


def test_every_wrong_source_has_a_clear_error(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "image.png", "loose/1.png", "text/readme.txt", "splits/train/1.png", "splits/test/1.png")
    put(tmp_path, *numbered("good/a", 4), *numbered("good/b", 4))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.xyz").write_text("what is this")
    cases: list[tuple[str, dict[str, object], str]] = [
        ("nowhere", {}, "There is no"),
        ("image.png", {}, "single image"),
        ("file.xyz", {}, "not a kind of data"),
        ("empty", {}, "No images were found"),
        ("text", {}, "1 other file"),
        ("loose", {}, "not in class folders"),
        ("splits", {}, "not in class folders"),
        ("good", {"format": "list"}, "has no list"),
        ("good", {"format": "voc"}, "No Pascal VOC annotations"),
        ("good", {"format": "coco"}, "No COCO annotations"),
        ("good", {"format": "yolo"}, "No YOLO annotations"),
        ("good", {"format": "createml"}, "No CreateML annotations"),
        ("good", {"format": "name"}, "no known data set"),
        ("good", {"val_fraction": 0.6, "test_fraction": 0.5}, "below 1"),
        ("good", {"group": "("}, "not a regular expression"),
        ("good", {"group": "xyz"}, "matches no path"),
        ("file.xyz", {"format": "folder"}, "is a file"),
    ]
    for name, options, words in cases:
        with pytest.raises(DataError, match=words):
            read(tmp_path / name, **options)
    for source in ("", "  ", "a\0b"):
        with pytest.raises(DataError):
            read(source)


def test_unreadable_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith(refused):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = "/b"
    assert noted(read(tmp_path), "cannot be read", "b/")
    refused = tmp_path.name
    with pytest.raises(DataError, match="Permission denied"):
        read(tmp_path)


# --- Lists ----------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, text: str, encoding: str = "utf-8") -> pathlib.Path:
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("path", ["path", "File", "filename", "image", "image_path", "filepath", "file_name"])
@pytest.mark.parametrize("label", ["label", "class", "Category", "target", "class_name"])
def test_list_columns_by_any_usual_name(tmp_path: pathlib.Path, path: str, label: str) -> None:
    put(tmp_path, "x/1.png", "x/2.png")
    samples = read(write(tmp_path / "l.csv", f"id,{path},{label}\n0,x/1.png,cat\n1,x/2.png,dog\n"))
    assert [(p, samples.classes[k]) for p, k in zip(samples.paths, samples.labels, strict=True)] == [
        ("x/1.png", "cat"),
        ("x/2.png", "dog"),
    ]


@pytest.mark.parametrize(
    ("ending", "encoding"),
    [
        ("csv", "utf-8"),
        ("csv", "utf-8-sig"),
        ("csv", "utf-16"),
        ("tsv", "utf-8"),
        ("semicolon", "utf-8"),
        ("jsonl", "utf-8"),
    ],
)
def test_list_formats_and_encodings(tmp_path: pathlib.Path, ending: str, encoding: str) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    table = [
        ("path", "label", "split"),
        ("1.png", "猫", "train"),
        ("2.png", "dog, big", "valid"),
        ("3.png", "猫", "TEST"),
    ]
    if ending == "jsonl":
        text = "\n".join(json.dumps(dict(zip(table[0], line, strict=True))) for line in table[1:]) + "\n\n"
    else:
        mark = {"csv": ",", "tsv": "\t", "semicolon": ";"}[ending]
        text = "\r\n".join(mark.join(f'"{cell}"' for cell in line) for line in table) + "\r\n"
    name = f"l.{ending if ending != 'semicolon' else 'csv'}"
    samples = read(write(tmp_path / name, text, encoding))
    assert rows(samples) == {("1.png", "猫", "train"), ("2.png", "dog, big", "val"), ("3.png", "猫", "test")}


def test_list_without_header(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "1.png", "2.png")
    assert len(read(write(tmp_path / "l.csv", "1.png,cat\n2.png,dog\n"))) == 2
    samples = read(write(tmp_path / "l.csv", "9.png,cat\n1.png,cat\n2.png,dog\n"))
    assert noted(samples, "1 image of 3 images", "9.png")


def test_list_errors_say_where(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "1.png")
    cases = [
        (
            "l.csv",
            "what,colour,size\nx,cat,3\n",
            {},
            "lacks a path column .* and a label column .*: what, colour, size",
        ),
        ("l.csv", "path,colour,shape\n1.png,red,round\n", {}, "lacks a label column"),
        ("l.csv", "", {}, "is empty"),
        ("l.csv", "path,label\n", {}, "no image with a label"),
        ("l.csv", "path,label,split\n1.png,cat,train\n1.png,cat,third\n", {}, r"line 3: split is 'third'"),
        ("l.csv", "path,label\nx.png,cat\n", {}, r"None of the images .* exists"),
        ("l.csv", "path,label\n1.png,cat\n", {"group": "patient"}, "no such column"),
        ("l.csv", "path,label,box\n1.png,cat,1 2 3\n", {}, "not four numbers"),
        ("l.csv", "path,label,box\n1.png,cat,5 2 3 9\n", {}, "is empty; expected"),
        ("l.csv", "path,label,box\n1.png,cat,0 0 nan 9\n", {}, "is empty; expected"),
        ("l.jsonl", '{"path": "1.png", "label": "cat"}\n{"path"\n', {}, "line 2: not JSON"),
        ("l.jsonl", '["1.png", "cat"]\n', {}, "line 1: expected an object"),
    ]
    for name, text, options, words in cases:
        with pytest.raises(DataError, match=words):
            read(write(tmp_path / name, text), **options)


def test_list_duplicates_conflicts_and_empty_labels(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{n}.png" for n in range(6)))
    text = "path,label\n0.png,cat\n./0.png,cat\n1.png,cat\n1.png,dog\n2.png,dog\n3.png,\n,cat\n4.png,cat\n"
    samples = read(write(tmp_path / "l.csv", text))
    assert set(samples.paths) == {"0.png", "2.png", "4.png"}
    assert samples.conflicts == (Conflict("1.png", ("cat", "dog")),)
    assert noted(samples, "1 image listed with more than one label", "2 rows")
    assert noted(samples, "1 row that repeat") or noted(samples, "merged")
    assert noted(samples, "2 rows without a path or a label")


def test_an_image_in_two_splits_stays_in_the_last_one_only(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "0.png", "1.png")
    text = "path,label,split\n0.png,cat,test\n0.png,cat,train\n1.png,dog,train\n"
    samples = read(write(tmp_path / "l.csv", text), val_fraction=0)
    assert rows(samples) == {("0.png", "cat", "test"), ("1.png", "dog", "train")}
    assert noted(samples, "more than one split")


def test_list_group_column_and_rows_without_one(tmp_path: pathlib.Path) -> None:
    names = [f"{n}.png" for n in range(40)]
    put(tmp_path, *names)
    text = "path,label,Patient\n" + "".join(
        f"{p},{'ab'[n % 2]},{f'p{n // 4}' if n < 36 else ''}\n" for n, p in enumerate(names)
    )
    samples = read(write(tmp_path / "l.csv", text), group="patient", val_fraction=0.3)
    assert samples.groups is not None
    assert len(set(samples.groups)) == 13
    for group in set(samples.groups):
        assert len(set(samples.splits[samples.groups == group])) == 1
    assert noted(samples, "4 images without a group")
    assert read(tmp_path / "l.csv", group=r"^(\d)\d?\.png").groups is not None


def test_list_rows_without_a_split_count_as_train(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "0.png", "1.png", "2.png")
    samples = read(
        write(tmp_path / "l.csv", "path,label,set\n0.png,a,\n1.png,b,train\n2.png,b,test\n"), val_fraction=0
    )
    assert samples.splits.tolist() == ["train", "train", "test"]
    assert noted(samples, "without a split count as train")


@pytest.mark.parametrize("header", ["box", "xmin,ymin,xmax,ymax", "x0,y0,x1,y1"])
def test_list_boxes(tmp_path: pathlib.Path, header: str) -> None:
    put(tmp_path, "0.png", "1.png", "2.png")
    mark = " " if header == "box" else ","
    lines = [
        ("0.png", "a", "1 2 30 40"),
        ("0.png", "b", "5 6 7 8"),
        ("1.png", "b", "0 0 9 9.5"),
        ("2.png", "a", ""),
    ]
    text = f"path,label,{header}\n" + "".join(
        f"{p},{k},{box.replace(' ', mark) or ',' * header.count(',')}\n" for p, k, box in lines
    )
    path = write(tmp_path / "l.csv", text)
    crops = open_source(DataSpec(source=str(path), boxes="crop"), lambda _: None)
    assert crops.paths.tolist() == ["0.png", "0.png", "1.png", "2.png"]
    assert crops.boxes is not None
    np.testing.assert_array_equal(crops.boxes[:3], [[1, 2, 30, 40], [5, 6, 7, 8], [0, 0, 9, 9.5]])
    assert np.isnan(crops.boxes[3]).all()
    assert crops.splits[0] == crops.splits[1]
    whole = read(path)
    assert whole.boxes is None
    assert whole.paths.tolist() == ["1.png", "2.png"]
    assert whole.conflicts == (Conflict("0.png", ("a", "b")),)


def test_jsonl_boxes_and_numbers_as_labels(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "0.png", "1.png")
    text = '{"image": "0.png", "label": 0, "box": [1, 2, 3, 4]}\n{"image": "1.png", "label": 10}\n'
    samples = read(write(tmp_path / "l.jsonl", text), boxes="crop")
    assert samples.classes == ("0", "10")
    assert samples.boxes is not None
    assert samples.boxes[0].tolist() == [1, 2, 3, 4]


def test_list_paths_absolute_above_and_with_backslashes(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "images/0.png", "images/1.png", "images/sub/2.png")
    (tmp_path / "lists").mkdir()
    text = f"path,label\n{tmp_path}/images/0.png,a\n../images/1.png,b\n..\\images\\sub\\2.png,b\n"
    samples = read(write(tmp_path / "lists/l.csv", text))
    assert all(os.path.isfile(samples.file(row)) for row in range(3))


def test_a_folder_with_a_list_is_read_by_it(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("images", 10))
    write(
        tmp_path / "labels.csv",
        "path,label\n" + "".join(f"{p},{'ab'[n % 2]}\n" for n, p in enumerate(numbered("images", 10))),
    )
    samples = read(tmp_path)
    assert samples.classes == ("a", "b")
    assert noted(samples, "Read from labels.csv")
    put(tmp_path, "more/1.png")
    assert read(tmp_path, format="folder").classes == ("images", "more")


def test_a_folder_with_lists_named_by_split(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("images", 6))
    write(tmp_path / "train.csv", "path,label\nimages/000.png,a\nimages/001.png,b\n")
    write(tmp_path / "val.csv", "path,label\nimages/002.png,a\nimages/003.png,b\n")
    write(tmp_path / "test.tsv", "path\tlabel\nimages/004.png\ta\nimages/005.png\tb\n")
    samples = read(tmp_path)
    assert [samples.counts(split).tolist() for split in ("train", "val", "test")] == [[1, 1]] * 3
    write(tmp_path / "other.csv", "path,label\nimages/000.png,a\n")
    assert noted(read(tmp_path), "other.csv is not used", "name their splits")
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="several lists"):
        read(tmp_path, format="list")


def test_class_folders_go_before_lists_that_say_nothing_of_them(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *numbered("a", 4), *numbered("b", 4))
    write(tmp_path / "submission.csv", "image,label\n77.png,0\n78.png,0\n")
    assert read(tmp_path).classes == ("a", "b")


def test_a_path_with_the_name_of_a_known_set_is_taken_with_a_message(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *numbered("mnist/one", 4), *numbered("mnist/two", 4))
    monkeypatch.chdir(tmp_path)
    samples = read("mnist")
    assert samples.classes == ("one", "two")
    assert noted(samples, "read as a path")


def test_errors_are_of_our_tree() -> None:
    with pytest.raises(TellapartError):
        read("/nowhere/at/all")
