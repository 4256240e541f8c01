"""Measuring: evaluate a model, look at data, write reports, compare runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tellapart import artifact, runs, runtime
from tellapart.contract import Card
from tellapart.data.samples import SPLITS, Samples, training_hashes
from tellapart.data.sources import opening
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import Objects
from tellapart.data.stores import images as decoded
from tellapart.devices import AMP_DTYPES, choose_device
from tellapart.errors import DataError, RunError, SpecError, did_you_mean
from tellapart.evaluation import compare as comparing
from tellapart.evaluation import infer, metrics, series
from tellapart.evaluation import report as reporting
from tellapart.evaluation.metrics import Evaluation
from tellapart.evaluation.multilabel import MultiEvaluation
from tellapart.references import Trust
from tellapart.runs import require
from tellapart.runtime import Backend
from tellapart.spec import DataSpec, update
from tellapart.tracking import Console
from tellapart.training import own_metrics
from tellapart.workflow.exported import Read
from tellapart.workflow.given import named, open_data


def evaluate_set(
    backend: Backend,
    pictures: infer.Pictures,
    split: str,
    out: Path | None,
    console: Console,
    known: torch.Tensor | None = None,
    on_bad_image: str = "skip",
    own: own_metrics.Metrics | None = None,
) -> Evaluation | MultiEvaluation:
    """Measure a model of any format; write the evaluation's files below ``out`` if it is given.

    ``known``: the images' logits computed in a faster way, float32 [N, K] (see `infer.run`). Images that cannot be read
    are left out, with a warning, unless ``on_bad_image`` is ``error``. Raises DataError, also if none can be read.
    """
    if backend.card.views.count > 1:
        console.message(backend.card.views.describe())
    shorter = None if known is None else known.numpy()
    with console.busy(f"Evaluating on {split}", len(pictures)) as busy:
        ran = infer.run(backend, pictures, known=shorter, advance=busy.advance)
    bad = [f"{pictures.samples.file(row)}: {why}" for row, why in sorted(pictures.bad.items())]
    if bad and on_bad_image == "error":
        raise DataError(f"{len(bad)} images cannot be used, the first: {bad[0]}.")
    _tell_of_bad(bad, console)
    if not len(ran.rows):
        raise DataError(f"None of the {split} images can be read.")
    kept = pictures.samples.select(ran.rows)
    if own and kept.targets is not None:
        raise SpecError("metrics of your own are for images of one label each; these have several.")
    truth: Any = kept.labels if kept.targets is None else kept.targets
    values = own_metrics.measure(own, kept.labels, ran.answers.best) if own else {}
    evaluation = metrics.measured(
        ran.answers,
        truth,
        split,
        seconds=ran.seconds,
        latencies_ms=ran.latencies_ms,
        own=own_metrics.finite(values),
    )
    if out is not None:
        metrics.write_evaluation(
            out / "evaluation" / split,
            evaluation,
            list(kept.paths),
            ran.answers,
            truth,
            lambda row: pictures.picture(int(ran.rows[row])),
            boxes=kept.boxes,
        )
    return evaluation


def _tell_of_bad(bad: Sequence[str], console: Console) -> None:
    if bad:
        console.warn(f"Skipped {many(len(bad), 'image')} that cannot be read; the first: {bad[0]}")


def evaluate(
    path: str | os.PathLike[str],
    data: Any = None,
    *,
    classes: Iterable[str] | None = None,
    split: str = "",
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    epoch: str = "best",
    quiet: bool = False,
    trust: Trust = False,
    model: Any = None,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    **data_changes: Any,
) -> Evaluation | MultiEvaluation:
    """Measure a model on labelled images, by the model's own preprocessing contract.

    Args:
        path: run folder, artifact or exported file.
        data: images with labels, a path or an object as for ``train``, or a section of a spec; None: the data that the
            run was trained with (path is then a run folder).
        classes: names of the classes in the order of the labels' numbers, for an object whose numbers are not the
            places in the model's classes.
        split: train, val, test or all; by default test where there is one, else val, else all.
        out: folder to write metrics.json, predictions.csv and the worst mistakes to (under evaluation/SPLIT).
        device: auto, cpu, cuda, cuda:N or mps; for an ONNX file auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.
        precision: fp32, bf16 or fp16, by torch's autocast.
        epoch: of a run folder: best (the epoch that validation chose) or last.
        quiet: no progress on standard error.
        trust: True: open a ``.pt2`` or TorchScript file also where tellapart did not write it here: such files are
            programs. Names of packages: import these for an artifact whose network is not tellapart's (True: any).
        model: that network itself, or what makes it.
        metrics: your own figures by name, functions of (labels, predictions), two arrays of class numbers.
        data_changes: fields of the data section, such as ``format="coco"``.

    Raises DataError where the data has a class that the model does not know.
    """
    if precision not in AMP_DTYPES:
        raise SpecError(f"precision is {precision!r}. {did_you_mean(precision, list(AMP_DTYPES))}")
    exported = runtime.is_export(path)
    if exported and epoch != "best":
        raise SpecError(f"{path} is an exported file; --epoch is for run folders.")
    if exported and precision != "fp32":
        raise SpecError(
            f"{path} computes in the precision that it was exported in; --precision is for artifacts."
        )
    target = Path(out) if out else None
    given, source = named(data, classes=classes)
    data_changes = {**source, **data_changes}
    with Console(quiet=quiet) as console:
        if exported:
            backend = runtime.open_backend(path, device, trust=trust)
        else:
            chosen_device = str(choose_device(device))
            backend = runtime.open_backend(
                of_epoch(path, epoch), chosen_device, precision, trust=trust, model=model
            )
        part, spec, chosen = _part(path, given, split, backend.card, data_changes, console)
        _repeat_warnings(backend.card.warnings, console)
        if exported:  # decoded and sized by the file's own runtime
            with Read(backend, part, spec) as pictures:
                return evaluate_set(
                    backend,
                    pictures,
                    chosen,
                    target,
                    console,
                    on_bad_image=spec.on_bad_image,
                    own=metrics,
                )
        with console.busy("Reading images", len(part)) as busy:
            images, bad = decoded.evaluation_images(part, backend.card.preprocessing, spec, busy.advance)
        _tell_of_bad([f"{one.path}: {one.reason}" for one in bad], console)
        if not len(images):
            raise DataError(f"None of the {chosen} images of {spec.source} can be read.")
        _warn_of_training_images(artifact.find(path).parent / runs.SAMPLES_FILE, images.samples, console)
        return evaluate_set(backend, infer.Stored(images), chosen, target, console, own=metrics)


def of_epoch(model: str | os.PathLike[str], epoch: str) -> str | os.PathLike[str]:
    """Return what to open for a run folder's chosen epoch (best) or its last. Raises SpecError, RunError."""
    if epoch not in ("best", "last"):
        raise SpecError(f"epoch is {epoch!r}. {did_you_mean(epoch, ['best', 'last'])}")
    if epoch == "best":
        return model
    last = runs.require(model) / artifact.LAST_NAME
    if not last.is_file():
        raise RunError(
            f"{model} has no {artifact.LAST_NAME}: the run has not finished, or an earlier version made it, "
            "which kept only the best epoch's weights."
        )
    return last


