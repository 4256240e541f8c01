"""Images with several labels: from lists, annotation files and linked folders to the table, and its splits."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.contract.card import label_mark
from tellapart.data.samples import Samples, write_samples
from tellapart.data.sources import folds, iterative, splits
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

WANTED = [("cat", "dog"), ("cat",), ("dog", "owl"), (), ("cat", "dog", "owl"), ("owl",)] * 3


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(len(WANTED)):
        picture(tmp_path / f"{number:02}.png", number)
    return tmp_path


def sets(samples: Samples) -> dict[str, set[str]]:
    assert samples.targets is not None
    assert (samples.labels == -1).all()
    return {
        path: {samples.classes[k] for k in np.flatnonzero(row)}
        for path, row in zip(samples.paths, samples.targets, strict=True)
    }


def opened(folder: Path, **fields: object) -> tuple[Samples, list[str]]:
    said: list[str] = []
    source = fields.pop("source", folder)
    spec = DataSpec(source=str(source), **{"val_fraction": 0.0, "test_fraction": 0.0, **fields})  # type: ignore[arg-type]
    return open_source(spec, said.append), said


def expected(bare: bool = True) -> dict[str, set[str]]:
    return {f"{n:02}.png": set(names) for n, names in enumerate(WANTED) if names or bare}


@pytest.mark.parametrize(
    ("mark", "auto"), [("|", True), (";", True), (",", True), (" ", False), ("+", False)]
)
def test_labels_in_a_cell(folder: Path, mark: str, auto: bool) -> None:
    with open(folder / "list.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "labels"])
        writer.writerows([f"{n:02}.png", mark.join(names)] for n, names in enumerate(WANTED))
    if auto:
        samples, said = opened(folder)
        assert sets(samples) == expected(bare=False)  # an empty cell may mean that nobody looked
        assert any(f"separated by {mark!r}" in text for text in said)
    told = {"label_separator": mark} if mark == "+" else {}
    samples, said = opened(folder, labels="multi", **told)
    assert sets(samples) == expected()
    assert any("without any label" in text for text in said)


def test_single_keeps_what_was(folder: Path) -> None:
    rows = "\n".join(f"{n:02}.png,{'|'.join(names)}" for n, names in enumerate(WANTED))
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    samples, said = opened(folder, labels="single")
    assert samples.targets is None
    assert len(samples) == 6
    assert any("more than one label" in text for text in said)


def test_one_hot_columns_with_several(folder: Path) -> None:
    names = ("cat", "dog", "owl")
    rows = "\n".join(f"{n:02}.png," + ",".join(str(int(k in s)) for k in names) for n, s in enumerate(WANTED))
    (folder / "list.csv").write_text(f"image,cat,dog,owl\n{rows}\n")
    samples, said = opened(folder)
    assert sets(samples) == expected()
    assert any("one-hot" in text for text in said)


def test_columns_of_names_and_rows_of_one_image(folder: Path) -> None:
    rows = "\n".join(f"{n:02}.png," + ",".join([*names, "", "", ""][:3]) for n, names in enumerate(WANTED))
    (folder / "list.csv").write_text(f"path,a,b,c\n{rows}\n")
    samples, _ = opened(folder, labels="multi", label_column=("a", "b", "c"))
    assert sets(samples) == expected()
    long = "\n".join(f"{n:02}.png,{name}" for n, names in enumerate(WANTED) for name in names)
    (folder / "list.csv").write_text(f"path,label\n{long}\n")
    samples, said = opened(folder, labels="multi")
    assert sets(samples) == expected(bare=False)
    assert any("an image has the labels of all its rows" in text for text in said)


@pytest.mark.parametrize("numbers", [False, True])
def test_json_lines_with_lists(folder: Path, numbers: bool) -> None:
    number = {"cat": 0, "dog": 1, "owl": 2}
    lines = [
        json.dumps({"file_name": f"{n:02}.png", "labels": [number[k] if numbers else k for k in names]})
        for n, names in enumerate(WANTED)
    ]
    (folder / "list.jsonl").write_text("\n".join(lines))
    samples, _ = opened(folder)
    want = {path: {str(number[k]) if numbers else k for k in names} for path, names in expected().items()}
    assert sets(samples) == want


def test_a_class_name_with_spaces_stays_whole(folder: Path) -> None:
    names = ["polar bear", "brown bear", "owl"]
    rows = "\n".join(f"{n:02}.png,{names[n % 3]}" for n in range(len(WANTED)))
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    for labels in ("auto", "multi"):
        samples, _ = opened(folder, labels=labels)
        assert set(samples.classes) == set(names)
        assert (samples.targets is None) == (labels == "auto")


def test_coco_with_several_categories(folder: Path) -> None:
    numbers = {"cat": 1, "dog": 2, "owl": 3}
    content = {
        "images": [
            {"id": n, "file_name": f"{n:02}.png", "width": 12, "height": 12} for n in range(len(WANTED))
        ],
        "categories": [{"id": k, "name": name} for name, k in numbers.items()],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": numbers[name], "bbox": [k, 1, 4, 4]}
            for n, names in enumerate(WANTED)
            for k, name in enumerate((*names, *names))
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    samples, said = opened(folder)
    assert samples.targets is None
    assert any("--data.labels multi" in text.replace("\n", " ") for text in said)
    samples, said = opened(folder, labels="multi")
    assert sets(samples) == expected()
    with pytest.raises(SpecError, match="whole images"):
        opened(folder, labels="multi", boxes="crop")


@pytest.mark.parametrize("how", ["symlink", "hardlink", "copy"])
def test_one_picture_in_several_class_folders(tmp_path: Path, how: str) -> None:
    for number, names in enumerate(WANTED):
        if not names:
            continue
        first = picture(tmp_path / "set" / names[0] / f"{number:02}.png", number)
        for name in names[1:]:
            other = tmp_path / "set" / name / f"{number:02}.png"
            other.parent.mkdir(parents=True, exist_ok=True)
            if how == "symlink":
                other.symlink_to(os.path.relpath(first, other.parent))
            elif how == "hardlink":
                os.link(first, other)
            else:
                other.write_bytes(first.read_bytes())
    samples, said = opened(tmp_path / "set", labels="multi")
    found = {os.path.basename(path): names for path, names in sets(samples).items()}
    assert found == expected(bare=False)
    assert any("9 pictures in several class folders" in text for text in said)
    assert opened(tmp_path / "set")[0].targets is None  # only when asked


def test_arrays_have_one_label_each() -> None:
    with pytest.raises(DataError, match="one label for each image"):
        opened(Path("digits"), labels="multi", source="digits")


def test_the_table_of_samples_says_all_labels(folder: Path) -> None:
    rows = "\n".join(f"{n:02}.png,{';'.join(names)}" for n, names in enumerate(WANTED))
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    samples, _ = opened(folder, labels="multi")
    write_samples(samples, folder / "samples.csv")
    with open(folder / "samples.csv", newline="") as stream:
        read = {row["path"]: set(filter(None, row["labels"].split("|"))) for row in csv.DictReader(stream)}
    assert read == expected()
    assert label_mark(("a|b", "c;d")) == "/"


def unbalanced(rng: np.random.Generator, count: int = 1000) -> np.ndarray:
    rates = np.array([0.4, 0.2, 0.1, 0.05, 0.02, 0.01])
    return (rng.random((count, len(rates))) < rates).astype(np.uint8)


def largest_error(targets: np.ndarray, dealt: np.ndarray) -> float:
    """Return how far a class's part of a split is from the wanted one, in images."""
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
    return max(
        float(np.abs(targets[dealt == split].sum(0) - fraction * targets.sum(0)).max())
        for split, fraction in fractions.items()
    )


