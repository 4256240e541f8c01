"""The epoch that is kept, and early stopping: `choosing`'s rules as a callback.

Knows nothing of files; the kept weights are in the trainer, and so in every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tellapart.training import reporting
from tellapart.training.callbacks import Callback
from tellapart.training.choosing import Chooser
from tellapart.training.step import Plan

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer


class BestEpoch(Callback):
    """Keeps the weights of the epoch that the rule chooses; its state is in the trainer's progress."""

    def __init__(self, plan: Plan) -> None:
        self.chooser = Chooser(plan.spec.training, plan.val_counts, plan.task.lower_is_better)
        self._scores: Mapping[str, float] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        """See Callback."""
        self.trainer = trainer

    def on_validate(self, scores: Mapping[str, float]) -> None:
        """Keep the weights if the rule chooses them (without validation: always), and stop if it is time."""
        trainer, progress = self.trainer, self.trainer.progress
        self._scores = scores
        if self.chooser.judge(progress, scores):
            trainer.best = trainer.weights()
        if "loss" in scores and not math.isfinite(scores["loss"]):
            trainer.report.warn(
                f"The validation loss of epoch {progress.epoch + 1} is {scores['loss']}: this epoch's "
                "weights cannot be chosen as the best."
            )
        last = progress.epoch + 1 >= trainer.timeline.epochs
        if scores and not last and (why := self.chooser.stops(progress)):
            trainer.stop(why)

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """Say after the last epoch which one was chosen, and whether the network memorised its images."""
        trainer = self.trainer
        if not trainer.progress.finished:
            return
        if text := self.chooser.explain(trainer.progress):
            trainer.report.message(text)
        accuracy = values.get("train/epoch-accuracy", math.nan)
        if text := reporting.overfitted(trainer.plan, accuracy, self._scores):
            trainer.report.warn(text)
