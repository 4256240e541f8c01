"""Several runs of one spec: cross-validation over folds, the same run with several seeds, and resuming them.

Each is a run like any other, in a folder of its own below the common one. ``folds.json`` or ``repeats.json`` there says
which runs belong together and what those that are finished achieved; it is written anew after each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import artifact, clock, numerals, runs
from tellapart.data.samples import LEFT_OUT, Samples, listed_hashes
from tellapart.data.sources import opening
from tellapart.data.sources.listing import many
from tellapart.data.stores import images as decoded
from tellapart.errors import DataError, RunError, SpecError
from tellapart.evaluation import infer
from tellapart.evaluation import series as figures
from tellapart.evaluation.measurement import headline_of
from tellapart.references import Trust
from tellapart.runtime.eager import open_artifact
from tellapart.spec import Spec, update
from tellapart.training.callbacks import Callback
from tellapart.training.resolution import Choice, Resolution, facts
from tellapart.workflow import dividing, place, run_files
from tellapart.workflow import given as giving
from tellapart.workflow.asked import Again, Asked, Telling, code_of
from tellapart.workflow.measure import evaluate_set
from tellapart.workflow.place import Place
from tellapart.workflow.preparing import opened
from tellapart.workflow.run import New, Result, begin, resume_run

OWN_TEST = "own-test"  # name of the evaluation on the source's own test split, which is in no fold
_MOST = 1000
_CODE = ("loss", "metrics", "optimizer", "schedule")
_FILES = {"folds": runs.FOLDS_FILE, "repeats": runs.REPEATS_FILE, "members": runs.MEMBERS_FILE}
_WORDS = {"folds": "Fold", "repeats": "Run", "members": "Member"}


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
    verbose: bool = False,
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
    asked = Asked.of(
        data,
        (val, test, classes),
        (recipe, spec),
        changes,
        {name: changes.pop(name, None) for name in _CODE},
        trust,
        Telling(quiet, verbose, profile, tuple(callbacks)),
    )
    if asked.spec.data.fold:
        raise SpecError(
            f"data.fold is {asked.spec.data.fold!r}, which is one fold alone; leave it out with folds."
        )
    return _start(Kind("folds", folds), asked)


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
    verbose: bool = False,
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
    asked = Asked.of(
        data,
        (val, test, classes),
        (recipe, spec),
        changes,
        {name: changes.pop(name, None) for name in _CODE},
        trust,
        Telling(quiet, verbose, profile, tuple(callbacks)),
    )
    return _start(Kind("repeats", times), asked)


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
    """Resume a run exactly where it was interrupted; for a finished run, return the result.

    In a folder of several runs (folds, seeds), the interrupted one is resumed, and the remaining ones follow; the
    result is a `Series`.

    ``data``, ``val``, ``test`` and ``classes`` are for a run on objects, which no file holds: the same objects as for
    ``train`` (``classes`` need not be given again). ``callbacks``: those that ``train`` was given; their saved states
    are loaded. ``model``, ``loss``, ``augment={"transform": …}``, ``metrics``, ``optimizer``, ``schedule``: those of
    your own that ``train`` was given as objects. ``trust``: packages that may be imported for what a run from elsewhere
    names, or True. ``changes``: fields of the spec that may still change, such as ``training={"epochs": 40}``, with
    which a run continues past its end (see `extending`). Raises RunError, also if the objects are not the same as
    before, and SpecError for a field that can no longer be changed.
    """
    folder = runs.require(run)
    code, more = code_of(model, loss, augment, metrics=metrics, optimizer=optimizer, schedule=schedule)
    again = Again(data, val, test, classes, code, {**changes, **more}, trust, quiet, tuple(callbacks))
    from tellapart.workflow import members  # which uses this module

    folder = runs.whole(folder)
    if members.unfinished(folder):
        return members.resume(folder, again)
    listed = runs.series_file(folder)
    return resume_run(folder, again) if listed is None else _resume(folder, Kind.read(listed), again)


@dataclass(frozen=True)
class Kind:
    """Which runs belong together: a number of folds, of seeds, or of members of one model."""

    name: str
    count: int

    @property
    def file(self) -> str:
        """The name of the file that says so."""
        return _FILES[self.name]

    @property
    def held(self) -> str:
        """The split of images that a run alone has not seen; "" where all runs have the same images."""
        return {"folds": "test", "members": LEFT_OUT}.get(self.name, "")

    @classmethod
    def read(cls, path: Path) -> Kind:
        """Read the file. Raises RunError if it is damaged."""
        count = runs.read_json(path).get("count")
        if not isinstance(count, int) or count < 2:
            raise RunError(f"{path} is damaged: it does not say how many runs there are.")
        return cls(next(name for name, file in _FILES.items() if file == path.name), count)

    def runs(self, seed: int) -> list[str]:
        """Return the names of the runs' folders."""
        if self.name == "folds":
            return [f"fold-{number}" for number in range(1, self.count + 1)]
        if self.name == "members":
            return [f"member-{number}" for number in range(1, self.count + 1)]
        return [f"seed-{seed + number}" for number in range(self.count)]

    def spec(self, spec: Spec, number: int) -> Spec:
        """Return the spec of a run, ``number`` from 0; each has its share of a limit of time."""
        if self.name == "members":
            own = {"data.leave_out": f"{number + 1}/{self.count}", "seed": spec.seed + number + 1}
            return update(spec, {**own, "effort": "good", "time_limit": dividing.of_member(spec, self.count)})
        spec = update(spec, {"time_limit": spec.time_limit / self.count})
        if self.name == "folds":
            return update(spec, {"data.fold": f"{number + 1}/{self.count}"})
        return update(spec, {"seed": spec.seed + number})


