"""Images with several labels from a list to every place where an answer comes out."""

from __future__ import annotations

import dataclasses
import io
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
from tellapart.errors import DataError, ModelError, RunError, SpecError
from tellapart.evaluation import multilabel, run_folder
from tellapart.evaluation.compare import compare
from tellapart.export import graph
from tellapart.serve.app import create
from tellapart.serve.options import Options
from tellapart.workflow import exporting
from tellapart.workflow.asked import make_spec

from .several import CLASSES, changed, data_of, make, rows_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("several")
    make(base / "data")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    spec = {**changed(base / "run"), "data": {"labels": "multi", "val_fraction": 0.2}}
    tellapart.train(str(base / "data"), quiet=True, **spec)
    patch.undo()
    return base / "run"


def test_a_run_learns_and_its_files_agree(run: Path) -> None:
    card = artifact.read_card(run)
    assert (card.kind, card.classes) == ("multi-label", CLASSES)
    assert len(card.thresholds) == 3
    found = run_folder.read_run(run).evaluations["test"]
    assert isinstance(found, multilabel.MultiEvaluation)
    assert found.map > 0.95
    rows = rows_of(run)
    truth = np.array([[name in row["labels"].split("|") for name in CLASSES] for row in rows])
    scores = np.array([[float(row[f"p:{name}"]) for name in CLASSES] for row in rows])
    assert found.map == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-6)
    told = np.array([[name in row["predicted"].split("|") for name in CLASSES] for row in rows])
    assert (told == (scores >= np.array(card.thresholds))).all()
    assert "" in [row["labels"] for row in rows]  # none of the colours
    spec = runs.read_spec(run / "spec.yaml")
    assert (spec.training.loss, spec.training.best_metric) == ("bce", "mAP")
    page = (run / "report.html").read_text()
    assert "Labels that occur together" in page
    assert "Confusion" not in page
    val = json.loads((run / "evaluation" / "val" / "metrics.json").read_text())
    assert [score["threshold"] for score in val["per_class"]] == list(card.thresholds)


