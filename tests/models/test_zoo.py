from __future__ import annotations

import pytest
import torch
from torch import nn

from tellapart import packages
from tellapart.errors import MissingPackageError, ModelError
from tellapart.models import surgery, timm_zoo, torchvision_zoo, zoo
from tellapart.models.zoo import Architecture


def build(name: str, channels: int, size: int, **more: object) -> nn.Module:
    canonical = zoo.resolve(name)
    return zoo.build(
        Architecture(canonical, 7, channels, size, stem=zoo.choose_stem(canonical, size), **more)
    )


@pytest.mark.parametrize(
    ("name", "canonical", "tag"),
    [
        ("fast-cnn", "fast-cnn", None),
        ("resnet18", "timm/resnet18", None),
        ("alexnet", "torchvision/alexnet", None),
        ("vgg11", "timm/vgg11", None),
        ("torchvision/vgg11", "torchvision/vgg11", None),
        ("timm/resnet18.a1_in1k", "timm/resnet18", "a1_in1k"),
        ("resnet18.a1_in1k", "timm/resnet18", "a1_in1k"),
        ("torchvision/resnet50.IMAGENET1K_V2", "torchvision/resnet50", "IMAGENET1K_V2"),
    ],
)
def test_names(name: str, canonical: str, tag: str | None) -> None:
    assert zoo.resolve(name) == canonical
    assert zoo.split_tag(name) == (canonical, tag)
    assert zoo.resolve(canonical) == canonical


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fastcnn", "fast-cnn"),
        ("resnet81", "resnet18"),
        ("timm/alexnet", "timm"),
        ("torchvision/vgg12", "vgg1"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=near):
        zoo.resolve(name)


def test_a_missing_library_does_not_change_what_a_name_means(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_zoo.names.cache_clear()
    monkeypatch.setattr(packages, "installed", lambda package: package != "timm")
    assert zoo.resolve("fast-cnn") == "fast-cnn"
    for name in ("resnet18", "alexnet", "timm/resnet18"):
        with pytest.raises(MissingPackageError, match=r"tellapart\[models\]"):
            zoo.resolve(name)
    assert {info.source for info in zoo.list_models()} == {"tellapart", "torchvision"}


FAMILIES = [
    "alexnet",
    "torchvision/vgg11",
    "timm/vgg11",
    "timm/resnet18",
    "torchvision/resnet18",
    "timm/resnet14t",
    "mobilenetv2_050",
    "mobilenet_v2",
    "timm/mobilenetv3_small_050",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "convnext_atto_ols",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "torchvision/swin_t",
    "regnetx_002",
    "regnet_x_400mf",
    "torchvision/densenet121",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "googlenet",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_on_small_images(name: str) -> None:
    light = name not in ("alexnet", "torchvision/vgg11", "timm/vgg11") and "swin" not in name
    for channels, size in ((1, 32), (3, 64)) if light else ((1, 32),):
        assert zoo.choose_stem(name, size) == "small"
        model = build(name, channels, size)  # building sends an image through
        convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        assert convolution.in_channels == channels
        assert convolution.stride[0] <= 4
        assert model.training
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_small_stem_keeps_the_resolution(library: str) -> None:
    sides = []
    for stem in ("small", "standard"):
        model = zoo.build(Architecture(f"{library}/resnet18", 7, 3, 32, stem=stem)).eval()
        model.layer4.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
        model(torch.zeros(1, 3, 32, 32))
        assert model.conv1.kernel_size == ((3, 3) if stem == "small" else (7, 7))
    assert sides == [4, 1]


def test_small_vit_sees_patches_of_four_pixels() -> None:
    timms = build("vit_tiny_patch16_224", 3, 32)
    assert timms.pos_embed.shape[1] == 8 * 8 + 1
    small = torchvision_zoo.SMALL_STEMS["vision_transformer"]
    model = torchvision_zoo._create(
        "vit_b_32", "vision_transformer", Architecture("torchvision/vit_b_32", 3), small
    )
    assert model.encoder.pos_embedding.shape[1] == 8 * 8 + 1


def test_choice_of_stem() -> None:
    assert zoo.choose_stem("timm/resnet18", 64) == "small"
    assert zoo.choose_stem("timm/resnet18", 65) == "standard"
    assert zoo.choose_stem("timm/resnet18", 32, weights="pretrained") == "standard"
    assert zoo.choose_stem("fast-cnn", 32) == "standard"
    assert zoo.choose_stem("timm/mobilevit_xxs", 32) == "standard"


@pytest.mark.parametrize("name", ["timm/mobilevit_xxs", "torchvision/maxvit_t", "fast-cnn"])
def test_a_small_stem_that_there_is_not(name: str) -> None:
    with pytest.raises(ModelError, match="stem"):
        zoo.build(Architecture(name, 3, stem="small"))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("torchvision/inception_v3", 64, "It takes 75x75: --input.size 75"),
        ("timm/vgg11", 28, "It takes 32x32"),
        ("torchvision/alexnet", 8, "It takes 16x16"),
        ("timm/vit_tiny_patch16_224", 30, "multiple of 4, such as 32"),
        ("timm/cait_xxs24_224", 28, "multiple of 16, such as 32"),
        ("timm/mobilevit_xxs", 0, "size is 0"),
    ],
)
def test_impossible_sizes_are_answered_with_possible_ones(name: str, size: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(name, 3, size)


def test_a_long_search_ends_with_the_models_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "SEARCH_SECONDS", -1.0)
    with pytest.raises(ModelError, match="It takes 299x299"):
        build("torchvision/inception_v3", 3, 64)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("name", ["torchvision/shufflenet_v2_x0_5", "timm/mobilenetv3_small_050"])