def check_own_code(asked: Asked) -> None:
    """Raise SpecError for objects of the user's own code: each run must find it again."""
    if asked.own.things:
        raise SpecError(
            f"Several runs take {', '.join(asked.own.things)} of your own by name, my_package.my_module:function, not "
            "as an object."
        )


def _start(kind: Kind, asked: Asked) -> Series:
    check_own_code(asked)
    if asked.spec.effort == "best":
        raise SpecError(
            f"effort best trains several models for one already; with {kind.name} each of {kind.count} would. Use "
            "effort good."
        )
    with place.for_new(asked.spec, asked.telling.quiet) as where:
        return Work(kind, asked, where, Again()).run()


def _resume(folder: Path, kind: Kind, again: Again) -> Series:
    if again.changes:
        raise RunError(
            f"{folder} contains several runs, which are comparable because they have one spec: nothing can "
            "be changed when they are resumed. To change a single one, name its folder."
        )
    spec = runs.read_spec(folder / runs.SPEC_FILE)
    objects, own = again.objects(folder, spec), again.own(folder, spec)
    with place.of_run(folder, spec, again.quiet) as where:
        asked = Asked(spec, objects, own, frozenset(), Telling(again.quiet, callbacks=again.callbacks))
        return Work(kind, asked, where, again, folder=folder).run()


