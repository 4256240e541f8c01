"""The two files of weights that a run leaves: the chosen epoch's and the last one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tellapart import artifact, cli, runs, workflow
from tellapart.errors import RunError, SpecError
from tellapart.training import checkpoint
from tellapart.training.choosing import Chooser


@pytest.fixture
def run(tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three epochs of which the first was chosen."""
    judge = Chooser.judge
    monkeypatch.setattr(Chooser, "judge", lambda *given: judge(*given) if given[1].epoch == 0 else False)
    data = make_folder(tmp_path / "data", count=8, splits=("train", "val"), size=12)
    changes: dict[str, Any] = {
        "model": {"name": "simple-cnn"},
        "training": {"epochs": 3, "batch_size": 8, "ema": 0.5},
        "augment": {"preset": "none"},
        "run": {"tensorboard": False, "report": False, "dir": str(tmp_path / "run")},
    }
    return workflow.train(data, quiet=True, **changes).run


def test_the_last_epochs_weights_are_kept_and_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, last = (
        safetensors.torch.load_file(run / name) for name in (artifact.FILE_NAME, artifact.LAST_NAME)
    )
    newest = checkpoint.load_newest(run / runs.CHECKPOINTS)
    assert newest is not None
    assert any(not torch.equal(best[name], last[name]) for name in best)
    for name, average in newest["ema"]["averages"].items():
        assert torch.equal(last[name], average), name
    assert artifact.read_card(run / artifact.FILE_NAME).scores["epoch"] == 1
    assert artifact.read_card(run / artifact.LAST_NAME).scores["epoch"] == 3
    directly = workflow.evaluate(run / artifact.LAST_NAME, run.parent / "data", split="val", quiet=True)
    assert cli.main(["evaluate", str(run), "--epoch", "last", "--split", "val", "--json"]) == 0
    assert f'"loss": {directly.loss}' in capsys.readouterr().out
    assert workflow.evaluate(run, split="val", epoch="last", quiet=True).loss == directly.loss
    assert workflow.evaluate(run, split="val", quiet=True).loss != directly.loss


def test_what_cannot_be_had_is_reported(run: Path) -> None:
    with pytest.raises(SpecError, match="Did you mean 'last'"):
        workflow.evaluate(run, epoch="lsat", quiet=True)
    (run / artifact.LAST_NAME).unlink()
    with pytest.raises(RunError, match=r"has no last\.safetensors"):
        workflow.evaluate(run, epoch="last", quiet=True)
    with pytest.raises(RunError, match="not a run folder"):
        workflow.evaluate(run.parent, epoch="last", quiet=True)
