"""What a run warned of: kept in its folder, on the report's first screen, in the model's file and in evaluate."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from tellapart import artifact, printing, runs, workflow
from tellapart.contract.answers import Answers
from tellapart.evaluation import metrics
from tellapart.tracking import Console


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose test images are training images too."""
    folder = tmp_path_factory.mktemp("leak")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("ant", "bee"):
            (folder / "data" / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = np.random.default_rng(k) if split == "test" or split == "train" else rng
                content = pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8) // (1 + (name == "bee"))
                Image.fromarray(content).save(folder / "data" / split / name / f"{k}.png")
    changes = {"run.dir": str(folder / "run"), "training.epochs": 1, "data.cache_dir": str(folder / "cache")}
    changes |= {"run.tensorboard": False, "model.name": "simple-cnn"}
    workflow.train(folder / "data", quiet=True, **changes)
    return folder


def test_a_leak_stands_everywhere(leaking: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = runs.read_warnings(leaking / "run")
    (leak,) = [entry for entry in kept if entry["kind"] == "leak-test"]
    assert leak["severity"] == "warning"
    assert leak["text"].startswith("12 of 12 test images are also in train")
    page = (leaking / "run" / "report.html").read_text(encoding="utf-8")
    first = page[: page.index("<h2>")]
    assert "12 of 12 test images are also in train" in first
    assert "were not used in training" not in page
    assert leak["text"] in artifact.read_card(leaking / "run").warnings
    workflow.evaluate(leaking / "run", leaking / "data", cache_dir=str(leaking / "cache"))
    assert f"warning: of training: {leak['text']}" in capfd.readouterr().err


def test_the_end_of_training_says_no_more_than_is_true(leaking: Path) -> None:
    scores = artifact.read_card(leaking / "run").scores["test"]
    result = workflow.Result(leaking / "run", leaking / "run" / artifact.FILE_NAME, "test", scores)
    text = printing.summary(result)
    assert "some of these images are also in train" in text
    assert "played no part" not in text


@pytest.mark.parametrize(
    ("kinds", "split", "words"),
    [
        ([], "test", "played no part in choosing"),
        (["leak-val"], "test", "played no part in choosing"),
        (["leak-test", "shared-test"], "test", "also in train"),
        (["shared-test"], "test", "which chose the epoch"),
        ([], "val", "there is no test split"),
        (["leak-val"], "val", "also in train"),
    ],
)
def test_what_a_figure_is_worth(kinds: list[str], split: str, words: str, tmp_path: Path) -> None:
    runs.append_warnings(tmp_path, [{"severity": "warning", "kind": kind, "text": kind} for kind in kinds])
    figures = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "n": 9}
    text = printing.summary(workflow.Result(tmp_path, tmp_path / "m", split, figures))
    assert words in text
    assert text.count("played no part") == (words.startswith("played"))


def test_test_images_that_chose_the_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They trained nothing, and yet are not new to the run."""
    for split, seeds in (("train", (0, 1)), ("val", (2, 3)), ("test", (2, 5))):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in seeds:
                content = np.random.default_rng(k).integers(0, 200, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(content + (name == "bee")).save(tmp_path / "data" / split / name / f"{k}.png")
    changes = {"run.dir": str(tmp_path / "run"), "training.epochs": 1, "data.cache_dir": str(tmp_path / "c")}
    result = workflow.train(
        tmp_path / "data", quiet=True, **changes, **{"run.tensorboard": False, "model.name": "simple-cnn"}
    )
    assert "warning: 2 of 4 test images are also in validation, which chooses" in capfd.readouterr().err
    assert "which chose the epoch" in printing.summary(result)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "helped to choose the epoch" in page
    assert "were not used in training" not in page


def test_warnings_stand_in_the_page_of_a_run_without_figures(leaking: Path, tmp_path: Path) -> None:
    for name in ("spec.yaml", runs.WARNINGS_FILE):
        (tmp_path / name).write_bytes((leaking / "run" / name).read_bytes())
    page = workflow.report(tmp_path).read_text(encoding="utf-8")
    assert "Not evaluated yet" in page
    assert "12 of 12 test images are also in train" in page


def test_an_exported_file_tells_them_too(leaking: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    workflow.export(leaking / "run", ["onnx"], leaking / "out", images=8, cache_dir=str(leaking / "cache"))
    capfd.readouterr()
    (file,) = (leaking / "out").glob("*.onnx")
    workflow.evaluate(file, leaking / "data", cache_dir=str(leaking / "cache"))
    assert "warning: of training: 12 of 12 test images are also in train" in capfd.readouterr().err


def test_warnings_are_written_once_also_after_a_cut(tmp_path: Path) -> None:
    entry = {"severity": "warning", "kind": "", "text": "a \udcff\n"}
    runs.append_warnings(tmp_path, [entry, entry])
    with open(tmp_path / runs.WARNINGS_FILE, "a") as stream:
        stream.write('{"severity": "warn')
    console = Console(io.StringIO())
    console.warn("before")
    console.keep_in(tmp_path)
    console.warn("after")
    console.warn("before")
    console.note("of the data")
    found = [(e["severity"], e["text"]) for e in runs.read_warnings(tmp_path)]
    assert found == [
        ("warning", "a \udcff\n"),
        ("warning", "before"),
        ("warning", "after"),
        ("note", "of the data"),
    ]


def test_all_probabilities_and_the_matrix_in_the_terminal(leaking: Path) -> None:
    lines = (leaking / "run/evaluation/test/predictions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split(",")[-2:] == ["p:ant", "p:bee"]
    assert sum(float(value) for value in lines[1].split(",")[-2:]) == pytest.approx(1, abs=1e-5)
    evaluation = metrics.read_evaluation(leaking / "run/evaluation/test")
    text = printing.evaluation_text(evaluation)
    ant = evaluation.confusion[0]
    assert f"ant    {ant[0]:>4}{ant[1]:>4}" in text


@pytest.mark.parametrize("most", [9, 4_000, 40_000])
@pytest.mark.parametrize("length", [1, 4, 8, 30])
def test_the_matrix_of_twelve_classes_fits_a_terminal(most: int, length: int) -> None:
    """Also with names whose letters take two columns."""
    names = tuple(chr(0x4E00 + k) + "花" * (length - 1) for k in range(12))
    evaluation = metrics.evaluate(Answers(np.eye(12), names), np.arange(12), "test")
    evaluation = dataclasses.replace(evaluation, confusion=np.full((12, 12), most))
    lines = printing.evaluation_text(evaluation).splitlines()
    matrix = lines[next(k for k, line in enumerate(lines) if line.startswith("confusion")) + 1 :]
    assert len(matrix) == 13
    assert {cell_len(line) for line in matrix} == {cell_len(matrix[0])}
    assert max(map(cell_len, lines)) <= 80
    assert all(row.split()[-1] == str(most) for row in matrix[1:])


def test_no_matrix_for_more_classes_than_fit() -> None:
    evaluation = metrics.evaluate(Answers(np.eye(13), tuple("abcdefghijklm")), np.arange(13), "test")
    assert "confusion" not in printing.evaluation_text(evaluation)
