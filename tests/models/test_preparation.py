"""The contract of weights from elsewhere, against what timm's and torchvision's own transforms make of a picture."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tellapart import artifact, packages, runs, workflow
from tellapart.contract.preprocessing import VERSION
from tellapart.contract.resizing import load, normalise
from tellapart.errors import ModelError, SpecError
from tellapart.models import checkpoints, preparation, timm_zoo, torchvision_zoo, weights, zoo
from tellapart.models.efficientnet_lite import LITES
from tellapart.models.zoo import Architecture
from tellapart.spec import Spec, update
from tellapart.training.resolution import checks

LEVEL = 1 / 255


def picture(width: int = 420, height: int = 300) -> Image.Image:
    """A smooth picture with some noise, as photographs are."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def brought(tmp_path: Path, name: str, classes: int = 1000, content: Any = None, **changes: Any) -> Any:
    """Return the card of an import of random weights."""
    size = changes.get("input.size") or zoo.default_size(name) or 224
    file = tmp_path / "weights.pth"
    network = zoo.build(Architecture(zoo.resolve(name), classes, 3, size))
    torch.save(network.state_dict() if content is None else content(network), file)
    names = [f"c{k}" for k in range(classes)]
    spec = update(Spec(), {"model.name": name, **changes})
    return artifact.read_card(
        workflow.import_weights(file, tmp_path / "m.safetensors", classes=names, spec=spec, quiet=True)
    )


def assert_same_input(card: Any, theirs: torch.Tensor, image: Image.Image) -> None:
    """Within two levels, half of one on average: what the rounding of resizing allows."""
    contract = card.preprocessing
    assert contract.version == VERSION
    ours = normalise(load(png(image), contract)[None], contract)[0]
    assert ours.shape == theirs.shape
    off = np.abs(ours - theirs.numpy()) * np.array(contract.std)[:, None, None] / LEVEL
    assert off.max() < 2.1
    assert off.mean() < 0.5


@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet18",
        "timm/resnet18.tv_in1k",
        "timm/mobilenetv3_small_050",
        "timm/test_vit",
        "timm/resnet14t",
    ],
)
def test_an_import_prepares_images_as_timm_does(tmp_path: Path, name: str) -> None:
    timm = timm_zoo.timm_package()
    cfg = timm.get_pretrained_cfg(name.partition("/")[2])
    config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    card = brought(tmp_path, name)
    image = picture()
    assert_same_input(card, timm.data.create_transform(**config)(image), image)


@pytest.mark.parametrize("bare", ["resnet18", "resnet50", "mobilenet_v3_small"])
def test_an_import_prepares_images_as_torchvision_does(tmp_path: Path, bare: str) -> None:
    member = torchvision_zoo.default_weights(bare)
    card = brought(tmp_path, f"torchvision/{bare}")
    image = picture(480, 320)
    assert_same_input(card, member.transforms()(image), image)


