from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from tellapart import packages
from tellapart.errors import ModelError, SpecError
from tellapart.spec import TrainingSpec
from tellapart.training.optim import build_optimizer, parameter_groups, set_lr

OPTIMIZERS = ["sgd", "adam", "adamw", "rmsprop", "muon", "muon-sgd"]
BLOCKS = [["head"], ["deep", "norm"], ["conv"]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.norm(self.conv(x).relu()))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def network(channels_last: bool = True) -> Net:
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def spec(name: str, **fields: Any) -> TrainingSpec:
    return TrainingSpec(optimizer=name, lr=0.01, **fields)  # type: ignore[arg-type]


def build(model: nn.Module, chosen: TrainingSpec, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    return build_optimizer(chosen, parameter_groups(model, BLOCKS, chosen.weight_decay, layer_decay))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_lr(optimizer, 0.01, 1 / (1 + step))
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def names_of(model: nn.Module, groups: list[dict[str, Any]], **wanted: float) -> set[str]:
    chosen = {id(p) for g in groups for p in g["params"] if all(g[k] == v for k, v in wanted.items())}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


# Groups


def test_norms_and_biases_do_not_decay() -> None:
    model = Net()
    groups = parameter_groups(model, BLOCKS, 0.1, 1.0)
    assert len(groups) == 2
    assert names_of(model, groups, weight_decay=0.1) == {"conv.weight", "deep.weight", "head.weight"}
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert len(parameter_groups(model, [], 0.0, 1.0)) == 1


def test_biases_and_head_have_their_own_rate_and_the_same_shrinking() -> None:
    model = Net()
    groups = parameter_groups(model, BLOCKS, 0.1, 1.0, bias_scale=50.0, head_scale=0.2)
    assert names_of(model, groups, lr_scale=0.2) == {"head.weight"}
    assert names_of(model, groups, lr_scale=1.0) == {"conv.weight", "deep.weight"}
    assert names_of(model, groups, lr_scale=50.0) == {
        "conv.bias", "norm.weight", "norm.bias", "deep.bias", "head.bias",
    }  # fmt: skip
    for group in groups:
        assert group["weight_decay"] * group["lr_scale"] == pytest.approx(0.1)


def test_early_parameters_fall_to_nothing_by_themselves() -> None:
    model = Net()
    model.early_parameters = lambda: ("conv.bias",)
    groups = parameter_groups(model, BLOCKS, 0.0, 1.0, bias_scale=3.0, early_steps=4)
    assert names_of(model, [g for g in groups if "early_steps" in g]) == {"conv.bias"}
    optimizer = build_optimizer(spec("sgd"), groups)
    for step, early in enumerate([1.0, 0.75, 0.5, 0.25, 0.0, 0.0]):
        set_lr(optimizer, 0.1, 0.6, step)
        for group in optimizer.param_groups:
            factor = early if "early_steps" in group else 0.6
            assert group["lr"] == pytest.approx(0.1 * factor * group["lr_scale"])
    assert not any("early_steps" in g for g in parameter_groups(model, BLOCKS, 0.0))


def test_a_model_may_name_the_weights_for_muon() -> None:
    model = Net()
    model.muon_weights = lambda: {"conv.weight"}
    optimizer = build(model, spec("muon-sgd", momentum=0.6, nesterov=True, precision="bf16"))
    chosen = {id(p) for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in chosen} == {"conv.weight"}
    assert {(g["muon"], g["momentum"]) for g in optimizer.param_groups} == {(True, 0.6), (False, 0.85)}
    assert optimizer.dtype is torch.bfloat16


def test_layer_decay_scales_by_block() -> None:
    model = Net()
    groups = parameter_groups(model, BLOCKS, 0.1, 0.5)
    assert sorted((g["lr_scale"], g["weight_decay"]) for g in groups) == [
        (scale, decay) for scale in (0.25, 0.5, 1.0) for decay in (0.0, 0.1)
    ]
    assert names_of(model, groups, lr_scale=0.5) == {"deep.weight", "deep.bias", "norm.weight", "norm.bias"}
    assert names_of(model, groups, lr_scale=0.25, weight_decay=0.0) == {"conv.bias"}
    exact = parameter_groups(model, [["head", "deep.weight"], ["deep.bias", "norm", "conv"]], 0.1, 0.5)
    assert names_of(model, exact, lr_scale=1.0) == {"head.weight", "head.bias", "deep.weight"}


def test_every_parameter_is_in_one_group_also_the_frozen() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    for layer_decay in (1.0, 0.7):
        groups = parameter_groups(model, BLOCKS, 0.1, layer_decay)
        grouped = [id(p) for g in groups for p in g["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_a_parameter_in_no_block_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'conv\.weight' is in no block"):
        parameter_groups(Net(), [["head"], ["deep", "norm"], ["con"]], 0.1, 0.5)


def test_embeddings_of_transformers_do_not_decay() -> None:
    packages.prepare_torchvision()
    import timm
    import torchvision

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2, depth=1)
    undecayed = names_of(vit, parameter_groups(vit, [["head"]], 0.1), weight_decay=0.0)
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.mlp.fc1.bias"} <= undecayed
    assert "patch_embed.proj.weight" not in undecayed
    theirs = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=2)
    undecayed = names_of(theirs, parameter_groups(theirs, [["heads"]], 0.1), weight_decay=0.0)
    assert {"class_token", "encoder.pos_embedding"} <= undecayed
    assert "conv_proj.weight" not in undecayed

    embedding = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    assert names_of(embedding, parameter_groups(embedding, [["1"]], 0.1), weight_decay=0.1) == {"1.weight"}


