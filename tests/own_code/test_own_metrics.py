"""The user's own metrics: in validation, as the figure that chooses the epoch, in evaluation, against scikit-learn."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tellapart
from tellapart.errors import RunError, SpecError, UserError

sklearn = pytest.importorskip("sklearn.metrics")


def quick(run: Path, **changes: Any) -> dict[str, Any]:
    """Return the keyword arguments of a short training."""
    training = {"epochs": 2, "batch_size": 8, **changes.pop("training", {})}
    folder = {"dir": str(run), "tensorboard": False, "report": True}
    return {"quiet": True, "model": {"name": "simple-cnn"}, "training": training, "run": folder, **changes}


def kappa(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Cohen's kappa, by its formula."""
    table = np.histogram2d(labels, predictions, bins=[range(4)] * 2)[0] / len(labels)
    chance = float(table.sum(0) @ table.sum(1))
    return (float(np.trace(table)) - chance) / (1 - chance)


def test_it_is_reported_everywhere_and_is_what_scikit_learn_says(data: Path, tmp_path: Path) -> None:
    """Accuracy under another name, kappa by our formula and by theirs."""
    metrics = {
        "kappa": kappa,
        "theirs": "sklearn.metrics:cohen_kappa_score",
        "again": lambda labels, predictions: (labels == predictions).mean(),
    }
    result = tellapart.train(
        data, metrics=metrics, **quick(tmp_path / "run", training={"best_metric": "kappa"})
    )
    assert result.metrics["kappa"] == pytest.approx(result.metrics["theirs"])
    assert result.metrics["again"] == pytest.approx(result.metrics["accuracy"])
    with open(tmp_path / "run" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert any("kappa" in row["name"] for row in rows), {row["name"] for row in rows}
    with pytest.raises(RunError, match="metrics="):
        tellapart.resume(result.run, quiet=True)
    assert (
        tellapart.resume(result.run, quiet=True, metrics={"again": metrics["again"]}).metrics
        == result.metrics
    )
    measured = tellapart.evaluate(result.run, metrics={"kappa": kappa}, quiet=True)
    assert measured.own == {"kappa": pytest.approx(result.metrics["kappa"])}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"accuracy": kappa}, "tellapart's own"),
        ({"mine": 3}, "must be a function"),
        ({"mine": lambda labels, predictions: "high"}, "must be one number"),
        ({"mine": "nothing"}, "NAME=my_package.my_module:function"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, said: str, data: Path, tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises((SpecError, UserError), match=said):
        tellapart.train(data, metrics=metrics, **quick(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_name_on_the_command_line(call: Callable[..., Any], data: Path) -> None:
    """And the best epoch by it."""
    words = ("--training.epochs", 1, "--model.name", "simple-cnn", "--run.no-report", "--run.no-tensorboard")
    own = ("--training.metrics", "mcc=sklearn.metrics:matthews_corrcoef", "--training.best-metric", "mcc")
    made = call("train", data, *words, *own, "--run.dir", "run", "--json")
    assert made.code == 0, made.err
    assert '"mcc"' in made.out
