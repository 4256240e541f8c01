"""Folder layouts as people have them: right splits and classes, or a sentence that says which options decide."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import pytest

from tellapart.data.samples import Samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

ABC = ("a", "b", "c")


def put(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def files(folder: str, classes: Iterable[str] = ABC, count: int = 3) -> list[str]:
    """Return names of images in class folders; the file's name says the folder and the class."""
    tag = folder.replace("/", "-")
    return [f"{folder}/{c}/{tag}_{c}_{n}.png" for c in classes for n in range(count)]


def read(source: object, **options: object) -> Samples:
    return open_source(DataSpec(source=str(source), val_fraction=0.0, **options), lambda _: None)


def splits_of(samples: Samples) -> dict[str, int]:
    return {s: int(samples.counts(s).sum()) for s in ("train", "val", "test") if samples.counts(s).any()}


def noted(samples: Samples, *words: str) -> bool:
    return any(all(word in note for word in words) for note in samples.notes)


NAMED = [
    ("seg_train/seg_train", "", "seg_test/seg_test"),
    ("training", "validation", "evaluation"),
    ("train_data", "val_data", "test_data"),
    ("train", "dev", "test"),
    ("train", "", "eval"),
    ("train", "eval", "test"),
    ("images/train", "images/val", "images/test"),
    ("data/set/train", "data/set/val", "data/set/test"),
    ("train_dir", "val_dir", ""),
    ("flowers_train", "", "flowers_test"),
    ("train", "", "holdout"),
    ("Train ", "", "Test "),
    ("d/d/train", "", "d/d/test"),
    ("train_images", "", "test_images"),
    ("train-set", "valid-set", "test-set"),
    ("Train_Set_Folder", "", "Test_Set_Folder"),
    ("train2017", "val2017", "test2017"),
    ("trainval", "", "test"),
    ("train", "validate", "test"),
    ("1_train", "2_val", "3_test"),
    ("训练集", "验证集", "测试集"),
    ("花卉训练集", "花卉验证集", "花卉测试集"),
    ("Trainingsdaten", "Validierungsdaten", "Testdaten"),
    ("train/images", "val/images", "test/images"),
    ("train/train", "valid/valid", "test/test"),
    ("my-trainset-v2", "my-valset-v2", "my-testset-v2"),
]


@pytest.mark.parametrize("names", NAMED, ids=lambda names: names[0])
def test_splits_by_their_folders_names(tmp_path: pathlib.Path, names: tuple[str, str, str]) -> None:
    wanted = {split: name for split, name in zip(("train", "val", "test"), names, strict=True) if name}
    for name in wanted.values():
        put(tmp_path, *files(name))
    samples = read(tmp_path)
    assert samples.classes == ABC
    assert splits_of(samples) == dict.fromkeys(wanted, 9)
    for path, label, split in zip(samples.paths, samples.labels, samples.splits, strict=True):
        tag, _, rest = path.rpartition("/")[2].partition("_" + samples.classes[label] + "_")
        assert rest
        assert tag == wanted[split].replace("/", "-")


def test_an_unlabelled_folder_beside_splits_is_left_out_with_a_message(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("seg_train/seg_train"), *files("seg_test/seg_test"), "seg_pred/seg_pred/1.png")
    samples = read(tmp_path)
    assert splits_of(samples) == {"train": 9, "test": 9}
    assert noted(samples, "Skipped 1 image in seg_pred/")
    assert noted(samples, "seg_train/seg_train/ is train")


@pytest.mark.parametrize(
    "name", ["test", "Test", "test_images", "testing", "val", "unlabelled", "测试集", "eval"]
)
def test_a_flat_folder_with_a_splits_name_is_no_class(tmp_path: pathlib.Path, name: str) -> None:
    put(tmp_path, *files("x")[0:0], "a/1.png", "a/2.png", "b/1.png", f"{name}/1.png", f"{name}/2.png")
    samples = read(tmp_path, test_fraction=0.0)
    assert samples.classes == ("a", "b")
    assert noted(samples, f"Skipped 2 images in {name}/", "--data.format classes")
    assert read(tmp_path, format="classes").classes == tuple(sorted(("a", "b", name)))


