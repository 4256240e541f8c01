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

import torch

import tellapart
from tellapart import artifact, files, recipes, runs
from tellapart.contract import Card
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.data.sources.listing import many, some
from tellapart.data.sources.objects import Objects, take
from tellapart.data.stores.streaming import StreamedStore
from tellapart.errors import RunError
from tellapart.evaluation import infer, multilabel, notebook, report
from tellapart.evaluation.metrics import Evaluation
from tellapart.evaluation.multilabel import MultiEvaluation
from tellapart.references import Trust
from tellapart.runtime import Backend
from tellapart.runtime.eager import open_artifact
from tellapart.spec import InputSpec, Spec, update
from tellapart.tracking import Console, Tracker, Trackers, check_mlflow, confusion_image
from tellapart.training import checkpoint, ineffective, loop, own_metrics, setup
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
from tellapart.workflow import extending, own_code, run_files
from tellapart.workflow import given as giving
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
    given = take(data, val, test, classes)
    own = own_code.take(changes, loss=loss, metrics=metrics, optimizer=optimizer, schedule=schedule)
    wanted = make_spec(given or data, recipe, spec, **own.changes)
    wanted = own_code.consent(wanted, own, spec, trust)
    ours = ineffective.given(wanted, make_spec(None, recipe))
    with contextlib.ExitStack() as stack:
        stack.enter_context(own.at_hand(wanted))
        procs = stack.enter_context(processes(wanted.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        checks.check_device(wanted, procs.device)
        claim = stack.enter_context(runs.Claim(wanted.run.dir)) if procs.first else None
        if procs.first and wanted.run.mlflow:
            check_mlflow()
        samples = in_turn(procs, lambda: opened(wanted, given, console))
        new = New(wanted, given, samples, wanted.input, ours, tuple(callbacks), profile)
        return begin(new, procs, console, claim.make if claim else None)


@dataclass(frozen=True)
class New:
    """A run that is to begin: its spec, the samples, and what is only asked for in messages.

    ``input``: the section as it was before anything was chosen; ``ours``: the fields that the user has set.
    """

    wanted: Spec
    given: Objects | None
    samples: Samples
    input: InputSpec
    ours: set[str]
    callbacks: tuple[Callback, ...] = ()
    profile: bool = False


def begin(
    new: New, procs: Processes, console: Console, make: Callable[[str], Path] | None, part: bool = False
) -> Result:
    """Train a new run. ``make`` gives the first process a folder, by the model's name, when the spec is found good.

    ``part``: the run is one of several, and it is their common folder, around its own, that is to be resumed.
    """
    prepared = in_turn(procs, lambda: _prepare(new.wanted, new.samples, console))
    prepared, plan, card = _plan(prepared, procs, console)
    facts = ineffective.facts(plan, prepared.contract.channels, procs.world)
    for text in ineffective.without_effect(new.ours, plan.spec, facts) + ineffective.never(plan.spec, facts):
        console.warn(text)
    for doubt in checks.doubts(new.input, prepared.spec, prepared.weights):
        (console.warn if doubt.serious else console.message)(doubt.text)
    folder = procs.from_first(make(prepared.spec.model.name) if make else None)
    assert folder is not None
    whole = folder.parent if part else folder
    if procs.first:
        with _resumable(whole):
            giving.write(folder, new.given)
            run_files.write_start(folder, prepared, new.samples)
    theirs = [*new.callbacks]
    if new.profile and procs.first:
        theirs.append(Profile(folder / "profile", console.message))
    with _resumable(whole):
        return _run(folder, prepared, plan, card, procs, console, None, theirs, whole)


def resume_run(
    run: str | os.PathLike[str],
    *,
    data: Any = None,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    part: bool = False,
    changes: Mapping[str, Any] | None = None,
    trust: Trust = False,
    model: Any = None,
    loss: Any = None,
    augment: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    schedule: Any = None,
) -> Result:
    """Go on with one run; arguments as for `series.resume`. ``part``: see `begin`."""
    folder = runs.require(run)
    before = runs.read_spec(folder / runs.SPEC_FILE)
    spec = extending.changed(before, changes or {})
    given = giving.again(folder, spec.data.source, data, val, test, classes)
    own = own_code.again(
        folder,
        spec,
        trust,
        model=model,
        loss=loss,
        transform=(augment or {}).get("transform"),
        metrics=metrics,
        optimizer=optimizer,
        schedule=schedule,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(own.at_hand(spec))
        procs = stack.enter_context(processes(spec.training.device))
        console = stack.enter_context(Console(quiet=quiet or not procs.first))
        if procs.first:
            stack.callback(runs.hold(folder).release)
            files.sweep(folder)
            if spec.run.mlflow:
                check_mlflow()
        begun = procs.from_first(runs.has_begun(folder) if procs.first else None)
        samples = in_turn(procs, lambda: opened(spec, given, console))
        if begun:
            giving.check_same(folder, spec.data.source, given, samples)
        prepared = in_turn(procs, lambda: _prepare(spec, samples, console))
        if procs.first and begun:  # one writer; where it raises, the others end with it
            run_files.check_same_samples(folder, prepared)
        elif procs.first:  # killed while these files were being written
            giving.write(folder, given)
            run_files.write_start(folder, prepared, samples)
        content = _checkpoint(folder, procs, console)
        extending.check(before, spec, content)
        if content is None:
            console.message(f"{folder} has no checkpoint yet: training starts at the beginning.")
        prepared, plan, card = _plan(prepared, procs, console)
        if procs.first and begun and spec != before:
            extending.write(folder, spec)
        whole = folder.parent if part else folder
        with _resumable(whole):
            return _run(folder, prepared, plan, card, procs, console, content, callbacks, whole)


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


def in_turn(procs: Processes, work: Any) -> Any:
    """Let the first process do what fills caches, and the others then find them."""
    result = work() if procs.first else None
    procs.wait()
    return result if procs.first else work()


def opened(spec: Spec, given: Objects | None, console: Console) -> Samples:
    """Return the samples of a spec's source, or of objects, and tell what is found. Raises DataError."""
    if given is not None:
        given.ranged = spec.input.range != "full"
    return giving.open_data(spec.data, given, console, console.note, console.warn)


def _prepare(spec: Spec, samples: Samples, console: Console) -> setup.RunData:
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


def _run(
    folder: Path,
    prepared: setup.RunData,
    plan: Plan,
    card: Card,
    procs: Processes,
    console: Console,
    content: dict[str, Any] | None,
    callbacks: Sequence[Callback],
    whole: Path,
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
        if text := extending.take_up(trainer, folder):
            console.message(text)
        if trainer.progress.finished:
            console.message(
                f"{folder} is finished: there is nothing left to train, so it was only measured again."
            )
    elif procs.first:
        if card.several:
            console.score = "mAP"
            console.message(
                f"Several labels for an image: loss {spec.training.loss}, best epoch by {spec.training.best_metric}."
            )
        console.message(headline(prepared, card.architecture.name, plan))
        tracker.image(0, "train/images", training_grid(prepared))
    try:
        progress = trainer.run()
        if not progress.finished:
            console.message(f"Stopped after step {progress.step}. To go on: tellapart resume {whole}")
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
            "changed, or made by another version? Start a new run, in another folder."
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
    if card.several and prepared.val is not None:
        card = _with_thresholds(card, backend, prepared.val, console)
        artifact.save(folder / artifact.FILE_NAME, artifact.read_state(folder), card)
        backend = open_artifact(folder, str(device), "fp32")
    scores: dict[str, Any] = {"epoch": progress.best_epoch + 1}
    kept = dict(scores)
    final = ""
    own = own_metrics.build(prepared.spec.training.metrics, ())
    for split, images in (("val", prepared.val), ("test", prepared.test)):
        if images is not None:
            logits = known[split](backend.predictor.model) if split in known else None
            evaluation = evaluate_set(backend, infer.Stored(images), split, folder, console, logits, own=own)
            scores[split] = brief(evaluation)
            # How often each class was given: what a service expects, wherever the model's file goes.
            final = split
            if isinstance(evaluation, MultiEvaluation):
                kept[split] = {**scores[split], "predicted": evaluation.told.tolist()}
                tracker.log(progress.step, {f"final/{split}-mAP": evaluation.map})
                continue
            kept[split] = {**scores[split], "predicted": evaluation.confusion.sum(axis=0).tolist()}
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


def _with_thresholds(card: Card, backend: Backend, val: ImageSet, console: Console) -> Card:
    """Return the card with the thresholds that are best on validation, and say so."""
    ran = infer.run(backend, infer.Stored(val), latency=False)
    assert val.samples.targets is not None
    targets = val.samples.targets[ran.rows]
    found = multilabel.choose_thresholds(ran.answers.probabilities, targets)
    few = [
        name
        for name, count in zip(card.classes, targets.sum(0), strict=True)
        if count < multilabel.LEAST_POSITIVES
    ]
    text = f"Thresholds by the highest F1 of each class on validation: {min(found):.2f} to {max(found):.2f}."
    if few:
        least = multilabel.LEAST_POSITIVES
        text += f" {multilabel.HALF:g} for those with fewer than {least} images there: {some(few)}."
    console.message(text)
    return dataclasses.replace(card, thresholds=found)


def brief(evaluation: Evaluation | MultiEvaluation) -> dict[str, Any]:
    """Return the few figures of an evaluation that go into the artifact and the summary."""
    if isinstance(evaluation, MultiEvaluation):
        return {
            "n": evaluation.n,
            "map": evaluation.map,
            "map_interval": list(evaluation.map_interval),
            "macro_f1": evaluation.macro_f1,
            "micro_f1": evaluation.micro_f1,
            "loss": evaluation.loss,
        }
    return {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(evaluation.accuracy_interval),
        "macro_f1": evaluation.macro.f1,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "loss": evaluation.loss,
        **evaluation.own,
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
    trust: Trust = False,
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    schedule: Any = None,
    **changes: Any,
) -> LrCurve:
    """Train while the learning rate rises, and return the losses and a rate that suits (Smith, 2015).

    Nothing is written. Arguments as for ``train``.
    """
    given = take(data, val, test, classes)
    own = own_code.take(changes, loss=loss, metrics=metrics, optimizer=optimizer, schedule=schedule)
    wanted = make_spec(given or data, recipe, spec, **own.changes)
    wanted = own_code.consent(wanted, own, spec, trust)
    with own.at_hand(wanted), processes(wanted.training.device) as procs, Console(quiet=quiet) as console:
        samples = opened(wanted, given, console)
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
