"""The epoch that is kept, and early stopping: `choosing`'s rules as a callback.

Knows nothing of files; the kept weights are in the trainer, and so in every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tellapart.training import reporting, stages
from tellapart.training.callbacks import Callback
from tellapart.training.choosing import Chooser, surely_lower, surpasses
from tellapart.training.step import Plan
from tellapart.training.task import Each
from tellapart.training.validation import Validation

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer


class BestEpoch(Callback):
    """Keeps the weights of the epoch that the rule chooses; its state is in the trainer's progress.

    If a solver fits the head in the first epoch, that one is the reference: a later one replaces it only if its
    validation is better by more than chance. How the reference answered each image is this callback's own state.
    """

    name = "best-epoch"

    def __init__(self, plan: Plan) -> None:
        self.chooser = Chooser(plan.spec.training, plan.val_counts, plan.task.lower_is_better)
        self._scores: Mapping[str, float] = {}
        self._reference = 0 if stages.fitted_at(plan.spec, 0) else -1
        self._before: tuple[float, Each | None] | None = None  # figure and answers of the reference

    def on_fit_start(self, trainer: Trainer) -> None:
        """See Callback."""
        self.trainer = trainer

    def on_validate(self, scores: Mapping[str, float]) -> None:
        """Keep the weights if the rule chooses them (without validation: always), and stop if it is time."""
        trainer, progress = self.trainer, self.trainer.progress
        self._scores = scores
        if self.chooser.judge(progress, scores, self._may(scores)):
            trainer.best = trainer.weights()
        if "loss" in scores and not math.isfinite(scores["loss"]):
            trainer.report.warn(
                f"The validation loss of epoch {progress.epoch + 1} is {scores['loss']}: this epoch's "
                "weights cannot be chosen as the best."
            )
        last = progress.epoch + 1 >= trainer.timeline.epochs
        if scores and not last and (why := self.chooser.stops(progress)):
            trainer.stop(why)

    def _may(self, scores: Mapping[str, float]) -> bool:
        """Return whether this epoch's weights may replace the reference's; note the reference's answers.

        They may if the figure is better by more than chance, or no worse and the loss lower by more than chance.
        """
        trainer, chooser = self.trainer, self.chooser
        if self._reference < 0 or chooser.metric not in scores:
            return True
        value = scores[chooser.metric]
        each = trainer.way.validate.each if isinstance(trainer.way.validate, Validation) else None
        if trainer.progress.epoch == self._reference:
            self._before = value, each
            return True
        if self._before is None:
            return True
        figure, before = self._before
        if (
            chooser.metric == "accuracy"
            and each
            and before
            and each.right is not None
            and before.right is not None
        ):
            better = surpasses(before.right.numpy(), each.right.numpy())
        else:
            better = chooser.better(value, figure)
        if better or each is None or before is None:
            return better
        no_worse = value <= figure if chooser.falls else value >= figure
        return no_worse and surely_lower(before.losses.numpy(), each.losses.numpy())

    def state_dict(self) -> dict[str, Any]:
        """See Callback."""
        if self._before is None:
            return {}
        value, each = self._before
        return {"value": value, "each": None if each is None else [each.losses, each.right]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Callback."""
        if state:
            self._before = float(state["value"]), None if state["each"] is None else Each(*state["each"])

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """Say after the last epoch which one was chosen, and whether the network memorised its images."""
        trainer = self.trainer
        if not trainer.progress.finished:
            return
        if text := self.chooser.explain(trainer.progress, self._reference):
            trainer.report.message(text)
        accuracy = values.get("train/epoch-accuracy", math.nan)
        if text := reporting.overfitted(trainer.plan, accuracy, self._scores):
            trainer.report.warn(text)
