"""A network cut in two gives what the whole one gives, for every family; where it cannot, the cut is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tellapart.errors import ModelError
from tellapart.models import frozen, heads, zoo

FAMILIES = [
    ("simple-cnn", 16, 0.3),
    ("fast-cnn", 16, 0.25),
    ("tutorial-net", 32, 0.0),
    ("timm/resnet18", 32, 0.4),  # dropout as a function
    ("timm/mobilenetv3_small_050", 32, 0.0),
    ("timm/vit_tiny_patch16_224", 32, 0.1),
    ("timm/convnext_atto", 32, 0.2),  # a head of norm, flatten, dropout and linear layer
    ("torchvision/resnet18", 32, 0.3),
    ("torchvision/mobilenet_v3_small", 32, 0.0),  # Sequential(Linear, Hardswish, Dropout, Linear)
    ("torchvision/vit_b_32", 32, 0.0),
]


def _network(name: str, size: int, dropout: float) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = zoo.build(zoo.Architecture(name, 3, 3, size, dropout=dropout))
    return model, torch.randn(4, 3, size, size)


@pytest.mark.parametrize(("name", "size", "dropout"), FAMILIES)
def test_head_on_features_is_the_whole_network(name: str, size: int, dropout: float) -> None:
    model, images = _network(name, size, dropout)
    state = torch.get_rng_state()
    split = frozen.Split(model, heads.blocks(model), images[:2])
    assert torch.equal(torch.get_rng_state(), state)
    features = split.trunk(images)
    assert features.shape[1:] == split.shape
    with torch.no_grad():
        model.eval()
        split.head.eval()
        torch.testing.assert_close(split.head(features), model(images))
        heads.train_mode(model)
        heads.train_mode(split.head)
        torch.manual_seed(3)
        whole = model(images)
        torch.manual_seed(3)
        torch.testing.assert_close(split.head(features), whole)
        torch.manual_seed(4)
        assert (not torch.equal(split.head(features), whole)) == bool(dropout)


@pytest.mark.parametrize(("name", "size", "dropout"), FAMILIES[:4])
def test_gradients_of_the_head_are_the_whole_networks(name: str, size: int, dropout: float) -> None:
    model, images = _network(name, size, dropout)
    split = frozen.Split(model, heads.blocks(model), images[:2])
    features = split.trunk(images)
    found = []
    for network, inputs in ((model, images), (split.head, features)):
        model.zero_grad()
        heads.train_mode(network)
        torch.manual_seed(3)
        functional.cross_entropy(network(inputs), torch.tensor([0, 1, 2, 0])).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0]
    torch.testing.assert_close(found[0], found[1])


def test_the_digest_is_of_all_but_the_head() -> None:
    model, images = _network("fast-cnn", 16, 0.0)
    split = frozen.Split(model, heads.blocks(model), images)
    first = split.digest()
    with torch.no_grad():
        model.head.weight.add_(1)
        assert split.digest() == first
        model.stage2.enter.norm.running_mean[0] += 1
        second = split.digest()
        model.stem.conv.weight[0, 0, 0, 0] += 1
    assert len({first, second, split.digest()}) == 3


class Scaled(nn.Module):
    """Something stands after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images.flatten(1))) / 9


class Noisy(Scaled):
    """Something random that is no dropout stands before the head."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images.flatten(1))
        return self.head(features + torch.randn_like(features) if self.training else features)


class Twice(Scaled):
    """The head is used twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images.flatten(1))
        return self.head(features) + self.head(-features)


@pytest.mark.parametrize(
    ("kind", "why"), [(Scaled, "logits"), (Noisy, "random"), (Twice, "uses its head 2 times")]
)
def test_a_network_that_cannot_be_cut_is_refused(kind: type[nn.Module], why: str) -> None:
    model, images = kind(), torch.randn(2, 3, 2, 2)
    modes = [module.training for module in model.modules()]
    with pytest.raises(ModelError, match=why):
        frozen.Split(model, heads.blocks(model), images)
    assert [module.training for module in model.modules()] == modes
