"""What a compression starts from: the model, its images, and the spec for fine-tuning it.

Knows nothing of methods; reads files, trains nothing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tellapart import artifact, numerals, runs
from tellapart.contract import Card
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.data.sources import opening
from tellapart.data.sources.objects import Objects
from tellapart.data.stores import images as decoded
from tellapart.errors import DataError, SpecError
from tellapart.preprocess import normalise
from tellapart.spec import DataSpec, Spec, update
from tellapart.tracking import Console

HELD_OUT = 0.1  # share of the training images, for a run without a validation split
_BATCH = 32
_OF_FILES = ("format", "train", "val", "test", "labels")


@dataclass(frozen=True)
class Subject:
    """The model, the spec of fine-tuning, and its images by split, preprocessed by the contract.

    ``objects``: what the spec's source names, if it is not a file.
    """

    file: Path
    card: Card
    spec: Spec
    parts: Mapping[str, ImageSet]
    objects: Objects | None = None

    @property
    def split(self) -> str:
        """The split on which candidates are compared."""
        return "test" if "test" in self.parts else "val"

    def example(self) -> Tensor:
        """Return an image of zeros as the network takes it, float32 [1, C, height, width]."""
        contract = self.card.preprocessing
        return torch.zeros(1, contract.channels, *contract.sides)

    def training_rows(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the indices of ``count`` training images, drawn with the spec's seed."""
        rng = np.random.default_rng([self.spec.seed, 17])
        return np.sort(rng.permutation(len(self.parts["train"]))[:count]).astype(np.int64)

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``count`` training images as the network takes them, float32 [b, C, height, width], and their labels.

        Labels: int64 [b], or float32 [b, K], 0 or 1, where an image can have several.
        """
        rows = self.training_rows(count)
        for start in range(0, len(rows), _BATCH):
            batch = self.parts["train"].batch(rows[start : start + _BATCH])
            yield normalise(batch.pixels, self.card.preprocessing), batch.labels


def open_subject(
    model: str | os.PathLike[str],
    objects: Objects | None,
    source: Mapping[str, Any],
    changes: Mapping[str, Any],
    given: str | os.PathLike[str] | None,
    console: Console,
) -> Subject:
    """Read the model and its images. ``changes`` and the YAML file ``given`` override the spec of fine-tuning.

    ``source``: fields of the data section that name the images, which may be ``objects``; empty: the run's own.

    Raises ArtifactError, and DataError if there are no images, or classes that the model does not know.
    """
    file = artifact.find(model)
    card = artifact.read_card(file)
    folder = Path(model)
    if folder.is_dir() and runs.is_run(folder):
        spec = runs.read_spec(folder / runs.SPEC_FILE)
    elif "source" not in source:
        raise DataError(
            f"{os.fspath(model)} is not a run folder, so it does not say which images to use; give DATA."
        )
    else:
        spec = Spec()
    spec = _fine_tuning(spec, card, file)
    spec = update(spec, {"data": _section(spec.data, objects, source)})
    if given is not None:
        spec = runs.read_spec(given, spec)
    spec = update(spec, changes)
    if objects is not None:
        objects.known, objects.ranged = card.classes, card.preprocessing.range is not None
        with console.busy("Reading images and labels", len(objects)) as busy:
            objects.look(spec.data, busy.advance)
    samples = opening.open_source(spec.data, lambda note: None, given=objects)
    if not (samples.splits == "val").any() and not spec.data.val_fraction:
        console.warn(
            f"There are no validation images; {numerals.percent(HELD_OUT, 0)} of the training images are "
            "used instead. The model was trained on them, so the drop measured on them is optimistic."
        )
        spec = update(spec, {"data.val_fraction": HELD_OUT})
        samples = opening.open_source(spec.data, lambda note: None, given=objects)
    return Subject(file, card, spec, _parts(samples, spec, card, console), objects)


def _section(own: DataSpec, objects: Objects | None, source: Mapping[str, Any]) -> DataSpec:
    """Return the data section: the run's own, but that objects need none of what says how files are read."""
    if objects is not None:
        plain = DataSpec()
        own = dataclasses.replace(own, **{name: getattr(plain, name) for name in _OF_FILES})
    return update(own, source)


