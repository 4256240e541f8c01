"""The beginning of a run: its samples, its decoded images, its plan; and the messages about them.

Knows nothing of run folders.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

import tellapart
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import Objects
from tellapart.data.stores.streaming import StreamedStore
from tellapart.evaluation import multilabel
from tellapart.spec import Spec, graded
from tellapart.tracking import Console
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution import Resolution
from tellapart.training.resolution.inputs import views
from tellapart.training.speed import autotune, features, fitting
from tellapart.training.step import Plan
from tellapart.training.time_plan import Timing
from tellapart.training.timekeeper import TimeKeeper
from tellapart.workflow import given as giving
from tellapart.workflow.telling import warn_of_leaks, warn_of_near_copies


@dataclass(frozen=True)
class Ready:
    """What a run has before its first step: its images and resolved spec, the plan, and the card of the artifact."""

    prepared: setup.RunData
    plan: Plan
    card: Card


def opened(spec: Spec, given: Objects | None, console: Console) -> Samples:
    """Return the samples of a spec's source, or of objects, and report the findings. Raises DataError."""
    if given is not None:
        given.ranged, given.depth = spec.input.range != "full", spec.input.depth
    return giving.open_data(graded(spec), given, console, console.note, console.warn)


def prepare(wanted: Spec | Resolution, samples: Samples, console: Console) -> setup.RunData:
    """Decode the images, and report what is wrong with them. Raises DataError, SpecError, ModelError."""
    resolution = wanted if isinstance(wanted, Resolution) else Resolution(wanted)
    with console.busy("Reading images", len(samples)) as busy:
        prepared = setup.prepare(resolution, samples, busy.advance)
    if isinstance(prepared.train.store, StreamedStore) and resolution.spec.data.cache == "auto":
        console.message(
            "The decoded images do not fit into the cache (--data.cache-limit, or the disk): they are decoded again "
            "in each epoch."
        )
    if prepared.bad:
        console.warn(
            f"Skipped {many(len(prepared.bad), 'image')} that cannot be read, listed in bad-images.csv; the first: "
            f"{prepared.bad[0].path}: {prepared.bad[0].reason}"
        )
    for warning in filter(None, (prepared.unused_range, prepared.rounded_away)):
        console.warn(warning)
    left = prepared.train.samples.counts()
    empty = [name for name, count in zip(prepared.classes, left, strict=True) if not count]
    if empty:
        console.warn(
            f"There is no readable training image of: {', '.join(empty)}. The model cannot learn these classes."
        )
    warn_of_leaks(prepared, console)
    warn_of_near_copies(prepared, console)
    return prepared


def make_plan(
    prepared: setup.RunData,
    procs: Processes,
    console: Console,
    began: float | None = None,
    resumed: bool = False,
) -> Ready:
    """Build what will be trained; everything that can be wrong in the spec is found here, before any file is written.

    What the result has as ``prepared`` leaves nothing open. ``began``: when the run's time limit began to count; None:
    it has none. ``resumed``: see `Timing`.
    """
    if prepared.spec.training.threads:
        torch.set_num_threads(prepared.spec.training.threads)
    model, architecture, info = setup.build_model(prepared)
    if info:
        console.message(f"Weights: {info.source}, licence: {info.licence or 'unknown'}")
        for note in info.notes:
            console.message(note)
        if info.non_commercial:
            console.warn(f"The licence of these weights ({info.licence}) forbids commercial use.")
    several = prepared.train.samples.targets is not None
    card = Card(
        kind="multi-label" if several else "single",
        thresholds=(multilabel.HALF,) * len(prepared.classes) if several else (),
        ordered=prepared.train.samples.ordered,
        levels=prepared.train.samples.levels,
        architecture=architecture,
        classes=prepared.classes,
        preprocessing=prepared.contract,
        weights=info.to_dict() if info else {},
        versions={
            "tellapart": tellapart.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        views=views(prepared.spec.input),
    )
    prepared = fitting.able(prepared, model)
    timing = None if began is None else Timing(model, procs, began, resumed)
    prepared = timing.fit(prepared) if timing else prepared
    prepared = autotune.choose(prepared, model, procs)
    prepared = timing.fit_again(prepared) if timing else prepared
    plan = setup.plan(prepared, model, procs)
    features.offer(plan, prepared, procs, console)
    if timing and timing.budget:
        plan.callbacks.append(TimeKeeper(timing.budget))
    return Ready(prepared, plan, card)
