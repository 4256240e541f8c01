"""The learning-rate range test: raise the learning rate at every step and watch the loss.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (first on arXiv in 2015). The test itself knows
nothing of models and optimizers: `steps_at` makes what takes its steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tellapart.data.loader import RawBatch, batches
from tellapart.training import sampling
from tellapart.training.optim import set_lr

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer

# Fraction of the steps over which the loss is smoothed for the suggestion.
WINDOW = 0.05
# What counts as a fall: below the mean of the first tenth by 5 standard errors of the smoothed loss, with no rise on
# the way above an eighth of it and 4 such errors. In a simulation (100 steps) 1 or 2 of 100 curves of mere noise
# pass, and 86 of 100 that fall by only three times the scatter of a step.
FALL, RISES, WANDER, START = 5.0, 8.0, 4.0, 0.1
# How much of the running mean of the loss, which decides when to stop, is kept at each step.
MEMORY = 0.8


@dataclass(frozen=True)
class LrCurve:
    """What the test saw: learning rates (rising), the loss before each step, and what it suggests.

    losses are as measured; smoothed is their centred moving mean, of the same length. suggestion is the
    learning rate at which the smoothed loss falls most steeply over log(lr), or None if it never fell, or fell by no
    more than its noise (`doubt` then says so: on such a curve the steepest point means nothing).
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    doubt: str = ""


def find_lr(
    step: Callable[[float], float],
    steps: int = 100,
    low: float = 1e-6,
    high: float = 10.0,
    diverged: float = 4.0,
) -> LrCurve:
    """Return the curve of a range test of up to ``steps`` steps from ``low`` to ``high``, even in log(lr).

    ``step(lr)`` trains on one batch with the learning rate ``lr`` and returns the batch's loss from before
    the change of the weights. The test stops when the running mean of the loss is above ``diverged`` times
    its lowest value, or the loss is not a finite number (that value is left out). The seen losses must be
    positive for the first to mean something. Raises ValueError for fewer than 10 steps or bounds that do not
    rise from above 0.
    """
    if steps < 10 or not 0 < low < high:
        raise ValueError("a range test needs at least 10 steps, and 0 < low < high")
    lrs: list[float] = []
    losses: list[float] = []
    running, best = 0.0, math.inf
    for i in range(steps):
        lr = low * (high / low) ** (i / (steps - 1))
        loss = float(step(lr))
        if not math.isfinite(loss):
            break
        lrs.append(lr)
        losses.append(loss)
        running = MEMORY * running + (1 - MEMORY) * loss
        mean = running / (1 - MEMORY ** (i + 1))
        best = min(best, mean)
        if mean > diverged * best:
            break
    window = max(1, round(WINDOW * steps))
    smoothed = _centred_mean(np.array(losses), window)
    suggestion = _steepest(np.array(lrs), smoothed)
    doubt = _doubt(np.array(losses), smoothed, window) if suggestion is not None else "the loss never fell"
    return LrCurve(tuple(lrs), tuple(losses), tuple(smoothed.tolist()), None if doubt else suggestion, doubt)


def _doubt(losses: npt.NDArray[np.float64], smoothed: npt.NDArray[np.float64], window: int) -> str:
    """Return why the fall to the lowest loss may be chance, or an empty text.

    The noise of a single loss is measured by second differences of neighbours, in which a steady fall does not count.
    """
    end = int(smoothed.argmin()) + 1
    first = max(1, round(START * len(losses)))
    fall = float(losses[:first].mean() - smoothed[end - 1])
    before = smoothed[:end]
    rise = float((before - np.minimum.accumulate(before)).max())
    seen = losses[: max(end, len(losses) // 2)]
    noise = math.sqrt(float(np.square(np.diff(seen, 2)).mean()) / 6) if len(seen) > 2 else 0.0
    error = noise / math.sqrt(2 * (window // 2) + 1)
    if fall > FALL * error and rise < fall / RISES + WANDER * error:
        return ""
    return (
        f"the loss is mostly noise: it fell by {max(fall, 0.0):.3g} in all, while single steps scatter by "
        f"{noise:.3g} and it rose by {rise:.3g} on the way"
    )


def _centred_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the mean over the neighbours within half a window on either side; nearer the ends over fewer."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return np.asarray((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))


def _steepest(lrs: npt.NDArray[np.float64], smoothed: npt.NDArray[np.float64]) -> float | None:
    """Return the learning rate of the steepest fall up to the lowest loss, or None."""
    if len(lrs) < 2:
        return None
    slope = np.gradient(smoothed, np.log(lrs))[: int(smoothed.argmin()) + 1]
    where = int(slope.argmin())
    return float(lrs[where]) if slope[where] < 0 else None


def steps_at(trainer: Trainer) -> Callable[[float], float]:
    """Return a function that takes one step of a trainer at a learning rate and returns its loss."""
    plan, training, device = trainer.plan, trainer.training, trainer.device
    for (
        callback
    ) in plan.callbacks:  # the callbacks that the spec asks for; nothing is reported, kept or saved
        callback.on_fit_start(trainer)
    trainer.set_stage()
    for callback in plan.callbacks:
        callback.on_epoch_start(0)
    trainer.train_mode()

    def endless() -> Iterator[RawBatch]:
        for epoch in itertools.count():
            labels = plan.train.samples.labels
            order = sampling.epoch_order(labels, training.sampling, plan.spec.seed, epoch)
            following = batches(trainer.way.train, order, training.batch_size, epoch=epoch, device=device)
            yield from (batch for _, batch in following)

    source = endless()

    def step(lr: float) -> float:
        set_lr(plan.optimizer, lr, 1.0)
        batch = next(source).to(device)
        try:
            outcome = trainer.stepper.take(batch, trainer.progress.step, False)
        except FloatingPointError:  # the test goes up to where training diverges
            return math.inf
        trainer.progress.step += 1
        return float(outcome.loss) / batch.count

    return step
