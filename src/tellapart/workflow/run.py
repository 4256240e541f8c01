"""Training from a spec to a measured artifact: train, and going on with one run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tellapart import artifact, files, runs
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.errors import RunError
from tellapart.evaluation import notebook
from tellapart.evaluation.advice import Advice
from tellapart.references import Trust
from tellapart.runtime.eager import EagerBackend
from tellapart.spec import Spec, flatten
from tellapart.training import checkpoint, ineffective, loop
from tellapart.training import progress as progressing
from tellapart.training.callbacks import Callback
from tellapart.training.resolution import Choice, Resolution, checks
from tellapart.training.speed.profile import Profile
from tellapart.training.timekeeper import taken
from tellapart.workflow import advising, extending, place, run_files, settling
from tellapart.workflow import given as giving
from tellapart.workflow.asked import Again, Asked, Telling
from tellapart.workflow.finishing import ArtifactKeeper, finish
from tellapart.workflow.pictures import training_grid
from tellapart.workflow.place import Place
from tellapart.workflow.preparing import Ready, make_plan, opened, prepare
from tellapart.workflow.telling import RunReporter, choices_text, headline, trackers


@dataclass(frozen=True)
class Result:
    """What training achieved: the run folder, the artifact, the figures, the split they are of, and the advice.

    ``advice``: what would help most, as measured; None for several runs, with ``run.advice`` off, or if it failed.
    """

    run: Path
    artifact: Path
    split: str
    metrics: Mapping[str, Any]
    interrupted: bool = False
    signal: int = 0  # that interrupted it
    time: Mapping[str, Any] = field(
        default_factory=dict
    )  # seconds, limit and why it ended earlier, with a time limit
    advice: Advice | None = None

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        return notebook.of_run(self.run, self.split, self.interrupted)


def train(
    data: Any = None,
    /,
    *,
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
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    **changes: Any,
) -> Result:
    """Train a classifier and measure it.

    Args:
        data: folder, list, archive, annotation file or name; the embedded digits where None. As the first argument, so
            that ``data={"format": "folder"}`` can be among the changes. Or an object: a torch ``Dataset`` that has a
            length and gives (image, label), a list of (path, label) or of (image, label), a frame of pandas or polars
            (columns as in a CSV file, named by ``data={"path_column": …, "label_column": …}``), a pair of arrays
            (images, labels), a ``Dataset`` or ``DatasetDict`` of Hugging Face, or a mapping from train, val and test to
            one of these. Images are of Pillow, uint8 or uint16 arrays [H, W(, C)], tensors [C, H, W], or floating point
            from 0 to 1 that was 8 bits. Each is read twice at first, once in later runs, and must be the same each
            time: random changes belong into ``augment``. Without ``val`` and ``test``, splits are made as for files.
        val: the same for validation; ``data`` is then what is trained on.
        test: the same for the test.
        classes: names of the classes, in the order of the labels' numbers; by default what the object says.
        recipe: name of a recipe to start from.
        spec: a Spec, or the path of a YAML file.
        quiet: no progress on standard error.
        verbose: tell every choice that was made for options left open, not only those that the data decided.
        profile: tell where a step's time goes, and keep it, with a trace, under ``profile`` in the run's folder.
        callbacks: objects of classes derived from ``tellapart.Callback``, which take part in training. What they
            return as their state is saved with each checkpoint; give them to ``resume`` again.
        loss: your own loss, ``(logits, targets) -> losses``: what takes float32 [B, K] and int64 [B] (float32 [B, K]
            with MixUp or CutMix) and returns the loss of each image, float32 [B]; or its name.
        metrics: your own figures by name, functions of (labels, predictions), two arrays of class numbers, or their
            names; validation and evaluation report them, and ``training.best_metric`` may be one (more is better).
        optimizer: your own, ``(groups, lr=…) -> torch.optim.Optimizer`` (a class of torch.optim is one), or its name.
        schedule: your own, ``(step, steps) -> factor`` of the learning rate, or its name; warm-up is multiplied.
        trust: packages that may be imported for what the file ``spec`` names, or True; what is given here needs none.
        changes: fields of the spec, such as ``training={"epochs": 3}``, ``data={"val_fraction": 0.2}``, ``seed=1`` or
            ``**{"model.name": "resnet18"}``. ``model`` may be a network of your own too: an ``nn.Module``, of which a
            copy is trained, what makes one, ``(num_classes, channels) -> nn.Module``, or the name of that,
            ``"my_package.my_module:build"``.

    Raises: errors of ``tellapart.errors``.
    """
    from tellapart.workflow import members  # which trains several runs, each by this module

    asked = Asked.of(
        data,
        (val, test, classes),
        (recipe, spec),
        changes,
        {"loss": loss, "metrics": metrics, "optimizer": optimizer, "schedule": schedule},
        trust,
        Telling(quiet, verbose, profile, tuple(callbacks)),
    )
    if members.wanted(asked.spec):
        return members.train(asked)
    with asked.own.at_hand(asked.spec), place.for_new(asked.spec, quiet) as where:
        samples = where.in_turn(lambda: opened(asked.spec, asked.objects, where.console))
        return begin(New(asked, asked.spec, samples), where)


@dataclass(frozen=True)
class New:
    """A run that is about to begin.

    Where it is one of several, ``spec`` is its own, in which ``chosen`` are choices that were made for all of them,
    ``several`` is True (it is their common folder, around its own, that is to be resumed), and ``telling`` may be less.
    """

    asked: Asked
    spec: Spec
    samples: Samples
    chosen: tuple[Choice, ...] = ()
    several: bool = False
    first: bool = True

    @property
    def given(self) -> frozenset[str] | None:
        """The fields that keep their values: where choices were made before, for several runs, all of them.

        A limit of time decides the epochs of each.
        """
        if not (self.several or self.chosen):
            return self.asked.given
        values, chosen = flatten(self.spec), {choice.field for choice in self.chosen}
        by_time = ("training.epochs", "training.epoch_images") if self.spec.time_limit else ()
        return frozenset(values) - {name for name in by_time if name in chosen or not values[name]}

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Those that the person gave."""
        return self.asked.telling.callbacks


