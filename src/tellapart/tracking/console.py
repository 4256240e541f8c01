"""Progress on the console: bars on a terminal, plain lines of at most 80 columns elsewhere.

Everything goes to one stream (standard error), so that standard output stays free for results. A notebook gets a line
that is overwritten until its epoch is done, on standard output, because it displays standard error as an error. Knows
nothing of training beyond epochs, steps and four figures. Colour only on a terminal, and not if NO_COLOR is set.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tellapart import numerals, runs
from tellapart.errors import shown
from tellapart.tracking.remaining import Ahead, Remaining

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0  # seconds between the plain lines of other long work
PLAIN_WIDTH = 80


class Console:
    """Messages and progress on ``stream`` (standard error by default).

    quiet leaves out everything except warnings. Epochs are counted from 0 by the caller and from 1 on the screen.
    `close` restores the terminal; call it after an exception too (or use the console in a ``with``).
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._moving = stream is None and in_notebook()
        self._line = ""  # in a notebook the output whose text is still to be replaced
        self._stream = stream or (sys.stdout if self._moving else sys.stderr)
        self._quiet = quiet
        self.score = "acc"  # short name of the validation figure shown beside the loss
        self._lock = threading.RLock()
        interactive = self._stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._rich = RichConsole(file=self._stream, highlight=False) if interactive else None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._epochs = self._steps_per_epoch = 1
        self._epoch_began = time.monotonic()
        self._remaining = Remaining(1, 1, self._epoch_began)
        self._epoch = -1
        self._drawn_at = 0.0
        self._printed_step = 0
        self._kept: list[dict[str, str]] = []
        self._folder: Path | None = None

    @property
    def interactive(self) -> bool:
        """Whether progress is shown in place, without adding lines."""
        return self._rich is not None or self._moving

    @property
    def quiet(self) -> bool:
        """Whether only warnings are shown."""
        return self._quiet

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def message(self, text: str) -> None:
        """Show a message, above the bar if there is one."""
        if not self._quiet:
            self._say(text)

    def warn(self, text: str, kind: str = "") -> None:
        """Show a warning, even if the console is quiet, and keep it.

        ``kind`` is a word by which readers of the run's warnings.jsonl recognise it.
        """
        self._say(f"warning: {text}", "yellow")
        self._keep("warning", kind, text)

    def note(self, text: str) -> None:
        """Show something about the data that readers of the run must know later too, and keep it."""
        self.message(text)
        self._keep("note", "data", text)

    def another(self) -> Console:
        """Return a console like this one for a further run on the same data; it keeps what this one has kept so far."""
        made = Console(self._stream, self._quiet)
        made._kept = list(self._kept)
        return made

    def keep_in(self, folder: Path) -> None:
        """Write all warnings and notes, those before and those to come, into a run's folder."""
        self._folder = folder
        runs.append_warnings(folder, self._kept)

    def _keep(self, severity: str, kind: str, text: str) -> None:
        self._kept.append({"severity": severity, "kind": kind, "text": text})
        if self._folder is not None:
            runs.append_warnings(self._folder, self._kept[-1:])

    def start(
        self, epochs: int, steps_per_epoch: int, first_step: int = 0, ahead: Ahead | None = None
    ) -> None:
        """Begin ``epochs`` epochs, or continue after the ``first_step`` updates of an earlier process.

        ``ahead``: what the epochs cost; without it all cost the same.
        """
        self._epochs, self._steps_per_epoch = max(1, epochs), max(1, steps_per_epoch)
        self._epoch_began = time.monotonic()
        self._remaining = Remaining(self._epochs, self._steps_per_epoch, self._epoch_began, first_step, ahead)
        self._epoch, self._printed_step = divmod(first_step, self._steps_per_epoch)
        if self._rich is not None and not self._quiet:
            self._say(
                _table_row(("epoch", "loss", "accuracy", "val loss", f"val {self.score}", "lr", "time")),
                "bold",
            )

    def plan(self, epochs: int, ahead: Ahead) -> None:
        """Training will take another number of epochs than it was begun with."""
        self._epochs = max(1, epochs)
        self._remaining.plan(self._epochs, ahead)

    def passed(self, epoch: int, step_in_epoch: int) -> None:
        """Note that a step is done, whether it is shown or not: the remaining time is estimated from these moments."""
        self._remaining.step(time.monotonic(), epoch, step_in_epoch)

    def step(
        self,
        epoch: int,
        step_in_epoch: int,
        loss: float,
        accuracy: float | None,
        images_per_second: float,
        every: int = 0,
    ) -> None:
        """Show where training is, after ``step_in_epoch`` (from 1) steps of ``epoch`` (from 0).

        Cheap: draws at most ten times a second. Without a terminal there is a line each time that another
        ``every`` steps are done; 0 for none. accuracy is in [0, 1], or None if labels are mixed.
        """
        if self._quiet:
            return
        now = time.monotonic()
        self.passed(epoch, step_in_epoch)
        if epoch != self._epoch:
            self._epoch, self._printed_step = epoch, 0
        last = step_in_epoch >= self._steps_per_epoch
        if not self.interactive:
            if every <= 0 or (step_in_epoch // every == self._printed_step // every):
                return
        elif now - self._drawn_at < REDRAW_SECONDS and not last:
            return
        parts = [f"loss {_number(loss)}"]
        if accuracy is not None and math.isfinite(accuracy):
            parts[0] += f" acc {numerals.percent(accuracy)}"
        parts.append(f"{numerals.rate(images_per_second)} img/s")
        parts += _time_left(*self._remaining.left(now, epoch, step_in_epoch))
        head = f"epoch {epoch + 1}/{self._epochs}"
        if self._rich is None:
            self._printed_step = step_in_epoch
            head += f" step {step_in_epoch}/{self._steps_per_epoch}"
            self._tell(_fit([head, *parts], PLAIN_WIDTH), now)
        else:
            self._drawn_at = now
            self._draw(head, step_in_epoch, _fit(parts, max(20, self._rich.width - len(head) - 10)))

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        """Show an epoch's summary, with a mark if its weights are the best so far.

        values: any of train/epoch-loss and train/epoch-accuracy (else train/loss and train/accuracy),
        val/loss, val/accuracy, train/lr and seconds; what is missing is left out (seconds are measured).
        """
        now = time.monotonic()
        seconds = values.get("seconds", now - self._epoch_began)
        self._epoch_began = now
        self._remaining.epoch_done(now, epoch)
        self._epoch, self._printed_step = epoch + 1, 0
        if self._quiet:
            return
        if self._rich is not None:
            self._stop_bar()
        figures = [
            _first(values, _number, "train/epoch-loss", "train/loss"),
            _first(values, numerals.percent, "train/epoch-accuracy", "train/accuracy"),
            _first(values, _number, "val/loss"),
            _first(values, _number, "val/kappa")
            or _first(values, numerals.percent, "val/accuracy", "val/mAP"),
            _first(values, "{:.1e}".format, "train/lr"),
        ]
        head, mark = f"{epoch + 1}/{self._epochs}", "kept" if best else ""
        if self._rich is not None:
            self._say(_table_row((head, *figures, numerals.elapsed(seconds)), mark), "green" if best else "")
            return
        words = ("loss ", "acc ", "val ", f"{self.score} ", "lr ")
        loss, accuracy, val, val_accuracy, lr = (
            word + figure if figure else "" for word, figure in zip(words, figures, strict=True)
        )
        pairs = (f"{loss} {accuracy}".strip(), f"{val} {val_accuracy}".strip(), lr, numerals.elapsed(seconds))
        line = _fit([f"epoch {head}", *(part for part in pairs if part)], PLAIN_WIDTH - 6)
        self._say(line + (f"  {mark}" if mark else ""))

    def busy(self, label: str, total: int | None = None) -> Busy:
        """Return a context manager that shows other long work; call its ``advance(n)`` from any thread.

        Nothing is shown of work that takes less than a second.
        """
        return Busy(self, label, total)

    def close(self) -> None:
        """Remove the bar and restore the terminal. May be called twice."""
        self._stop_bar()

    def _say(self, text: str, style: str = "") -> None:
        text = shown(text)
        with self._lock:
            if self._rich is not None:
                self._rich.print(Text(text, style=style), soft_wrap=True)
            elif self._line:  # it takes the place of the progress, so that a notebook keeps no other text
                self._show_line(text)
                self._line = ""
            else:
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def _tell(self, text: str, now: float) -> None:
        """Add a line of progress; in a notebook overwrite the one before."""
        if not self._moving:
            self._say(text)
            return
        with self._lock:
            self._drawn_at = now
            self._show_line(shown(text, one_line=True))

    def _clear(self) -> None:
        """Remove the line that is updated in place."""
        if self._line:
            self._show_line("")  # and stays, for what is said next

    def _show_line(self, text: str) -> None:
        """Show the line that moves: an output of a notebook whose text is replaced each time."""
        new = not self._line
        self._line = self._line or uuid.uuid4().hex
        self._stream.flush()
        _shell().display_pub.publish(
            {"text/plain": text}, transient={"display_id": self._line}, update=not new
        )

    def _draw(self, label: str, done: int, status: str, total: int | None = None) -> None:
        """Draw the only bar, creating it if needed."""
        assert self._rich is not None
        with self._lock:
            if self._bar is None:
                # Without a refresh thread: nothing runs beside training. Standard output is for results.
                self._bar = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=None),
                    TextColumn("{task.fields[status]}", markup=False),
                    console=self._rich,
                    auto_refresh=False,
                    transient=True,
                    expand=True,
                    redirect_stdout=False,
                )
                self._task = self._bar.add_task(label, total=None, status=status)
                self._bar.start()
            size = self._steps_per_epoch if total is None else (total or None)
            self._bar.update(self._task, description=label, completed=done, total=size, status=status)
            self._bar.refresh()

    def _stop_bar(self) -> None:
        with self._lock:
            self._clear()
            if self._bar is not None:
                self._bar.stop()
                self._bar = None


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this: its outputs can be replaced."""
    return getattr(_shell(), "kernel", None) is not None


def _shell() -> Any:
    """Return IPython's shell where it runs this, else None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