@pytest.mark.parametrize("crop_pct", [0.8, 0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("side", [96, 224, 288])
def test_the_size_before_the_crop_is_timms(crop_pct: float, side: int) -> None:
    found = preparation.of_timm({"input_size": (3, 224, 224), "crop_pct": crop_pct}, "x")
    fraction = preparation.fraction_at(side, found.crop_fraction, found.crop_floor)
    assert fraction is not None
    assert round(side / fraction) == int(side / crop_pct)


def test_what_the_contract_cannot_say_is_refused(tmp_path: Path) -> None:
    found = preparation.of_timm({"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "squash"}, "x")
    assert "centre is cut out" in found.inexact
    assert "lanczos" in preparation.of_timm({"interpolation": "lanczos"}, "x").inexact
    timm = timm_zoo.timm_package()
    bare = next(
        name
        for name in timm.list_pretrained()
        if (cfg := timm.get_pretrained_cfg(name)).crop_mode == "squash" and cfg.crop_pct == 0.9
    )
    assert weights.known_preparation(f"timm/{bare.partition('.')[0]}", bare.partition(".")[2]).inexact  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "cfg",
    [
        {"mean": [float("nan")] * 3},
        {"std": [0, 1, 1]},
        {"input_size": [3, 10**9, 10**9]},
        {"mean": "x"},
        {"crop_pct": -1},
        {"input_size": 3},
    ],
)
def test_impossible_configurations(cfg: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="config"):
        preparation.of_timm(cfg, "config.json")


def test_a_files_training_uses_the_networks_own_normalisation(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("timm/resnet18", 5, 3, 64)).state_dict(), tmp_path / "a.pth")
    info, own = (weights.describe("timm/resnet18", w) for w in (str(tmp_path / "a.pth"), "pretrained"))
    assert info is not None
    assert own is not None
    assert (info.mean, info.std, info.size, info.resize) == (own.mean, own.std, own.size, own.resize)
    assert "timm/resnet18.a1_in1k" in info.notes[0]


def test_options_go_before_the_networks_own(tmp_path: Path) -> None:
    changes = {
        "input.size": 64,
        "input.mean": [0.5] * 3,
        "input.std": [0.25] * 3,
        "input.interpolation": "bilinear",
    }
    contract = brought(tmp_path, "timm/resnet18", 3, **changes).preprocessing
    assert (contract.size, contract.mean, contract.std) == (64, (0.5,) * 3, (0.25,) * 3)
    assert (contract.interpolation, contract.resize, round(64 / contract.crop_fraction)) == (
        "bilinear",
        "crop",
        67,
    )


# --- Trainers ----------------------------------------------------------------------------------------------


def prefixed(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "model.module.", "model._orig_mod.", "a.b.c."]
)
def test_lightnings_wrapped_modules(tmp_path: Path, prefix: str) -> None:
    network = zoo.build(Architecture("timm/resnet18", 4, 3, 64))
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(network, prefix), "criterion.weight": torch.ones(4)},
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(path=tmp_path)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    }
    torch.save(content, tmp_path / "last.ckpt")
    ours = zoo.build(Architecture("timm/resnet18", 4, 3, 64))
    info = weights.load(ours, Architecture("timm/resnet18", 4, 3, 64), str(tmp_path / "last.ckpt"))
    assert info.new == ()
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in ours.state_dict().items())
    assert any("Ignored 1 other tensors: criterion.weight" in note for note in info.notes)


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_averaged_weights_go_first(tmp_path: Path, averaged: str) -> None:
    raw, smooth = (zoo.build(Architecture("tutorial-net", 10)) for _ in range(2))
    ema = {**prefixed(smooth, "module."), "n_averaged": torch.tensor(7)}
    args = argparse.Namespace(model="tutorial-net", output=tmp_path)
    torch.save({"state_dict": raw.state_dict(), averaged: ema, "args": args}, tmp_path / "model_best.pth.tar")
    ours = zoo.build(Architecture("tutorial-net", 10))
    info = weights.load(ours, Architecture("tutorial-net", 10), str(tmp_path / "model_best.pth.tar"))
    assert torch.equal(ours.conv1.weight, smooth.conv1.weight)
    assert any(averaged in note for note in info.notes)


def test_timms_own_saver(tmp_path: Path) -> None:
    timm = timm_zoo.timm_package()
    network = timm.create_model("test_vit", num_classes=3)
    saver = timm.utils.CheckpointSaver(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        args=argparse.Namespace(model="test_vit", mean=None),
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=np.float64(81.5))
    found = checkpoints.read(tmp_path / "model_best.pth.tar")
    assert found.state.keys() == network.state_dict().keys()
    assert found.options["arch"] == "test_vit"


@pytest.mark.parametrize("key", ["net", "whatever"])
def test_other_keys(tmp_path: Path, key: str) -> None:
    network = zoo.build(Architecture("tutorial-net", 10))
    torch.save({key: network.state_dict(), "acc": np.float64(94.1), "epoch": 3}, tmp_path / "ckpt.pth")
    assert checkpoints.read(tmp_path / "ckpt.pth").state.keys() == network.state_dict().keys()


