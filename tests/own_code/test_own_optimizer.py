"""The user's own optimizers and schedules, against tellapart's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tellapart
from tellapart import artifact
from tellapart.errors import RunError, SpecError


def quick(run: Path, **training: Any) -> dict[str, Any]:
    """Return the keyword arguments of a short training."""
    return {
        "quiet": True,
        "model": {"name": "simple-cnn"},
        "training": {"epochs": 2, "batch_size": 8, "lr": 0.01, **training},
        "run": {"dir": str(run), "tensorboard": False, "report": False},
    }


def same(one: Path, other: Path) -> bool:
    """Return whether two runs have the same weights."""
    a, b = artifact.read_state(one), artifact.read_state(other)
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def straight(step: int, steps: int) -> float:
    """What linear is."""
    return 1 - step / steps


def test_an_optimizer_of_torch_by_name_is_ours(data: Path, tmp_path: Path) -> None:
    """SGD with the same values."""
    ours = tellapart.train(data, **quick(tmp_path / "a", optimizer="sgd", momentum=0.5)).run
    own = {"optimizer": "torch.optim:SGD", "optimizer_arguments": {"momentum": 0.5}}
    assert same(ours, tellapart.train(data, **quick(tmp_path / "b", **own)).run)
    made = tellapart.train(
        data,
        optimizer=lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.5),
        **quick(tmp_path / "c"),
    )
    assert same(ours, made.run)
    with pytest.raises(RunError, match="optimizer="):
        tellapart.resume(made.run, quiet=True)


def test_an_own_schedule_equals_tellaparts(data: Path, tmp_path: Path) -> None:
    """Linear, with a warm-up too, by name and as an object."""
    ours = tellapart.train(data, **quick(tmp_path / "a", schedule="linear", warmup_epochs=0.5)).run
    for number, schedule in enumerate(
        [straight, f"{__name__}:straight", lambda step, steps: 1 - step / steps]
    ):
        changes = quick(tmp_path / str(number), warmup_epochs=0.5)
        assert same(ours, tellapart.train(data, schedule=schedule, **changes).run)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"optimizer": lambda groups, lr: None}, "must return a torch.optim.Optimizer"),
        (
            {"optimizer": lambda groups, lr: torch.optim.SGD(groups[0]["params"], lr)},
            "different parameter groups",
        ),
        ({"schedule": lambda step, steps: -1.0}, "at least 0"),
        ({"schedule": lambda step, steps: math.nan}, "at least 0"),
        ({"schedule": lambda step, steps: "fast"}, "at least 0"),
    ],
)
def test_what_is_neither_is_refused(own: dict[str, Any], said: str, data: Path, tmp_path: Path) -> None:
    """Before a run folder is made."""
    with pytest.raises(SpecError, match=said):
        tellapart.train(data, **own, **quick(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
