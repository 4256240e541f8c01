"""How long a run will still take, from its pace so far; unknown as long as nothing relevant was measured.

The first step of a stage does not count: it compiles, reads files for the first time, waits for features. Epochs of
another kind than those so far (features of a frozen backbone, then the network on images) cannot be predicted from
them, so the run's end is known once the first steps of each kind are done. Knows nothing of clocks or networks.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEAST_INTERVALS = 3
_LEAST_SECONDS = 1.0  # and none of it in the first step
_RECENT = 50  # intervals; the slowest of them does not count


@dataclass(frozen=True)
class EpochCost:
    """What a step of an epoch costs in forward passes through the network, and in which way (``kind``) it runs.

    Seconds of one kind say nothing about another.
    """

    kind: str = ""
    passes: float = 3.0  # one forward, two back


@dataclass(frozen=True)
class Ahead:
    """What is known of a run in advance: the cost of each epoch, and a validation in steps of forward passes.

    ``total``: steps of the run, whose last epoch may be shorter; 0: whole epochs.
    """

    costs: Sequence[EpochCost] = ()
    validation: float = 0.0
    total: int = 0


class Remaining:
    """The remaining seconds, from the moments at which steps and epochs were done."""

    def __init__(
        self, epochs: int, steps: int, now: float, first_step: int = 0, ahead: Ahead | None = None
    ) -> None:
        self._steps = steps
        self.plan(epochs, ahead or Ahead())
        self._taken: dict[EpochCost, collections.deque[tuple[float, int]]] = {}  # intervals: seconds, steps
        self._ends: dict[str, float] = {}  # seconds from an epoch's last step to its end, by kind
        self._warm: EpochCost | None = None  # the stage that has done its first step
        self._at, self._done = now, first_step

    def plan(self, epochs: int, ahead: Ahead) -> None:
        """Take another number of epochs, or other costs; what was measured stays."""
        self._validation, self._total = ahead.validation, ahead.total or epochs * self._steps
        self._costs = [*ahead.costs, *[EpochCost()] * epochs][:epochs]

    def _steps_of(self, epoch: int) -> int:
        return max(0, min(self._steps, self._total - epoch * self._steps))

    def _cost(self, epoch: int) -> EpochCost:
        return self._costs[min(epoch, len(self._costs) - 1)]

    def step(self, now: float, epoch: int, step_in_epoch: int) -> None:
        """Note that ``step_in_epoch`` (from 1) steps of ``epoch`` (from 0) are done."""
        done = epoch * self._steps + step_in_epoch
        if done <= self._done:
            return
        cost = self._cost(epoch)
        if cost == self._warm:
            recent = self._taken.setdefault(cost, collections.deque(maxlen=_RECENT))
            recent.append((now - self._at, done - self._done))
        self._warm, self._at, self._done = cost, now, done

    def epoch_done(self, now: float, epoch: int) -> None:
        """Note that ``epoch`` is done, with its validation."""
        self._ends[self._cost(epoch).kind] = now - self._at
        self._at, self._done = now, (epoch + 1) * self._steps

    def left(self, now: float, epoch: int, step_in_epoch: int) -> tuple[float, float]:
        """Return the seconds until the epoch and until the last epoch is done; NaN if that is not known yet."""
        waited = now - self._at
        cost = self._cost(epoch)
        this = (
            max(0, self._steps_of(epoch) - step_in_epoch) * self._step_seconds(cost)
            + self._end_seconds(cost)
            - waited
        )
        this = max(this, 0.0) if math.isfinite(this) else math.nan
        later = enumerate(self._costs[epoch + 1 :], epoch + 1)
        return this, this + sum(
            self._steps_of(e) * self._step_seconds(c) + self._end_seconds(c) for e, c in later
        )

    def _pace(self, cost: EpochCost) -> float:
        """Return the measured seconds of a step, NaN if too few were measured."""
        taken = sorted(self._taken.get(cost, ()), key=lambda pair: pair[0] / pair[1])
        seconds, steps = sum(pair[0] for pair in taken), sum(pair[1] for pair in taken)
        if len(taken) < _LEAST_INTERVALS or (len(taken) < _RECENT and seconds < _LEAST_SECONDS):
            return math.nan
        return (seconds - taken[-1][0]) / (steps - taken[-1][1])

    def _step_seconds(self, cost: EpochCost) -> float:
        """Return the seconds of a step; for a cost that was not measured, from the nearest of its kind that was."""
        measured = [c for c in self._taken if c.kind == cost.kind and math.isfinite(self._pace(c))]
        if not measured:
            return math.nan
        nearest = min(measured, key=lambda c: abs(math.log(c.passes / cost.passes)))
        return self._pace(nearest) * cost.passes / nearest.passes

    def _end_seconds(self, cost: EpochCost) -> float:
        known = self._ends.get(cost.kind)
        return self._validation * self._step_seconds(cost) / cost.passes if known is None else known
