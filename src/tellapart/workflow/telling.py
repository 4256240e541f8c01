"""A run's reports to the console and to the trackers, and warnings about its data.

Knows nothing of training itself; `training.reporting` defines what the loop reports.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tellapart import packages
from tellapart.contract import sides
from tellapart.data.health import quick
from tellapart.data.loader import ImageSet
from tellapart.spec import Spec, flatten
from tellapart.tracking import Console, CsvTracker, MlflowTracker, TensorBoardTracker, Tracker, Trackers
from tellapart.tracking.remaining import Ahead
from tellapart.training import setup
from tellapart.training.resolution import Choice
from tellapart.training.step import Plan

_OPTION = 40  # columns for an option and its value
PLAIN_PAUSE = 5.0  # seconds between lines without a terminal


class RunReporter:
    """Passes the loop's reports to the console and the trackers."""

    def __init__(self, console: Console, tracker: Tracker, log_every: int, steps: int) -> None:
        self.console, self.tracker = console, tracker
        self.every = log_every or max(1, steps // 10)
        self.pause = 0.0 if log_every else PLAIN_PAUSE  # unless run.log_every is set
        self.shown = time.monotonic()

    def start(self, epochs: int, steps_per_epoch: int, first_step: int, ahead: Ahead) -> None:
        """Start the console."""
        self.console.start(epochs, steps_per_epoch, first_step, ahead)

    def plan(self, epochs: int, ahead: Ahead) -> None:
        """Tell the console."""
        self.console.plan(epochs, ahead)

    def message(self, text: str) -> None:
        """Show a message."""
        self.console.message(text)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self.console.warn(text)

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show the epoch's progress: always on a terminal, otherwise at round steps, and not too often."""
        now = time.monotonic()
        self.console.passed(epoch, step)
        if self.console.interactive or (step % self.every == 0 and now - self.shown >= self.pause):
            self.shown = now
            self.console.step(epoch, step, loss, accuracy, images_per_second, self.every)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass logged values on to the trackers."""
        self.tracker.log(step, values)

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        """Show an epoch's figures."""
        shown = {name.replace("epoch-", ""): value for name, value in values.items()}
        self.console.epoch_done(epoch, shown, best and "val/loss" in values)


def trackers(spec: Spec, folder: Path, resume_step: int | None, first: bool, console: Console) -> Tracker:
    """Return the trackers for a run's values, by its spec; none except in the first process."""
    if not first:
        return Trackers([])
    table = CsvTracker(folder / "metrics.csv", resume_step)
    kept: list[Tracker] = [table]
    if spec.run.tensorboard and packages.installed("tensorboard"):
        kept.append(TensorBoardTracker(folder / "tensorboard", resume_step, table.known))
    if spec.run.mlflow:
        kept.append(
            MlflowTracker(folder / "mlflow-run.txt", resume_step, flatten(spec), folder.name, console.warn)
        )
    return Trackers(kept)


def choices_text(choices: Sequence[Choice], every: bool = False) -> str:
    """Return what was chosen and why, as a table of 80 columns: ``every`` choice, or those that matter."""
    chosen = [choice for choice in choices if every or choice.matters]
    sections = list(dict.fromkeys(choice.field.partition(".")[0] for choice in chosen))
    chosen.sort(key=lambda choice: sections.index(choice.field.partition(".")[0]))
    more = "" if every else " (--verbose lists every choice)"
    if not chosen:
        return f"Every choice was one of the defaults{more}."
    options = [textwrap.shorten(choice.option, _OPTION, placeholder="…") for choice in chosen]
    width = max(map(len, options))
    lines = [f"Chosen, and why{more}:"]
    for choice, option in zip(chosen, options, strict=True):
        head = f"  {option:<{width}}  "
        lines += textwrap.wrap(choice.reason, 80, initial_indent=head, subsequent_indent=" " * (width + 4))
    return "\n".join(lines)


def headline(prepared: setup.RunData, name: str, plan: Plan) -> str:
    """Return a run in a line: network, parameters, classes and images."""
    parts = [f"{len(prepared.train):,} train"]
    parts += [f"{len(s):,} {n}" for n, s in (("val", prepared.val), ("test", prepared.test)) if s is not None]
    count = sum(p.numel() for p in plan.model.parameters())
    size = f"{sides.words(prepared.contract.size)}x{prepared.contract.channels}"
    return (
        f"{name}, {count:,} parameters; {len(prepared.classes)} classes; images of {size}: {', '.join(parts)}"
    )


def warn_of_leaks(prepared: setup.RunData, console: Console) -> None:
    """Warn about evaluation images that are, byte for byte, in another split too (kinds: see `runs.honesty`)."""
    train, val, test = prepared.train, prepared.val, prepared.test
    for kind, images, words, others, where in (
        ("leak-val", val, "validation", train, "train"),
        ("leak-test", test, "test", train, "train"),
        ("shared-test", test, "test", val, "validation, which chooses the epoch"),
    ):
        copies = _copies(images, others)
        if images is not None and copies:
            console.warn(
                f"{copies} of {len(images)} {words} images are also in {where}, byte for byte; "
                f"see: tellapart check {prepared.spec.data.source}",
                kind,
            )


def warn_of_near_copies(prepared: setup.RunData, console: Console) -> None:
    """Warn about evaluation images that are nearly copies of training images, of those that are looked at quickly."""
    for images, words in ((prepared.val, "validation"), (prepared.test, "test")):
        found = quick.near_leak(prepared.train, images, prepared.contract)
        if found and found.serious:
            one, other = found.example
            console.warn(
                f"Of {found.looked:,} {words} images that were looked at, {found.count:,} are nearly copies of "
                f"training images ({one} of {other}), so figures will be too good. tellapart check "
                f"{prepared.spec.data.source} lists them; where splits are made here, --data.copies near keeps them "
                "in one split."
            )


def _copies(images: ImageSet | None, others: ImageSet | None) -> int:
    """Return how many images are among the others, byte for byte (crops of pictures are not compared)."""
    if images is None or others is None or images.samples.hashes is None or others.samples.hashes is None:
        return 0
    if images.samples.boxes is not None:
        return 0
    known = set(others.samples.hashes)
    return sum(value in known for value in images.samples.hashes)
