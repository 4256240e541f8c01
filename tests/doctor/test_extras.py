from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from tellapart import doctor, packages
from tellapart.doctor import Package, advice, extras

Make = Callable[..., Any]


def test_an_importable_package_of_a_wrong_build_is_reported(
    advice_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "prepare_torchvision", lambda: None)
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: (_ for _ in ()).throw(RuntimeError("operator torchvision::nms")),
    )
    about = extras._try_torchvision(Package("torchvision", "0.1", "", ""))
    assert about.imports is False
    assert "nms" in about.note
    assert "belongs to torch" in advice_for(packages=(about,))


def test_missing_packages_come_with_their_pip_line(report: Make) -> None:
    rows = tuple(
        extras.about_package(f"tellapart-test-{n}", f"no_such_{n}", n, f"purpose {n}", False)
        for n in ("models", "")
    )
    assert [row.version for row in rows] == [None, None]
    text = doctor.render(report(packages=rows, advice=tuple(advice.advise(report(packages=rows)))))
    assert 'For purpose models (no_such_models): pip install "tellapart[models]"' in text
    assert "pip install tellapart-test-" in text


def test_a_module_of_another_distribution_counts_as_installed() -> None:
    # PIL is installed by the distribution "pillow"; asking for another name must find it.
    about = extras.about_package("no-such-distribution", "PIL", "", "", True)
    assert about.version == packages.version("pillow")
