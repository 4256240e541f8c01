"""The beginning of a run: its samples, its decoded images, its plan; and the messages about them.

Knows nothing of run folders.
"""

from __future__ import annotations

import platform
from typing import Any

import torch

import tellapart
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import Objects
from tellapart.data.stores.streaming import StreamedStore
from tellapart.evaluation import multilabel
from tellapart.spec import Spec
from tellapart.tracking import Console
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution.inputs import views
from tellapart.training.speed import autotune, features
from tellapart.training.step import Plan
from tellapart.workflow import given as giving
from tellapart.workflow.telling import warn_of_leaks


def in_turn(procs: Processes, work: Any) -> Any:
    """Let the first process fill caches before the others use them."""
    result = work() if procs.first else None
    procs.wait()
    return result if procs.first else work()


def opened(spec: Spec, given: Objects | None, console: Console) -> Samples:
    """Return the samples of a spec's source, or of objects, and report the findings. Raises DataError."""
    if given is not None:
        given.ranged = spec.input.range != "full"
    return giving.open_data(spec.data, given, console, console.note, console.warn)


def prepare(spec: Spec, samples: Samples, console: Console) -> setup.RunData:
    """Decode the images, and report what is wrong with them. Raises DataError, SpecError, ModelError."""
    with console.busy("Reading images", len(samples)) as busy:
        prepared = setup.prepare(spec, samples, busy.advance)
    if isinstance(prepared.train.store, StreamedStore) and spec.data.cache == "auto":
        console.message(
            "The decoded images do not fit into the cache (--data.cache-limit, or the disk): they are decoded again "
            "in each epoch."
        )
    if prepared.bad:
        console.warn(
            f"Skipped {many(len(prepared.bad), 'image')} that cannot be read, listed in bad-images.csv; the first: "
            f"{prepared.bad[0].path}: {prepared.bad[0].reason}"
        )
    if prepared.unused_range:
        console.warn(prepared.unused_range)
    left = prepared.train.samples.counts()
    empty = [name for name, count in zip(prepared.classes, left, strict=True) if not count]
    if empty:
        console.warn(
            f"There is no readable training image of: {', '.join(empty)}. The model cannot learn these classes."
        )
    warn_of_leaks(prepared, console)
    return prepared


def make_plan(
    prepared: setup.RunData, procs: Processes, console: Console
) -> tuple[setup.RunData, Plan, Card]:
    """Build what will be trained; everything that can be wrong in the spec is found here, before any file is written.

    Returns ``prepared`` too, with a spec that leaves nothing open.
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
    prepared = autotune.choose(prepared, model, procs, console.message)
    plan = setup.plan(prepared, model, procs)
    features.offer(plan, prepared, procs, console)
    return prepared, plan, card
