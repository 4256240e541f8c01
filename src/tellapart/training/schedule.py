"""Schedules: the factor of the learning rate at each step of the optimizer.

A factor is a pure function of the global step, so that a run can be resumed anywhere; only ``plateau`` has a
state, which changes at the ends of epochs. Knows nothing of optimizers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

from tellapart import references
from tellapart.errors import SpecError
from tellapart.spec import TrainingSpec

# one-cycle (Smith and Topin 2018, "Super-Convergence") in the form of torch's OneCycleLR: the fraction of the
# steps that rise, the first learning rate as a fraction of the highest, and the last as a fraction of the first.
CYCLE_RISE = 0.3
CYCLE_START = 1 / 25
CYCLE_END = 1e-4
# plateau, as torch's ReduceLROnPlateau: a loss counts as better if it is below the best by this fraction of it.
PLATEAU_THRESHOLD = 1e-4

# (epoch, steps since the warm-up's end, which may be between two) -> factor
Shape = Callable[[int, float], float]


class Schedule:
    """The factor by which ``training.lr`` is multiplied (and each group's lr_scale with it), 0 to about 1.

    ``factor(step)`` is for the step that is about to be taken; the first is 0. Steps past the end keep the
    last value. Where a run's end was moved, its steps are at places between two of the schedule's (`budget.Timeline`).
    The schedule and the warm-up are multiplied:

    - the warm-up rises linearly over ``warmup_epochs * steps_per_epoch`` steps W (rounded), from
      1 / (W + 1) at step 0 to 1 at step W;
    - linear, cosine and one-cycle begin after the warm-up and take the remaining steps (during it they keep their first
      value, so one-cycle's warm-up ends at 1/25);
    - step, multi-step and plateau count epochs from the run's beginning, warm-up or not.

    ``after``: steps at the run's beginning that do not count: the epoch in which a solver fits the head.

    constant, step, multi-step, cosine and plateau are torch's StepLR, MultiStepLR, CosineAnnealingLR
    (Loshchilov and Hutter 2017, without restarts) and ReduceLROnPlateau; one-cycle is OneCycleLR with its
    defaults, except that momentum stays as it is. Raises SpecError if the warm-up leaves no step, or plateau's gamma
    does not lower anything.
    """

    def __init__(self, spec: TrainingSpec, steps_per_epoch: int, epochs: int, after: int = 0) -> None:
        if steps_per_epoch < 1 or epochs < 1:
            raise ValueError("a schedule needs at least one step and one epoch")
        self.warmup = round(spec.warmup_epochs * steps_per_epoch)
        self.after = after
        total = max(1, steps_per_epoch * epochs - after)
        if self.warmup >= total:
            raise SpecError(
                f"training.warmup_epochs is {spec.warmup_epochs:g}; "
                f"it must be below training.epochs ({epochs})."
            )
        self._steps_per_epoch = steps_per_epoch
        self._plateau = _Plateau(spec) if spec.schedule == "plateau" else None
        make = _own if references.is_own(spec.schedule) else _SHAPES.get(spec.schedule)
        assert make is not None or self._plateau is not None
        self._shape: Shape = self._plateau or make(spec, total - self.warmup)  # type: ignore[misc]

    def factor(self, step: float) -> float:
        """Return the factor for global step ``step`` (0 is the first)."""
        step = max(step - self.after, 0)
        value = self._shape(int(step // self._steps_per_epoch), max(step - self.warmup, 0))
        return value * (step + 1) / (self.warmup + 1) if step < self.warmup else value

    def observe(self, epoch: int, val_loss: float) -> None:
        """Report the validation loss of ``epoch`` (0 is the first) at its end; only ``plateau`` uses it.

        An epoch that was reported before is ignored, so a resumed run may report it again. NaN counts as not better.
        """
        if self._plateau is not None:
            self._plateau.observe(epoch, val_loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values (empty but for plateau)."""
        return {} if self._plateau is None else self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)


class _Plateau:
    """Lowers the factor when the validation loss has not become better for more than ``patience`` epochs."""

    def __init__(self, spec: TrainingSpec) -> None:
        if spec.gamma >= 1:
            raise SpecError(f"training.gamma is {spec.gamma:g}; with schedule plateau it must be below 1.")
        self.gamma, self.patience, self.lowest = spec.gamma, spec.plateau_patience, spec.min_lr_factor
        self.value, self.best, self.waited, self.epoch = 1.0, math.inf, 0, -1

    def __call__(self, epoch: int, progress: float) -> float:
        return self.value

    def observe(self, epoch: int, loss: float) -> None:
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        if loss < self.best * (1 - PLATEAU_THRESHOLD):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.value, self.waited = max(self.value * self.gamma, self.lowest), 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "best": self.best, "waited": self.waited, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.best = float(state["value"]), float(state["best"])
        self.waited, self.epoch = int(state["waited"]), int(state["epoch"])


def _constant(spec: TrainingSpec, steps: int) -> Shape:
    return lambda epoch, progress: 1.0


def _step(spec: TrainingSpec, steps: int) -> Shape:
    return lambda epoch, progress: spec.gamma ** (epoch // spec.step_epochs)


def _multi_step(spec: TrainingSpec, steps: int) -> Shape:
    milestones = sorted(spec.milestones)
    return lambda epoch, progress: spec.gamma ** bisect.bisect_right(milestones, epoch)


def _linear(spec: TrainingSpec, steps: int) -> Shape:
    lowest = spec.min_lr_factor
    return lambda epoch, progress: 1 + (lowest - 1) * min(progress / steps, 1.0)


def _cosine(spec: TrainingSpec, steps: int) -> Shape:
    return lambda epoch, progress: _between(1.0, spec.min_lr_factor, min(progress / steps, 1.0))


def _one_cycle(spec: TrainingSpec, steps: int) -> Shape:
    top, last = CYCLE_RISE * steps - 1, steps - 1

    def shape(epoch: int, progress: float) -> float:
        if progress <= top:
            return _between(CYCLE_START, 1.0, progress / top)
        return _between(1.0, CYCLE_START * CYCLE_END, (min(progress, last) - top) / (last - top))

    return shape


def _between(start: float, end: float, part: float) -> float:
    """Return the value at ``part`` (0 to 1) of half a cosine wave from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def _own(spec: TrainingSpec, steps: int) -> Shape:
    """The user's own function of (step, steps), both counted from the warm-up's end. Raises SpecError."""
    name = spec.schedule
    function = references.load(name, "schedule", f"A run with the schedule {name}")

    def shape(epoch: int, progress: float) -> float:
        value = references.called(function, (), name, min(int(progress), steps - 1), steps)
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise SpecError(
                f"The schedule {name} returns {value!r:.60} for step {progress} of {steps}; it must be the factor of "
                "the learning rate, a number of at least 0."
            )
        return float(value)

    shape(0, 0)
    shape(0, steps - 1)
    return shape


_SHAPES: dict[str, Callable[[TrainingSpec, int], Shape]] = {
    "constant": _constant,
    "step": _step,
    "multi-step": _multi_step,
    "linear": _linear,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}
