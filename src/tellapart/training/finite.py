"""Training that diverges stops at once, before ruined weights are kept or saved, and says what may help.

Knows nothing of when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch

from tellapart import numerals
from tellapart.errors import TrainingError
from tellapart.training import checkpoint
from tellapart.training.optim import current_lr

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer


def check_sums(trainer: Trainer, sums: Sequence[float]) -> None:
    """Raise TrainingError if the sum of the losses, the first of ``sums``, is not finite."""
    if not math.isfinite(sums[0]):
        diverged(trainer)


def check_weights(trainer: Trainer) -> None:
    """Raise TrainingError if a weight or a buffer is not finite (waits for the device)."""
    model, task = trainer.plan.model, trainer.plan.task
    tensors = [*model.parameters(), *model.buffers(), *task.own_parameters(), *task.own_buffers()]
    largest = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point()], math.inf)
    if not bool(torch.isfinite(torch.stack(largest)).all()):
        diverged(trainer)


def diverged(trainer: Trainer) -> NoReturn:
    """Raise TrainingError with what is known about a loss that is NaN or infinite."""
    plan, progress = trainer.plan, trainer.progress
    bad = [n for n, p in plan.model.named_parameters() if not bool(torch.isfinite(p).all())]
    where = f"weights are not finite either (first: {bad[0]})" if bad else "the weights are still finite"
    saved = checkpoint.existing(trainer.folder)
    last = f"The last good checkpoint is {saved[0]}." if saved else "There is no checkpoint yet."
    training = plan.spec.training
    raise TrainingError(
        f"The loss became NaN or infinite at step {progress.step} (epoch {progress.epoch + 1}), with "
        f"learning rate {current_lr(plan.optimizer):.3g} and {training.precision}; {where}. {last} "
        f"Try a lower --training.lr (now {numerals.setting(training.lr)}), --training.warmup-epochs 1 or "
        "--training.clip-norm 1."
    )