def _parts(samples: Samples, spec: Spec, card: Card, console: Console) -> dict[str, ImageSet]:
    if (samples.targets is not None) != card.several:
        raise DataError(
            f"Images of {spec.data.source} can have several labels, and the model gives one for each. --data.labels "
            "single leaves out those with several."
            if samples.targets is not None
            else f"Images of {spec.data.source} have one label each, and the model gives several: --data.labels multi."
        )
    if set(samples.classes) != set(card.classes):
        differing = sorted(set(samples.classes) ^ set(card.classes))
        raise DataError(
            f"The data and the model do not have the same classes; in one only: {', '.join(differing[:8])}."
        )
    table = np.array([card.classes.index(name) for name in samples.classes], np.int64)
    if samples.targets is not None:
        order = np.argsort(table)
        samples = dataclasses.replace(samples, classes=card.classes, targets=samples.targets[:, order])
    else:
        samples = dataclasses.replace(samples, classes=card.classes, labels=table[samples.labels])
    parts = {}
    for split in ("train", "val", "test"):
        part = samples.split(split)
        if len(part):
            with console.busy(f"Reading {split} images", len(part)) as busy:
                images, _ = decoded.evaluation_images(part, card.preprocessing, spec.data, busy.advance)
            if len(images):
                parts[split] = images
    for split in ("train", "val"):
        if split not in parts:
            raise DataError(
                f"{spec.data.source} has no {split} images that can be read; compression needs both."
            )
    return parts


def _fine_tuning(spec: Spec, card: Card, file: Path) -> Spec:
    """Return a spec that continues training the model as it is: all layers, small steps, the model itself as teacher.

    Images, augmentation and loss stay the run's. Options for training from scratch (large steps, growing images, layers
    that stop early) are dropped.
    """
    contract, architecture = card.preprocessing, card.architecture
    size = spec.training.batch_size
    changes: dict[str, Any] = {
        "input": {
            **{name: getattr(contract, name) for name in ("size", "channels", "resize", "interpolation")},
            "decode": contract.decode
            if spec.input.decode != "crops" or contract.decode != "full"
            else "crops",
            "range": "full" if contract.range is None else "-".join(f"{v:.17g}" for v in contract.range),
            "crop_fraction": contract.crop_fraction,
            "mean": contract.mean,
            "std": contract.std,
            "views": card.views.name,
            "views_below": card.views.below,
        },
        "model": {
            "name": architecture.name,
            "arguments": architecture.arguments,
            "weights": str(file.resolve()),
            "finetune": "full",
            "head": "gradient",
            "norms": "train",
            "freeze_blocks": 0,
            "layer_decay": 1.0 if spec.model.head == "fitted" else spec.model.layer_decay,
            "dropout": architecture.dropout,
            "drop_path": architecture.drop_path,
            "batch_norm": architecture.batch_norm,
            "stem": architecture.stem,
        },
        "training": {
            "epochs": 0 if spec.model.head == "fitted" else spec.training.epochs,
            "optimizer": "adamw",
            "lr": 5e-4,
            "bias_lr": 0.0,
            "head_lr": 0.0,
            "early_epochs": 0,
            "epoch_images": 0,
            "momentum": 0.9,
            "weight_decay": min(spec.training.weight_decay, 0.05),
            "schedule": "cosine",
            "warmup_epochs": 0.3,
            "start_size": 0,
            "prune": 0.0,
            "batch_size": min(size, 128) if size else 0,
            "accumulate": 0 if size > 128 else spec.training.accumulate,
        },
        "speed": {"cuda_graphs": "off"},
        "run": {"dir": "", "report": True},
        "time_limit": 0.0,
        "distill": {"teacher": str(file.resolve()), "fingerprint": "", "weight": 0.7, "temperature": 2.0},
    }
    if card.several:
        changes["data"] = {"labels": "multi"}
    if card.ordered:
        changes["data"] = {"order": card.classes}
    try:
        return update(spec, changes)
    except SpecError as error:  # these values come from the card, not from the user
        raise DataError(f"The model cannot be fine-tuned: {error}") from None