def test_names_that_only_hold_a_splits_word_are_classes(tmp_path: pathlib.Path) -> None:
    put(
        tmp_path,
        "steam_train/1.png",
        "bullet_train/1.png",
        "pregnancy_test/1.png",
        "train/1.png",
        "latest/1.png",
    )
    assert len(read(tmp_path).classes) == 5
    put(tmp_path / "tickets", "valid/1.png", "invalid/1.png")
    assert read(tmp_path / "tickets").classes == ("invalid", "valid")
    put(
        tmp_path / "nested", *files("steam_train", ("red", "green")), *files("pregnancy_test", ("old", "new"))
    )
    assert read(tmp_path / "nested").classes == ("pregnancy_test", "steam_train")


SAME = {
    "PlantVillage": ("color", "grayscale", "segmented"),
    "Office-31": ("amazon/images", "dslr/images", "webcam/images"),
    "rounds": ("round1", "round2"),
    "train and another": ("train", "extra"),
    "Chinese": ("第一批", "第二批"),
}


@pytest.mark.parametrize("names", SAME.values(), ids=SAME)
def test_folders_with_the_same_class_folders_are_never_classes(
    tmp_path: pathlib.Path, names: tuple[str, ...]
) -> None:
    for name in names:
        put(tmp_path, *files(name))
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert all(f"{name}/" in text for name in names)
    assert all(word in text for word in ("a, b, c", "--data.train", "--data.val", "--data.test", "classes"))
    samples = read(tmp_path, train=(names[0],), test=(names[1],))
    assert samples.classes == ABC
    assert splits_of(samples) == {"train": 9, "test": 9}
    assert all(os.path.isfile(samples.file(row)) for row in range(len(samples)))
    tops = tuple(sorted(name.split("/")[0] for name in names))
    assert read(tmp_path, format="classes").classes == tops
    assert read(tmp_path / names[0]).classes == ABC


def test_classes_may_hold_folders(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("x", ("cat", "ship")), *files("y", ("frog", "horse")))
    assert read(tmp_path).classes == ("x", "y")
    put(tmp_path / "other", "cat/images/1.png", "dog/images/1.png", "cat/images/2.png")
    assert read(tmp_path / "other").classes == ("cat", "dog")


def test_a_lone_train_among_others_is_asked_about(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("train", ("steam", "electric")), "car/1.png", "bus/1.png")
    with pytest.raises(
        DataError, match=r"--data\.train \S+/train \(.*\)\. For a class: --data\.format classes"
    ):
        read(tmp_path)
    assert read(tmp_path, format="classes").classes == ("bus", "car", "train")
    assert read(tmp_path, train=("train",)).classes == ("electric", "steam")


def test_a_copy_of_the_set_inside_itself_is_left_out(tmp_path: pathlib.Path) -> None:
    chest = [f"{part}/{c}/1.png" for part in ("train", "test", "val") for c in ("NORMAL", "PNEUMONIA")]
    put(tmp_path, *(f"chest_xray/{p}" for p in chest), *(f"chest_xray/chest_xray/{p}" for p in chest))
    put(tmp_path, "chest_xray/__MACOSX/train/NORMAL/._1.png")
    samples = read(tmp_path)
    assert samples.classes == ("NORMAL", "PNEUMONIA")
    assert splits_of(samples) == {"train": 2, "val": 2, "test": 2}
    assert noted(samples, "Skipped 6 images in chest_xray/")


def test_splits_in_one_folder_of_several_are_found(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("dataset/train"), *files("dataset/test"), "screenshots/1.png", "logo.png")
    samples = read(tmp_path)
    assert samples.classes == ABC
    assert splits_of(samples) == {"train": 9, "test": 9}
    assert noted(samples, "Skipped 1 image in screenshots/")
    assert noted(samples, "Skipped 1 image in the top folder")


