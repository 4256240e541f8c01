"""The figures of grades against scikit-learn, scipy and the bootstrap written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tellapart.contract import answers
from tellapart.evaluation import metrics, ordinal
from tellapart.evaluation.compare_grades import compare
from tellapart.training.choosing import standard_error


def confusion_of(truth: np.ndarray, told: np.ndarray, count: int) -> np.ndarray:
    return sk.confusion_matrix(truth, told, labels=range(count)).astype(np.int64)


@given(
    count=st.integers(2, 7),
    n=st.integers(1, 60),
    seed=st.integers(0, 9999),
    spread=st.sampled_from([0.0, 0.5, 3.0]),
)
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_figures_are_scikit_learns(count: int, n: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, count, n)
    told = np.clip(np.rint(truth + spread * rng.normal(size=n)), 0, count - 1).astype(np.int64)
    kappa = sk.cohen_kappa_score(truth, told, weights="quadratic", labels=range(count))
    quick = ordinal.quick(truth, told)
    found = ordinal.scores(confusion_of(truth, told, count), (0.0, 1.0))
    np.testing.assert_allclose(quick["kappa"], 1.0 if math.isnan(kappa) else kappa, atol=1e-9)
    np.testing.assert_allclose(
        math.nan if found.kappa is None else found.kappa, kappa, atol=1e-9, equal_nan=True
    )
    assert quick["mae"] == pytest.approx(sk.mean_absolute_error(truth, told))
    assert found.mae == pytest.approx(sk.mean_absolute_error(truth, told))
    assert found.within_one == pytest.approx((abs(truth - told) <= 1).mean())
    assert ordinal.GradeScores.from_dict(found.to_dict()) == found


def test_a_grade_that_no_image_has_keeps_its_place() -> None:
    truth, told = np.array([0, 0, 3, 3, 3]), np.array([0, 3, 3, 3, 0])
    wide = ordinal.quick(truth, np.array([0, 1, 3, 3, 2]))
    assert ordinal.quick(truth, told)["mae"] == pytest.approx(6 / 5)
    assert wide["kappa"] == pytest.approx(
        sk.cohen_kappa_score(truth, [0, 1, 3, 3, 2], weights="quadratic", labels=range(4))
    )


def test_intervals_are_those_of_images_drawn_anew() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 300)
    told = np.clip(truth + rng.integers(-1, 2, 300) * rng.integers(0, 2, 300), 0, 4)
    found = ordinal.scores(confusion_of(truth, told, 5), (0.0, 1.0))
    drawn = []
    for _ in range(1500):
        rows = rng.integers(0, 300, 300)
        drawn.append(tuple(ordinal.quick(truth[rows], told[rows]).values()))
    expected = np.percentile(np.array(drawn), (2.5, 97.5), axis=0)
    assert found.kappa_interval is not None
    assert found.mae_interval is not None
    np.testing.assert_allclose(found.kappa_interval, expected[:, 0], atol=0.006)
    np.testing.assert_allclose(found.mae_interval, expected[:, 1], atol=0.012)
    # the rules of thumb by which an epoch is chosen are of that size too
    counts = np.bincount(truth)
    for name, column in (("kappa", 0), ("mae", 1)):
        value = getattr(found, name)
        error = standard_error(name, -value if name == "mae" else value, counts)
        assert 0.5 < error / np.std(np.array(drawn)[:, column]) < 2


def test_without_a_mistake_nothing_is_pretended() -> None:
    perfect = ordinal.scores(np.diag([4, 5, 6]), (0.8, 1.0))
    assert (perfect.kappa, perfect.kappa_interval, perfect.mae_interval) == (1.0, None, None)
    one = ordinal.scores(np.diag([4, 0, 0]), (0.5, 1.0))
    assert (one.kappa, one.mae, one.within_one) == (None, 0.0, 1.0)
    assert ordinal.quick(np.zeros(4, np.int64), np.zeros(4, np.int64)) == {"kappa": 1.0, "mae": 0.0}
    assert math.isnan(ordinal.kappa(np.diag([4, 0, 0])))


def graded(logits: np.ndarray, names: tuple[str, ...]) -> answers.Answers:
    return answers.Answers(logits.astype(np.float32), names, kind=answers.Graded(names))


def test_an_evaluation_of_grades_and_of_none() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 4)), rng.integers(0, 4, 40)
    names = ("1", "2", "3", "4")
    found = metrics.evaluate(graded(logits, names), labels, "val")
    assert found.ordinal is not None
    assert found.ordinal.kappa == pytest.approx(
        sk.cohen_kappa_score(labels, logits.argmax(1), weights="quadratic")
    )
    low, high = found.ordinal.within_one_interval
    assert low < found.ordinal.within_one < high
    assert metrics.Evaluation.from_dict(found.to_dict()).ordinal == found.ordinal
    pooled = metrics.Evaluation.pooled([found, found], (), "all")
    assert pooled.ordinal is not None
    assert pooled.ordinal.mae == pytest.approx(found.ordinal.mae)
    plain = metrics.evaluate(answers.Answers(logits.astype(np.float32), names), labels, "val")
    assert plain.ordinal is None
    assert "ordinal" not in plain.to_dict()
    columns = metrics.predictions(graded(logits, names), labels, ["x"] * 40)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(columns["expected_grade"], p @ [1, 2, 3, 4], rtol=1e-5)


def test_two_kappas_on_the_same_images() -> None:
    rng = np.random.default_rng(0)
    names = ("low", "medium", "high")
    truth = rng.integers(0, 3, 200)
    one = np.clip(truth + rng.integers(-1, 2, 200), 0, 2)
    two = np.where(rng.random(200) < 0.9, truth, one)
    rows = [(names[a], names[b], names[c]) for a, b, c in zip(truth, one, two, strict=True)]
    found = compare(rows, names)
    assert found is not None
    expected = [
        sk.cohen_kappa_score(truth, told, weights="quadratic", labels=range(3)) for told in (one, two)
    ]
    assert found.difference == pytest.approx(expected[1] - expected[0])
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p_value < 0.01
    same = compare([(a, b, b) for a, b, _ in rows], names)
    assert same is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert compare([("low", "low", "low")], names) is None
