"""Changing colours of whole batches: float32 [B, C, H, W] with values 0..255. Knows nothing of chance.

The functions may change the images given in place; use what they return.
Definitions are those of torchvision's ``adjust_*`` for floating-point images; one channel counts as grey.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tellapart.devices import put

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def grey(images: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] (ITU-R BT.601)."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Turn images into images * factor + others * (1 - factor), clipped; ``factors`` is float [B]."""
    shape = (-1, 1, 1, 1)
    weight = put(factors.float(), images.device).view(shape)
    rest = put((1 - factors).float(), images.device).view(shape)
    return images.mul_(weight).add_(others * rest).clamp_(0, 255)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply; 0 is black."""
    weight = put(factors.float(), images.device).view(-1, 1, 1, 1)
    return images.mul_(weight).clamp_(0, 255)


def mean_luma(images: Tensor) -> Tensor:
    """Return the mean of `grey` of each image, [B, 1, 1, 1]."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return grey(means)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the image's mean luma; 0 is plain grey."""
    return blend(images, mean_luma(images), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the luma of each pixel; 0 is black and white."""
    return images if images.shape[1] != 3 else blend(images, grey(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of HSV by ``shifts`` [B] of the circle."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    chroma = value - least
    safe = chroma.clamp(min=torch.finfo(torch.float32).tiny)
    hue = torch.where(  # in sixths of the circle
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * put(shifts.float(), images.device).view(-1, 1, 1)
    offsets = (5 - 2 * torch.arange(3.0, device=images.device)).view(1, 3, 1, 1)
    sector = (hue.unsqueeze(1) + offsets).remainder_(6)
    part = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * part


_ADJUST = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def jitter(images: Tensor, factors: Tensor, order: tuple[int, ...]) -> Tensor:
    """Apply the changes named in ``order``, each with its column of ``factors`` [B, 4]."""
    for which in order:
        images = _ADJUST[which](images, factors[:, which])
    return images
