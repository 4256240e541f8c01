"""What doctor names exists: commands, options and their values, extras and what they install."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tellapart.doctor
from tellapart import cli
from tellapart.doctor import extras
from tellapart.spec import Spec, flatten, update

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(tellapart.doctor.__file__).parent.glob("*.py"))
FOREIGN = {"--gpus", "--memory", "--nproc-per-node", "--index-url"}  # docker's, torchrun's, pip's


def sentences() -> Iterator[str]:
    """Every string of the package, f-strings with ``…`` for what they fill in."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXT = "\n".join(sentences())
OPTIONS = sorted(set(re.findall(r"(--[a-z][\w.-]*[a-z])(?: ([\w:]+))?", TEXT)))


def test_something_is_found() -> None:
    """The patterns below see what they are for."""
    names = {name for name, _ in OPTIONS}
    assert {"--model.finetune", "--training.precision", "--data.cache-dir", "--training.threads"} <= names
    assert "tellapart train" in TEXT


@pytest.mark.parametrize(("option", "value"), OPTIONS, ids=" ".join)
def test_options(option: str, value: str) -> None:
    if option in FOREIGN:
        return
    name = option.removeprefix("--").replace("-", "_")
    assert name in flatten(Spec())
    if name in ("training.precision", "training.device", "model.finetune"):
        assert value == "" or update(Spec(), {name: value.replace(":N", ":0")})


def test_commands() -> None:
    named = set(re.findall(r"(?:-m |^|: )tellapart ([a-z][\w-]*)", TEXT, re.M))
    assert "train" in named
    assert named <= set(cli.COMMANDS)
    assert importlib.util.find_spec("tellapart.__main__")  # python -m tellapart, torchrun -m tellapart


def test_extras_install_what_they_are_named_for() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]

    def distributions(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in known[extra]:
            inner = re.fullmatch(r"tellapart\[(.+)\]", requirement)
            if inner:
                found.update(*(distributions(name) for name in inner[1].split(",")))
            else:
                found.add(re.split(r"[\[<>=!~; ]", requirement)[0])
        return found

    for distribution, _, extra, _ in extras.PACKAGES:
        assert distribution in distributions(extra), (distribution, extra)


def test_modules_are_those_of_their_distributions() -> None:
    """What is installed here and named wrongly would be told as missing."""
    for distribution, module, _, _ in extras.PACKAGES:
        about = extras.about_package(distribution, module, "", "", quick=True)
        assert (about.version is not None) == (importlib.util.find_spec(module) is not None), module
