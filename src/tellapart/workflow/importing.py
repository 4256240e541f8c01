"""Weights from elsewhere turned into an artifact, with the contract from their network's own configuration."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import tellapart
from tellapart import artifact, references
from tellapart.contract import Card, sides
from tellapart.contract.preprocessing import VERSION
from tellapart.errors import ArtifactError, SpecError
from tellapart.models import checkpoints, efficientnet_lite, hub, zoo
from tellapart.models import weights as loading
from tellapart.preprocess import Preprocessing
from tellapart.spec import Spec, update
from tellapart.tracking import Console
from tellapart.workflow.asked import make_spec


def import_weights(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: str | Sequence[str] = (),
    spec: Spec | str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Path:
    """Make an artifact, ``out``, of a state dict from elsewhere; return its path.

    Args:
        weights: the file, a trainer's checkpoint, a folder of the Hugging Face hub with timm's ``config.json``, or the
            name of weights in a package (``efficientnet-lite2``, with ImageNet's 1,000 classes).
        out: the artifact to write, such as ``model.safetensors``.
        classes: names in the order of the outputs, or one text with commas between; may be left out where
            ``config.json`` has them.
        spec: a Spec, or the path of a YAML file. It (or ``changes``) must say what the file cannot: ``model.name``,
            unless ``config.json`` does, and for networks that are neither timm's nor torchvision's ``input.mean`` and
            ``input.std``. What it leaves open of the contract is as ``config.json`` says, else as the library prepares
            the network's images; which, is told.
        quiet: no messages on standard error.
        changes: fields of the spec, such as ``model={"name": "resnet18"}``.

    Raises ModelError where the weights do not fit, SpecError where something is not said.
    """
    target = Path(out)
    if target.exists():
        raise ArtifactError(f"{target} exists; choose another --out.")
    spec = make_spec(None, None, spec, **changes)
    where = os.fspath(weights)
    if references.is_reference(spec.model.name):  # the user typed it
        references.allow(spec.model.name)
        references.remember(spec.model.name)
    beside = _beside(where)
    if spec.model.name == "auto":
        known = efficientnet_lite.named(where) or beside
        if known is None:
            raise SpecError(
                "model.name must be given: a state dict does not say which architecture it belongs to."
            )
        name = known.name if isinstance(known, hub.Described) else known.architecture
        spec = update(spec, {"model.name": name})
    given = [name.strip() for name in classes.split(",")] if isinstance(classes, str) else classes
    names = _classes(given, beside, where)
    name = zoo.resolve(spec.model.name)
    contract, told = _contract(spec, name, where)
    stem = zoo.choose_stem(name, contract.size, where) if spec.model.stem == "auto" else spec.model.stem
    architecture = zoo.Architecture(
        name,
        len(names),
        contract.channels,
        contract.size,
        batch_norm=spec.model.batch_norm,
        stem=stem,
        arguments=spec.model.arguments,
    )
    network = zoo.build(architecture)
    info = loading.load(network, dataclasses.replace(architecture, name=spec.model.name), where)
    if info.new:
        raise SpecError(
            f"{where} lacks {', '.join(info.new[:4])} for {len(names)} classes; are the classes right?"
        )
    versions = {"tellapart": tellapart.__version__, "torch": torch.__version__}
    card = Card(architecture, names, contract, weights=info.to_dict(), versions=versions)
    target.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(target, network.state_dict(), card)
    with Console(quiet=quiet) as console:
        # what it says about the images is reported as the contract
        described = loading.describe(spec.model.name, where)
        for note in (*info.notes[len(described.notes) if described else 0 :], told):
            console.message(note)
    return target


def _beside(where: str) -> hub.Described | None:
    """Return what ``config.json`` says beside a file from elsewhere; None for none. Raises ModelError."""
    if efficientnet_lite.named(where):
        return None
    found = checkpoints.find(where)
    return None if checkpoints.read_metadata(found) else hub.describe(found)


def _classes(given: Sequence[str], beside: hub.Described | None, where: str) -> tuple[str, ...]:
    names = tuple(name for name in given if name) or (beside.classes if beside else ())
    if not names:
        raise SpecError(f"--classes must be given: {where} does not name its classes.")
    if len(set(names)) != len(names):
        raise SpecError(f"A class is given more than once: {', '.join(names)}.")
    return names


def _contract(spec: Spec, name: str, where: str) -> tuple[Preprocessing, str]:
    """Return the contract, and a sentence on where it is from."""
    given = spec.input
    info = loading.describe(spec.model.name, where)
    assert info is not None
    channels = given.channels or (len(given.mean) if given.mean else 3)
    known = info.statistics(channels)
    mean, std = given.mean or (known[0] if known else ()), given.std or (known[1] if known else ())
    if not mean or not std:
        raise SpecError(
            "input.mean and input.std must be given: the normalisation that the weights were trained with "
            "(0.5 0.5 0.5 for both in PyTorch's CIFAR-10 tutorial)."
        )
    for field, values in (("mean", mean), ("std", std)):
        if (channels not in (1, 3) and not given.channels) or len(values) not in (1, channels):
            wanted = given.channels or "1 or 3, or --input.channels"
            raise SpecError(
                f"input.{field} has {len(values)} values; give 1, or one for each channel ({wanted})."
            )
    if min(std) <= 0:
        raise SpecError(f"input.std is {std}; its values must be above 0.")
    if given.range == "max":
        raise SpecError("input.range is max, which only training images could say; give LOW-HIGH, or full.")
    if info.inexact and given.resize == "auto":
        raise SpecError(
            f"{info.prepared_as} asks for {info.inexact}, which a contract cannot express. Choose the "
            "closest settings: --input.resize, --input.size and --input.interpolation."
        )
    size = given.size or info.size or zoo.default_size(name) or 32
    resize = (info.resize or "squash") if given.resize == "auto" else given.resize
    interpolation = info.interpolation or "bilinear" if given.interpolation == "auto" else given.interpolation
    fraction = given.crop_fraction or info.fraction_at(sides.shortest(size)) or 0.875
    contract = Preprocessing.from_dict(
        {
            "version": VERSION,
            "size": sides.plain(size),
            "channels": channels,
            "resize": resize,
            "interpolation": interpolation,
            "crop_fraction": fraction if resize == "crop" else 1.0,
            "mean": mean * (channels if len(mean) == 1 else 1),
            "std": std * (channels if len(std) == 1 else 1),
            "decode": "scaled" if given.decode == "scaled" else "full",
            "range": given.levels(),
            "depth": "float32" if given.depth == "float32" else "uint8",
        }
    )
    source = (
        f"as {info.prepared_as} says, except for options given here"
        if info.prepared_as
        else "as the options say"
    )
    kept = f" ({contract.crop_fraction:.4g} of the short side)" if resize == "crop" else ""
    return contract, (
        f"Contract {source}: {sides.words(size)}x{channels}, {resize}{kept}, {interpolation}, mean {contract.mean}, "
        f"std {contract.std}."
    )
