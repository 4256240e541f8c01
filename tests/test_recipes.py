"""Recipes: each is a spec whose own documentation gives the command that it stands for."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest
import tyro

from tellapart import recipes, workflow
from tellapart.cli import COMMANDS, Train
from tellapart.errors import SpecError
from tellapart.models import zoo
from tellapart.spec import Spec
from tellapart.typed import defaults


def _parse(words: list[str]) -> Spec:
    """The spec of ``tellapart train …``, as the command line reads it."""
    args = tyro.cli(Train, args=words, default=defaults(Train, words))
    return workflow.make_spec(args.data_source, spec=args.spec)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_command_in_the_documentation_is_the_recipe(name: str) -> None:
    text = recipes.RECIPES[name].__doc__ or ""
    commands = re.findall(r"^\s*`*(tellapart .*?)`*$", text, re.M)
    assert commands, f"{name} does not say its command"
    for command in commands:
        words = shlex.split(command, comments=True)
        assert words[1] == "train"
        assert words[1] in COMMANDS
        assert f"--recipe {name}" in command
        spec = _parse(words[2:])
        given = recipes.recipe(name)
        assert dataclasses.replace(spec, data=given.data) == given
        assert words[2] in (given.data.source, "photos/")


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_name_models_that_exist(name: str) -> None:
    model = recipes.recipe(name).model.name
    assert zoo.resolve(model) == model


@pytest.mark.parametrize(("name", "way"), [("transfer", "head"), ("staged", "staged"), ("finetune", "full")])
def test_each_way_of_fine_tuning_has_a_recipe(name: str, way: str) -> None:
    """What trains more than a head is augmented."""
    spec = recipes.recipe(name)
    assert spec.model.finetune == way
    assert (spec.augment.preset == "none") == (way == "head")


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"'tutrial'.*'tutorial'.*Valid: tutorial, "):
        recipes.recipe("tutrial")


def test_the_tutorials_own_values() -> None:
    """What PyTorch's "Training a Classifier" does, read off its page."""
    spec = recipes.recipe("tutorial")
    assert (spec.training.epochs, spec.training.batch_size, spec.training.optimizer) == (2, 4, "sgd")
    assert (spec.training.lr, spec.training.momentum, spec.training.schedule) == (0.001, 0.9, "constant")
    assert spec.input.mean == spec.input.std == (0.5, 0.5, 0.5)
    assert (spec.model.name, spec.augment.preset, spec.data.val_fraction) == ("tutorial-net", "none", 0)


def test_flags_go_over_a_recipe() -> None:
    spec = _parse(["digits", "--recipe=tutorial", "--training.epochs", "9"])
    assert (spec.data.source, spec.training.epochs, spec.training.batch_size) == ("digits", 9, 4)
    spec = workflow.make_spec("digits", "tutorial", training={"epochs": 9})
    assert (spec.data.source, spec.training.epochs, spec.training.batch_size) == ("digits", 9, 4)
