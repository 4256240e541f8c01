"""Models by name, and in other forms: listing, summary, loading and import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

import tellapart
from tellapart import artifact, runtime
from tellapart.contract import Card
from tellapart.devices import choose_device
from tellapart.errors import ArtifactError, SpecError
from tellapart.models import summary, weights, zoo
from tellapart.models.zoo import ModelInfo
from tellapart.predict import Classifier
from tellapart.preprocess import Preprocessing
from tellapart.spec import Spec


def load(model: str | os.PathLike[str], device: str = "cpu", trust: bool = False) -> Classifier:
    """Open a model or an exported file: ``tellapart.load(path).predict(images)``. Raises ArtifactError, SpecError.

    ``trust``: open a ``.pt2`` or TorchScript file also where tellapart did not write it here: such files are programs.
    """
    return Classifier(
        runtime.open_backend(
            model, device if runtime.is_export(model) else str(choose_device(device)), trust=trust
        )
    )


def models(pattern: str = "") -> list[ModelInfo]:
    """Return the models whose names match."""
    return zoo.list_models(pattern)


def model_summary(name: str, size: int = 0, channels: int = 3, num_classes: int = 10) -> str:
    """Return a model's layers, shapes, parameters and FLOPs as text. Raises ModelError."""
    canonical = zoo.resolve(name)
    side = size or zoo.default_size(canonical) or 32
    stem = zoo.choose_stem(canonical, side)
    architecture = zoo.Architecture(canonical, num_classes, channels=channels, size=side, stem=stem)
    return summary.render(summary.summarise(zoo.build(architecture), channels, side))


def import_weights(
    file: str | os.PathLike[str], classes: Sequence[str], out: str | os.PathLike[str], spec: Spec
) -> Path:
    """Make an artifact of a state dict from elsewhere; return its path.

    ``spec`` must say what the file cannot: ``model.name``, and the contract it was trained with
    (``input.mean``, ``input.std``, and size and resize where they are not the model's own). Raises ModelError
    where the weights do not fit, SpecError where something is not said.
    """
    target = Path(out)
    if target.exists():
        raise ArtifactError(f"{target} exists; choose another --out.")
    if spec.model.name == "auto":
        raise SpecError("model.name must be given: a state dict does not say which architecture it is of.")
    if not spec.input.mean or not spec.input.std:
        raise SpecError(
            "input.mean and input.std must be given: the normalisation that the weights were trained with "
            "(0.5 0.5 0.5 for both in PyTorch's CIFAR-10 tutorial)."
        )
    if len(set(classes)) != len(classes):
        raise SpecError(f"A class is given more than once: {', '.join(classes)}.")
    name = zoo.resolve(spec.model.name)
    channels = spec.input.channels or len(spec.input.mean)
    for field, values in (("mean", spec.input.mean), ("std", spec.input.std)):
        if channels not in (1, 3) or len(values) not in (1, channels):
            raise SpecError(
                f"input.{field} has {len(values)} values; give 1, or one for each channel (1 or 3)."
            )
    if min(spec.input.std) <= 0:
        raise SpecError(f"input.std is {spec.input.std}; its values must be above 0.")
    size = spec.input.size or zoo.default_size(name) or 32
    stem = zoo.choose_stem(name, size, os.fspath(file)) if spec.model.stem == "auto" else spec.model.stem
    architecture = zoo.Architecture(
        name, len(classes), channels=channels, size=size, batch_norm=spec.model.batch_norm, stem=stem
    )
    network = zoo.build(architecture)
    info = weights.load(network, architecture, os.fspath(file))
    if info.new:
        raise SpecError(
            f"{os.fspath(file)} lacks {', '.join(info.new[:4])} for {len(classes)} classes; are the classes right?"
        )
    resize = "squash" if spec.input.resize == "auto" else spec.input.resize
    contract = Preprocessing(
        size=size,
        channels=channels,
        resize=resize,
        interpolation="bilinear" if spec.input.interpolation == "auto" else spec.input.interpolation,
        crop_fraction=(spec.input.crop_fraction or 0.875) if resize == "crop" else 1.0,
        mean=spec.input.mean * (channels if len(spec.input.mean) == 1 else 1),
        std=spec.input.std * (channels if len(spec.input.std) == 1 else 1),
    )
    versions = {"tellapart": tellapart.__version__, "torch": torch.__version__}
    card = Card(architecture, tuple(classes), contract, weights=info.to_dict(), versions=versions)
    target.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(target, network.state_dict(), card)
    return target