def test_a_run_continues_exactly(run: Path, tmp_path: Path) -> None:
    class Stops(tellapart.Callback):
        def on_epoch_end(self, values: Any) -> None:
            raise KeyboardInterrupt

    spec = {**changed(tmp_path / "cut"), "data": {"labels": "multi", "val_fraction": 0.2}}
    with pytest.raises(KeyboardInterrupt):
        tellapart.train(str(data_of(run)), quiet=True, callbacks=[Stops()], **spec)
    tellapart.resume(tmp_path / "cut", quiet=True)
    ours, theirs = artifact.read_state(tmp_path / "cut"), artifact.read_state(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert artifact.read_card(tmp_path / "cut").thresholds == artifact.read_card(run).thresholds
    listed = tmp_path / "cut" / "samples.csv"
    assert listed.read_text().startswith("path,labels,split")
    listed.write_text(listed.read_text().replace("blue|green", "blue", 1))
    with pytest.raises(RunError, match="has changed"):
        tellapart.resume(tmp_path / "cut", quiet=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"training.loss": "asymmetric"},
        {"training.class_weights": "inverse", "training.label_smoothing": 0.1},
        {"augment.mixup": 0.4},
        {"training.accumulate": 4, "augment.cutmix": 1.0},
        {"training.prune": 0.5},
    ],
)
def test_other_ways_to_train(run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(str(data_of(run)), **changed(tmp_path / "run", epochs=2), **{"data.labels": "multi"})
    result = tellapart.train(spec=make_spec(None, None, spec, **changes), quiet=True)
    assert result.metrics["map"] > 0.5


def test_a_head_alone_trains_on_features(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = changed(tmp_path / "run", epochs=2) | {"data": {"labels": "multi"}}
    spec["model"] = {"name": "fast-cnn", "weights": str(run), "finetune": "head"}
    result = tellapart.train(str(data_of(run)), quiet=True, **spec)
    assert result.metrics["map"] > 0.9
    ours, theirs = artifact.read_state(result.run), artifact.read_state(run)
    assert any(torch.equal(ours[name], theirs[name]) for name in theirs if name.endswith("weight"))


def test_micro_batches_give_the_same_weights(run: Path, tmp_path: Path) -> None:
    states = []
    for parts in (1, 4):
        spec = {**changed(tmp_path / f"run{parts}", epochs=1, accumulate=parts), "data": {"labels": "multi"}}
        spec["model"] = {"name": "tutorial-net"}
        tellapart.train(str(data_of(run)), quiet=True, **spec)
        states.append(artifact.read_state(tmp_path / f"run{parts}"))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


def test_predictions_have_the_labels_that_reach_their_thresholds(run: Path) -> None:
    model = tellapart.load(run)
    rows = rows_of(run)[:6]
    found = model.predict([str(data_of(run) / row["path"]) for row in rows], top=3)
    for row, one in zip(rows, found, strict=True):
        assert one.told is not None
        assert {told.label for told in one.told} == set(filter(None, row["predicted"].split("|")))
        assert all(told.probability >= told.threshold for told in one.told)
        answer = one.to_dict()
        assert {told["label"] for told in answer["labels"]} == {told.label for told in one.told}
        assert len(answer["top"]) == 3
        assert "label" not in answer
        assert one.label == (one.told[0].label if one.told else "")
        for name, value in zip(one.labels, one.probabilities, strict=True):
            assert value == pytest.approx(float(row[f"p:{name}"]), abs=1e-4)


def test_the_graph_has_sigmoids(run: Path) -> None:
    whole = graph.graph_of(run)
    probabilities, logits = whole(whole.example(3))
    torch.testing.assert_close(probabilities, torch.sigmoid(logits))


@pytest.mark.slow
def test_an_exported_file_agrees(run: Path, tmp_path: Path) -> None:
    done = exporting.export(run, ["onnx"], tmp_path / "out", images=20)
    assert not done.rejected
    assert done.parities[0].several
    ours = tellapart.load(run)
    theirs = tellapart.load(tmp_path / "out" / "model.onnx")
    files = [str(data_of(run) / row["path"]) for row in rows_of(run)[:8]]
    np.testing.assert_allclose(theirs.probabilities(files), ours.probabilities(files), atol=1e-5)
    assert theirs.card.thresholds == ours.card.thresholds
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "out" / "model.onnx"))
    pixels = np.asarray(Image.open(files[0]))[None]
    outputs = dict(
        zip(
            [o.name for o in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: pixels}),
            strict=True,
        )
    )
    np.testing.assert_allclose(outputs["probabilities"], 1 / (1 + np.exp(-outputs["logits"])), atol=1e-6)
    measured = tellapart.evaluate(
        tmp_path / "out" / "model.onnx", str(data_of(run)), split="test", quiet=True
    )
    assert isinstance(measured, multilabel.MultiEvaluation)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_service_tells_labels_with_thresholds(run: Path) -> None:
    row = next(row for row in rows_of(run) if "|" in row["predicted"])
    content = (data_of(run) / row["path"]).read_bytes()
    with TestClient(create({"m": str(run)}, Options()), base_url="http://127.0.0.1") as client:
        answer = client.post(
            "/v1/predict?top=2", content=content, headers={"content-type": "image/png"}
        ).json()
        assert "predictions" in answer, answer
        (one,) = answer["predictions"]
        assert {told["label"] for told in one["labels"]} == set(row["predicted"].split("|"))
        assert all(told["probability"] >= told["threshold"] for told in one["labels"])
        assert len(one["top"]) == 2
        pixels = np.asarray(Image.open(io.BytesIO(content)))[None]
        tensor = {
            "name": "images",
            "datatype": "UINT8",
            "shape": list(pixels.shape),
            "data": pixels.ravel().tolist(),
        }
        name = answer["model"]
        given = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()
        assert "outputs" in given, given
        outputs = {one["name"]: one["data"] for one in given["outputs"]}
        np.testing.assert_allclose(
            outputs["probabilities"], 1 / (1 + np.exp(-np.array(outputs["logits"]))), atol=1e-6
        )
        assert set(outputs["labels"][0].split("|")) == set(row["predicted"].split("|"))
        heat = client.post(
            "/v1/explain?grid=2", content=content, headers={"content-type": "image/png"}
        ).json()
        assert heat["explained"] == one["top"][0]["label"]


