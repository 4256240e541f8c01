"""Optional packages: found without being imported, and missed with the name of the extra to install."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import tellapart
from tellapart import packages
from tellapart.errors import MissingPackageError

SOURCE = Path(tellapart.__file__).parent
PROJECT = SOURCE.parent.parent / "pyproject.toml"


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(
        MissingPackageError, match=r"Counting sheep needs .*no_such_package.*tellapart\[all\]"
    ):
        packages.require("no_such_package.part", "all", "Counting sheep")
    assert not packages.installed("no_such_package")


def test_extras_that_errors_name_exist() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    named = {
        extra
        for path in SOURCE.rglob("*.py")
        for extra in re.findall(r"\brequire\(\s*\"[\w.]+\",\s*\"(\w+)\"", path.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= set(project["optional-dependencies"])


def test_versions() -> None:
    assert packages.version("numpy") == __import__("numpy").__version__
    assert packages.version("no-such-package") is None
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    assert tellapart.__version__ == project["version"]


def test_torchvision_works_beside_this_torch() -> None:
    """Models build and transforms run, also where its compiled operators cannot be loaded."""
    if not packages.installed("torchvision"):
        pytest.skip("torchvision is not installed")
    models = packages.require("torchvision.models", "models", "a test")
    assert models is sys.modules["torchvision.models"]
    packages.prepare_torchvision()  # a second time changes nothing
    import torch
    from torchvision.transforms import v2

    network = models.resnet18(weights=None, num_classes=3).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert v2.Resize(8)(torch.zeros(3, 16, 16)).shape == (3, 8, 8)


def test_without_torchvision_nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare: Callable[[], None] = packages.prepare_torchvision.__wrapped__
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    prepare()
    assert not packages.installed("torchvision")


def test_operators_are_declared_where_the_compiled_ones_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Fragment:
        def __init__(self, name: str, kind: str) -> None:
            self.name, self.kind, self.schemas = name, kind, list[str]()

        def define(self, schema: str) -> None:
            self.schemas.append(schema)

    def refuse(path: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    kept: list[Fragment] = []
    monkeypatch.setattr(packages, "_kept_alive", kept)
    monkeypatch.setattr(torch.ops, "load_library", refuse)
    monkeypatch.setattr(torch.library, "Library", Fragment)
    packages.prepare_torchvision.__wrapped__()
    if packages.installed("torchvision"):
        assert [(part.name, part.kind) for part in kept] == [("torchvision", "FRAGMENT")]
        assert {schema.partition("(")[0] for schema in kept[0].schemas} == {"nms", "qnms"}