@dataclass
class Work:
    """The runs of a series, one after the other. ``folder`` is None until the first run is about to begin.

    ``spec`` is what all runs have in common, in which ``chosen`` are the choices that were made for all of them.
    """

    kind: Kind
    asked: Asked
    where: Place
    again: Again
    folder: Path | None = None
    spec: Spec = field(init=False)
    chosen: tuple[Choice, ...] = ()
    finished: list[dict[str, Any]] = field(default_factory=list)
    _copies_told: bool = False

    def __post_init__(self) -> None:
        self.spec = self.asked.spec
        if self.folder is not None:
            self.chosen = tuple(Choice(**entry) for entry in runs.read_choices(self.folder))
            known = runs.read_json(self.folder / self.kind.file).get("finished")
            self.finished = [dict(entry) for entry in known] if isinstance(known, list) else []

    def run(self) -> Series:
        """Train what is not finished, and sum up."""
        try:
            return self._run()
        except KeyboardInterrupt:  # a signal outside training: between two runs, or while one is measured
            if self.folder is not None:
                self.where.console.message(f"To go on: tellapart resume {runs.whole(self.folder)}")
            raise

    def _run(self) -> Series:
        samples: Samples | None = None
        began = self.where.began
        if limit := self.spec.time_limit / self.kind.count:
            each = numerals.duration(limit)
            self.where.console.message(f"Each of the {self.kind.count} runs has {each} of the time limit.")
        for number, name in enumerate(self.kind.runs(self.spec.seed)):
            if any(entry.get("run") == name for entry in self.finished):
                continue
            self.where.console.message(f"{self._word(number)} of {self.kind.count}:")
            if self.folder is not None and runs.is_run(self.folder / name):
                result = resume_run(self.folder / name, self.again, several=True)
            else:
                samples = self.where.in_turn(functools.partial(self._samples, number, samples))
                result = self._begin(number, name, samples, began)
            self.folder = result.run.parent
            if result.interrupted:
                return self._series(result)
            if self.where.first:
                self.finished.append(self._entry(name, number, result))
                self._write()
            self.where.procs.wait()
            began = clock.now()
        return self._series(None)

    def _word(self, number: int) -> str:
        return f"{_WORDS[self.kind.name]} {number + 1}"

    def _samples(self, number: int, before: Samples | None) -> Samples:
        """Return the samples of a run; the findings about the data are reported once."""
        spec = self.kind.spec(self.spec, number)
        if before is None:
            samples = opened(spec, self.asked.objects, self.where.console)
            if self.folder is None:
                self.resolve(samples)
            return samples
        if self.kind.name == "repeats":
            return before
        return opening.open_source(spec.data, lambda note: None, None, self.asked.objects)

    def resolve(self, samples: Samples) -> None:
        """Choose what the data decides from all images of the folds, so that all runs train the same network."""
        if self.kind.name == "folds":
            everything = np.full(len(samples), "train", dtype=object)
            samples = dataclasses.replace(samples, splits=everything)
        resolved = Resolution(self.spec, given=self.asked.given).by_data(facts.of_data(self.spec, samples))
        self.spec, self.chosen = resolved.spec, resolved.choices

    def _begin(self, number: int, name: str, samples: Samples, began: float) -> Result:
        first, spec = self.folder is None, self.kind.spec(self.spec, number)
        with contextlib.ExitStack() as stack:
            console = stack.enter_context(self.where.console.another())

            def make(model: str) -> Path:
                if self.folder is None:
                    self.folder = self._made(model)
                return stack.enter_context(runs.Claim(str(self.folder / name))).make(model)

            new = New(self.asked, spec, samples, self.chosen, several=True, first=first)
            return begin(new, Place(self.where.procs, console, make if self.where.first else None, began))

    def _made(self, model: str) -> Path:
        """Make the common folder, with all that going on needs."""
        assert self.where.make is not None
        self.folder = self.where.make(f"{model}-{self.kind.count}-{self.kind.name}")
        self._write()
        giving.write(self.folder, self.asked.objects)
        run_files.write_choices(self.folder, self.chosen)
        runs.write_spec(run_files.anywhere(self.spec), self.folder / runs.SPEC_FILE)
        return self.folder

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
        own = opening.open_source(spec, lambda note: None, None, self.asked.objects).split("test")
        return own if len(own) else None

    def _measured(self, own: Samples, run: Path) -> dict[str, Any]:
        backend = open_artifact(run, str(self.where.procs.device), "fp32")
        images, _ = decoded.evaluation_images(own, backend.card.preprocessing, self.spec.data)
        if not len(images):
            raise DataError("None of the images of the source's own test split can be read.")
        self._warn_of_copies(images.samples, run)
        return evaluate_set(backend, infer.Stored(images), OWN_TEST, run, self.where.console).brief()

    def _warn_of_copies(self, own: Samples, run: Path) -> None:
        """Say once how many of the own test images are in the folds too, byte for byte."""
        if own.hashes is None or own.boxes is not None or self._copies_told:
            return
        self._copies_told = True
        known = listed_hashes(run / runs.SAMPLES_FILE)
        if copies := sum(value in known for value in own.hashes):
            self.where.console.warn(
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
            **self._more(),
        }
        measured = [entry for entry in self.finished if headline_of(entry)]
        folds = self.kind.name == "folds"
        if measured:
            content["summary"] = figures.summarise(measured, folds)
        if folds and measured and all("test" in entry for entry in measured):
            content["test"] = figures.summarise([entry["test"] for entry in measured], False)
        if len(self.finished) == self.kind.count and self._pools():
            evaluation = figures.pool(self.folder, content["runs"], self.kind.held)
            content["out_of_fold"] = evaluation.brief()
        runs.write_json(self.folder / self.kind.file, content)
        if self.finished and self.spec.run.report:
            figures.write_page(self.folder)

    def _more(self) -> dict[str, Any]:
        """Return what else the file of the runs says."""
        return {}

    def _pools(self) -> bool:
        """Whether each run has answered images that it alone has not seen."""
        return self.kind.name == "folds"

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
