"""Options that do nothing are said, those that do something are not, and only where somebody set them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tellapart import recipes, workflow
from tellapart.augment import resolve
from tellapart.sections import differing
from tellapart.spec import Spec, update
from tellapart.training.ineffective import Facts, never, without_effect

FACTS = Facts(validation=True, counts=(30, 20, 10))
EPOCHS = {"training.epochs": 40}


def told(changes: dict[str, Any], facts: Facts = FACTS) -> list[str]:
    """What is said of a spec with these changes, resolved as a run resolves it."""
    start = update(Spec(), EPOCHS)
    spec = update(start, changes)
    names = differing(spec, start)
    size = spec.input.size or 32
    spec = update(spec, {"input.size": size, "augment": dataclasses.asdict(resolve(spec.augment, size))})
    return without_effect(names, spec, facts) + never(spec, facts)


NONE = dataclasses.replace(FACTS, validation=False)
CUDA = dataclasses.replace(FACTS, device="cuda")
HEAD = {"model.finetune": "head"}
# (what the user set, facts, the field that has no effect, what the reason names)
IDLE: list[tuple[dict[str, Any], Facts, str, str]] = [
    ({"training.patience": 3}, NONE, "training.patience", "no validation split"),
    ({"training.best_metric": "loss"}, NONE, "training.best_metric", "no validation split"),
    ({"training.min_delta": 0.1}, FACTS, "training.min_delta", "training.patience is off"),
    ({"training.step_epochs": 5}, FACTS, "training.step_epochs", "schedule is cosine"),
    ({"training.milestones": (3,)}, FACTS, "training.milestones", "only multi-step"),
    ({"training.plateau_patience": 5}, FACTS, "training.plateau_patience", "only plateau"),
    ({"training.gamma": 0.5}, FACTS, "training.gamma", "step or multi-step or plateau"),
    ({"training.schedule": "constant", "training.min_lr_factor": 0.1}, FACTS, "training.min_lr_factor", "constant"),
    ({"training.focal_gamma": 3.0}, FACTS, "training.focal_gamma", "only focal"),
    ({"training.effective_beta": 0.9}, FACTS, "training.effective_beta", "only effective"),
    ({"training.momentum": 0.5, "training.optimizer": "adamw"}, FACTS, "training.momentum", "optimizer is adamw"),
    ({"training.sgd_momentum": 0.5}, FACTS, "training.sgd_momentum", "only muon-sgd"),
    ({"training.nesterov": True}, FACTS, "training.nesterov", "sgd or muon"),
    ({"training.optimizer": "sgd", "training.betas": (0.8, 0.9)}, FACTS, "training.betas", "adam or adamw"),
    ({"training.early_epochs": 5}, FACTS, "training.early_epochs", "has no parameters"),
    ({"training.size_epochs": 0.5}, FACTS, "training.size_epochs", "start_size is off"),
    ({"training.prune_from": 0.5}, FACTS, "training.prune_from", "prune is off"),
    ({"training.keep_zeros": True}, FACTS, "training.keep_zeros", "no weight is zero"),
    ({"training.sync_batch_norm": True}, CUDA, "training.sync_batch_norm", "one process"),
    (
        {"training.class_weights": "inverse", "training.sampling": "oversample"},
        FACTS, "training.class_weights", "equally often",
    ),
    ({"training.class_weights": "inverse"}, Facts(True, (9, 9)), "training.class_weights", "same number"),
    (
        {"training.label_smoothing": 0.1, "distill.teacher": "t", "distill.weight": 1.0},
        FACTS, "training.label_smoothing", "only the teacher",
    ),
    ({"distill.temperature": 2.0}, FACTS, "distill.temperature", "no teacher"),
    ({"distill.teacher": "t", "distill.weight": 0.0, "distill.temperature": 2.0}, FACTS, "distill.temperature", "is 0"),
    ({"model.unfreeze": (2,)}, FACTS, "model.unfreeze", "only staged"),
    ({"model.freeze_from": 0.5}, FACTS, "model.freeze_from", "freeze_blocks is off"),
    ({**HEAD, "model.freeze_blocks": 1}, FACTS, "model.freeze_blocks", "only the head trains"),
    ({**HEAD, "model.layer_decay": 0.5}, FACTS, "model.layer_decay", "only the head trains"),
    ({"augment.preset": "none", "augment.crop_padding": 3}, FACTS, "augment.crop_padding", "only pad"),
    ({"augment.crop_scale": (0.5, 1.0)}, FACTS, "augment.crop_scale", "only resized"),
    ({"augment.preset": "none", "augment.padding_mode": "reflect"}, FACTS, "augment.padding_mode", "border"),
    ({"augment.preset": "none", "augment.hflip_mode": "alternating"}, FACTS, "augment.hflip_mode", "no image is flipped"),
    ({"augment.policy_magnitude": 5}, FACTS, "augment.policy_magnitude", "only randaugment"),
    ({"augment.hue": 0.1}, Facts(True, (3, 2), channels=1), "augment.hue", "grey"),
    ({"input.resize": "squash", "input.crop_fraction": 0.9}, FACTS, "input.crop_fraction", "only crop"),
    ({"input.views_below": 0.5}, FACTS, "input.views_below", "views is one"),
    ({"speed.feature_views": 3}, FACTS, "speed.feature_views", "no stage trains the head alone"),
    ({**HEAD, "augment.preset": "none", "speed.feature_views": 3}, FACTS, "speed.feature_views", "the same"),
    ({"speed.cuda_graphs": "on"}, FACTS, "speed.cuda_graphs", "for CUDA"),
    ({"speed.compile": "on"}, Facts(True, (3, 2), on_features=True), "speed.compile", "features"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "facts", "field", "reason"), IDLE, ids=[f"{i[2]}-{i[3][:9]}" for i in IDLE]
)
def test_an_option_without_effect_is_said_once(
    changes: dict[str, Any], facts: Facts, field: str, reason: str
) -> None:
    said = [text for text in told(changes, facts) if "no effect" in text]
    assert len(said) == 1, said
    assert said[0].startswith(field)
    assert reason in said[0]


# What does something: nothing is said.
BUSY: list[dict[str, Any]] = [
    {"training.patience": 3, "training.min_delta": 0.1, "training.best_metric": "loss"},
    {"training.schedule": "step", "training.step_epochs": 5, "training.gamma": 0.5},
    {"training.schedule": "multi-step", "training.milestones": (3, 9)},
    {"training.schedule": "plateau", "training.plateau_patience": 5, "training.min_lr_factor": 0.1},
    {"training.loss": "focal", "training.focal_gamma": 3.0, "training.label_smoothing": 0.1},
    {"training.class_weights": "effective", "training.effective_beta": 0.9},
    {"training.optimizer": "sgd", "training.momentum": 0.5, "training.nesterov": True},
    {"training.optimizer": "muon", "training.betas": (0.8, 0.9), "training.momentum": 0.5},
    {"training.optimizer": "muon-sgd", "training.sgd_momentum": 0.5},
    {"training.start_size": 16, "training.size_epochs": 0.5, "training.prune": 0.2, "training.prune_from": 0.5},
    {"distill.teacher": "t", "distill.weight": 0.5, "training.label_smoothing": 0.1, "distill.temperature": 2.0},
    {"model.finetune": "staged", "model.unfreeze": (2, 4), "model.layer_decay": 0.5},
    {"model.freeze_blocks": 1, "model.freeze_from": 0.5},
    {"augment.preset": "cifar", "augment.crop_padding": 2, "augment.padding_mode": "zeros"},
    {"augment.rotation": 10.0, "augment.preset": "none", "augment.padding_mode": "reflect"},
    {"augment.crop": "resized", "augment.crop_scale": (0.5, 1.0), "augment.hue": 0.1},
    {"augment.policy": "randaugment", "augment.policy_magnitude": 5},
    {"input.views": "mirror", "input.views_below": 0.5, "input.resize": "crop", "input.crop_fraction": 0.9},
    {"model.finetune": "head", "augment.preset": "photo", "speed.feature_views": 3, "input.size": 224},
    {"training.ema": 0.9, "training.clip_norm": 1.0, "training.weight_decay": 0.1, "model.finetune": "head"},
    {"training.sampling": "weighted", "training.warmup_epochs": 2.0},
    {"speed.cuda_graphs": "off", "speed.compile": "off"},
]  # fmt: skip


@pytest.mark.parametrize("changes", BUSY, ids=lambda changes: next(reversed(changes)))
def test_nothing_is_said_of_what_does_something(changes: dict[str, Any]) -> None:
    assert told(changes) == []


def test_what_nobody_set_is_not_told() -> None:
    for facts in (FACTS, NONE, CUDA, Facts(True, (5, 5), channels=1)):
        assert told({}, facts) == []


def test_a_resolved_spec_is_not_taken_for_what_was_asked() -> None:
    """A run's spec.yaml names the values of presets and of choices, too."""
    start = update(Spec(), EPOCHS)
    for preset in ("none", "light", "cifar", "photo", "strong"):
        augment = dataclasses.asdict(resolve(update(start.augment, {"preset": preset}), 64))
        spec = update(
            start, {"augment": augment, "input": {"size": 64, "crop_fraction": 1.0, "resize": "squash"}}
        )
        assert without_effect(differing(spec, Spec()), spec, FACTS) == []


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_ask_for_nothing_in_vain(name: str) -> None:
    spec = recipes.recipe(name)
    size = spec.input.size or 32
    resolved = update(spec, {"augment": dataclasses.asdict(resolve(spec.augment, size)), "input.size": size})
    early = spec.model.name.startswith("whitened")
    facts = dataclasses.replace(FACTS, validation=spec.data.val_fraction > 0, early=early)
    assert without_effect(differing(spec, Spec()), resolved, facts) == []
    assert never(resolved, facts) == []