def test_any_number_of_channels(name: str, channels: int) -> None:
    assert build(name, channels, 32).eval()(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


def test_dropout() -> None:
    alexnet = build("torchvision/alexnet", 3, 32, dropout=0.3)
    assert [m.p for m in alexnet.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    off = build("torchvision/mobilenet_v2", 3, 32)
    assert [m.p for m in off.modules() if isinstance(m, nn.Dropout)] == [0.0]
    resnet = build("torchvision/resnet18", 3, 32, dropout=0.3)
    assert {"fc.weight", "fc.bias"} <= set(resnet.state_dict())
    assert resnet.fc.dropout == 0.3
    features = torch.ones(4, 512)
    assert not torch.equal(resnet.fc(features), resnet.fc(features))
    resnet.eval()
    assert torch.equal(resnet.fc(features), resnet.fc(features))
    assert build("timm/resnet18", 3, 32, dropout=0.3).drop_rate == 0.3


def test_drop_path() -> None:
    model = build("torchvision/swin_t", 3, 32, drop_path=0.2)
    rates = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    timms = build("timm/resnet18", 3, 32, drop_path=0.2)
    assert max(m.drop_prob for m in timms.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["fast-cnn", "torchvision/alexnet", "timm/vgg11"])
def test_drop_path_where_there_is_none(name: str) -> None:
    with pytest.raises(ModelError, match=r"drop_path|stochastic depth"):
        build(name, 3, 32, drop_path=0.2)


@pytest.mark.parametrize("name", ["fast-cnn", "timm/resnet18"])
def test_batch_norm_is_an_option_of_simple_cnn(name: str) -> None:
    with pytest.raises(ModelError, match="simple-cnn"):
        build(name, 3, 32, batch_norm=True)


def test_residual_blocks_do_not_start_as_identities() -> None:
    for name in ("timm/resnet18", "torchvision/resnet18"):
        norm = build(name, 3, 32).layer1[0].bn2
        assert norm.weight.abs().min() > 0


def test_same_seed_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build("mobilenetv2_050", 1, 32).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_list() -> None:
    infos = zoo.list_models()
    names = [info.name for info in infos]
    assert len(names) == len(set(names)) > 1000
    assert all((info.parameters is None) == (info.source == "timm") for info in infos)
    assert all((info.accuracy is not None) == (info.source == "torchvision") for info in infos)
    assert {"fast-cnn", "timm/resnet18", "torchvision/alexnet"} <= set(names)
    assert [info.name for info in zoo.list_models("alexnet")] == ["torchvision/alexnet"]
    assert (
        [info.name for info in zoo.list_models("resnet1?")]
        == [
            "timm/resnet18",
            "torchvision/resnet18",
        ]
        == [name for name in names if name.endswith("/resnet18")]
    )
    (info,) = zoo.list_models("torchvision/squeezenet1_1", with_parameters=True)
    assert info.parameters == 1_235_496  # as torchvision's documentation says
    assert info.size == 224
    assert info.licence == "BSD-3-Clause"


def test_default_sizes() -> None:
    assert zoo.default_size("tutorial-net") == 32
    assert zoo.default_size("resnet18") == 224
    assert zoo.default_size("torchvision/inception_v3") == 299
