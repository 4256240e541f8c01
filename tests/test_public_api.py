"""What ``import tellapart`` promises: few names, each with documentation, and nothing loaded before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tellapart
from tellapart import errors, spec, workflow

HEAVY = ("torch", "numpy", "sklearn", "scipy", "PIL", "torchvision", "timm", "rich")


def test_names() -> None:
    assert set(tellapart.__all__) <= set(dir(tellapart))
    for name in tellapart.__all__:
        assert getattr(tellapart, name).__doc__, name
    assert tellapart.Spec is spec.Spec
    assert tellapart.UserError is errors.UserError
    assert tellapart.train is workflow.train
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tellapart.trian  # noqa: B018


def test_each_command_is_one_call() -> None:
    """Every command of the program has its function, in ``tellapart`` or ``tellapart.workflow``."""
    from tellapart.cli import COMMANDS

    names = {
        "predict": "load",
        "cache": "cache_list",
        "import": "import_weights",
        "find-lr": "find_lr",
        "doctor": None,
        "serve": None,  # tellapart.serve.serve, because workflow loads torch
    }
    for command in COMMANDS:
        name = names.get(command, command)
        if name:
            assert callable(getattr(workflow, name)), command
            assert name in workflow.__all__


def test_every_public_function_is_documented() -> None:
    for name in workflow.__all__:
        member: Any = getattr(workflow, name)
        assert member.__doc__, name
        if inspect.isfunction(member):
            assert inspect.signature(member).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize(
    "words",
    [
        "import tellapart; dir(tellapart); tellapart.Spec; tellapart.UserError",
        "import tellapart.recipes, tellapart.packages",
    ],
)
def test_importing_loads_nothing_heavy(words: str) -> None:
    program = f"{words}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_train_load_predict(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The README's three lines; quiet means that nothing is printed."""
    data = make_folder(tmp_path / "photos", classes=("ant", "蜂"), count=20)
    result = tellapart.train(
        data,
        quiet=True,
        model={"name": "simple-cnn"},
        training={"epochs": 3, "batch_size": 8},
        **{"augment.preset": "none", "run.dir": str(tmp_path / "run"), "run.tensorboard": False},
    )
    answers = tellapart.load(result.run).predict(sorted((data / "蜂").glob("*.png")), top=2)
    assert capfd.readouterr() == ("", "")
    assert result.run == tmp_path / "run"
    assert result.artifact == tmp_path / "run" / "model.safetensors"
    assert result.split == "test"
    assert not result.interrupted
    assert result.metrics["n"] == 8
    assert len(answers) == 20
    for answer in answers:
        assert set(answer.labels) == {"ant", "蜂"}
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert tellapart.load(result.artifact).classes == ("ant", "蜂")
    model = tellapart.open_model(result.artifact)
    assert model.classes == ("ant", "蜂")
    evaluation = tellapart.evaluate(result.run, quiet=True)
    assert evaluation.accuracy == result.metrics["accuracy"]
    assert Path(tellapart.report(result.run)).read_text(encoding="utf-8").count("蜂") > 0
