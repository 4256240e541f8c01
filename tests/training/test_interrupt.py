"""Ctrl-C and SIGTERM: the first ends the step, saves and says how to go on; the second ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tellapart.training import checkpoint
from tellapart.training.interrupt import Interrupt

SIGNALS = [signal.SIGINT, signal.SIGTERM]


# ------------------------------------------------------------------------------------ in this process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_ends(number: signal.Signals) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_one_signal_after_the_other_counts_too() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_of_before_come_back(fails: bool) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with Interrupt():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_signals_are_left_alone() -> None:
    """Python hands signals to the main thread only; training in another one must still work."""
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.asked)
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, *before]


# ------------------------------------------------------------------------------------ real processes


def _command(data: Path, run: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tellapart", "train", str(data), "--run.dir", str(run), "--model.name", "simple-cnn",
        "--model.dropout", "0.2", "--model.batch-norm", "--augment.preset", "cifar", "--training.device", "cpu",
        "--run.no-tensorboard", "--run.no-report", "--run.log-every", "1", *more,
    ]  # fmt: skip


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Return when metrics.csv has a row of that step or a later one."""
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up:
        try:
            last = (run / "metrics.csv").read_text().rpartition("\n")[0].rpartition(",")[2]
        except OSError:
            last = ""
        if last.isdecimal() and int(last) >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"the process never came to step {step}")


@pytest.fixture(scope="module")
def uncut(
    tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]
) -> tuple[Path, Path, list[str]]:
    """A data set and a run over it that nobody interrupted, with its flags: 3 epochs of 180 steps."""
    root = tmp_path_factory.mktemp("uncut")
    data = make_folder(root / "data", count=60, splits=("train", "val"), size=16)
    flags = ["--training.epochs", "3", "--training.batch-size", "1"]
    process = _start(_command(data, root / "run", *flags), root)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return data, root / "run", flags


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_run_says_how_to_go_on_and_ends_the_same(
    number: signal.Signals, uncut: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    data, whole, flags = uncut
    run = tmp_path / "a run"
    process = _start(_command(data, run, *flags), tmp_path)
    _wait_for_step(process, run, 220)  # in the second epoch
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output == ""
    assert "Traceback" not in errors
    content = checkpoint.load_newest(run / "checkpoint")
    step = content["progress"]["step"]
    assert 220 <= step < 360
    assert content["progress"]["step_in_epoch"] == step - 180
    assert f"Stopped after step {step}." in errors
    assert f"tellapart resume {run}" in " ".join(errors.split())
    again = _start([sys.executable, "-m", "tellapart", "resume", str(run)], tmp_path)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "Accuracy" in output
    ours, theirs = (safetensors.torch.load_file(part / "model.safetensors") for part in (run, whole))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Two signals at the same time: the run does not wait to save. What was saved before stays good."""
    data = make_folder(tmp_path / "data", count=100, splits=("train",), size=16)
    run = tmp_path / "run"
    flags = ["--training.epochs", "500", "--training.batch-size", "300"]
    process = _start(_command(data, run, *flags, "--data.val-fraction", "0"), tmp_path)
    _wait_for_step(process, run, 2)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # the same signal twice might arrive as one
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert time.monotonic() - started < 20
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert "To go on" not in errors
    assert checkpoint.load_newest(run / "checkpoint")["progress"]["step"] >= 1
