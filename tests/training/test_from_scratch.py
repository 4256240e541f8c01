"""What small pictures without weights are trained with, and that it trains whatever the set is like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import recipes
from tellapart.data.samples import Samples
from tellapart.data.stores.images import Look
from tellapart.spec import Spec, flatten, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.loop import Trainer
from tellapart.training.resolution import DataFacts, Resolution, by_size, from_scratch
from tellapart.workflow import finding_lr

COLOUR = Look(longest=32, shortest=32, grey=False, same=True)
RATES = (
    "lr",
    "bias_lr",
    "head_lr",
    "momentum",
    "sgd_momentum",
    "nesterov",
    "weight_decay",
    "optimizer",
    "schedule",
)


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small colour pictures would be given to a pretrained network where one is installed."""
    monkeypatch.setattr(by_size, "lite_installed", lambda: False)


def _chosen(
    images: int = 500, seen: Look = COLOUR, facts: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    data = DataFacts(seen, images, **(facts or {}))
    return flatten(Resolution(update(Spec(), changes)).by_data(data).spec)


def test_at_the_recipes_number_of_images_the_settings_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_scratch, "_fast_half", lambda device: True)
    chosen, recipe = _chosen(50_000), flatten(recipes.recipe("cifar10-fast"))
    own = (*RATES, "epochs", "batch_size", "early_epochs", "label_smoothing", "accumulate", "size_epochs")
    names = [f"training.{name}" for name in own] + [
        "model.name",
        *(f"augment.{name}" for name in ("crop", "crop_padding", "padding_mode", "hflip", "hflip_mode")),
    ]
    assert {name: chosen[name] for name in names} == {name: recipe[name] for name in names}


def test_fewer_images_have_smaller_batches_more_epochs_and_rates_in_proportion() -> None:
    few, more = _chosen(500), _chosen(5000)
    for one in (few, more):
        assert one["training.lr"] == 0.24
        part = one["training.batch_size"] / 2000
        assert one["training.bias_lr"] == pytest.approx(106 * part)
        assert one["training.head_lr"] == pytest.approx(0.0204 * part)
        assert one["training.weight_decay"] == pytest.approx(0.0167 * part)
        assert one["training.early_epochs"] == round(0.3 * one["training.epochs"])
    assert 32 <= few["training.batch_size"] < more["training.batch_size"] < 2000
    assert few["training.epochs"] > more["training.epochs"] > 10


def test_every_number_of_images_has_a_batch_and_some_steps() -> None:
    for images in (1, 2, 9, 30, 999, 20_000, 10**6):
        batch, epochs = from_scratch.batch_for(images), from_scratch.epochs_for(images)
        assert 16 <= batch <= 2000
        assert 10 <= epochs <= 60
        assert images < 200 or images / batch > 5


@pytest.mark.parametrize(("fast", "images", "name"), [
    (True, 20_000, "whitened-cnn"), (True, 19_999, "whitened-cnn-small"), (False, 50_000, "whitened-cnn-small"),
])  # fmt: skip
def test_the_wide_network_is_for_many_images_and_fast_devices(
    monkeypatch: pytest.MonkeyPatch, fast: bool, images: int, name: str
) -> None:
    monkeypatch.setattr(from_scratch, "_fast_half", lambda device: fast)
    chosen = _chosen(images)
    assert chosen["model.name"] == name
    assert (chosen["training.batch_size"] > 512) == (name == "whitened-cnn")


@pytest.mark.parametrize(
    "changes",
    [{f"training.{name}": value} for name, value in (
        ("optimizer", "sgd"), ("optimizer", "adamw"), ("lr", 0.1), ("bias_lr", 0.1), ("head_lr", 0.1),
        ("weight_decay", 0.05), ("momentum", 0.8), ("nesterov", True), ("betas", (0.8, 0.9)), ("loss", "focal"),
    )] + [{"input.size": 128}, {"input.channels": 4}],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_with_its_rates_keeps_the_other_network(changes: dict[str, Any]) -> None:
    chosen = _chosen(**changes)
    assert chosen["model.name"] == "fast-cnn"
    assert chosen["training.optimizer"] == changes.get("training.optimizer", "adamw")
    assert chosen["training.lr"] == changes.get("training.lr", 0.001)
    assert (chosen["training.epochs"], chosen["training.start_size"], chosen["training.label_smoothing"]) == (
        10,
        0,
        0,
    )
    assert chosen["augment.crop_padding"] >= 4


@pytest.mark.parametrize("facts", [{"several": True}, {"grades": ("a", "b")}], ids=str)
def test_labels_of_another_kind_keep_the_other_network(facts: dict[str, Any]) -> None:
    assert _chosen(facts=facts)["model.name"] == "fast-cnn"


@pytest.mark.parametrize("name", ["whitened-cnn", "whitened-cnn-small", "fast-cnn", "simple-cnn"])
def test_a_network_that_was_named_is_trained_as_before(name: str) -> None:
    chosen = _chosen(**{"model.name": name})
    assert (chosen["training.optimizer"], chosen["training.lr"]) == ("adamw", 0.001)
    assert (chosen["training.epochs"], chosen["training.batch_size"]) == (10, 15)


def test_what_is_given_besides_stays_and_the_rest_follows_it() -> None:
    given = {
        "training.batch_size": 100, "training.epochs": 20, "training.schedule": "one-cycle", "training.start_size": 28,
        "training.label_smoothing": 0.1, "augment.crop_padding": 5, "augment.hflip_mode": "random",
    }  # fmt: skip
    chosen = _chosen(**given)
    assert {name: chosen[name] for name in given} == given
    assert chosen["training.bias_lr"] == pytest.approx(5.3)
    assert chosen["training.early_epochs"] == 6
    preset = _chosen(**{"augment.preset": "tutorial"})
    assert (preset["augment.crop_padding"], preset["augment.hflip_mode"]) == (4, "random")


def test_a_value_that_was_given_stays_although_it_is_the_default() -> None:
    given = frozenset({"training.label_smoothing", "training.start_size"})
    found = Resolution(Spec(), given=given).by_data(DataFacts(COLOUR, 500)).spec
    assert (found.training.label_smoothing, found.training.start_size) == (0.0, 0)
    rate = Resolution(Spec(), given=frozenset({"training.weight_decay"})).by_data(DataFacts(COLOUR, 500)).spec
    assert rate.model.name == "fast-cnn"


def test_the_search_for_a_rate_trains_what_a_run_with_that_rate_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_folder: Any
) -> None:
    seen: list[Resolution] = []

    class Enough(Exception):  # noqa: N818
        pass

    def prepare(wanted: Resolution, samples: Samples, console: Any) -> None:
        seen.append(wanted)
        raise Enough

    monkeypatch.setattr(finding_lr, "prepare", prepare)
    with pytest.raises(Enough):
        finding_lr.find_lr(make_folder(tmp_path / "data"), quiet=True, **{"training.epochs": 2})
    assert {"training.lr", "training.epochs"} <= (seen[0].given or frozenset())
    assert seen[0].by_data(DataFacts(COLOUR, 500)).spec.model.name == "fast-cnn"


