"""Choices of a spec: in other letters, and by the names that other programs have for them."""

from __future__ import annotations

import re

import pytest

from tellapart import sections
from tellapart.cli import main
from tellapart.errors import SpecError
from tellapart.sections import choices
from tellapart.spec import Spec, update
from tellapart.training.methods.multilabel import MultiLabel
from tellapart.training.task import Classification

# (field, what somebody who knows torch, torchvision, scikit-learn or Lightning types, ours)
NAMES = [
    ("training.schedule", "CosineAnnealingLR", "cosine"),
    ("training.schedule", "torch.optim.lr_scheduler.CosineAnnealingLR", "cosine"),
    ("training.schedule", "ReduceLROnPlateau", "plateau"),
    ("training.schedule", "OneCycleLR", "one-cycle"),
    ("training.schedule", "StepLR", "step"),
    ("training.schedule", "MultiStepLR", "multi-step"),
    ("training.schedule", "ConstantLR", "constant"),
    ("training.schedule", "none", "constant"),
    ("training.schedule", "LinearLR", "linear"),
    ("training.schedule", "Cosine", "cosine"),
    ("training.schedule", "one_cycle", "one-cycle"),
    ("training.optimizer", "AdamW", "adamw"),
    ("training.optimizer", "SGD", "sgd"),
    ("training.optimizer", "torch.optim.RMSprop", "rmsprop"),
    ("training.loss", "CrossEntropyLoss", "cross-entropy"),
    ("training.loss", "nn.CrossEntropyLoss", "cross-entropy"),
    ("training.loss", "FocalLoss", "focal"),
    ("training.class_weights", "balanced", "inverse"),
    ("training.sampling", "WeightedRandomSampler", "weighted"),
    ("training.precision", "bfloat16", "bf16"),
    ("training.precision", "float32", "fp32"),
    ("training.precision", "16-mixed", "fp16"),
    ("training.quantize", "INT8", "int8"),
    ("augment.preset", "Photo", "photo"),
    ("augment.crop", "RandomResizedCrop", "resized"),
    ("augment.policy", "TrivialAugmentWide", "trivialaugment"),
    ("augment.policy", "RandAugment", "randaugment"),
    ("augment.padding_mode", "reflection", "reflect"),
    ("input.resize", "CenterCrop", "crop"),
    ("input.interpolation", "InterpolationMode.BICUBIC", "bicubic"),
    ("model.finetune", "linear-probe", "head"),
    ("data.format", "ImageFolder", "folder"),
    ("data.format", "COCO", "coco"),
    ("speed.compile", "True", "on"),
]


@pytest.mark.parametrize(("field", "given", "ours"), NAMES)
def test_names_from_elsewhere_find_ours(field: str, given: str, ours: str) -> None:
    with pytest.raises(SpecError, match=rf"Did you mean '{re.escape(ours)}'\?"):
        update(Spec(), {field: given})


@pytest.mark.parametrize(("field", "given", "ours"), NAMES[::6])
def test_the_command_line_says_it_too(
    field: str, given: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([f"--{field.replace('_', '-')}", given], [f"--{field}={given}"]):
        assert main(["train", "nowhere", *words]) == 2
        assert f"Did you mean '{ours}'?" in capsys.readouterr().err


def test_every_choice_is_known_to_the_command_line_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    known = choices(Spec())
    assert {"training.schedule", "augment.crop", "speed.compile", "data.format"} <= known.keys()
    assert "training.device" not in known
    assert known["augment.crop"] == ("none", "pad", "resized", "None")
    for field, words in known.items():
        for word in words:
            if word.upper() in words or word == "None":
                continue
            assert main(["train", "nowhere", f"--{field}", word.upper()]) == 2
            assert f"Did you mean '{word}'?" in capsys.readouterr().err, (field, word)


def test_what_is_known_from_elsewhere_is_a_choice_of_ours() -> None:
    ours = {word for words in choices(Spec()).values() for word in words}
    assert set(sections._ELSEWHERE.values()) <= ours | set(Classification.score_names) | set(
        MultiLabel.score_names
    )
    assert all(name == name.casefold() and not set(name) & set("-_ ") for name in sections._ELSEWHERE)
