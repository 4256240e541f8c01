from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from tellapart.errors import ModelError
from tellapart.models import shrink, zoo
from tellapart.models.zoo import Architecture

pytest.importorskip("torch_pruning")

from tellapart.compress import channels


def batches(size: int, classes: int, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % classes)
        for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("tutorial-net", 32, "standard"),
        ("simple-cnn", 16, "standard"),
        ("fast-cnn", 16, "standard"),
        ("whitened-cnn", 16, "standard"),
        ("timm/tf_efficientnet_lite0", 32, "standard"),
        ("timm/resnet18", 32, "small"),
        ("torchvision/resnet50", 16, "standard"),
    ],
)
def test_the_network_is_really_smaller_and_can_be_built_from_data(name: str, size: int, stem: str) -> None:
    if "/" in name:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    architecture = Architecture(name, 4, size=size, stem=stem)
    model = zoo.build(architecture).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    narrow = channels.prune(model, batches(size, 4), 0.4).eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    image = torch.zeros(1, 3, size, size)
    whole, less = channels.cost(model, image), channels.cost(narrow, image)
    assert 0.3 < less.flops / whole.flops <= 0.6
    assert less.parameters < whole.parameters
    pruned = shrink.describe(zoo.build(architecture), narrow)
    assert pruned
    rebuilt = zoo.build(dataclasses.replace(architecture, pruned=pruned)).eval()
    rebuilt.load_state_dict(narrow.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), narrow(images))


def test_what_does_nothing_goes_first() -> None:
    """Channels whose outgoing weights are zero have no gradient times weight: they go before any other."""
    torch.manual_seed(0)
    model = zoo.build(Architecture("simple-cnn", 4, size=16)).eval()
    idle = torch.arange(0, 32, 2)
    with torch.no_grad():
        model.block2.conv.weight[:, idle] = 0
    images = batches(16, 4)
    first_half = channels.cost(model, images[0][0][:1]).flops
    narrow = channels.prune(model, images, 0.3).eval()
    kept = narrow.block1.conv.weight
    originals = model.block1.conv.weight
    places = [int((originals - row).abs().flatten(1).sum(1).argmin()) for row in kept]
    assert len(places) < 32
    gone = sorted(set(range(32)) - set(places))
    assert set(gone) <= set(idle.tolist())
    assert channels.cost(narrow, images[0][0][:1]).flops < first_half


def test_the_cost_is_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(5 * 16, 2))
    cost = channels.cost(model, torch.zeros(1, 3, 4, 4))
    assert cost.parameters == 3 * 5 * 9 + 80 * 2 + 2
    assert cost.flops == 2 * (3 * 9 * 5 * 16) + 2 * 80 * 2


def test_too_much_is_refused() -> None:
    model = zoo.build(Architecture("fast-cnn", 4, size=16)).eval()
    with pytest.raises(ModelError, match="cannot be removed"):
        channels.prune(model, batches(16, 4), 0.999)


def test_transformers_are_refused() -> None:
    pytest.importorskip("timm")
    model = zoo.build(Architecture("timm/vit_tiny_patch16_224", 4, size=32))
    with pytest.raises(ModelError, match="convolutions, batch norms and linear layers"):
        channels.prune(model, batches(32, 4), 0.3)


def test_pruning_warns_of_nothing() -> None:
    model = zoo.build(Architecture("whitened-cnn", 4, size=16)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channels.prune(model, batches(16, 4), 0.3)