def begin(new: New, where: Place) -> Result:
    """Train a new run, whose folder is made when its spec is found good."""
    console = where.console
    wanted = Resolution(new.spec, given=new.given)
    prepared = where.in_turn(lambda: prepare(wanted, new.samples, console))
    ready = make_plan(prepared, where.procs, console, where.began)
    prepared, plan = ready.prepared, ready.plan
    facts = ineffective.facts(plan, prepared.contract.channels, where.procs.world)
    for text in ineffective.without_effect(new.asked.ours, plan.spec, facts) + ineffective.never(
        plan.spec, facts
    ):
        console.warn(text)
    for doubt in checks.doubts(new.asked.spec.input, prepared.spec, prepared.weights):
        (console.warn if doubt.serious else console.message)(doubt.text)
    folder = where.procs.from_first(where.make(prepared.spec.model.name) if where.make else None)
    assert folder is not None
    whole = runs.whole(folder.parent) if new.several else folder
    choices = (*new.chosen, *prepared.resolution.choices)
    if new.first and choices:
        console.message(choices_text(choices, new.asked.telling.verbose))
    callbacks = [*new.callbacks]
    if new.first and new.asked.telling.profile and where.first:
        callbacks.append(Profile(folder / "profile", console.message))
    with _resumable(whole):
        if where.first:
            run_files.write_choices(folder, choices)
            giving.write(folder, new.asked.objects)
            run_files.write_start(folder, prepared, new.samples)
        return _run(folder, ready, where, None, callbacks, whole)


def resume_run(run: str | os.PathLike[str], again: Again, several: bool = False) -> Result:
    """Resume one run; ``several``: as of `New`."""
    folder = runs.require(run)
    before = runs.read_spec(folder / runs.SPEC_FILE)
    spec = extending.changed(before, again.changes)
    objects = again.objects(folder, spec)
    own = again.own(folder, spec)
    with own.at_hand(spec), place.of_run(folder, spec, again.quiet) as where:
        procs, console = where.procs, where.console
        begun = procs.from_first(runs.has_begun(folder) if procs.first else None)
        samples = where.in_turn(lambda: opened(spec, objects, console))
        if begun:
            giving.check_same(folder, spec.data.source, objects, samples)
        prepared = where.in_turn(lambda: prepare(spec, samples, console))
        if procs.first and begun:  # one writer; if it raises, the others end with it
            run_files.check_same_samples(folder, prepared)
        elif procs.first:  # killed while these files were being written
            giving.write(folder, objects)
            run_files.write_start(folder, prepared, samples)
        content = _checkpoint(folder, where)
        extending.check(before, spec, content)
        if content is None:
            console.message(f"{folder} has no checkpoint yet: training starts at the beginning.")
        ready = make_plan(prepared, procs, console, where.began, resumed=True)
        if procs.first and begun and spec != before:
            extending.write(folder, spec)
        whole = runs.whole(folder.parent) if several else folder
        with _resumable(whole):
            return _run(folder, ready, where, content, again.callbacks, whole)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """If a file cannot be written, say how to continue."""
    try:
        yield
    except OSError as error:
        if (failed := files.told(error, folder)) is None:
            raise
        raise failed.with_hint(f"Once that is fixed: tellapart resume {folder}") from error


