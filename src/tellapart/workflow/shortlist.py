"""Which networks suit a data set and this machine: their weights, and how long they would take, as measured here.

Nothing is downloaded, trained or written, except measurements in the tuning cache. What networks there are is in
`models.candidates`, how they are measured in `training.speed.pace`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tellapart import clock, packages
from tellapart.contract.sides import Size
from tellapart.data.samples import Samples
from tellapart.data.sources.objects import Objects, take
from tellapart.errors import DataError, MissingPackageError, ModelError, SpecError, TrainingError
from tellapart.models import candidates as models
from tellapart.models import zoo
from tellapart.models.candidates import Origin
from tellapart.sections import differing
from tellapart.spec import Spec, graded, update
from tellapart.tracking import Console
from tellapart.training.distributed import Processes, processes
from tellapart.training.resolution import DataFacts, Resolution, by_size, facts
from tellapart.training.speed import pace
from tellapart.training.speed.pace import Pace
from tellapart.workflow.asked import make_spec
from tellapart.workflow.given import open_data

ENOUGH_EPOCHS = {True: 10, False: 2}
"""Epochs below which training all layers is not worthwhile: from scratch, and from weights."""
_ABOUT_IMAGES = ("data", "input", "augment", "training", "speed", "seed")


@dataclass(frozen=True)
class Candidate:
    """A network, and what to expect of it here.

    ``weights``, ``where``, ``package``, ``licence`` (of the weights, or of our own code), ``accuracy`` and
    ``accuracy_by``: see `models.candidates.Origin`. ``size``: input in pixels. ``forward`` and ``training``: images a
    second that were measured, of forward passes and of training all layers, in ``precision``. ``features_seconds``:
    for one pass over the training images, None without weights. ``epochs``: of all layers, within the time limit.
    ``fits``: layers (all of them can be trained), head (on features), no. ``default``: whether `train` chooses it by
    itself. ``problem``: why nothing was measured.
    """

    name: str
    weights: str
    where: str
    package: str
    licence: str | None
    accuracy: float | None
    accuracy_by: str
    size: Size = 0
    parameters: int | None = None
    forward: float | None = None
    training: float | None = None
    precision: str = ""
    features_seconds: float | None = None
    epoch_seconds: float | None = None
    epochs: int | None = None
    fits: str = "no"
    default: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Candidates:
    """The candidates for a data set, those that fit first.

    ``images``: of training. ``shortest`` and ``longest``: sides of the images that were looked at, in pixels.
    ``time_limit``: in seconds, or None. ``notes``: what else should be known.
    """

    source: str
    images: int
    classes: int
    shortest: int
    longest: int
    device: str
    threads: int
    time_limit: float | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


def candidates(
    data: Any = None,
    /,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    pattern: str = "",
    time_limit: str | float | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Candidates:
    """Return networks that suit a data set, with their weights and how long they would take on this machine.

    Each is measured for a second or two on a few of the images, and the measurements are cached, so asking again takes
    no time. Nothing is downloaded, and no run folder is written.

    ``data``, ``val``, ``test`` and ``classes`` as for ``train``: a path, a name, or objects. ``pattern``: instead of
    the usual candidates, the models that ``models`` lists for it. ``time_limit``: such as ``10m``, ``90s``, ``1h30m``,
    or seconds; says what fits, and orders by it. ``spec`` and ``changes``: options about the images, training and
    speed, as for ``train``. ``quiet``: no progress on standard error.

    Raises DataError, SpecError; ModelError for a pattern that no model matches.
    """
    objects = take(data, val, test, classes)
    wanted = make_spec(objects or data, None, spec, **changes)
    _check(wanted)
    limit = None if time_limit in (None, "") else _limit(time_limit)
    with processes(wanted.training.device) as procs, Console(quiet=quiet) as console:
        samples = _opened(wanted, objects, console)
        return _Search(wanted, samples, procs, limit).run(pattern, console)


def _limit(given: str | float) -> float:
    seconds = clock.seconds(str(given), "time_limit")
    if seconds <= 0:
        raise SpecError(f"time_limit is {given}; it must be above 0, such as 10m.")
    return seconds


def _check(wanted: Spec) -> None:
    """Refuse options that the candidates themselves decide. Raises SpecError."""
    given = sorted(differing(wanted, Spec()))
    others = [name for name in given if name.partition(".")[0] not in _ABOUT_IMAGES]
    if others:
        raise SpecError(
            f"{', '.join(others)} cannot be given here: models are compared, and none is trained. A pattern selects "
            "models."
        )


def _opened(wanted: Spec, objects: Objects | None, console: Console) -> Samples:
    if objects is not None:
        objects.ranged, objects.depth = wanted.input.range != "full", wanted.input.depth
    samples = open_data(graded(wanted), objects, console, lambda text: None)
    if len(samples.classes) < 2 or not (samples.splits == "train").any():
        what = "only one class" if len(samples.classes) < 2 else "no training images"
        raise DataError(f"{samples.root or samples.name} has {what}; nothing can be trained on it.")
    return samples


class _Search:
    """Candidates for one data set."""

    def __init__(self, wanted: Spec, samples: Samples, procs: Processes, limit: float | None) -> None:
        self.wanted, self.samples, self.procs, self.limit = wanted, samples, procs, limit
        self.train = samples.split("train")
        self.data: DataFacts = facts.of_data(wanted, samples)
        scarce = by_size.few_for_scratch(self.data) and by_size.lite_installed()
        # Too small for what weights know, unless there are so few that weights are better all the same.
        self.small = self.data.seen.longest <= zoo.SMALL_IMAGES and not scarce

    def run(self, pattern: str, console: Console) -> Candidates:
        """Measure everything, and return it in order."""
        origins = models.matching(pattern) if pattern else models.all_of(self.data.seen.longest)
        usual = self._usual()
        with console.busy("Measuring models", len(origins)) as busy:
            found = []
            for origin in origins:
                found.append(self._candidate(origin, usual))
                busy.advance(1)
        seen = self.data.seen
        return Candidates(
            source=str(self.wanted.data.source),
            images=len(self.train),
            classes=len(self.samples.classes),
            shortest=seen.shortest,
            longest=seen.longest,
            device=self.procs.device.type,
            threads=torch.get_num_threads(),
            time_limit=self.limit,
            candidates=tuple(sorted(found, key=self._order)),
            notes=_notes(),
        )

    def _usual(self) -> tuple[str, str]:
        """Return the network and the weights that `train` would choose for this data."""
        model = self._resolved({}).spec.model
        return model.name, model.weights

    def _resolved(self, changes: dict[str, Any]) -> Resolution:
        return Resolution(update(self.wanted, changes)).by_data(self.data)

    def _candidate(self, origin: Origin, usual: tuple[str, str]) -> Candidate:
        known = {field.name: getattr(origin, field.name) for field in dataclasses.fields(origin)}
        candidate = Candidate(**known, default=(origin.name, origin.weights) == usual)
        try:
            resolved = self._resolved(_as_chosen(origin))
            candidate = dataclasses.replace(candidate, size=resolved.spec.input.size)
            return self._expected(candidate, self._pace(resolved))
        except (ModelError, SpecError, TrainingError, MissingPackageError) as error:
            return dataclasses.replace(candidate, problem=str(error))

    def _pace(self, resolved: Resolution) -> Pace:
        known = pace.recall(resolved, len(self.samples.classes), self.procs)
        if known is not None:
            return known
        return pace.measure(resolved, self._part(resolved.spec.training.batch_size), self.procs)

    def _part(self, count: int) -> Samples:
        """Return some of the training images, evenly over the table, with some that have a label."""
        rows = np.arange(len(self.train))
        if self.train.targets is not None:
            rows = np.flatnonzero(self.train.targets.any(axis=1))
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))
        return self.train.select(rows[chosen])

    def _expected(self, candidate: Candidate, pace: Pace) -> Candidate:
        """Turn the pace into what it means for this data and this time."""
        images, scratch = len(self.train), candidate.weights == "none"
        epoch, features = images / pace.training, None if scratch else images / pace.forward
        epochs = None if self.limit is None else int(self.limit / epoch)
        fits = "layers"
        if self.limit is not None and (epochs or 0) < ENOUGH_EPOCHS[scratch]:
            fits = "head" if features is not None and features <= self.limit else "no"
        return dataclasses.replace(
            candidate,
            parameters=pace.parameters,
            forward=pace.forward,
            training=pace.training,
            precision=pace.precision,
            features_seconds=features,
            epoch_seconds=epoch,
            epochs=epochs,
            fits=fits,
        )

    def _order(self, candidate: Candidate) -> tuple[Any, ...]:
        """Order by what fits, what is at hand, and the published accuracy; from scratch last, for small images first.

        For larger images a network without weights is what is left if nothing else can be had.
        """
        scratch, nothing = candidate.weights == "none", candidate.fits == "no"
        return (
            bool(candidate.problem),
            scratch and not self.small,
            ("layers", "head", "no").index(candidate.fits),
            not scratch,
            candidate.where in ("install", "download"),
            0 if nothing else -(candidate.accuracy or 0),
            candidate.features_seconds or 0,
            candidate.epoch_seconds or 0,
        )


def _as_chosen(origin: Origin) -> dict[str, Any]:
    """Return the options that choose it. Weights that are not installed are like those of the library."""
    weights = "in1k" if origin.where == "install" else origin.weights
    return {"model.name": origin.name, "model.weights": weights, "model.finetune": "full"}


def _notes() -> tuple[str, ...]:
    if packages.installed("timm"):
        return ()
    return ('Pretrained networks need timm: pip install "tellapart[models]".',)
