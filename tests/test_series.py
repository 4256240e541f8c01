"""Several runs of one spec: the folds of a cross-validation, and the same run with other seeds."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import tellapart
from tellapart import runs, workflow
from tellapart.data.stores import building
from tellapart.errors import ArtifactError, DataError, RunError, SpecError
from tellapart.evaluation.metrics import wilson_interval
from tellapart.evaluation.series import summarise, t_interval
from tellapart.training import task

TINY: dict[str, Any] = {
    "model": {"name": "simple-cnn"},
    "training": {"epochs": 1, "batch_size": 8},
    "augment": {"preset": "none"},
    "run.tensorboard": False,
}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@dataclass(frozen=True)
class Crossed:
    data: Path
    result: Any
    decoded: int  # images, while the runs were made


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Crossed:
    """Three folds of train and val, and a test split of the source's own."""
    root = tmp_path_factory.mktemp("crossed")
    data = make_folder(root / "data", splits=("train", "val", "test"), count=10)
    count = 0
    build = building.build

    def counted(samples: Any, *words: Any, **options: Any) -> Any:
        nonlocal count
        count += len(samples)
        return build(samples, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(building, "build", counted)
        result = tellapart.cross_validate(data, folds=3, quiet=True, **TINY, **{"run.dir": str(root / "run")})
    return Crossed(data, result, count)


def test_each_image_is_decoded_once_for_all_folds(crossed: Crossed) -> None:
    assert crossed.decoded == 60 + 30, "the folds' images, and those of the own test split"


def test_each_image_is_answered_by_the_model_that_has_not_seen_it(crossed: Crossed) -> None:
    run = crossed.result.run
    answers = rows(run / "evaluation/out-of-fold/predictions.csv")
    assert len({row["path"] for row in answers}) == len(answers) == 60
    assert set(answers[0]) >= {"path", "label", "predicted", "fold", "p:ant", "p:bee", "p:cat"}
    for row in answers:
        splits = {one["path"]: one["split"] for one in rows(run / f"fold-{row['fold']}" / "samples.csv")}
        assert splits[row["path"]] == "test"
        assert set(splits.values()) == {"train", "val", "test"}
        assert not any(path.startswith("test/") for path in splits)
    right = sum(row["label"] == row["predicted"] for row in answers)
    metrics = crossed.result.metrics
    assert metrics["n"] == 60
    assert metrics["accuracy"] == right / 60
    assert metrics["accuracy_interval"] == list(wilson_interval(right, 60))


def test_pooled_figures_are_scikit_learns(crossed: Crossed) -> None:
    from sklearn.metrics import f1_score, log_loss

    run = crossed.result.run
    answers = rows(run / "evaluation/out-of-fold/predictions.csv")
    truth, guess = [row["label"] for row in answers], [row["predicted"] for row in answers]
    figures = json.loads((run / "evaluation/out-of-fold/metrics.json").read_text())
    assert figures["macro"]["f1"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    probabilities = np.array([[float(row[f"p:{name}"]) for name in ("ant", "bee", "cat")] for row in answers])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert figures["loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-4)


def test_the_summary_is_of_the_runs_own_figures(crossed: Crossed) -> None:
    run = crossed.result.run
    content = json.loads((run / "folds.json").read_text())
    assert content["runs"] == ["fold-1", "fold-2", "fold-3"]
    own = []
    for name, entry in zip(content["runs"], content["finished"], strict=True):
        found = json.loads((run / name / "evaluation/test/metrics.json").read_text())
        assert (entry["n"], entry["accuracy"], entry["loss"]) == (20, found["accuracy"], found["loss"])
        test = json.loads((run / name / "evaluation/own-test/metrics.json").read_text())
        assert (entry["test"]["n"], entry["test"]["accuracy"]) == (30, test["accuracy"])
        own.append(found["accuracy"])
    accuracy = content["summary"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(np.mean(own))
    assert accuracy["std"] == pytest.approx(np.std(own, ddof=1))
    page = (run / "report.html").read_text()
    assert "not independent" in page
    assert "fold-3/report.html" in page
    assert "own test split" in page
    assert workflow.report(run).read_text() == page
    assert workflow.report(run / "fold-2").is_file()


def test_the_interval_is_students() -> None:
    from scipy import stats

    values = [0.81, 0.84, 0.79, 0.86, 0.8]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values, True) == pytest.approx([low, high])
    assert t_interval([0.99, 1.0, 0.9], True)[1] == 1.0  # type: ignore[index]
    assert t_interval([0.5], True) is None
    found = summarise([{"accuracy": 0.5, "loss": None}, {"accuracy": 0.7, "loss": 1.0}], interval=True)
    assert "loss" not in found


def test_a_fold_is_a_run_like_any_other(crossed: Crossed, tmp_path: Path) -> None:
    """Trained alone from its spec it has the same weights; it can be evaluated and resumed."""
    fold = crossed.result.run / "fold-2"
    spec = runs.read_spec(fold / "spec.yaml")
    assert spec.data.fold == "2/3"
    alone = workflow.train(spec=spec, quiet=True, **{"run.dir": str(tmp_path / "alone")})
    assert same(alone.run, fold)
    assert workflow.evaluate(fold, quiet=True).accuracy == alone.metrics["accuracy"]
    with pytest.raises(ArtifactError, match=r"several runs \(folds\.json\).*fold-1"):
        tellapart.load(crossed.result.run)


def test_cut_off_in_the_second_fold_it_continues_to_the_same(
    crossed: Crossed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps, inputs = 0, task.Classification.inputs

    def count(self: Any, *words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:
            signal.raise_signal(signal.SIGINT)
        return inputs(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(task.Classification, "inputs", count)
        cut = tellapart.cross_validate(crossed.data, folds=3, **TINY, **{"run.dir": str(tmp_path / "run")})
    assert (cut.interrupted, cut.signal, steps) == (True, signal.SIGINT, 8)
    assert f"tellapart resume {tmp_path / 'run'}\n" in capfd.readouterr().err
    assert sorted(path.name for path in cut.run.glob("fold-*")) == ["fold-1", "fold-2"]
    assert len(cut.runs) == 1
    assert not (cut.run / "fold-2" / "evaluation").exists()
    ended = tellapart.resume(cut.run, quiet=True)
    assert not ended.interrupted
    assert ended.metrics == crossed.result.metrics
    assert all(same(cut.run / name, crossed.result.run / name) for name in ("fold-1", "fold-2", "fold-3"))
    before = (cut.run / "folds.json").read_bytes()
    assert tellapart.resume(cut.run, quiet=True).metrics == ended.metrics, "nothing is left to do"
    assert (cut.run / "folds.json").read_bytes() == before


def test_two_cross_validations_are_compared_on_the_same_images(crossed: Crossed, tmp_path: Path) -> None:
    other = tellapart.cross_validate(
        crossed.data, folds=2, quiet=True, seed=1, **TINY, **{"run.dir": str(tmp_path / "run")}
    )
    found = workflow.compare([crossed.result.run, other.run])
    (pair,) = found.pairs
    assert (pair.split, pair.shared) == ("out-of-fold", 60)
    assert pair.difference == pytest.approx(other.metrics["accuracy"] - crossed.result.metrics["accuracy"])
    assert any("somewhat too confident" in note for note in found.notes)
    assert not any("too optimistic" in note for note in found.notes)


def test_repeated_runs_differ_in_the_seed_only(crossed: Crossed, tmp_path: Path) -> None:
    result = tellapart.repeat(
        crossed.data, times=2, quiet=True, seed=3, **TINY, **{"run.dir": str(tmp_path / "run")}
    )
    names = [entry["run"] for entry in result.runs]
    assert names == ["seed-3", "seed-4"]
    assert not same(*(result.run / name for name in names))
    assert (result.run / "seed-3/samples.csv").read_bytes() == (
        result.run / "seed-4/samples.csv"
    ).read_bytes()
    values = [entry["accuracy"] for entry in result.runs]
    assert result.summary["accuracy"]["mean"] == pytest.approx(statistics.fmean(values))
    assert result.summary["accuracy"]["std"] == pytest.approx(statistics.stdev(values))
    alone = workflow.train(crossed.data, quiet=True, seed=4, **TINY, **{"run.dir": str(tmp_path / "alone")})
    assert same(alone.run, result.run / "seed-4")
    shutil.rmtree(result.run / "seed-4")
    content = json.loads((result.run / "repeats.json").read_text())
    content["finished"].pop()
    (result.run / "repeats.json").write_text(json.dumps(content))
    assert tellapart.resume(result.run, quiet=True).runs == result.runs  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="differ in the seed"):
        workflow.compare([result.run, crossed.result.run])


def test_what_is_wrong_leaves_no_folder(crossed: Crossed, tmp_path: Path) -> None:
    place = tmp_path / "run"
    for error, words in (
        (SpecError, {"training.warmup_epochs": 9.0}),
        (DataError, {"folds": 61}),
        (SpecError, {"folds": 1}),
        (SpecError, {"data.fold": "1/2"}),
    ):
        with pytest.raises(error):
            tellapart.cross_validate(
                crossed.data, quiet=True, **{**TINY, "folds": 2, "run.dir": str(place), **words}
            )
        assert not place.exists()
    with pytest.raises(RunError, match="not empty"):
        tellapart.cross_validate(crossed.data, quiet=True, **TINY, **{"run.dir": str(crossed.result.run)})


def test_the_command_line(crossed: Crossed, call: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--model.name", "simple-cnn", "--training.epochs", 1, "--training.batch-size", 8)
    answer = call("train", crossed.data, "--folds", 2, "--run.dir", "run", "--augment.preset", "none", *words)
    assert answer.code == 0
    assert "fold-2" in answer.out
    assert "Together" in answer.out
    assert "own test" in answer.out
    again = call("resume", "run", "--json")
    content = json.loads(again.out)
    assert (content["kind"], content["count"], len(content["runs"])) == ("folds", 2, 2)
    assert content["summary"]["accuracy"]["n"] == 2
    assert call("train", "--folds", 2, "--repeat", 2).code == 2
    assert call("train", "--folds", 1).code == 2


@pytest.mark.parametrize(
    ("word", "thing"),
    [("loss", {"loss": lambda logits, targets: logits.sum(1)}), ("model", {"model": lambda k, c: None})],
)
def test_own_code_needs_a_name_in_several_runs(word: str, thing: dict[str, Any]) -> None:
    """A run that is begun later, in another process, has to find it again."""
    for several in (tellapart.cross_validate, tellapart.repeat):
        with pytest.raises(SpecError, match=f"take {word} of your own by name"):
            several(**thing)
