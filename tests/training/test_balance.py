"""Classes of unequal sizes: what is balanced by default, what is said, and what stays as it was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tellapart.data.stores.images import Look
from tellapart.errors import TellapartError
from tellapart.spec import Spec, flatten, update
from tellapart.training.losses import class_weights
from tellapart.training.resolution import DataFacts, Resolution
from tellapart.training.resolution.by_balance import HEAVIEST

SMALL = Look(longest=32, shortest=32, grey=False, same=True)


def _resolved(counts: tuple[int, ...], changes: dict[str, Any] | None = None, **facts: Any) -> Resolution:
    names = tuple(f"kind {n}" for n in range(len(counts)))
    data = DataFacts(SMALL, sum(counts), classes=names, counts=counts, **facts)
    return Resolution(update(Spec(), changes or {})).by_data(data)


def _balancing(found: Resolution) -> tuple[str, str]:
    return found.spec.training.class_weights, found.spec.training.best_metric


@pytest.mark.parametrize(
    ("counts", "balanced"),
    [
        ((500, 500), False),
        ((500, 101), False),
        ((500, 100), True),
        ((350, 60, 10), True),
        ((500, 0), False),  # a class without images is no small class
        ((500, 400, 0), False),
        ((), False),
    ],
)
def test_unequal_classes_are_balanced_and_it_is_said(counts: tuple[int, ...], balanced: bool) -> None:
    found = _resolved(counts)
    assert _balancing(found) == (("effective", "balanced-accuracy") if balanced else ("none", "accuracy"))
    shown = {choice.field: choice for choice in found.choices if choice.matters}
    assert ("training.class_weights" in shown) == balanced
    assert ("training.best_metric" in shown) == balanced


def test_the_reason_has_the_ratio_and_the_way_back() -> None:
    reason = next(c.reason for c in _resolved((350, 60, 10)).choices if c.field == "training.class_weights")
    assert "35 times" in reason
    assert "none is for plain accuracy" in reason


@pytest.mark.parametrize(
    ("changes", "facts", "expected"),
    [
        ({"training.class_weights": "none"}, {}, ("none", "accuracy")),
        ({"training.class_weights": "inverse"}, {}, ("inverse", "balanced-accuracy")),
        ({"training.best_metric": "loss"}, {}, ("effective", "loss")),
        ({"training.best_metric": "accuracy"}, {}, ("effective", "accuracy")),
        ({"training.sampling": "oversample"}, {}, ("none", "balanced-accuracy")),
        ({"training.loss": "focal"}, {}, ("effective", "balanced-accuracy")),
        ({"training.loss": "own.code:loss"}, {}, ("none", "accuracy")),
        ({}, {"several": True}, ("none", "mAP")),
        ({}, {"grades": ("kind 0", "kind 1"), "validated": 2}, ("none", "kappa")),
    ],
)
def test_what_is_given_stays(
    changes: dict[str, Any], facts: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert _balancing(_resolved((500, 20), changes, **facts)) == expected


def test_a_teacher_decides_alone(tmp_path: Any) -> None:
    with pytest.raises(TellapartError):  # there is none here: it is read after the choice
        _resolved((500, 20), {"distill.teacher": str(tmp_path)})


@pytest.mark.parametrize("largest", [50, 500, 5000, 200_000])
@pytest.mark.parametrize("ratio", [5, 20, 100, 2000])
def test_the_weights_depend_on_the_ratio_and_not_on_the_number_of_images(largest: int, ratio: int) -> None:
    counts = (largest, max(1, largest // ratio))
    found = _resolved(counts).spec.training
    weights = class_weights(np.array(counts), found.class_weights, found.effective_beta)
    between = weights[1] / weights[0]
    assert 1 < between <= HEAVIEST * 1.01
    if largest >= 500 and ratio <= 100:  # as measured: 0.999 for 500 images
        measured = class_weights(np.array([500.0, 500 / ratio]), "effective", 0.999)
        assert between == pytest.approx(measured[1] / measured[0], rel=0.1)


def test_a_beta_that_was_given_stays() -> None:
    assert _resolved((500, 20), {"training.effective_beta": 0.9}).spec.training.effective_beta == 0.9
    both = _resolved((500, 20), {"training.class_weights": "effective"})
    assert both.spec.training.effective_beta == 0.999


@pytest.mark.parametrize("counts", [(500, 20), (500, 500)])
@pytest.mark.parametrize("later", [(500, 20), (500, 500)])
def test_a_resolved_spec_stays_whatever_a_fold_holds(counts: tuple[int, ...], later: tuple[int, ...]) -> None:
    once = _resolved(counts).spec
    again = Resolution(once).by_data(DataFacts(SMALL, sum(counts), counts=later))
    assert flatten(again.spec) == flatten(once)
    assert not again.choices
