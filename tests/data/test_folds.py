"""Folds: every image is held out once, evenly by class, and never through a group or between copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tellapart.data.samples import Samples
from tellapart.data.sources import folds
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

Make = Callable[..., Path]


def quietly(text: str) -> None:
    pass


def opened(source: Path, fold: str, **changes: object) -> Samples:
    return open_source(DataSpec(source=str(source), fold=fold, **changes), quietly)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_single_images_are_dealt_as_evenly_as_can_be(count: int) -> None:
    labels = np.random.default_rng(count).choice(4, size=203, p=[0.6, 0.25, 0.1, 0.05]).astype(np.int64)
    names = [f"{row}.png" for row in range(len(labels))]
    dealt = folds.assign(labels, names, count, 0)
    table = np.stack([np.bincount(labels[dealt == fold], minlength=4) for fold in range(count)])
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1
    back = np.random.default_rng(0).permutation(len(labels))
    again = folds.assign(labels[back], [names[row] for row in back], count, 0)
    assert (again == dealt[back]).all(), "the order of the rows does not matter"
    assert (folds.assign(labels, names, count, 1) != dealt).any()


@pytest.mark.parametrize("seed", range(6))
def test_groups_are_dealt_as_evenly_as_scikit_learn_deals_them(seed: int) -> None:
    """Compared by the chi-square distance of the folds' counts from equal ones."""
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 600)
    taste = rng.dirichlet([1.5, 1, 0.5], 60)
    labels = np.array([rng.choice(3, p=taste[group]) for group in groups], np.int64)
    ours = folds.assign(labels, [f"g{group}" for group in groups], 5, seed)
    assert all(len(set(ours[groups == group])) == 1 for group in set(groups.tolist()))
    theirs = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for fold, (_, held) in enumerate(splitter.split(labels, labels, groups)):
        theirs[held] = fold

    def distance(dealt: np.ndarray) -> float:
        table = np.stack([np.bincount(labels[dealt == fold], minlength=3) for fold in range(5)])
        return float(((table - table.mean(axis=0)) ** 2 / table.mean(axis=0)).sum())

    assert distance(ours) <= distance(theirs)


def test_each_image_is_held_out_once_and_the_own_test_split_never(tmp_path: Path, make_folder: Make) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val", "test"))
    held: list[str] = []
    for number in (1, 2, 3):
        samples = opened(data, f"{number}/3")
        assert len(samples) == 72
        assert not [path for path in samples.paths if path.startswith("test/")]
        assert samples.counts("test").tolist() == [8, 8, 8]
        assert samples.counts("val").min() >= 1, "what chooses the epoch is not what is held out"
        held += samples.split("test").paths.tolist()
    assert len(set(held)) == len(held) == 72


def test_copies_and_groups_stay_in_one_fold(tmp_path: Path, make_folder: Make) -> None:
    data = make_folder(tmp_path / "data", count=20)
    for number in range(6):
        shutil.copy(data / f"ant/{number:03d}.png", data / f"ant/copy{number}.png")
    for number in (1, 2, 3, 4):
        samples = opened(data, f"{number}/4")
        where = dict(zip(samples.paths, samples.splits, strict=True))
        assert all(where[f"ant/{k:03d}.png"] == where[f"ant/copy{k}.png"] for k in range(6))
        grouped = opened(data, f"{number}/4", group=r"/\w*?(\d)\.png")
        splits_of: dict[str, set[str]] = {}
        for group, split in zip(grouped.groups, grouped.splits, strict=True):
            splits_of.setdefault(str(group), set()).add(split)
        assert all(len(found) == 1 for found in splits_of.values())
        assert {"train", "val", "test"} == set(grouped.splits)


def test_what_cannot_be_dealt_is_reported(tmp_path: Path, make_folder: Make) -> None:
    data = make_folder(tmp_path / "data", count=3)
    with pytest.raises(DataError, match="10 folds need at least 10 images, and there are 9"):
        opened(data, "1/10")
    with pytest.raises(DataError, match="groups of images that stay together, and there are 3"):
        opened(data, "1/4", group=r"(\d)\.png")
    said: list[str] = []
    open_source(DataSpec(source=str(data), fold="1/5"), quietly, said.append)
    assert any("3 classes with fewer images" in text and "5 folds" in text for text in said), said


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "2/", "a/b", "2/5/7", "-1/5", "２/5"])
def test_an_impossible_fold_is_refused(fold: str) -> None:
    with pytest.raises(SpecError, match="such as 2/5"):
        DataSpec(fold=fold)


def split_of(samples: Samples) -> dict[str, str]:
    return dict(zip(samples.paths.tolist(), samples.splits.tolist(), strict=True))


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train",), ()])
def test_folds_of_the_training_split_leave_val_and_test_as_they_are(
    tmp_path: Path, make_folder: Make, splits: tuple[str, ...]
) -> None:
    """Every training image is left out once, evenly by class."""
    data = make_folder(tmp_path / "data", splits=splits, count=20)
    whole = opened(data, "")
    left: list[str] = []
    for number in range(1, 4):
        part = opened(data, "", leave_out=f"{number}/3")
        assert part.paths.tolist() == whole.paths.tolist()
        mine = split_of(part)
        out = [path for path, split in mine.items() if split == "left-out"]
        assert {**mine, **dict.fromkeys(out, "train")} == split_of(whole)
        assert np.ptp(part.counts("left-out")) <= 1
        left += out
    assert sorted(left) == sorted(whole.split("train").paths.tolist())


def test_what_stays_together_is_left_out_together_and_rare_classes_are_not(
    tmp_path: Path, make_folder: Make
) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val"), count=20)
    for number in range(2, 20):
        (data / f"train/cat/{number:03}.png").unlink()
    for number in range(5):
        shutil.copyfile(data / "train/ant/000.png", data / f"train/ant/copy{number}.png")
    copies = [f"train/ant/copy{number}.png" for number in range(5)] + ["train/ant/000.png"]
    for number in range(1, 4):
        mine = split_of(opened(data, "", leave_out=f"{number}/3"))
        assert len({mine[path] for path in copies}) == 1
        assert {mine[f"train/cat/{n:03}.png"] for n in range(2)} == {"train"}, "of which there are two"


def test_a_fold_of_the_training_split_of_a_fold(tmp_path: Path, make_folder: Make) -> None:
    data = make_folder(tmp_path / "data", count=20)
    whole, part = opened(data, "1/2"), opened(data, "1/2", leave_out="2/4")
    assert part.split("test").paths.tolist() == whole.split("test").paths.tolist()
    assert len(part.split("left-out")) == pytest.approx(len(whole.split("train")) / 4, abs=3)
    with pytest.raises(SpecError, match=r"data\.leave_out is '4'"):
        DataSpec(leave_out="4")