def references_options(**changes: Any) -> argparse.Namespace:
    """Those of torchvision's references/classification/train.py that matter, and a few that do not."""
    options = {
        "model": "resnet18",
        "data_path": "/data",
        "val_resize_size": 144,
        "val_crop_size": 128,
        "train_crop_size": 112,
        "interpolation": "bicubic",
        "backend": "pil",
        "weights": None,
        "model_ema": True,
        "distributed": False,
        "device": torch.device("cuda"),
    }
    return argparse.Namespace(**{**options, **changes})


def references_checkpoint(network: nn.Module, smooth: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
        ],
        [2],
    )
    average = torch.optim.swa_utils.AveragedModel(smooth, avg_fn=lambda a, b, n: b, use_buffers=True)
    average.update_parameters(smooth)
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 3,
        "args": args,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "model_ema": average.state_dict(),
    }


def test_torchvisions_reference_checkpoints(tmp_path: Path) -> None:
    """The average is taken, and images are prepared as the script evaluates, not as the published weights were."""
    from torchvision.transforms import v2

    networks = [zoo.build(Architecture("torchvision/resnet18", 3, 3, 128)) for _ in range(2)]
    content = references_checkpoint(*networks, references_options())
    assert "n_averaged" in content["model_ema"]
    assert any(name.startswith("module.") for name in content["model_ema"])
    file = tmp_path / "model_3.pth"
    torch.save(content, file)
    spec = update(Spec(), {"model.name": "torchvision/resnet18"})
    path = workflow.import_weights(
        file, tmp_path / "m.safetensors", classes=["a", "b", "c"], spec=spec, quiet=True
    )
    state = artifact.read_state(path)
    assert all(torch.equal(state[name], tensor) for name, tensor in networks[1].state_dict().items())
    steps = [
        v2.Resize(144, interpolation=v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(128),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    image = picture()
    assert_same_input(artifact.read_card(path), v2.Compose(steps)(image), image)
    info = weights.describe("torchvision/resnet18", str(file))
    assert info is not None
    assert "the options that its trainer saved" in info.prepared_as


@pytest.mark.parametrize(
    ("bare", "changes", "mean"),
    [
        ("googlenet", {}, 0.485),
        ("googlenet", {"weights": "IMAGENET1K_V1"}, 0.5),
        ("resnet18", {"weights": "DEFAULT"}, 0.485),
    ],
)
def test_networks_that_torchvision_gives_other_values(bare: str, changes: Any, mean: float) -> None:
    options = vars(references_options(**changes))
    found = preparation.of_options(f"torchvision/{bare}", {}, options, "a.pth")
    assert found is not None
    assert found.mean is not None
    assert found.mean[0] == mean


@pytest.mark.parametrize(
    "changes",
    [
        {"val_crop_size": "x"},
        {"val_resize_size": None},
        {"val_crop_size": 0},
        {"val_crop_size": 10**9},
        {"val_crop_size": math.inf},
    ],
)
def test_impossible_options(changes: Any) -> None:
    options = vars(references_options(**changes))
    with pytest.raises(ModelError, match=r"a\.pth"):
        preparation.of_options("torchvision/resnet18", {}, options, "a.pth")


def test_padded_options_are_inexact() -> None:
    options = vars(references_options(val_resize_size=100))
    found = preparation.of_options("torchvision/resnet18", {}, options, "a.pth")
    assert found is not None
    assert found.inexact == "images scaled to 100 pixels and padded to 128"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"mean": [0.1, 0.2, 0.3], "std": [0.5], "img_size": 96, "crop_pct": 0.8},
        {"interpolation": "bilinear"},
    ],
)
def test_timms_options_go_over_its_configuration(tmp_path: Path, given: dict[str, Any]) -> None:
    timm = timm_zoo.timm_package()
    names = ("mean", "std", "img_size", "input_size", "crop_pct")
    options = {**dict.fromkeys(names), "interpolation": "", "model": "test_resnet", **given}
    network = timm.create_model("test_resnet", num_classes=3)
    file = tmp_path / "last.pth.tar"
    torch.save(
        {"arch": "test_resnet", "state_dict": network.state_dict(), "args": argparse.Namespace(**options)},
        file,
    )
    spec = update(Spec(), {"model.name": "timm/test_resnet"})
    path = workflow.import_weights(
        file, tmp_path / "m.safetensors", classes=["a", "b", "c"], spec=spec, quiet=True
    )
    config = timm.data.resolve_data_config(options, model=network)
    image = picture()
    assert_same_input(artifact.read_card(path), timm.data.create_transform(**config)(image), image)


