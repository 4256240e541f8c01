from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from tellapart import artifact
from tellapart.contract import Card, Preprocessing
from tellapart.errors import ModelError
from tellapart.models import shrink, weights, zoo
from tellapart.models.zoo import Architecture

BASE = Architecture("simple-cnn", 3, size=8, batch_norm=True)


def narrowed() -> nn.Module:
    """simple-cnn with 20 instead of 32 first channels, cut by hand."""
    torch.manual_seed(0)
    model = zoo.build(BASE)
    model.block1.conv = nn.Conv2d(3, 20, 3, padding=1, bias=False)
    model.block1.norm = nn.BatchNorm2d(20)
    model.block2.conv = nn.Conv2d(20, 64, 3, padding=1, bias=False)
    return model


def test_what_is_narrower_is_found_and_built_again() -> None:
    model = narrowed().eval()
    pruned = shrink.describe(zoo.build(BASE), model)
    assert dict(pruned) == {"block1.conv": (20, 0, 0), "block1.norm": (20,), "block2.conv": (0, 20, 0)}
    architecture = dataclasses.replace(BASE, pruned=pruned)
    again = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
    assert again == architecture
    rebuilt = zoo.build(again).eval()
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(images), model(images))


def test_depthwise_convolutions_keep_one_group_for_each_channel() -> None:
    pytest.importorskip("timm")
    base = Architecture("timm/tf_efficientnet_lite0", 4, size=32)
    pruned = tuple(
        (f"blocks.1.0.{name}", sizes)
        for name, sizes in {
            "conv_pw": (48, 0, 0),
            "bn1": (48,),
            "conv_dw": (48, 48, 48),
            "bn2": (48,),
            "conv_pwl": (0, 48, 0),
        }.items()
    )
    model = zoo.build(dataclasses.replace(base, pruned=pruned))
    conv = model.get_submodule("blocks.1.0.conv_dw")
    assert (conv.in_channels, conv.out_channels, conv.groups) == (48, 48, 48)
    assert conv.weight.shape == (48, 1, 3, 3)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_without_pruning_a_file_is_what_it_was() -> None:
    assert "pruned" not in BASE.to_dict()
    assert Architecture.from_dict(BASE.to_dict()).pruned == ()


@pytest.mark.parametrize(
    ("pruned", "words"),
    [
        ({"block9.conv": [4, 0, 0]}, "no layer 'block9.conv'"),
        ({"block1.conv": [64, 0, 0]}, "cannot have the sizes"),
        ({"block1.conv": [16, 0]}, "cannot have the sizes"),
        ({"block1.pool": [16]}, "cannot have the sizes"),
        ({"block1.conv": [16, 0, 0]}, "do not fit together"),
        ({"block1.conv": [-1, 0, 0]}, "sizes by path"),
        ({"block1.conv": "many"}, "sizes by path"),
        ([1, 2], "sizes by path"),
    ],
)
def test_impossible_descriptions_are_refused(pruned: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        zoo.build(Architecture.from_dict({**BASE.to_dict(), "pruned": pruned}))


def test_other_networks_are_not_described() -> None:
    other = zoo.build(dataclasses.replace(BASE, batch_norm=False))
    with pytest.raises(ModelError, match="in one of the two"):
        shrink.describe(zoo.build(BASE), other)


def test_an_artifact_says_how_narrow_its_network_is(tmp_path) -> None:
    model = narrowed().eval()
    architecture = dataclasses.replace(BASE, pruned=shrink.describe(zoo.build(BASE), model))
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    file = tmp_path / "model.safetensors"
    artifact.save(file, model.state_dict(), Card(architecture, ("a", "b", "c"), contract))
    opened = artifact.open_model(file)
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    wanted = model((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(opened(images), wanted, rtol=1e-4, atol=1e-4)
    assert weights.pruned(str(file)) == architecture.pruned
    assert weights.pruned("none") == weights.pruned("efficientnet-lite0") == ()
    # More classes: the head is new, the narrow layers stay.
    more = dataclasses.replace(architecture, num_classes=5)
    fresh = zoo.build(more)
    assert weights.load(fresh, more, str(file)).new == ("head.weight", "head.bias")
    assert fresh.block1.conv.out_channels == 20
