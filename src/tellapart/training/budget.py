"""Fitting training into a time: how many steps fit, and where in its plan a run is whose end is moved.

Pure functions of numbers: no clock, no network. `timekeeper` measures and decides, by these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# More passes over the training images than these are hardly worth their time: (images up to, passes), by what trains.
# Of networks from scratch and of pretrained ones all of whose layers train, and of a head on a frozen network.
MOST_PASSES: dict[str, tuple[tuple[float, int], ...]] = {
    "scratch": ((2_000, 200), (10_000, 150), (60_000, 100), (math.inf, 60)),
    "pretrained": ((1_000, 60), (10_000, 40), (math.inf, 25)),
    "head": ((1_000, 60), (10_000, 40), (math.inf, 20)),
}
PARTS = 10  # epochs that a limit is divided into at least, if one pass takes longer than such a part
LONGER = 1.5  # an epoch is left whole up to this many parts
VALIDATION_SHARE = 0.2  # of the time at most, as far as there are parts to choose
LEAST_STEPS = 10  # of any run: with fewer the network has seen next to nothing
TOLERANCE = 0.01  # of the limit: a nearer end is left as it is
ADVICE_SHARE, ADVICE_MOST = (
    0.05,
    20.0,
)  # of the limit, and seconds, in which it is measured what would help most
_LEAST_PART = 0.1  # of an epoch: a shorter last one is not worth its validation


def most_passes(images: int, kind: str) -> int:
    """Return how many passes over so many images are enough, by kind (of `MOST_PASSES`)."""
    return next(passes for size, passes in MOST_PASSES[kind] if images <= size)


def for_advice(limit: float) -> float:
    """Return the seconds of a limit in which it is measured, after training, what would help most."""
    return min(ADVICE_MOST, ADVICE_SHARE * limit)


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and of what follows an epoch's last step: validation, and a checkpoint."""

    step: float
    end: float = 0.0


def steps_in(seconds: float, cost: Cost, step: int, per_epoch: int) -> int:
    """Return the last step that is done in ``seconds``, from ``step`` on, with a validation at each epoch's end.

    Epochs end at multiples of ``per_epoch``, and training at the returned step, which is at least ``step``. An epoch of
    which hardly anything would fit is not begun.
    """
    left = per_epoch - step % per_epoch if step % per_epoch else 0
    if left:  # the rest of an epoch that has begun
        if seconds < left * cost.step + cost.end:
            return step + _part(seconds, cost, left)
        seconds, step = seconds - left * cost.step - cost.end, step + left
    whole = per_epoch * cost.step + cost.end
    epochs = int(seconds / whole + 1e-6)
    part = _part(seconds - epochs * whole, cost, per_epoch)
    worth = part >= _LEAST_PART * per_epoch or not (epochs or left)
    return step + epochs * per_epoch + (part if worth else 0)


def _part(seconds: float, cost: Cost, most: int) -> int:
    return min(most, max(0, int((seconds - cost.end) / cost.step + 1e-6)))


def time_of(cost: Cost, step: int, total: int, per_epoch: int) -> float:
    """Return the seconds from ``step`` until training ends after ``total`` steps, validations included."""
    ends = math.ceil(total / per_epoch) - step // per_epoch
    return (total - step) * cost.step + ends * cost.end if total > step else 0.0


def epoch_steps(seconds: float, cost: Cost, per_pass: int) -> int:
    """Return the steps of an epoch for a run of ``seconds``: those of a pass, or fewer where a pass takes too long."""
    part = seconds / PARTS
    if per_pass * cost.step + cost.end <= LONGER * part:
        return per_pass
    by_parts = (part - cost.end) / cost.step
    by_validation = cost.end * (1 - VALIDATION_SHARE) / VALIDATION_SHARE / cost.step
    return max(1, min(per_pass, math.ceil(max(by_parts, by_validation))))


@dataclass(frozen=True)
class Timeline:
    """Where in its plan a run is at each step, if its end is moved while it runs.

    ``nominal``: the steps of the plan that the schedule and all else that follows a fraction of the run are for, of
    which a pass over the images has ``per_pass``; an epoch, after which there is a validation, has ``per_epoch``.
    ``ends``: (step, total) pairs: from that step on the rest of the plan is spread evenly until step ``total``. Without
    them a step is its own place.
    """

    nominal: int
    per_pass: int
    per_epoch: int
    ends: Sequence[Sequence[int]] = ()

    @property
    def total(self) -> int:
        """The number of steps after which training ends."""
        return self.ends[-1][1] if self.ends else self.nominal

    @property
    def epochs(self) -> int:
        """The number of epochs; the last may be shorter."""
        return max(1, math.ceil(self.total / self.per_epoch))

    def at(self, step: int) -> float:
        """Return the place in the plan of a step, from 0 to ``nominal``; it never falls and never jumps."""
        if not self.ends:
            return step
        place, since, until = 0.0, 0, self.nominal
        for begins, total in self.ends:
            if begins > step:
                break
            place, since, until = self._between(place, since, until, begins), begins, total
        return self._between(place, since, until, step)

    def passes(self, step: int) -> float:
        """Return how many passes of the plan are done at a step, which decides what depends on the epoch."""
        place = self.at(step) / self.per_pass
        return int(place) if place == int(place) else place

    def with_end(self, step: int, total: int) -> Timeline:
        """Return the same with another end from ``step`` on; one at the same step is replaced."""
        before = [pair for pair in self.ends if pair[0] < step]
        return Timeline(self.nominal, self.per_pass, self.per_epoch, [*before, [step, total]])

    def _between(self, place: float, since: int, until: int, step: int) -> float:
        if step >= until or until <= since:
            return float(self.nominal)
        return place + (self.nominal - place) * (step - since) / (until - since)
