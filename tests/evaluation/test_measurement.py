"""What all evaluations have in common: headline, figures, table, files, terminal and notebook, for each kind of label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from tellapart import printing
from tellapart.contract.answers import Answers, MultiLabel
from tellapart.contract.card import KINDS
from tellapart.evaluation import measurement, metrics
from tellapart.evaluation.measurement import Measurement, headline_of

NAMES = ("ant", "bee", "花" * 25, "n" * 60)


def single(names: tuple[str, ...] = NAMES) -> Measurement:
    logits = np.random.default_rng(0).normal(size=(60, len(names)))
    return metrics.measured(
        Answers(logits, names), np.arange(60) % 3, "test", own={"kappa": 0.25, "odd": None}
    )


def several(names: tuple[str, ...] = NAMES) -> Measurement:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (60, len(names))).astype(np.uint8)
    targets[:, -1] = 0
    answers = Answers(rng.normal(size=targets.shape), names, 1.0, MultiLabel((0.5,) * len(names)))
    return metrics.measured(answers, targets, "test", seconds=2.0, latencies_ms=[1234.5] * 20)


@pytest.mark.parametrize(("make", "key", "name"), [(single, "accuracy", "Accuracy"), (several, "map", "mAP")])
def test_every_kind_tells_the_same_things(make: object, key: str, name: str, tmp_path: Path) -> None:
    found: Measurement = make()  # type: ignore[operator]
    assert (found.headline.key, found.headline.title) == (key, name)
    assert found.headline.value == getattr(found, key)
    low, high = found.headline.interval
    assert low <= found.headline.value <= high
    brief = found.brief()
    assert headline_of(brief) == found.headline
    assert {"n", key, f"{key}_interval", "macro_f1", "loss"} <= set(brief)
    assert len(found.given()) == len(NAMES)
    assert [row[0] for row in found.table().rows] == list(NAMES)
    assert found.table().rows[-1][2][-1] is None  # no image of the class, so no F1
    assert type(found) is metrics.KINDS[found.kind]
    again = type(found).from_dict(found.to_dict())  # type: ignore[attr-defined]
    assert again.brief() == brief
    lines = printing.evaluation_text(found).splitlines()
    assert lines[0].startswith(f"{name} ")
    assert max(map(cell_len, lines)) <= 80
    html = found._repr_html_()  # type: ignore[operator]
    assert f"<b>{name} " in html
    assert html.count("<tr><td") >= len(NAMES)


def test_each_kind_of_label_has_its_evaluation() -> None:
    assert set(metrics.KINDS) == set(KINDS)


def test_figures_of_ones_own_are_shown_and_kept() -> None:
    text = printing.evaluation_text(single())
    assert "kappa 0.25" in text
    assert "odd not defined" in text
    assert single().brief()["kappa"] == 0.25
    assert measurement.naming("kappa").show(0.1234567) == "0.123457"


def test_names_of_figures_say_what_is_better() -> None:
    better = {key: one.better for key, one in measurement.NAMES.items()}
    assert {key for key, what in better.items() if what == "less"} == {"loss", "hamming_loss", "mae"}
    assert all(key in measurement.NAMES for key in measurement.HEADLINES)


def test_nothing_measured_has_no_headline() -> None:
    assert headline_of({}) is None


def test_a_changed_figure_is_read_back() -> None:
    found = several()
    changed = dataclasses.replace(found, map=0.125)  # type: ignore[type-var]
    assert changed.headline.text == "12.50 %"
