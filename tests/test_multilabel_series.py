"""Folds and repeated runs where an image can have several labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

import tellapart
from tellapart import artifact, printing
from tellapart.evaluation import multilabel
from tellapart.evaluation.compare import compare
from tellapart.evaluation.metrics import read_evaluation
from tellapart.evaluation.run_folder import OUT_OF_FOLD
from tellapart.evaluation.series import t_interval

from .several import changed, make

FOLDS = 3


def spec(run: Path, **training: Any) -> dict[str, Any]:
    data = {"labels": "multi", "val_fraction": 0.2, "cache_dir": str(run.parent / "cache")}
    return changed(run, epochs=2, **training) | {"data": data}


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("crossed")
    source = str(make(base / "data", 60))
    return tellapart.cross_validate(source, folds=FOLDS, quiet=True, **spec(base / "run"))


def answered(run: Path, split: str) -> list[dict[str, str]]:
    with open(run / "evaluation" / split / "predictions.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_image_is_answered_once_by_a_model_that_has_not_seen_it(crossed: Any) -> None:
    rows = answered(crossed.run, OUT_OF_FOLD)
    assert len({row["path"] for row in rows}) == len(rows) == 60
    for number in range(1, FOLDS + 1):
        with open(crossed.run / f"fold-{number}" / "samples.csv", newline="") as stream:
            held = {row["path"] for row in csv.DictReader(stream) if row["split"] == "test"}
        assert held == {row["path"] for row in rows if row["fold"] == str(number)}


def test_figures_of_the_folds_and_of_all_images_together(crossed: Any) -> None:
    values = [entry["map"] for entry in crossed.runs]
    folds = [read_evaluation(crossed.run / f"fold-{n}" / "evaluation" / "test") for n in range(1, FOLDS + 1)]
    assert values == [one.headline.value for one in folds]
    assert crossed.summary["map"]["mean"] == pytest.approx(np.mean(values))
    assert crossed.summary["map"]["interval"] == t_interval(values, True)
    assert {"macro_f1", "micro_f1", "loss"} <= set(crossed.summary)
    together = read_evaluation(crossed.run / "evaluation" / OUT_OF_FOLD)
    assert isinstance(together, multilabel.MultiEvaluation)
    rows = answered(crossed.run, OUT_OF_FOLD)
    truth, told = (
        np.array([[name in row[column].split("|") for name in together.classes] for row in rows])
        for column in ("labels", "predicted")
    )
    scores = np.array([[float(row[f"p:{name}"]) for name in together.classes] for row in rows])
    assert together.map == pytest.approx(sk.average_precision_score(truth, scores))
    assert together.micro_f1 == pytest.approx(sk.f1_score(truth, told, average="micro"))
    assert together.n == 60
    assert crossed.metrics["map"] == together.map
    for k, score in enumerate(together.per_class):
        own = {artifact.read_card(crossed.run / f"fold-{n}").thresholds[k] for n in range(1, FOLDS + 1)}
        assert score.threshold == (own.pop() if len(own) == 1 else None)


def test_the_page_and_the_summary_tell_of_map(crossed: Any) -> None:
    page = (crossed.run / "report.html").read_text()
    assert "Mean average precision (mAP)" in page
    assert "micro F1" in page
    assert "accuracy" not in page
    text = printing.series_summary(crossed)
    assert text.count("mAP ") == FOLDS + 1
    assert "Together" in text
    assert "accuracy" not in text.lower()
    assert "Accuracy" not in crossed._repr_html_()


def test_a_cross_validation_is_compared_by_its_answers(crossed: Any) -> None:
    found = compare([crossed.run, crossed.run])
    assert (found.pairs[0].metric, found.pairs[0].shared, found.pairs[0].difference) == ("mAP", 60, 0)


def test_repeated_runs_have_other_seeds(tmp_path: Path) -> None:
    source = str(make(tmp_path / "data", 40))
    series = tellapart.repeat(source, times=2, quiet=True, **spec(tmp_path / "run"))
    assert [entry["run"] for entry in series.runs] == ["seed-0", "seed-1"]
    values = [entry["map"] for entry in series.runs]
    assert series.summary["map"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert "standard deviation" in printing.series_summary(series)
    kept = json.loads((series.run / "repeats.json").read_text())
    assert kept["summary"]["map"]["n"] == 2
