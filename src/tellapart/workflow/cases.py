"""The images on which an export is compared with its artifact: those given, or the run's own, or generated ones.

Knows nothing of formats.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import runs
from tellapart.contract import Card, Pixels
from tellapart.data.samples import Samples
from tellapart.data.sources.objects import Objects
from tellapart.errors import DataError, UserError
from tellapart.export import synthetic
from tellapart.export.outcome import Case, Cases
from tellapart.spec import DataSpec, update
from tellapart.tracking import Console
from tellapart.workflow.exported import content_of
from tellapart.workflow.given import open_data
from tellapart.workflow.measure import with_classes, with_kind

MADE_UP = 200  # images, at most


def cases_of(
    found: Path,
    card: Card,
    objects: Objects | None,
    changes: Mapping[str, Any],
    split: str,
    count: int,
    console: Console,
) -> Cases:
    """Return at most ``count`` images: of the source in ``changes``, which may be objects, else of the artifact's run.

    ``changes``: fields of the data section.
    """
    made_up = functools.partial(synthetic.synthetic, min(count, MADE_UP), contract=card.preprocessing)
    if "source" in changes:
        base = DataSpec(val_fraction=0.0, test_fraction=0.0)
        return _of_source(update(base, dict(changes)), card, split, count, console, objects)
    if not runs.is_run(found.parent):
        console.warn(
            f"{found} is not in a run folder, so its images are not known; give them with --data DATA."
        )
        return made_up()
    spec = update(runs.read_spec(found.parent / runs.SPEC_FILE).data, dict(changes))
    try:
        return _of_source(spec, card, split, count, console)
    except UserError as error:
        if split or changes:
            raise
        console.warn(f"The run's own images cannot be used ({error}); give others with --data DATA.")
        return made_up()


def _of_source(
    spec: DataSpec, card: Card, split: str, count: int, console: Console, objects: Objects | None = None
) -> Cases:
    spec = update(spec, with_kind({"labels": spec.labels}, card))
    if objects is not None:
        objects.known, objects.ranged = card.classes, card.preprocessing.range is not None
    samples = with_classes(open_data(spec, objects, console, lambda note: None), card.classes)
    if samples.targets is not None and not card.several:
        raise DataError(
            f"Images of {spec.source} can have several labels, and the model gives one for each. --data.labels single "
            "leaves out those with several."
        )
    present = set(samples.splits.tolist())
    chosen = split or next((name for name in ("val", "test") if name in present), "all")
    part = samples if chosen == "all" else samples.split(chosen)
    if not len(part):
        raise DataError(f"{spec.source} has no {chosen} images.")
    used = _only(part, stratified(part.labels, count))
    cases = [
        Case(
            str(used.paths[row]),
            _reading(used, row, card, spec),
            None if card.several else int(used.labels[row]),
        )
        for row in range(len(used))
    ]
    words = "all of" if len(cases) == len(part) else f"{len(cases)} of the {len(part)} images of"
    where = spec.source if chosen == "all" else f"{spec.source}, {chosen}"
    return Cases(cases, where if words == "all of" else f"{where} ({words} it)")


def _reading(samples: Samples, row: int, card: Card, spec: DataSpec) -> Callable[[], bytes | Pixels]:
    """Return what gives an image's content; of objects the content itself, as another process has not the objects."""
    read = functools.partial(content_of, samples, row, card.preprocessing, spec.max_pixels)
    return read if samples.items is None else functools.partial(_same, read())


def _same(content: bytes | Pixels) -> bytes | Pixels:
    return content


def _only(samples: Samples, rows: Any) -> Samples:
    """Return the table of only some rows and their pixels, to be sent to another process."""
    chosen = samples.select(rows)
    if chosen.pixels is None:
        return chosen
    keys = rows if chosen.keys is None else chosen.keys
    return dataclasses.replace(chosen, pixels=np.asarray(chosen.pixels[keys]), keys=None)


def stratified(labels: Any, count: int, seed: int = 0) -> Any:
    """Return the rows of at most ``count`` samples, evenly from the classes as far as they go: int64, sorted."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    place: dict[int, int] = {}
    ranks = np.empty(len(labels), np.int64)  # each sample's index within its class
    for row in shuffled:
        label = int(labels[row])
        ranks[row] = place[label] = place.get(label, -1) + 1
    order = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    return np.sort(order[:count])
