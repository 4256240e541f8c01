"""The progress of a run, and the whole state in a checkpoint: taken from a plan, and restored into one.

Knows nothing of files (`checkpoint` writes them) or of when to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from tellapart.training.step import Plan

State = dict[str, torch.Tensor]


@dataclass
class Progress:
    """The progress of the run; plain values, saved with every checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    micro: int = 0
    stale: int = 0
    best_epoch: int = -1
    best_value: float = -math.inf
    best_loss: float = math.inf
    highest: float = (
        -math.inf
    )  # the highest figure of any epoch (see `choosing`); a loss counts as its negative
    highest_epoch: int = -1
    reference: float = -math.inf  # the figure that early stopping compares with
    reference_epoch: int = -1
    finished: bool = False
    planned: list[float] = field(
        default_factory=list
    )  # epochs, patience and time limit as requested; empty: unknown
    ends: list[list[int]] = field(default_factory=list)  # how the run's end was moved: see budget.Timeline
    seconds: float = 0.0  # of training in this epoch, over all sessions that trained it
    best_scores: dict[str, float] = field(default_factory=dict)
    # of the epoch: loss, the task's metrics, images; empty: zeros
    sums: list[float] = field(default_factory=list)
    window: list[float] = field(default_factory=list)  # since the last logged line

    def next_epoch(self) -> None:
        """Move on to the beginning of the next epoch."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.sums, self.seconds = [], 0.0


def content(
    plan: Plan, progress: Progress, best: State | None, callbacks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the state needed to resume, as tensors and plain values; it shares memory with the plan.

    ``callbacks``: the callbacks' states by name.
    """
    return {
        "model": plan.model.state_dict(),
        "optimizer": plan.optimizer.state_dict(),
        "schedule": plan.schedule.state_dict(),
        "ema": plan.ema.state_dict() if plan.ema else None,
        "scaler": plan.scaler.state_dict() if plan.scaler else None,
        "task": plan.task.own_state(),
        "callbacks": callbacks,
        "progress": vars(progress),
        "best": best,
    }


def check(saved: dict[str, Any]) -> None:
    """Raise ValueError if a checkpoint lacks something that `content` puts into it."""
    parts = ("model", "optimizer", "schedule", "ema", "scaler", "progress", "best")
    lacking = [name for name in parts if name not in saved]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    for name in ("model", "optimizer", "schedule", "progress"):
        if not isinstance(saved[name], dict):
            raise ValueError(f"its field {name} has the wrong type")
    Progress(**saved["progress"])


def take_up(plan: Plan, saved: dict[str, Any]) -> Progress:
    """Restore a checkpoint's ``content`` into a plan of the same spec; return the progress of the run."""
    plan.model.load_state_dict(saved["model"])
    plan.optimizer.load_state_dict(saved["optimizer"])
    plan.schedule.load_state_dict(saved["schedule"])
    if plan.ema:
        plan.ema.load_state_dict(saved["ema"])
    if plan.scaler:
        plan.scaler.load_state_dict(saved["scaler"])
    plan.task.load_own_state(saved.get("task") or {})
    known = saved["progress"]
    if "highest" not in known:  # of an earlier version, which compared with the best in all respects
        best = {"highest": known["best_value"], "reference": known["best_value"]}
        best |= {"highest_epoch": known["best_epoch"], "reference_epoch": known["best_epoch"]}
        known = {**best, "best_loss": known["best_scores"].get("loss", math.inf), **known}
    return Progress(**known)


def callback_states(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the states of callbacks that a checkpoint's ``content`` holds, by name."""
    if "callbacks" not in saved:  # of an earlier version, which stored one of them separately
        pruning = saved.get("pruning")
        return {"infobatch": pruning} if pruning else {}
    states: dict[str, dict[str, Any]] = saved["callbacks"]
    return states
