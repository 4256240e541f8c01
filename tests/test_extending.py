"""A run that goes on past its end, or with another patience, and what cannot be changed any more."""

from __future__ import annotations

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tellapart
from tellapart import runs, workflow
from tellapart.errors import RunError, SpecError
from tellapart.spec import Spec, flatten
from tellapart.training import task
from tellapart.training.schedule import Schedule
from tellapart.workflow import extending

TINY: dict[str, Any] = {
    "model": {"name": "simple-cnn", "dropout": 0.2},
    "augment": {"preset": "cifar"},
    "run.tensorboard": False,
    "run.report": False,
    "training.batch_size": 8,
    "run.log_every": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), splits=("train", "val"), count=10)


def train(data: Path, run: Path, epochs: int, **changes: Any) -> Path:
    words = {**TINY, "training.epochs": epochs, "run.dir": str(run), **changes}
    return workflow.train(data, quiet=True, **words).run


def same(one: Path, other: Path, name: str = "last.safetensors") -> bool:
    ours, theirs = (safetensors.torch.load_file(run / name) for run in (one, other))
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def rates(run: Path) -> dict[int, float]:
    with open(run / "metrics.csv", newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["name"] == "train/lr"]
    return {int(row["step"]): float(row["value"]) for row in rows}


def test_where_the_rate_is_constant_it_is_the_longer_run(data: Path, tmp_path: Path) -> None:
    """Bit for bit, and in what is logged."""
    whole = train(data, tmp_path / "whole", 4, **{"training.schedule": "constant"})
    short = train(data, tmp_path / "short", 2, **{"training.schedule": "constant"})
    assert not same(short, whole)
    result = tellapart.resume(short, quiet=True, training={"epochs": 4})
    assert not result.interrupted
    assert same(short, whole)
    assert same(short, whole, "model.safetensors")
    assert rates(short) == rates(whole)
    assert runs.read_spec(short / "spec.yaml").training.epochs == 4
    assert runs.read_spec(short / "spec-1.yaml").training.epochs == 2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one-cycle"])
def test_the_tail_is_that_of_a_longer_run(
    schedule: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(data, tmp_path / "run", 2, **{"training.schedule": schedule})
    before = rates(run)
    capfd.readouterr()
    tellapart.resume(run, **{"training.epochs": 5})
    assert f"run of 5 epochs, schedule {schedule}" in capfd.readouterr().err
    after, spec = rates(run), runs.read_spec(run / "spec.yaml").training
    longer = Schedule(spec, 4, 5)
    assert {step: after[step] for step in before} == before
    assert set(after) == set(range(1, 21))
    for step in range(9, 21):
        assert after[step] == pytest.approx(spec.lr * longer.factor(step - 1))
    assert after[9] > 4 * before[8]


def test_cut_off_after_the_old_end_it_continues_exactly(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(data, tmp_path / "first", 2)
    shutil.copytree(first, tmp_path / "second")
    tellapart.resume(first, quiet=True, **{"training.epochs": 4})
    steps, inputs = 0, task.Classification.inputs

    def count(self: Any, *words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return inputs(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(task.Classification, "inputs", count)
        cut = tellapart.resume(tmp_path / "second", quiet=True, **{"training.epochs": 4})
    assert cut.interrupted
    tellapart.resume(tmp_path / "second", quiet=True)
    assert same(first, tmp_path / "second")
    assert rates(first) == rates(tmp_path / "second")


def test_killed_before_its_first_new_checkpoint_it_still_continues(data: Path, tmp_path: Path) -> None:
    """The spec says 4 epochs, the checkpoint that 2 were asked for and are done."""
    run = train(data, tmp_path / "run", 2)
    spec = runs.read_spec(run / "spec.yaml")
    extending.write(run, extending.changed(spec, {"training.epochs": 4}))
    tellapart.resume(run, quiet=True)
    assert max(rates(run)) == 16


def test_a_checkpoint_of_an_earlier_version_can_be_extended(data: Path, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", 2)
    for path in (run / "checkpoint").iterdir():
        content = torch.load(path, weights_only=True)
        del content["progress"]["planned"]
        torch.save(content, path)
    tellapart.resume(run, quiet=True)
    assert max(rates(run)) == 8, "as it is, it is finished"
    tellapart.resume(run, quiet=True, **{"training.epochs": 3})
    assert max(rates(run)) == 12


def test_after_early_stopping_the_patience_counts_anew(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"training.patience": 1, "training.lr": 1e-9, "training.schedule": "constant"}
    run = train(data, tmp_path / "run", 9, **words)
    assert max(rates(run)) == 8, "stopped after the second epoch"
    tellapart.resume(run, quiet=True, **{"training.epochs": 10})
    assert max(rates(run)) == 12, "one more epoch without a better figure"
    capfd.readouterr()
    tellapart.resume(run, **{"training.patience": 0, "training.epochs": 5})
    assert max(rates(run)) == 20
    assert sorted(path.name for path in run.glob("spec*")) == ["spec-1.yaml", "spec-2.yaml", "spec.yaml"]
    with pytest.raises(SpecError, match=r"training\.epochs is 4, and 5 epochs are done already.*at least 6"):
        tellapart.resume(run, quiet=True, **{"training.epochs": 4})
    assert runs.read_spec(run / "spec.yaml").training.epochs == 5


def test_only_what_makes_sense_can_be_changed() -> None:
    spec = Spec()
    for name in flatten(spec):
        if name in extending.MAY_CHANGE:
            extending.refuse(name)
        else:
            with pytest.raises(SpecError, match=f"^{name} cannot be changed when a run is resumed: "):
                extending.refuse(name)
    assert extending.changed(spec, {"training.lr": spec.training.lr}) == spec, "the same value is no change"
    with pytest.raises(SpecError, match=r"training\.lr cannot be changed.*steps so far"):
        extending.changed(spec, {"training": {"epochs": 40, "lr": 0.5}})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--training.lr", "0.1"), "training.lr cannot be changed"),
        (("--data.val-fraction=0.3",), "data.val_fraction cannot be changed"),
        (("--seed", "3"), "everything random follow"),
        (("--run.dir", "elsewhere"), "stays in its folder"),
        (("--speed.no-fused",), "speed.fused cannot be changed"),
        (("--training.epochs", "0"), "at least 1"),
    ],
)
def test_the_command_line_says_what_cannot(
    words: tuple[str, ...], text: str, trained: Any, call: Callable[..., Any]
) -> None:
    before = (trained.run / "spec.yaml").read_bytes()
    answer = call("resume", trained.run, *words)
    assert answer.code == 2
    assert text in answer.err
    assert (trained.run / "spec.yaml").read_bytes() == before


def test_the_command_line_extends(trained: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(trained.run, tmp_path / "run")
    answer = call("resume", "run", "--training.epochs", 3, "--run.report", "False")
    assert answer.code == 0
    assert "Continues to epoch 3 (before: 2; 2 are done)" in answer.err
    spec = runs.read_spec(tmp_path / "run" / "spec.yaml")
    assert (spec.training.epochs, spec.run.report) == (3, False)


def test_several_runs_cannot_be_changed(trained: Any, tmp_path: Path) -> None:
    runs.write_spec(Spec(), tmp_path / "spec.yaml")
    runs.write_json(tmp_path / "folds.json", {"count": 2})
    with pytest.raises(RunError, match="several runs"):
        tellapart.resume(tmp_path, **{"training.epochs": 3})
