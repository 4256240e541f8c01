"""Signals of batch systems and terminals save and stop like SIGTERM; exit codes are 128 + n; closed outputs do no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tellapart.errors import Stopped
from tellapart.training import checkpoint
from tellapart.training.interrupt import Interrupt, stop, stop_on_signals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
SOFT = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_asks_and_is_known(number: int) -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        assert interrupt.asked
        assert interrupt.number == number


@pytest.mark.parametrize("number", SOFT)
def test_soft_signals_may_come_often_and_before_sigterm(number: int) -> None:
    with Interrupt() as interrupt:
        for _ in range(3):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # the batch system's next word: there is still time to save
        assert interrupt.number == number
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM


@pytest.mark.parametrize("number", SOFT)
def test_a_handler_of_somebody_elses_and_nohup_stay(number: int) -> None:
    before = {one: signal.getsignal(one) for one in ALL}
    signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), number)
            assert not interrupt.asked
        stop_on_signals()
        assert signal.getsignal(number) is signal.SIG_IGN
        seen: list[int] = []
        signal.signal(number, lambda n, frame: seen.append(n))
        with Interrupt() as interrupt:
            os.kill(os.getpid(), number)
            assert (interrupt.asked, seen) == (False, [number])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_before_and_after_the_loop_signals_end_the_program_in_order() -> None:
    before = {number: signal.getsignal(number) for number in ALL}
    try:
        stop_on_signals()
        for number in ALL[1:]:
            assert signal.getsignal(number) is stop
            with pytest.raises(Stopped) as caught:
                os.kill(os.getpid(), number)
            assert caught.value.number == number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, *SOFT])
def test_a_stopped_run_is_resumed_and_its_code_says_the_signal(
    number: int, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data, run = make_folder(tmp_path / "data", count=20, splits=("train", "val")), tmp_path / "run"
    command = [
        sys.executable, "-m", "tellapart", "train", str(data), "--run.dir", str(run), "--model.name", "simple-cnn",
        "--training.epochs", "400", "--training.batch-size", "4", "--run.no-tensorboard", "--run.no-report",
        "--training.device", "cpu",
    ]  # fmt: skip
    errors = tmp_path / "errors"
    with open(errors, "w") as stream:
        process = subprocess.Popen(command, stderr=stream)
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").exists() or (run / "metrics.csv").read_text().count("\n") < 10:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    refused = subprocess.run([*command[:3], "resume", str(run)], capture_output=True, text=True, check=False)
    assert (refused.returncode, "Another process is training in" in refused.stderr) == (2, True), (
        refused.stderr
    )
    process.send_signal(number)
    assert process.wait(60) == 128 + number, errors.read_text()
    assert "To go on: tellapart resume" in errors.read_text()
    assert checkpoint.load_newest(run / "checkpoint") is not None


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full"])
def test_closed_and_full_outputs_are_no_traceback(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m tellapart models simple 2>"{tmp_path}/errors" {closed}'],
        capture_output=True,
        text=True,
        check=False,
    )
    said = (tmp_path / "errors").read_text() + done.stderr
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if closed == ">/dev/full":
        assert done.returncode == 1
        assert "error: Standard output cannot be written: No space left on device." in said
    else:
        assert done.returncode == 0