# (changes, validation, what is said)
NEVER: list[tuple[dict[str, Any], bool, str]] = [
    ({"training.schedule": "step"}, True, "never drops: its first drop is after epoch 30"),
    ({"training.schedule": "step", "training.step_epochs": 10}, True, "after epoch 10"),
    ({"training.schedule": "multi-step"}, True, "names no epoch"),
    ({"training.schedule": "multi-step", "training.milestones": (10, 20)}, True, "never drops: training.milestones has"),
    ({"training.schedule": "multi-step", "training.milestones": (5, 20)}, True, "drops less often"),
    ({"training.schedule": "plateau"}, False, "no validation split"),
    ({"training.schedule": "plateau", "training.plateau_patience": 8}, True, "never drops: it waits for more than 8"),
    ({"training.schedule": "step", "training.step_epochs": 2, "training.gamma": 1.0}, True, "training.gamma is 1"),
    ({"training.patience": 9}, True, "Early stopping never happens"),
    ({"model.finetune": "staged", "model.unfreeze": (2, 12)}, True, "model.unfreeze has 12"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "validation", "text"), NEVER)
def test_what_a_run_never_comes_to_is_reported(changes: dict[str, Any], validation: bool, text: str) -> None:
    facts = dataclasses.replace(FACTS, validation=validation)
    said = told({"training.epochs": 10, **changes}, facts)
    assert len(said) == 1
    assert text in said[0]
    first = {"training.patience": 8, "training.plateau_patience": 7, "training.step_epochs": 9}
    enough = {key: first.get(key, value) for key, value in changes.items()}
    if enough != changes and "training.gamma" not in changes:
        assert told({"training.epochs": 10, **enough}, facts) == []


def test_a_run_says_it_before_its_folder_is_made(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], make_folder: Any
) -> None:
    data = make_folder(tmp_path / "data", count=4, splits=("train",), size=8)
    spec = {
        "training": {"epochs": 1, "patience": 2, "schedule": "plateau", "momentum": 0.5},
        "data.val_fraction": 0.0,
    }
    own = {"model.name": "simple-cnn", "run.dir": str(tmp_path / "run"), "run.report": False}
    workflow.train(data, **spec, **own)
    said = capsys.readouterr().err
    assert "training.patience has no effect: there is no validation split." in " ".join(said.split())
    assert "schedule plateau follows the validation loss" in " ".join(said.split())
    assert "training.momentum has no effect: training.optimizer is adamw" in " ".join(said.split())
