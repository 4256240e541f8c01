"""Runs on float32 pixels, from files and objects to answers, exports and the service; and that they are worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tellapart
from tellapart import runs
from tellapart.artifact import read_card
from tellapart.errors import SpecError
from tellapart.models import zoo
from tellapart.predict import Classifier
from tellapart.spec import InputSpec, Spec, update
from tellapart.training.resolution.inputs import contract as contract_of

from .serve.conftest import Running

SIDE = 16


def faint(name: str, number: int) -> np.ndarray[Any, Any]:
    """Return 16 bits of which two classes differ by 0.16 of an 8-bit level: plain, or with a texture."""
    rng = np.random.default_rng([number, name == "grid"])
    values = 128 * 257 + rng.normal(0, 8, (SIDE, SIDE))
    if name == "grid":
        y, x = np.mgrid[:SIDE, :SIDE]
        values += np.where((x // 2 + y // 2 + number) % 2, 40, -40)
    return np.rint(values).astype(np.uint16)


def make(root: Path) -> Path:
    for split, first, count in (("train", 0, 32), ("val", 500, 12), ("test", 900, 20)):
        for name in ("flat", "grid"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                Image.fromarray(faint(name, number)).save(folder / f"{number}.png")
    return root


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model.name": "fast-cnn-small", "training.epochs": 3, "training.batch_size": 8, "training.device": "cpu",
        "augment.preset": "cifar", "run.tensorboard": False, "run.dir": str(folder), **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("faint"))


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "float"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        tellapart.train(str(source), **options(folder, **{"input.depth": "float32"}))
    return folder


def score(folder: Path) -> float:
    return float(read_card(folder).scores["test"]["accuracy"])


def test_what_eight_bits_lose_is_seen(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes that differ by less than a level: chance in 8 bits, all right in float32."""
    tellapart.train(str(source), **options(tmp_path / "eight"))
    said = capsys.readouterr().err
    assert "of 256 levels only: rounding to levels loses" in said
    assert "--input.depth float32" in said
    assert not any("rounding" in text for text in read_card(trained).warnings)
    assert score(tmp_path / "eight") == 0.5
    assert score(trained) == 1.0
    eight, floats = (runs.read_spec(folder / runs.SPEC_FILE) for folder in (tmp_path / "eight", trained))
    assert (eight.input.depth, floats.input.depth) == ("uint8", "float32")
    assert floats.training.precision == "fp32"
    card = read_card(trained)
    assert card.preprocessing.depth == "float32"
    assert card.preprocessing.std[0] < 1e-3  # as small as it is
    assert abs(card.preprocessing.mean[0] - 128 * 257 / 65_535) < 1e-5
    assert "depth" not in read_card(tmp_path / "eight").preprocessing.to_dict()


def test_files_and_arrays_get_the_same_answers(trained: Path, source: Path) -> None:
    classifier: Classifier = tellapart.load(trained)
    names = ["flat", "grid"] * 3
    values = [faint(name, 900 + number) for number, name in enumerate(names)]
    paths = [source / "test" / name / f"{900 + number}.png" for number, name in enumerate(names)]
    by_file = classifier.probabilities(paths)
    assert [answer.label for answer in classifier.predict(paths)] == names
    for images in (values, [Image.fromarray(one) for one in values], [one / 65_535 for one in values]):
        np.testing.assert_allclose(classifier.probabilities(images), by_file, atol=1e-5)
    refused = classifier.predict([values[0].astype(np.float32), (values[0] / 65_535 * np.nan)])
    assert "no range of their own" in refused[0].error
    assert "not finite" in refused[1].error


