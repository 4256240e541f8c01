"""What the tests of augmentation share: pictures, an `Augment`, and torchvision's draws to compare with."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from tellapart.augment import Augment, resolve
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contract(size: int = 32, channels: int = 3) -> Preprocessing:
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.4)[:channels]
    return Preprocessing(size, channels, "crop", "bilinear", 1.0, mean, std)


def augment(size: int = 32, channels: int = 3, channels_last: bool = False, **spec) -> Augment:
    spec = {"preset": "none"} | spec
    return Augment(resolve(AugmentSpec(**spec), size), contract(size, channels), 10, channels_last)


def pictures(batch: int, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    """Waves with noise, uint8 [B, H, W, C]: smooth enough to resample, rough enough to tell pixels apart."""
    random = np.random.default_rng(batch * height)
    y, x = np.mgrid[:height, :width][:, None, :, :, None] / 4
    turn = random.uniform(0, 6, (batch, 1, 1, channels))
    waves = 128 + 100 * np.sin(x * random.uniform(0.5, 1.5, (batch, 1, 1, 1)) + turn) * np.cos(y - turn)
    noisy = waves + random.normal(0, 8, waves.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def chw(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).contiguous()


def same_distribution(ours, theirs) -> None:
    result = stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float))
    assert result.pvalue > 1e-3, result


def torchvision_draws(transform, image: torch.Tensor, count: int) -> list[dict]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [transform.make_params([image]) for _ in range(count)]
