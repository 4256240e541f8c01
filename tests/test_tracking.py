from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tellapart import packages
from tellapart.errors import MissingPackageError, RunError
from tellapart.tracking import (
    Console,
    CsvTracker,
    MlflowTracker,
    TensorBoardTracker,
    Trackers,
    confusion_image,
    picture_grid,
    pictures,
    trackers,
)
from tellapart.tracking import console as console_module
from tellapart.tracking.remaining import Ahead, EpochCost, Remaining


def rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def values_at(step):
    return {"train/loss": 1 / step, "train/lr": 0.1 * step, "odd, name": float("nan")}


def test_csv_rows_are_there_at_once(tmp_path):
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.log(3, {"train/loss": 0.1 + 0.2, "val/accuracy": 1})
    assert rows(tmp_path / "metrics.csv") == [
        ["name", "value", "step"],
        ["train/loss", repr(0.1 + 0.2), "3"],
        ["val/accuracy", "1.0", "3"],
    ]
    tracker.image(3, "x", np.zeros((2, 2, 3), np.uint8))
    tracker.close()
    CsvTracker(tmp_path / "metrics.csv").close()
    assert rows(tmp_path / "metrics.csv") == [["name", "value", "step"]]


@given(cut=st.integers(0, 10_000), resume=st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_a_resumed_file_is_that_of_a_run_never_cut_off(tmp_path_factory, cut, resume):
    folder = tmp_path_factory.mktemp("csv")

    def write(path, start, end, resume_step=None):
        tracker = CsvTracker(path, resume_step)
        for step in range(start, end):
            tracker.log(step, values_at(step))
        tracker.close()
        return path.read_bytes()

    whole = write(folder / "whole.csv", 1, 12)
    written = write(folder / "cut.csv", 1, 12)
    # The checkpoint of a step is written after its values, so those are whole; what follows may be cut anywhere.
    kept = b"".join(
        line
        for line in written.splitlines(True)
        if line.startswith(b"name,") or int(line.rsplit(b",", 1)[1]) <= resume
    )
    (folder / "cut.csv").write_bytes(written[: max(len(kept), cut % (len(written) + 1))])
    assert write(folder / "cut.csv", max(1, resume), 12, resume) == whole
    assert not (folder / "cut.csv.tmp").exists()


def test_resume_without_a_file(tmp_path):
    CsvTracker(tmp_path / "metrics.csv", 7).close()
    assert rows(tmp_path / "metrics.csv") == [["name", "value", "step"]]


def curves(folder):
    """Return {tag: {run: [(step, value), …]}} of a folder, as TensorBoard's own reader finds them: a chart for each tag."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    charts = {}
    for run, kinds in found.Runs().items():
        for tag in kinds["scalars"]:
            points = [(event.step, event.value) for event in found.Scalars(run, tag)]
            charts.setdefault(tag, {})[run] = points
    return charts


def test_tensorboard_has_both_splits_in_one_chart_and_no_straight_line(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2):
        tracker.log(step, {"train/loss": step, "train/lr": 0.5})
    tracker.log(2, {"train/epoch-loss": 1.5, "val/loss": 4, "epoch": 1, "best-epoch": 1, "seconds": 7})
    tracker.log(2, {"final/val-accuracy": 0.5, "final/test-accuracy": 0.25})
    expected = {
        "loss": {"train": [(1, 1.0), (2, 2.0)], "validation": [(2, 4.0)]},
        "lr": {"train": [(1, 0.5), (2, 0.5)]},
        "seconds": {"train": [(2, 7.0)]},
        "final-accuracy": {"validation": [(2, 0.5)], "test": [(2, 0.25)]},
    }
    assert curves(tmp_path) == expected, "also while the run goes on, as after a kill"
    tracker.close()
    assert curves(tmp_path) == expected


def test_tensorboard_purges_what_comes_once_more(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardTracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": step, "val/loss": 2 * step, "final/test-accuracy": 1})
    first.close()
    second = TensorBoardTracker(tmp_path, resume_step=2, known={"val/loss"})
    second.log(2, {"val/loss": 4.0})
    second.log(3, {"train/loss": 30})
    second.image(3, "train/samples", np.full((4, 6, 3), 200, np.uint8))
    second.close()
    assert curves(tmp_path) == {
        "loss": {"train": [(1, 1.0), (2, 2.0), (3, 30.0)], "validation": [(1, 2.0), (2, 4.0)]},
        "final-accuracy": {"test": [(1, 1.0), (2, 1.0)]},
    }
    found = EventAccumulator(str(tmp_path / "train")).Reload()
    picture = np.asarray(Image.open(io.BytesIO(found.Images("samples")[0].encoded_image_string)))
    assert picture.shape == (4, 6, 3)
    assert picture.min() == 200


def fake_mlflow(monkeypatch, fail=()):
    calls = []

    def record(name):
        def call(*args, **options):
            calls.append((name, args, options))
            if name in fail:
                raise RuntimeError("server gone")
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id-1"))

        return call

    module = types.ModuleType("mlflow")
    for name in ("start_run", "log_params", "log_metrics", "log_image", "end_run"):
        setattr(module, name, record(name))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(packages, "installed", lambda package: True)
    return calls


def test_mlflow(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    params = {f"field-{k}": "x" * 600 for k in range(130)}
    tracker = MlflowTracker(tmp_path / "id", params=params, run_name="r")
    tracker.log(5, {"train/loss": np.float32(0.5)})
    picture = np.zeros((2, 2, 3), np.uint8)
    tracker.image(5, "val/confusion", picture)
    tracker.close()
    assert [name for name, _, _ in calls] == [
        "start_run",
        "log_params",
        "log_params",
        "log_metrics",
        "log_image",
        "end_run",
    ]
    assert [len(args[0]) for name, args, _ in calls if name == "log_params"] == [100, 30]
    assert calls[1][1][0]["field-0"] == "x" * 500
    assert calls[3][1:] == (({"train/loss": 0.5},), {"step": 5})
    assert calls[4][2] == {"artifact_file": "val/confusion-000005.png"}
    calls.clear()
    MlflowTracker(tmp_path / "id", resume_step=5, params=params)
    assert calls == [("start_run", (), {"run_id": "id-1"})]


NO_CURVES = {"epoch": 2.0, "best-epoch": 1.0, "train/epoch-loss": 0.5, "train/epoch-accuracy": 0.5}


def test_what_makes_no_curve_is_no_metric_of_mlflow(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    tracker = MlflowTracker(tmp_path / "id")
    tracker.log(5, {"val/loss": 0.5, **NO_CURVES})
    tracker.log(6, NO_CURVES)
    assert calls[1:] == [("log_metrics", ({"val/loss": 0.5},), {"step": 5})]


REAL_MLFLOW = """
import sys, mlflow
from tellapart.tracking import MlflowTracker
tracker = MlflowTracker(sys.argv[1])
tracker.log(5, {"val/loss": 0.5, **eval(sys.argv[2])})
tracker.close()
run = mlflow.MlflowClient().get_run(open(sys.argv[1]).read())
print(run.info.status, run.data.metrics)
"""


def test_the_real_mlflow_gets_the_same(tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow-skinny", exc_type=ImportError)
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-c", REAL_MLFLOW, str(tmp_path / "id"), repr(NO_CURVES)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["FINISHED {'val/loss': 0.5}"], done.stderr


def test_mlflow_that_fails_does_not_end_training(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch, fail=("log_metrics",))
    said = []
    tracker = MlflowTracker(tmp_path / "id", warn=said.append)
    for step in range(3):
        tracker.log(step, {"a": 1.0})
    tracker.close()
    assert len(said) == 1
    assert "server gone" in said[0]
    assert [name for name, _, _ in calls] == ["start_run", "log_metrics", "end_run"]
    assert calls[-1][2] == {"status": "FAILED"}


@pytest.mark.parametrize(("make", "extra"), [(TensorBoardTracker, "tensorboard"), (MlflowTracker, "mlflow")])
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, make, extra):
    monkeypatch.setattr(packages, "installed", lambda package: False)
    with pytest.raises(MissingPackageError, match=rf"tellapart\[{extra}\]"):
        make(tmp_path / "x")


class Recorder:
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def log(self, step, values):
        self.calls.append((step, dict(values)))

    def image(self, step, name, pixels):
        self.calls.append((step, name))

    def close(self):
        self.calls.append("close")
        if self.error:
            raise self.error


def test_several_trackers_all_get_everything():
    one, two = Recorder(OSError("disk full")), Recorder()
    both = Trackers([one, two])
    both.log(1, {"a": 2.0})
    both.image(2, "grid", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(OSError, match="disk full"):
        both.close()
    assert one.calls == two.calls == [(1, {"a": 2.0}), (2, "grid"), "close"]


# Pictures

NAMES = [
    "飞机",
    "cat",
    "чат",
    "العربية",
    "😀",
    "\x00\ud800odd",
    "",
    "a name that is far too long for the width of its column",
]


def test_picture_grid_shows_each_image_once():
    images = np.zeros((8, 10, 20, 3), np.uint8)
    images[:] = (np.arange(8) * 25 + 20)[:, None, None, None]
    grid = picture_grid(images, NAMES, columns=4, side=100, title="before 增强前")
    assert grid.dtype == np.uint8
    assert grid.shape[2] == 3
    for k in range(8):
        found = (grid == k * 25 + 20).all(2)
        assert found.sum() >= 100 * 50
    grey = picture_grid(images[:, :, :, :1], NAMES, columns=4, side=100, title="before 增强前")
    assert (grey == grid).all()
    assert picture_grid(images[:0], []).shape[2] == 3
    with pytest.raises(ValueError, match="8 images and 1 labels"):
        picture_grid(images, ["x"])


@pytest.mark.parametrize("count", [1, 8, 30, 90, 500])
def test_confusion_image_is_dark_where_the_share_is(count):
    names = (NAMES * 70)[:count]
    picture = confusion_image(np.eye(count, dtype=np.int64) * 7, names)
    assert picture.dtype == np.uint8
    dark = tuple(pictures.HIGH.astype(int)) if count <= 400 else None
    assert picture.shape[0] == picture.shape[1]
    if dark:
        found = np.argwhere((picture == dark).all(2))
        off = found[:, 0] - found[:, 1]
        assert len(found) > 4 * count
        assert np.abs(off).max() < 48  # only on the diagonal
    empty = confusion_image(np.zeros((count, count), np.int64), names)
    assert empty.min() >= 0
    assert not (empty == tuple(pictures.HIGH.astype(int))).all(2).any()


def test_captions_change_the_picture_and_no_font_is_no_failure(monkeypatch):
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert (picture_grid(image, ["猫"]) != picture_grid(image, ["dog"])).any()
    monkeypatch.setattr(pictures, "_font_files", lambda: ("/nowhere/font.ttf",))
    assert picture_grid(image, ["猫"]).shape == picture_grid(image, ["dog"]).shape
    assert confusion_image(np.eye(2, dtype=np.int64), ["猫", "x"]).ndim == 3


# Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(console_module, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Terminal()


def train(console, clock, epochs=3, steps=40, first=0, every=10):
    console.start(epochs, steps, first)
    for epoch in range(first // steps, epochs):
        for step in range(first % steps + 1 if epoch == first // steps else 1, steps + 1):
            clock.seconds += 0.5
            console.step(epoch, step, 2.0 / (epoch + 1), 0.5, 14402.0, every=every)
        clock.seconds += 4
        values = {
            "train/epoch-loss": 0.5,
            "train/epoch-accuracy": 0.75,
            "val/loss": 0.4,
            "val/accuracy": 0.8,
            "train/lr": 1e-3,
        }
        console.epoch_done(epoch, values, best=epoch == 1)


def test_plain_lines(clock):
    stream = io.StringIO()
    with Console(stream) as console:
        train(console, clock)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 * (4 + 1)
    assert lines[0] == "epoch 1/3 step 10/40  loss 2.000 acc 50.00 %  14,402 img/s  left 0:15, run 0:55"
    assert lines[4] == "epoch 1/3  loss 0.500 acc 75.00 %  val 0.400 acc 80.00 %  lr 1.0e-03  24 s"
    assert lines[9].endswith("  kept")
    assert max(map(len, lines)) <= 80
    assert not re.search(r"[\x1b\r]", stream.getvalue())


def test_time_left_after_a_resume_counts_this_process_only(clock):
    stream = io.StringIO()
    train(Console(stream), clock, epochs=3, steps=40, first=60, every=10)
    first = stream.getvalue().splitlines()[0]
    assert first.startswith("epoch 2/3 step 30/40")
    assert first.endswith("left 0:05, run 0:25")


def test_lines_stay_narrow_whatever_the_numbers(clock):
    stream = io.StringIO()
    console = Console(stream)
    console.start(1000, 123456, 0)
    clock.seconds += 3600
    console.step(998, 100000, 12345678.9, 0.123, 1234567.8, every=1)
    console.step(998, 100001, float("nan"), None, 0.3, every=1)
    console.epoch_done(
        998,
        {
            "train/loss": float("inf"),
            "val/loss": 123456.7,
            "val/accuracy": float("nan"),
            "train/lr": 1e-7,
            "seconds": 360000,
        },
        True,
    )
    console.epoch_done(999, {}, False)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert "nan" in lines[1]
    assert "acc" not in lines[1]


KINDS = {
    "one kind": ([EpochCost()] * 6, [0.1] * 6),
    "features, then images": ([EpochCost("features", 3)] * 2 + [EpochCost("images", 3)] * 4, [0.01] * 2 + [0.7] * 4),
    "deeper": ([EpochCost("images", 1 + 2 * k / 5) for k in range(6)], [0.1 * (1 + 2 * k / 5) for k in range(6)]),
    "slow first step": ([EpochCost()] * 6, [0.1] * 6),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_left_is_not_told_before_it_is_known(kind):
    costs, seconds = KINDS[kind]
    steps, validation = 30, 8 * 0.1
    warm = {0: 60.0}  # the first step compiles, or waits for features
    total = sum(steps * s + validation for s in seconds)
    remaining = Remaining(6, steps, 0.0, 0, Ahead(tuple(costs), 8.0))
    now, spent, told = 0.0, 0.0, []
    for epoch, each in enumerate(seconds):
        for step in range(1, steps + 1):
            now += each + warm.pop(0, 0.0)
            spent += each
            remaining.step(now, epoch, step)
            _, run = remaining.left(now, epoch, step)
            if np.isfinite(run):
                told.append((epoch, run / (total - spent)))
        now += validation
        spent += validation
        remaining.epoch_done(now, epoch)
    assert all(0.6 < ratio < 1.6 for _, ratio in told), told
    assert told[0][0] == (2 if kind == "features, then images" else 0)
    assert len(told) > 100


def test_the_time_left_knows_that_the_last_epoch_is_shorter():
    remaining = Remaining(3, 100, 0.0, 0, Ahead(total=240))
    now = 0.0
    for step in range(1, 51):
        now += 0.5
        remaining.step(now, 0, step)
    assert remaining.left(now, 0, 50) == pytest.approx((25.0, 25 + 50 + 20))
    remaining.plan(2, Ahead(total=160))
    assert remaining.left(now, 0, 50) == pytest.approx((25.0, 25 + 30))
    remaining.plan(1, Ahead(total=60))
    assert remaining.left(now, 0, 50) == pytest.approx((5.0, 5.0))


def test_one_slow_step_does_not_change_the_time_left():
    remaining = Remaining(1, 100, 0.0)
    now = 0.0
    for step in range(1, 41):
        now += 30 if step in (1, 20) else 0.5
        remaining.step(now, 0, step)
    assert remaining.left(now, 0, 40) == (30.0, 30.0)
    assert remaining.left(now + 10, 0, 40) == (20.0, 20.0)


def test_no_lines_inside_an_epoch_when_none_are_asked_for(clock):
    stream = io.StringIO()
    train(Console(stream), clock, every=0)
    assert len(stream.getvalue().splitlines()) == 3


def test_quiet_says_warnings_only(clock):
    stream = io.StringIO()
    with Console(stream, quiet=True) as console:
        console.message("hello")
        train(console, clock)
        with console.busy("decoding", 10) as busy:
            clock.seconds += 60
            busy.advance(10)
        console.warn("memory")
    assert stream.getvalue() == "warning: memory\n"


def test_bars_on_a_terminal(terminal, clock):
    with Console(terminal) as console:
        console.message("[bold]not markup[/bold]")
        train(console, clock)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "[bold]not markup[/bold]" in text
    assert "loss 2.000 acc 50.00 %" in text
    assert "kept" in text
    assert max(len(line) for line in re.split(r"[\r\n]", text)) <= 80
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor comes back
    assert "\x1b[32m" in shown


def test_a_terminal_without_colour(terminal, clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with Console(terminal) as console:
        train(console, clock)
        console.warn("x")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.getvalue())


def test_steps_are_drawn_ten_times_a_second_at_most(terminal, clock):
    console = Console(terminal)
    console.start(1, 1000, 0)
    for step in range(1, 1000):
        clock.seconds += 0.001
        console.step(0, step, 1.0, 0.5, 100.0)
    assert terminal.getvalue().count("left 0:0") <= 12
    console.close()
    console.close()


def test_busy_lines_and_bars(terminal, clock):
    plain = io.StringIO()
    for stream in (plain, terminal):
        console = Console(stream)
        with console.busy("decoding images", 4000) as busy:
            for _ in range(40):
                clock.seconds += 1
                busy.advance(100)
        with console.busy("quick", 10) as busy:
            busy.advance(10)
    lines = plain.getvalue().splitlines()
    assert lines[0] == "decoding images  1,000 of 4,000  100/s  left 0:30"
    assert lines[-1] == "decoding images: 4,000 in 40 s"
    assert len(lines) == 5
    assert "2,000 of 4,000" in terminal.getvalue()
    assert "quick" not in terminal.getvalue()


def test_busy_counts_from_many_threads(clock):
    busy = Console(io.StringIO()).busy("reading")
    threads = [threading.Thread(target=lambda: [busy.advance() for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert busy._done == 8000


def test_busy_work_that_fails_gives_the_terminal_back(terminal, clock):
    console = Console(terminal)

    def work():
        with console.busy("decoding", None) as busy:
            clock.seconds += 5
            busy.advance(3)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        work()
    assert terminal.getvalue().endswith("\x1b[?25h") or terminal.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_an_mlflow_store_that_cannot_be_used_is_reported_before_the_run(kind, monkeypatch):
    fake_mlflow(monkeypatch)

    def search_experiments(max_results):
        if kind == "silent":
            time.sleep(1)
        raise OSError("connection refused\nand more")

    client = types.SimpleNamespace(search_experiments=search_experiments)
    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", lambda: client, raising=False)
    monkeypatch.setattr(sys.modules["mlflow"], "get_tracking_uri", lambda: "http://server", raising=False)
    monkeypatch.setattr(trackers, "_MLFLOW_SECONDS", 0.1)
    said = "connection refused" if kind == "refused" else "no answer within 0.1 seconds"
    with pytest.raises(RunError, match=rf"MLflow cannot be used at http://server: {said}\. Start its server"):
        trackers.check_mlflow()


class Kernel:
    """Stands for IPython in a Jupyter kernel: its outputs, standard output among them, as a saved notebook has them."""

    kernel = object()

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.places: dict[str, int] = {}
        self.published = 0

    def get_ipython(self) -> Any:
        return self

    @property
    def display_pub(self) -> Any:
        return self

    def publish(self, data: dict[str, str], transient: dict[str, str], update: bool) -> None:
        self.published += 1
        name = transient["display_id"]
        assert update == (name in self.places)
        if not update:
            self.places[name] = len(self.outputs)
            self.outputs.append("")
        self.outputs[self.places[name]] = data["text/plain"]

    def write(self, text: str) -> None:
        self.outputs += text.splitlines()

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def test_in_a_notebook_one_line_moves_and_ends_as_the_next_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(sys, "stdout", kernel)
    monkeypatch.setattr(console_module, "REDRAW_SECONDS", 0.0)
    with Console() as console:
        assert console.interactive
        console.message("first")
        console.start(2, 50)
        for epoch in range(2):
            for step in range(1, 51):
                console.step(epoch, step, 1 / step, 0.5, 1000.0 * step, every=1)
            console.epoch_done(epoch, {"train/loss": 0.5, "seconds": 1.0}, best=True)
        console.step(2, 1, 1.0, 0.5, 100.0, every=1)
    assert capsys.readouterr().err == ""
    seen = kernel.outputs
    assert len(seen) == 4  # a message, two epochs, and nothing left of what moved
    assert seen[0] == "first"
    assert seen[1].startswith("epoch 1/2")
    assert seen[1].endswith("kept")
    assert " step " not in "".join(seen)
    assert seen[3] == ""
    assert kernel.published > 90


def test_a_stream_that_is_given_and_plain_python_are_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Kernel())
    assert not Console(io.StringIO()).interactive
    monkeypatch.setattr(Kernel, "get_ipython", lambda self: object())  # IPython in a terminal
    assert not console_module.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", object())
    assert not console_module.in_notebook()