class Busy:
    """Long work outside the epochs, such as decoding images: see `Console.busy`."""

    def __init__(self, console: Console, label: str, total: int | None) -> None:
        self._console = console
        self._label = label
        self._total = total
        self._done = 0
        self._began = self._shown_at = time.monotonic()

    def __enter__(self) -> Busy:
        self._began = self._shown_at = time.monotonic()
        if self._console.interactive:
            self._console._stop_bar()  # one bar at a time; an epoch's comes back with its next step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        console = self._console
        if console._quiet:
            return
        if console.interactive:
            console._stop_bar()
        if kind is None and time.monotonic() - self._began >= PLAIN_SECONDS:
            console._say(
                f"{self._label}: {self._done:,} in {numerals.elapsed(time.monotonic() - self._began)}"
            )

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more are done."""
        console = self._console
        with console._lock:
            self._done += n
            now = time.monotonic()
            pause = REDRAW_SECONDS if console.interactive else PLAIN_SECONDS
            if console._quiet or now - self._began < 1 or now - self._shown_at < pause:
                return
            self._shown_at = now
            rate = self._done / (now - self._began)
            of = f" of {self._total:,}" if self._total else ""
            parts = [f"{self._done:,}{of}", f"{numerals.rate(rate)}/s"]
            if self._total:
                parts.append(f"left {numerals.clock(max(0, self._total - self._done) / rate)}")
            if console._rich is None:
                console._tell(_fit([self._label, *parts], PLAIN_WIDTH), now)
            else:
                label = _shorten(self._label, console._rich.width // 3)
                console._draw(label, self._done, _fit(parts, console._rich.width // 2), self._total or 0)


def _time_left(epoch: float, run: float) -> list[str]:
    """Return the time left in the epoch and in all epochs, or nothing if it is not known yet."""
    parts = [("left", epoch), ("run", run)]
    known = ", ".join(
        f"{word} {numerals.clock(seconds)}" for word, seconds in parts if math.isfinite(seconds)
    )
    return [known] if known else []


def _fit(parts: Sequence[str], width: int) -> str:
    """Join ``parts`` with two spaces; if that is wider than ``width``, drop those before the last first."""
    kept = list(parts)
    while len("  ".join(kept)) > width and len(kept) > 1:
        kept.pop(-2 if len(kept) > 2 else -1)
    return _shorten("  ".join(kept), width)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _table_row(cells: Sequence[str], mark: str = "") -> str:
    widths = (9, 9, 10, 10, 9, 9, 9)
    return (
        "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + f"  {mark}"
    ).rstrip()


def _first(values: Mapping[str, float], show: Callable[[float], str], *names: str) -> str:
    """Return the first of ``names`` that has a value, as ``show`` writes it; "" where none has."""
    return next((show(values[name]) for name in names if name in values), "")


def _number(value: float) -> str:
    return numerals.loss(value, 3) if math.isfinite(value) else str(value)
