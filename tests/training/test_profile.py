"""The profile: it changes nothing, adds up, and takes itself away."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.training.callbacks import Callbacks
from tellapart.training.speed import profile as profiling
from tellapart.training.speed.profile import Profile


def _profiled(bench: Any, folder: Path) -> list[str]:
    """Run the trainer with a profile; return what it told."""
    said: list[str] = []
    trainer = bench.trainer
    members = [*trainer.callbacks.members.values(), Profile(folder, said.append)]
    trainer.callbacks = Callbacks(members)
    trainer.run()
    return said


def _rows(text: str) -> dict[str, tuple[float, float]]:
    """The table's parts: milliseconds and share."""
    rows = {}
    for line in text.splitlines():
        words = line.replace(" %", "%").split()
        if len(words) > 2 and words[-1].endswith("%") and not line.startswith("aten"):
            rows[" ".join(words[:-2])] = (float(words[-2]), float(words[-1].rstrip("%")) / 100)
    return rows


def _check_trace(events: list[dict[str, Any]]) -> None:
    """What the Trace Event Format asks for, and Perfetto of it: whole slices that nest, named threads, paired arrows."""
    slices = [event for event in events if event["ph"] == "X" and isinstance(event["tid"], int)]
    assert {event["ph"] for event in events} <= {"X", "M", "i", "s", "f"}
    for event in slices:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert event["ts"] > 0
        assert event["dur"] >= 0
    named = {
        (e["pid"], e["tid"])
        for e in events
        if e["ph"] == "M" and e["name"] == "thread_name" and e["args"]["name"]
    }
    threads = {(event["pid"], event["tid"]) for event in slices}
    assert threads <= named
    assert {e["pid"] for e in slices} <= {
        e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name" and e["args"]["name"]
    }
    for thread in threads:
        ends: list[float] = []
        mine = [event for event in slices if (event["pid"], event["tid"]) == thread]
        for event in sorted(mine, key=lambda e: (e["ts"], -e["dur"])):
            ends = [end for end in ends if end > event["ts"]]
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 1e-2, event  # microseconds
            ends.append(event["ts"] + event["dur"])
    begun, ended = ({e["id"] for e in events if e["ph"] == phase} for phase in ("s", "f"))
    assert begun == ended


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_profiled_run_is_bit_for_bit_the_same(
    accumulate: int, build: Any, pictures: Any, tmp_path: Path
) -> None:
    changes = {
        "training.epochs": 3,
        "training.accumulate": accumulate,
        "augment.preset": "cifar",
        "model.dropout": 0.2,
    }
    plain = build(pictures(val=(3, 3, 3)), **changes)
    plain.trainer.run()
    ours = build(pictures(val=(3, 3, 3)), **changes)
    said = _profiled(ours, tmp_path / "profile")
    assert len(said) == 1
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name
    assert ours.recorder.column("train/loss") == plain.recorder.column("train/loss")
    assert ours.recorder.epochs[-1][1]["val/accuracy"] == plain.recorder.epochs[-1][1]["val/accuracy"]


def test_table_and_trace(build: Any, pictures: Any, tmp_path: Path) -> None:
    bench = build(pictures(), **{"training.epochs": 4, "augment.preset": "cifar"})  # 32 steps
    (said,) = _profiled(bench, tmp_path / "profile")
    assert (tmp_path / "profile" / "steps.txt").read_text() == said + "\n"
    assert "20 steps of 8 images, fp32, on cpu" in said  # 32 less 6 of warm-up and 6 for the trace
    rows = _rows(said)
    parts = ("data wait", "augmentation", "forward", "loss", "backward", "optimizer", "logging")
    assert all(rows[part][0] >= 0 for part in parts)
    assert rows["forward"][0] > 0
    assert rows["backward"][0] > 0
    assert sum(share for _, share in rows.values()) == pytest.approx(1, abs=0.01)
    assert "aten::" in said
    assert max(len(line) for line in said.splitlines() if "ui.perfetto.dev" not in line) <= 80
    assert [path.name for path in sorted((tmp_path / "profile").iterdir())] == ["steps.txt", "trace.json.gz"]
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as stream:
        events = json.load(stream, parse_constant=pytest.fail)["traceEvents"]
    _check_trace(events)
    names = {event.get("name") for event in events}
    assert {"forward", "loss", "backward", "optimizer", "augmentation", "data wait"} <= names
    backwards = [event for event in events if event.get("name") == "backward"]
    assert len(backwards) == 6


def test_time_is_charged_where_it_is_spent(
    build: Any, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = build(pictures(), **{"training.epochs": 2})
    loss = bench.plan.task.criterion

    def slow(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return loss(logits, targets)

    bench.plan.task.criterion = slow
    validate = monkeypatch.setattr(bench.trainer, "_validate", lambda: time.sleep(0.5) or {})
    assert validate is None
    rows = _rows(_profiled(bench, tmp_path / "profile")[0])
    assert 100 <= rows["loss"][0] < 160
    assert rows["forward"][0] < 100  # the loss inside of it is not counted twice
    assert "checkpoint" not in rows  # between epochs is no part of a step
    assert bench.plan.task.criterion is slow


def test_nothing_is_left_behind(build: Any, pictures: Any, tmp_path: Path) -> None:
    bench = build(pictures(), **{"training.epochs": 12})  # 96 steps, of which 48 are of interest
    trainer, entered = bench.trainer, []
    _profiled(bench, tmp_path / "profile")
    assert trainer.plan.sections.listener is None
    before = {id(owner): dict(vars(owner)) for owner in (trainer.stepper, trainer.plan.task)}
    trainer.plan.sections.listener = lambda name: entered.append(name) or contextlib.nullcontext()
    trainer.stepper.take(bench.prepared.train.batch(np.arange(4)), 0, False)
    assert entered == ["augment", "forward", "loss", "backward", "optimizer"]
    for owner in (trainer.stepper, trainer.plan.task):
        assert vars(owner).keys() == before[id(owner)].keys()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_a_few_steps_is_profiled_too(steps: int, build: Any, pictures: Any, tmp_path: Path) -> None:
    bench = build(pictures(train=(4 * steps, 4 * steps)), **{"training.epochs": 1})
    (said,) = _profiled(bench, tmp_path / "profile")
    assert "whole step" in said
    assert (tmp_path / "profile" / "steps.txt").exists()


def test_an_error_is_not_hidden(build: Any, pictures: Any, tmp_path: Path) -> None:
    bench = build(pictures(), **{"training.epochs": 4})

    def broken(*_: Any) -> torch.Tensor:
        if bench.trainer.progress.step == 20:
            raise RuntimeError("broken")
        return loss(*_)

    loss = bench.plan.task.criterion
    bench.plan.task.criterion = broken
    with pytest.raises(RuntimeError, match="broken"):
        _profiled(bench, tmp_path / "profile")
    assert not (tmp_path / "profile").exists()
    assert bench.plan.task.criterion is broken


def test_steps_are_those_that_were_asked_for(build: Any, pictures: Any, tmp_path: Path) -> None:
    bench = build(pictures(), **{"training.epochs": 12})
    (said,) = _profiled(bench, tmp_path / "profile")
    assert f"{profiling.TIMED} steps of 8 images" in said