@pytest.mark.slow
def test_the_run_is_measured_and_exported(trained: Path, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    again = tellapart.evaluate(trained, str(source), split="test")
    assert again.accuracy == 1.0
    done = tellapart.export(trained, to="onnx", out=tmp_path / "export", images=16, quiet=True)
    assert done.passed
    (found,) = done.parities
    assert found.pixels["share"] == 0
    assert found.whole_difference < 1e-4
    file = tmp_path / "export" / "model.onnx"
    assert tellapart.evaluate(file, str(source), split="test").accuracy == 1.0
    assert "images: float [batch, height, width, 1]" in found.facts["inputs"]
    with pytest.raises(SpecError, match=r"litert is written for pixels of 8 bits.*one of: onnx, openvino"):
        tellapart.export(trained, to=("onnx", "litert"), out=tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()


def test_the_service_takes_files_and_tensors_of_levels(trained: Path, source: Path) -> None:
    classifier: Classifier = tellapart.load(trained)
    values = faint("grid", 901)
    wanted = classifier.probabilities([values])[0]
    levels = (values / 257).astype(np.float32)[None, ..., None]
    service = Running({"m": trained}).start()
    try:
        with service.client() as client:
            about = client.get("/v2/models/m").json()
            assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, -1, -1, 1]}]
            config = client.get("/v2/models/m/config").json()
            assert config["input"][0]["data_type"] == "TYPE_FP32"
            content = (source / "test" / "grid" / "901.png").read_bytes()
            told = client.post("/v1/predict", content=content, headers={"Content-Type": "image/png"}).json()
            assert told["predictions"][0]["label"] == "grid"

            def asked(data: Any, kind: str = "FP32", shape: Any = levels.shape) -> Any:
                tensor = {"name": "images", "datatype": kind, "shape": list(shape), "data": data}
                return client.post("/v2/models/m/infer", json={"inputs": [tensor]})

            outputs = {one["name"]: one["data"] for one in asked(levels.tolist()).json()["outputs"]}
            np.testing.assert_allclose(outputs["probabilities"], wanted, atol=1e-5)
            whole = asked(np.rint(levels).astype(int).tolist(), "UINT8")
            assert whole.status_code == 200
            larger = np.repeat(np.repeat(levels, 2, axis=1), 2, axis=2)
            assert asked(larger.tolist(), shape=larger.shape).status_code == 200
            for wrong in (levels * 257, levels - 200):
                refused = asked(wrong.tolist())
                assert refused.status_code == 422
                assert "must be from 0 to 255" in refused.text
            assert asked([["a"] * 16] * 16).status_code == 400
            assert asked(levels.tolist()[:0]).status_code == 400
    finally:
        service.stop()


def test_objects_of_python_are_trained_on(tmp_path: Path) -> None:
    """Floating-point arrays from 0 to 1, which are no 255ths and were refused."""
    pairs = [(faint(name, number) / 65_535, name) for number in range(24) for name in ("flat", "grid")]
    folder = tmp_path / "run"
    changes = {"training.epochs": 2, "data.val_fraction": 0.25, "data.test_fraction": 0.25}
    tellapart.train(pairs, **options(folder, **{"input.depth": "float32"}, **changes))
    assert score(folder) == 1.0


def test_policies_are_refused_before_anything_is_made(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"augment\.policy trivialaugment"):
        tellapart.train(
            str(source), **options(tmp_path / "run", **{"input.depth": "float32", "augment.preset": "strong"})
        )
    assert not (tmp_path / "run").exists()


def test_check_reads_floating_point_by_the_range(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            values = 280 + np.random.default_rng(number).random((24, 24)) * (1 if name == "a" else 2)
            np.save(tmp_path / "data" / name / f"{number}.npy", values.astype(np.float32))
    health = tellapart.check(tmp_path / "data", quiet=True)
    assert len(health.bad) == 8
    assert "--input.range" in health.bad[0].reason
    page = tmp_path / "page.html"
    with_range = {"input.range": "270-290", "input.depth": "float32"}
    health = tellapart.check(tmp_path / "data", quiet=True, html=page, **with_range)
    assert not health.bad
    assert page.read_text("utf-8").count("data:image/") >= 8


def test_the_option_is_resolved_and_said() -> None:
    assert InputSpec().depth == "auto"
    spec = update(Spec(), {"input.depth": "float32"})
    assert spec.input.depth == "float32"
    full = InputSpec(size=8, channels=1, resize="squash", interpolation="bilinear", crop_fraction=1.0)
    assert contract_of(full).depth == "uint8"
    with pytest.raises(SpecError, match=r"input\.depth"):
        update(Spec(), {"input.depth": "float16"})


def test_import_says_what_the_weights_take(tmp_path: Path) -> None:
    """Depth, range and decoding of an imported model are those that were given, not left out."""
    network = zoo.build(zoo.Architecture("simple-cnn", 2, channels=1, size=16))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    given = {
        "input.size": 16, "input.channels": 1, "input.mean": (0.5,), "input.std": (0.01,), "input.depth": "float32",
        "input.range": "200-400", "input.decode": "scaled", "model.name": "simple-cnn",
    }  # fmt: skip
    tellapart.import_weights(tmp_path / "weights.pth", classes=("a", "b"), out=tmp_path / "model", **given)
    contract = read_card(tmp_path / "model").preprocessing
    assert (contract.depth, contract.range, contract.decode) == ("float32", (200.0, 400.0), "scaled")
    kelvin = 300 + np.random.default_rng(0).random((16, 16))
    assert not tellapart.predict(tmp_path / "model", kelvin)[0].error
    with pytest.raises(SpecError, match=r"input\.range is max"):
        tellapart.import_weights(
            tmp_path / "weights.pth",
            classes=("a", "b"),
            out=tmp_path / "other",
            **{**given, "input.range": "max"},
        )
