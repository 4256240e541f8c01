"""The search for a learning rate: a few steps of training while it rises. Nothing is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tellapart.references import Trust
from tellapart.spec import Spec, update
from tellapart.tracking import Console, Trackers
from tellapart.training import loop
from tellapart.training.distributed import processes
from tellapart.training.methods import lr_finder
from tellapart.training.methods.lr_finder import LrCurve
from tellapart.training.resolution import Resolution
from tellapart.workflow.asked import Asked, Telling
from tellapart.workflow.preparing import make_plan, opened, prepare
from tellapart.workflow.telling import RunReporter


def find_lr(
    data: Any = None,
    /,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    steps: int = 100,
    quiet: bool = False,
    trust: Trust = False,
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    **changes: Any,
) -> LrCurve:
    """Train while the learning rate rises, and return the losses and a rate that suits (Smith, 2015).

    Nothing is written. Arguments as for ``train``.
    """
    asked = Asked.of(
        data,
        (val, test, classes),
        (recipe, spec),
        changes,
        {"loss": loss, "metrics": metrics, "optimizer": optimizer, "schedule": schedule},
        trust,
        Telling(quiet),
    )
    wanted = update(asked.spec, {"model.head": "gradient"})  # a solver takes no steps, and has no rate
    with (
        asked.own.at_hand(wanted),
        processes(wanted.training.device) as procs,
        Console(quiet=quiet) as console,
    ):
        samples = opened(wanted, asked.objects, console)
        # Whoever uses the rate that is found will give it, and what is chosen then must be chosen here.
        resolution = Resolution(wanted, given=asked.given)
        fixed = (resolution.given or frozenset()) | {"training.lr"}
        resolution = dataclasses.replace(resolution, given=fixed)
        plan = make_plan(prepare(resolution, samples, console), procs, console).plan
        trainer = loop.Trainer(plan, procs, Path(os.devnull), RunReporter(console, Trackers([]), 0, 1))
        with console.busy("Testing learning rates", steps) as busy:
            return lr_finder.find_lr(_counted(lr_finder.steps_at(trainer), busy.advance), steps)


def _counted(step: Any, advance: Any) -> Any:
    def call(lr: float) -> float:
        advance(1)
        loss: float = step(lr)
        return loss

    return call
