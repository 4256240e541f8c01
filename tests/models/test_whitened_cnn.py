from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tellapart.models import heads, whitened_cnn, zoo
from tellapart.models.whitened_cnn import EPSILON, WhitenedCNN, WhitenedGroup, whitening_filters


def _images(count: int, channels: int = 3, size: int = 12) -> torch.Tensor:
    """Smooth images, whose neighbouring pixels and channels are alike."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, channels, size + 2, size + 2, generator=generator)
    smooth = functional.avg_pool2d(noise, 3, stride=1) * 3
    return smooth + 0.7 * smooth.mean(1, keepdim=True)


def _responses(images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Responses of each filter at every place, float64 [filters, places]."""
    return functional.conv2d(images.double(), filters.double()).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_the_identity_as_their_second_moment(channels: int) -> None:
    images = _images(600, channels)  # more than one chunk
    width = 4 * channels
    filters = whitening_filters(images)
    assert filters.shape == (2 * width, channels, 2, 2)
    responses = _responses(images, filters[:width])
    moments = responses @ responses.T / responses.shape[1]
    # Exactly: each variance v becomes v / (v + EPSILON).
    patches = torch.stack([images[:, :, y : y + 11, x : x + 11] for y in (0, 1) for x in (0, 1)], 2)
    flat = patches.double().permute(1, 2, 0, 3, 4).reshape(width, -1)
    values = torch.linalg.eigvalsh(flat @ flat.T / flat.shape[1]).flip(0)
    torch.testing.assert_close(moments, torch.diag(values / (values + EPSILON)), atol=1e-5, rtol=1e-5)
    assert (moments - torch.eye(width, dtype=torch.float64)).abs().max() < 0.05


def test_the_second_half_has_the_other_sign_and_order_does_not_matter() -> None:
    images = _images(300)
    filters = whitening_filters(images)
    assert torch.equal(filters[:12], -filters[12:])
    shuffled = whitening_filters(images[torch.randperm(300, generator=torch.Generator().manual_seed(1))])
    torch.testing.assert_close(filters, shuffled, atol=1e-4, rtol=1e-4)


def test_a_direction_without_variance_is_not_blown_up() -> None:
    images = _images(50)
    images[:, 2] = 0.0
    filters = whitening_filters(images)
    assert torch.isfinite(filters).all()
    assert filters.flatten(1).norm(dim=1).max() <= EPSILON**-0.5 * 1.001


def test_convolutions_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    group = WhitenedGroup(5, 8, depth=3, pool=False)
    maps = torch.randn(2, 5, 6, 6)
    torch.testing.assert_close(group.convs[0](maps)[:, :5], maps)
    wide = torch.randn(2, 8, 6, 6)
    for conv in list(group.convs)[1:]:
        torch.testing.assert_close(conv(wide), wide)
    assert group.convs[0](maps)[:, 5:].abs().min() > 0


@pytest.mark.parametrize("depth", [2, 3])
def test_a_group_is_the_formula(depth: int) -> None:
    torch.manual_seed(0)
    group = WhitenedGroup(3, 6, depth, pool=True).eval()
    for norm in group.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 9, 9)

    def normed(values: torch.Tensor, place: int) -> torch.Tensor:
        norm = group.norms[place]
        mean, var, bias = (t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.bias))
        return (values - mean) / (var + norm.eps).sqrt() + bias

    first = functional.gelu(normed(functional.max_pool2d(group.convs[0](x), 2), 0))
    expected = functional.gelu(normed(group.convs[1](first), 1))
    if depth == 3:
        expected = functional.gelu(normed(group.convs[2](expected), 2) + first)
    torch.testing.assert_close(group(x), expected)


@pytest.mark.parametrize("name", ["whitened-cnn", "whitened-cnn-small", "whitened-cnn-large"])
@pytest.mark.parametrize(("size", "channels", "classes"), [(4, 3, 2), (8, 1, 10), (32, 3, 100), (96, 3, 7)])
def test_any_size_channels_and_classes(name: str, size: int, channels: int, classes: int) -> None:
    model = zoo.build(zoo.Architecture(name, classes, channels, size))
    images = torch.randn(3, channels, size, size)
    model.initialise_from(images)
    logits = model(images)
    assert logits.shape == (3, classes)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_filters_are_in_the_state_dict_and_no_parameter() -> None:
    torch.manual_seed(0)
    model, other = WhitenedCNN(4, size=16), WhitenedCNN(4, size=16)
    images = _images(40, size=16)
    model.initialise_from(images)
    assert torch.equal(model.whiten.weight, whitening_filters(images))
    assert "whiten.weight" in model.state_dict()
    assert "whiten.weight" not in dict(model.named_parameters())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_what_it_tells_a_trainer() -> None:
    model = WhitenedCNN(4)
    assert heads.early_names(model) == ("whiten.bias",)
    names = dict(model.named_parameters())
    assert model.muon_weights() == {n for n in names if "convs" in n}
    blocks = heads.blocks(model)
    assert blocks[0] == ["head.weight"]
    assert sorted(name for block in blocks for name in block) == sorted(names)
    heads.set_trainable(model, blocks, len(blocks), ("whiten.bias",))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["whiten.bias"]
    assert heads.early_names(torch.nn.Linear(2, 2)) == ()


def test_images_above_48_pixels_are_averaged_first() -> None:
    model = WhitenedCNN(3, size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    small = WhitenedCNN(3, size=32).eval()
    small.load_state_dict(model.state_dict())  # the weights do not depend on the size
    torch.testing.assert_close(model(images), small(functional.avg_pool2d(images, 2)))
    assert whitened_cnn.stem_stride(48) == 1