def test_weights_of_a_package_become_an_artifact(tmp_path: Path) -> None:
    name = "efficientnet-lite2"
    if not packages.installed(LITES[name].package):
        pytest.skip(f"{LITES[name].distribution} is not installed")
    path = workflow.import_weights(
        name, tmp_path / "m.safetensors", classes=[str(k) for k in range(1000)], quiet=True
    )
    card = artifact.read_card(path)
    assert (card.architecture.name, card.weights["licence"]) == ("timm/tf_efficientnet_lite2", "Apache-2.0")
    assert len(artifact.read_state(path)) == 386
    timm = timm_zoo.timm_package()
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg("tf_efficientnet_lite2").to_dict()
    )
    image = picture()
    assert_same_input(card, timm.data.create_transform(**config)(image), image)
    with pytest.raises(SpecError, match="classes must be given"):
        workflow.import_weights(name, tmp_path / "n.safetensors", quiet=True)


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_published_file_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    """Weights of one network differ in the crop."""
    bare = "resnet50"
    if name == "torchvision":
        url = torchvision_zoo.weights_member(bare, "IMAGENET1K_V1").url
        own = torchvision_zoo.weights_member(bare, "IMAGENET1K_V1").transforms().resize_size[0] / 224
    else:
        cfg = timm_zoo.timm_package().get_pretrained_cfg("resnet50.tv_in1k")
        url, own = cfg.url, 1 / cfg.crop_pct
    for file, same in ((url.rpartition("/")[2], True), ("mine.pth", False)):
        torch.save({"fc.bias": torch.zeros(3)}, tmp_path / file)
        info = weights.describe(f"{name}/{bare}", str(tmp_path / file))
        assert info is not None
        assert info.crop_fraction is not None
        assert (info.crop_fraction == pytest.approx(1 / own, rel=0.01)) == same


@pytest.mark.parametrize(
    ("finetune", "inexact", "given", "words"),
    [
        ("full", "", {}, ""),
        ("head", "", {}, "layers that stay frozen cannot adapt"),
        ("head", "", {"mean": (0.5,), "std": (0.5,)}, ""),
        ("full", "lanczos interpolation", {}, "asks for lanczos interpolation"),
        ("full", "lanczos interpolation", {"resize": "crop"}, ""),
        ("head", "lanczos interpolation", {"resize": "crop", "mean": (0.5,), "std": (0.5,)}, ""),
    ],
)
def test_what_is_doubtful_is_warned_of(finetune: str, inexact: str, given: Any, words: str) -> None:
    asked = update(Spec(), {f"input.{name}": value for name, value in given.items()})
    resolved = update(
        asked, {"model.finetune": finetune, "input.size": 32, "input.resize": "crop", "input.mean": (0.4,)}
    )
    told = checks.doubts(asked.input, resolved, weights.WeightsInfo("a.pth", inexact=inexact))
    assert [words in doubt.text for doubt in told if doubt.serious] == ([True] if words else [])
    assert len(told) == (bool(inexact) and "resize" not in given) + ("mean" not in given)


def test_an_import_with_all_that_is_needed_says_nothing_of_guesses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(zoo.build(Architecture("tutorial-net", 10)).state_dict(), tmp_path / "a.pth")
    spec = update(Spec(), {"model.name": "tutorial-net", "input.mean": (0.5,) * 3, "input.std": (0.5,) * 3})
    names = [f"c{k}" for k in range(10)]
    workflow.import_weights(tmp_path / "a.pth", tmp_path / "m.safetensors", classes=names, spec=spec)
    said = " ".join(capfd.readouterr().err.split())
    assert said.startswith("Contract as the options say: 32x32x3")


