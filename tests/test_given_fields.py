"""Which fields of a spec were given, so that no rule chooses them, also where they have the default's value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tellapart.spec import Spec, TrainingSpec, flatten
from tellapart.training.resolution import Resolution
from tellapart.workflow.asked import Asked, Telling


def _asked(recipe: str | None = None, spec: Any = None, **changes: Any) -> Asked:
    return Asked.of(None, (None, None, None), (recipe, spec), changes, {}, False, Telling())


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"weight_decay": 0.0}},
        {"training.weight-decay": 0.0},
        {"training": TrainingSpec()},
    ],
    ids=["mapping", "dotted", "section"],
)
def test_a_value_that_is_the_default_counts_as_given(changes: dict[str, Any]) -> None:
    asked = _asked(**changes)
    assert "training.weight_decay" in (asked.given or ())
    assert "training.weight_decay" not in asked.ours  # no warning is about it
    assert "augment.hflip" not in (asked.given or ())
    assert "seed" not in (asked.given or ())


def test_a_file_gives_the_fields_that_it_names(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("training: {momentum: 0.9}\nseed: 0\n", encoding="utf-8")
    assert _asked(spec=file).given == {"training.momentum", "seed"}


def test_a_recipe_gives_everything() -> None:
    assert _asked("transfer").given == flatten(Spec()).keys()


def test_of_a_spec_what_differs_is_given() -> None:
    spec = Spec(training=TrainingSpec(momentum=0.8))
    assert _asked(spec=spec).given == {"training.momentum"}
    resolution = Resolution(spec)
    assert not resolution.leaves("training.momentum")
    assert resolution.leaves("training.weight_decay")
