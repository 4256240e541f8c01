"""Names of classes with levels: what is told at each, against sums of scipy's softmax."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.contract import Architecture, Card, Preprocessing, answers, levels
from tellapart.contract.answers import Answers
from tellapart.contract.card import CardError

CLASSES = ("animals/cat", "animals/dog/big", "animals/dog/small", "plants", "vehicles/cat", "vehicles")


def make_card(**more: Any) -> Card:
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    return Card(Architecture("simple-cnn", len(CLASSES), 3, 8), CLASSES, contract, **more)


def at(name: str, level: int, mark: str) -> str:
    return mark.join(name.split(mark)[:level])


def summed(probabilities: Any, classes: tuple[str, ...], level: int, mark: str) -> tuple[list[str], Any]:
    """Return the names of a level and the sums of their classes' probabilities, by two plain loops."""
    names = list(dict.fromkeys(at(name, level, mark) for name in classes))
    sums = np.zeros((len(probabilities), len(names)))
    for k, name in enumerate(classes):
        sums[:, names.index(at(name, level, mark))] += probabilities[:, k]
    return names, sums


def test_what_each_class_is_at_each_level() -> None:
    first, second = levels.above(CLASSES, "/")
    assert first.names == ("animals", "plants", "vehicles")
    assert first.of.tolist() == [0, 0, 0, 1, 2, 2]
    assert second.names == ("animals/cat", "animals/dog", "plants", "vehicles/cat", "vehicles")
    assert second.of.tolist() == [0, 1, 1, 2, 3, 4]


@pytest.mark.parametrize(("classes", "mark"), [(CLASSES, ""), (CLASSES, ">"), (("a", "b"), "/"), ((), "/")])
def test_names_without_levels_have_none(classes: tuple[str, ...], mark: str) -> None:
    assert levels.above(classes, mark) == ()


def test_a_name_of_marks_alone_is_a_name() -> None:
    (level,) = levels.above(("/", "a/b", " a / c "), "/")
    assert level.names == ("/", "a")


@given(
    seed=st.integers(0, 9999),
    rows=st.integers(0, 4),
    scale=st.sampled_from([0.01, 5.0, 3000.0]),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    mark=st.sampled_from(["/", ">", "::"]),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_are_the_sums_of_the_classes(
    seed: int, rows: int, scale: float, temperature: float, mark: str
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    names = {mark.join("abc"[k] for k in rng.integers(0, 3, rng.integers(1, 4))) for _ in range(count)}
    classes = tuple(sorted(names))
    logits = (scale * rng.normal(size=(rows, len(classes)))).astype(np.float32)
    told = Answers(logits, classes, temperature, mark=mark)
    softmax = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
    assert len(told.above) == max(name.count(mark) for name in classes)
    for number, found in enumerate(told.above, 1):
        wanted, sums = summed(softmax, classes, number, mark)
        assert list(found.classes) == wanted
        np.testing.assert_allclose(found.probabilities, sums, rtol=1e-11, atol=1e-300)
        # Where two sums are equal in float64, their logits still may not be.
        np.testing.assert_allclose(sums[np.arange(rows), found.best], sums.max(axis=1, initial=0), rtol=1e-11)


def test_the_most_probable_name_need_not_be_that_of_the_most_probable_class() -> None:
    logits = np.log(np.array([[0.16, 0.13, 0.14, 0.38, 0.1, 0.09]], np.float32))
    (answer,) = answers.of(logits, make_card(levels="/")).top(2)
    assert answer.labels == ("plants", "animals/cat")
    first, second = answer.levels
    assert (first.level, first.label, first.agrees) == (1, "animals", False)
    assert first.probability == pytest.approx(0.43, abs=1e-6)
    assert (second.level, second.label, second.agrees) == (2, "plants", True)


def test_what_is_told_is_in_json_before_the_classes() -> None:
    logits = np.zeros((1, 6), np.float32)
    (answer,) = answers.of(logits, make_card(levels="/")).top(1)
    content = answer.to_dict()
    assert list(content) == ["label", "probability", "levels", "top"]
    assert content["levels"][0] == {
        "level": 1, "label": "animals", "probability": pytest.approx(0.5), "agrees": True,
    }  # fmt: skip
    (plain,) = answers.of(logits, make_card()).top(1)
    assert list(plain.to_dict()) == ["label", "probability", "top"]


def test_logits_that_are_not_finite_may_be_looked_at() -> None:
    logits = np.zeros((3, 6), np.float32)
    logits[0], logits[1, 0], logits[2, 0] = np.nan, np.inf, -np.inf
    told = answers.unchecked(logits, make_card(levels="/"))
    for found in told.above:
        assert found.best.shape == (3,)
        assert np.isnan(found.probabilities[0]).all()
        assert found.probabilities[2].sum() == pytest.approx(1)


def test_a_card_keeps_the_mark_and_one_without_says_nothing() -> None:
    card = make_card(levels="::")
    assert Card.from_json(card.to_json()) == card
    plain = json.loads(make_card().to_json())
    assert "levels" not in plain
    assert (
        json.loads(card.to_json())["format"] == plain["format"]
    )  # who does not know levels gives the same labels


@pytest.mark.parametrize("value", ["123456789", "a b", 7, ["/"], None])
def test_a_card_with_another_mark_is_refused(value: Any) -> None:
    content = json.loads(make_card(levels="/").to_json())
    content["levels"] = value
    with pytest.raises(CardError, match="levels"):
        Card.from_json(json.dumps(content))


def test_several_labels_have_no_levels() -> None:
    card = dataclasses.replace(make_card(levels="/"), kind="multi-label", thresholds=(0.5,) * len(CLASSES))
    with pytest.raises(CardError, match="levels is for images of one label"):
        Card.from_json(card.to_json())