def test_splits_keep_each_class_at_its_part() -> None:
    rng = np.random.default_rng(3)
    targets = unbalanced(rng)
    paths = [f"{n}.png" for n in range(len(targets))]
    dealt = splits.assign(targets, paths, 0.1, 0.2, 0)
    assert largest_error(targets, dealt) <= 2.5
    chance = [rng.choice(["train", "val", "test"], len(targets), p=[0.7, 0.1, 0.2]) for _ in range(20)]
    assert min(largest_error(targets, one) for one in chance) > 2.5
    assert abs((dealt == "test").mean() - 0.2) < 0.01
    again = rng.permutation(len(targets))
    assert (splits.assign(targets[again], [paths[n] for n in again], 0.1, 0.2, 0) == dealt[again]).all()
    assert (splits.assign(targets, paths, 0.1, 0.2, 1) != dealt).any()


def test_splits_keep_groups_together() -> None:
    rng = np.random.default_rng(4)
    targets = unbalanced(rng, 600)
    groups = [f"g{n}" for n in rng.integers(0, 150, 600)]
    dealt = splits.assign(targets, [f"{n}.png" for n in range(600)], 0.1, 0.2, 0, groups)
    assert splits.crossing(groups, dealt.tolist()) == 0
    assert largest_error(targets, dealt) <= 6


