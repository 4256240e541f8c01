from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tellapart import artifact, runs, runtime
from tellapart.errors import ArtifactError, DataError, RunError, SpecError, UserError
from tellapart.spec import Spec, update
from tellapart.workflow import compress, evaluate, quantising, train

pytest.importorskip("torch_pruning")

SMALL: dict[str, Any] = {
    "model.name": "fast-cnn",
    "training.epochs": 2,
    "training.batch_size": 8,
    "training.lr": 0.003,
    "training.device": "cpu",
    "run.report": False,
    "run.tensorboard": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("compressing")
    data = make_folder(folder / "data", count=24, splits=("train", "val", "test"))
    changes = {**SMALL, "run.dir": str(folder / "run"), "data.cache_dir": str(folder / "cache")}
    return train(data, quiet=True, **changes).run


def test_pruned_sparse_and_distilled_models_are_ordinary_ones(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    out = tmp_path / "out"
    options: dict[str, Any] = {
        "ratio": (0.5,),
        "rounds": 2,
        "epochs": 1,
        "student": "fast-cnn-small",
        "alone": True,
        "images": 16,
        "runtime": (),
        "threads": 1,
    }
    found = compress(run, method=("prune", "sparse", "distill"), out=out, **options, quiet=True)
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    names = [row.candidate.name for row in found.rows]
    assert names == ["model", "prune-50", "sparse-50", "distill-fast-cnn-small", "alone-fast-cnn-small"]
    base, pruned, sparse, taught, alone = found.rows
    assert taught.candidate.parameters == alone.candidate.parameters < 0.3 * base.candidate.parameters
    assert taught.candidate.flops < 0.3 * base.candidate.flops
    assert pruned.candidate.flops <= 0.5 * base.candidate.flops
    assert pruned.bytes < 0.8 * base.bytes
    assert sparse.candidate.facts["zeros"] == pytest.approx(0.5, abs=0.01)
    assert sparse.candidate.flops == base.candidate.flops
    assert found.split == "test"
    for row in found.rows[1:]:
        measured = evaluate(out / row.candidate.name, split="test", quiet=True)
        assert measured.accuracy == pytest.approx(row.value)
        spec = runs.read_spec(out / row.candidate.name / "spec.yaml")
        teacher = "" if row is alone else str((run / "model.safetensors").resolve())
        assert spec.distill.teacher == teacher
    content = json.loads((out / "compress.json").read_text())
    assert [entry["name"] for entry in content["rows"]] == names
    assert (out / "compress.html").read_text().count("<circle") == 2 * 5
    assert artifact.read_card(out / "prune-50").architecture.pruned
    # Its weights start another training, with the layers as narrow as they are.
    again = train(
        spec=update(
            runs.read_spec(run / "spec.yaml"),
            {
                **SMALL,
                "training.epochs": 1,
                "model.weights": str(out / "prune-50"),
                "run.dir": str(tmp_path / "again"),
            },
        ),
        quiet=True,
    )
    assert (
        artifact.read_card(again.run).architecture.pruned
        == artifact.read_card(out / "prune-50").architecture.pruned
    )


@pytest.mark.slow
def test_int8_files_keep_to_the_budget_or_say_so(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    options: dict[str, Any] = {"images": 24, "max_drop": 2.0, "runtime": ("onnx",), "threads": 1}
    found = compress(run, method=("int8",), out=tmp_path / "out", **options, quiet=True)
    rows = {row.candidate.name: row for row in found.rows}
    assert list(rows) == ["model", "fp32 ONNX Runtime", "fp16 ONNX Runtime", "int8 ONNX Runtime"]
    int8 = rows["int8 ONNX Runtime"]
    assert int8.size_ratio < 0.4
    assert rows["fp16 ONNX Runtime"].size_ratio < 0.7
    assert rows["fp32 ONNX Runtime"].value == rows["model"].value
    facts = int8.candidate.facts
    assert facts["met"] == (facts["drop"] <= 2.0)
    backend = runtime.open_backend(int8.candidate.file)
    assert backend.card == artifact.read_card(run)


def test_the_least_drop_is_kept(tmp_path: Path) -> None:
    """Attempts end with the first that is good enough; else the cheapest stays, of equals the first."""
    target = tmp_path / "model.xml"

    def write(network: str, file: Path) -> None:
        file.write_text(network)
        file.with_suffix(".bin").write_text(network)

    def run(drops: dict[str, float], budget: float) -> tuple[dict[str, Any], str]:
        attempts = ((name, list(name[1:])) for name in drops)
        facts = quantising._least_drop(
            attempts, write, lambda file: drops[file.read_text()], target, budget, [].append
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
        assert target.read_text() == target.with_suffix(".bin").read_text()
        return facts, target.read_text()

    facts, kept = run({"n": 0.7, "na": 0.4, "nab": 0.0}, 0.5)
    assert kept == "na"
    assert facts == {"drop": 0.4, "met": True, "float_layers": ["a"], "tried": [[0.7, 0], [0.4, 1]]}
    facts, kept = run({"n": 0.9, "na": 0.7, "nab": 0.7, "nabc": 0.8}, 0.5)
    assert (kept, facts["met"], facts["float_layers"]) == ("na", False, ["a"])


def test_light_layers_alone_stay_in_float() -> None:
    weights = {"a": 10, "b": 990, "c": 6, "d": 5, **{f"other {k}": 0 for k in range(8)}}
    # 20 of 1,011 weights may stay, and 3 of 12 layers.
    assert quantising._light(["b", "a", "c", "d"], weights) == ["a", "c"]
    assert quantising._light(["a", "d", "other 0", "other 1"], weights) == ["a", "d", "other 0"]


def test_calibration_is_on_training_images_alone(run: Path) -> None:
    from tellapart.compress.subject import open_subject
    from tellapart.tracking import Console
    from tellapart.workflow.quantising import calibration

    with Console(quiet=True) as console:
        subject = open_subject(run, None, {}, {}, None, console)
    batches = calibration(subject, 20)
    assert sum(len(batch) for batch in batches) == 20
    known = {image.tobytes() for image in _all(subject.parts["train"])}
    others = {image.tobytes() for part in ("val", "test") for image in _all(subject.parts[part])}
    taken = {image.tobytes() for batch in batches for image in batch}
    assert len(taken) == 20
    assert taken <= known
    assert not taken & others
    assert subject.spec.training.optimizer == "adamw"
    assert subject.spec.data.source == runs.read_spec(run / "spec.yaml").data.source


def _all(images: Any) -> Any:
    import numpy as np

    return images.batch(np.arange(len(images))).pixels.numpy()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": ("prun",)}, SpecError, "Did you mean 'prune'"),
        ({"method": ("distill",)}, SpecError, "--student NAME"),
        ({"ratio": 1.5}, SpecError, "--ratio is 1.5"),
        ({"rounds": 0}, SpecError, "--rounds is 0"),
        ({"runtime": "onx"}, SpecError, "Did you mean 'onnx'"),
        ({"model": "nowhere"}, ArtifactError, "nowhere does not exist"),
        ({"out": "."}, RunError, "choose another --out"),
    ],
)
def test_mistakes_are_named(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    given = {"model": run, "out": tmp_path / "out", "method": ("prune",), **changes}
    with pytest.raises(error, match=words):
        compress(given.pop("model"), quiet=True, **given)
    assert not (tmp_path / "out").exists()


def test_an_artifact_alone_needs_images(run: Path, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match="give DATA"):
        compress(file, method=("prune",), out=tmp_path / "out", quiet=True)
    other = make_folder(tmp_path / "other", classes=("ant", "bee", "dog"), splits=("train", "val"))
    with pytest.raises(DataError, match="cat, dog"):
        compress(file, other, method=("prune",), out=tmp_path / "out", quiet=True)


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tellapart", "compress", str(run), "--method", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2
    assert "prune" in done.stderr


def test_the_default_spec_has_no_teacher_and_no_rounding() -> None:
    spec = Spec()
    assert (spec.distill.teacher, spec.training.quantize, spec.training.keep_zeros) == ("", "none", False)
    assert issubclass(SpecError, UserError)
