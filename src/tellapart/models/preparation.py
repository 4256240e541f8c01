"""How the images of weights were prepared, in the contract's terms: as timm, torchvision or a trainer's options say.

The libraries' own rules decide (timm rounds the size before its crop down, torchvision states it), so that a contract
made from this gives the library's own input. Knows nothing of files or networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.contract.sides import Size, longest, shortest, words
from tellapart.errors import ModelError
from tellapart.models import timm_zoo

MOST_PIXELS = 16_384
"""The largest side that a description from elsewhere may ask for."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FROM_MINUS_ONE = ("googlenet", "inception_v3")
"""Networks that torchvision's own weights give values from -1 to 1."""
_POLICIES = {"center": "crop", "squash": "squash", "border": "letterbox"}
_BORDER = 128  # the contract's own


@dataclass(frozen=True)
class Preparation:
    """The contract's values as far as they are known, and who says so (``prepared_as``).

    ``mean`` and ``std`` are for values from 0 to 1; ``crop_fraction`` is for images of ``size`` pixels; ``crop_floor``
    is timm's crop_pct, which gives it for other sizes. ``inexact`` says what the contract cannot express, if anything.
    """

    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    resize: str | None = None
    crop_fraction: float | None = None
    crop_floor: float | None = None
    prepared_as: str = ""
    inexact: str = ""


def fraction_at(size: int, crop_fraction: float | None, crop_floor: float | None) -> float | None:
    """Return the fraction of the short side that is kept, so that the contract scales as the library does."""
    if crop_floor:
        return size / max(size, math.floor(size / crop_floor))
    return crop_fraction


def of_timm(cfg: Mapping[str, Any], said_by: str, options: Mapping[str, Any] | None = None) -> Preparation:
    """Return what timm would do: a pretrained configuration's values, overridden by a training's ``options``.

    Raises ModelError if a value is not one that timm takes.
    """
    timm_zoo.timm_package()
    from timm.data import resolve_data_config

    names = ("input_size", "img_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    given = {name: (options or {}).get(name) for name in names}
    try:
        found = resolve_data_config(given, pretrained_cfg=dict(cfg) or {"crop_mode": "center"})
        height, width = (int(side) for side in found["input_size"][1:])
        crop_pct, mode = float(found["crop_pct"]), str(found["crop_mode"])
        mean, std = _floats(found["mean"]), _floats(found["std"])
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is {crop_pct}")
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"How images are prepared cannot be read from {said_by} ({error!r:.120}).") from None
    resize = _POLICIES.get(mode, "crop")
    inexact = []
    if height != width:
        inexact.append(f"images of {width}x{height} pixels, which are not square")
    if resize == "squash" and math.floor(width / crop_pct) != width:
        inexact.append(f"squashed images of which the centre is cut out (crop_pct {crop_pct:g})")
    if resize == "letterbox" and (crop_pct != 1 or any(round(255 * value) != _BORDER for value in mean)):
        inexact.append("a border of another shade or width")
    interpolation = str(found["interpolation"])
    return checked(
        Preparation(
            size=width,
            mean=mean,
            std=std,
            interpolation=_interpolation(interpolation, inexact),
            resize=resize,
            crop_fraction=fraction_at(width, None, crop_pct) if resize == "crop" else 1.0,
            crop_floor=crop_pct if resize == "crop" else None,
            prepared_as=said_by,
            inexact=" and ".join(inexact),
        )
    )


def of_torchvision(bare: str, member: Any, said_by: str) -> Preparation:
    """Return the preparation by the ``transforms()`` of a member of torchvision's weights."""
    transform = member.transforms()
    mean, std = _floats(transform.mean), _floats(transform.std)
    if bare in FROM_MINUS_ONE:
        # They were trained on values from -1 to 1; torchvision turns ImageNet's normalisation into that
        # inside the network (transform_input); here it is given directly.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    size = int(transform.crop_size[0])
    return checked(
        Preparation(
            size=size,
            mean=mean,
            std=std,
            interpolation="bicubic" if transform.interpolation.value == "bicubic" else "bilinear",
            resize="crop",
            crop_fraction=size / int(transform.resize_size[0]),
            prepared_as=said_by,
        )
    )


def of_options(
    name: str, cfg: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> Preparation | None:
    """Return what the script that trained the network ``name`` did to its images, by the options that it saved.

    ``cfg`` is timm's configuration of the network, over which timm's script lays its options. None: the options are
    neither of timm's script nor of torchvision's. Raises ModelError where a value is not what these scripts take.
    """
    said_by = f"{where} (the options that its trainer saved)"
    if options.keys() >= {"val_crop_size", "val_resize_size"}:
        return _of_torchvision_options(name.rpartition("/")[2], options, said_by)
    if name.startswith("timm/") and options.keys() >= {
        "img_size",
        "crop_pct",
        "mean",
        "std",
        "interpolation",
    }:
        return of_timm(cfg, said_by, options)
    return None


def _of_torchvision_options(bare: str, options: Mapping[str, Any], said_by: str) -> Preparation:
    """Return what torchvision's reference script evaluates on."""
    try:
        size, edge = int(options["val_crop_size"]), int(options["val_resize_size"])
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"How images are prepared cannot be read from {said_by}.") from None
    inexact: list[str] = []
    if edge < size:
        inexact.append(f"images scaled to {edge} pixels and padded to {size}")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if bare in FROM_MINUS_ONE and options.get("weights"):  # otherwise it trained without transform_input
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    found = Preparation(
        size=size,
        mean=mean,
        std=std,
        interpolation=_interpolation(str(options.get("interpolation", "bilinear")), inexact),
        resize="crop",
        crop_fraction=size / max(edge, size, 1),
        prepared_as=said_by,
        inexact=" and ".join(inexact),
    )
    return checked(found)


def _interpolation(name: str, inexact: list[str]) -> str:
    """Return the contract's interpolation; any other is recorded in ``inexact``."""
    if name not in ("bilinear", "bicubic"):
        inexact.append(f"{name} interpolation")
    return "bilinear" if name == "bilinear" else "bicubic"


def _floats(values: Any) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        return (float(values),)
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{values!r:.60} is not a list of numbers")
    return tuple(float(value) for value in values)


def checked(found: Preparation) -> Preparation:
    """Return ``found``. Raises ModelError if a value is impossible, whatever its source."""
    mean, std = found.mean or (), found.std or ()
    right = (
        found.size is not None
        and 1 <= shortest(found.size) <= longest(found.size) <= MOST_PIXELS
        and len(mean) == len(std)
        and len(mean) in (1, 3)
        and all(math.isfinite(value) for value in (*mean, *std))
        and min(std) > 0
        and found.crop_fraction is not None
        and 0 < found.crop_fraction <= 1
    )
    if not right:
        raise ModelError(
            f"{found.prepared_as} says nothing possible of how images are prepared: size {found.size}, mean "
            f"{found.mean}, deviation {found.std}, part that is kept {found.crop_fraction}."
        )
    return found


def describe(found: Preparation) -> str:
    """Return the values in a line."""
    kept = f", {found.crop_fraction:.4g} of the short side" if found.resize == "crop" else ""
    mean, std = (" ".join(f"{value:.4g}" for value in values or ()) for values in (found.mean, found.std))
    return (
        f"{words(found.size or 0)} pixels, {found.resize}{kept}, {found.interpolation}, mean {mean}, "
        f"deviation {std}"
    )