def test_several_sets_with_splits_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("bottle", "cable"):
        put(tmp_path, f"{name}/train/good/1.png", *files(f"{name}/test", ("good", "broken")))
    with pytest.raises(DataError, match=r"Several folders .* splits of their own: bottle, cable"):
        read(tmp_path)
    samples = read(tmp_path / "bottle")
    assert samples.classes == ("broken", "good")
    assert samples.counts("train").tolist() == [0, 1]
    assert noted(samples, "not in train: broken")


def test_masks_beside_splits_are_left_out(tmp_path: pathlib.Path) -> None:
    put(tmp_path, "train/good/1.png", *files("test", ("good", "broken")), "ground_truth/broken/1_mask.png")
    samples = read(tmp_path)
    assert samples.classes == ("broken", "good")
    assert noted(samples, "Skipped 1 image in ground_truth/")


def test_splits_inside_each_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{c}/{part}/{n}.png" for c in ABC for part in ("Train", "Test") for n in range(3)))
    samples = read(tmp_path)
    assert samples.classes == ABC
    assert splits_of(samples) == {"train": 9, "test": 9}
    assert all(
        path.split("/")[1].lower() == split for path, split in zip(samples.paths, samples.splits, strict=True)
    )
    assert noted(samples, "CLASS/Test, CLASS/Train")


@pytest.mark.parametrize(
    "names",
    [
        ["train/images/1.png", "val/images/1.png"],
        ["images/1.png", "masks/1.png"],
        ["train/images/1.png", "train/masks/1.png"],
        ["train/1.png"],
        ["train/1.png", "test/1.png"],
        ["1.png", "2.png"],
    ],
)
def test_folders_that_say_no_class(tmp_path: pathlib.Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="are not in class folders"):
        read(put(tmp_path, *names))


def test_a_val_folder_without_class_folders_gives_no_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"train/n{c}/images/{n}.png" for c in range(3) for n in range(3)), "val/images/1.png")
    samples = read(tmp_path)
    assert samples.classes == ("n0", "n1", "n2")
    assert noted(samples, "Skipped 1 image in val/", "no class folder")


def test_file_names_that_begin_with_the_class_are_mentioned(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"train/{word}.{n}.jpg" for word in ("cat", "dog") for n in range(5)), "test/1.jpg")
    with pytest.raises(
        DataError, match=r"begin with words \(cat, dog\).*folder of that name, or write a list"
    ):
        read(tmp_path)


# --- --data.train, --data.val, --data.test ----------------------------------------------------------------------


def test_folders_named_for_the_splits_may_lie_anywhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *files("one/x"), *files("two/y/y"), *files("three", ("a", "b")))
    out = str(tmp_path / "two/y")
    samples = read(tmp_path / "one", train=("x",), val=(out,), test=(str(tmp_path / "three"),))
    assert splits_of(samples) == {"train": 9, "val": 9, "test": 6}
    assert samples.root == str(tmp_path)
    assert samples.classes == ABC
    monkeypatch.chdir(tmp_path)
    samples = open_source(DataSpec(train=("one/x",), test=("three",), val_fraction=0.0), lambda _: None)
    assert splits_of(samples) == {"train": 9, "test": 6}
    several = read(tmp_path, train=("one/x", "two/y"))
    assert splits_of(several) == {"train": 18}


def test_folders_named_for_the_splits_that_cannot_be(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("good"), "flat/1.png", *files("both/train"), *files("both/test"), "file.png")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("nowhere", "does not exist"),
        ("file.png", "is a file"),
        ("flat", "no class folders"),
        ("empty", "0 images there"),
        ("both", "holds splits itself"),
    ):
        with pytest.raises(DataError, match=words):
            read(tmp_path, train=("good",), test=(name,))
    with pytest.raises(DataError, match="two splits"):
        read(tmp_path, train=("good",), test=("good/../good",))


