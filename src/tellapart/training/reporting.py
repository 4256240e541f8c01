"""What the loop tells: whom it tells (`Reporter`), the values of a logged line, and what to say when it diverged.

Knows nothing of consoles and files, or of when something is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from tellapart import augment, numerals
from tellapart.errors import TrainingError
from tellapart.tracking.remaining import Ahead
from tellapart.training import choosing
from tellapart.training.step import Plan

_FAR = 0.1  # training's accuracy above validation's


class Reporter(Protocol):
    """What the loop tells while it runs."""

    def start(self, epochs: int, steps_per_epoch: int, first_step: int, ahead: Ahead) -> None:
        """Training begins, or goes on after ``first_step`` steps; ``ahead``: what the epochs will cost."""

    def message(self, text: str) -> None:
        """Something to know."""

    def warn(self, text: str) -> None:
        """Something that must not be missed."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Where the epoch stands after ``step`` of its steps: its means so far."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, as they were after ``step`` steps of the run."""

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        """An epoch's figures, and whether its weights are the best so far."""


def window_values(sums: Sequence[float], lr: float, rate: float, norm: float) -> dict[str, float]:
    """Return a logged line's values by name; ``sums``: loss, right answers and images since the last one.

    ``rate`` is in images a second; ``norm`` is the gradient's, NaN where it was not computed.
    """
    loss_sum, right, seen = sums
    values = {
        "train/loss": loss_sum / max(seen, 1),
        "train/accuracy": right / max(seen, 1),
        "train/lr": lr,
        "train/images-per-second": rate,
    }
    if not math.isnan(norm):
        values["train/grad-norm"] = norm
    return values


def overfitted(plan: Plan, train_accuracy: float, scores: Mapping[str, float]) -> str:
    """Return a warning where training without augmentation ended far above validation, else an empty text.

    Far: by more than 10 points, and by more than three standard errors of the validation figure.
    """
    if not scores or plan.val_counts is None or augment.describe(plan.spec.augment) != "none":
        return ""
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
        f"validation: the network learned images by heart. What can help: {ways}{fewer}."
    )


def all_finite(model: torch.nn.Module) -> bool:
    """Return whether every weight and buffer is a finite number (waits for the device)."""
    tensors = [*model.parameters(), *model.buffers()]
    largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point()], math.inf)
    return bool(torch.isfinite(torch.stack(largest)).all())


def not_finite(plan: Plan, step: int, epoch: int, lr: float, checkpoints: Sequence[Path]) -> TrainingError:
    """Return the error of a loss that is NaN or infinite; ``checkpoints`` are those that lie there, newest first."""
    bad = [n for n, p in plan.model.named_parameters() if not bool(torch.isfinite(p).all())]
    where = f"weights are not finite either (first: {bad[0]})" if bad else "the weights are still finite"
    last = f"The last good checkpoint is {checkpoints[0]}." if checkpoints else "There is no checkpoint yet."
    training = plan.spec.training
    return TrainingError(
        f"The loss became NaN or infinite at step {step} (epoch {epoch + 1}), with "
        f"learning rate {lr:.3g} and {training.precision}; {where}. {last} "
        f"Try a lower --training.lr (now {numerals.setting(training.lr)}), --training.warmup-epochs 1 or "
        "--training.clip-norm 1."
    )
