"""The rules: from facts to choices. Each gives its reason in one line.

A rule returns a choice for every field that it decides; fields that were set keep their value. Knows nothing of when it
is called.
"""

from __future__ import annotations

import dataclasses

from tellapart import augment, references
from tellapart.contract import sides
from tellapart.contract.sides import Size
from tellapart.errors import RunError, SpecError
from tellapart.models import efficientnet_lite, zoo
from tellapart.spec import AugmentSpec, DistillSpec, InputSpec, ModelSpec, Spec, TrainingSpec, flatten
from tellapart.training.methods import multilabel as several
from tellapart.training.resolution import by_orientation, by_size
from tellapart.training.resolution.by_size import SMALL_SIDE
from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import DataFacts, DeviceFacts, ModelFacts, PixelFacts, TeacherFacts

TINY_SIDE = (
    16  # smaller images are enlarged to this, so that there are enough pixels for the network's layers
)
# If a GPU finishes a step (a forward pass of this many operations) about as soon as the processor has launched its
# kernels, they are replayed as CUDA graphs, provided there are enough steps to make up for recording.
GRAPH_FLOPS, GRAPH_STEPS = 1_000_000_000_000, 100
SEARCH_STEPS = 2000  # trying cuDNN's kernels takes 10 to 20 seconds for a network
EPOCHS, LR = 10, 0.001
_NO_WEIGHTS_SIZE = 224
_GIVEN = "as given"


# By the images, the weights and the teacher


def of_range(spec: InputSpec, data: DataFacts) -> list[Choice]:
    """For images of more than 8 bits: max is the largest number in the training images."""
    if spec.range != "max":
        return []
    reason = "the largest number in the training images of more than 8 bits"
    return [Choice("input.range", f"0-{data.largest:.17g}", reason, matters=True)]


def of_depth(spec: Spec, data: DataFacts) -> list[Choice]:
    """Whole levels of 8 bits. Without them nothing is computed in half precision that was not asked for."""
    if spec.input.depth == "float32":
        exact = "what is not rounded to levels is not rounded to half precision either"
        return [Choice("training.precision", "fp32", exact)] if spec.training.precision == "auto" else []
    deep = f"{data.seen.deep} of the images looked at have more than 8 bits; --input.depth float32 keeps them"
    return [
        Choice(
            "input.depth", "uint8", deep if data.seen.deep else "the images have 8 bits", bool(data.seen.deep)
        )
    ]


def of_model(spec: ModelSpec, data: DataFacts) -> list[Choice]:
    """Choose architecture and weights (`efforts` has what trains).

    auto: fast-cnn for images up to 96 pixels; for larger ones, and for few small ones in colour (see `by_size`),
    EfficientNet-Lite0 with its ImageNet weights if the packages for it are installed; the network of weights that are
    asked for by the name of their package. With a named model, weights are used only on request.
    """
    name, source, why = spec.name, spec.weights, "the name with its library"
    why_source = "weights are used if they are asked for"
    if name == "auto" and (lite := efficientnet_lite.named(source)):
        name, why, why_source = lite.architecture, "the network of these weights", _GIVEN
    if name == "auto":
        photographs = data.seen.longest > SMALL_SIDE
        pretrained = by_size.lite_installed()
        scarce = by_size.few_for_scratch(data)
        if (photographs or scarce) and pretrained and source == "auto":
            name, source = "timm/tf_efficientnet_lite0", "efficientnet-lite0"
            why = by_size.SCARCE if scarce else "photographs, and it is installed"
            why_source = "its own ImageNet weights"
        else:
            name = "fast-cnn"
            why = "no packages or other weights for photographs" if photographs else "small images"
            why = by_size.MISSING if scarce and not pretrained else why
    name, tag = zoo.split_tag(name)
    if tag and source in ("auto", "pretrained"):  # timm's tags name weights: resnet18.a1_in1k
        source, why_source = tag, "the tag in the model's name"
    source = "none" if source == "auto" else source
    return [
        Choice("model.name", name, why, spec.name == "auto"),
        Choice("model.weights", source, why_source, source != "none"),
    ]


