"""The distributions of what is drawn against those of torchvision's transforms v2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tellapart import packages
from tellapart.augment import params

from .augmenting import generator, same_distribution, torchvision_draws

packages.prepare_torchvision()

from torchvision.transforms import v2  # noqa: E402


@pytest.mark.parametrize("shape", [(60, 80), (200, 50), (33, 400), (400, 33), (7, 7)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_resized_crop_boxes_are_distributed_as_torchvisions(shape, scale):
    ratio = (3 / 4, 4 / 3)
    ours = params.resized_crop(torch.tensor([shape] * 3000), scale, ratio, generator()).numpy()
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    theirs = torchvision_draws(transform, torch.zeros(3, *shape), 1200)
    for column, name in enumerate(("top", "left", "height", "width")):
        same_distribution(ours[:, column], [draw[name] for draw in theirs])
    same_distribution(ours[:, 3] / ours[:, 2], [draw["width"] / draw["height"] for draw in theirs])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= np.array(shape)).all()


def test_resized_crops_fall_back_to_the_largest_centred_box():
    """Images of 1:50 fit no box of half of their area, so every draw takes the fallback."""
    sizes = torch.tensor([[10, 500], [500, 10], [64, 64]])
    ours = params.resized_crop(sizes, (0.99, 1.0), (3 / 4, 4 / 3), generator())
    for index, shape in enumerate(sizes.tolist()[:2]):
        transform = v2.RandomResizedCrop(8, scale=(0.99, 1.0))
        (theirs,) = torchvision_draws(transform, torch.zeros(1, *shape), 1)
        assert ours[index].tolist() == [theirs[name] for name in ("top", "left", "height", "width")]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=9), st.integers(0, 99)
)
def test_boxes_lie_inside_of_each_image(sizes, seed):
    boxes = params.resized_crop(torch.tensor(sizes), (0.08, 1.0), (3 / 4, 4 / 3), generator(seed))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(sizes)).all()


@pytest.mark.parametrize("size", [16, 32])
def test_erased_boxes_are_distributed_as_torchvisions(size):
    ours = params.erase(4000, size, 1.0, generator()).numpy()
    theirs = torchvision_draws(v2.RandomErasing(p=1.0), torch.zeros(3, size, size), 1500)
    for column, name in enumerate("ijhw"):
        same_distribution(ours[:, column], [draw[name] for draw in theirs])
    quarter = params.erase(4000, size, 0.25, generator())
    assert stats.binomtest(int((quarter[:, 2] > 0).sum()), 4000, 0.25).pvalue > 1e-3


def test_affine_values_are_distributed_as_torchvisions():
    ours = params.affine(4000, 32, 30.0, 0.2, (0.7, 1.5), 12.0, generator()).numpy()
    transform = v2.RandomAffine(30, translate=(0.2, 0.2), scale=(0.7, 1.5), shear=12)
    theirs = torchvision_draws(transform, torch.zeros(3, 32, 32), 1500)
    same_distribution(ours[:, 0], [draw["angle"] for draw in theirs])
    same_distribution(ours[:, 1], [draw["translate"][0] for draw in theirs])
    same_distribution(ours[:, 2], [draw["translate"][1] for draw in theirs])
    same_distribution(ours[:, 3], [draw["scale"] for draw in theirs])
    same_distribution(ours[:, 4], [draw["shear"][0] for draw in theirs])
    assert {draw["shear"][1] for draw in theirs} == {0.0}


def test_colour_factors_are_distributed_as_torchvisions():
    ours = params.colour(4000, 1.4, 0.4, 0.2, 0.1, generator()).numpy()
    transform = v2.ColorJitter(brightness=1.4, contrast=0.4, saturation=0.2, hue=0.1)
    theirs = torchvision_draws(transform, torch.zeros(3, 8, 8), 1500)
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        same_distribution(ours[:, column], [draw[f"{name}_factor"] for draw in theirs])


def test_padded_crops_are_distributed_as_torchvisions():
    ours = params.padded_crop(4000, 32, 4, generator()).numpy()
    theirs = torchvision_draws(v2.RandomCrop(32, padding=4), torch.zeros(3, 32, 32), 1500)
    same_distribution(ours[:, 0], [draw["top"] for draw in theirs])
    same_distribution(ours[:, 1], [draw["left"] for draw in theirs])
    assert set(ours[:, 0]) == set(range(9))
