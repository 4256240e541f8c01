"""docs/api.md says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import tellapart

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(maker: ModuleType) -> None:
    assert (DOCS / "api.md").read_text(encoding="utf-8") == maker.page(), "run: python docs/make_api.py"


def test_the_page_has_every_public_name(maker: ModuleType) -> None:
    listed = {name for _, names in maker.GROUPS.values() for name in names}
    assert {f"tellapart.{name}" for name in tellapart.__all__} <= listed
    for name in listed:
        assert maker.documentation(maker.find(name)), name
