"""Two gloo processes against one with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch


def _run(words: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    # 3 x 34 training images in batches of 10: 11 steps an epoch, the last with 2 images, 55 steps in all.
    data = make_folder(tmp_path / "data", count=34, splits=("train", "val"), size=12)
    flags = [
        "train", str(data), "--model.name", "simple-cnn", "--training.epochs", "5", "--training.batch-size", "10",
        "--training.optimizer", "sgd", "--training.lr", "0.02", "--augment.preset", "cifar",
        "--training.accumulate", "2", "--run.no-tensorboard", "--run.no-report", "--training.device", "cpu",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    _run([sys.executable, "-m", "tellapart", *flags, "--run.dir", str(one)], tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _run([*torchrun, "-m", "tellapart", *flags, "--run.dir", str(two)], tmp_path)
    ours = torch.load(sorted((two / "checkpoint").glob("*.pt"))[-1], weights_only=True)
    theirs = torch.load(sorted((one / "checkpoint").glob("*.pt"))[-1], weights_only=True)
    assert ours["progress"]["step"] == 55
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=0, atol=1e-5)
    before = safetensors.torch.load_file(one / "model.safetensors")
    assert before.keys() == theirs["model"].keys()
    figures = [_figures(run) for run in (one, two)]
    assert figures[0].keys() == figures[1].keys()
    for key, value in figures[0].items():
        assert abs(value - figures[1][key]) < 1e-4, key


def _figures(run: Path) -> dict[tuple[str, str], float]:
    """Every figure of whole epochs and of validation, by name and step."""
    lines = (run / "metrics.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    return {(n, s): float(v) for n, v, s in rows if n.startswith(("val/", "train/epoch"))}
