"""`tellapart export` as a whole: what is written, what is refused, and that the files answer as the artifact."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import pytest

import tellapart
from tellapart import commands, workflow
from tellapart.errors import ArtifactError, DataError, SpecError
from tellapart.export import formats
from tellapart.workflow.cases import stratified

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained run as ONNX and as a state dict, compared on the run's own validation images."""
    return workflow.export(
        trained.run, ["onnx", "state-dict"], tmp_path_factory.mktemp("exported") / "out", images=20
    )


def test_the_command_line_knows_every_format() -> None:
    types = get_type_hints(commands.Export)
    assert set(get_args(get_args(types["to"])[0])) == set(formats.FORMATS)
    offered = {precision for entry in formats.FORMATS.values() for precision in entry.tolerance}
    assert set(get_args(get_args(types["precision"])[0])) == offered


def test_what_is_written(exported: Any, trained: Any) -> None:
    folder = exported.page.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx",
        "model.pth",
        "parity.html",
        "parity.json",
    ]
    assert exported.files == (folder / "model.onnx", folder / "model.pth")
    assert exported.passed
    content = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    first, second = content["formats"]
    assert (first["format"], first["precision"], second["format"]) == ("onnx", "fp32", "state-dict")
    assert (first["n"], first["real"], first["agreement"], first["passed"]) == (20, True, 1.0, True)
    assert first["max_difference"] <= first["tolerance"]["probability"] == 1e-4
    assert first["whole_difference"] <= 1e-4
    assert second["max_difference"] == 0
    assert first["export"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert first["artifact"]["bytes"] == (trained.run / "model.safetensors").stat().st_size
    assert "val" in first["origin"]
    assert exported.parities[0].artifact.accuracy == pytest.approx(first["artifact"]["accuracy"])


def test_a_service_knows_the_expected_classes_without_the_run(exported: Any, trained: Any) -> None:
    from tellapart.runtime import open_backend
    from tellapart.serve.drift import expectation

    card = open_backend(exported.files[0]).card
    confusion = np.array(json.loads((trained.run / "evaluation/val/metrics.json").read_text())["confusion"])
    assert card.scores["val"]["predicted"] == confusion.sum(axis=0).tolist()
    assert card.scores["val"]["accuracy"] == np.trace(confusion) / confusion.sum()  # what was there stays
    shares, source = expectation(card, exported.files[0], "")
    assert source == "card, val"
    np.testing.assert_allclose(shares, confusion.sum(axis=0) / confusion.sum())


def test_predict_and_evaluate_take_the_file(exported: Any, trained: Any, call: Call, tmp_path: Path) -> None:
    onnx_file, data = exported.files[0], trained.data / "test"
    pictures = sorted(data.rglob("*.png"))
    ours, theirs = (tellapart.load(path).predict(pictures, top=3) for path in (onnx_file, trained.run))
    for one, other in zip(ours, theirs, strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    (data / "ant" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    try:
        mine = workflow.evaluate(onnx_file, data, out=tmp_path / "mine", quiet=True)
        artifact = workflow.evaluate(trained.run, data, out=tmp_path / "theirs", quiet=True)
    finally:
        (data / "ant" / "bad.png").unlink()
    assert mine.n == artifact.n == 36
    assert mine.accuracy == artifact.accuracy
    np.testing.assert_array_equal(mine.confusion, artifact.confusion)
    assert mine.loss == pytest.approx(artifact.loss, abs=1e-4)
    assert (tmp_path / "mine/evaluation/all/predictions.csv").is_file()
    answer = call("evaluate", onnx_file, data, "--json")
    assert json.loads(answer.out)["accuracy"] == artifact.accuracy
    with pytest.raises(DataError, match="give labelled ones"):
        workflow.evaluate(onnx_file)
    with pytest.raises(SpecError, match="precision"):
        workflow.evaluate(onnx_file, data, precision="bf16")


def test_the_calibration_counts_in_evaluation(trained: Any, tmp_path: Path) -> None:
    """With a temperature, probabilities and loss change and the answers do not."""
    from tellapart import artifact

    card = artifact.read_card(trained.run)
    hot = tmp_path / "hot.safetensors"
    artifact.save(
        hot, artifact.read_state(trained.run), dataclasses.replace(card, calibration={"temperature": 3.0})
    )
    before, after = (
        workflow.evaluate(path, trained.data / "test", quiet=True) for path in (trained.run, hot)
    )
    assert after.accuracy == before.accuracy
    classifier = tellapart.load(hot)
    losses = []
    for label, name in enumerate(classifier.classes):
        probabilities = classifier.probabilities(sorted((trained.data / "test" / name).glob("*.png")))
        losses += (-np.log(probabilities[:, label])).tolist()
    assert after.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert after.loss != pytest.approx(before.loss, abs=1e-3)


def damage(path: Path) -> None:
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name.endswith("hidden.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[::2] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_a_wrong_file_is_kept_under_another_name(
    exported: Any, trained: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = formats.FORMATS["onnx"]
    done = exported

    def write(graph: Any, card: Any, target: Path, options: Any) -> Any:
        from tellapart.export.base import Written

        shutil.copy(done.files[0], target)
        damage(target)
        return Written((target,))

    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(entry, write=write))
    answer = call(
        "export", trained.run, "--to", "onnx", "state-dict", "--out", "out", "--images", 12, "--json"
    )
    assert answer.code == 1
    content = json.loads(answer.out)
    assert content["passed"] is False
    assert content["rejected"] == ["out/model.onnx.rejected"]
    assert content["files"] == ["out/model.pth"]
    assert "starts in the layer hidden " in content["parity"][0]["where"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.onnx.rejected", "model.pth", "parity.html", "parity.json"]
    shown = call("export", trained.run, "--to", "onnx", "--out", "again", "--images", 12)
    assert shown.code == 1
    assert "REJECTED" in shown.out
    assert "hidden" in shown.out


def test_nothing_is_overwritten_and_nothing_is_left_behind(
    exported: Any, trained: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported.page.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for to in ("onnx", "state-dict"):
        answer = call("export", trained.run, "--to", to, "--out", folder)
        assert answer.code == 2
        assert "--out" in answer.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def write(*_: Any) -> Any:
        raise ArtifactError("to order")

    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(formats.FORMATS["onnx"], write=write))
    assert call("export", trained.run, "--out", "out").code == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_another_process_writes_to_is_refused(trained: Any, call: Call, tmp_path: Path) -> None:
    holding = "import sys; from pathlib import Path; from tellapart import runs\n"
    holding += "with runs.alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holding, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for words in (
            ["export", trained.run, "--to", "state-dict"],
            ["compress", trained.run, "--method", "int8"],
        ):
            answer = call(*words, "--out", "out")
            assert answer.code == 2
            assert "Another process is writing to out" in answer.err
            assert list((tmp_path / "out").iterdir()) == []
        other.kill()  # which gives the folder back
    assert call("export", trained.run, "--to", "state-dict", "--out", "out").code == 0


def test_what_is_refused(trained: Any, call: Call, tmp_path: Path) -> None:
    for words, text in (
        (["--to", "state-dict", "--precision", "fp16"], "state-dict is not written in 'fp16'"),
        (["--to", "state-dict", "--plain"], "no plain form"),
        (["--images", "0"], "at least 1"),
        (["--to", "state-dict", "--data", "nowhere"], "nowhere"),
    ):
        answer = call("export", trained.run, "--out", "out", *words)
        assert answer.code == 2
        assert text in answer.err
    assert not (tmp_path / "out").exists()


def test_an_artifact_without_its_run(trained: Any, call: Call, tmp_path: Path, make_folder: Any) -> None:
    """Generated images, and a note that says so; or those that are given."""
    alone = tmp_path / "alone.safetensors"
    shutil.copy(trained.run / "model.safetensors", alone)
    answer = call("export", alone, "--to", "state-dict", "--out", "out", "--images", 9, "--json")
    assert "--data DATA" in answer.err
    (compared,) = json.loads(answer.out)["parity"]
    assert (compared["real"], compared["n"], compared["artifact"]["accuracy"]) == (False, 9, None)
    assert "generated images only" in (tmp_path / "out/parity.html").read_text(encoding="utf-8")
    data = make_folder(tmp_path / "photos", count=5)
    answer = call(
        "export", alone, "--to", "state-dict", "--out", "two", "--data", data, "--images", 9, "--json"
    )
    (compared,) = json.loads(answer.out)["parity"]
    assert (compared["real"], compared["n"]) == (True, 9)
    assert compared["origin"].startswith(str(data))


def test_each_class_has_its_part() -> None:
    labels = np.array([0] * 100 + [1] * 10 + [2] * 2)
    rows = stratified(labels, 12)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 2]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, stratified(labels, 12))
    np.testing.assert_array_equal(stratified(labels, 500), np.arange(112))