def test_training_on_a_frozen_network_of_unknown_images_warns(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("tutorial-net", 10)).state_dict(), tmp_path / "a.pth")
    changes = {
        "model.name": "tutorial-net",
        "model.weights": str(tmp_path / "a.pth"),
        "model.finetune": "head",
    }
    changes |= {"run.dir": str(tmp_path / "run"), "data.cache_dir": str(tmp_path / "c"), "training.epochs": 1}
    workflow.train(quiet=True, **changes, **{"run.tensorboard": False, "run.report": False})
    assert any("frozen cannot adapt" in entry["text"] for entry in runs.read_warnings(tmp_path / "run"))


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    state = zoo.build(Architecture("tutorial-net", 10)).state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="several state dicts: generator, critic"):
        checkpoints.read(tmp_path / "a.pth")
    network = zoo.build(Architecture("tutorial-net", 10))
    torch.save({**prefixed(network, "student."), **prefixed(network, "teacher.")}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match="2 times"):
        weights.load(network, Architecture("tutorial-net", 10), str(tmp_path / "b.pth"))


def test_objects_in_a_refused_file_are_named(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("tutorial-net", 10)), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"tellapart\.models\.small_cnn\.TutorialNet"):
        checkpoints.read(tmp_path / "whole.pth")


# --- Folders of the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_the_hub(safe: bool, tmp_path: Path) -> None:
    timm = timm_zoo.timm_package()
    network = timm.create_model("test_vit", num_classes=3)
    config = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8, "interpolation": "bilinear"}
    timm.models._hub.save_for_hf(
        network,
        tmp_path / "hub",
        model_config={"label_names": ["ant", "bee", "cat"]},
        safe_serialization=safe,
        data_config=config,
    )
    path = workflow.import_weights(
        tmp_path / "hub", tmp_path / "m.safetensors", classes=[], spec=Spec(), quiet=True
    )
    card = artifact.read_card(path)
    assert card.classes == ("ant", "bee", "cat")
    assert card.architecture.name == "timm/test_vit"
    with pytest.raises(ModelError, match=r"give --model\.name timm/test_vit"):
        weights.describe("timm/test_resnet", str(tmp_path / "hub"))
    image = picture()
    config = timm.data.resolve_data_config(config, model=network)
    assert_same_input(card, timm.data.create_transform(**config)(image), image)


def test_other_folders_of_the_hub_are_named(tmp_path: Path) -> None:
    torch.save({"vit.x": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": {"0": "cat"}}))
    with pytest.raises(ModelError, match=r"transformers \(vit\)"):
        workflow.import_weights(tmp_path, tmp_path / "m.safetensors", classes=[], spec=Spec(), quiet=True)


def test_classes_must_come_from_somewhere(tmp_path: Path) -> None:
    torch.save(zoo.build(Architecture("timm/resnet18", 4, 3, 64)).state_dict(), tmp_path / "a.pth")
    spec = update(Spec(), {"model.name": "timm/resnet18"})
    with pytest.raises(SpecError, match="--classes"):
        workflow.import_weights(
            tmp_path / "a.pth", tmp_path / "m.safetensors", classes=[], spec=spec, quiet=True
        )


@pytest.mark.parametrize(
    "text", ["{", '{"architecture": "test_vit", "pretrained_cfg": 3}', "[1]", "[" * 10**5]
)
def test_damaged_configurations(text: str, tmp_path: Path) -> None:
    torch.save(
        zoo.build(Architecture("timm/test_vit", 4, 3, 160)).state_dict(), tmp_path / "pytorch_model.bin"
    )
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ModelError, SpecError)):
        workflow.import_weights(tmp_path, tmp_path / "m.safetensors", classes=[], spec=Spec(), quiet=True)
