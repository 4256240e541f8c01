"""Training from a spec to a measured artifact: train, resume, and the search for a learning rate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tellapart
from tellapart import artifact, files, recipes, runs
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import Objects, take
from tellapart.data.stores.streaming import StreamedStore
from tellapart.errors import RunError
from tellapart.evaluation import infer, metrics, notebook, report
from tellapart.runtime.eager import open_artifact
from tellapart.spec import Spec, update
from tellapart.tracking import Console, Tracker, Trackers, check_mlflow, confusion_image
from tellapart.training import checkpoint, ineffective, loop, setup
from tellapart.training import progress as progressing
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes, processes
from tellapart.training.methods import lr_finder
from tellapart.training.methods.lr_finder import LrCurve
from tellapart.training.progress import Progress
from tellapart.training.resolution import checks
from tellapart.training.resolution.inputs import views
from tellapart.training.speed import autotune, features
from tellapart.training.speed.profile import Profile
from tellapart.training.step import Plan
from tellapart.workflow import given as giving
from tellapart.workflow import run_files
from tellapart.workflow.measure import evaluate_set
from tellapart.workflow.pictures import training_grid
from tellapart.workflow.telling import RunReporter, headline, trackers, warn_of_leaks


@dataclass(frozen=True)
class Result:
    """What training achieved: the run folder, the artifact, the figures, and the split they are of."""

    run: Path
    artifact: Path
    split: str
    metrics: Mapping[str, Any]
    interrupted: bool = False
    signal: int = 0  # that interrupted it

    def _repr_html_(self) -> str:
        """Return how a notebook shows it."""
        return notebook.of_run(self.run, self.split, self.interrupted)


def make_spec(
    data: str | os.PathLike[str] | Objects | None = None,
    /,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Spec:
    """Return the spec of: the defaults or a recipe, a spec or YAML file over it, and ``changes`` over that.

    ``data`` is the source, or objects (`take`), whose name the source becomes; ``data`` among the changes is the source
    too, or a mapping of the section's fields.
    """
    if isinstance(changes.get("data"), (str, os.PathLike)):
        data = changes.pop("data")
    base = recipes.recipe(recipe) if recipe else Spec()
    if isinstance(spec, Spec):
        base = spec
    elif spec is not None:
        base = runs.read_spec(spec, base)
    base = update(base, changes)
    if data is None:
        return base
    return update(base, {"data.source": data.name if isinstance(data, Objects) else os.fspath(data)})


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
    profile: bool = False,
    callbacks: Sequence[Callback] = (),
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
        profile: tell where a step's time goes, and keep it, with a trace, under ``profile`` in the run's folder.
        callbacks: objects of classes derived from ``tellapart.Callback``, which take part in training. What they
            return as their state is saved with each checkpoint; give them to ``resume`` again.
        changes: fields of the spec, such as ``training={"epochs": 3}``, ``data={"val_fraction": 0.2}``, ``seed=1`` or
            ``**{"model.name": "resnet18"}``.

    Raises: errors of ``tellapart.errors``.
    """
    given = take(data, val, test, classes)
    wanted = make_spec(given or data, recipe, spec, **changes)
    ours = ineffective.given(wanted, make_spec(None, recipe))
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(processes(wanted.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        checks.check_device(wanted, procs.device)
        claim = stack.enter_context(runs.Claim(wanted.run.dir)) if procs.first else None
        if procs.first and wanted.run.mlflow:
            check_mlflow()
        samples = _in_turn(procs, lambda: _opened(wanted, given, console))
        prepared = _in_turn(procs, lambda: _prepare(wanted, samples, console))
        prepared, plan, card = _plan(prepared, procs, console)
        facts = ineffective.facts(plan, prepared.contract.channels, procs.world)
        for text in ineffective.without_effect(ours, plan.spec, facts) + ineffective.never(plan.spec, facts):
            console.warn(text)
        for doubt in checks.doubts(wanted.input, prepared.spec, prepared.weights):
            (console.warn if doubt.serious else console.message)(doubt.text)
        folder = procs.from_first(claim.make(prepared.spec.model.name) if claim else None)
        assert folder is not None
        if procs.first:
            with _resumable(folder):
                giving.write(folder, given)
                run_files.write_start(folder, prepared, samples)
        theirs = [*callbacks]
        if profile and procs.first:
            theirs.append(Profile(folder / "profile", console.message))
        with _resumable(folder):
            return _run(folder, prepared, plan, card, procs, console, None, theirs)


def resume(
    run: str | os.PathLike[str],
    *,
    data: Any = None,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Go on exactly where a run was cut off; of a finished run, return the result.

    ``data``, ``val``, ``test`` and ``classes`` are for a run on objects, which no file holds: the same objects as for
    ``train`` (``classes`` need not be said again). ``callbacks``: those that ``train`` was given; their saved states
    are loaded. Raises RunError, also where these are not what they were.
    """
    folder = runs.require(run)
    spec = runs.read_spec(folder / runs.SPEC_FILE)
    given = giving.again(folder, spec.data.source, data, val, test, classes)
    with contextlib.ExitStack() as stack:
        procs = stack.enter_context(processes(spec.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        if procs.first:
            stack.callback(runs.hold(folder).release)
            files.sweep(folder)
            if spec.run.mlflow:
                check_mlflow()
        begun = procs.from_first(runs.has_begun(folder) if procs.first else None)
        samples = _in_turn(procs, lambda: _opened(spec, given, console))
        if begun:
            giving.check_same(folder, spec.data.source, given, samples)
        prepared = _in_turn(procs, lambda: _prepare(spec, samples, console))
        if procs.first and begun:  # one writer; where it raises, the others end with it
            run_files.check_same_samples(folder, prepared)
        elif procs.first:  # killed while these files were being written
            giving.write(folder, given)
            run_files.write_start(folder, prepared, samples)
        content = _checkpoint(folder, procs, console)
        if content is None:
            console.message(f"{folder} has no checkpoint yet: training starts at the beginning.")
        prepared, plan, card = _plan(prepared, procs, console)
        with _resumable(folder):
            return _run(folder, prepared, plan, card, procs, console, content, callbacks)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Say how to go on where a file cannot be written."""
    try:
        yield
    except OSError as error:
        if (failed := files.told(error, folder)) is None:
            raise
        raise failed.with_hint(f"When that is mended: tellapart resume {folder}") from error


def _checkpoint(folder: Path, procs: Processes, console: Console) -> dict[str, Any] | None:
    """Return the newest good checkpoint; the first process sets damaged ones aside before the others look."""
    place = folder / runs.CHECKPOINTS
    content = checkpoint.take_newest(place, progressing.check, console.warn) if procs.first else None
    procs.wait()
    return content if procs.first else checkpoint.load_newest(place, progressing.check)


def _in_turn(procs: Processes, work: Any) -> Any:
    """Let the first process do what fills caches, and the others then find them."""
    result = work() if procs.first else None
    procs.wait()
    return result if procs.first else work()


def _opened(spec: Spec, given: Objects | None, console: Console) -> Samples:
    if given is not None:
        given.ranged = spec.input.range != "full"
    return giving.open_data(spec.data, given, console, console.note, console.warn)


def _prepare(spec: Spec, samples: Samples, console: Console) -> setup.RunData:
    with console.busy("Reading images", len(samples)) as busy:
        prepared = setup.prepare(spec, samples, busy.advance)
    if isinstance(prepared.train.store, StreamedStore) and spec.data.cache == "auto":
        console.message(
            "The decoded images do not fit into the cache (--data.cache-limit, or the disk): they are decoded anew "
            "in each epoch."
        )
    if prepared.bad:
        console.warn(
            f"{many(len(prepared.bad), 'image')} cannot be read, left out and listed in bad-images.csv; the first: "
            f"{prepared.bad[0].path}: {prepared.bad[0].reason}"
        )
    if prepared.unused_range:
        console.warn(prepared.unused_range)
    left = np.bincount(prepared.train.samples.labels, minlength=len(prepared.classes))
    empty = [name for name, count in zip(prepared.classes, left, strict=True) if not count]
    if empty:
        console.warn(
            f"No readable training image of: {', '.join(empty)}. The model cannot learn these classes."
        )
    warn_of_leaks(prepared, console)
    return prepared


def _plan(prepared: setup.RunData, procs: Processes, console: Console) -> tuple[setup.RunData, Plan, Card]:
    """Build what will be trained; everything that can be wrong in the spec is found here, before any file is made.

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
    card = Card(
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


def _run(
    folder: Path,
    prepared: setup.RunData,
    plan: Plan,
    card: Card,
    procs: Processes,
    console: Console,
    content: dict[str, Any] | None,
    callbacks: Sequence[Callback],
) -> Result:
    spec = prepared.spec
    if procs.first:
        console.keep_in(folder)
    tracker = trackers(spec, folder, content["progress"]["step"] if content else None, procs.first, console)
    reporter = RunReporter(console, tracker, spec.run.log_every, plan.steps_per_epoch)
    ours = ArtifactKeeper(folder / artifact.FILE_NAME, card)
    trainer = loop.Trainer(plan, procs, folder / runs.CHECKPOINTS, reporter, [ours, *callbacks])
    if content is not None:
        _restore(trainer, content, folder)
        if trainer.progress.finished:
            console.message(f"{folder} is finished: nothing is left to train; measured again.")
    elif procs.first:
        console.message(headline(prepared, card.architecture.name, plan))
        tracker.image(0, "train/images", training_grid(prepared))
    try:
        progress = trainer.run()
        if not progress.finished:
            console.message(f"Stopped after step {progress.step}. To go on: tellapart resume {folder}")
            number = trainer.interrupt.number
            return Result(folder, folder / artifact.FILE_NAME, "", {}, interrupted=True, signal=number)
        if not procs.first:
            return Result(folder, folder / artifact.FILE_NAME, "", {})
        assert trainer.best is not None
        artifact.save(folder / artifact.FILE_NAME, trainer.best, card)
        last = artifact.with_scores(card, {"epoch": progress.epoch})
        artifact.save(folder / artifact.LAST_NAME, trainer.weights(), last)
        known = {"val": trainer.way.known}
        return _finish(folder, prepared, card, progress, console, tracker, procs.device, known)
    finally:
        tracker.close()


def _restore(trainer: loop.Trainer, content: dict[str, Any], folder: Path) -> None:
    try:
        trainer.restore(content)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The checkpoint in {folder} does not fit {runs.SPEC_FILE} there ({error}): was one of them "
            "changed, or made by another version? Train anew, into another folder."
        ) from error


class ArtifactKeeper(Callback):
    """Writes the best weights so far as the artifact after a checkpoint, where they have changed since it last did."""

    def __init__(self, path: Path, card: Card) -> None:
        self.path, self.card, self._kept = path, card, -1

    def on_fit_start(self, trainer: loop.Trainer) -> None:
        """See Callback."""
        self.trainer = trainer

    def on_save(self) -> None:
        """Write the file."""
        trainer, best = self.trainer, self.trainer.progress.best_epoch
        if trainer.processes.first and trainer.best is not None and best != self._kept:
            artifact.save(self.path, trainer.best, self.card)
            self._kept = best


def _finish(
    folder: Path,
    prepared: setup.RunData,
    card: Card,
    progress: Progress,
    console: Console,
    tracker: Tracker,
    device: torch.device,
    known: Mapping[str, Callable[[torch.nn.Module], torch.Tensor | None]],
) -> Result:
    """Measure the artifact as it lies on the disk, on every split that played no part in training.

    ``known``: by split, logits that need not be computed anew (see `step.Way`).
    """
    backend = open_artifact(folder, str(device), "fp32")
    scores: dict[str, Any] = {"epoch": progress.best_epoch + 1}
    kept = dict(scores)
    final = ""
    for split, images in (("val", prepared.val), ("test", prepared.test)):
        if images is not None:
            logits = known[split](backend.predictor.model) if split in known else None
            evaluation = evaluate_set(backend, infer.Stored(images), split, folder, console, logits)
            scores[split] = _brief(evaluation)
            # How often each class was given: what a service expects, wherever the model's file goes.
            kept[split] = {**scores[split], "predicted": evaluation.confusion.sum(axis=0).tolist()}
            final = split
            tracker.log(progress.step, {f"final/{split}-accuracy": evaluation.accuracy})
            if len(prepared.classes) <= 100:
                tracker.image(
                    progress.step, f"{split}/confusion", confusion_image(evaluation.confusion, card.classes)
                )
    told = tuple(entry["text"] for entry in runs.read_warnings(folder) if entry["severity"] == "warning")
    card = dataclasses.replace(artifact.with_scores(card, kept), warnings=told)
    artifact.save(folder / artifact.FILE_NAME, artifact.read_state(folder), card)
    if prepared.spec.run.report:
        report.write_report(folder)
    return Result(folder, folder / artifact.FILE_NAME, final, scores.get(final, {}))


def _brief(evaluation: metrics.Evaluation) -> dict[str, Any]:
    """Return the few figures of an evaluation that go into the artifact and the summary."""
    return {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(evaluation.accuracy_interval),
        "macro_f1": evaluation.macro.f1,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "loss": evaluation.loss,
    }


def find_lr(
    data: Any = None,
    /,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    steps: int = 100,
    quiet: bool = False,
    **changes: Any,
) -> LrCurve:
    """Train while the learning rate rises, and return the losses and a rate that suits (Smith, 2015).

    Nothing is written. Arguments as for ``train``.
    """
    given = take(data, val, test, classes)
    wanted = make_spec(given or data, recipe, spec, **changes)
    with processes(wanted.training.device) as procs, Console(quiet=quiet) as console:
        samples = _opened(wanted, given, console)
        prepared = _prepare(wanted, samples, console)
        prepared, plan, _ = _plan(prepared, procs, console)
        trainer = loop.Trainer(plan, procs, Path(os.devnull), RunReporter(console, Trackers([]), 0, 1))
        with console.busy("Testing learning rates", steps) as busy:
            return lr_finder.find_lr(_counted(lr_finder.steps_at(trainer), busy.advance), steps)


def _counted(step: Any, advance: Any) -> Any:
    def call(lr: float) -> float:
        advance(1)
        loss: float = step(lr)
        return loss

    return call
