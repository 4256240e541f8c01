"""Figures of several labels against scikit-learn, thresholds, files and the comparison of two runs."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from tellapart.contract.answers import Answers, MultiLabel
from tellapart.errors import DataError
from tellapart.evaluation import compare_labels, metrics, multilabel

CLASSES = ("a", "b", "c|d", "e", "never")


def drawn(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float32 with ties, and targets of which one class is never there."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 5)) < [0.5, 0.3, 0.1, 0.02, 0.0]).astype(np.uint8)
    logits = rng.normal(size=(n, 5)) + 1.5 * targets - 1
    return np.round(logits, 1).astype(np.float32), targets


def answers(logits: np.ndarray, thresholds: tuple[float, ...] = (0.5, 0.4, 0.3, 0.2, 0.5)) -> Answers:
    return Answers(logits, CLASSES, 1.0, MultiLabel(thresholds))


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learns(seed: int) -> None:
    logits, targets = drawn(seed)
    told = answers(logits)
    found = multilabel.evaluate(told, targets, "test")
    here = targets.any(0)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    ap = sk.average_precision_score(targets[:, here], probabilities[:, here], average=None)
    marks = told.told_matrix
    close = {"rel": 0, "abs": 1e-9}
    assert [s.ap for s in found.per_class if s.ap is not None] == pytest.approx(list(ap), **close)
    assert found.per_class[4].ap is None
    assert found.map == pytest.approx(ap.mean(), **close)
    assert found.micro_f1 == pytest.approx(sk.f1_score(targets, marks, average="micro"), **close)
    macro = sk.f1_score(targets[:, here], marks[:, here], average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(macro, **close)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = sk.f1_score(targets, marks, average="samples", zero_division=1)
    assert found.samples_f1 == pytest.approx(samples, **close)
    assert found.subset_accuracy == pytest.approx(sk.accuracy_score(targets, marks), **close)
    assert found.hamming_loss == pytest.approx(sk.hamming_loss(targets, marks), **close)
    for k in np.flatnonzero(here):
        score = found.per_class[k]
        assert score.precision == pytest.approx(
            sk.precision_score(targets[:, k], marks[:, k], zero_division=0), **close
        )
        assert score.recall == pytest.approx(sk.recall_score(targets[:, k], marks[:, k]), **close)
    assert found.loss == pytest.approx(
        np.mean([sk.log_loss(targets[:, k], probabilities[:, k], labels=[0, 1]) for k in range(5)]), rel=1e-9
    )
    assert found.map_interval[0] < found.map < found.map_interval[1]
    quick = multilabel.quick(logits, targets)
    assert quick["mAP"] == pytest.approx(found.map, **close)
    assert (found.together == targets.T.astype(int) @ targets).all()


def test_a_model_that_knows_nothing_and_one_that_knows_all() -> None:
    _, targets = drawn(0)
    sure = multilabel.evaluate(answers((20.0 * targets - 10).astype(np.float32)), targets, "test")
    assert (sure.map, sure.micro_f1, sure.subset_accuracy, sure.hamming_loss) == (1, 1, 1, 0)
    same = multilabel.evaluate(answers(np.zeros(targets.shape, np.float32)), targets, "test")
    assert same.map == pytest.approx(targets.mean(0)[targets.any(0)].mean())  # all equal: one rank
    with pytest.raises(DataError, match="no images"):
        multilabel.evaluate(answers(np.zeros((0, 5), np.float32)), targets[:0], "test")


def test_values_that_are_no_numbers_rank_last_and_are_not_told() -> None:
    logits = np.array([[np.nan], [1.0], [-1.0]], np.float32)
    one = Answers(logits, ("a",), 1.0, MultiLabel((0.5,)))
    found = multilabel.evaluate(one, np.array([[1], [0], [0]], np.uint8), "test")
    assert found.loss is None
    assert one.told == [[], [0], []]
    assert found.per_class[0].ap == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_give_the_highest_f1(seed: int) -> None:
    logits, targets = drawn(seed)
    probabilities = answers(logits).probabilities
    found = multilabel.choose_thresholds(probabilities, targets)
    for k, threshold in enumerate(found):
        if targets[:, k].sum() < multilabel.LEAST_POSITIVES:
            assert threshold == 0.5
            continue
        every = [
            sk.f1_score(targets[:, k], probabilities[:, k] >= t, zero_division=0)
            for t in np.unique(probabilities[:, k])
        ]
        assert sk.f1_score(targets[:, k], probabilities[:, k] >= threshold) == pytest.approx(
            max(every), abs=1e-12
        )
        assert threshold not in probabilities[:, k]  # between two images, not on one


def test_few_images_of_a_class_keep_the_half() -> None:
    probabilities = np.linspace(0, 1, 20)[:, None]
    targets = (np.arange(20) >= 20 - multilabel.LEAST_POSITIVES + 1).astype(np.uint8)[:, None]
    assert multilabel.choose_thresholds(probabilities, targets) == (0.5,)
    assert multilabel.choose_thresholds(probabilities, np.ones((20, 1), np.uint8)) == (0.5,)


def test_the_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilabel, "RESAMPLES", 200)
    large_logits, large_targets = drawn(99, 5_000)
    keep = [0, 1, 2]
    truth = multilabel.mean_of_present(
        multilabel.average_precisions(large_logits[:, keep], large_targets[:, keep])
    )
    held = 0
    for seed in range(40):
        logits, targets = drawn(1000 + seed, 150)
        low, high = multilabel.map_interval(logits[:, keep], targets[:, keep])
        held += low <= truth <= high
    assert 33 <= held <= 40


def test_files_are_read_back(tmp_path: Path) -> None:
    logits, targets = drawn(2, 40)
    told = answers(logits)
    found = multilabel.evaluate(told, targets, "test", seconds=2.0, latencies_ms=[1.0, 2.0])
    shown: list[int] = []

    def picture(row: int) -> np.ndarray:
        shown.append(row)
        return np.zeros((4, 4, 3), np.uint8)

    metrics.write_evaluation(
        tmp_path, found, [f"{n}.png" for n in range(40)], told, targets, picture, count=5
    )
    again = metrics.read_evaluation(tmp_path)
    assert isinstance(again, multilabel.MultiEvaluation)
    assert again.to_dict() == found.to_dict()
    with open(tmp_path / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    mark = ";"  # a class name has the bar
    for row, truth, guess in zip(rows, targets, told.told_matrix, strict=True):
        assert row["labels"] == mark.join(CLASSES[k] for k in np.flatnonzero(truth))
        assert row["predicted"] == mark.join(CLASSES[k] for k in np.flatnonzero(guess))
        assert row["correct"] == str(int((truth == guess).all()))
    assert len(shown) == 5
    wrong = [
        np.abs(told.probabilities[n] - targets[n])[told.told_matrix[n] != targets[n]].max() for n in shown
    ]
    assert wrong == sorted(wrong, reverse=True)
    assert len(json.loads((tmp_path / "mistakes" / "index.json").read_text())) == 5


def _told(logits: np.ndarray, targets: np.ndarray) -> compare_labels.Told:
    marks = logits > 0
    return compare_labels.Told(
        CLASSES,
        {
            f"{n}.png": (
                "",
                frozenset(CLASSES[k] for k in np.flatnonzero(targets[n])),
                logits[n].tolist(),
                bool((marks[n] == targets[n]).all()),
            )
            for n in range(len(targets))
        },
    )


def test_two_runs_on_the_same_images() -> None:
    logits, targets = drawn(5)
    rng = np.random.default_rng(0)
    worse = _told(logits + 3 * rng.normal(size=logits.shape), targets)
    base = _told(logits, targets)
    found = compare_labels.compare(worse, base, "test")
    assert found.interval[0] > 0
    assert found.p_value < 0.01
    assert compare_labels.compare(base, base, "test").p_value == 1
    alike = compare_labels.compare(
        base, _told(logits + 0.01 * rng.normal(size=logits.shape), targets), "test"
    )
    assert alike.interval[0] < 0 < alike.interval[1] or alike.p_value > 0.01
    with pytest.raises(compare_labels.NotComparableError, match="differently"):
        compare_labels.compare(base, _told(logits, 1 - targets), "test")
    with pytest.raises(compare_labels.NotComparableError, match="share no"):
        compare_labels.compare(base, compare_labels.Told(CLASSES, {}), "test")


def test_images_without_any_label_are_no_measure() -> None:
    with pytest.raises(DataError, match="None of the 4 test images has a label"):
        multilabel.evaluate(answers(np.zeros((4, 5), np.float32)), np.zeros((4, 5), np.uint8), "test")
