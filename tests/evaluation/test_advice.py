from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

from tellapart.evaluation import advice, label_doubts, learning_curve, ridge
from tellapart.evaluation.advice import Advice, Curve, Gap, Item, Missing, NoHelp, Sized

CLASSES = ("ant", "bee", "cat", "dog")


def clouds(count: int, spread: float, classes: int = 4, width: int = 24, seed: int = 0) -> Any:
    """Features around a centre for each class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.permutation(np.arange(count) % classes)
    return (centres[labels] + rng.normal(0, spread, (count, width))).astype(np.float32), labels


@pytest.mark.parametrize(("count", "width"), [(30, 60), (60, 30), (31, 31)])
def test_left_out_scores_are_those_of_a_fit_without_the_image(count: int, width: int) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(count, width)).astype(np.float32)
    targets = ridge.indicators(np.arange(count) % 3, 3)
    head = ridge.fit(features, targets, 1.0)
    penalty = float(((features - features.mean(0)) ** 2).sum()) / count
    for row in (0, 7, count - 1):
        rest = np.delete(np.arange(count), row)
        inputs, wanted = features[rest].astype(np.float64), targets[rest].astype(np.float64)
        centre, mean = inputs.mean(0), wanted.mean(0)
        inputs -= centre
        weights = np.linalg.solve(inputs.T @ inputs + penalty * np.eye(width), inputs.T @ (wanted - mean))
        np.testing.assert_allclose(head.left_out[row], (features[row] - centre) @ weights + mean, atol=2e-3)


def test_penalty_follows_the_noise() -> None:
    clean, noisy = clouds(200, 0.1), clouds(200, 6.0)
    chosen = [ridge.choose_strength(x, ridge.indicators(y, 4)) for x, y in (clean, noisy)]
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_expected_gain_is_that_of_a_power_law(exponent: float) -> None:
    parts = np.array(learning_curve.PARTS)
    gain, spread = learning_curve.expected_gain(0.1 + 0.2 * parts**-exponent)
    assert gain == pytest.approx(0.2 * (1 - 2.0**-exponent), abs=0.004)
    assert spread < 0.01


def test_curve_predicts_what_twice_the_images_reach() -> None:
    features, labels = clouds(3000, 3.2)
    reached = {}
    for count in (200, 400):
        errors = []
        for start in range(0, 2000, count):
            head = ridge.fit(
                features[start : start + count], ridge.indicators(labels[start : start + count], 4), 1.0
            )
            errors.append((head.scores(features[2000:]).argmax(1) != labels[2000:]).mean())
        reached[count] = float(np.mean(errors))
    growth = learning_curve.measure(
        (features[:200], labels[:200]), (features[200:300], labels[200:300]), 4, 60.0
    )
    assert growth is not None
    assert growth.images == (25, 50, 100, 200)
    gain = reached[200] - reached[400]
    assert gain > 0.01
    assert growth.interval[0] < gain < growth.interval[1]
    assert growth.gain == pytest.approx(gain, abs=0.03)


def test_curve_is_left_out_if_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(400, 1.0)
    ticks = itertools.count(0.0, 5.0)
    none = (features[:0], labels[:0])
    assert learning_curve.measure((features, labels), none, 4, 10.0, lambda: next(ticks)) is None
    assert learning_curve.measure((features, labels), none, 4, 60.0) is not None


@pytest.mark.parametrize(
    ("gain", "low", "helps"), [(0.03, 0.01, True), (0.03, -0.001, False), (0.004, 0.002, False)]
)
def test_more_images_only_if_the_gain_is_more_than_chance(gain: float, low: float, helps: bool) -> None:
    by_class = ((0.1, 0.02), (0.02, 0.02), (0.2, 0.02), (0.0, 0.02))
    growth = learning_curve.Growth((50, 100, 200, 400), (0.4, 0.35, 0.3, 0.26), gain, (low, 0.05), by_class)
    told = advice.by_growth(growth, CLASSES)
    assert isinstance(told, Item if helps else NoHelp)
    if helps:
        assert (told.gain, told.interval) == (gain, (low, 0.05))
        assert "right on 70.0 % with 200 images and 74.0 % with 400" in told.text
        assert told.text.endswith("most: cat, ant.")


def test_easy_images_need_no_more() -> None:
    features, labels = clouds(240, 0.05)
    growth = learning_curve.measure((features, labels), (features[:0], labels[:0]), 4, 60.0)
    assert growth is not None
    assert growth.errors[-1] == 0
    assert isinstance(advice.by_growth(growth, CLASSES), NoHelp)


def calibrated(count: int, classes: int = 5, sharpness: float = 3.0, seed: int = 0) -> Any:
    """Logits whose softmax is exactly how the labels are distributed."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (count, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in chances])
    return logits, labels


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_no_label_is_doubted_where_errors_are_the_models_own(seed: int, scale: float) -> None:
    logits, labels = calibrated(600, sharpness=2.0 + seed, seed=seed)
    assert (logits.argmax(1) != labels).mean() > 0.03
    doubts = label_doubts.find(scale * logits, labels)
    assert not doubts.certain
    assert isinstance(advice.by_doubts(doubts, "validation"), NoHelp)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_are_found_and_counted(seed: int) -> None:
    logits, labels = calibrated(1000, sharpness=8.0, seed=seed)
    rng = np.random.default_rng(seed)
    flipped = rng.random(1000) < 0.05
    labels = np.where(flipped, (labels + rng.integers(1, 5, 1000)) % 5, labels)
    doubts = label_doubts.find(0.2 * logits, labels)
    assert doubts.certain
    assert doubts.interval[0] < flipped.mean() < doubts.interval[1]
    listed = flipped[list(doubts.rows)]
    assert listed.mean() > 0.75
    assert listed.sum() / flipped.sum() > 0.5
    assert list(doubts.chances) == sorted(doubts.chances, reverse=True)
    item = advice.by_doubts(doubts, "validation")
    assert isinstance(item, Item)
    assert "suspected" in item.text
    assert "suspects.csv" in item.text


