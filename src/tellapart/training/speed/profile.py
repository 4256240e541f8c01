"""Where a step's time goes: a table, and a trace that opens in Perfetto.

For a few dozen steps after a warm-up, the sections of a step (`training.sections`) are timed; for a few more, torch's
profiler records every operation. Before and afterwards there is no listener, so other steps cost the same as ever, and
every step computes the same as without a profile. Knows nothing of what the sections compute.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tellapart import files, numerals
from tellapart.training.callbacks import Callback

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer
    from tellapart.training.step import Outcome

WARM_UP, TIMED, TRACED = 10, 30, 8  # steps
_TOP = 10
_PARTS = {
    "data": "data wait",
    "copy": "copy to the device",
    "augment": "augmentation",
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "replayed": "forward to backward",
    "optimizer": "optimizer",
    "logging": "logging",
    "checkpoint": "checkpoint",
}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """While entered, suppress the profiler's warning that it discards earlier events, which is intended here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class Profile(Callback):
    """Times some steps of a trainer; writes ``steps.txt`` and ``trace.json.gz`` into ``folder``, reports by ``say``."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._torch: torch.profiler.profile | None = None
        self._done = True

    # Hooks

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin: plan the steps to be timed by how many are left."""
        left = trainer.timeline.total - trainer.progress.step
        self._warm_up = min(WARM_UP, left // 5)
        self._traced = min(TRACED, max(1, left // 5))
        self._timed = min(TIMED, max(1, left - self._warm_up - self._traced))
        self._trainer, self._device = trainer, trainer.device
        self._done, self._step = False, 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._this_step: defaultdict[str, float] = defaultdict(float)
        self._whole, self._count, self._started = 0.0, 0, 0.0
        self._stack: list[float] = []
        if not self._warm_up:
            self._listen()

    def after_step(self, outcome: Outcome) -> None:
        """Count the step."""
        if self._done:
            return
        self._step += 1
        first, last = self._warm_up, self._warm_up + self._timed
        if first < self._step <= last:
            self._whole += self._now() - self._started
            self._count += 1
            for part, seconds in self._this_step.items():
                self._seconds[part] += seconds
        if self._step == first:
            self._listen()
        elif self._step >= last and self._torch is None:
            if self._fits():
                self._begin_trace()
        elif self._torch is not None and self._step >= self._trace_ends:
            self._finish(True)

    def on_fit_end(self) -> None:
        """Report the result even if training was shorter than planned."""
        if not self._done:
            self._finish(True)

    def on_exception(self, error: BaseException) -> None:
        """Stop measuring."""
        if not self._done:
            self._finish(False)

    # Times of the sections

    def _listen(self) -> None:
        self._trainer.plan.sections.listener = self._section

    @contextlib.contextmanager
    def _section(self, part: str) -> Iterator[None]:
        """While entered, time counts for ``part``, minus that of the sections inside it."""
        with torch.profiler.record_function(_PARTS[part]):
            started = self._now()
            if part == "data":  # a step begins
                self._this_step.clear()
                self._started = started
            self._stack.append(0.0)
            try:
                yield
            finally:
                took = self._now() - started
                self._note(part, took - self._stack.pop())
                if self._stack:
                    self._stack[-1] += took

    def _note(self, part: str, seconds: float) -> None:
        if part != "checkpoint":
            self._this_step[part] += seconds
        elif self._warm_up < self._step <= self._warm_up + self._timed:
            # a checkpoint is written after the step that it belongs to
            self._seconds[part] += seconds
            self._whole += seconds

    def _now(self) -> float:
        """Return the time, on CUDA and MPS once all queued work is done, which would otherwise count later."""
        if self._torch is None:  # without synchronising, so that the trace shows when things really run
            if self._device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize(self._device)
            elif self._device.type == "mps":
                torch.mps.synchronize()
        return time.perf_counter()

    # The trace

    def _fits(self) -> bool:
        """Return whether the traced steps are within one epoch (or the epochs are too short for that)."""
        steps = self._trainer.plan.steps_per_epoch
        left = steps - self._trainer.progress.step_in_epoch
        last = self._trainer.progress.epoch + 1 >= self._trainer.timeline.epochs
        return left >= self._traced or steps < self._traced or last

    def _begin_trace(self) -> None:
        self._table = self._times()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to the terminal when it starts and stops
        self._torch = torch.profiler.profile(activities=activities)
        with _quietly():
            self._torch.start()
        self._trace_ends = self._step + self._traced

    def _finish(self, tell: bool) -> None:
        """Stop listening; write and report the result (not after an error)."""
        self._done = True
        self._trainer.plan.sections.listener = None
        table = self._times() if self._torch is None else self._table
        profiler, self._torch = self._torch, None
        if profiler is not None:
            with _quietly():
                profiler.stop()
        if not tell or not self._count:
            return
        lines = [*table, *(self._operations(profiler) if profiler else ())]
        self.folder.mkdir(parents=True, exist_ok=True)
        if profiler is not None:
            trace = self.folder / "trace.json.gz"
            with files.replacing(trace) as beside:
                profiler.export_chrome_trace(os.fspath(beside))
            lines += ["", f"Trace, for https://ui.perfetto.dev: {trace}"]
        files.write_text(self.folder / "steps.txt", "\n".join(lines) + "\n")
        self.say("\n".join(lines))

    def _times(self) -> list[str]:
        """Return the table of a step's sections, at most 80 columns wide."""
        if not self._count:
            return []
        training, step = self._trainer.training, self._whole / self._count
        images = training.batch_size
        lines = [
            f"Where a step's time goes: {self._count} steps of {images} images, {training.precision}, on "
            f"{self._device.type}",
            f"{'part of a step':<22}{'ms':>10}{'share':>9}",
        ]
        known = 0.0
        for part, name in _PARTS.items():
            seconds = self._seconds[part] / self._count
            known += seconds
            if part not in ("checkpoint", "replayed") or seconds:
                lines.append(f"{name:<22}{seconds * 1000:>10.2f}{numerals.percent(seconds / step, 1):>9}")
        rest = max(0.0, step - known)
        lines.append(f"{'the rest of the loop':<22}{rest * 1000:>10.2f}{numerals.percent(rest / step, 1):>9}")
        lines.append(f"{'whole step':<22}{step * 1000:>10.2f}{'':>9}   {images / step:,.0f} images/s")
        return lines

    def _operations(self, profiler: torch.profiler.profile) -> list[str]:
        """Return the table of the operations that took longest by themselves."""
        cuda = self._device.type == "cuda"
        own = "self_device_time_total" if cuda else "self_cpu_time_total"
        ranges = {*_PARTS.values()}
        with _quietly():
            events = [event for event in profiler.key_averages() if event.key not in ranges]
        events.sort(key=lambda event: getattr(event, own), reverse=True)
        total = sum(getattr(event, own) for event in events) or 1
        where = "the GPU" if cuda else "the CPU"
        lines = ["", f"{'operation on ' + where:<44}{'ms a step':>10}{'share':>9}{'calls':>8}"]
        for event in events[:_TOP]:
            name = event.key if len(event.key) <= 42 else event.key[:41] + "…"
            spent = getattr(event, own)
            each = spent / 1000 / self._traced
            lines.append(
                f"{name:<44}{each:>10.2f}{numerals.percent(spent / total, 1):>9}{event.count / self._traced:>8.1f}"
            )
        return lines