def test_a_rare_class_trains_first() -> None:
    targets = np.zeros((40, 2), np.uint8)
    targets[:, 0] = 1
    targets[:2, 1] = 1
    order = np.arange(40, dtype=np.uint64)
    dealt = iterative.deal(targets, [str(n) for n in range(40)], 0.1, 0.2, order)
    assert "train" in dealt[:2].tolist()


def test_copies_stay_together(folder: Path) -> None:
    (folder / "more").mkdir()
    for n in range(len(WANTED)):
        (folder / "more" / f"{n:02}.png").write_bytes((folder / f"{n:02}.png").read_bytes())
    rows = "\n".join(
        f"{d}{n:02}.png,{';'.join(names)}" for n, names in enumerate(WANTED) for d in ("", "more/")
    )
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    samples, _ = opened(folder, labels="multi", val_fraction=0.2, test_fraction=0.2)
    split = dict(zip(samples.paths, samples.splits, strict=True))
    assert all(split[f"{n:02}.png"] == split[f"more/{n:02}.png"] for n in range(len(WANTED)))
    assert set(split.values()) == {"train", "val", "test"}


def test_a_comma_in_every_name_is_no_list_of_labels(folder: Path) -> None:
    """Where no label ever stands alone, a cell with a comma is one name."""
    names = ["cat, common", "dog, common", "owl, common"]
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        writer.writerows([f"{n:02}.png", names[n % 3]] for n in range(len(WANTED)))
    samples, _ = opened(folder, source=folder / "list.csv")
    assert samples.targets is None
    assert list(samples.classes) == names


def test_folds_keep_each_class_at_its_part() -> None:
    rng = np.random.default_rng(7)
    targets = unbalanced(rng)
    names = [f"{n}.png" for n in range(len(targets))]
    dealt = folds.assign(targets, names, 5, 0)
    table = np.stack([targets[dealt == fold].sum(0) for fold in range(5)])
    assert np.ptp(table, axis=0).max() <= 5
    chance = [rng.integers(0, 5, len(targets)) for _ in range(20)]
    assert min(np.ptp([targets[one == k].sum(0) for k in range(5)], axis=0).max() for one in chance) > 5
    assert np.ptp(np.bincount(dealt)) <= 20  # of 200: what counts is the labels
    back = rng.permutation(len(targets))
    assert (folds.assign(targets[back], [names[n] for n in back], 5, 0) == dealt[back]).all()
    assert (folds.assign(targets, names, 5, 1) != dealt).any()


def test_folds_of_several_labels_keep_groups_and_copies(folder: Path) -> None:
    (folder / "more").mkdir()
    for n in range(len(WANTED)):
        (folder / "more" / f"{n:02}.png").write_bytes((folder / f"{n:02}.png").read_bytes())
    rows = "\n".join(
        f"{d}{n:02}.png,{';'.join(names)}" for n, names in enumerate(WANTED) for d in ("", "more/")
    )
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    held: dict[str, str] = {}
    for fold in ("1/3", "2/3", "3/3"):
        samples, said = opened(folder, labels="multi", val_fraction=0.2, fold=fold)
        test = set(samples.paths[samples.splits == "test"])
        assert {path.removeprefix("more/") for path in test} <= test
        assert not held.keys() & test
        held |= dict.fromkeys(test, fold)
        assert (samples.splits == "val").any()
        assert any("3 folds of 36 images" in text for text in said)
    assert len(held) == 36


def test_classes_too_rare_for_the_folds_are_named(folder: Path) -> None:
    rows = "\n".join(f"{n:02}.png,cat{';rare' if n < 2 else ''}" for n in range(len(WANTED)))
    (folder / "list.csv").write_text(f"path,label\n{rows}\n")
    _, said = opened(folder, labels="multi", fold="1/3")
    assert any("1 class with fewer images" in text and "rare" in text for text in said)
