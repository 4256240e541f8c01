"""The end of a run: the artifact measured on each split, its scores and warnings in its card, and the report.

Knows nothing of how it was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tellapart import artifact, runs
from tellapart.contract import Card
from tellapart.data.loader import ImageSet
from tellapart.data.sources.listing import some
from tellapart.evaluation import infer, multilabel, report
from tellapart.runtime import Backend
from tellapart.runtime.eager import EagerBackend, open_artifact
from tellapart.tracking import Console, Tracker, confusion_image
from tellapart.training import loop, own_metrics, setup
from tellapart.training.callbacks import Callback
from tellapart.workflow.measure import evaluate_set


class ArtifactKeeper(Callback):
    """Writes the best weights so far as the artifact after a checkpoint, if they have changed since the last one."""

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


def finish(
    folder: Path,
    prepared: setup.RunData,
    card: Card,
    epoch: int,
    step: int,
    console: Console,
    tracker: Tracker,
    device: torch.device,
    known: Mapping[str, Callable[[torch.nn.Module], torch.Tensor | None]],
    measured: Callable[[EagerBackend], None] = lambda backend: None,
) -> tuple[str, dict[str, Any]]:
    """Measure the artifact on disk, on every split that was not used for training; write the report.

    Returns the split that counts, and its figures. ``epoch``: from 1, the one whose weights it has; ``step``: the run's
    last; ``known``: by split, logits that need not be computed again (see `step.Way`). ``measured`` is called with the
    model between the two.
    """
    backend = open_artifact(folder, str(device), "fp32")
    if card.several and prepared.val is not None:
        card = _with_thresholds(card, backend, prepared.val, console)
        artifact.save(folder / artifact.FILE_NAME, artifact.read_state(folder), card)
        backend = open_artifact(folder, str(device), "fp32")
    scores: dict[str, Any] = {"epoch": epoch}
    kept = dict(scores)
    final = ""
    own = own_metrics.build(prepared.spec.training.metrics, ())
    for split, images in (("val", prepared.val), ("test", prepared.test)):
        if images is not None:
            logits = known[split](backend.predictor.model) if split in known else None
            evaluation = evaluate_set(backend, infer.Stored(images), split, folder, console, logits, own=own)
            scores[split] = evaluation.brief()
            # How often each class was predicted: a service expects that mix, wherever the model's file goes.
            kept[split] = {**scores[split], "predicted": evaluation.given()}
            final = split
            headline, confusion = evaluation.headline, evaluation.confused()
            tracker.log(step, {f"final/{split}-{headline.name}": headline.value})
            if confusion is not None and len(prepared.classes) <= 100:
                tracker.image(step, f"{split}/confusion", confusion_image(confusion, card.classes))
    told = tuple(entry["text"] for entry in runs.read_warnings(folder) if entry["severity"] == "warning")
    card = dataclasses.replace(artifact.with_scores(card, kept), warnings=told)
    artifact.save(folder / artifact.FILE_NAME, artifact.read_state(folder), card)
    measured(backend)
    if prepared.spec.run.report:
        report.write_report(folder)
    return final, scores.get(final, {})


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
