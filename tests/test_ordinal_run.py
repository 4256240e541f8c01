"""Grades from a folder to every place where an answer or a figure comes out."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from starlette.testclient import TestClient

import tellapart
from tellapart import artifact, runs
from tellapart.contract import Card
from tellapart.contract.card import CardError
from tellapart.errors import SpecError
from tellapart.evaluation import run_folder
from tellapart.evaluation.compare import compare
from tellapart.evaluation.metrics import Evaluation
from tellapart.serve.app import create
from tellapart.serve.options import Options
from tellapart.workflow import compressing, exporting
from tellapart.workflow.asked import make_spec

GRADES = ("grade_8", "grade_9", "grade_10", "grade_11")  # not the order of the alphabet


def make(folder: Path, grades: tuple[str, ...] = GRADES, count: int = 40) -> Path:
    """Make images that are the brighter the higher their grade, some of them like those of the next one."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(grades):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            level = 40 + 35 * place + rng.normal(0, 12)
            pixels = np.clip(level + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n:03}.png")
    return folder


def changed(run: Path, **training: Any) -> dict[str, Any]:
    given = {"epochs": 4, "batch_size": 16, "threads": 1, "device": "cpu", "lr": 0.003, "loss": "ordinal"}
    return {
        "model": {"name": "simple-cnn"},
        "augment": {"preset": "none"},
        "training": given | training,
        "run": {"dir": str(run), "tensorboard": False},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("grades")
    make(base / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        tellapart.train(str(base / "data"), quiet=True, **changed(base / "run"))
    return base / "run"


def data_of(run: Path) -> Path:
    return run.parent / "data"


def rows_of(run: Path, split: str = "test") -> list[dict[str, str]]:
    with open(run / "evaluation" / split / "predictions.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_learns_and_its_files_agree(run: Path) -> None:
    card = artifact.read_card(run)
    assert (card.classes, card.ordered, card.kind) == (GRADES, True, "single")
    assert json.loads(card.to_json())["format"] == 1
    spec = runs.read_spec(run / runs.SPEC_FILE)
    assert spec.data.order == GRADES
    assert (spec.training.loss, spec.training.best_metric) == ("ordinal", "kappa")
    rows = rows_of(run)
    assert all(row["path"].startswith(row["label"] + "/") for row in rows)
    truth, told = ([GRADES.index(row[name]) for row in rows] for name in ("label", "predicted"))
    kappa = sk.cohen_kappa_score(truth, told, weights="quadratic", labels=range(4))
    figures = card.scores["test"]
    assert figures["kappa"] == pytest.approx(kappa)
    assert kappa > 0.5
    assert figures["mae"] == pytest.approx(sk.mean_absolute_error(truth, told))
    written = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    assert written["ordinal"]["kappa"] == pytest.approx(kappa)
    p = np.array([[float(row[f"p:{name}"]) for name in GRADES] for row in rows])
    expected = [float(row["expected_grade"]) for row in rows]
    np.testing.assert_allclose(expected, p @ [8, 9, 10, 11], rtol=1e-4)
    assert [p[k].argmax() for k in range(len(rows))] == told  # the predicted grade is the most probable one
    folder = run_folder.read_run(run)
    assert {"val/kappa", "val/mae"} <= folder.metrics.keys()
    best = [value for step, value in folder.metrics["val/kappa"]]
    assert card.scores["val"]["kappa"] >= max(best) - (1 - max(best) ** 2) / np.sqrt(figures["n"]) - 0.05
    page = (run / "report.html").read_text()
    for text in ("quadratic kappa", "mean absolute error", "within one grade", "Quadratic kappa"):
        assert text in page
    table = page.partition('class="counts')[2]
    places = [table.index(f'title="{name}">') for name in GRADES]
    assert places == sorted(places)


def test_evaluation_is_by_the_models_order(run: Path, tmp_path: Path, call: Any) -> None:
    measured = tellapart.evaluate(run, quiet=True)
    assert isinstance(measured, Evaluation)
    assert measured.ordinal is not None
    assert measured.ordinal.kappa == pytest.approx(artifact.read_card(run).scores["test"]["kappa"])
    few = make(tmp_path / "few", ("grade_11", "grade_8"), 6)  # a grade in between has no image here
    other = tellapart.evaluate(run, few, quiet=True)
    assert isinstance(other, Evaluation)
    assert other.classes == GRADES
    assert other.ordinal is not None
    assert other.ordinal.mae == pytest.approx(
        sum(abs(a - b) * other.confusion[a, b] for a in range(4) for b in range(4)) / 12
    )
    answer = call("evaluate", str(run))
    assert f"quadratic kappa {measured.ordinal.kappa:.3f} (" in answer.out
    assert "grades (" in answer.out
    assert "within one grade" in answer.out


def test_predictions_have_an_expected_grade(run: Path, call: Any) -> None:
    row = rows_of(run)[0]
    path = str(data_of(run) / row["path"])
    (one,) = tellapart.predict(run, path, top=2)
    assert one.expected_grade == pytest.approx(float(row["expected_grade"]), abs=1e-3)
    assert one.label == row["predicted"]
    assert list(one.to_dict()) == ["path", "label", "probability", "expected_grade", "top"]
    table = call("predict", str(run), path).out
    assert f"(expected grade {one.expected_grade:.2f})" in table
    bad = str(run / "spec.yaml")
    lines = list(
        csv.DictReader(call("predict", str(run), path, bad, "--format", "csv", "--top", "2").out.splitlines())
    )
    assert [line["expected_grade"] for line in lines] == [f"{one.expected_grade:.6f}"] * 2 + [""]
    assert lines[2]["error"]


def test_a_run_goes_on_exactly(run: Path, tmp_path: Path) -> None:
    class Stops(tellapart.Callback):
        def on_epoch_end(self, values: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tellapart.train(
            str(data_of(run)), quiet=True, callbacks=[Stops()], **changed(tmp_path / "cut", best_metric="mae")
        )
    tellapart.resume(tmp_path / "cut", quiet=True)
    last = [artifact.read_state(folder / artifact.LAST_NAME) for folder in (tmp_path / "cut", run)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])
    folder = run_folder.read_run(tmp_path / "cut")
    assert folder.best_epoch is not None
    by_epoch = [value for _, value in folder.metrics["val/mae"]]
    kept = by_epoch[folder.best_epoch - 1]
    assert kept <= min(by_epoch) + np.sqrt(min(by_epoch) / artifact.read_card(run).scores["val"]["n"]) + 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"training.class_weights": "inverse", "training.label_smoothing": 0.1},
        {"augment.mixup": 0.4, "training.accumulate": 4},
        {"augment.cutmix": 1.0, "training.sampling": "oversample"},
        {"training.prune": 0.5, "training.loss": "cross-entropy", "data.order": ("auto",)},
        {"distill.teacher": "the run", "distill.weight": 0.5, "training.patience": 1},
    ],
    ids=["weights", "mixup", "cutmix", "cross-entropy", "teacher"],
)
def test_other_ways_to_train(run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(str(data_of(run)), **changed(tmp_path / "run", epochs=2))
    changes = {name: str(run) if value == "the run" else value for name, value in changes.items()}
    result = tellapart.train(spec=make_spec(None, None, spec, **changes), quiet=True)
    assert result.metrics["mae"] < 1.3
    assert artifact.read_card(result.run).ordered


def test_a_given_order_chooses_loss_and_metric(run: Path, tmp_path: Path) -> None:
    names = ("ant", "bee", "cat")
    data = make(tmp_path / "data", ("bee", "ant", "cat"), 12)
    spec = changed(tmp_path / "run", epochs=1, loss="auto") | {"data": {"order": ("bee", "ant", "cat")}}
    result = tellapart.train(str(data), quiet=True, **spec)
    chosen = runs.read_spec(result.run / runs.SPEC_FILE)
    assert (chosen.training.loss, chosen.training.best_metric) == ("ordinal", "kappa")
    assert artifact.read_card(result.run).classes == ("bee", "ant", "cat")
    kept = {row["label"] for row in rows_of(result.run)}
    assert kept == set(names)


def test_what_is_wrong_is_told_before_a_run_begins(run: Path, tmp_path: Path, call: Any) -> None:
    data = make(tmp_path / "data", ("ant", "bee", "cat"), 6)
    answer = call("train", str(data), "--training.loss", "ordinal", "--run.dir", str(tmp_path / "run"))
    assert answer.code == 2
    assert "ant, bee, cat" in answer.err
    assert "--data.order" in answer.err
    for order, told in ((("ant", "bee"), "it lacks cat"), (("ant", "bee", "cow", "cat"), "it has cow")):
        answer = call("train", str(data), "--data.order", *order, "--run.dir", str(tmp_path / "run"))
        assert answer.code == 2
        assert told in answer.err
    assert not (tmp_path / "run").exists()
    plain = changed(tmp_path / "run", loss="cross-entropy", best_metric="kappa")
    with pytest.raises(SpecError, match="kappa"):
        tellapart.train(str(data), quiet=True, **plain)
    with pytest.raises(SpecError, match="use cross-entropy or focal or ordinal"):
        tellapart.train(
            str(data_of(run)), quiet=True, **changed(tmp_path / "run", loss="bce"), **{"data.order": "auto"}
        )


def test_validation_of_one_grade_is_judged_by_the_error(tmp_path: Path) -> None:
    data = make(tmp_path / "data" / "train", ("0", "1", "2"), 12).parent
    make(data / "val", ("1",), 8)
    result = tellapart.train(str(data), quiet=True, **changed(tmp_path / "run", epochs=1))
    assert runs.read_spec(result.run / runs.SPEC_FILE).training.best_metric == "mae"
    asked = tellapart.train(str(data), quiet=True, **changed(tmp_path / "two", epochs=1, best_metric="kappa"))
    assert np.isfinite(run_folder.read_run(asked.run).metrics["val/kappa"][0][1])


def test_runs_are_compared_by_kappa(run: Path, tmp_path: Path) -> None:
    other = changed(tmp_path / "other", epochs=1, loss="cross-entropy") | {"data": {"order": ("auto",)}}
    tellapart.train(str(data_of(run)), quiet=True, **other)
    found = compare([run, tmp_path / "other"])
    (pair,) = found.pairs
    assert pair.metric == "quadratic kappa"
    kappas = [result.kappa for result in found.results]
    assert None not in kappas
    assert pair.difference == pytest.approx(kappas[1] - kappas[0])  # type: ignore[operator]
    text = found.to_text()
    assert "kappa    MAE" in text
    assert "of quadratic kappa (" in text
    assert max(map(len, text.splitlines())) <= 100


def test_folds_have_the_figures(run: Path, tmp_path: Path) -> None:
    series = tellapart.cross_validate(
        str(data_of(run)), folds=2, quiet=True, **changed(tmp_path / "folds", epochs=1)
    )
    assert {"kappa", "mae", "within_one"} <= series.summary.keys()
    assert series.summary["mae"]["mean"] == pytest.approx(np.mean([one["mae"] for one in series.runs]))
    assert series.metrics["kappa"] is not None
    page = (series.run / "report.html").read_text()
    assert "mean absolute error" in page
    assert "quadratic kappa" in page


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_an_exported_file_agrees(run: Path, tmp_path: Path, name: str, file: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[name])
    done = exporting.export(run, [name], tmp_path / "out", images=20)
    assert not done.rejected
    ours, theirs = tellapart.load(run), tellapart.load(tmp_path / "out" / file)
    assert theirs.card.ordered
    files = [str(data_of(run) / row["path"]) for row in rows_of(run)[:8]]
    pairs = zip(ours.predict(files), theirs.predict(files), strict=True)
    for one, two in pairs:
        assert one.label == two.label
        assert one.expected_grade == pytest.approx(two.expected_grade, abs=1e-4)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_service_tells_the_expected_grade(run: Path) -> None:
    row = rows_of(run)[0]
    content = (data_of(run) / row["path"]).read_bytes()
    with TestClient(create({"m": str(run)}, Options()), base_url="http://127.0.0.1") as client:
        head = {"content-type": "image/png"}
        (one,) = client.post("/v1/predict", content=content, headers=head).json()["predictions"]
        assert one["label"] == row["predicted"]
        assert one["expected_grade"] == pytest.approx(float(row["expected_grade"]), abs=1e-3)
        described = client.get("/openapi.json").text
        assert "expected_grade" in described


@pytest.mark.slow
def test_a_smaller_model_is_one_of_grades_too(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 1,
        "student": "fast-cnn-small",
        "images": 8,
        "runtime": (),
        "threads": 1,
    }
    found = compressing.compress(run, method=("distill",), out=tmp_path / "out", quiet=True, **options)
    card = artifact.read_card(found.rows[-1].candidate.file)
    assert (card.classes, card.ordered) == (GRADES, True)


def test_a_card_without_the_field_is_as_before_and_one_with_it_is_read(run: Path) -> None:
    card = artifact.read_card(run)
    assert Card.from_json(card.to_json()) == card
    content = json.loads(card.to_json())
    plain = dataclasses.replace(card, ordered=False)
    assert json.loads(plain.to_json()) == {k: v for k, v in content.items() if k != "ordered"}
    for wrong, why in (
        ({"ordered": 1}, "ordered"),
        ({"ordered": "yes"}, "ordered"),
        ({"kind": "multi-label", "thresholds": [0.5] * 4}, "images of one label"),
    ):
        with pytest.raises(CardError, match=why):
            Card.from_json(json.dumps(content | wrong))