def test_digits_are_not_mirrored_by_it() -> None:
    chosen = _chosen(facts={"name": "svhn"})
    assert chosen["model.name"] == "whitened-cnn-small"
    assert chosen["augment.hflip"] == 0


@pytest.mark.parametrize(
    ("size", "start"), [(16, 0), (23, 0), (24, 16), (28, 16), (32, 20), (96, 60), ((28, 40), 16)]
)
def test_pictures_grow_where_there_is_room(size: Any, start: int) -> None:
    assert from_scratch.start_size(size) == start


def _samples(classes: int, each: int, shape: tuple[int, ...], least: int = 0) -> Samples:
    """A class is a colour of a quarter of the picture; ``least``: images of the last class, if not as many."""
    rng = np.random.default_rng(0)
    means = rng.uniform(40, 215, (classes, *(side if place == 2 else 2 for place, side in enumerate(shape))))
    pixels, labels, splits = [], [], []
    for split, number in (("train", each), ("val", 4)):
        for label in range(classes):
            for _ in range(least if least and split == "train" and label == classes - 1 else number):
                image = means[label].repeat(-(-shape[0] // 2), 0).repeat(-(-shape[1] // 2), 1)
                image = image[: shape[0], : shape[1]] + rng.normal(0, 25, shape)
                pixels.append(np.clip(image, 0, 255).astype(np.uint8))
                labels.append(label)
                splits.append(split)
    return Samples(
        paths=np.array([f"{place}" for place in range(len(labels))], dtype=object),
        labels=np.array(labels, np.int64),
        splits=np.array(splits, dtype=object),
        classes=tuple(f"class {label}" for label in range(classes)),
        name="pictures",
        pixels=np.stack(pixels),
        keys=np.arange(len(labels)),
    )


CASES: dict[str, tuple[Samples, dict[str, Any]]] = {
    "two classes, thirty images": (_samples(2, 15, (16, 16, 3)), {"training.epochs": 12}),
    "an image of each of two classes": (_samples(2, 1, (16, 16, 3)), {"training.epochs": 12}),
    "grey": (_samples(2, 10, (16, 16)), {"training.epochs": 12}),
    "fifty classes": (_samples(50, 3, (16, 16, 3)), {"training.epochs": 12}),
    "higher than wide": (_samples(3, 10, (40, 28, 3)), {"training.epochs": 8}),
    "higher than wide, as it is": (_samples(3, 10, (40, 28, 3)), {"training.epochs": 8, "input.size": (40, 28)}),
    "imbalance of ten, with class weights": (
        _samples(3, 20, (16, 16, 3), least=2), {"training.epochs": 12, "training.class_weights": "inverse"},
    ),
    "four pixels": (_samples(2, 10, (4, 4, 3)), {"training.epochs": 20}),
    "ninety-six pixels": (_samples(2, 10, (96, 96, 3)), {"training.epochs": 5}),
    "in one epoch": (_samples(2, 15, (32, 32, 3)), {"training.epochs": 1}),
}  # fmt: skip


class _Silent:
    """A reporter that keeps what was logged."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logged.append(values)

    def __getattr__(self, name: str) -> Any:
        return lambda *a, **k: None


@pytest.mark.parametrize("case", CASES)
def test_any_small_set_trains(case: str, tmp_path: Path) -> None:
    samples, changes = CASES[case]
    own = {"data.cache_dir": str(tmp_path), "training.device": "cpu", "augment.hflip": 0.0}
    prepared = setup.prepare(update(Spec(), {**own, **changes}), samples, lambda count: None)
    assert prepared.spec.model.name == from_scratch.SMALL
    model, processes = setup.build_model(prepared)[0], Processes(0, 1, torch.device("cpu"))
    plan = setup.plan(setup.complete(prepared, model, processes), model, processes)
    validate, plan.validate = plan.validate, None
    assert validate is not None
    recorder = _Silent()
    Trainer(plan, processes, tmp_path / "checkpoint", recorder).run()  # type: ignore[arg-type]
    assert all(np.isfinite(value) for values in recorder.logged for value in values.values())
    assert all(torch.isfinite(parameter).all() for parameter in plan.model.parameters())
    accuracy = validate(plan.model)["accuracy"]
    assert accuracy > (0.0 if prepared.spec.training.epochs == 1 else 0.9)