def of_input(spec: InputSpec, data: DataFacts, model: ModelFacts) -> list[Choice]:
    """Choose the contract except mean and deviation, which without weights are measured later.

    Small images are taken as they are (squash); others have their centre cropped, keeping 0.875 unless the weights
    say otherwise.
    JPEGs are decoded at a reduced scale (`Preprocessing` says when) for training's random crops alone.
    """
    size = _size(spec, data, model)
    channels = _channels(spec, data, model)
    reason = "large JPEGs at reduced size for training's random crops only"
    decode = Choice("input.decode", "crops" if spec.decode == "auto" else spec.decode, reason)
    known = model.info.statistics(channels.value) if model.info else None
    found = [size, channels, *_framing(spec, data, model, size.value), decode]
    for name, theirs in zip(("mean", "std"), known or (), strict=False):
        found.append(Choice(f"input.{name}", getattr(spec, name) or theirs, "the weights' own"))
    return found


def _channels(spec: InputSpec, data: DataFacts, model: ModelFacts) -> Choice:
    """As many as the files have if that is neither 1 nor 3; otherwise 3, or 1 for grey images without weights."""
    if spec.channels:
        return Choice("input.channels", spec.channels, _GIVEN)
    if data.seen.bands:
        return Choice("input.channels", data.seen.bands, "as many as the files have", matters=True)
    if data.seen.grey and model.info is None:
        return Choice("input.channels", 1, "the images are grey", matters=True)
    if data.seen.grey:
        return Choice("input.channels", 3, "grey images, three times for the weights", matters=True)
    return Choice("input.channels", 3, "colour, or weights for colour")


def _framing(spec: InputSpec, data: DataFacts, model: ModelFacts, size: Size) -> list[Choice]:
    """How an image gets its ``size``: small ones whole, others as the weights require, otherwise by a crop."""
    info = model.info
    resize: str = spec.resize
    why = _GIVEN
    if resize == "auto":
        theirs = info.resize if info and info.resize else None
        resize, why = (theirs, "the weights' own") if theirs else ("crop", "photographs")
        if data.seen.longest <= SMALL_SIDE:
            resize, why = "squash", "small images"
    interpolation: str = spec.interpolation
    own = info.interpolation if info else None
    if interpolation == "auto":
        interpolation = own or "bilinear"
    fraction = spec.crop_fraction or ((info.fraction_at(sides.shortest(size)) if info else None) or 0.875)
    of_fraction = "the weights' own, otherwise 0.875"
    if resize != "crop":
        fraction, of_fraction = 1.0, "nothing is cropped"
    return [
        Choice("input.resize", resize, why),
        Choice(
            "input.interpolation", interpolation, "the weights' own" if own else "the weights say nothing"
        ),
        Choice("input.crop_fraction", fraction, of_fraction),
    ]


def _size(spec: InputSpec, data: DataFacts, model: ModelFacts) -> Choice:
    """The weights' own size or less (see `by_size`), or the images' if they are small, or the model's own, or 224."""
    size: Size = spec.size
    why = _GIVEN
    if not size and model.info and model.info.size:
        size, why = by_size.for_weights(data.seen, model)
    if not size and model.name == "tutorial-net":
        size, why = model.default_size or 0, "the network's own"
    if not size and data.seen.longest <= SMALL_SIDE:
        size, why = max(data.seen.shortest, TINY_SIDE), "the images' own, which are small"
    if not size:
        own = model.default_size
        size, why = own or _NO_WEIGHTS_SIZE, "the network's own" if own else "photographs"
    return Choice("input.size", size, why, matters=True)