def _made_as_in_training(model: str | os.PathLike[str], spec: DataSpec) -> tuple[DataSpec, str]:
    """Return the spec with the fractions, seed and groups of the run that contains the model, and their source."""
    given = Path(model)
    beside = (given if given.is_dir() else given.parent) / runs.SPEC_FILE
    own = runs.read_spec(beside).data if beside.is_file() else DataSpec()
    names = ("val_fraction", "test_fraction", "split_seed", "group", "fold", "leave_out")
    return update(spec, {name: getattr(own, name) for name in names}), (
        f"by {beside}" if beside.is_file() else "by the default options: the model is not in a run folder"
    )


def _split_of_training(
    model: str | os.PathLike[str],
    spec: DataSpec,
    samples: Samples,
    split: str,
    console: Console,
    given: Objects | None,
) -> tuple[DataSpec, Samples]:
    """Return the samples with the splits that training makes of them, with a message if the source has none."""
    made, by = _made_as_in_training(model, spec)
    again = opening.open_source(made, lambda note: None, given=given)
    ours, theirs = again.splits == split, samples.splits == split
    if np.array_equal(ours, theirs) or not ours.any():
        return spec, samples
    console.message(
        f"{spec.source} does not say which images are its {split} split: measured on the split that training makes of "
        f"it, {ours.sum():,} of {len(again):,} images (seed {made.split_seed}, {by})."
    )
    return made, again


def _repeat_warnings(warnings: Sequence[str], console: Console) -> None:
    """Repeat the warnings of training."""
    for text in warnings:
        console.warn(f"of training: {text}")


