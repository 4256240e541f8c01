"""Several runs of one spec: cross-validation over folds, the same run with several seeds, and resuming them.

Each is a run like any other, in a folder of its own below the common one. ``folds.json`` or ``repeats.json`` there says
which runs belong together and what those that are finished achieved; it is written anew after each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import artifact, runs
from tellapart.data.samples import Samples, listed_hashes
from tellapart.data.sources import opening
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import Objects, take
from tellapart.data.stores import images as decoded
from tellapart.errors import DataError, RunError, SpecError
from tellapart.evaluation import infer
from tellapart.evaluation import series as figures
from tellapart.references import Trust
from tellapart.runtime.eager import open_artifact
from tellapart.spec import InputSpec, Spec, update
from tellapart.tracking import Console, check_mlflow
from tellapart.training import ineffective
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes, processes
from tellapart.training.resolution import Resolution, checks, facts
from tellapart.workflow import given as giving
from tellapart.workflow import own_code, run_files
from tellapart.workflow.finishing import brief
from tellapart.workflow.measure import evaluate_set
from tellapart.workflow.preparing import in_turn, opened
from tellapart.workflow.run import New, Result, begin, make_spec, resume_run

OWN_TEST = "own-test"  # name of the evaluation on the source's own test split, which is in no fold
_MOST = 1000


@dataclass(frozen=True)
class Series(Result):
    """What several runs achieved together.

    ``run`` is the folder of all; ``artifact`` the first run's, each has its own. ``metrics`` of folds are those of all
    images, each answered by the model that has not seen it (split ``out-of-fold``), and empty for seeds. ``summary``
    holds mean, deviation and interval of each figure, ``runs`` the figures of each run.
    """

    kind: str = "folds"
    count: int = 0
    runs: tuple[dict[str, Any], ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)


def cross_validate(
    data: Any = None,
    /,
    *,
    folds: int = 5,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    quiet: bool = False,
    profile: bool = False,
    callbacks: Sequence[Callback] = (),
    trust: Trust = False,
    **changes: Any,
) -> Series:
    """Train a model for each of ``folds`` folds on the others, and measure it on the fold that it has not seen.

    Folds are of all images but the source's own test split, stratified; groups and copies of a picture stay in one.
    Of what a model trains on, ``data.val_fraction`` chooses the epoch. Callbacks take part in one run after the other.
    Arguments else as for ``train``. Raises: errors of ``tellapart.errors``.
    """
    if not 2 <= folds <= _MOST:
        raise SpecError(f"folds is {folds}; a cross-validation needs from 2 to {_MOST:,} folds.")
    given = take(data, val, test, classes)
    wanted = _named(given or data, recipe, spec, trust, changes)
    if wanted.data.fold:
        raise SpecError(
            f"data.fold is {wanted.data.fold!r}, which is one fold alone; leave it out with folds."
        )
    ours = ineffective.given(wanted, make_spec(None, recipe))
    return _start(_Kind("folds", folds), wanted, given, ours, quiet, profile, callbacks)


def _named(
    data: Any,
    recipe: str | None,
    spec: Spec | str | os.PathLike[str] | None,
    trust: Trust,
    changes: dict[str, Any],
) -> Spec:
    """Return the spec of several runs; own code must have names, by which each run finds it again."""
    given = {name: changes.pop(name, None) for name in ("loss", "metrics", "optimizer", "schedule")}
    own = own_code.take(changes, **given)
    if own.things:
        raise SpecError(
            f"Several runs take {', '.join(own.things)} of your own by name, my_package.my_module:function, not as an "
            "object."
        )
    return own_code.consent(make_spec(data, recipe, spec, **own.changes), own, spec, trust)


def repeat(
    data: Any = None,
    /,
    *,
    times: int = 5,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    quiet: bool = False,
    profile: bool = False,
    callbacks: Sequence[Callback] = (),
    trust: Trust = False,
    **changes: Any,
) -> Series:
    """Train ``times`` times with other seeds (``seed``, ``seed + 1``, …) on the same splits.

    Callbacks take part in one run after the other. Arguments else as for ``train``. Raises: errors of
    ``tellapart.errors``.
    """
    if not 2 <= times <= _MOST:
        raise SpecError(f"repeat is {times}; it must be from 2 to {_MOST:,}.")
    given = take(data, val, test, classes)
    wanted = _named(given or data, recipe, spec, trust, changes)
    ours = ineffective.given(wanted, make_spec(None, recipe))
    return _start(_Kind("repeats", times), wanted, given, ours, quiet, profile, callbacks)


def resume(
    run: str | os.PathLike[str],
    *,
    data: Any = None,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    trust: Trust = False,
    model: Any = None,
    loss: Any = None,
    augment: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    **changes: Any,
) -> Result:
    """Go on exactly where a run was cut off; of a finished run, return the result.

    Of a folder of several runs (folds, seeds), the one that was cut off goes on, and those that are left follow; the
    result is a `Series`.

    ``data``, ``val``, ``test`` and ``classes`` are for a run on objects, which no file holds: the same objects as for
    ``train`` (``classes`` need not be said again). ``callbacks``: those that ``train`` was given; their saved states
    are loaded. ``model``, ``loss``, ``augment={"transform": …}``, ``metrics``, ``optimizer``, ``schedule``: those of
    your own that ``train`` was given as objects. ``trust``: packages that may be imported for what a run from elsewhere
    names, or True. ``changes``: fields of the spec that may still change, such as ``training={"epochs": 40}``, with
    which a run goes on past its end (see `extending`). Raises RunError, also where these are not what they were, and
    SpecError for a field that cannot be changed any more.
    """
    folder = runs.require(run)
    listed = runs.series_file(folder)
    if listed is None:
        objects = {"data": data, "val": val, "test": test, "classes": classes}
        if augment and set(augment) - {"transform"}:
            changes = {**changes, "augment": {key: augment[key] for key in augment if key != "transform"}}
        return resume_run(
            folder,
            **objects,
            quiet=quiet,
            callbacks=callbacks,
            changes=changes,
            trust=trust,
            model=model,
            loss=loss,
            augment=augment,
            metrics=metrics,
            optimizer=optimizer,
            schedule=schedule,
        )
    if changes:
        raise RunError(
            f"{folder} contains several runs, which are comparable because they have one spec: nothing can "
            "be changed when they are resumed. To change a single one, name its folder."
        )
    kind = _Kind.read(listed)
    spec = runs.read_spec(folder / runs.SPEC_FILE)
    given = giving.again(folder, spec.data.source, data, val, test, classes)
    own_code.again(folder, spec, trust)
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(processes(spec.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        if procs.first:
            stack.callback(runs.hold(folder).release)
            if spec.run.mlflow:
                check_mlflow()
        objects = {"data": data, "val": val, "test": test, "classes": classes}
        work = _Work(kind, spec, given, procs, console, objects, tuple(callbacks), folder=folder)
        return work.run()


@dataclass(frozen=True)
class _Kind:
    """Which runs belong together: a number of folds, or of seeds."""

    name: str
    count: int

    @property
    def file(self) -> str:
        return runs.FOLDS_FILE if self.name == "folds" else runs.REPEATS_FILE

    @classmethod
    def read(cls, path: Path) -> _Kind:
        """Read the file. Raises RunError if it is damaged."""
        count = runs.read_json(path).get("count")
        if not isinstance(count, int) or count < 2:
            raise RunError(f"{path} is damaged: it does not say how many runs there are.")
        return cls("folds" if path.name == runs.FOLDS_FILE else "repeats", count)

    def runs(self, seed: int) -> list[str]:
        """Return the names of the runs' folders."""
        if self.name == "folds":
            return [f"fold-{number}" for number in range(1, self.count + 1)]
        return [f"seed-{seed + number}" for number in range(self.count)]

    def spec(self, spec: Spec, number: int) -> Spec:
        """Return the spec of a run, ``number`` from 0."""
        if self.name == "folds":
            return update(spec, {"data.fold": f"{number + 1}/{self.count}"})
        return update(spec, {"seed": spec.seed + number})


