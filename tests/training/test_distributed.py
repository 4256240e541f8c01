"""Two gloo processes against one with the same global batch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tellapart
from tellapart import artifact
from tellapart.training import checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


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
        "--training.optimizer", "sgd", "--training.lr", "0.002", "--augment.preset", "cifar",
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


_COUNTED = ("val/", "train/epoch", "train/loss", "train/accuracy")


def _figures(run: Path) -> dict[tuple[str, str], float]:
    """Every figure of training and of validation, by name and step: those of all processes together."""
    lines = (run / "metrics.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    return {(n, s): float(v) for n, v, s in rows if n.startswith(_COUNTED)}


# ------------------------------------------------------------------------------------ cut off, and going on


def _command(data: Path, run: Path, *more: str) -> list[str]:
    # 3 x 43 training images in batches of 9: 15 steps an epoch, the last with 3 images for two processes.
    return [
        *TORCHRUN, "-m", "tellapart", "train", str(data), "--run.dir", str(run), "--model.name", "simple-cnn",
        "--model.batch-norm", "--model.dropout", "0.2", "--training.ema", "0.9", "--training.epochs", "8",
        "--training.batch-size", "9", "--training.lr", "0.002", "--training.schedule", "plateau",
        "--training.plateau-patience", "0", "--augment.preset", "cifar", "--training.device", "cpu",
        "--run.no-tensorboard", "--run.no-report", "--run.log-every", "1", *more,
    ]  # fmt: skip


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=errors, stderr=errors, text=True)


def _last_step(run: Path) -> int:
    try:
        last = (run / "metrics.csv").read_text().rpartition("\n")[0].rpartition(",")[2]
    except OSError:
        return -1
    return int(last) if last.isdecimal() else -1


def _wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    give_up = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < give_up:
        if _last_step(run) >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"the processes never came to step {step}")


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdecimal():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return found


def _kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for torchrun and its two processes, at the same moment."""
    workers = _children(process.pid)
    for pid in [process.pid, *workers]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert len(workers) == 2


def _untimed(run: Path) -> list[str]:
    """The rows of metrics.csv but for those that measure time."""
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    kept = [row for row in rows if not row.startswith(("train/images-per-second,", "seconds,"))]
    assert len({(row.split(",")[0], row.split(",")[2]) for row in kept}) == len(kept)
    return kept


def _faint_folder(root: Path) -> Path:
    """Noise with a faint tint of the class: nothing that a network could be sure of."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 43), ("val", 9)):  # 27 for validation: one process has one more
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.normal(128, 60, (20, 20, 3))
                image[..., label] += 12
                Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, and a run of two processes over it that ended by itself."""
    root = tmp_path_factory.mktemp("uncut")
    data = _faint_folder(root / "data")
    _run(_command(data, root / "run"), root)
    return data, root / "run"


@pytest.mark.slow
def test_a_network_with_batch_norm_is_measured_as_it_is_saved(uncut: tuple[Path, Path]) -> None:
    """Each process has seen other images, yet both measure the network that is written, to the last image."""
    _, run = uncut
    rows = _figures(run)
    accuracies = {int(step): value for (name, step), value in rows.items() if name == "val/accuracy"}
    assert sorted(accuracies) == [15 * epoch for epoch in range(1, 9)]
    assert all(abs(value * 27 - round(value * 27)) < 1e-9 for value in accuracies.values())
    best = 15 * artifact.read_card(run).scores["epoch"]
    evaluation = tellapart.evaluate(run, split="val", quiet=True)
    assert evaluation.n == 27
    assert evaluation.accuracy == pytest.approx(accuracies[best], abs=1e-9)
    assert evaluation.loss == pytest.approx(rows["val/loss", str(best)], abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_two_processes_stop_and_die_and_end_with_the_same_bytes(
    uncut: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uncut
    run = tmp_path / "run"
    process = _start(_command(data, run), tmp_path)
    _wait_for_step(process, run, 24)
    process.send_signal(signal.SIGINT)  # torchrun hands it to its processes
    assert process.wait(timeout=60) != 0
    said = " ".join((tmp_path / "errors.txt").read_text().split())
    content = checkpoint.load_newest(run / "checkpoint")
    stopped = content["progress"]["step"]
    assert 24 <= stopped < 15 * 8
    assert f"Stopped after step {stopped}. To go on: tellapart resume {run}" in said

    # Killed in the middle of an epoch, the run goes back to the epoch's beginning.
    resume = [*TORCHRUN, "-m", "tellapart", "resume", str(run)]
    process = _start(resume, tmp_path)
    _wait_for_step(process, run, min(stopped + 22, 15 * 8 - 2))
    _kill_all(process)
    assert _last_step(run) < 15 * 8

    _run(resume, tmp_path)
    ours, theirs = (safetensors.torch.load_file(part / "model.safetensors") for part in (run, whole))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert _untimed(run) == _untimed(whole)


# ------------------------------------------------------------------------------------ stages


@pytest.mark.slow
def test_two_processes_thaw_the_same_blocks_as_one(
    tmp_path: Path, make_folder: Callable[..., Path], saved_weights: Callable[..., Path]
) -> None:
    data = make_folder(tmp_path / "data", count=7, splits=("train", "val"), size=8)  # 21 images: 4, 4, …, 1
    flags = [
        "train", str(data), "--model.name", "simple-cnn", "--model.weights", str(saved_weights()),
        "--model.finetune", "staged", "--model.unfreeze", "1", "3", "--training.epochs", "5",
        "--training.batch-size", "4", "--training.optimizer", "sgd", "--training.lr", "0.002",
        "--training.accumulate", "2", "--model.layer-decay", "0.8", "--input.size", "8",
        "--augment.preset", "light", "--run.no-tensorboard", "--run.no-report", "--training.device", "cpu",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    _run([sys.executable, "-m", "tellapart", *flags, "--run.dir", str(one)], tmp_path)
    _run([*TORCHRUN, "-m", "tellapart", *flags, "--run.dir", str(two)], tmp_path)
    start = torch.load(saved_weights(), weights_only=True)
    ours, theirs = (checkpoint.load_newest(part / "checkpoint")["model"] for part in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)
        if name.startswith("block1."):
            assert torch.equal(ours[name], start[name])  # never reached
    assert not torch.equal(ours["block2.conv.weight"], start["block2.conv.weight"])
    assert not torch.equal(ours["hidden.weight"], start["hidden.weight"])
    figures = [_figures(part) for part in (two, one)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)