def _part(
    model: str | os.PathLike[str],
    given: Objects | None,
    split: str,
    card: Card,
    changes: Mapping[str, Any],
    console: Console,
) -> tuple[Samples, DataSpec, str]:
    """Return the samples to measure on, where they are from, and the name of their split."""
    changes = with_kind(changes, card)
    own = "source" not in changes
    if own:
        if runtime.is_export(model):
            raise DataError(
                f"{model} does not name its images; give labelled ones: tellapart evaluate {model} DATA"
            )
        spec = update(runs.read_spec(runs.require(model) / runs.SPEC_FILE).data, changes)
    else:
        if changes.get("levels", "auto") == "auto":
            changes["levels"] = card.levels or "none"
        spec = update(DataSpec(val_fraction=0.0, test_fraction=0.0), changes)
    if given is not None:
        contract = card.preprocessing
        given.known, given.ranged, given.depth = card.classes, contract.range is not None, contract.depth
    samples = open_data(spec, given, console, lambda note: None)
    if not own and split in SPLITS:
        spec, samples = _split_of_training(model, spec, samples, split, console, given)
    if samples.targets is not None and not card.several:
        raise DataError(
            f"Images of {spec.source} can have several labels, and the model gives one for each. --data.labels single "
            "leaves out those with several."
        )
    samples = with_classes(samples, card.classes)
    chosen = split or next((name for name in ("test", "val") if (samples.splits == name).any()), "all")
    part = samples if chosen == "all" else samples.split(chosen)
    if not len(part):
        raise DataError(f"{spec.source} has no {chosen} images.")
    return part, spec, chosen


def with_kind(changes: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """Return changes of the data section by which images are read with as many labels as the model gives.

    Raises DataError if they ask for another number.
    """
    wanted = "multi" if card.several else "single"
    if changes.get("labels", wanted) not in (wanted, "auto"):
        tells = "any number of labels" if card.several else "one label"
        raise DataError(
            f"data.labels is {changes['labels']}, and the model gives {tells} for an image: {wanted}."
        )
    if card.ordered:  # the order is the model's; the data may lack a grade
        return {**changes, "order": ()}
    return {**changes, "labels": wanted} if card.several else dict(changes)


def _warn_of_training_images(table: Path, samples: Samples, console: Console) -> None:
    """Warn about images that the model was trained on, by the table of samples beside it."""
    if samples.hashes is None or samples.boxes is not None:
        return
    known = training_hashes(table)
    seen = sum(value in known for value in samples.hashes)
    if seen:
        console.warn(
            f"{seen:,} of these {len(samples):,} images trained this model (byte for byte, by {table.name}): on "
            "images that it has not seen, expect less."
        )


# CIFAR-10's official names, and those of PyTorch's tutorial.
_ALIASES = {"plane": "airplane", "car": "automobile", "airplane": "plane", "automobile": "car"}


def _other_name(name: str, classes: tuple[str, ...]) -> str:
    """Return the model's name for a class, if it has a synonym."""
    other = _ALIASES.get(name, "")
    return other if name not in classes and other in classes else name


def with_classes(samples: Samples, classes: tuple[str, ...]) -> Samples:
    """Return the samples with labels as indices in the model's classes."""
    renamed = tuple(_other_name(name, classes) for name in samples.classes)
    if len(set(renamed)) == len(renamed):
        samples = dataclasses.replace(samples, classes=renamed)
    unknown = sorted(set(samples.classes) - set(classes))
    if unknown:
        raise DataError(
            f"The data has classes that the model does not know: {', '.join(unknown[:8])}"
            f"{' …' if len(unknown) > 8 else ''}. The model knows: {', '.join(classes[:20])}"
            f"{' …' if len(classes) > 20 else ''}."
        )
    table = np.array([classes.index(name) for name in samples.classes], np.int64)
    if samples.targets is not None:
        targets = np.zeros((len(samples), len(classes)), np.uint8)
        targets[:, table] = samples.targets
        return dataclasses.replace(samples, classes=classes, targets=targets)
    return dataclasses.replace(samples, classes=classes, labels=table[samples.labels])


def report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write a run's report page, or that of several runs, from their files alone; return its path."""
    folder, place = runs.require(run), None if out is None else Path(out)
    if runs.series_file(folder):
        return series.write_page(folder, place)
    return reporting.write_report(folder, place)


def compare(runs: Sequence[str | os.PathLike[str]]) -> comparing.Comparison:
    """Compare runs: differences of spec and result, with a paired test on the images that they share."""
    return comparing.compare([require(run) for run in runs])
