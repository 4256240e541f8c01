from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tellapart.errors import ModelError
from tellapart.models import small_cnn, summary, zoo
from tellapart.models.zoo import Architecture


def reference_tutorial_logits(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The tutorial's network written out as functions of its state dict, in float64."""
    s = {name: tensor.double() for name, tensor in state.items()}
    x = functional.max_pool2d(
        functional.conv2d(images.double(), s["conv1.weight"], s["conv1.bias"]).relu(), 2
    )
    x = functional.max_pool2d(functional.conv2d(x, s["conv2.weight"], s["conv2.bias"]).relu(), 2).flatten(1)
    x = (x @ s["fc1.weight"].T + s["fc1.bias"]).relu()
    x = (x @ s["fc2.weight"].T + s["fc2.bias"]).relu()
    return x @ s["fc3.weight"].T + s["fc3.bias"]


def test_tutorial_net_is_the_tutorials() -> None:
    net = zoo.build(Architecture("tutorial-net", 10)).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(
        net(images).double(), reference_tutorial_logits(net.state_dict(), images), rtol=0, atol=1e-5
    )


def test_tutorial_net_starts_as_pytorch_starts_layers() -> None:
    torch.manual_seed(3)
    net = zoo.build(Architecture("tutorial-net", 10))
    torch.manual_seed(3)
    first = nn.Conv2d(3, 6, 5)
    assert torch.equal(net.conv1.weight, first.weight)
    assert torch.equal(net.conv2.weight, nn.Conv2d(6, 16, 5).weight)


@pytest.mark.parametrize(("size", "side"), [(16, 1), (28, 4), (32, 5), (64, 13)])
def test_tutorial_net_follows_the_size(size: int, side: int) -> None:
    net = zoo.build(Architecture("tutorial-net", 4, 1, size))
    assert net.fc1.in_features == 16 * side * side
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 4)


def test_simple_cnn_has_the_tutorials_shape_at_32() -> None:
    net = zoo.build(Architecture("simple-cnn", 10))
    weights = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert weights == [(32, 3, 3, 3), (64, 32, 3, 3), (512, 64 * 8 * 8), (10, 512)]


@pytest.mark.parametrize("size", [4, 5, 8, 28, 31, 33, 64, 65, 96, 224])
@pytest.mark.parametrize("name", ["simple-cnn", "fast-cnn"])
def test_any_size(name: str, size: int) -> None:
    net = zoo.build(Architecture(name, 3, 1, size))
    net(torch.randn(2, 1, size, size)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_simple_cnn_stays_small_for_photographs() -> None:
    count = {
        size: sum(p.numel() for p in zoo.build(Architecture("simple-cnn", 10, 3, size)).parameters())
        for size in (32, 224)
    }
    assert count[224] == count[32]


def test_options_of_simple_cnn() -> None:
    net = zoo.build(Architecture("simple-cnn", 3, dropout=0.5, batch_norm=True))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 2
    assert sorted(m.p for m in net.modules() if isinstance(m, nn.Dropout)) == [0.25, 0.25, 0.5]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in zoo.build(Architecture("simple-cnn", 3)).modules())


@pytest.mark.parametrize("name", zoo.OWN)
def test_dropout_acts_in_training_only(name: str) -> None:
    net = zoo.build(Architecture(name, 3, dropout=0.5))
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(("name", "size"), [("tutorial-net", 15), ("simple-cnn", 3), ("fast-cnn", 3)])
def test_too_small(name: str, size: int) -> None:
    smallest = zoo.min_size(name)
    with pytest.raises(ModelError, match=f"the smallest it takes is {smallest}x{smallest}"):
        zoo.build(Architecture(name, 3, 3, size))
    assert zoo.build(Architecture(name, 3, 3, smallest))(torch.zeros(2, 3, smallest, smallest)).shape == (
        2,
        3,
    )


def test_kaiming_variances() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 256, 3)
    small_cnn.initialise(layer)
    assert layer.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert not layer.bias.any()
    head = nn.Linear(512, 1000)
    small_cnn.initialise_head(head)
    assert head.weight.var().item() == pytest.approx(1 / 512, rel=0.05)
    assert not head.bias.any()


@pytest.mark.parametrize("size", [4, 8, 16, 23, 24, 28, 32, 48, 49, 64, 96, 97, 224, 225])
def test_fast_cnn_works_on_few_pixels(size: int) -> None:
    sides = {}
    net = zoo.build(Architecture("fast-cnn", 3, 1, size)).eval()
    for name in ("stem", "stage1", "stage3"):
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: sides.update({name: out.shape[-1]})
        )
    net(torch.zeros(1, 1, size, size))
    assert min(size, 24) <= sides["stem"] <= 48
    assert min(size, 12) <= sides["stage1"] <= 24
    assert sides["stage3"] >= 1


def test_fast_cnn_is_cheap() -> None:
    found = summary.summarise(zoo.build(Architecture("fast-cnn", 10)), 3, 32)
    assert found.flops < 60e6
    assert found.parameters < 1e6


def test_fast_cnn_starts_with_small_logits() -> None:
    torch.manual_seed(0)
    net = zoo.build(Architecture("fast-cnn", 10))
    assert net(torch.randn(64, 3, 32, 32)).std() < 2


def test_fast_cnn_learns() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 1, 8, 8), torch.arange(32) % 4
    net = zoo.build(Architecture("fast-cnn", 4, 1, 8))
    optimizer = torch.optim.AdamW(net.parameters(), 0.001)
    for _ in range(40):
        loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_fast_cnn_small_is_a_quarter() -> None:
    large, small = (zoo.build(Architecture(name, 10)) for name in ("fast-cnn", "fast-cnn-small"))
    weights = [sum(p.numel() for p in net.parameters()) for net in (large, small)]
    assert weights == [874_242, 220_666]
    assert list(small.state_dict()) == list(large.state_dict())
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
