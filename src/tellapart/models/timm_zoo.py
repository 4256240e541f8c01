"""timm's networks: owner of that package for building.

Knows nothing of weights. ``bare`` names are timm's own, without the ``timm/`` in front.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tellapart import packages
from tellapart.contract.architecture import Architecture
from tellapart.contract.sides import Size, words
from tellapart.errors import ModelError
from tellapart.models import surgery
from tellapart.models.small_cnn import initialise
from tellapart.models.surgery import SmallStem


def _vgg_without_window(model: nn.Module) -> None:
    """VGG ends here in a 7x7 convolution; small images leave one pixel for it: make it 1x1."""
    old = model.get_submodule("pre_logits.fc1")
    if isinstance(old, nn.Conv2d):
        model.pre_logits.fc1 = nn.Conv2d(old.in_channels, old.out_channels, 1)  # type: ignore[union-attr]
        model.pre_logits.input_kernel_size = 1  # type: ignore[union-attr]
        initialise(model.get_submodule("pre_logits.fc1"))


_RESNET = SmallStem(stride=1, kernel=3, pools=("maxpool",))
_STRIDE = SmallStem(stride=1)
_VIT = SmallStem(arguments=(("patch_size", 4),))
_SWIN = SmallStem(arguments=(("patch_size", 2), ("window_size", 4)))

SMALL_STEMS: dict[str, SmallStem] = {
    # module of timm.models: what the small stem is
    "resnet": _RESNET,
    "resnest": _RESNET,
    "sknet": _RESNET,
    "res2net": _RESNET,
    "densenet": SmallStem(stride=1, kernel=3, pools=("features.pool0",)),
    "regnet": _STRIDE,
    "efficientnet": _STRIDE,
    "mobilenetv3": _STRIDE,
    "ghostnet": _STRIDE,
    "rexnet": _STRIDE,
    "convnext": SmallStem(stride=2, kernel=2),
    "vgg": SmallStem(extra=_vgg_without_window),
    "vision_transformer": _VIT,
    "deit": _VIT,
    "swin_transformer": _SWIN,
    "swin_transformer_v2": _SWIN,
}
"""Families whose stem shrinks too fast for small images, and what they get instead.

Convolutional stems: stride 1 (ConvNeXt: patches of 2), 7x7 kernels become 3x3, the first pooling goes. ViT:
patches of 4 pixels. Swin: patches of 2, windows of 4. Every other family has the standard stem only."""


def timm_package() -> Any:
    """Return the timm module; raise MissingPackageError if it is not installed."""
    return packages.require("timm", "models", "This model")


@functools.cache
def names() -> list[str]:
    """Return timm's architectures, sorted."""
    return sorted(timm_package().list_models())


def info(bare: str) -> tuple[int | None, str | None]:
    """Return (size in pixels, licence of the default weights) of an architecture, if timm states them."""
    cfg = timm_package().get_pretrained_cfg(bare)
    if cfg is None or not cfg.input_size:
        return None, None
    return int(cfg.input_size[-1]), cfg.license


def family(bare: str) -> str:
    """Return the module of timm.models that holds the architecture: ``resnet18`` -> ``resnet``."""
    entry = timm_package().models.model_entrypoint(bare)
    return str(entry.__module__).rpartition(".")[2]


def has_small_stem(bare: str) -> bool:
    """Return whether the architecture's family has a small stem."""
    return family(bare) in SMALL_STEMS


def arguments(architecture: Architecture) -> dict[str, Any]:
    """Return the keyword arguments for ``timm.create_model`` for the architecture, without img_size."""
    chosen: dict[str, Any] = {"num_classes": architecture.num_classes, "in_chans": architecture.channels}
    bare = architecture.name.partition("/")[2]
    if family(bare) in ("resnet", "resnest", "sknet", "res2net"):
        # With random weights a zero last norm makes every block an identity at first: weak for comparisons
        # between formats, and NaN under quantisation.
        chosen["zero_init_last"] = False
    if architecture.dropout:
        chosen["drop_rate"] = architecture.dropout
    if architecture.drop_path:
        chosen["drop_path_rate"] = architecture.drop_path
    if architecture.stem == "small":
        chosen.update(SMALL_STEMS[family(bare)].arguments)
    return chosen


def create(bare: str, size: Size, chosen: dict[str, Any], **more: Any) -> nn.Module:
    """Return ``timm.create_model`` with ``img_size`` for those that take it; the others do not depend on the size.

    Raises ModelError for an option that the network does not have.
    """
    timm = timm_package()
    cfg = timm.get_pretrained_cfg(bare)
    sized = bool(cfg is not None and cfg.fixed_input_size)
    attempts = [dict(chosen, img_size=size), chosen] if sized or cfg is None else [chosen]
    for attempt in attempts:
        try:
            model: nn.Module = timm.create_model(bare, **attempt, **more)
        except TypeError as error:
            unknown = next((key for key in attempt if f"'{key}'" in str(error)), None)
            if unknown == "img_size":
                continue
            if unknown == "zero_init_last":
                return create(bare, size, {k: v for k, v in chosen.items() if k != unknown}, **more)
            option = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}.get(unknown or "", unknown)
            raise ModelError(f"timm/{bare} has no {option or 'such option'} to set ({error}).") from error
        return model
    raise ModelError(f"timm/{bare} cannot be built for images of {words(size)} pixels.")


def build(architecture: Architecture) -> nn.Module:
    """Return timm's network with random weights; see :func:`tellapart.models.zoo.build`.

    ``dropout`` and ``drop_path`` of 0 leave the network's own values, which are 0 with few exceptions.
    """
    bare = architecture.name.partition("/")[2]
    if architecture.stem == "small" and not has_small_stem(bare):
        raise ModelError(
            f"{architecture.name} has no small stem; families that have one: {', '.join(SMALL_STEMS)}."
        )
    return surgery.build_checked(_make, architecture, info(bare)[0])


def _make(architecture: Architecture) -> nn.Module:
    bare = architecture.name.partition("/")[2]
    model = create(bare, architecture.size, arguments(architecture))
    _check_patches(model, architecture)
    if architecture.stem == "small":
        surgery.apply_small_stem(model, SMALL_STEMS[family(bare)])
    return model


def _check_patches(model: nn.Module, architecture: Architecture) -> None:
    """Refuse sizes that a patch embedding would silently cut: pixels beyond the last whole patch."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not isinstance(patch, (tuple, list)) or getattr(embed, "dynamic_img_pad", False):
        return
    step, size = int(patch[0]), architecture.size
    if any(side % step for side in architecture.sides):
        height, width = (-(-side // step) * step for side in architecture.sides)
        fits = f"a multiple of {step}, such as {height}"
        if height != width or not isinstance(size, int):
            fits = f"two multiples of {step}, such as {height} {width}"
        raise ModelError(
            f"{architecture.name} cuts images into patches of {step}x{step} pixels, so {words(size)} does "
            f"not fit; --input.size must be {fits}."
        )
