"""Inputs that are not square, against torchvision: the contract, augmentation, networks and progressive sizes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tellapart import augment, packages
from tellapart.augment import geometry, params
from tellapart.contract import Card
from tellapart.contract.resizing import resize, scaled_size
from tellapart.contract.sides import Size, sides
from tellapart.data.stores.decoded import AsSource
from tellapart.errors import ModelError, SpecError
from tellapart.models import zoo
from tellapart.preprocess import Preprocessing, as_module
from tellapart.spec import AugmentSpec, InputSpec, Spec, TrainingSpec, update
from tellapart.training.methods import progressive

v2: Any = packages.require("torchvision.transforms.v2", "models", "This")
SIZES: tuple[Size, ...] = ((28, 40), (40, 17), (16, 64), 28)
SHAPES = ((50, 90), (90, 50), (61, 61), (20, 200))


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def contract(size: Size, policy: Any = "crop", mode: Any = "bilinear", channels: int = 3) -> Preprocessing:
    fraction = 0.875 if policy == "crop" else 1.0
    return Preprocessing(size, channels, policy, mode, fraction, (0.5,) * channels, (0.2,) * channels)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("policy", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_torchvisions(size: Size, policy: str, mode: str) -> None:
    made, (rows, columns) = contract(size, policy, mode), sides(size)
    for shape in SHAPES:
        image = noise(*shape, 3)
        height, width = scaled_size(*shape, made)
        source = torch.from_numpy(image).permute(2, 0, 1).float()
        wanted = v2.Resize((height, width), v2.InterpolationMode(mode), antialias=True)(source)
        if policy == "crop":
            assert height >= rows
            assert width >= columns
            assert height in made.edges or width in made.edges
            wanted = v2.CenterCrop((rows, columns))(wanted)
        if policy == "letterbox":
            assert height == rows or width == columns
            left, top = (columns - width) // 2, (rows - height) // 2
            border = [left, top, columns - width - left, rows - height - top]
            wanted = v2.functional.pad(wanted, border, fill=128)
        ours = resize(image, made)
        assert ours.shape == (rows, columns, 3)
        assert np.abs(ours - wanted.permute(1, 2, 0).clamp(0, 255).numpy()).max() < 1.6
        in_graph = as_module(made).sized(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
        assert np.array_equal(ours, in_graph)


def test_a_square_is_written_as_it_was() -> None:
    assert contract((28, 28)) == contract(28)
    assert contract((28, 28)).to_dict()["size"] == 28
    assert contract((28, 40)).to_dict()["size"] == [28, 40]
    assert zoo.Architecture("fast-cnn", 2, size=(32, 32)).to_dict()["size"] == 32
    assert InputSpec(size=(224, 224)).size == 224
    assert InputSpec(size=[224]).size == 224  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "channels", "number"), [(28, 3, 1), (28, 1, 1), ((28, 40), 3, 4), (28, 4, 4)]
)
def test_a_card_says_whether_older_programs_can_read_it(size: Size, channels: int, number: int) -> None:
    card = Card(
        zoo.Architecture("fast-cnn", 2, channels, size), ("a", "b"), contract(size, channels=channels)
    )
    assert json.loads(card.to_json())["format"] == number
    assert Card.from_json(card.to_json()) == card


@pytest.mark.parametrize("size", [(0, 224), (224, -1), (1, 2, 3), "wide"])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(SpecError, match=r"input\.size"):
        update(Spec(), {"input.size": size})


@pytest.mark.parametrize(("padding", "mode"), [(3, "zeros"), (4, "reflect")])
def test_padded_crops_are_torchvisions(padding: int, mode: Any) -> None:
    images = torch.from_numpy(noise(6, 12, 20, 3))
    boxes = params.padded_crop(6, (12, 20), padding, torch.Generator().manual_seed(0))
    ours = geometry.padded_crop(images, boxes, padding, mode)
    kind = "constant" if mode == "zeros" else "reflect"
    padded = v2.functional.pad(images.permute(0, 3, 1, 2), [padding] * 4, 0, kind)
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        wanted = v2.functional.crop(padded[row], top, left, height, width)
        assert np.array_equal(ours[row].permute(2, 0, 1), wanted)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_affine_maps_are_torchvisions(shape: tuple[int, int]) -> None:
    image = torch.from_numpy(noise(1, 3, *shape)).float()
    one = torch.ones(1, dtype=torch.float64)
    maps = geometry.inverse_affine(20 * one, 3 * one, -2 * one, 1.1 * one, 8 * one, 0 * one)
    ours = geometry.warp(image, maps, "bilinear")
    wanted = v2.functional.affine(image, 20, [3, -2], 1.1, [8, 0], v2.InterpolationMode.BILINEAR)
    assert (ours - wanted).abs().max() < 0.05


def test_resized_crops_are_torchvisions_and_those_by_matrices() -> None:
    images = torch.from_numpy(noise(4, 50, 70, 3))
    drawn = params.resized_crop(
        torch.tensor([[50, 70]] * 4), (0.2, 1), (0.5, 2), torch.Generator().manual_seed(1)
    )
    ours = geometry.resized_crop(images, drawn, (24, 36))
    matrices = geometry.resized_crop_by_matrices(images, drawn, (24, 36))
    assert ours.shape == matrices.shape == (4, 24, 36, 3)
    assert (ours.int() - matrices.int()).abs().max() <= 1
    for row, box in enumerate(drawn.tolist()):
        wanted = v2.functional.resized_crop(images[row].permute(2, 0, 1), *box, [24, 36], antialias=True)
        assert (ours[row].permute(2, 0, 1).int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("preset", ["light", "tutorial", "cifar", "photo", "strong"])
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_every_preset_takes_any_sides_and_channels(preset: Any, channels: int) -> None:
    made = contract((24, 36), channels=channels)
    wanted = AugmentSpec(
        preset=preset, rotation=10, translate=0.1, policy="randaugment", cutout=6, erasing=0.0
    )
    spec = augment.for_channels(augment.resolve(wanted, made.size), channels)
    assert (spec.saturation, spec.hue) == (0, 0) or channels in (1, 3)
    one = augment.Augment(spec, made, 3)
    shape = (60, 80) if one.needs_large_source else made.sides
    images = torch.from_numpy(noise(8, *shape, channels))
    sizes = torch.tensor([shape] * 8)
    for smaller in (one, one.at_size((16, 24))):
        drawn = smaller.draw(8, sizes, torch.Generator().manual_seed(0))
        result = smaller.apply(images, sizes, drawn)
        assert result.shape == (8, channels, *smaller.contract.sides)
        assert result.isfinite().all()
        part = smaller.apply(images[3:5], sizes[3:5], drawn[3:5])
        assert torch.equal(part, result[3:5])


def test_resized_crops_have_the_inputs_shape_unless_another_is_given() -> None:
    low, high = augment.resolve(AugmentSpec(preset="photo"), (100, 200)).crop_ratio or (0, 0)
    assert (low, high) == (1.5, 2 * 4 / 3)
    given = AugmentSpec(preset="photo", crop_ratio=(0.75, 1.25))
    assert augment.resolve(given, (100, 200)).crop_ratio == (0.75, 1.25)


def test_drawn_boxes_lie_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    for boxes in (params.erase(200, (20, 50), 1.0, generator), params.cutout(200, (20, 50), 8, generator)):
        top, left, height, width = boxes.unbind(1)
        assert ((top + height <= 20) & (left + width <= 50)).all()
        assert int((left + width).max()) > 30
    moved = params.affine(200, (20, 50), 0, 0.5, (1, 1), 0, generator)
    assert moved[:, 1].abs().max() > 15
    assert moved[:, 2].abs().max() <= 10


@pytest.mark.parametrize(("height", "width", "short"), [(400, 300, 60), (300, 400, 45), (200, 200, 60)])
def test_sources_of_crops_just_cover_the_size(height: int, width: int, short: int) -> None:
    image = AsSource(3, (40, 60), 10**6, False)(noise(height, width, 3), None)
    assert min(image.shape[:2]) == short
    assert image.shape[0] >= 40
    assert image.shape[1] >= 60


def test_progressive_sizes_keep_the_shape() -> None:
    spec = TrainingSpec(epochs=10, start_size=96, size_epochs=1.0)
    found = [progressive.size_at(epoch, spec, (192, 320)) for epoch in (0, 6, 10)]
    assert found == [(96, 160), (160, 256), (192, 320)]
    assert progressive.size_at(6, spec, 192) == 160
    with pytest.raises(SpecError, match=r"below the short side of input\.size, which is \[96, 320\]"):
        progressive.check(spec, (96, 320), torch.nn.Linear(1, 1), 3)


@pytest.mark.parametrize("name", ["tutorial-net", "simple-cnn", "fast-cnn", "whitened-cnn"])
@pytest.mark.parametrize("size", [(24, 40), (96, 64)])
def test_our_networks_take_both_sides_and_any_channels(name: str, size: tuple[int, int]) -> None:
    model = zoo.build(zoo.Architecture(name, 3, channels=12, size=size)).eval()
    assert model(torch.zeros(2, 12, *sides(size))).shape == (2, 3)
    image = torch.from_numpy(noise(1, 12, *sides(size))).float() / 255
    changed = image.clone()
    changed[..., size[1] // 2 :] *= 9.0  # what lies to the right counts too
    assert not torch.equal(model(image), model(changed))


@pytest.mark.parametrize(
    "name", ["timm/vit_tiny_patch16_224", "timm/resnet18", "torchvision/shufflenet_v2_x0_5"]
)
def test_networks_of_libraries_take_both_sides(name: str) -> None:
    pytest.importorskip("timm")
    model = zoo.build(zoo.Architecture(name, 3, channels=4, size=(64, 96))).eval()
    assert model(torch.zeros(1, 4, 64, 96)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("torchvision/vit_b_16", (64, 96), "takes square images only.*timm"),
        ("timm/vit_tiny_patch16_224", (64, 90), "two multiples of 16, such as 64 96"),
        ("tutorial-net", (12, 40), "cannot take images of 12x40 pixels"),
    ],
)
def test_networks_that_cannot_say_so(name: str, size: Size, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        zoo.build(zoo.Architecture(name, 3, size=size))


def test_contrast_of_other_channels_is_each_ones_own() -> None:
    images = torch.from_numpy(noise(2, 5, 6, 7)).float()
    factors = torch.tensor([0.0, 1.0])
    changed = augment.colour.adjust_contrast(images.clone(), factors)  # type: ignore[attr-defined]
    means = F.adaptive_avg_pool2d(images[:1], 1)
    assert torch.allclose(changed[:1], means.expand(1, 5, 6, 7), atol=1e-3)
    assert torch.equal(changed[1], images[1])


def test_first_layers_are_adapted_as_timm_does() -> None:
    manipulate = packages.require("timm.models", "models", "This")
    from tellapart.models.checkpoints import adapt_channels

    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for channels in (1, 2, 4, 5, 12):
        ours = adapt_channels(weight, channels)
        assert ours is not None
        assert torch.allclose(ours, manipulate.adapt_input_conv(channels, weight), atol=1e-6)


def test_square_contracts_hold_no_new_field() -> None:
    assert set(contract(28).to_dict()) == {field.name for field in dataclasses.fields(Preprocessing)} - {
        "depth"
    }
