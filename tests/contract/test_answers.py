"""The answers for logits and a card: against scipy, by the rule for ties, and the same in numpy, torch and a graph."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.contract import Architecture, Card, Preprocessing, answers
from tellapart.contract import card as cards
from tellapart.errors import ArtifactError
from tellapart.evaluation import metrics
from tellapart.export import graph


def make_card(count: int, temperature: float = 1.0, **more: Any) -> Card:
    names = tuple(f"class {k}" for k in range(count))
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    network = Architecture("simple-cnn", count, 3, 8)
    calibration = {} if temperature == 1 else {"temperature": temperature}
    return Card(network, names, contract, calibration=calibration, **more)


def draw(rows: int, count: int, seed: int, scale: float = 5.0) -> Any:
    return (scale * np.random.default_rng(seed).normal(size=(rows, count))).astype(np.float32)


@given(
    rows=st.integers(0, 5),
    count=st.integers(1, 9),
    seed=st.integers(0, 9999),
    temperature=st.sampled_from([1.0, 0.3, 1.7, 40.0]),
    scale=st.sampled_from([0.01, 5.0, 3000.0]),
)
@settings(max_examples=80, deadline=None)
def test_probabilities_are_scipys_softmax(
    rows: int, count: int, seed: int, temperature: float, scale: float
) -> None:
    logits = draw(rows, count, seed, scale)
    found = answers.probabilities(logits, make_card(count, temperature))
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found, scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1), rtol=1e-12, atol=1e-300
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_graph_tells_the_same(temperature: float) -> None:
    logits, card = draw(7, 5, 1), make_card(5, temperature)
    told = graph.told_in_graph(torch.from_numpy(logits), card).numpy()
    np.testing.assert_allclose(told, answers.probabilities(logits, card), rtol=0, atol=1e-6)


def test_every_kind_that_a_card_can_name_is_known() -> None:
    assert tuple(answers.KINDS) == tuple(graph._KINDS) == cards.KINDS


def test_equal_logits_rank_by_class_and_what_is_not_a_number_last() -> None:
    logits = np.array([[1, 3, 3, 0, 3], [np.nan, 1, 2, np.nan, 2]], np.float32)
    told = answers.unchecked(logits, make_card(5))
    assert told.best.tolist() == [1, 2]
    assert answers.ranked(logits, 4).tolist() == [[1, 2, 4, 0], [2, 4, 1, 0]]
    assert told.told == [[1], [2]]
    assert told.places(np.array([4, 0])).tolist() == [2, 3]
    assert [row[0] for row in answers.ranked(logits, 9).tolist()] == told.best.tolist()


def test_classes_are_ranked_by_logits_also_where_probabilities_cannot_tell_them_apart() -> None:
    logits = np.array([[0.0, 1e-30, -2000.0, -1000.0]], np.float32)
    told = answers.of(logits, make_card(4))
    (one,) = told.top(4)
    assert one.labels == ("class 1", "class 0", "class 3", "class 2")
    assert one.probabilities == (0.5, 0.5, 0.0, 0.0)
    assert told.labels == ["class 1"]


@given(rows=st.integers(1, 30), count=st.integers(1, 9), seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_judged_by_the_same_answers(rows: int, count: int, seed: int) -> None:
    logits = np.round(draw(rows, count, seed, 1.0))  # with ties
    labels = np.random.default_rng(seed).integers(0, count, rows)
    quick = metrics.quick(torch.from_numpy(logits), torch.from_numpy(labels))
    whole = metrics.evaluate(answers.of(logits, make_card(count)), labels, "val")
    assert quick["accuracy"] == whole.accuracy
    assert quick["macro-f1"] == pytest.approx(whole.macro.f1)
    assert quick["loss"] == pytest.approx(whole.loss, abs=1e-5)


def test_top_is_never_more_than_there_are_classes() -> None:
    told = answers.of(draw(3, 2, 0), make_card(2))
    assert [len(one.labels) for one in told.top(10)] == [2, 2, 2]
    one = next(told.top(2))
    assert one.to_dict() == {
        "label": one.labels[0],
        "probability": one.probabilities[0],
        "top": [{"label": n, "probability": p} for n, p in zip(one.labels, one.probabilities, strict=True)],
    }


@pytest.mark.parametrize(
    ("logits", "text"),
    [
        (np.zeros((2, 4), np.float32), r"answers with \[4\] values .* 3 classes"),
        (np.zeros(3, np.float32), "values for an image"),
        (np.array([[0, np.nan, 1]], np.float32), "not a number"),
        (np.array([[0, np.inf, 1]], np.float32), "not a number"),
    ],
)
def test_what_is_no_answer_is_refused(logits: Any, text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        answers.of(logits, make_card(3))


def test_a_comparison_may_look_at_what_is_no_answer() -> None:
    logits = np.array([[0, np.inf, 1], [1, 2, 3]], np.float32)
    found = answers.unchecked(logits, make_card(3)).probabilities
    assert np.isnan(found[0]).any()
    assert found[1].sum() == pytest.approx(1)


def test_a_kind_takes_what_it_needs_from_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind to come: several labels for an image, each by a threshold of its own."""

    class Several(answers.Kind):
        def __init__(self, thresholds: list[float]) -> None:
            self.thresholds = np.array(thresholds)

        def probabilities(self, scaled_BK: Any) -> Any:
            return scipy.special.expit(scaled_BK)

        def told(self, scores_BK: Any, probabilities_BK: Any) -> list[list[int]]:
            above = probabilities_BK() >= self.thresholds
            return [[k for k in row if above[i, k]] for i, row in enumerate(answers.ranked(scores_BK, 99))]

    monkeypatch.setattr(cards, "KINDS", ("single", "several"))
    kinds = {**answers.KINDS, "several": lambda card: Several(card.calibration["thresholds"])}
    monkeypatch.setattr(answers, "KINDS", kinds)
    card = make_card(3, 2.0, kind="several")
    card = Card.from_json(
        Card.to_json(card).replace('"temperature": 2.0', '"temperature": 2.0, "thresholds": [0.5, 0.9, 0.1]')
    )
    told = answers.of(np.array([[2, 2, -1], [-9, -9, -9]], np.float32), card)
    np.testing.assert_allclose(told.probabilities[0], torch.tensor([1, 1, -0.5]).sigmoid(), rtol=1e-6)
    assert told.told == [[0, 2], []]


def test_a_kind_that_is_not_known_is_refused_and_the_usual_one_is_not_written() -> None:
    text = make_card(3).to_json()
    assert "kind" not in text
    assert Card.from_json(text).kind == "single"
    strange = make_card(3, kind="ordinal").to_json()
    assert '"format": 4' in strange  # so that older programs refuse it
    with pytest.raises(cards.CardError, match="kind is 'ordinal', which this program does not know"):
        Card.from_json(strange)


def test_it_loads_no_torch() -> None:
    code = "import sys, tellapart.contract.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
