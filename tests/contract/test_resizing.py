"""The contract in numpy against the contract in torch: the same pixels but for values between two levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tellapart.contract import Preprocessing, Views, resizing
from tellapart.preprocess import averaged, load, normalise

SIZES = (
    (32, 32),
    (90, 120),
    (33, 101),
    (120, 35),
    (20, 28),
    (3, 150),
    (150, 2),
    (1, 1),
    (64, 64),
    (1200, 900),
)


def contract(policy: Any, mode: Any = "bilinear", channels: int = 3) -> Preprocessing:
    means, deviations = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    fraction = 0.875 if policy == "crop" else 1.0
    return Preprocessing(32, channels, policy, mode, fraction, means, deviations, fill=9)


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_torchs(policy: str, mode: str, channels: int) -> None:
    made, rng = contract(policy, mode, channels), np.random.default_rng(0)
    differing = 0
    for height, width in SIZES:
        image = rng.integers(0, 256, (height, width, channels), np.uint8)
        ours, expected = resizing.resize(image, made), load(image, made)
        assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype)
        distance = np.abs(ours.astype(int) - expected)
        assert distance.max() <= 1, (height, width)
        differing += (distance > 0).sum()
    assert differing <= 1e-3 * len(SIZES) * 32 * 32 * channels


def test_strips_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 256, (130, 70, 3), np.uint8)
    whole = resizing.resize(image, contract("crop"))
    monkeypatch.setattr(resizing, "_STRIP_PIXELS", 500)
    np.testing.assert_array_equal(resizing.resize(image, contract("crop")), whole)


def test_normalising_is_torchs() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = normalise(torch.from_numpy(images), contract("squash")).numpy()
    np.testing.assert_allclose(resizing.normalise(images, contract("squash")), expected, atol=1e-6)


@pytest.mark.parametrize(
    "views",
    [Views(), Views("mirror"), Views("mirror-shift"), Views("mirror", 0.4), Views("mirror-shift", 0.4)],
)
def test_views_are_torchs(views: Views) -> None:
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def network(images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, weight, stride=3).square().mean((2, 3)).sub(45) / 9

    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    expected = averaged(network, images, views).numpy()
    found = resizing.averaged(lambda x: network(torch.from_numpy(x)).numpy(), images.numpy(), views)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if views.below < 1:
        first = network(images).numpy()
        unchanged = (np.abs(found - first) < 1e-7).all(1)
        assert 0 < unchanged.sum() < 40
