"""The examples run, and are short."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tellapart

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["own_loop", "exact_resume", "parity", "predict_folder"])
def test_they_are_short(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"python examples/{name}.py" in text


def test_own_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_loop").main("digits", 2, cache_dir=str(tmp_path)) > 0.85
    assert capsys.readouterr().out.count("accuracy") == 2


def test_exact_resume(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("exact_resume")
    assert module.main()
    losses, checkpoint = module.train(5)
    assert module.train(5, checkpoint)[0] != losses  # it went on, and did not begin anew


def test_parity(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("parity").main()
    assert found["torch.export"].passed
    assert not found["bfloat16"].passed


def test_predict_folder(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", count=16)
    run = tellapart.train(
        data,
        quiet=True,
        **{
            "training.epochs": 1,
            "run.dir": str(tmp_path / "run"),
            "run.tensorboard": False,
            "run.report": False,
        },
        **{"data.cache_dir": str(tmp_path / "cache"), "model.name": "tutorial-net"},
    ).run
    new = tmp_path / "new"
    new.mkdir()
    for number in range(3):
        pixels = np.full((20, 20, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(new / f"{number}.png")
    (new / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    counts = example("predict_folder").main(str(run), str(new), str(tmp_path / "out"), 0.0)
    assert sum(counts.values()) == 3
    assert set(counts) <= set(tellapart.load(run).classes)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["0.png", "1.png", "2.png"]
    unsure = example("predict_folder").main(str(run), str(new), str(tmp_path / "other"), 1.1)
    assert unsure == {"unsure": 3}


def test_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its code cells run one after the other, and what a cell ends with shows itself."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cells = json.loads(Path("notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    shown = []
    for text in code:
        *before, last = text.splitlines() if "\n)" not in text else [*text.rsplit("\n", 1)]
        exec("\n".join(before), names)
        shown.append(eval(last, names))
    result, evaluation, answers = shown[1:]
    assert result.metrics["accuracy"] > 0.8
    for one in (result, evaluation):
        assert "<table" in one._repr_html_()
    assert answers[0][0] == "3"
