"""RandAugment (arXiv:1909.13719) and TrivialAugment Wide (arXiv:2103.10158) for whole batches.

Strengths and operations are those of torchvision on uint8 images, with resampling by
the nearest neighbour and black outside of the image. Images that drew the same operation change together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tellapart.augment import colour, geometry
from tellapart.contract.sides import Size, sides
from tellapart.devices import put

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_SIGNED = tuple(range(1, 10))
_GEOMETRIC = tuple(range(1, 6))
BINS = 31

Policy = Literal["randaugment", "trivialaugment"]

# Largest strength of each signed operation; TranslateX and TranslateY of RandAugment are parts of the size.
_STRONGEST: dict[str, dict[str, float]] = {
    "randaugment": {"shear": 0.3, "translate": 150 / 331, "rotate": 30, "colour": 0.9, "posterize": 4},
    "trivialaugment": {"shear": 0.99, "translate": 32, "rotate": 135, "colour": 0.99, "posterize": 6},
}


def strengths(policy: Policy, size: Size) -> Tensor:
    """Return float64 [14, BINS]: the magnitude of each operation at each level.

    Shears are tangents, translations pixels, rotations degrees, colours the distance of the factor from 1,
    posterize the bits that stay, solarize the threshold (0..1).
    """
    most = _STRONGEST[policy]
    ramp = torch.linspace(0, 1, BINS, dtype=torch.float64)
    table = torch.zeros(len(OPERATIONS), BINS, dtype=torch.float64)
    table[1:3] = ramp * most["shear"]
    height, width = sides(size) if policy == "randaugment" else (1, 1)
    table[3], table[4] = ramp * most["translate"] * width, ramp * most["translate"] * height
    table[5] = ramp * most["rotate"]
    table[6:10] = ramp * most["colour"]
    table[10] = (8 - torch.arange(BINS) / ((BINS - 1) / most["posterize"])).round()
    table[11] = 1 - ramp
    return table


def draw(
    policy: Policy, batch: int, ops: int, level: int, table: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw operations int64 [B, n], signed magnitudes float64 [B, n]; TrivialAugment: one, of any level."""
    shape = (batch, ops if policy == "randaugment" else 1)
    operations = torch.randint(len(OPERATIONS), shape, generator=generator)
    if policy == "randaugment":
        magnitudes = table[:, level][operations]
    else:
        magnitudes = table[operations, torch.randint(BINS, shape, generator=generator)]
    signed = (operations >= _SIGNED[0]) & (operations <= _SIGNED[-1])
    negative = signed & (torch.rand(shape, generator=generator) <= 0.5)
    return operations, torch.where(negative, -magnitudes, magnitudes)


def apply(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply the columns of ``operations`` one after the other to uint8 [B, H, W, C]."""
    result = images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    for step in range(operations.shape[1]):
        _step(result, operations[:, step], magnitudes[:, step])
    return result.permute(0, 2, 3, 1)


def _step(images: Tensor, operations: Tensor, magnitudes: Tensor) -> None:
    """Apply one operation to each image of uint8 [B, C, H, W], in place."""
    geometric = (operations >= _GEOMETRIC[0]) & (operations <= _GEOMETRIC[-1])
    rows = geometric.nonzero()[:, 0]
    if len(rows):
        chosen = images.index_select(0, put(rows, images.device))
        geometry.replace(images, rows, _move(chosen, operations[rows], magnitudes[rows]))
    for which, change in _CHANGES.items():
        rows = (operations == which).nonzero()[:, 0]
        if len(rows):
            chosen = images.index_select(0, put(rows, images.device))
            geometry.replace(images, rows, change(chosen, magnitudes[rows]))


def _move(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear, shift or rotate, in one resampling of all images."""
    height, width = images.shape[2:]
    names = dict(zip(OPERATIONS, range(len(OPERATIONS)), strict=True))

    def of(name: str) -> Tensor:
        return torch.where(operations == names[name], magnitudes, 0.0)

    zero, one = torch.zeros_like(magnitudes), torch.ones_like(magnitudes)

    def sheared(name: str) -> Tensor:  # in degrees, of a tangent
        return torch.from_numpy(np.rad2deg(np.arctan(of(name).numpy())))

    about_corner = geometry.inverse_affine(  # shears keep the upper left corner
        zero, zero, zero, one, sheared("ShearX"), sheared("ShearY"), (-width / 2, -height / 2)
    )
    about_middle = geometry.inverse_affine(
        -of("Rotate"), of("TranslateX").trunc(), of("TranslateY").trunc(), one, zero, zero
    )
    shears = ((operations == names["ShearX"]) | (operations == names["ShearY"]))[:, None, None]
    maps = torch.where(shears, about_corner, about_middle)
    return geometry.warp(images.float(), maps, "nearest").to(torch.uint8)


def _brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    return colour.adjust_brightness(images.float(), 1 + magnitudes).to(torch.uint8)


def _saturation(images: Tensor, magnitudes: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    values = images.float()
    return colour.blend(values, colour.grey(values).floor_(), 1 + magnitudes).to(torch.uint8)


def _contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    values = images.float()
    luma = colour.grey(values) if images.shape[1] == 1 else colour.grey(values).floor_()
    return colour.blend(values, luma.mean(dim=(1, 2, 3), keepdim=True), 1 + magnitudes).to(torch.uint8)


def _sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blend with a 3x3 blur (the middle weighs 5 of 13); the outermost pixels stay."""
    if min(images.shape[2:]) <= 2:
        return images
    values = images.float()
    columns = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    block = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    # No multiple of 1/13 is half-way, so rounding is exact.
    blurred = block.add_(values[..., 1:-1, 1:-1], alpha=4).div_(13).round_()
    colour.blend(values[..., 1:-1, 1:-1], blurred, 1 + magnitudes)
    return values.to(torch.uint8)


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Keep the upper ``magnitude`` bits."""
    mask = put((256 - 2.0 ** (8 - magnitudes)).to(torch.uint8), images.device)
    return images & mask.view(-1, 1, 1, 1)


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    threshold = put((255 * magnitudes).float(), images.device).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a plain channel stays."""
    values = images.float()
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    plain = high == low
    low = torch.where(plain, 0.0, low)
    unit = torch.where(plain, 1.0, (high - low) * (1 / 255))
    return ((values - low) / unit).clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Equalise each channel's histogram as Pillow's ImageOps.equalize does."""
    flat = images.flatten(2).long()
    histogram = flat.new_zeros(*flat.shape[:2], 256).scatter_add_(2, flat, torch.ones_like(flat))
    total = histogram.cumsum(2)
    pixels = flat.shape[2]
    last = (total == pixels).to(torch.uint8).argmax(dim=2, keepdim=True)
    step = (pixels - histogram.gather(2, last)) // 255
    below = F.pad(total[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    equalized = table.gather(2, flat).view_as(images).to(torch.uint8)
    return torch.where((step == 0).unsqueeze(-1), images, equalized)


_CHANGES: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    6: _brightness,
    7: _saturation,
    8: _contrast,
    9: _sharpness,
    10: _posterize,
    11: _solarize,
    12: _autocontrast,
    13: _equalize,
}