@pytest.mark.parametrize("classes", [2, 3])
def test_doubts_with_few_classes_and_one_that_is_missing(classes: int) -> None:
    logits, labels = calibrated(150, classes, sharpness=6.0)
    wider = np.concatenate([logits, np.full((150, 1), -20.0)], axis=1)
    assert not label_doubts.find(wider, labels).certain
    with pytest.raises(ValueError, match="too few"):
        label_doubts.find(logits[:50], labels[:50])


def falling(slope: float, noise: float, epochs: int = 12) -> tuple[float, ...]:
    bumps = np.random.default_rng(0).normal(0, noise, epochs)
    return tuple(float(2 + slope * epoch + bumps[epoch]) for epoch in range(epochs))


def test_more_time_while_the_validation_loss_falls() -> None:
    told = advice.by_curve(Curve(falling(-0.05, 0), falling(-0.04, 0.005), kept=12))
    assert isinstance(told, Item)
    assert told.kind == "time"
    assert "6 of 12" in told.text


@pytest.mark.parametrize(
    ("curve", "kind"),
    [
        (Curve(falling(-0.05, 0), falling(-0.004, 0.1), kept=12), "none"),  # within chance
        (Curve(falling(-0.05, 0), falling(-0.04, 0.005), kept=6), "none"),  # an earlier epoch was better
        (Curve(falling(-0.05, 0), falling(-0.04, 0.005), kept=12, stopped_early=True), "none"),
        (Curve(falling(0, 0), falling(0, 0), kept=12), "none"),
        (Curve(falling(-0.05, 0), falling(-0.04, 0.005), kept=12, perfect=True), "none"),
        (Curve(falling(-0.05, 0), falling(0.05, 0.01), kept=12), "overfitting"),
        (Curve(falling(-0.05, 0, 5), falling(-0.04, 0, 5), kept=5), "missing"),
        (Curve((), (), kept=0), "missing"),
    ],
)
def test_no_more_time_otherwise(curve: Curve, kind: str) -> None:
    told = advice.by_curve(curve)
    names = {Item: getattr(told, "kind", ""), NoHelp: "none", Missing: "missing"}
    assert names[type(told)] == kind


def test_trend_is_that_of_least_squares() -> None:
    from scipy.stats import linregress, t

    values = falling(-0.03, 0.2)
    line = linregress(np.arange(len(values)), values)
    slope, low, high = advice.trend(values)
    assert slope == pytest.approx(line.slope)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, len(values) - 2) * line.stderr)


@pytest.mark.parametrize(
    ("sized", "helps"),
    [
        (Sized("224", "288", (280, 2, 20, 20)), True),
        (Sized("224", "288", (280, 8, 12, 20)), False),
        (Sized("224", "288", (280, 20, 2, 20)), False),
        (Sized("224", "0.75", (280, 20, 2, 20), reduced=True), True),
        (Sized("224", "0.75", (280, 8, 6, 20), reduced=True), False),
        (Sized("224", "0.75", (280, 2, 20, 20), reduced=True), False),
    ],
)
def test_larger_input_only_beyond_chance(sized: Sized, helps: bool) -> None:
    told = advice.by_size(sized)
    assert isinstance(told, Item if helps else NoHelp)
    if helps and not sized.reduced:
        assert told.gain == pytest.approx(18 / 322)
        assert "--input.size 288" in told.text


@pytest.mark.parametrize(
    ("gap", "helps"),
    [
        (Gap((490, 500), (300, 500)), True),
        (Gap((49, 50), (44, 50)), False),
        (Gap((400, 500), (398, 500)), False),
    ],
)
def test_gap_between_training_and_validation(gap: Gap, helps: bool) -> None:
    told = advice.by_gap(gap, ["cat (recall 32 %)"])
    assert isinstance(told, Item if helps else NoHelp)
    assert not helps or "cat" in told.text


def test_weak_classes_are_below_the_accuracy_by_more_than_chance() -> None:
    confusion = np.array([[90, 10, 0], [60, 40, 0], [1, 0, 2]])
    assert advice.weak_classes(confusion, ("a", "b", "c")) == ["b (recall 40 %)"]


def test_order_and_number_of_items() -> None:
    told = [
        Item("labels", "Corrected labels", "x"),
        Missing("Larger input", "no images"),
        Item("images", "More images", "x", 0.01, (0.005, 0.015)),
        NoHelp("More time", "flat"),
        Item("size", "Larger input", "x", 0.03, (0.01, 0.05)),
        Item("a", "A", "x"),
        Item("b", "B", "x"),
    ]
    found = advice.ranked(told, 1.5)
    assert [item.kind for item in found.items] == ["size", "images", "labels", "a"]
    assert [one.title for one in found.no_help] == ["More time"]
    assert Advice.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_text_fits_a_terminal_and_says_if_nothing_helps() -> None:
    nothing = advice.ranked([NoHelp("More time", "flat"), Missing("Larger input", "there are none")], 0.1)
    text = nothing.to_text()
    assert text.startswith(advice.NOTHING)
    assert dataclasses.replace(nothing, no_help=()).to_text().startswith(advice.UNKNOWN)
    assert "Measured: more time." in text
    assert "larger input (there are none)" in text
    long = dataclasses.replace(nothing, items=(Item("labels", "Corrected labels", "word " * 60),))
    assert long.to_text().startswith(advice.TITLE)
    assert max(map(len, long.to_text().splitlines())) <= 80
