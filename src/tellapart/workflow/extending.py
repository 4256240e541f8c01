"""What may be changed when a run is resumed, and how one continues past its end.

The steps of a run are functions of its spec. A run that is resumed with another number of epochs is from there on what
a run of that many epochs would be at that point: the learning rate, and everything that happens after a fraction of the
epochs. Knows nothing of resuming otherwise.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tellapart import files, numerals, runs
from tellapart.errors import SpecError
from tellapart.spec import Spec, flatten, update
from tellapart.training.loop import Trainer
from tellapart.training.optim import current_lr

MAY_CHANGE = (
    "time_limit",
    "training.epochs",
    "training.patience",
    "run.log_every",
    "run.checkpoint_minutes",
    "run.tensorboard",
    "run.mlflow",
    "run.report",
)
_NOT_OPEN = {
    "training.epochs": "at least 1",
    "time_limit": "above 0 (such as 24h for one that hardly limits)",
}
_KEPT = re.compile(r"spec-(\d+)\.yaml")
_REASONS = {
    "data": "the images and their splits must stay the same",
    "input": "the model is trained on images that are prepared as before",
    "model": "the checkpoint contains exactly that network",
    "seed": "the order of the images and everything random follow from it",
    "speed": "a resumed run must keep what was chosen at its beginning",
    "run": "the run stays in its folder",
}
_TRAINING = "the steps so far were taken with the present value"


def changed(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """Return a run's spec with ``changes`` applied. Raises SpecError for what can no longer be changed."""
    made = update(spec, changes)
    before = flatten(spec)
    for name, value in flatten(made).items():
        if value != before[name]:
            refuse(name)
            if name in _NOT_OPEN and not value:
                raise SpecError(f"{name} is {value:g}; when a run is resumed, it must be {_NOT_OPEN[name]}.")
    return made


def refuse(name: str) -> None:
    """Raise SpecError if a field, by its dotted name, cannot be changed when a run is resumed."""
    if name in MAY_CHANGE:
        return
    reason = _REASONS.get(name.partition(".")[0], _TRAINING)
    raise SpecError(
        f"{name} cannot be changed when a run is resumed: {reason}. What can be: {', '.join(MAY_CHANGE)}. To start "
        "another run from this one's weights: tellapart train --model.weights RUN"
    )


def check(before: Spec, now: Spec, content: Mapping[str, Any] | None) -> None:
    """Raise SpecError if a run is to end before the point that it has reached. ``content``: its checkpoint."""
    epochs = now.training.epochs
    if content is None or epochs == before.training.epochs:
        return
    progress = content["progress"]
    done, begun = int(progress["epoch"]), bool(progress["step_in_epoch"])
    if epochs <= done:
        stands = f"{done} epochs are done already" + (f", and epoch {done + 1} has begun" if begun else "")
        raise SpecError(f"training.epochs is {epochs}, and {stands}; it must be at least {done + 1}.")


def write(folder: Path, spec: Spec) -> None:
    """Make ``spec`` that of a run; the one before is kept beside it as ``spec-1.yaml`` (``spec-2.yaml`` next)."""
    number = 1 + max((found for found, _ in _earlier(folder)), default=0)
    with files.replacing(folder / f"spec-{number}.yaml") as place:
        shutil.copyfile(folder / runs.SPEC_FILE, place)
    runs.write_spec(spec, folder / runs.SPEC_FILE)


def _earlier(folder: Path) -> list[tuple[int, Path]]:
    found = ((_KEPT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def take_up(trainer: Trainer, folder: Path) -> str:
    """Let a restored trainer continue past its former end; return the message about it, if any.

    The end was where the requested epochs were done, or early stopping ended the run; its patience starts again.
    """
    progress, training = trainer.progress, trainer.training
    planned = progress.planned
    if not planned:  # a checkpoint of an earlier version
        earlier = _earlier(folder)
        spec = runs.read_spec(earlier[-1][1]) if earlier else trainer.spec
        planned = [spec.training.epochs, spec.training.patience]
    now = [training.epochs, training.patience, trainer.spec.time_limit]
    planned = [*planned, *now[len(planned) :]]
    if planned[0] != now[0]:
        trainer.end_at(trainer.timeline.nominal, since=0)
    longer = now[2] > planned[2] > 0  # what that means, the limit's keeper says
    if planned == now or (progress.epoch >= trainer.timeline.epochs and not longer):
        return ""
    if progress.finished:
        progress.finished, progress.stale = False, 0
    if planned[0] == now[0]:
        if planned[1] == now[1]:
            return ""
        return f"Continues after epoch {progress.epoch} with training.patience {training.patience}."
    schedule, lr = trainer.plan.schedule, training.lr
    rates = [current_lr(trainer.plan.optimizer)]
    places = (progress.step, trainer.timeline.total - 1)
    rates += [lr * schedule.factor(trainer.timeline.at(step)) for step in places]
    last, following, end = (numerals.number(rate) for rate in rates)
    return (
        f"Continues to epoch {training.epochs} (before: {planned[0]}; {progress.epoch} are done). From here on the "
        f"learning rate is that of a run of {training.epochs} epochs, schedule {training.schedule}: {following} in "
        f"the next step (the last had {last}), {end} in the last one."
    )