def _start(
    kind: _Kind,
    wanted: Spec,
    given: Objects | None,
    ours: set[str],
    quiet: bool,
    profile: bool,
    callbacks: Sequence[Callback],
) -> Series:
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(processes(wanted.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        checks.check_device(wanted, procs.device)
        claim = stack.enter_context(runs.Claim(wanted.run.dir)) if procs.first else None
        if procs.first and wanted.run.mlflow:
            check_mlflow()
        work = _Work(
            kind, wanted, given, procs, console, {}, tuple(callbacks), ours=ours, profile=profile, claim=claim
        )
        return work.run()


@dataclass
class _Work:
    """The runs of a series, one after the other. ``folder`` is None until the first run is about to begin."""

    kind: _Kind
    spec: Spec
    given: Objects | None
    procs: Processes
    console: Console
    objects: dict[str, Any]
    callbacks: tuple[Callback, ...]
    ours: set[str] = field(default_factory=set)
    profile: bool = False
    claim: runs.Claim | None = None
    folder: Path | None = None
    finished: list[dict[str, Any]] = field(default_factory=list)
    _copies_told: bool = False

    def run(self) -> Series:
        """Train what is not finished, and sum up."""
        try:
            return self._run()
        except KeyboardInterrupt:  # a signal outside training: between two runs, or while one is measured
            if self.folder is not None:
                self.console.message(f"To go on: tellapart resume {self.folder}")
            raise

    def _run(self) -> Series:
        asked = self.spec.input
        if self.folder is not None:
            known = runs.read_json(self.folder / self.kind.file).get("finished")
            self.finished = [dict(entry) for entry in known] if isinstance(known, list) else []
        names = self.kind.runs(self.spec.seed)
        samples: Samples | None = None
        for number, name in enumerate(names):
            if any(entry.get("run") == name for entry in self.finished):
                continue
            self.console.message(f"{self._word(number)} of {self.kind.count}:")
            if self.folder is not None and runs.is_run(self.folder / name):
                result = resume_run(
                    self.folder / name,
                    **self.objects,
                    quiet=self.console.quiet,
                    callbacks=self.callbacks,
                    part=True,
                )
            else:
                samples = in_turn(self.procs, lambda n=number, s=samples: self._samples(n, s))
                result = self._begin(number, name, samples, asked)
            self.folder = result.run.parent
            if result.interrupted:
                return self._series(result)
            if self.procs.first:
                self.finished.append(self._entry(name, number, result))
                self._write()
            self.procs.wait()
        return self._series(None)

    def _word(self, number: int) -> str:
        return f"Fold {number + 1}" if self.kind.name == "folds" else f"Run {number + 1}"

    def _samples(self, number: int, before: Samples | None) -> Samples:
        """Return the samples of a run; the findings about the data are reported once."""
        spec = self.kind.spec(self.spec, number)
        if before is None:
            samples = opened(spec, self.given, self.console)
            if samples.targets is not None:
                raise DataError(
                    "Folds and repeated runs are summarised by accuracy, and these images have several labels. Train "
                    "without --folds and --repeat."
                )
            if self.folder is None:
                self._resolve(samples)
            return samples
        if self.kind.name == "repeats":
            return before
        return opening.open_source(spec.data, lambda note: None, None, self.given)

    def _resolve(self, samples: Samples) -> None:
        """Choose what the data decides from all images of the folds, so that all runs train the same network."""
        if self.kind.name == "folds":
            everything = np.full(len(samples), "train", dtype=object)
            samples = dataclasses.replace(samples, splits=everything)
        resolved = Resolution(self.spec).by_data(facts.of_data(self.spec, samples))
        self.spec = resolved.spec

    def _begin(self, number: int, name: str, samples: Samples, asked: InputSpec) -> Result:
        with contextlib.ExitStack() as stack:
            console = stack.enter_context(self.console.another())

            def make(model: str) -> Path:
                if self.folder is None:
                    assert self.claim is not None
                    self.folder = self.claim.make(f"{model}-{self.kind.count}-{self.kind.name}")
                    self._write()
                    giving.write(self.folder, self.given)
                    runs.write_spec(run_files.anywhere(self.spec), self.folder / runs.SPEC_FILE)
                return stack.enter_context(runs.Claim(str(self.folder / name))).make(model)

            new = New(
                self.kind.spec(self.spec, number),
                self.given,
                samples,
                asked,
                self.ours,
                self.callbacks,
                self.profile and number == 0,
            )
            return begin(new, self.procs, console, make if self.procs.first else None, part=True)

    def _entry(self, name: str, number: int, result: Result) -> dict[str, Any]:
        """Return what is kept of a finished run; of a fold also the figures on the source's own test split."""
        entry: dict[str, Any] = {"run": name, "split": result.split, **result.metrics}
        entry["epoch"] = artifact.read_card(result.run).scores.get("epoch")
        if self.kind.name == "folds" and (own := self._own_test()) is not None:
            entry["test"] = self._measured(own, result.run)
        return entry

    def _own_test(self) -> Samples | None:
        """Return the source's own test split, None if it has none."""
        spec = update(self.spec.data, {"fold": "", "val_fraction": 0.0, "test_fraction": 0.0})
        own = opening.open_source(spec, lambda note: None, None, self.given).split("test")
        return own if len(own) else None

    def _measured(self, own: Samples, run: Path) -> dict[str, Any]:
        backend = open_artifact(run, str(self.procs.device), "fp32")
        images, _ = decoded.evaluation_images(own, backend.card.preprocessing, self.spec.data)
        if not len(images):
            raise DataError("None of the images of the source's own test split can be read.")
        self._warn_of_copies(images.samples, run)
        return brief(evaluate_set(backend, infer.Stored(images), OWN_TEST, run, self.console))

    def _warn_of_copies(self, own: Samples, run: Path) -> None:
        """Say once how many of the own test images are in the folds too, byte for byte."""
        if own.hashes is None or own.boxes is not None or self._copies_told:
            return
        self._copies_told = True
        known = listed_hashes(run / runs.SAMPLES_FILE)
        if copies := sum(value in known for value in own.hashes):
            self.console.warn(
                f"{copies} of the {many(len(own), 'image')} of the own test split are in the folds too, byte for byte; "
                f"see: tellapart check {self.spec.data.source}"
            )

    def _write(self) -> None:
        """Write what is finished, what follows from it, and the page."""
        assert self.folder is not None
        content: dict[str, Any] = {
            "kind": self.kind.name,
            "count": self.kind.count,
            "runs": self.kind.runs(self.spec.seed),
            "finished": self.finished,
        }
        measured = [entry for entry in self.finished if "accuracy" in entry]
        folds = self.kind.name == "folds"
        if measured:
            content["summary"] = figures.summarise(measured, interval=folds)
        if folds and measured and all("test" in entry for entry in measured):
            content["test"] = figures.summarise([entry["test"] for entry in measured], interval=False)
        if folds and len(self.finished) == self.kind.count:
            evaluation = figures.pool(self.folder, content["runs"])
            content["out_of_fold"] = brief(evaluation)
        runs.write_json(self.folder / self.kind.file, content)
        if self.finished and self.spec.run.report:
            figures.write_page(self.folder)

    def _series(self, cut: Result | None) -> Series:
        assert self.folder is not None
        content = runs.read_json(self.folder / self.kind.file)
        pooled = content.get("out_of_fold") or {}
        first = self.folder / self.kind.runs(self.spec.seed)[0] / artifact.FILE_NAME
        return Series(
            self.folder,
            first,
            "out-of-fold" if pooled else "",
            pooled,
            interrupted=cut is not None,
            signal=cut.signal if cut else 0,
            kind=self.kind.name,
            count=self.kind.count,
            runs=tuple(content.get("finished") or ()),
            summary=content.get("summary") or {},
            test=content.get("test") or {},
        )
