"""Where a run computes, reports and writes: its processes, its console, and its own folder.

Knows nothing of what a run does there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tellapart import clock, files, runs
from tellapart.spec import Spec
from tellapart.tracking import Console, check_mlflow
from tellapart.training.distributed import Processes, processes
from tellapart.training.resolution import checks

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """``make``: makes a new run's folder, by its model's name; None but in the first process of one that begins.

    ``began``: when the run's time limit begins to count, of `clock`.
    """

    procs: Processes
    console: Console
    make: Callable[[str], Path] | None = None
    began: float = field(default_factory=clock.now)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.procs.first

    def in_turn(self, work: Callable[[], T]) -> T:
        """Let the first process fill caches before the others use them."""
        if self.procs.first:
            result = work()
            self.procs.wait()
            return result
        self.procs.wait()
        return work()


@contextlib.contextmanager
def for_new(spec: Spec, quiet: bool) -> Iterator[Place]:
    """Give the place of a run, or of several, that is to begin. Raises RunError, SpecError, before anything is read."""
    began = clock.began()
    with _computing(spec, quiet) as (procs, console), contextlib.ExitStack() as stack:
        checks.check_device(spec, procs.device)
        claim = stack.enter_context(runs.Claim(spec.run.dir)) if procs.first else None
        if procs.first and spec.run.mlflow:
            check_mlflow()
        yield Place(procs, console, claim.make if claim else None, began)


@contextlib.contextmanager
def of_run(folder: Path, spec: Spec, quiet: bool) -> Iterator[Place]:
    """Give the place of a run, or of several, that is resumed in ``folder``. Raises RunError if another has it."""
    began = clock.began()
    with _computing(spec, quiet) as (procs, console), contextlib.ExitStack() as stack:
        if procs.first:
            stack.callback(runs.hold(folder).release)
            files.sweep(folder)
            if spec.run.mlflow:
                check_mlflow()
        yield Place(procs, console, began=began)


@contextlib.contextmanager
def _computing(spec: Spec, quiet: bool) -> Iterator[tuple[Processes, Console]]:
    with processes(spec.training.device) as procs, Console(quiet=quiet or not procs.first) as console:
        yield procs, console
