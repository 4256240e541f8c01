"""The words that name a split, and those that only look like it."""

from __future__ import annotations

import pytest

from tellapart.data.sources.folders.split_names import (
    EVAL,
    meaning,
    settle,
    split_cells,
    split_name,
    split_of_file,
    split_of_folders,
    split_of_stem,
)

PURE = {
    "train": "train Training TRAIN train_images training_data train-set Train_Set_Folder train2017 trainval 1_train "
    "trainset TrainImages train.images traindata train_val 训练集 训练 訓練集 训练图片 Trainingsdaten Trainingsbilder train_dir "
    "01-Training imagesTrain train(1)",
    "val": "val Valid validation validate dev val_data valset val_dir 验证集 驗證集 Validierung Validierungsdaten devset "
    "val2017 VALIDATION valid_images",
    "test": "test Testing test_images holdout hold-out hold_out Test_Set 测试集 測試集 Testbilder testset test2 TestData tst",
    EVAL: "eval evaluation eval_set Evaluation evaluation_images",
}
WITH_MORE = {
    "train": "seg_train flowers_train ISIC2018_Task3_Training_Input steam_train 花朵训练集",
    "val": "flowers-val seg_valid",
    "test": "pregnancy_test seg_test cat.test",
}
NONE = "latest contest restraint invalid evaluated_by trainer testament validity seg_pred images_002 train_test_split value devil"


@pytest.mark.parametrize(("split", "name"), [(s, n) for s, names in PURE.items() for n in names.split()])
def test_names_that_say_a_split_and_nothing_else(split: str, name: str) -> None:
    found = meaning(name)
    assert (found.split, found.pure) == (split, True)
    assert meaning(f" {name} ") == found
    assert split_name(name) == ("test" if split == EVAL else split)


@pytest.mark.parametrize(("split", "name"), [(s, n) for s, names in WITH_MORE.items() for n in names.split()])
def test_names_with_a_split_among_other_words(split: str, name: str) -> None:
    found = meaning(name)
    assert (found.split, found.pure) == (split, False)
    assert split_name(name) == ""
    assert split_of_stem(f"lists/{name}.csv") == split


@pytest.mark.parametrize("name", [*NONE.split(), "", " ", "图像", "cat", "2017"])
def test_names_without_a_split(name: str) -> None:
    assert meaning(name).split == ""


def test_evaluation_is_test_unless_there_is_one() -> None:
    assert settle({"a": "train", "b": EVAL}) == {"a": "train", "b": "test"}
    assert settle({"a": "train", "b": EVAL, "c": "val"})["b"] == "test"
    assert settle({"a": "train", "b": EVAL, "c": "test"})["b"] == "val"


def test_cells_of_a_column() -> None:
    assert split_cells(["TRAIN", "VALIDATION", "TEST", "UNASSIGNED", ""]) == {
        "TRAIN": "train",
        "VALIDATION": "val",
        "TEST": "test",
        "UNASSIGNED": "",
        "": "",
    }
    assert split_cells(["Training", "PublicTest", "PrivateTest"])["PublicTest"] == "val"
    assert split_cells(["train", "dev", "eval"])["eval"] == "test"
    assert "third" not in split_cells(["train", "third"])


def test_splits_of_paths() -> None:
    assert split_of_folders("data/train2017/a.jpg") == "train"
    assert split_of_folders("steam_train/val/a.jpg") == "val"
    assert split_of_folders("train.jpg") == ""
    assert split_of_stem("annotations/instances_val2017.json") == "val"
    assert split_of_file("train/metadata.csv") == "train"
    assert split_of_file("train/test.csv") == "test"
