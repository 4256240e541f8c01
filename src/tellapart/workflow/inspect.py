"""Looking at a data set before training: its health, and what augmentation does to it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.data import health as checking
from tellapart.data.sources.objects import take
from tellapart.errors import DataError
from tellapart.evaluation.check_page import write_check_page
from tellapart.spec import Spec, graded, update
from tellapart.tracking import Console
from tellapart.training import setup
from tellapart.training.resolution import Resolution, facts
from tellapart.workflow.asked import make_spec
from tellapart.workflow.given import open_data
from tellapart.workflow.pictures import augmented_pictures

SHOWN = 8  # images in the grid before and after augmentation


def check(
    data: Any = None,
    /,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    html: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> checking.Health:
    """Look at every image of a data set once and judge the whole; write a page with pictures to ``html``.

    ``data``, ``val``, ``test`` and ``classes`` as for ``train``: a path, or objects.

    The page also shows training pictures before and after the augmentation that ``spec`` describes, exactly
    as the network would see them. Raises DataError, SpecError.
    """
    given = take(data, val, test, classes)
    wanted = make_spec(given or data, None, spec, **changes)
    with Console(quiet=quiet) as console:
        if given is not None:
            given.ranged, given.depth = wanted.input.range != "full", wanted.input.depth
        samples = open_data(graded(wanted), given, console, console.message)
        with console.busy("Checking images", len(samples)) as busy:
            done = 0

            def progress(now: int, total: int) -> None:
                nonlocal done
                busy.advance(now - done)
                done = now

            levels, depth = wanted.input.levels(), wanted.input.depth
            health = checking.examine(
                samples,
                progress=progress,
                max_pixels=wanted.data.max_pixels,
                workers=wanted.data.workers,
                levels=levels,
                depth=depth,
            )
        if html is not None:
            augmented = _augmented(wanted, samples, console)
            write_check_page(health, samples, Path(html), augmented=augmented, levels=levels, depth=depth)
    return health


def _augmented(spec: Spec, samples: Any, console: Console) -> list[tuple[str, Any, list[Any]]]:
    """Return (label, before, several times after) for a few training images."""
    rows = np.flatnonzero(samples.splits == "train")
    if len(samples.classes) < 2 or not len(rows):
        return []
    few = np.sort(np.random.default_rng(spec.seed).permutation(rows)[: 8 * SHOWN])
    spec = update(spec, {"data.on_bad_image": "skip"})
    try:
        resolution = Resolution(spec).by_data(facts.of_data(spec, samples))
        with console.busy("Reading images", len(few)) as busy:
            prepared = setup.prepare(resolution, samples.select(few), busy.advance)
    except DataError:  # none of them can be read: the findings say so
        return []
    rounds = [augmented_pictures(prepared, SHOWN, seed) for seed in range(4)]
    before, _, labels = rounds[0]
    return [
        (prepared.label_names(label), before[place], [after[place] for _, after, _ in rounds])
        for place, label in enumerate(labels)
    ]
