"""Augmentation presets: from a spec with gaps to one without. Knows no tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tellapart.contract.sides import Size, longest, shortest, sides
from tellapart.errors import SpecError
from tellapart.spec import AugmentSpec

SMALL = 96  # up to this size "auto" means "cifar", and "tutorial" and "strong" crop with padding


def _border(size: Size, part: int) -> int:
    """Return the padding for shifts by up to 1/part of the short side, at least a pixel where there is room."""
    return min(max(1, shortest(size) // part), shortest(size) - 1)


def _base(size: Size) -> dict[str, Any]:
    """Everything off; the values below take effect when their operation is switched on.

    Resized crops are about as wide for their height as the input is, so that nothing is stretched on the whole.
    """
    height, width = sides(size)
    aspect = width / height
    return {
        "crop": "none",
        "crop_padding": _border(size, 8),
        "padding_mode": "zeros",
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4 * aspect, 4 / 3 * aspect),
        "hflip": 0.0,
        "hflip_mode": "random",
        "vflip": 0.0,
        "rotation": 0.0,
        "translate": 0.0,
        "scale": (1.0, 1.0),
        "shear": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "policy": "none",
        "policy_ops": 2,
        "policy_magnitude": 9,
        "erasing": 0.0,
        "cutout": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }


def _none(size: Size) -> dict[str, Any]:
    """No augmentation."""
    return {}


def _light(size: Size) -> dict[str, Any]:
    """Shifts by up to a sixteenth, no flips: safe for digits, letters and anything with a left and a right."""
    return {"crop": "pad", "crop_padding": _border(size, 16), "padding_mode": "reflect"}


def _tutorial(size: Size) -> dict[str, Any]:
    """What beginners' tutorials use, and RandomHorizontalFlip().

    Small images: RandomCrop(size, padding=size/8), black around; large ones: RandomResizedCrop(size).
    """
    return {"crop": "pad" if longest(size) <= SMALL else "resized", "hflip": 0.5}


def _cifar(size: Size) -> dict[str, Any]:
    """Crops of a mirrored border of an eighth (4 pixels at 32), without black edges to learn, and flips."""
    return {"crop": "pad", "padding_mode": "reflect", "hflip": 0.5}


def _photo(size: Size) -> dict[str, Any]:
    """For photographs: resized crops of at least a quarter of the area, flips, slight colour jitter."""
    colour = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    return {"crop": "resized", "crop_scale": (0.25, 1.0), "hflip": 0.5, **colour}


def _strong(size: Size) -> dict[str, Any]:
    """For long training: crops as on ImageNet, TrivialAugment, erasing, and MixUp or CutMix."""
    crop = {"crop": "pad", "padding_mode": "reflect"} if longest(size) <= SMALL else {"crop": "resized"}
    mix = {"mixup": 0.2, "cutmix": 1.0}
    return {**crop, "hflip": 0.5, "policy": "trivialaugment", "erasing": 0.25, **mix}


PRESETS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "none": _none,
    "light": _light,
    "tutorial": _tutorial,
    "cifar": _cifar,
    "photo": _photo,
    "strong": _strong,
}


def resolve(spec: AugmentSpec, size: Size) -> AugmentSpec:
    """Fill a spec's gaps from its preset, for images of ``size`` pixels.

    Returns a spec without None, whose ``preset`` is the name that ``auto`` stood for; resolving it again
    changes nothing. Raises SpecError where values contradict each other.
    """
    name = spec.preset
    if name == "auto":
        name = "cifar" if longest(size) <= SMALL else "photo"
    given = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    explicit = {key: value for key, value in given.items() if value is not None}
    resolved = AugmentSpec(**{**_base(size), **PRESETS[name](size), **explicit, "preset": name})
    _check(resolved, size)
    return resolved


def for_channels(spec: AugmentSpec, channels: int) -> AugmentSpec:
    """Return a resolved spec without what is defined for red, green and blue only, for images with other channels."""
    return spec if channels in (1, 3) else dataclasses.replace(spec, saturation=0.0, hue=0.0)


def check_depth(spec: AugmentSpec, depth: str) -> None:
    """Raise SpecError for what is defined on 256 whole levels only, where pixels have others."""
    if depth == "float32" and spec.policy not in (None, "none"):
        raise SpecError(
            f"augment.policy {spec.policy} (of the preset {spec.preset}, if it was not given) is defined on 256 whole "
            "levels: posterize and equalize count them. With input.depth float32 use --augment.policy none, which "
            "leaves all other changes as they are."
        )


def _check(spec: AugmentSpec, size: Size) -> None:
    short = shortest(size)
    ranges: dict[str, tuple[tuple[float, float] | None, float]] = {
        "crop_scale": (spec.crop_scale, 1.0),
        "crop_ratio": (spec.crop_ratio, float("inf")),
        "scale": (spec.scale, float("inf")),
    }
    for name, (pair, most) in ranges.items():
        if pair is None or not 0 < pair[0] <= pair[1] <= most:
            limit = "" if most == float("inf") else f" and at most {most:g}"
            raise SpecError(
                f"augment.{name} is {pair}; it must be two numbers above 0{limit}, the smaller one first."
            )
    if spec.crop == "pad" and spec.padding_mode == "reflect" and (spec.crop_padding or 0) >= short:
        raise SpecError(
            f"augment.crop_padding is {spec.crop_padding}; with padding_mode=reflect it must be "
            f"below {short}, the {_side(size)} of the image."
        )
    if (spec.cutout or 0) > short:
        raise SpecError(f"augment.cutout is {spec.cutout}; images have {short} pixels only.")
    if spec.cutout and spec.erasing:
        raise SpecError("augment.cutout and augment.erasing both erase; choose one of them.")


def _side(size: Size) -> str:
    return "size" if isinstance(size, int) else "short side"


def _numbers(spec: AugmentSpec, *names: str) -> list[str]:
    return [f"{name} {getattr(spec, name):g}" for name in names if getattr(spec, name)]


def describe(spec: AugmentSpec) -> str:
    """Return one line that names what a resolved spec does, such as ``crop pad 4 (reflect), hflip 0.5``."""
    parts: list[str] = []
    if spec.crop == "pad" and spec.crop_padding:
        parts.append(f"crop pad {spec.crop_padding} ({spec.padding_mode})")
    if spec.crop == "resized" and spec.crop_scale and spec.crop_ratio:
        parts.append(
            "resized crop {:g}-{:g} of the area, ratio {:.3g}-{:.3g}".format(
                *spec.crop_scale, *spec.crop_ratio
            )
        )
    if spec.hflip and spec.hflip_mode == "alternating":
        parts.append(f"hflip {spec.hflip:g}, then alternating")
    parts += _numbers(
        spec,
        *([] if spec.hflip_mode == "alternating" else ["hflip"]),
        "vflip",
        "rotation",
        "translate",
        "shear",
    )
    if spec.scale and spec.scale != (1.0, 1.0):
        parts.append("scale {:g}-{:g}".format(*spec.scale))
    if spec.policy == "randaugment":
        parts.append(f"randaugment {spec.policy_ops}x{spec.policy_magnitude}")
    if spec.policy == "trivialaugment":
        parts.append("trivialaugment")
    parts += _numbers(
        spec, "brightness", "contrast", "saturation", "hue", "erasing", "cutout", "mixup", "cutmix"
    )
    parts += [f"transform {spec.transform}"] if spec.transform else []
    return ", ".join(parts) or "none"