def test_runs_are_compared_by_map(run: Path, tmp_path: Path) -> None:
    spec = {
        **changed(tmp_path / "other", epochs=1, lr=1e-5),
        "data": {"labels": "multi", "val_fraction": 0.2},
    }
    tellapart.train(str(data_of(run)), quiet=True, **spec)
    found = compare([run, tmp_path / "other"])
    assert found.pairs[0].metric == "mAP"
    assert found.pairs[0].difference < 0
    assert "points of mAP" in found.to_text()
    assert found.results[0].map is not None


def test_what_is_for_one_label_is_refused(run: Path, tmp_path: Path) -> None:
    base = {**changed(tmp_path / "run"), "data": {"labels": "multi"}}
    for name, value in (
        ("training.loss", "focal"),
        ("training.loss", "cross-entropy"),
        ("training.sampling", "oversample"),
        ("training.class_weights", "effective"),
        ("training.best_metric", "accuracy"),
    ):
        spec = make_spec(str(data_of(run)), **base)
        with pytest.raises(SpecError, match=name.replace(".", r"\.")):
            tellapart.train(spec=make_spec(None, None, spec, **{name: value}), quiet=True)
    with pytest.raises(SpecError, match="has one label"):
        tellapart.train("digits", quiet=True, **changed(tmp_path / "run", loss="bce"))
    one = make(tmp_path / "one", 30, single=True)
    spec = changed(tmp_path / "run") | {"distill": {"teacher": str(run)}}
    with pytest.raises(ModelError, match="several labels"):
        tellapart.train(str(one), quiet=True, **spec)


def test_a_student_follows_a_teacher_of_several_labels(run: Path, tmp_path: Path) -> None:
    spec = changed(tmp_path / "student", epochs=2) | {"data": {"labels": "multi"}}
    spec["distill"] = {"teacher": str(run), "weight": 1.0, "temperature": 2.0}
    result = tellapart.train(str(data_of(run)), quiet=True, **spec)
    assert result.metrics["map"] > 0.9
    kept = runs.read_spec(result.run / "spec.yaml")
    assert kept.distill.fingerprint
    losses = [value for _, value in run_folder.read_run(result.run).metrics["train/epoch-loss"]]
    assert losses[-1] < losses[0]


def test_a_model_and_data_of_different_kinds(run: Path, tmp_path: Path) -> None:
    one = make(tmp_path / "one", 30, single=True)
    found = tellapart.evaluate(run, str(one), quiet=True)  # one label is a case of several
    assert isinstance(found, multilabel.MultiEvaluation)
    assert found.map > 0.9
    with pytest.raises(DataError, match="any number of labels"):
        tellapart.evaluate(run, str(one), quiet=True, labels="single")
    tellapart.train(str(one), quiet=True, **changed(tmp_path / "single", epochs=1))
    with pytest.raises(DataError, match="gives one"):
        tellapart.evaluate(tmp_path / "single", str(data_of(run)), quiet=True)


def test_own_metrics_of_one_label_are_refused(run: Path) -> None:
    with pytest.raises(SpecError, match="metrics of your own are for images of one label"):
        tellapart.evaluate(run, quiet=True, metrics={"mine": lambda labels, predictions: 0.0})


def test_a_card_is_checked(run: Path) -> None:
    card = artifact.read_card(run)
    assert Card.from_json(card.to_json()) == card
    content = json.loads(card.to_json())
    assert content["format"] == 4
    for wrong, why in (
        ({"thresholds": [0.5, 0.5]}, "thresholds has 2 values"),
        ({"thresholds": [0.5, 0.5, 1.5]}, "from 0 to 1"),
        ({"thresholds": [0.5, 0.5, "x"]}, "thresholds"),
        ({"kind": "single"}, "thresholds has 3 values"),
        ({"kind": "several"}, "does not know"),
    ):
        with pytest.raises(CardError, match=why):
            Card.from_json(json.dumps(content | wrong))
    single = dataclasses.replace(card, kind="single", thresholds=())
    assert "thresholds" not in json.loads(single.to_json())


def test_a_split_in_which_no_image_has_a_label_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", 20)
    lines = (folder / "list.csv").read_text().splitlines()
    rows = [
        f"{line.split(',')[0]},,val" if n % 5 == 0 else f"{line},train" for n, line in enumerate(lines[1:])
    ]
    (folder / "list.csv").write_text("\n".join(["path,labels,split", *rows]))
    with pytest.raises(DataError, match="None of the 4 val images"):
        tellapart.train(str(folder), quiet=True, **changed(tmp_path / "run"), data={"labels": "multi"})
