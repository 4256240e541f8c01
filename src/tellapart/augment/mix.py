"""MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of a whole batch, as torchvision defines them.

Each image is mixed with the one before it (the first with the last), all with one weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class Mix:
    """What is mixed in a batch: ``weight`` is the own image's part; ``box`` (x0, y0, x1, y1) is CutMix's."""

    weight: float
    box: tuple[int, int, int, int] | None = None


def draw(mixup: float, cutmix: float, height: int, width: int, generator: Generator) -> Mix | None:
    """Draw one batch's mix; None where both alphas are 0. With both on, each is taken half of the times."""
    if not mixup and not cutmix:
        return None
    use_cutmix = bool(cutmix) and (not mixup or bool(torch.rand((), generator=generator) < 0.5))
    alpha = cutmix if use_cutmix else mixup
    seed = int(torch.randint(2**62, (), generator=generator))  # torch's beta takes no generator
    weight = float(np.random.default_rng(seed).beta(alpha, alpha))
    if not use_cutmix:
        return Mix(weight)
    x, y = (int(torch.randint(side, (), generator=generator)) for side in (width, height))
    half = 0.5 * math.sqrt(1 - weight)
    half_w, half_h = int(half * width), int(half * height)
    box = (max(x - half_w, 0), max(y - half_h, 0), min(x + half_w, width), min(y + half_h, height))
    return Mix(1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height), box)


def apply(images: Tensor, labels: Tensor, num_classes: int, mix: Mix) -> tuple[Tensor, Tensor]:
    """Return mixed images [B, C, H, W] and labels float32 [B, num_classes] of int64 [B] or float32 [B, num_classes]."""
    if mix.box is None:
        mixed = torch.lerp(images.roll(1, 0), images, mix.weight)
    else:
        x0, y0, x1, y1 = mix.box
        mixed = images.clone()
        mixed[:, :, y0:y1, x0:x1] = images.roll(1, 0)[:, :, y0:y1, x0:x1]
    hot = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).to(torch.float32)
    return mixed, torch.lerp(hot.roll(1, 0), hot, mix.weight)
