from __future__ import annotations

import pytest
import torch
from torch import nn

from tellapart.models import heads, summary, zoo
from tellapart.models.zoo import Architecture


def build(name: str, size: int = 32, stem: str = "standard") -> nn.Module:
    return zoo.build(Architecture(name, 10, 3, size, stem=stem))


def test_tutorial_net_counted_by_hand() -> None:
    found = summary.summarise(build("tutorial-net"), 3, 32)
    layers = {row.name: (row.output_shape, row.parameters) for row in found.rows}
    assert layers["conv1"] == ((6, 28, 28), 6 * 75 + 6)
    assert layers["conv2"] == ((16, 10, 10), 16 * 150 + 16)
    assert layers["fc1"] == ((120,), 400 * 120 + 120)
    multiply_adds = 6 * 75 * 28 * 28 + 16 * 150 * 10 * 10 + 400 * 120 + 120 * 84 + 84 * 10
    assert found.flops == 2 * multiply_adds
    assert found.parameters == found.trainable == 62_006
    assert found.megabytes == pytest.approx(62_006 * 4 / 1e6)
    assert [row.name for row in found.rows][:3] == ["conv1", "pool", "conv2"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("fast-cnn", "standard"),
        ("torchvision/resnet18", "small"),
        ("torchvision/swin_t", "small"),
        ("timm/vit_tiny_patch16_224", "small"),
        ("timm/convnext_atto", "small"),
        ("torchvision/squeezenet1_1", "small"),
    ],
)
def test_rows_add_up(name: str, stem: str) -> None:
    model = build(name, stem=stem)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = summary.summarise(model, 3, 32)
    assert sum(row.parameters for row in found.rows) == sum(p.numel() for p in model.parameters())
    assert found.flops > 1e6
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_is_counted() -> None:
    """ViT by hand: patches, then for each layer qkv, two products of attention, projection and the MLP."""
    found = summary.summarise(build("timm/vit_tiny_patch16_224", stem="small"), 3, 32)
    tokens, width = 65, 192
    patches = 64 * width * 4 * 4 * 3
    layer = (
        tokens * width * 3 * width
        + 2 * tokens * tokens * width
        + tokens * width * width
        + 2 * tokens * width * 4 * width
    )
    assert found.flops == 2 * (patches + 12 * layer + width * 10)


def test_attention_of_torchvision_is_counted_too() -> None:
    with torch.device("meta"):
        model = zoo.torchvision_zoo.models_package().vit_b_32()
    found = summary.summarise(model, 3, 224)
    assert found.parameters == 88_224_232
    assert found.flops / 2 == pytest.approx(4.41e9, rel=0.01)  # torchvision's table
    assert torch.backends.mha.get_fastpath_enabled()


def test_known_counts() -> None:
    found = summary.summarise(zoo.build(Architecture("torchvision/resnet18", 1000, 3, 224)), 3, 224)
    assert found.parameters == 11_689_512
    assert found.flops / 2 == pytest.approx(1.814e9, rel=0.001)  # torchvision's table: 1.81 GMAC


def test_trainable_part() -> None:
    model = build("fast-cnn")
    heads.set_trainable(model, heads.blocks(model), 1)
    found = summary.summarise(model, 3, 32)
    assert found.trainable == sum(p.numel() for p in model.head.parameters())


@pytest.mark.parametrize("name", ["fast-cnn", "torchvision/swin_t"])
def test_table(name: str) -> None:
    found = summary.summarise(build(name, stem="small" if "/" in name else "standard"), 3, 32)
    text = summary.render(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) == len(found.rows) + 7
    assert f"{found.parameters:,}" in text
    assert "3x32x32" in text


def test_deep_names_keep_their_end() -> None:
    row = summary.Row("a" * 60 + ".last", "T" * 30, (1, 2, 3), 5)
    text = summary.render(summary.Summary((row,), 5, 5, 10, 0.1, (3, 8, 8)))
    assert ".last " in text
    assert max(map(len, text.splitlines())) <= 100
