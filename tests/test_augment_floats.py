"""Augmentation of float32 pixels: the same changes as of whole levels, without rounding; what needs 256 is refused."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import references
from tellapart.augment import Augment, geometry, resample, resolve
from tellapart.errors import SpecError
from tellapart.preprocess import Ragged, denormalise
from tellapart.spec import AugmentSpec

from .augmenting import contract, generator, pictures

CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "pad and flip": {"crop": "pad", "crop_padding": 4, "padding_mode": "reflect", "hflip": 0.5, "vflip": 0.5},
    "resized crop": {"crop": "resized", "crop_scale": (0.3, 1.0), "crop_ratio": (0.75, 1.33)},
    "affine": {"rotation": 20.0, "translate": 0.1, "scale": (0.9, 1.1), "shear": 5.0},
    "crop and affine": {
        "crop": "resized",
        "crop_scale": (0.3, 1.0),
        "crop_ratio": (0.75, 1.33),
        "rotation": 20.0,
    },
    "colour": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05},
    "erasing": {"erasing": 0.5},
}


def augment(depth: str, **spec: Any) -> Augment:
    full = resolve(AugmentSpec(**{"preset": "none", **spec}), 32)
    return Augment(full, dataclasses.replace(contract(), depth=depth), 10)


def values(made: Augment, images: Any) -> np.ndarray[Any, Any]:
    """Return the result in levels, not rounded."""
    sizes = torch.tensor([[48, 40]] * len(images)) if made.needs_large_source else None
    result = made.apply(images, sizes, made.draw(len(images), sizes, generator()))
    mean, std = (torch.tensor(of).view(-1, 1, 1) for of in (made.contract.mean, made.contract.std))
    return ((result * std + mean) * 255).numpy()


def source(made: Augment) -> torch.Tensor:
    return pictures(6, 48, 40) if made.needs_large_source else pictures(6)


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_changes_without_rounding(name: str) -> None:
    whole, exact = (augment(depth, **CHANGES[name]) for depth in ("uint8", "float32"))
    images = source(whole)
    eight, floats = values(whole, images), values(exact, images.float())
    assert np.abs(eight - floats).max() < 1.1  # what rounding does
    # What is less than half a level stays: rounded, nothing or all of it would.
    faint = values(exact, images.float() * 0.9 + 0.2)
    base = values(exact, images.float() * 0.9)
    seen = (base > 1) & (base < 250)  # but where colours are clipped or erased
    assert 0.1 < np.median((faint - base)[seen]) < 0.3
    if name not in ("none", "pad and flip", "erasing"):  # which only move pixels
        assert (np.abs(floats - np.rint(floats)) > 0.01).mean() > 0.3


def test_the_ways_of_other_devices_give_the_same() -> None:
    """Crops by products of matrices, which a GPU takes: float32 is neither halved nor rounded there."""
    images = pictures(4, 48, 40).float() + 0.3
    boxes = torch.tensor([[0, 0, 48, 40], [3, 5, 20, 30], [10, 0, 33, 17], [1, 1, 12, 9]])
    one_by_one = geometry.resized_crop(images, boxes, 16)
    torch.testing.assert_close(
        geometry.resized_crop_by_matrices(images, boxes, 16), one_by_one, atol=1e-3, rtol=0
    )
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    maps = geometry.inverse_affine(zero + 10, zero, zero, one, zero, zero)
    places, reach = geometry.grid(maps, 16, images.device), resample.reaches(boxes, maps, 16)
    ways = [
        way(images, boxes, reach, places, "reflection") for way in (resample._one_by_one, resample.together)
    ]
    torch.testing.assert_close(*ways, atol=1e-2, rtol=0)
    for kind, wanted in ((torch.uint8, torch.float16), (torch.float32, torch.float32)):
        there = types.SimpleNamespace(device=torch.device("cuda"), dtype=kind)
        assert geometry.half_for_bytes(there) == wanted


def test_images_of_several_sizes_are_cut_where_they_lie() -> None:
    made = augment("float32", **CHANGES["resized crop"])
    images = source(made).float() + 0.3
    ragged = Ragged([image.numpy() for image in images], 3, np.dtype(np.float32))
    assert np.array_equal(values(made, images), values(made, ragged))
    assert ragged.canvas().dtype == ragged.dtype == torch.float32
    assert torch.equal(ragged[1:3].canvas(), images[1:3])


def test_a_smaller_size_is_scaled_without_rounding() -> None:
    made = augment("float32").at_size(16)
    images = pictures(4).float() + 0.3
    result = made.apply(images, None, made.draw(4, None, generator()))
    wanted = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2), (16, 16), mode="bilinear", antialias=True
    )
    mean, std = (torch.tensor(of).view(-1, 1, 1) for of in (made.contract.mean, made.contract.std))
    torch.testing.assert_close((result * std + mean) * 255, wanted, atol=1e-3, rtol=0)
    assert denormalise(result, made.contract).dtype == torch.uint8  # for pictures


@pytest.mark.parametrize(
    "spec", [{"preset": "strong"}, {"policy": "randaugment"}, {"policy": "trivialaugment"}]
)
def test_policies_are_refused_by_name(spec: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError, match=r"augment\.policy (rand|trivial)augment .*use --augment\.policy none"
    ):
        augment("float32", **spec)
    augment("float32", **{**spec, "policy": "none"})
    augment("uint8", **spec)


def own(function: Any, depth: str = "float32") -> Augment:
    with references.providing({("transform", "object:T"): function}):
        return augment(depth, transform="object:T", transform_takes="image")


def test_a_transform_of_ones_own_gets_floating_point_from_0_to_1() -> None:
    seen = []

    def halved(image: torch.Tensor) -> torch.Tensor:
        seen.append((image.dtype, float(image.max())))
        return image / 2

    images = pictures(3).float() + 0.3
    found = values(own(halved), images.clamp(0, 255))
    np.testing.assert_allclose(found, images.clamp(0, 255).permute(0, 3, 1, 2).numpy() / 2, atol=1e-3)
    assert all(kind == torch.float32 and most <= 1 for kind, most in seen)
    with pytest.raises(SpecError, match=r"returns torch\.uint8 for floating-point images"):
        values(own(lambda image: (image * 255).to(torch.uint8)), images)
