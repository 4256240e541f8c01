"""Class names with levels from nested folders to every place where an answer comes out."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, cohen_kappa_score
from starlette.testclient import TestClient

import tellapart
from tellapart import artifact, cli
from tellapart.evaluation.metrics import Evaluation
from tellapart.serve import schemas
from tellapart.serve.app import create
from tellapart.serve.options import Options
from tellapart.workflow import exporting

HUES = {
    "animals/dog": (220, 40, 40),
    "animals/cat": (180, 90, 40),
    "vehicles/car": (40, 40, 220),
    "vehicles/van": (40, 90, 180),
    "plants": (40, 220, 40),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    rng = np.random.default_rng(0)
    for name, hue in HUES.items():
        (folder / "data" / name).mkdir(parents=True)
        for n in range(16):
            pixels = np.clip(np.array(hue) + rng.normal(0, 60, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{n}.png")
    result = tellapart.train(
        str(folder / "data"),
        quiet=True,
        metrics={"kappa": cohen_kappa_score},
        data={"levels": "/", "cache_dir": str(folder / "cache"), "val_fraction": 0.2},
        model={"name": "fast-cnn"},
        augment={"preset": "none"},
        training={"epochs": 2, "batch_size": 16, "threads": 1, "device": "cpu", "lr": 0.003},
        speed={"probe": False},
        run={"dir": str(folder / "run")},
    )
    return result.run


def data_of(run: Path) -> Path:
    return run.parent / "data"


def answer_of(path: Path, model: Path) -> tellapart.Prediction:
    (found,) = tellapart.load(model).predict(str(path))
    return found


def test_the_card_says_what_separates_levels_and_the_scores_of_each(run: Path) -> None:
    card = artifact.read_card(run)
    assert card.levels == "/"
    assert card.classes == tuple(sorted(HUES))
    values = json.loads((run / "evaluation/test/metrics.json").read_text())
    (level,) = card.scores["test"]["levels"]
    assert level["names"] == 3
    assert level["accuracy"] == values["levels"][0]["accuracy"] >= values["accuracy"]
    assert "<dt>kappa</dt>" in (run / "report.html").read_text()


def test_the_figure_of_a_level_is_that_of_summed_probabilities(run: Path) -> None:
    with open(run / "evaluation/test/predictions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    told = []
    for row in rows:
        sums: dict[str, float] = {}
        for name in HUES:
            top = name.partition("/")[0]
            sums[top] = sums.get(top, 0.0) + float(row[f"p:{name}"])
        told.append(max(sums, key=lambda top: sums[top]))
    assert told == [row["predicted-at-1"] for row in rows]
    truth = [row["label"].partition("/")[0] for row in rows]
    values = json.loads((run / "evaluation/test/metrics.json").read_text())
    assert values["levels"][0]["accuracy"] == pytest.approx(accuracy_score(truth, told))


def test_a_prediction_has_the_label_of_each_level(run: Path) -> None:
    model = tellapart.load(run)
    (found,) = model.predict(str(data_of(run) / "animals/dog/3.png"), top=5)
    (level,) = found.levels
    shares = dict(zip(found.labels, found.probabilities, strict=True))
    sums = {
        top: sum(p for name, p in shares.items() if name.startswith(top))
        for top in ("animals", "plants", "v")
    }
    assert level.probability == pytest.approx(max(sums.values()))
    assert level.agrees == found.label.startswith(level.label)
    assert found.to_dict()["levels"] == [dataclasses.asdict(level)]


def test_nested_folders_and_lists_are_measured_by_the_models_levels(run: Path, tmp_path: Path) -> None:
    nested = tellapart.evaluate(run, str(data_of(run)), quiet=True, split="all")
    lines = (f"{data_of(run) / name / f'{n}.png'},{name}" for name in HUES for n in range(16))
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *lines]))
    listed = tellapart.evaluate(run, str(tmp_path / "all.csv"), quiet=True, split="all")
    assert isinstance(nested, Evaluation)
    assert isinstance(listed, Evaluation)
    assert nested.n == listed.n == 80
    assert nested.accuracy == listed.accuracy
    assert [one.accuracy for one in nested.levels] == [one.accuracy for one in listed.levels]
    part = tellapart.evaluate(run, [(str(data_of(run) / "plants/1.png"), "plants")], quiet=True, split="all")
    assert part.n == 1  # a part without any level is a part of the model's classes all the same


def test_evaluate_says_it_in_the_terminal_and_in_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run), str(data_of(run)), "--levels", "/", "--device", "cpu"]) == 0
    assert "level 1, 3 names: accuracy" in capsys.readouterr().out
    assert cli.main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"][0]["n"] == 15


def test_predict_writes_a_table_with_the_levels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(data_of(run) / "plants/1.png")
    assert cli.main(["predict", str(run), image, "--format", "csv", "--device", "cpu"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["label_at_1"] in ("animals", "plants", "vehicles")


def test_the_service_tells_the_same(run: Path) -> None:
    image = data_of(run) / "vehicles/car/2.png"
    found = answer_of(image, run)
    with TestClient(create({"m": str(run)}, Options()), base_url="http://127.0.0.1") as client:
        content = client.post(
            "/v1/predict", content=image.read_bytes(), headers={"content-type": "image/png"}
        ).json()
        (one,) = content["predictions"]
        assert [level["label"] for level in one["levels"]] == [level.label for level in found.levels]
        assert one["levels"][0]["probability"] == pytest.approx(found.levels[0].probability, abs=1e-6)
        document = client.get("/openapi.json").json()
    described = json.dumps(document["paths"]["/v1/predict"])
    assert json.dumps(schemas.PREDICTIONS["properties"]["predictions"]) in described
    assert set(one["levels"][0]) == {"level", "label", "probability", "agrees"}


@pytest.mark.slow
def test_an_exported_file_tells_the_same_without_torch(run: Path, tmp_path: Path) -> None:
    done = exporting.export(run, ["onnx"], tmp_path / "out", images=10)
    assert not done.rejected
    image = data_of(run) / "animals/cat/5.png"
    ours, theirs = answer_of(image, run), answer_of(image, tmp_path / "out" / "model.onnx")
    for one, other in zip(ours.levels, theirs.levels, strict=True):
        assert (one.label, one.agrees) == (other.label, other.agrees)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