def of_stem(spec: Spec) -> list[Choice]:
    """First layers that keep the resolution, for small images without weights (see `zoo.choose_stem`)."""
    if spec.model.stem != "auto":
        return []
    small = zoo.choose_stem(spec.model.name, spec.input.size, spec.model.weights) == "small"
    return [
        Choice(
            "model.stem",
            "small" if small else "standard",
            f"for images of {sides.words(spec.input.size)} pixels",
            matters=small,
        )
    ]


def of_batch_size(spec: Spec, data: DataFacts) -> list[Choice]:
    """Small images: 128, and at least 32 steps an epoch; larger ones: 32."""
    if spec.training.batch_size:
        return []
    if sides.longest(spec.input.size) > SMALL_SIDE:
        large = f"images of {sides.words(spec.input.size)} pixels"
        return [Choice("training.batch_size", 32, large, matters=True)]
    reason = "small images: 128, and at least 32 steps an epoch"
    return [Choice("training.batch_size", max(8, min(128, data.train // 32)), reason, matters=True)]


def of_training(spec: TrainingSpec) -> list[Choice]:
    """AdamW with a rate of 0.001 for 10 epochs, where these are open."""
    found = []
    if spec.optimizer == "auto":
        found.append(Choice("training.optimizer", "adamw", "for any network"))
    if not spec.lr:
        found.append(Choice("training.lr", LR, "for any network"))
    if not spec.epochs:
        found.append(Choice("training.epochs", EPOCHS, "for any data"))
    return found


def of_labels(spec: Spec, data: DataFacts) -> list[Choice]:
    """Loss and best metric by the kind of label; options that do not fit it are refused. Raises SpecError."""
    training = spec.training
    losses = (
        several.LOSSES if data.several else ("cross-entropy", "focal", *(("ordinal",) if data.grades else ()))
    )
    what = "can have several labels" if data.several else "has one label"
    if training.loss == "ordinal" and not data.grades and not data.several:
        raise SpecError("training.loss is 'ordinal', which is for grades: their order is data.order.")
    own = references.is_own(training.loss)
    if own and data.several:
        raise SpecError(
            f"training.loss {training.loss} is your own, which takes one label for each image; here an image "
            f"can have several: use {' or '.join(losses)}."
        )
    if not own and training.loss not in ("auto", *losses):
        raise SpecError(
            f"training.loss is {training.loss!r}, and each image of this data {what}: use {' or '.join(losses)}."
            + ("" if data.several else " (For several labels use --data.labels multi.)")
        )
    what = f"{what}, and the classes are grades" if data.grades else what
    loss = ("ordinal" if data.grades else losses[0]) if training.loss == "auto" else training.loss
    if data.several:
        several.check(spec, loss)
    metric = several.SCORES[0] if data.several else _metric_of_grades(data) or "accuracy"
    found = [Choice("training.loss", loss, f"an image {what}")] if training.loss == "auto" else []
    if training.best_metric == "auto":
        found.append(Choice("training.best_metric", metric, f"an image {what}"))
    if data.grades:
        found.append(Choice("data.order", data.grades, "the order of the grades"))
    return found


def _metric_of_grades(data: DataFacts) -> str:
    """Return kappa for grades, or mae where validation has one grade alone, of which kappa says nothing; else ""."""
    return ("mae" if data.validated == 1 else "kappa") if data.grades else ""


def of_augment(spec: Spec, data: DataFacts) -> list[Choice]:
    """Fill in the preset; auto: none for a head alone unless augmentation was requested, and no mirrored digits."""
    wanted = spec.augment
    own: dict[str, str] = {}  # why of what the preset does not decide
    if _frozen_without_a_choice(spec):
        wanted = AugmentSpec(preset="none")
        own["preset"] = "the head trains on kept features"
    elif wanted.preset == "auto" and wanted.transform:
        wanted = dataclasses.replace(wanted, preset="none")
        own["preset"] = "augment.transform replaces the preset"
    elif wanted.preset == "auto":
        wanted, own = by_orientation.unmirrored(wanted, data)
    full = augment.for_channels(augment.resolve(wanted, spec.input.size), spec.input.channels)
    augment.check_depth(full, spec.input.depth)
    where = f"for images of {sides.words(spec.input.size)} pixels"
    own.setdefault("preset", where)
    by_preset = f"the preset {full.preset} {where}"
    return [
        Choice(f"augment.{name}", value, own.get(name, by_preset), name in own)
        for name, value in flatten(full).items()
    ]


def _frozen_without_a_choice(spec: Spec) -> bool:
    """Return whether only a head trains and augmentation was not requested.

    Then there is none: the features of the frozen part are computed once and kept, in a fraction of the time, and the
    head is just as good.
    """
    return spec.model.finetune == "head" and spec.augment == AugmentSpec() and not spec.speed.feature_views


def of_teacher(spec: DistillSpec, teacher: TeacherFacts | None) -> list[Choice]:
    """Record the fingerprint of a teacher. Raises RunError if it is not the recorded one."""
    if teacher is None:
        return []
    if spec.fingerprint and spec.fingerprint != teacher.digest:
        raise RunError(
            f"The teacher {teacher.file} has changed since this training began. Restore it, or start a new run (for "
            "another teacher, leave distill.fingerprint empty)."
        )
    files = "file as it is" if teacher.count == 1 else f"{teacher.count} files as they are"
    return [Choice("distill.fingerprint", teacher.digest, f"the teacher's {files} when training begins")]


def of_compiling(spec: Spec) -> list[Choice]:
    """Nothing is compiled if rounding or the comparison of features looks into the network. Raises SpecError."""
    speed = spec.speed
    looks = bool(spec.distill.teacher and spec.distill.features)
    if looks and "on" in (speed.compile, speed.cuda_graphs):
        raise SpecError(
            "distill.features looks into the network, which speed.compile and speed.cuda_graphs do not allow; switch "
            "them off, or set distill.features 0."
        )
    if speed.compile != "auto":
        return []
    if looks:
        return [Choice("speed.compile", "off", "distill.features looks into the network", True)]
    rounds = spec.training.quantize != "none"
    return (
        [Choice("speed.compile", "off", "training.quantize rounds inside the network", True)]
        if rounds
        else []
    )


# By the decoded pixels


def of_pixels(spec: InputSpec, pixels: PixelFacts | None) -> list[Choice]:
    """Mean and deviation that neither the user nor weights gave are those of the training images."""
    if pixels is None:
        return []
    reason = "measured on the training images"
    return [
        Choice("input.mean", spec.mean or pixels.mean, reason),
        Choice("input.std", spec.std or pixels.std, reason),
    ]


# By the device, if nothing was measured


def of_speed(spec: Spec, device: DeviceFacts) -> list[Choice]:
    """Defaults for what was not measured: fp32, the whole batch at once, no compiling."""
    found = []
    if spec.training.precision == "auto":
        found.append(Choice("training.precision", "fp32", "nothing faster was measured"))
    if not spec.training.accumulate:
        found.append(Choice("training.accumulate", 1, "the whole batch at once"))
    if spec.speed.compile == "auto":
        found.append(Choice("speed.compile", "off", "too short a run, or not measured"))
    return found + _of_cuda(spec, device)


def _of_cuda(spec: Spec, device: DeviceFacts) -> list[Choice]:
    """CUDA graphs for many small steps; a search for kernels if there are still more."""
    open_ = [name for name in ("cuda_graphs", "kernel_search") if getattr(spec.speed, name) == "auto"]
    if not open_ or device.kind != "cuda":
        return [Choice(f"speed.{name}", "off", "for CUDA alone") for name in open_]
    steps = device.steps(spec)
    small = device.flops() * spec.training.batch_size <= GRAPH_FLOPS
    pays = {"cuda_graphs": small and steps >= GRAPH_STEPS, "kernel_search": steps >= SEARCH_STEPS}
    reason = f"{steps:,} steps, which are {'small' if small else 'large'}"
    return [Choice(f"speed.{name}", "on" if pays[name] else "off", reason, pays[name]) for name in open_]