# All optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_set_lr_multiplies_lr_factor_and_scale(name: str) -> None:
    optimizer = build(Net(), spec(name), 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.01, 0.005, 0.0025}
    set_lr(optimizer, 2.0, 0.1)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.2 * group["lr_scale"])


REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=False, fused=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), foreach=False, fused=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99), foreach=False, fused=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, foreach=False),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_each_is_torchs_plain_optimizer(name: str, channels_last: bool) -> None:
    ours, theirs = network(channels_last), network(channels_last=False)
    optimizer = build(ours, spec(name, nesterov=True, betas=(0.8, 0.99), weight_decay=0.05))
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.05, "lr_scale": 1.0},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    train(ours, optimizer, range(10))
    train(theirs, REFERENCES[name](groups), range(10))
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=2e-4, atol=2e-5)
    fused = {bool(group.get("fused")) for group in optimizer.param_groups}
    assert fused == {name != "rmsprop"}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layer_decay", [0.5, 1.0])  # 1: frozen and training parameters share a group
def test_frozen_parameters_do_not_move_and_later_train(name: str, layer_decay: float) -> None:
    model = network()
    optimizer = build(model, spec(name, weight_decay=0.1), layer_decay)
    frozen = [model.conv, model.norm, model.deep]
    for module in frozen:
        module.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, optimizer, range(3))
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) == (not key.startswith("head")), key
    for module in frozen:
        module.requires_grad_(True)
    train(model, optimizer, range(3, 5))
    assert not any(torch.equal(value, before[key]) for key, value in model.named_parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("thaw", [False, True])
@pytest.mark.parametrize("layer_decay", [0.5, 1.0])
def test_going_on_from_a_saved_state_is_exact(name: str, thaw: bool, layer_decay: float) -> None:
    chosen = spec(name, weight_decay=0.1)
    whole = network()
    whole.conv.requires_grad_(not thaw)
    optimizer = build(whole, chosen, layer_decay)
    train(whole, optimizer, range(5))
    stream = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    whole.conv.requires_grad_(True)
    train(whole, optimizer, range(5, 10))

    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    resumed = network()
    resumed.load_state_dict(saved["model"])
    again = build(resumed, chosen, layer_decay)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(5, 10))
    for mine, reference in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scaler_unscales_and_skips_infinite_gradients(name: str) -> None:
    plain, scaled = network(), network()
    train(plain, build(plain, spec(name)), range(1))
    optimizer = build(scaled, spec(name, precision="fp16"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    set_lr(optimizer, 0.01, 1.0)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    for poison in (True, False):
        before = copy.deepcopy(dict(scaled.named_parameters()))
        scaled.norm.reset_running_stats()
        scaler.scale(scaled(images).square().sum()).backward()
        if poison:
            scaled.conv.bias.grad[0] = torch.inf  # type: ignore[index]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        moved = any(not torch.equal(p, before[key]) for key, p in scaled.named_parameters())
        assert moved != poison
    for mine, reference in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_what_thaws_later_moves_as_with_torchs_plain_sgd() -> None:
    ours, theirs = network(), network()
    groups = parameter_groups(theirs, BLOCKS, 0.05)
    for group in groups:
        del group["matrices"]
    plain = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, foreach=False, fused=False)
    optimizers = (build(ours, spec("sgd", nesterov=True, weight_decay=0.05)), plain)
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        model.conv.requires_grad_(False)
        train(model, optimizer, range(3))
        assert model.conv.weight not in optimizer.state
        model.conv.requires_grad_(True)
        train(model, optimizer, range(3, 6))
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_kernels_are_fused_where_that_is_right() -> None:
    def kernels(model: nn.Module, chosen: TrainingSpec) -> set[tuple[object, object]]:
        return {(g.get("fused"), g.get("foreach")) for g in build(model, chosen).param_groups}

    assert kernels(Net(), spec("sgd")) == kernels(Net(), spec("adamw", precision="fp16")) == {(True, None)}
    assert kernels(Net(), spec("sgd", precision="fp16")) == {(None, True)}
    assert kernels(Net().to("meta"), spec("adamw")) == {(None, True)}


def test_impossible_values_are_refused() -> None:
    with pytest.raises(SpecError, match=r"training.nesterov needs training.momentum"):
        build(Net(), spec("sgd", nesterov=True, momentum=0.0))
    with pytest.raises(SpecError, match=r"training.betas"):
        build(Net(), spec("adamw", betas=(0.9, 1.0)))


# Muon


def matrix_flags(model: nn.Module, blocks: list[list[str]]) -> set[str]:
    groups = parameter_groups(model, blocks, 0.1, 1.0)
    chosen = {id(p) for g in groups for p, flag in zip(g["params"], g["matrices"], strict=True) if flag}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


def test_muon_is_for_the_matrices_of_hidden_layers() -> None:
    assert matrix_flags(Net(), BLOCKS) == {"deep.weight"}
    depthwise = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2)
    )
    assert matrix_flags(depthwise, [["4"]]) == {"2.weight"}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_torchs_on_flattened_filters_and_adamw_on_the_rest(
    channels_last: bool, nesterov: bool
) -> None:
    ours, theirs = network(channels_last), network(channels_last)
    chosen = spec("muon", weight_decay=0.05, momentum=0.8, nesterov=nesterov)
    optimizer = build(ours, chosen)
    train(ours, optimizer, range(5))

    filters = theirs.deep.weight
    flat = filters.detach().reshape(6, -1).clone()
    muon = torch.optim.Muon(
        [flat], 0.01, 0.05, momentum=0.8, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    rest = {name: p for name, p in theirs.named_parameters() if p is not filters}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest.values() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in rest.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    for step in range(5):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.01 / (1 + step)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        theirs(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        flat.grad = filters.grad.reshape(6, -1)  # type: ignore[union-attr]
        muon.step()
        adamw.step()
        filters.data.copy_(flat.view(filters.shape))
        theirs.zero_grad()
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-7)


def test_muon_follows_parameters_whose_storage_moves() -> None:
    early, late = network(channels_last=False), network(channels_last=False)
    optimizer = build(early, spec("muon"))
    early.to(memory_format=torch.channels_last)  # replaces the storage of the filters
    late.to(memory_format=torch.channels_last)
    train(early, optimizer, range(3))
    train(late, build(late, spec("muon")), range(3))
    for mine, reference in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_muon_works_where_one_part_is_empty() -> None:
    only_others = nn.Linear(3, 2)
    optimizer = build_optimizer(spec("muon"), parameter_groups(only_others, [["weight", "bias"]], 0.0))
    only_others(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    only_matrices = nn.Linear(3, 2, bias=False)
    groups = [{"params": [only_matrices.weight], "weight_decay": 0.0, "lr_scale": 1.0, "matrices": [True]}]
    before = only_matrices.weight.detach().clone()
    optimizer = build_optimizer(spec("muon"), groups)
    only_matrices(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(only_matrices.weight, before)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SpecError, match=r"needs torch 2\.9"):
        build(Net(), spec("muon"))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_fused_kernels_can_be_switched_off(name: str) -> None:
    groups = parameter_groups(Net(), BLOCKS, 0.1)
    for fused in (True, False):
        optimizer = build_optimizer(spec(name), groups, fused)
        found = optimizer._inner[False] if name == "muon" else optimizer
        assert {bool(group["fused"]) for group in found.param_groups} == {fused}
