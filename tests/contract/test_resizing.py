"""The contract in numpy against its definition in whole numbers, and against the same in torch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tellapart.contract import Preprocessing, Views, resizing
from tellapart.preprocess import as_module, averaged, normalise

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
    (300, 200),
    (7, 1),
)


def contract(policy: Any, mode: Any = "bilinear", channels: int = 3) -> Preprocessing:
    means, deviations = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    fraction = 0.875 if policy == "crop" else 1.0
    return Preprocessing(32, channels, policy, mode, fraction, means, deviations, fill=9)


def exact_weights(length: int, scaled: int, mode: str) -> list[list[int]]:
    """The definition in fractions: whole numbers of 2048ths, halves up, the rest to the largest."""
    larger, table = max(length, scaled), []
    for target in range(scaled):
        shares = []
        for place in range(length):
            x = abs(Fraction((2 * place + 1) * scaled - (2 * target + 1) * length, 2 * larger))
            if mode == "bilinear":
                share = max(1 - x, Fraction(0))
            elif x < 1:
                share = (Fraction(3, 2) * x - Fraction(5, 2)) * x * x + 1
            else:
                share = ((-x / 2 + Fraction(5, 2)) * x - 4) * x + 2 if x < 2 else Fraction(0)
            shares.append(share)
        weights = [math.floor(2048 * share / sum(shares) + Fraction(1, 2)) for share in shares]
        weights[shares.index(max(shares))] += 2048 - sum(weights)
        table.append(weights)
    return table


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(13, 9), (10, 40), (24, 24), (12, 36), (5, 5)])
def test_the_definition_in_whole_numbers(mode: str, shape: tuple[int, int]) -> None:
    """Computed with Python's integers and fractions, of which none is ever rounded by a machine."""
    image = np.random.default_rng(3).integers(0, 256, (*shape, 1), np.uint8)
    made = Preprocessing(12, 1, "squash", mode, 1.0, (0.5,), (0.5,))  # type: ignore[arg-type]
    down, across = (exact_weights(side, 12, mode) for side in shape)
    expected = np.zeros((12, 12), int)
    for row, weights in enumerate(down):
        sums = [sum(w * int(image[y, x, 0]) for y, w in enumerate(weights)) for x in range(shape[1])]
        line = [round(Fraction(value, 128)) for value in sums]  # Python's round: halves to even
        for column, others in enumerate(across):
            value = round(Fraction(sum(w * v for w, v in zip(others, line, strict=True)), 32768))
            expected[row, column] = min(max(value, 0), 255)
    np.testing.assert_array_equal(resizing.resize(image, made)[..., 0], expected)


@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_module_for_graphs_gives_the_same_bits(policy: str, mode: str, channels: int) -> None:
    made, rng = contract(policy, mode, channels), np.random.default_rng(0)
    module = as_module(made)
    for height, width in SIZES:
        images = rng.integers(0, 256, (2, height, width, channels), np.uint8)
        found = module.sized(torch.from_numpy(images)).permute(0, 2, 3, 1).to(torch.uint8).numpy()
        np.testing.assert_array_equal(found, [resizing.resize(image, made) for image in images])


def test_a_single_colour_stays() -> None:
    for height, width in SIZES:
        image = np.full((height, width, 3), (0, 255, 77), np.uint8)
        for mode in ("bilinear", "bicubic"):
            assert (resizing.resize(image, contract("squash", mode)) == (0, 255, 77)).all()


def test_dense_and_sparse_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 256, (400, 300, 3), np.uint8)
    for policy in ("squash", "crop"):
        few = resizing.resize(image, contract(policy, "bicubic"))
        monkeypatch.setattr(resizing, "DENSE", 0)
        np.testing.assert_array_equal(resizing.resize(image, contract(policy, "bicubic")), few)
        monkeypatch.setattr(resizing, "DENSE", 10**9)
        np.testing.assert_array_equal(resizing.resize(image, contract(policy, "bicubic")), few)
        monkeypatch.undo()


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
