"""Compression where an image can have several labels: figures are mAP, thresholds stay with the files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

import tellapart
from tellapart import artifact, runs, runtime
from tellapart.compress import channels, measuring, openvino_int8
from tellapart.compress.measuring import Candidate
from tellapart.compress.subject import open_subject
from tellapart.compress.table import Comparison
from tellapart.errors import DataError
from tellapart.tracking import Console
from tellapart.workflow import compress, quantising

from ..several import CLASSES, changed, make

THRESHOLDS = (0.5, 0.3, 0.6)


class Backend:
    """One that knows its logits."""

    format = "onnx"
    card = SimpleNamespace(
        classes=CLASSES, temperature=1.0, kind="multi-label", thresholds=THRESHOLDS,
        ordered=False,
        levels="",
        preprocessing=SimpleNamespace(size=2),
    )  # fmt: skip

    def __init__(self, given: np.ndarray) -> None:
        self.given = given

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.given[images[:, 0, 0, 0]]


class Images:
    """Images whose first pixel is their number."""

    def __init__(self, targets: np.ndarray) -> None:
        labels = np.full(len(targets), -1)
        self.samples = SimpleNamespace(labels=labels, targets=targets, classes=CLASSES)

    def __len__(self) -> int:
        return len(self.samples.targets)

    def batch(self, rows: np.ndarray) -> SimpleNamespace:
        pixels = np.zeros((len(rows), 2, 2, 3), np.uint8)
        pixels[:, 0, 0, 0] = rows
        return SimpleNamespace(pixels=SimpleNamespace(numpy=lambda: pixels))


def test_figures_are_those_of_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (80, 3)).astype(np.uint8)
    given = [(rng.normal(size=(80, 3)) + k * targets).astype(np.float32) for k in (2, 1)]
    file = tmp_path / "a.onnx"
    file.write_bytes(b"x")
    names = ("one", "two")
    pairs: Any = [(Candidate(n, "none", file, "one"), Backend(g)) for n, g in zip(names, given, strict=True)]
    images: Any = Images(targets)
    rows = measuring.measure(pairs, images)
    told = [1 / (1 + np.exp(-g.astype(np.float64))) >= THRESHOLDS for g in given]
    for row, logits, marks in zip(rows, given, told, strict=True):
        assert row.metric == "map"
        assert row.value == pytest.approx(average_precision_score(targets, logits))
        assert row.macro_f1 == pytest.approx(f1_score(targets, marks, average="macro"))
        assert row.interval[0] < row.value < row.interval[1]
        assert row.agreement == pytest.approx((marks == told[0]).all(1).mean())
        assert row.to_dict()["map"] == row.value
        assert "accuracy" not in row.to_dict()
    aps = [average_precision_score(targets, logits, average=None) for logits in given]
    assert list(rows[1].change.values()) == pytest.approx(list(aps[1] - aps[0]))
    comparison = Comparison(tmp_path, "m", "test", {"processor": "P", "threads": 1}, tuple(rows))
    head = comparison.to_text().splitlines()[2]
    assert "mAP" in head
    assert "accuracy" not in head
    assert json.loads(comparison.write().read_text())["metric"] == "map"


def test_channels_are_judged_by_the_loss_of_several_labels() -> None:
    """Against autograd in float64 on the formula."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images, labels = torch.randn(5, 3, 2, 2), torch.randint(0, 2, (5, 3)).float()
    channels._gradients(model, [(images, labels)])
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    double = model.double()
    p = torch.sigmoid(double(images.double()))
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum() / 3
    wanted = torch.autograd.grad(loss, list(double.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("several")
    data = {"labels": "multi", "val_fraction": 0.25, "cache_dir": str(base / "cache")}
    tellapart.train(str(make(base / "data", 80)), quiet=True, **changed(base / "run", epochs=3), data=data)
    return base / "run"


OPTIONS: dict[str, Any] = {"ratio": 0.3, "rounds": 1, "epochs": 1, "images": 16, "threads": 1}


def test_pruned_sparse_and_distilled_models_tell_several_labels(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    out = tmp_path / "out"
    more = {"student": "fast-cnn-small", "runtime": ()}
    found = compress(run, method=("prune", "sparse", "distill"), out=out, quiet=True, **OPTIONS, **more)
    names = [row.candidate.name for row in found.rows]
    assert names == ["model", "prune-30", "sparse-30", "distill-fast-cnn-small"]
    assert all(row.metric == "map" for row in found.rows)
    for name in names[1:]:
        card = artifact.read_card(out / name)
        assert (card.kind, len(card.thresholds)) == ("multi-label", 3)
        spec = runs.read_spec(out / name / "spec.yaml")
        assert spec.distill.teacher == str((run / "model.safetensors").resolve())
    measured = tellapart.evaluate(out / "prune-30", split="test", quiet=True)
    assert measured.headline.value == pytest.approx(found.rows[1].value)
    page = (out / "compress.html").read_text()
    assert "Mean average precision (mAP) against latency" in page
    assert "Change in the average precision of each class" in page


@pytest.mark.slow
def test_int8_keeps_thresholds_and_counts_points_of_map(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    more = {"runtime": "onnx", "max_drop": 3.0}
    found = compress(run, method=("int8", "qat"), out=out, quiet=True, **OPTIONS, **more)
    rows = {row.candidate.name: row for row in found.rows}
    assert {"model", "int8 ONNX Runtime", "qat ONNX Runtime"} <= set(rows)
    assert artifact.read_card(out / "qat").several
    int8, floats = (rows[f"{name} ONNX Runtime"].candidate for name in ("int8", "fp32"))
    assert runtime.open_backend(int8.file).card.thresholds == artifact.read_card(run).thresholds
    after, before = (
        tellapart.evaluate(one.file, run.parent / "data", split="val", quiet=True, val_fraction=0.25)
        for one in (int8, floats)
    )
    assert int8.facts["drop"] == pytest.approx(100 * (before.headline.value - after.headline.value), abs=0.01)
    assert any("points of mAP" in note for note in found.notes)


def test_nncf_is_told_map() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (30, 3)).astype(np.uint8)
    logits = (rng.normal(size=(30, 3)) + targets).astype(np.float32)
    data = [(np.full((1, 2, 2, 3), n), row) for n, row in enumerate(targets)]
    value, each = openvino_int8._mean_average_precision(
        lambda given: {"logits": logits[given[0][:, 0, 0, 0]]}, data
    )
    assert value == pytest.approx(average_precision_score(targets, logits))
    assert each is None


def test_the_drop_is_counted_in_points_of_map(run: Path) -> None:
    with Console(quiet=True) as console:
        subject = open_subject(run, None, {}, {}, None, console)
    assert subject.spec.data.labels == "multi"
    assert subject.parts["val"].samples.classes == CLASSES
    ((_, labels),) = subject.batches(8)
    assert labels.shape == (8, 3)
    drop = quantising._drop(subject, run / "model.safetensors")
    assert drop(run / "model.safetensors") == 0


def test_a_model_of_several_labels_takes_a_list_of_single_ones(run: Path, tmp_path: Path) -> None:
    one = make(tmp_path / "one", 30, single=True)
    with Console(quiet=True) as console:
        subject = open_subject(
            run / "model.safetensors", None, {"source": str(one)}, {"data.val_fraction": 0.2}, None, console
        )
        assert subject.parts["val"].samples.targets is not None
        with pytest.raises(DataError, match="have one label each"):
            open_subject(run, None, {"source": str(one)}, {"data.labels": "single"}, None, console)


def test_classes_in_another_order_keep_their_targets(run: Path, tmp_path: Path) -> None:
    """The order of a model's classes counts, not that of the names."""
    card = artifact.read_card(run)
    turned = type(card)(**{**vars(card), "classes": ("red", "blue", "green")})
    file = tmp_path / "model.safetensors"
    artifact.save(file, artifact.read_state(run), turned)
    data = {"source": str(run.parent / "data")}
    with Console(quiet=True) as console:
        theirs = open_subject(file, None, data, {}, None, console).parts["test"].samples
        ours = open_subject(run / "model.safetensors", None, data, {}, None, console).parts["test"].samples
    assert theirs.classes == ("red", "blue", "green")
    assert ours.targets is not None
    assert (theirs.targets == ours.targets[:, [2, 0, 1]]).all()
