"""torchvision's networks: owner of that package for building classifiers.

Knows nothing of weights. ``bare`` names are torchvision's own, without the ``torchvision/`` in front.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tellapart import packages
from tellapart.contract.architecture import Architecture
from tellapart.contract.sides import words
from tellapart.errors import ModelError, did_you_mean
from tellapart.models import surgery
from tellapart.models.heads import head_names
from tellapart.models.small_cnn import initialise, initialise_head
from tellapart.models.surgery import SmallStem


def _vgg_without_window(model: nn.Module) -> None:
    """VGG's first linear layer sees a 7x7 window; small images leave one pixel for it."""
    old = model.get_submodule("classifier.0")
    if isinstance(old, nn.Linear):
        surgery.replace(model, "avgpool", nn.AdaptiveAvgPool2d(1))
        surgery.replace(model, "classifier.0", nn.Linear(old.in_features // 49, old.out_features))
        initialise(model.get_submodule("classifier.0"))


_STRIDE = SmallStem(stride=1)

SMALL_STEMS: dict[str, SmallStem] = {
    # module of torchvision.models: what the small stem is
    "alexnet": SmallStem(stride=1, kernel=5),
    "vgg": SmallStem(stride=1, extra=_vgg_without_window),
    "resnet": SmallStem(stride=1, kernel=3, pools=("maxpool",)),
    "densenet": SmallStem(stride=1, kernel=3, pools=("features.pool0",)),
    "googlenet": SmallStem(stride=1, kernel=3, pools=("maxpool1",)),
    "squeezenet": SmallStem(stride=1, kernel=3),
    "shufflenetv2": SmallStem(stride=1, pools=("maxpool",)),
    "mobilenetv2": _STRIDE,
    "mobilenetv3": _STRIDE,
    "mnasnet": _STRIDE,
    "efficientnet": _STRIDE,
    "regnet": _STRIDE,
    "convnext": SmallStem(stride=2, kernel=2),
    "swin_transformer": SmallStem(stride=2, kernel=2),
    "vision_transformer": SmallStem(arguments=(("patch_size", 4),)),
}
"""Families whose stem shrinks too fast for small images, and what they get instead.

Convolutional stems: stride 1 (ConvNeXt and Swin: patches of 2), 7x7 kernels become 3x3 (AlexNet's 11x11 5x5),
the first pooling goes. VGG: one pixel instead of a 7x7 window before its linear layers. ViT: patches of 4."""


def models_package() -> Any:
    """Return the torchvision.models module; raise MissingPackageError if it is not installed."""
    return packages.require("torchvision.models", "models", "This model")


@functools.cache
def names() -> list[str]:
    """Return torchvision's classifiers, sorted."""
    module = models_package()
    return sorted(module.list_models(module=module))


def info(bare: str) -> tuple[int | None, str | None]:
    """Return (size in pixels, licence of the default weights) of an architecture."""
    weights = default_weights(bare)
    if weights is None:
        return None, "BSD-3-Clause"
    return int(weights.transforms.keywords["crop_size"]), "BSD-3-Clause"


def stated(bare: str) -> tuple[int | None, float | None]:
    """Return what torchvision states about the default weights: parameters, and top-1 on ImageNet-1K in %."""
    member = default_weights(bare)
    return getattr(member, "meta", {}).get("num_params"), accuracy_of(member)


def accuracy_of(member: Any) -> float | None:
    """Return the top-1 on ImageNet-1K in % that torchvision states of weights; None if it states none."""
    accuracy: float | None = (
        getattr(member, "meta", {}).get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    )
    return accuracy


def default_weights(bare: str) -> Any:
    """Return the member of torchvision's enum that ``DEFAULT`` stands for, or None if there is none."""
    enum = models_package().get_model_weights(bare)
    return getattr(enum, "DEFAULT", None)


def all_weights(bare: str) -> list[Any]:
    """Return the members of torchvision's enum of a network's weights."""
    return list(models_package().get_model_weights(bare))


def interpolate_embeddings() -> Any:
    """Return torchvision's function that fits a ViT's position embedding to another image size."""
    return packages.require(
        "torchvision.models.vision_transformer", "models", "This model"
    ).interpolate_embeddings


def weights_member(bare: str, weights: str) -> Any:
    """Return the member of torchvision's enum for a tag or ``pretrained``; raise ModelError where none is."""
    enum = models_package().get_model_weights(bare)
    members = {member.name: member for member in enum}
    if not members:
        raise ModelError(f"torchvision has no pretrained weights for {bare}.")
    if weights == "pretrained":
        return default_weights(bare)
    if weights not in members:
        raise ModelError(f"torchvision/{bare} has no weights {weights!r}. {did_you_mean(weights, members)}")
    return members[weights]


def family(bare: str) -> str:
    """Return the module of torchvision.models that holds the architecture: ``vgg11`` -> ``vgg``."""
    builder = models_package().get_model_builder(bare)
    return str(builder.__module__).rpartition(".")[2]


def has_small_stem(bare: str) -> bool:
    """Return whether the architecture's family has a small stem."""
    return family(bare) in SMALL_STEMS


def build(architecture: Architecture) -> nn.Module:
    """Return torchvision's network with random weights; see :func:`tellapart.models.zoo.build`.

    ``dropout`` replaces the probability of every dropout that the network has by default (also 0: off), and
    is put before the head of networks that have none.
    """
    bare = architecture.name.partition("/")[2]
    if architecture.stem == "small" and not has_small_stem(bare):
        raise ModelError(
            f"{architecture.name} has no small stem; families that have one: {', '.join(SMALL_STEMS)}."
        )
    model = surgery.build_checked(_make, architecture, info(bare)[0])
    head = model.get_submodule(head_names(model)[0])
    if not any(bool(parameter.any()) for parameter in head.parameters()):
        initialise_head(head)  # ViT's own is all zeros, made for fine-tuning
    return model


def _make(architecture: Architecture) -> nn.Module:
    bare = architecture.name.partition("/")[2]
    group = family(bare)
    stem = SMALL_STEMS[group] if architecture.stem == "small" else None
    model = _create(bare, group, architecture, stem)
    if stem is not None:
        surgery.apply_small_stem(model, stem)
    surgery.set_channels(model, architecture.channels)
    surgery.set_dropout(model, head_names(model)[0], architecture.dropout)
    _set_drop_path(model, architecture)
    return model


def _create(bare: str, group: str, architecture: Architecture, stem: SmallStem | None) -> nn.Module:
    """Call torchvision's builder, with the arguments that its families differ in."""
    chosen: dict[str, Any] = {"num_classes": architecture.num_classes}
    size, other = architecture.sides
    if group == "vision_transformer" and size != other:
        raise ModelError(
            f"{architecture.name} takes square images only, as torchvision builds it, not {words(architecture.size)}; "
            "give one number as --input.size, or take one of timm's vision transformers, which take height and width."
        )
    if group in ("inception", "googlenet"):  # their extra heads are for training from scratch on ImageNet
        chosen.update(aux_logits=False, init_weights=True)
    if group == "maxvit":
        chosen["input_size"] = architecture.sides
    if group == "vision_transformer" and stem is None:
        chosen["image_size"] = size
    if group != "vision_transformer" or stem is None:
        plain: nn.Module = models_package().get_model(bare, weights=None, **chosen)
        return plain
    patch = int(bare.rpartition("_")[2])
    small = dict(stem.arguments)["patch_size"]
    if size % small:
        raise ValueError(f"the size must be a multiple of {small}, the small stem's patch")
    # The builder's patch is fixed, so it is given the larger image that has as many patches.
    model: nn.Module = models_package().get_model(
        bare, weights=None, image_size=size // small * patch, **chosen
    )
    model.image_size, model.patch_size = size, small  # type: ignore[assignment]
    old = model.get_submodule("conv_proj")
    model.conv_proj = nn.Conv2d(3, old.out_channels, small, small)  # type: ignore[arg-type]
    initialise(model.conv_proj)
    return model


def _set_drop_path(model: nn.Module, architecture: Architecture) -> None:
    """Set torchvision's StochasticDepth modules, rising linearly from 0 to ``drop_path``."""
    layers = [m for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    if architecture.drop_path and not layers:
        raise ModelError(f"{architecture.name} has no stochastic depth, so drop_path must be 0.")
    for index, layer in enumerate(layers):
        layer.p = architecture.drop_path * index / max(len(layers) - 1, 1)  # type: ignore[assignment]
