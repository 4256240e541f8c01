"""Reports of training: to whom (`Reporter`), and when and what (`Reporting`).

Knows nothing of consoles and files.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from tellapart import augment, numerals
from tellapart.tracking.remaining import Ahead
from tellapart.training import choosing, finite, foreseen
from tellapart.training.callbacks import Callback
from tellapart.training.optim import current_lr
from tellapart.training.progress import Progress
from tellapart.training.running import Reading
from tellapart.training.step import Outcome, Plan

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer

_PAUSE = 0.1  # seconds between reports within an epoch
_FAR = 0.1  # excess of training accuracy over validation accuracy


class Reporter(Protocol):
    """The reports of the loop while it runs."""

    def start(self, epochs: int, steps_per_epoch: int, first_step: int, ahead: Ahead) -> None:
        """Training begins, or continues after ``first_step`` steps; ``ahead``: what the epochs will cost."""

    def plan(self, epochs: int, ahead: Ahead) -> None:
        """Training will take another number of epochs than it was begun with."""

    def message(self, text: str) -> None:
        """A piece of information."""

    def warn(self, text: str) -> None:
        """A warning."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """The epoch's means after ``step`` of its steps."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, as they were after ``step`` steps of the run."""

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        """An epoch's figures, and whether its weights are the best so far."""


def window_values(means: Mapping[str, float], lr: float, rate: float, norm: float) -> dict[str, float]:
    """Return a logged line's values by name; ``means``: the loss and the task's metrics since the last one.

    ``rate`` is in images a second; ``norm`` is the gradient's, NaN where it was not computed.
    """
    values = {f"train/{name}": value for name, value in means.items()}
    values |= {"train/lr": lr, "train/images-per-second": rate}
    if not math.isnan(norm):
        values["train/grad-norm"] = norm
    return values


def epoch_values(
    progress: Progress, means: Mapping[str, float], scores: Mapping[str, float]
) -> dict[str, float]:
    """Return an epoch's figures by the names under which they are logged: training's means, and validation's scores."""
    values = {f"train/epoch-{name}": value for name, value in means.items()}
    values |= {f"val/{name}": value for name, value in scores.items()}
    values |= {"epoch": progress.epoch + 1, "seconds": progress.seconds}
    if scores:
        values["best-epoch"] = progress.best_epoch + 1
    return values


@dataclass(frozen=True)
class _Asked:
    """A reading that the device may not have finished yet, and what else is reported about its step."""

    reading: Reading
    step: int
    rate: float
    lr: float
    logged: bool


class Reporting(Callback):
    """Reports the progress of training to a `Reporter`; no step waits for the device because of it."""

    def __init__(self, report: Reporter) -> None:
        self.report = report
        self._asked: collections.deque[_Asked] = collections.deque()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Say that training begins."""
        self.trainer = trainer
        plan, timeline = trainer.plan, trainer.timeline
        ahead = foreseen.costs(plan, timeline)
        self.report.start(timeline.epochs, plan.steps_per_epoch, trainer.progress.step, ahead)

    def on_epoch_start(self, epoch: int) -> None:
        """Start the clock."""
        self._shown = 0.0
        self._started = time.perf_counter()

    def after_step(self, outcome: Outcome) -> None:
        """Request the epoch's state now and then, and report the readings that have arrived."""
        trainer, now = self.trainer, time.perf_counter()
        with trainer.plan.sections("logging"):
            if now - self._shown > _PAUSE or trainer.logging:
                self._shown = now
                self._ask(outcome.norm, trainer.seen / max(now - self._started, 1e-9))
            self._tell()

    def on_validate(self, scores: Mapping[str, float]) -> None:
        """Report what is left of the epoch."""
        self._tell(wait=True)

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """Report an epoch's figures, and the reason if training was asked to end."""
        trainer, progress = self.trainer, self.trainer.progress
        if trainer.processes.first:
            self.report.log(progress.step, values)
            best = progress.best_epoch == progress.epoch
            self.report.epoch_done(
                progress.epoch, {**values, "train/lr": current_lr(trainer.plan.optimizer)}, best
            )
        if trainer.stopping:
            self.report.message(trainer.stopping)

    def on_save(self) -> None:
        """Report everything up to the checkpoint."""
        self._tell(wait=True)

    def _ask(self, norm: torch.Tensor | None, rate: float) -> None:
        """Begin to read the epoch's state; `_tell` continues when the device has finished.

        Logged values are those of all processes, which log at the same steps; in between the first process reports its
        own.
        """
        trainer = self.trainer
        logged, processes = trainer.logging, trainer.processes
        total = processes.add_up if logged and processes.world > 1 else None
        reading = trainer.running.ask(norm, total)
        if logged:
            trainer.running.clear_window()
        lr = trainer.training.lr * trainer.factor
        self._asked.append(_Asked(reading, trainer.progress.step, rate, lr, logged))

    def _tell(self, wait: bool = False) -> None:
        """Report the readings in the order of the requests; ``wait``: wait for those that are not finished."""
        trainer = self.trainer
        while self._asked and (wait or self._asked[0].reading.ready):
            asked = self._asked.popleft()
            epoch_sums, window, norm = asked.reading.read()
            finite.check_sums(trainer, epoch_sums)
            if not trainer.processes.first:
                continue
            epoch, means = trainer.progress.epoch, trainer.running.means(epoch_sums)
            place = asked.step - epoch * trainer.plan.steps_per_epoch
            self.report.step(epoch, place, means["loss"], means.get("accuracy", math.nan), asked.rate)
            if asked.logged:
                values = window_values(trainer.running.means(window), asked.lr, asked.rate, norm)
                self.report.log(asked.step, values)


def overfitted(plan: Plan, train_accuracy: float, scores: Mapping[str, float]) -> str:
    """Return a warning if training without augmentation ended far above validation, otherwise an empty text.

    Far: by more than 10 points, and by more than three standard errors of the validation figure.
    """
    if "accuracy" not in scores or math.isnan(train_accuracy) or plan.val_counts is None:
        return ""
    if augment.describe(plan.spec.augment) != "none" or plan.spec.model.head == "fitted":
        return ""  # a fitted head's weight decay was chosen on validation
    accuracy = scores["accuracy"]
    error = choosing.standard_error("accuracy", accuracy, plan.val_counts)
    if train_accuracy - accuracy <= max(_FAR, 3 * error):
        return ""
    head = plan.spec.model.finetune == "head"
    ways = "more images, or --training.weight-decay 0.05" if head else "--augment.preset auto or light"
    fewer = "" if head or plan.spec.model.weights == "none" else ", or fewer layers (--model.finetune head)"
    return (
        f"Training without augmentation ended at {numerals.percent(train_accuracy)} on its own images and "
        f"{numerals.percent(accuracy)} on "
        f"validation: the network has memorised its images (overfitting). What can help: {ways}{fewer}."
    )