# --- Numbers with names beside ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cat_to_name.json", '{"1": "rose", "2": "tulip"}'),
        ("class_indices.json", '{"rose": 1, "tulip": 2}'),
        ("names.json", '["?", "rose", "tulip"]'),
        ("signnames.csv", "ClassId,SignName\n1,rose\n2,tulip\n"),
        ("labels.csv", "rose,1\ntulip,2\n"),
        ("class_map.txt", "1 rose\n2: tulip\n"),
    ],
)
def test_numbered_folders_get_their_names(tmp_path: pathlib.Path, file: str, text: str) -> None:
    put(tmp_path, *files("train", ("1", "2")), *files("valid", ("1", "2")))
    (tmp_path / file).write_text(text)
    samples = read(tmp_path)
    assert samples.classes == ("rose", "tulip")
    for path, label in zip(samples.paths, samples.labels, strict=True):
        assert path.split("/")[1] == str(label + 1)
    assert noted(samples, file, "1 is rose, 2 is tulip")


@pytest.mark.parametrize(
    "texts",
    [
        {"names.json": '{"1": "rose"}'},
        {"names.json": '["rose", "tulip"]'},
        {"names.json": '{"1": "rose", "2": "rose"}'},
        {"names.json": '{"1": "rose", "2": "tulip"}', "labels.json": '{"1": "tulip", "2": "rose"}'},
        {"names.json": "[1, 2]", "classes.txt": "rose tulip 1", "labels.csv": "a,b,c\n1,2,3\n"},
        {"names.json": '{"1": "rose", "2": "tu'},
        {"readme.json": '{"1": "rose", "2": "tulip"}'},
    ],
)
def test_numbered_folders_stay_numbers_where_names_do_not_fit(
    tmp_path: pathlib.Path, texts: dict[str, str]
) -> None:
    put(tmp_path, *files("train", ("1", "2")), *files("valid", ("1", "2")))
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert read(tmp_path).classes == ("1", "2")


def test_the_python_interface_takes_the_same_options(tmp_path: pathlib.Path) -> None:
    from tellapart.spec import Spec, update

    spec = update(Spec(), {"data": {"train": ["x"], "test": "y", "label_column": ["a", "b"]}})
    assert spec.data.train == ("x",)
    assert spec.data.test == ("y",)


def test_a_folder_that_holds_its_neighbours_once_more_is_no_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *(f"{start}{c}/1.png" for start in ("", "brain_tumor_dataset/") for c in ("yes", "no")))
    samples = read(tmp_path)
    assert samples.classes == ("no", "yes")
    assert noted(samples, "Skipped 2 images in brain_tumor_dataset/", "copy")


def test_a_flat_test_folder_is_known_by_its_twin(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("asl_train/asl_train", ("A", "B")), "asl_test/asl_test/A_test.jpg")
    samples = read(tmp_path)
    assert samples.classes == ("A", "B")
    assert splits_of(samples) == {"train": 6}
    assert noted(samples, "Skipped 1 image in asl_test/")


def test_a_flat_folder_in_itself_is_no_class(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("train", ("A", "B")), "test/test/1.jpg", "test/test/2.jpg")
    samples = read(tmp_path)
    assert samples.classes == ("A", "B")
    assert noted(samples, "Skipped 2 images in test/")


@pytest.mark.parametrize("names", [("images_001", "images_002"), ("HAM_images_part_1", "HAM_images_part_2")])
def test_numbered_parts_of_one_whole_are_no_classes(tmp_path: pathlib.Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{n}.png" for name in names for n in range(3)))
    with pytest.raises(DataError, match=r"not in class folders .*--data\.format classes"):
        read(tmp_path)
    assert read(tmp_path, format="classes").classes == names


def test_sets_below_wrapping_folders_are_refused(tmp_path: pathlib.Path) -> None:
    for size in ("100x100", "original"):
        put(tmp_path, *files(f"fruits_{size}/fruits/Training"), *files(f"fruits_{size}/fruits/Test"))
    with pytest.raises(DataError, match="have splits of their own: fruits_100x100, fruits_original"):
        read(tmp_path)


def test_classes_beside_a_test_split_are_asked_about(tmp_path: pathlib.Path) -> None:
    put(tmp_path, *files("x")[0:0], "a/1.png", "b/1.png", "c/1.png", *files("test"))
    with pytest.raises(DataError, match=r"--data\.train \S+ --data\.test \S+/test\."):
        read(tmp_path)
    samples = read(tmp_path, train=(".",), test=("test",))
    assert samples.classes == ABC
    assert splits_of(samples) == {"train": 3, "test": 9}
