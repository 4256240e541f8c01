"""Real processes, killed with SIGKILL at random moments, end with the bytes of the run that was never cut."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tellapart.training import checkpoint

FLAGS = {
    "plain": [
        "--model.name", "simple-cnn", "--model.dropout", "0.2", "--model.batch-norm", "--training.ema", "0.9",
        "--augment.preset", "cifar", "--augment.mixup", "0.2", "--training.schedule", "plateau",
        "--training.patience", "11", "--training.optimizer", "adamw",
    ],
    "staged": [
        "--model.name", "simple-cnn", "--model.weights", "{start}", "--model.finetune", "staged",
        "--model.unfreeze", "1", "3", "--training.optimizer", "sgd", "--training.momentum", "0.9",
        "--training.warmup-epochs", "1", "--augment.preset", "light",
    ],
    "less": [
        "--model.name", "fast-cnn", "--augment.preset", "cifar", "--training.start-size", "12", "--input.size", "16",
        "--training.prune", "0.5", "--training.prune-until", "0.9", "--training.optimizer", "sgd",
        "--training.lr", "0.01",
    ],
}  # fmt: skip


def _train(data: Path, run: Path, flags: list[str], *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tellapart", "train", str(data), "--run.dir", str(run), "--training.epochs", "12",
        "--training.batch-size", "4", "--run.no-tensorboard", "--run.checkpoint-minutes", "0.001",
        "--run.no-report", *flags, *more,
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _finish(command: list[str]) -> None:
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _kill_while_training(command: list[str], run: Path, checkpoints: int, wait: float) -> bool:
    """Start, kill ``wait`` seconds after so many new checkpoints; return whether it was still running."""
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    before = {path.name for path in checkpoint.existing(run / "checkpoint")}
    seen: set[str] = set()
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up and len(seen) < checkpoints:
        seen |= {path.name for path in checkpoint.existing(run / "checkpoint")} - before
        time.sleep(0.002)
    time.sleep(wait)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FLAGS))
def test_killed_runs_end_with_the_same_bytes(
    kind: str, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder(tmp_path / "my data", count=40, splits=("train", "val", "test"), size=12)
    flags = list(FLAGS[kind])
    if kind == "staged":
        start = tmp_path / "start"
        _finish(_train(data, start, ["--model.name", "simple-cnn", "--training.epochs", "1"]))
        flags = [word.format(start=start) for word in flags]
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    _finish(_train(data, uncut, flags))
    chance = random.Random(kind)
    command, kills = _train(data, cut, flags), 0
    for _ in range(3):
        kills += _kill_while_training(command, cut, chance.randint(1, 3), chance.uniform(0, 0.08))
        command = [sys.executable, "-m", "tellapart", "resume", str(cut)]
    assert kills >= 2, f"the run ended before it could be cut off often enough: {kills}"
    _finish(command)
    ours = safetensors.torch.load_file(cut / "model.safetensors")
    theirs = safetensors.torch.load_file(uncut / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert _metrics(cut) == _metrics(uncut)
    assert len(checkpoint.existing(cut / "checkpoint")) <= 2
    assert not list((cut / "checkpoint").glob("*.tmp"))


def _metrics(run: Path) -> list[tuple[str, str, str]]:
    """Rows of metrics.csv but for those that measure time; sorted, so that a duplicate would show."""
    with open(run / "metrics.csv", encoding="utf-8") as stream:
        rows = [(row["name"], row["value"], row["step"]) for row in csv.DictReader(stream)]
    kept = [row for row in rows if row[0] not in ("train/images-per-second", "seconds")]
    assert len({(name, step) for name, _, step in kept}) == len(kept)
    return sorted(kept)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, {"step": 5})
    path = checkpoint.save(tmp_path, 9, {"step": 9})
    path.write_bytes(path.read_bytes()[:-200])
    assert checkpoint.load_newest(tmp_path) == {"step": 5}


def test_only_the_newest_two_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        checkpoint.save(tmp_path, step, {"step": step})
    (tmp_path / "step-000000030.tmp").write_bytes(b"half")
    checkpoint.save(tmp_path, 40, {"step": 40})
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-000000040.pt", "step-000000020.pt"]
    assert not list(tmp_path.glob("*.tmp"))