def _checkpoint(folder: Path, where: Place) -> dict[str, Any] | None:
    """Return the newest good checkpoint; the first process sets damaged ones aside before the others look."""
    kept = folder / runs.CHECKPOINTS
    content = checkpoint.take_newest(kept, progressing.check, where.console.warn) if where.first else None
    where.procs.wait()
    return content if where.first else checkpoint.load_newest(kept, progressing.check)


def _run(
    folder: Path,
    ready: Ready,
    where: Place,
    content: dict[str, Any] | None,
    callbacks: Sequence[Callback],
    whole: Path,
) -> Result:
    """Train from ``content``, a checkpoint's (None: from the beginning), to the end, and measure the artifact.

    ``whole``: the folder that is to be resumed where training is cut off.
    """
    procs, console, plan, card = where.procs, where.console, ready.plan, ready.card
    spec = ready.prepared.spec
    if procs.first:
        console.keep_in(folder)
    tracker = trackers(spec, folder, content["progress"]["step"] if content else None, procs.first, console)
    reporter = RunReporter(console, tracker, spec.run.log_every, plan.steps_per_epoch)
    ours = ArtifactKeeper(folder / artifact.FILE_NAME, card)
    trainer = loop.Trainer(plan, procs, folder / runs.CHECKPOINTS, reporter, [ours, *callbacks])
    console.score = "mAP" if card.several else "kappa" if card.ordered else console.score
    if content is not None:
        _restore(trainer, content, folder)
    elif procs.first:
        _introduce(ready, where)
        tracker.image(0, "train/images", training_grid(ready.prepared))
    try:
        progress = trainer.run()
        if not progress.finished:
            console.message(f"Stopped after step {progress.step}. To go on: tellapart resume {whole}")
            number = trainer.interrupt.number
            return Result(folder, folder / artifact.FILE_NAME, "", {}, interrupted=True, signal=number)
        if not procs.first:
            return Result(folder, folder / artifact.FILE_NAME, "", {})
        _save(folder, trainer, card)
        settled = settling.settle(folder, ready.prepared, plan.task, card, console, procs.device)
        known = {} if settled.changed else {"val": trainer.way.known}
        advice: list[Advice | None] = []

        def measured(backend: EagerBackend) -> None:
            if spec.run.advice and whole == folder:  # not of several runs
                finished = advising.Finished(folder, ready.prepared, backend, trainer.way)
                advice.append(advising.advise(finished, console))

        split, figures = finish(
            folder,
            ready.prepared,
            settled.card,
            settled.epoch or progress.best_epoch + 1,
            progress.step,
            console,
            tracker,
            procs.device,
            known,
            measured,
        )
        told = advice[0] if advice else None
        return Result(
            folder, folder / artifact.FILE_NAME, split, figures, time=taken(plan.callbacks), advice=told
        )
    finally:
        tracker.close()


def _introduce(ready: Ready, where: Place) -> None:
    """Say what is going to be trained."""
    training, card = ready.prepared.spec.training, ready.card
    if card.several:
        where.console.message(
            f"Several labels for an image: loss {training.loss}, best epoch by {training.best_metric}."
        )
    if card.ordered:
        where.console.message(f"Grades: loss {training.loss}, best epoch by {training.best_metric}.")
    where.console.message(headline(ready.prepared, card.architecture.name, ready.plan))


def _save(folder: Path, trainer: loop.Trainer, card: Card) -> None:
    """Write the artifact of the epoch that is kept, and the last epoch's."""
    assert trainer.best is not None
    artifact.save(folder / artifact.FILE_NAME, trainer.best, card)
    last = artifact.with_scores(card, {"epoch": trainer.progress.epoch})
    artifact.save(folder / artifact.LAST_NAME, trainer.weights(), last)


def _restore(trainer: loop.Trainer, content: dict[str, Any], folder: Path) -> None:
    try:
        trainer.restore(content)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The checkpoint in {folder} does not fit {runs.SPEC_FILE} there ({error}): was one of them "
            "changed, or made by another version? Start a new run, in another folder."
        ) from error
    if text := extending.take_up(trainer, folder):
        trainer.report.message(text)
    if trainer.progress.finished:
        trainer.report.message(
            f"{folder} is finished: there is nothing left to train, so it was only measured again."
        )
