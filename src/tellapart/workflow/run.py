"""Training from a spec to a measured artifact: train, resume, and the search for a learning rate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart import artifact, files, recipes, runs
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.data.sources.objects import Objects, take
from tellapart.errors import RunError
from tellapart.evaluation import notebook
from tellapart.references import Trust
from tellapart.spec import InputSpec, Spec, update
from tellapart.tracking import Console, Trackers, check_mlflow
from tellapart.training import checkpoint, ineffective, loop, setup
from tellapart.training import progress as progressing
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes, processes
from tellapart.training.methods import lr_finder
from tellapart.training.methods.lr_finder import LrCurve
from tellapart.training.resolution import checks
from tellapart.training.speed.profile import Profile
from tellapart.training.step import Plan
from tellapart.workflow import extending, own_code, run_files
from tellapart.workflow import given as giving
from tellapart.workflow.finishing import ArtifactKeeper, finish
from tellapart.workflow.pictures import training_grid
from tellapart.workflow.preparing import in_turn, make_plan, opened, prepare
from tellapart.workflow.telling import RunReporter, headline, trackers


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
        """Return the HTML that a notebook shows."""
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
    """A run that is about to begin: its spec, the samples, and facts needed only for messages.

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
    prepared = in_turn(procs, lambda: prepare(new.wanted, new.samples, console))
    prepared, plan, card = make_plan(prepared, procs, console)
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
    """Resume one run; arguments as for `series.resume`. ``part``: see `begin`."""
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
        prepared = in_turn(procs, lambda: prepare(spec, samples, console))
        if procs.first and begun:  # one writer; if it raises, the others end with it
            run_files.check_same_samples(folder, prepared)
        elif procs.first:  # killed while these files were being written
            giving.write(folder, given)
            run_files.write_start(folder, prepared, samples)
        content = _checkpoint(folder, procs, console)
        extending.check(before, spec, content)
        if content is None:
            console.message(f"{folder} has no checkpoint yet: training starts at the beginning.")
        prepared, plan, card = make_plan(prepared, procs, console)
        if procs.first and begun and spec != before:
            extending.write(folder, spec)
        whole = folder.parent if part else folder
        with _resumable(whole):
            return _run(folder, prepared, plan, card, procs, console, content, callbacks, whole)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """If a file cannot be written, say how to continue."""
    try:
        yield
    except OSError as error:
        if (failed := files.told(error, folder)) is None:
            raise
        raise failed.with_hint(f"Once that is fixed: tellapart resume {folder}") from error


def _checkpoint(folder: Path, procs: Processes, console: Console) -> dict[str, Any] | None:
    """Return the newest good checkpoint; the first process sets damaged ones aside before the others look."""
    place = folder / runs.CHECKPOINTS
    content = checkpoint.take_newest(place, progressing.check, console.warn) if procs.first else None
    procs.wait()
    return content if procs.first else checkpoint.load_newest(place, progressing.check)


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
        split, figures = finish(folder, prepared, card, progress, console, tracker, procs.device, known)
        return Result(folder, folder / artifact.FILE_NAME, split, figures)
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
        prepared = prepare(wanted, samples, console)
        prepared, plan, _ = make_plan(prepared, procs, console)
        trainer = loop.Trainer(plan, procs, Path(os.devnull), RunReporter(console, Trackers([]), 0, 1))
        with console.busy("Testing learning rates", steps) as busy:
            return lr_finder.find_lr(_counted(lr_finder.steps_at(trainer), busy.advance), steps)


def _counted(step: Any, advance: Any) -> Any:
    def call(lr: float) -> float:
        advance(1)
        loss: float = step(lr)
        return loss

    return call
