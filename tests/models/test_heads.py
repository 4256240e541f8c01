from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tellapart.models import heads, zoo
from tellapart.models.zoo import Architecture

NAMES = [
    "tutorial-net",
    "simple-cnn",
    "fast-cnn",
    "timm/resnet14t",
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/squeezenet1_1",
    "torchvision/densenet121",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/googlenet",
    "timm/tf_efficientnet_lite0",
    "timm/convnext_atto",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/regnetx_002",
    "timm/test_vit",
    "timm/mobilevit_xxs",
]


def build(name: str, classes: int = 5) -> nn.Module:
    return zoo.build(Architecture(name, classes, 3, 32, stem=zoo.choose_stem(name, 32)))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_block(name: str) -> None:
    model = build(name)
    blocks = heads.blocks(model)
    listed = list(itertools.chain.from_iterable(blocks))
    assert sorted(listed) == sorted(dict(model.named_parameters()))
    parameters = dict(model.named_parameters())
    assert all(blocks)
    assert all(parameters[n].shape[0] == 5 for n in blocks[0]), "the head gives the classes"
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    assert f"{first}.weight" in blocks[-1]
    assert len(blocks) >= 4


@pytest.mark.parametrize("name", ["fast-cnn", "torchvision/resnet18", "timm/vit_tiny_patch16_224"])
def test_blocks_go_from_the_head_to_the_stem(name: str) -> None:
    """Freezing all but the first blocks must keep the gradient away from the others, in forward order."""
    model = build(name)
    blocks = heads.blocks(model)
    images = torch.randn(2, 3, 32, 32)
    order: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, *_: object) -> None:
        order.setdefault(names[module], len(order))

    for module in names:
        module.register_forward_hook(note)
    model(images)
    used = [min((order.get(n.rpartition(".")[0], -1) for n in block), default=-1) for block in blocks]
    assert used == sorted(used, reverse=True)


def test_a_vit_has_one_block_for_each_layer() -> None:
    assert len(heads.blocks(build("timm/vit_tiny_patch16_224"))) == 1 + 12 + 1
    assert heads.blocks(build("timm/vit_tiny_patch16_224"))[-1][:2] == ["cls_token", "pos_embed"]


def test_tutorial_net_blocks_are_its_layers() -> None:
    assert [block[0].partition(".")[0] for block in heads.blocks(build("tutorial-net"))] == [
        "fc3",
        "fc2",
        "fc1",
        "conv2",
        "conv1",
    ]


def test_distilled_networks_have_two_heads() -> None:
    model = build("timm/deit_tiny_distilled_patch16_224")
    assert heads.head_names(model) == ("head", "head_dist")
    assert len(heads.blocks(model)[0]) == 4


def take_step(model: nn.Module) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "name", ["fast-cnn", "timm/resnet14t", "torchvision/mobilenet_v3_small", "timm/convnext_atto"]
)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_frozen_part_stays_bit_for_bit(name: str, depth: int) -> None:
    torch.manual_seed(0)
    model = build(name)
    blocks = heads.blocks(model)
    heads.set_trainable(model, blocks, depth)
    heads.train_mode(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    take_step(model)
    moving = {n for block in blocks[:depth] for n in block}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed & moving
    owners = {n.rpartition(".")[0] for n in moving}
    for changed_name in changed - moving:  # only statistics of norms that train
        assert changed_name.rpartition(".")[0] in owners
    if depth == 1:
        assert changed <= moving


def test_unfreezing_all_lets_statistics_move() -> None:
    model = build("fast-cnn")
    blocks = heads.blocks(model)
    heads.set_trainable(model, blocks, 1)
    heads.set_trainable(model, blocks, len(blocks))
    heads.train_mode(model)
    assert all(module.training for module in model.modules())
    before = model.stem.norm.running_mean.clone()
    take_step(model)
    assert not torch.equal(before, model.stem.norm.running_mean)


def test_norms_keep_their_statistics_and_train_their_weights() -> None:
    model = build("fast-cnn")
    heads.set_trainable(model, heads.blocks(model), len(heads.blocks(model)))
    heads.train_mode(model, keep_norms=True)
    norm = model.stem.norm
    assert model.training
    assert not norm.training
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    take_step(model)
    changed = {name for name, tensor in norm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= {"weight", "bias"}


def test_freezing_drops_gradients() -> None:
    model = build("tutorial-net")
    blocks = heads.blocks(model)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    heads.set_trainable(model, blocks, 1)
    assert model.conv1.weight.grad is None
    assert model.fc3.weight.grad is not None


def test_module_names_are_blocks_too() -> None:
    model = build("tutorial-net")
    heads.set_trainable(model, [["fc3"], ["fc2"], ["fc1", "conv2", "conv1"]], 2)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "fc3.weight",
        "fc3.bias",
        "fc2.weight",
        "fc2.bias",
    }


def test_modules_without_parameters_follow_their_neighbours() -> None:
    model = nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4, affine=False),
        nn.Dropout(0.2),
        nn.Linear(4, 2),
    )
    heads.set_trainable(model, [["4"], ["1"]], 1)
    heads.train_mode(model)
    assert [module.training for module in model] == [False, False, False, True, True]
    heads.set_trainable(model, [["4"], ["1"]], 2)
    heads.train_mode(model)
    assert all(module.training for module in model)
    heads.set_trainable(model, [["4"], ["1"]], 0)
    heads.train_mode(model)
    assert not any(module.training for module in model.modules())


def test_frozen_features_do_not_vary() -> None:
    """With the head alone in training, features are a function of the image: they may be computed once."""
    model = zoo.build(Architecture("torchvision/swin_t", 5, 3, 32, dropout=0.5, drop_path=0.5, stem="small"))
    heads.set_trainable(model, heads.blocks(model), 1)
    heads.train_mode(model)
    features = []
    model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    logits = [model(images), model(images)]
    assert torch.equal(*features)
    assert not torch.equal(*logits), "the head's own dropout is on"


@given(
    epochs=st.integers(1, 60),
    blocks=st.integers(1, 80),
    unfreeze=st.lists(st.integers(0, 60), max_size=8).map(lambda u: tuple(sorted(u))),
)
def test_staged_depth_only_grows(epochs: int, blocks: int, unfreeze: Sequence[int]) -> None:
    depths = [heads.staged_depth(epoch, epochs, unfreeze, blocks) for epoch in range(epochs)]
    assert depths == sorted(depths)
    assert all(1 <= depth <= blocks for depth in depths)
    assert len(set(depths)) <= heads.MOST_STAGES
    if not unfreeze:
        assert depths[0] == 1 or blocks == 1
        assert all(depth == blocks for depth in depths[max(1, epochs // 2) :])
    if unfreeze and blocks > 1:
        assert all(depth == 1 for depth in depths[: unfreeze[0]])


def test_staged_depth_by_hand() -> None:
    assert [heads.staged_depth(epoch, 10, (), 6) for epoch in range(7)] == [1, 2, 3, 4, 5, 6, 6]
    assert [heads.staged_depth(epoch, 8, (2, 5), 6) for epoch in range(8)] == [1, 1, 2, 2, 2, 3, 3, 3]
    assert [heads.staged_depth(epoch, 8, (1, 2, 3, 4, 5), 51) for epoch in range(7)] == [
        1,
        11,
        21,
        31,
        41,
        51,
        51,
    ]
    assert heads.staged_depth(0, 1, (), 9) == 1
    assert heads.staged_depth(1, 2, (), 9) == 9
