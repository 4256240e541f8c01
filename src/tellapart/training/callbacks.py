"""Callbacks: code that takes part in training without the loop knowing it by name.

The loop's own additions are of the same class: reporting (`reporting`), the kept epoch and early stopping
(`best_epoch`), and, if a run asks for them, smaller images first, fewer images, the profile, and the artifact's file.
Knows nothing of what any of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tellapart.data.loader import RawBatch
from tellapart.errors import SpecError, TrainingError

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer
    from tellapart.training.step import Outcome

_HOOKS = (
    "on_fit_start",
    "on_epoch_start",
    "before_step",
    "after_step",
    "on_validate",
    "on_epoch_end",
    "on_save",
    "on_fit_end",
    "on_exception",
)


class Callback:
    """Takes part in training: override the hooks that you need; each does nothing by itself.

    Hooks run in every process, in the order in which the callbacks were given, and tellapart's own before them. To end
    training: ``trainer.stop("why")``, from any hook.
    """

    name = ""
    """The name of the state in a checkpoint; empty: the class's name."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Training begins or continues; a saved state has already been loaded."""

    def on_epoch_start(self, epoch: int) -> None:
        """Before the first step of ``epoch`` (from 0), or of what is left of it; ``trainer.order`` may be changed."""

    def before_step(self, batch: RawBatch) -> RawBatch | None:
        """Before a step on this process's slice of a batch; if a batch is returned, it is used instead."""

    def after_step(self, outcome: Outcome) -> None:
        """After the weights were updated. Reading a value of ``outcome`` may wait for the device."""

    def on_validate(self, scores: Mapping[str, float]) -> None:
        """The validation figures at an epoch's end, by name; empty without a validation split."""

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """All figures of the epoch that ended, as they are logged."""

    def on_save(self) -> None:
        """A checkpoint has been written."""

    def on_fit_end(self) -> None:
        """Training has ended, or stops here and can be resumed (see ``trainer.progress.finished``)."""

    def on_exception(self, error: BaseException) -> None:
        """Training ends with an error, which is raised again afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for an exact resume: tensors and plain values. Called in every process for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Callbacks:
    """Several callbacks, called in order; a hook that none of them overrides costs nothing."""

    def __init__(self, members: Sequence[Callback]) -> None:
        for member in members:
            if not isinstance(member, Callback):
                raise SpecError(
                    f"callbacks: {member!r} is not an object of a class derived from tellapart.Callback."
                )
        self.members = _named(members)
        self._hooks = {name: [hook for m in members if (hook := _own(m, name))] for name in _HOOKS}
        self._before, self._after = self._hooks["before_step"], self._hooks["after_step"]

    def __call__(self, hook: str, *values: Any) -> None:
        """Call the hook of that name of every callback."""
        for function in self._hooks[hook]:
            function(*values)

    def before_step(self, batch: RawBatch) -> RawBatch:
        """Return the batch as the callbacks leave it."""
        for function in self._before:
            changed = function(batch)
            batch = batch if changed is None else changed
        return batch

    def after_step(self, outcome: Outcome) -> None:
        """Call every callback's hook."""
        for function in self._after:
            function(outcome)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of those that have one, by name. Raises TrainingError for what a checkpoint cannot hold."""
        states = {name: member.state_dict() for name, member in self.members.items()}
        for name, state in states.items():
            if place := _foreign(state):
                raise TrainingError(
                    f"The state of the callback {name!r} cannot be saved: {place}. state_dict may hold tensors, "
                    "numbers, texts, None, and lists, tuples and dicts of them."
                )
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]], warn: Callable[[str], None]) -> None:
        """Give each its state; ``warn`` is called for a state that belongs to none of them."""
        for name, state in states.items():
            if name in self.members:
                self.members[name].load_state_dict(state)
            else:
                warn(
                    f"The checkpoint has the state of a callback {name!r}, which is missing now: training "
                    "continues without it. To include it: tellapart.resume(run, callbacks=[...])."
                )


def _named(members: Sequence[Callback]) -> dict[str, Callback]:
    """Return the callbacks by name; a name that occurs again gets a number."""
    named: dict[str, Callback] = {}
    for member in members:
        name = base = member.name or type(member).__name__
        count = 1
        while name in named:
            count += 1
            name = f"{base}-{count}"
        named[name] = member
    return named


def _own(member: Callback, hook: str) -> Callable[..., Any] | None:
    """Return the callback's hook, None if it was not overridden."""
    method = getattr(member, hook)
    return None if getattr(method, "__func__", None) is getattr(Callback, hook) else method


def _foreign(value: Any, place: str = "state_dict()") -> str:
    """Return what in a state is neither a tensor nor a plain value, and where; empty if nothing."""
    if isinstance(value, dict):
        items = [(f"{place}[{key!r}]", item) for key, item in value.items()]
        if strange := next((key for key in value if type(key) not in (str, int, float, bool)), None):
            return f"{place} has a key of type {type(strange).__name__}"
        return next((text for where, item in items if (text := _foreign(item, where))), "")
    if type(value) in (list, tuple):
        return next((t for i, item in enumerate(value) if (t := _foreign(item, f"{place}[{i}]"))), "")
    plain = value is None or type(value) in (str, int, float, bool, bytes, complex)
    return "" if plain or isinstance(value, torch.Tensor) else f"{place} is of type {type(value).__name__}"
