"""Holds a run to its limit of time: looks at the clock now and then, and moves the end of training.

At an epoch's end, and at some steps within it, what is left is divided by the pace of late. If the end as planned would
be too late, training ends sooner; if there is time to spare, later, up to what is enough. Where the end is, is in the
trainer's progress, so that a resumed run has the same. Knows nothing of how the pace was measured at first.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from tellapart import clock, numerals
from tellapart.training import budget, foreseen, stages
from tellapart.training.budget import Cost
from tellapart.training.callbacks import Callback
from tellapart.training.time_plan import Budget, passes_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tellapart.training.loop import Trainer
    from tellapart.training.step import Outcome

LOOKS = 50  # within the limit, besides those at epochs' ends
INTERVALS = 6  # between looks, from which the pace is taken; the slowest of them, which may be a stall, does not count
NEARLY = 0.05  # of the limit: a run that ends earlier by more says why
TOLD = 0.1  # change of the steps that are left, from which on it is said
_POSITIONS = 32  # in the rest of the plan, at which the cost of a step is averaged


class TimeKeeper(Callback):
    """Moves the end of training so that the run ends in its time.

    ``used``: seconds of the limit that earlier sessions of a resumed run took; ``why``: why training ended before the
    limit, if it did.
    """

    name = "time-limit"

    def __init__(self, plan: Budget) -> None:
        self.budget = plan
        self.used = 0.0
        self.why = ""
        self._known: dict[str, Any] = {}
        # By kind of step: (seconds, forward passes of a batch) of the last intervals.
        self._pace = {"images": [(plan.pace.step, plan.pace.passes)]}
        self._end = plan.end
        self._mark: tuple[float, int] | None = None  # since when the pace is measured, and the step
        self._look_at, self._said = math.inf, 0

    # Hooks

    def on_fit_start(self, trainer: Trainer) -> None:
        """Say the plan, or where a resumed run is in it."""
        self.trainer, plan = trainer, self.budget
        fresh = not trainer.progress.step and not trainer.progress.ends
        longer = self._known.get("limit", plan.limit) != plan.limit
        if fresh:
            trainer.report.message(textwrap.fill(plan.text, 80, subsequent_indent="  "))
        if fresh and plan.first != trainer.timeline.total:
            trainer.end_at(plan.first)
        elif not fresh and longer and not trainer.progress.finished:
            self._again()
        self._said = trainer.timeline.total

    def on_epoch_start(self, epoch: int) -> None:
        """Measure from here on; what came before was validation, or features."""
        now = clock.now()
        self._mark = (now, self.trainer.progress.step)
        self._look_at = now + self.budget.limit / LOOKS

    def after_step(self, outcome: Outcome) -> None:
        """Look at the clock now and then; several processes do so at an epoch's end alone."""
        trainer, step = self.trainer, self.trainer.progress.step
        ends = step % trainer.plan.steps_per_epoch == 0 or step >= trainer.timeline.total
        if trainer.processes.world == 1 and not ends and (now := clock.now()) >= self._look_at:
            self._look_at = now + self.budget.limit / LOOKS
            self._note(now)
            self._decide(within=True)

    def on_validate(self, scores: Mapping[str, float]) -> None:
        """Note the epoch's pace and what its validation took, and decide how many steps are left."""
        trainer = self.trainer
        if trainer.progress.step_in_epoch:  # else it was an epoch without steps, whose time is only used
            self._note(trainer.trained_at)
            self._end = clock.now() - trainer.trained_at
        self._decide(within=False)

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """Say why training ends, if it is not for the time."""
        trainer, plan = self.trainer, self.budget
        if not trainer.progress.finished:
            return
        if trainer.stopping:
            self.why = trainer.stopping
            return
        if stages.fitted_at(trainer.spec, 0) and trainer.progress.epoch == 0:
            alone = trainer.spec.model.finetune == "head"
            self.why = "the head is fitted" if alone else "after the head, no time is left for all layers"
            if not alone:
                trainer.report.message(f"Training ends: {self.why} (--time-limit {clock.words(plan.limit)}).")
            return
        spare = plan.limit - self.elapsed() - plan.reserve
        if trainer.timeline.total >= self._most():
            passes = passes_words(trainer.timeline.total / trainer.plan.steps_per_pass)
            self.why = f"{passes} {'are enough for this many images' if self._enough() else 'were asked for'}"
            if spare > NEARLY * plan.limit:
                trainer.report.message(
                    f"Training ends {numerals.duration(spare)} before it would have to, for the limit of "
                    f"{clock.words(plan.limit)}: {self.why}."
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the time that is used up."""
        return {
            "used": self.elapsed(),
            "limit": self.budget.limit,
            "nominal": self.trainer.timeline.nominal,
            "most": self._most(),
            "enough": self._enough(),
            "pace": {kind: [list(one) for one in recent] for kind, recent in self._pace.items()},
            "end": self._end,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count what earlier sessions used, and go on with their pace, which soon becomes that of now."""
        self._known, self.used = dict(state), float(state["used"])
        self._pace = {kind: [(one[0], one[1]) for one in recent] for kind, recent in state["pace"].items()}
        self._end = float(state["end"])

    def _enough(self) -> bool:
        return bool(self._known.get("enough", self.budget.enough))

    # The pace

    def elapsed(self) -> float:
        """Return the seconds of the limit that are used."""
        return self.used + clock.now() - self.budget.began

    def _note(self, now: float) -> None:
        """Take the interval since the mark into the pace."""
        assert self._mark is not None
        since, first = self._mark
        trainer, seconds = self.trainer, now - since
        steps = trainer.progress.step - first
        if steps <= 0 or seconds <= 0:
            return
        cost = foreseen.cost_at(trainer.plan, trainer.passes)
        recent = [*self._pace.get(cost.kind, ()), (seconds, steps * cost.passes)]
        self._pace[cost.kind] = recent[-INTERVALS:]
        self._mark = (now, trainer.progress.step)

    def _cost(self) -> Cost:
        """Return what the steps that are left cost on average, and an epoch's end."""
        trainer = self.trainer
        timeline, now = trainer.timeline, trainer.timeline.at(trainer.progress.step)
        seconds, pace = 0.0, {kind: _usual(recent) for kind, recent in self._pace.items()}
        for number in range(_POSITIONS):
            place = now + (timeline.nominal - now) * (number + 0.5) / _POSITIONS
            cost = foreseen.cost_at(trainer.plan, place / timeline.per_pass)
            seconds += pace.get(cost.kind, 0.0) * cost.passes
        return Cost(max(seconds / _POSITIONS, 1e-6), self._end)

    # The end

    def _most(self) -> int:
        """Return the most steps, which a resumed run has from its beginning unless its epochs were changed."""
        known = self._known
        same = known.get("nominal") == self.trainer.timeline.nominal
        return int(known["most"]) if same else self.budget.most

    def _decide(self, within: bool) -> None:
        """Move the end if the present one is too far from the time that is left; all processes move it alike."""
        trainer, plan = self.trainer, self.budget
        step, total = trainer.progress.step, trainer.timeline.total
        cost = self._cost()
        wanted = self._wanted(cost, step)
        moves = abs(self._finish(cost, wanted) - self._finish(cost, total)) > budget.TOLERANCE * plan.limit
        if not within:
            moves, wanted = trainer.processes.from_first((moves, wanted))
        if wanted == total or not moves or trainer.stopping:
            return
        trainer.end_at(wanted)
        if not within:
            self._tell(cost, step)

    def _wanted(self, cost: Cost, step: int) -> int:
        """Return the step after which training should end."""
        plan, per_epoch = self.budget, self.trainer.plan.steps_per_epoch
        seconds = plan.limit - plan.reserve - self.elapsed()
        fits = budget.steps_in(seconds, cost, step, per_epoch)
        least = plan.first if plan.first <= budget.LEAST_STEPS else 0
        return max(step, min(self._most(), max(fits, least)))

    def _finish(self, cost: Cost, total: int) -> float:
        trainer = self.trainer
        return budget.time_of(cost, trainer.progress.step, total, trainer.plan.steps_per_epoch)

    def _tell(self, cost: Cost, step: int) -> None:
        """Say that the plan has changed, if it has by much since it was last said."""
        trainer, total = self.trainer, self.trainer.timeline.total
        if abs(total - self._said) <= TOLD * max(self._said - step, 1):
            return
        word = "slower" if total < self._said else "faster"
        self._said = total
        rate = numerals.rate(trainer.training.batch_size / cost.step)
        per_pass = trainer.plan.steps_per_pass
        trainer.report.message(
            f"Training is {word} than planned ({rate} images/s): {passes_words(total / per_pass)} now."
        )

    def _again(self) -> None:
        """Take another limit than the run had so far: its steps are from here on those of a run of that length."""
        trainer, plan = self.trainer, self.budget
        step = trainer.progress.step
        wanted = trainer.processes.from_first(max(self._wanted(self._cost(), step), step + 1))
        trainer.end_at(wanted, since=0)
        trainer.report.message(
            f"The limit is now {clock.words(plan.limit)} (before: {clock.words(self._known['limit'])}), of which "
            f"{numerals.duration(self.elapsed())} are used: "
            f"{passes_words(wanted / trainer.plan.steps_per_pass)} in all."
        )


def _usual(recent: Sequence[tuple[float, float]]) -> float:
    """Return the seconds of a forward pass of a batch, of intervals of which the slowest does not count."""
    kept = sorted(recent, key=lambda one: one[0] / one[1])
    if len(kept) > 2:
        kept.pop()
    return sum(one[0] for one in kept) / sum(one[1] for one in kept)


def taken(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Return how long a run took until now, its limit, and why it ended earlier; empty for a run without a limit."""
    for one in callbacks:
        if isinstance(one, TimeKeeper):
            took, limit = one.elapsed(), one.budget.limit
            early = took < (1 - NEARLY) * limit
            why = (one.why or "the evaluation took less time than was reserved for it") if early else ""
            return {"seconds": round(took, 2), "limit": limit, "why": why}
    return {}
