"""Progressive resizing: training on smaller images first, and at the full input size at the end.

The size is a pure function of the epoch, so resuming is exact. fast.ai's course used it first; the straight line
with rounded sizes is FFCV's (Leclerc et al. 2023, arXiv:2306.12517). Validation, and the contract in the artifact,
keep the input's size. Knows nothing of images or of how they are made smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tellapart.augment import Augment
from tellapart.contract.sides import Size, longest, plain, shortest, sides, words
from tellapart.errors import SpecError
from tellapart.spec import TrainingSpec
from tellapart.training.callbacks import Callback

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer

LARGE_STEP = 32  # sizes are multiples of this, the total stride of most networks
SMALL_STEP = 4  # the same for small images
SMALL_SIDE = 96


def size_at(epoch: float, spec: TrainingSpec, full: Size) -> Size:
    """Return the size of the training images in ``epoch`` (0 is the first), in pixels.

    From ``start_size`` the short side rises linearly to that of ``full`` at the fraction ``size_epochs`` of all epochs,
    rounded to a multiple of 32 (of 4 if ``full`` is at most 96); the long side, rounded in the same way, keeps the
    shape.
    """
    ramp = spec.size_epochs * spec.epochs
    if not spec.start_size or epoch >= ramp:
        return full
    step = SMALL_STEP if longest(full) <= SMALL_SIDE else LARGE_STEP
    short = shortest(full)
    exact = spec.start_size + (short - spec.start_size) * epoch / ramp
    side = min(max(step * round(exact / step), spec.start_size), short)
    if isinstance(full, int):
        return side
    height, width = (
        side if one == short else min(max(step * round(one * side / short / step), side), one) for one in full
    )
    return height, width


def check(spec: TrainingSpec, full: Size, model: torch.nn.Module, channels: int) -> None:
    """Raise SpecError if ``start_size`` makes no sense, or the network does not take one of the sizes."""
    if not spec.start_size:
        return
    if spec.start_size >= shortest(full):
        side = "" if isinstance(full, int) else "the short side of "
        raise SpecError(
            f"training.start_size is {spec.start_size}; it must be below {side}input.size, which is {plain(full)} "
            "(0 switches progressive resizing off)."
        )
    sizes = {words(size): size for size in (size_at(epoch, spec, full) for epoch in range(spec.epochs))}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    try:
        for size in sorted(sizes.values(), key=shortest):
            _try(model, torch.zeros(1, channels, *sides(size), device=device), size, full)
    finally:
        model.train(training)


def _try(model: torch.nn.Module, image: torch.Tensor, size: Size, full: Size) -> None:
    try:
        with torch.no_grad():
            model(image)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(
            f"training.start_size: the network takes images of {words(full)} pixels, but not of {words(size)} "
            f"({reason}). Its layers require one size, or it needs more pixels: leave training.start_size at 0, "
            "give a larger one, or choose a network that ends in a pooling over all pixels."
        ) from error


class ProgressiveSize(Callback):
    """Sets the size of the training images for each epoch on the task, which has an ``augment``."""

    def __init__(self, spec: TrainingSpec, full: Augment) -> None:
        self.spec, self.full = spec, full
        self.now: Size = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        """See Callback."""
        self.trainer = trainer

    def on_epoch_start(self, epoch: int) -> None:
        """Set the size, and log a change."""
        before, self.now = self.now, size_at(self.trainer.passes, self.spec, self.full.contract.size)
        setattr(self.trainer.plan.task, "augment", self.full.at_size(self.now))  # noqa: B010 - of such tasks alone
        if self.now != before:
            self.trainer.report.message(f"Epoch {epoch + 1}: training images of {words(self.now)} pixels.")
