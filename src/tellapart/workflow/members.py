"""Effort best: several models of one spec, and one model of the same size that learns from the mean of their answers.

The folder is that of an ordinary run, the student's. In its ``members`` folder is a series (`series`) of ordinary runs:
each leaves another fold of the training split out and has another seed, so that they err differently, and validation
and test are what they are for the student. Then the student trains on the whole training split with that folder as its
teacher, and `settling` judges the result. Knows nothing of what any of them trains on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart import artifact, clock, runs
from tellapart.data.samples import LEFT_OUT, Samples
from tellapart.data.sources import opening
from tellapart.data.sources.listing import many
from tellapart.data.stores import images as decoded
from tellapart.errors import RunError, SpecError
from tellapart.evaluation import infer
from tellapart.runtime.eager import open_artifact
from tellapart.spec import Spec, update
from tellapart.training.resolution import Choice
from tellapart.workflow import dividing, place, run_files
from tellapart.workflow import given as giving
from tellapart.workflow.asked import Again, Asked, Telling
from tellapart.workflow.measure import evaluate_set
from tellapart.workflow.place import Place
from tellapart.workflow.preparing import opened
from tellapart.workflow.run import New, Result, begin
from tellapart.workflow.series import Kind, Work, check_own_code

FOLLOW = {"distill.temperature": 1.0, "distill.weight": 0.5}  # measured: docs/architecture.md


def wanted(spec: Spec) -> bool:
    """Return whether a spec asks for several models. Raises SpecError if it names their teacher too."""
    if spec.effort == "best" and spec.distill.teacher:
        raise SpecError(
            "effort best makes a teacher of its own from several models: leave out distill.teacher, or use effort good."
        )
    return spec.effort == "best"


def unfinished(folder: Path) -> bool:
    """Return whether the folder is that of a run whose members were wanted, and whose student has not begun."""
    return wanted(runs.read_spec(folder / runs.SPEC_FILE))


def train(asked: Asked) -> Result:
    """Train members and student, as `run.train` trains a run."""
    check_own_code(asked)
    with place.for_new(asked.spec, asked.telling.quiet) as where:
        return _run(asked, where, Again(), None)


def resume(folder: Path, again: Again) -> Result:
    """Continue with the member that was interrupted, then the others and the student."""
    if again.changes:
        raise RunError(
            f"The models in {folder / runs.MEMBERS} have one spec, and not all are finished: nothing can be changed "
            "before the model that learns from them has begun."
        )
    spec = runs.read_spec(folder / runs.SPEC_FILE)
    asked = Asked(
        spec,
        again.objects(folder, spec),
        again.own(folder, spec),
        frozenset(),
        Telling(again.quiet, callbacks=again.callbacks),
    )
    with place.of_run(folder, spec, again.quiet) as where:
        make = (lambda model: folder) if where.first else None
        return _run(asked, Place(where.procs, where.console, make), again, runs.members_of(folder))


def _run(asked: Asked, where: Place, again: Again, listed: Path | None) -> Result:
    """Train what is not finished. ``listed``: the file about the members, None before there is one."""
    samples = where.in_turn(lambda: opened(asked.spec, asked.objects, where.console))
    train_images = int((samples.splits == "train").sum())
    kind = Kind.read(listed) if listed else Kind("members", dividing.members(asked.spec, train_images))
    ours = frozenset(name for name in asked.ours if not name.startswith("distill."))  # the student's
    folder = listed.parent if listed else None
    work = Members(kind, dataclasses.replace(asked, ours=ours), where, again, folder=folder)
    if listed is None:
        where.console.message(
            f"Effort best: {kind.count} models, each without another 1/{kind.count} of the "
            f"{many(train_images, 'training image')}, then one that learns from the mean of their answers."
        )
        work.resolve(samples)
        work.follow()
    series = work.run()
    run = series.run.parent
    if series.interrupted:
        return Result(run, run / artifact.FILE_NAME, "", {}, interrupted=True, signal=series.signal)
    return _student(work, asked, samples, run)


def _student(work: Members, asked: Asked, samples: Samples, run: Path) -> Result:
    where, count = work.where, work.kind.count
    where.console.message(f"One model that learns from the mean of the {count}:")
    teacher = str((run / runs.MEMBERS).absolute())
    reason = f"effort best: the mean of {count} models, each trained without another 1/{count} of the images"
    spec = update(work.spec, {"distill.teacher": teacher, "distill.members": count, "effort": "good"})
    spent = max(
        work.seconds, clock.now() - where.began
    )  # the first counts what was done before it was resumed
    spec = update(spec, {"time_limit": dividing.of_student(asked.spec, spent)})
    chosen = (*work.chosen, Choice("distill.teacher", teacher, reason, matters=True))
    new = New(asked, spec, samples, chosen, first=False)
    return begin(new, Place(where.procs, where.console, (lambda model: run) if where.first else None))


@dataclass
class Members(Work):
    """The members, one after the other. ``views``: whether the views of the student's images are left open."""

    views: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is None:
            self.views = "input.views" not in (self.asked.given or ())
        else:
            self.views = bool(runs.read_json(self.folder / self.kind.file).get("views_open"))

    def follow(self) -> None:
        """Choose how the student follows the mean, where that was not given."""
        open_ = {name: value for name, value in FOLLOW.items() if name not in (self.asked.given or ())}
        self.spec = update(self.spec, open_)
        reason = "effort best: as much by the labels as by the mean of the models, as it is"
        self.chosen += tuple(Choice(name, value, reason) for name, value in open_.items())

    @property
    def seconds(self) -> float:
        """How long the finished members took."""
        return sum(float(entry.get("seconds") or 0) for entry in self.finished)

    def _more(self) -> dict[str, Any]:
        return {"views_open": self.views}

    def _samples(self, number: int, before: Samples | None) -> Samples:
        """Return the samples of a member; what was found in the data has been reported."""
        spec = self.kind.spec(self.spec, number)
        return opening.open_source(spec.data, lambda note: None, None, self.asked.objects)

    def _made(self, model: str) -> Path:
        """Make the folders; the file that says that there are members comes last."""
        assert self.where.make is not None
        run = self.where.make(model)
        spec = run_files.anywhere(self.spec)
        giving.write(run, self.asked.objects)
        runs.write_spec(spec, run / runs.SPEC_FILE)
        self.folder = run / runs.MEMBERS
        self.folder.mkdir(exist_ok=True)
        giving.write(self.folder, self.asked.objects)
        run_files.write_choices(self.folder, self.chosen)
        runs.write_spec(spec, self.folder / runs.SPEC_FILE)
        self._write()
        return self.folder

    def _entry(self, name: str, number: int, result: Result) -> dict[str, Any]:
        """Return what is kept of a member, with its figures on the images that it alone has not seen."""
        entry = super()._entry(name, number, result)
        entry["seconds"] = self._took(result.run)
        spec = self.kind.spec(self.spec, number).data
        samples = opening.open_source(spec, lambda note: None, None, self.asked.objects)
        theirs = samples.select(
            (samples.splits == "train") | (samples.splits == LEFT_OUT)
        )  # one store for all
        backend = open_artifact(result.run, str(self.where.procs.device), "fp32")
        images, _ = decoded.evaluation_images(theirs, backend.card.preprocessing, spec)
        images = images.select(images.samples.splits == LEFT_OUT)
        if len(images):
            pictures = infer.Stored(images)
            entry["left_out"] = evaluate_set(
                backend, pictures, LEFT_OUT, result.run, self.where.console
            ).brief()
        return entry

    def _took(self, run: Path) -> float:
        from tellapart.evaluation.run_folder import read_run

        return read_run(run).seconds or 0.0

    def _pools(self) -> bool:
        return all("left_out" in entry for entry in self.finished)
