"""Names of classes with levels (`animal/dog`): from lists, several columns and nested class folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.data.samples import Samples
from tellapart.data.sources import levels
from tellapart.data.sources.listing import Listing
from tellapart.data.sources.objects import take
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

TREE = ("animals/dog", "animals/cat", "vehicles/car", "plants")


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def tree(folder: Path, names: Iterable[str], count: int = 3) -> Path:
    for number, name in enumerate(names):
        for k in range(count):
            picture(folder / name / f"{k}.png", 100 * number + k)
    return folder


def listed(folder: Path, labels: Iterable[str], header: str = "path,label") -> Path:
    lines = [header]
    for number, label in enumerate(labels):
        picture(folder / f"{number}.png", number)
        lines.append(f"{number}.png,{label}")
    target = folder / "list.csv"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def opened(source: Path, **fields: object) -> tuple[Samples, list[str], list[str]]:
    said: list[str] = []
    warned: list[str] = []
    spec = DataSpec(source=str(source), **{"val_fraction": 0.0, "test_fraction": 0.0, **fields})  # type: ignore[arg-type]
    return open_source(spec, said.append, warned.append), said, warned


def names_of(samples: Samples) -> dict[str, str]:
    return {path: samples.classes[k] for path, k in zip(samples.paths, samples.labels.tolist(), strict=True)}


# --- Lists ------------------------------------------------------------------------------------------------


def test_names_of_a_list_that_plainly_have_levels_are_said_and_stay_as_they_are(tmp_path):
    source = listed(tmp_path, [*TREE, *TREE])
    samples, said, warned = opened(source)
    assert samples.levels == "/"
    assert samples.classes == tuple(sorted(TREE))
    assert any("4 classes have 2 levels" in text and "--data.levels none" in text for text in said)
    assert not warned
    plain, said, _ = opened(source, levels="none")
    assert (plain.levels, plain.classes) == ("", samples.classes)
    assert not any("levels" in text for text in said)


@pytest.mark.parametrize("mark", ["|", ">", ".", "::", "__", "-", ";", "\\"])
def test_another_separator_is_taken_where_it_is_named(tmp_path, mark):
    labels = [name.replace("/", mark) for name in TREE] * 2
    source = listed(tmp_path, [f'"{label}"' for label in labels])
    samples, _, _ = opened(source, levels=mark)
    assert samples.levels == mark
    assert samples.targets is None
    assert not samples.conflicts
    assert set(samples.classes) == set(labels)


@pytest.mark.parametrize("mark", [">", ".", "::", "__", "-"])
def test_no_separator_but_slashes_is_guessed(tmp_path, mark):
    samples, said, _ = opened(listed(tmp_path, [name.replace("/", mark) for name in TREE] * 2))
    assert samples.levels == ""
    assert not any("levels" in text for text in said)


def test_backslashes_are_levels_too_and_with_the_slash_named_they_become_one_class(tmp_path):
    source = listed(tmp_path, [r"animals\dog", r"animals\cat", "plants", r"animals\dog"])
    samples, _, _ = opened(source)
    assert samples.levels == "\\"
    assert r"animals\dog" in samples.classes
    mixed = listed(tmp_path, [r"animals\dog", "animals/dog", " animals / cat /", "plants"])
    samples, said, _ = opened(mixed, levels="/")
    assert samples.classes == ("animals/cat", "animals/dog", "plants")
    assert any("2 class names are written with '/'" in text for text in said)


@pytest.mark.parametrize(
    "names",
    [
        ("and/or", "N/A", "yes", "no"),  # nothing is shared
        ("1/2", "1/4", "3/4", "1"),  # numbers
        ("a/x", "a/y"),  # one name at the top: nothing to tell apart
        ("a\\xe9", "a\\xe8", "b"),  # bytes that are no text, as they are written
    ],
)
def test_slashes_that_are_no_levels_are_left_alone(tmp_path, names):
    samples, _, _ = opened(listed(tmp_path, [*names, *names]))
    assert samples.levels == ""


@pytest.mark.parametrize(
    "names", [("a/x", "a/y", "b", "c", "d"), ("a / x", "a / y", "b/z"), ("a//x", "a//y", "b/z")]
)
def test_slashes_that_may_be_levels_bring_the_option(tmp_path, names):
    source = listed(tmp_path, [*names, *names])
    samples, said, _ = opened(source)
    assert samples.levels == ""
    assert set(samples.classes) == set(names)
    assert any("--data.levels / takes it for levels" in text for text in said)
    assert opened(source, levels="/")[0].levels == "/"


def test_a_class_that_others_belong_to_is_warned_of(tmp_path):
    samples, _, warned = opened(listed(tmp_path, ["animal", "animal/dog", "animal/cat", "plant"] * 2))
    assert samples.classes == ("animal", "animal/cat", "animal/dog", "plant")
    assert any("1 class is also what others belong to: animal" in text for text in warned)


def test_a_label_with_levels_is_no_pair_of_labels_where_the_separator_is_named(tmp_path):
    source = listed(tmp_path, ["cat", "dog", "cat/dog", "cat/dog"])
    samples, _, _ = opened(source)
    assert len(samples.conflicts) == 2  # as before: both stand alone as well
    samples, _, _ = opened(source, levels="/")
    assert samples.classes == ("cat", "cat/dog", "dog")
    assert not samples.conflicts


def test_several_columns_are_levels(tmp_path):
    rows = ["animal,dog", "animal,cat", "plant,", "animal,dog", ","]
    source = listed(tmp_path, rows, "path,kind,species")
    samples, said, _ = opened(source, levels="/", label_column=("kind", "species"))
    assert samples.classes == ("animal/cat", "animal/dog", "plant")
    assert list(names_of(samples).values()).count("animal/dog") == 2
    assert any("1 row without a path or a label" in text for text in said)


@pytest.mark.parametrize(
    ("row", "why"), [(",dog", "'kind' is empty"), ("animal,a/b", "choose another separator")]
)
def test_columns_that_are_no_levels_are_refused_with_the_line(tmp_path, row, why):
    source = listed(tmp_path, ["animal,dog", row], "path,kind,species")
    with pytest.raises(DataError, match=f"line 3.*{why}"):
        opened(source, levels="/", label_column=("kind", "species"))


def test_one_hot_columns_stay_one_hot(tmp_path):
    source = listed(tmp_path, ["1,0,0", "0,1,0", "0,0,1"], "path,a/x,a/y,b")
    samples, _, _ = opened(source, levels="/", label_column=("a/x", "a/y", "b"))
    assert samples.classes == ("a/x", "a/y", "b")
    assert samples.levels == "/"


def test_several_labels_have_no_levels(tmp_path):
    source = listed(tmp_path, ["a/x|b/y", "a/x|a/z", "b/y", "a/z|b/y"])
    assert opened(source)[0].levels == ""
    with pytest.raises(SpecError, match="for images of one label"):
        opened(source, levels="/", labels="multi")


@pytest.mark.parametrize("levels", ["slash", "a", " / ", "/" * 9, "1"])
def test_what_is_no_separator_is_refused(levels):
    with pytest.raises(SpecError, match=r"data\.levels is"):
        DataSpec(levels=levels)


def test_a_separator_that_no_name_has_is_warned_of(tmp_path):
    samples, _, warned = opened(listed(tmp_path, ["a/x", "a/y", "b"]), levels=">")
    assert samples.levels == ""
    assert any("no class has levels by it" in text for text in warned)


def test_official_classes_that_become_one_are_refused():
    listing = Listing(root="", paths=["1"], labels=["a/x"], splits=[""], classes=("a/x", "a / x"))
    with pytest.raises(DataError, match="two classes are called 'a/x'"):
        levels.settle(listing, DataSpec(levels="/"), lambda _: None, lambda _: None)


# --- Folders ----------------------------------------------------------------------------------------------


def test_nested_folders_are_read_as_before_and_the_other_reading_is_said(tmp_path):
    samples, said, _ = opened(tree(tmp_path, ("animals/dog", "animals/cat", "plants")))
    assert samples.classes == ("animals", "plants")
    assert samples.levels == ""
    assert any("--data.levels / (animals/cat, with figures at each level)" in text for text in said)


def test_folders_of_one_class_say_nothing(tmp_path):
    for names in (("a", "b"), ("a/images", "b/images"), ("a/images_1", "a/images_2", "b")):
        folder = tree(tmp_path / str(len(names)) / names[0].replace("/", "-"), names)
        assert not any("data.levels" in text for text in opened(folder)[1])


@pytest.mark.parametrize("within", ["", "wrapper-1.0/"])
def test_nested_folders_are_classes_with_levels(tmp_path, within):
    tree(tmp_path, (within + name for name in TREE))
    samples, _, _ = opened(tmp_path, levels="/")
    assert samples.classes == tuple(sorted(TREE))
    assert samples.levels == "/"
    assert all(path.rpartition("/")[0].endswith(name) for path, name in names_of(samples).items())


def test_one_leaf_below_two_parents_is_two_classes(tmp_path):
    tree(tmp_path, ("cat/black", "cat/white", "dog/black", "dog/white"))
    with pytest.raises(DataError, match=r"--data\.levels /"):
        opened(tmp_path)
    samples, _, _ = opened(tmp_path, levels="/")
    assert samples.classes == ("cat/black", "cat/white", "dog/black", "dog/white")


def test_splits_above_or_below_nested_folders_are_splits(tmp_path):
    above = tree(tmp_path / "above", (f"{split}/{name}" for split in ("train", "test") for name in TREE))
    below = tree(tmp_path / "below", (f"{name}/{split}" for name in TREE for split in ("train", "test")))
    for folder in (above, below):
        samples, _, _ = opened(folder, levels="/")
        assert samples.classes == tuple(sorted(TREE))
        assert (samples.splits == "test").sum() == (samples.splits == "train").sum() == 12
    assert any("data.levels" in text for text in opened(above)[1])


def test_splits_in_some_nested_folders_are_refused(tmp_path):
    tree(tmp_path, ("animals/dog/train", "animals/dog/test", "plants"))
    with pytest.raises(DataError, match=r"hold folders for their splits \(animals/dog\)"):
        opened(tmp_path, levels="/")


def test_a_vehicle_called_train_is_a_class(tmp_path):
    tree(tmp_path, ("vehicles/train", "vehicles/car", "plants/rose", "plants/oak"))
    samples, _, _ = opened(tmp_path, levels="/")
    assert "vehicles/train" in samples.classes


def test_named_folders_of_splits_are_nested_too(tmp_path):
    tree(tmp_path, (f"{split}/{name}" for split in ("one", "two") for name in TREE))
    samples, _, _ = opened(tmp_path, levels="/", train=("one",), test=("two",))
    assert samples.classes == tuple(sorted(TREE))
    assert set(samples.splits) == {"train", "test"}


def test_folders_that_only_hold_files_are_no_level(tmp_path):
    tree(tmp_path, ("face/mask", "face/none", "dog/images", "cat/images_1", "cat/images_2"))
    samples, _, _ = opened(tmp_path, levels="/")
    assert samples.classes == ("cat", "dog", "face/mask", "face/none")


def test_images_beside_inner_folders_are_a_class_that_is_warned_of(tmp_path):
    tree(tmp_path, ("animals", "animals/dog", "plants"))
    samples, _, warned = opened(tmp_path, levels="/")
    assert samples.classes == ("animals", "animals/dog", "plants")
    assert any("also what others belong to" in text for text in warned)


def test_top_folders_as_classes_whatever_their_names_have_levels_too(tmp_path):
    tree(tmp_path, ("train/red", "train/blue", "car/red"))
    samples, _, _ = opened(tmp_path, levels="/", format="classes")
    assert samples.classes == ("car/red", "train/blue", "train/red")


@pytest.mark.parametrize("deep", [3, 5])
def test_levels_may_be_many(tmp_path, deep):
    names = ["/".join("abcdef"[k] for k in range(deep)), "a/x", "b"]
    samples, _, _ = opened(tree(tmp_path, names), levels="/")
    assert samples.classes == tuple(sorted(names))


@pytest.mark.parametrize("kind", ["arrays", "list", "items"])
def test_objects_of_python_have_levels(tmp_path, kind):
    names = ["animal/dog", "animal/cat", "plant"] * 4
    pictures = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    if kind == "list":
        for number in range(12):
            picture(tmp_path / f"{number}.png", number)
        value = [(str(tmp_path / f"{number}.png"), name) for number, name in enumerate(names)]
    else:
        value = (pictures, names) if kind == "arrays" else list(zip(pictures, names, strict=True))
    given = take(value)
    assert given is not None
    samples = open_source(DataSpec(source=given.name), lambda _: None, given=given)
    assert samples.levels == "/"
    assert samples.classes == ("animal/cat", "animal/dog", "plant")
