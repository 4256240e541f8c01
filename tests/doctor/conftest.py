"""A machine about which there is nothing to say, and what is said of one with changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tellapart.doctor import GIB, Cpu, Disk, Memory, Report, Torch, advice, extras


def make_report(**changes: object) -> Report:
    """A machine about which there is nothing to say, with changes."""
    plain = Report(
        tellapart="0.2.0",
        python="3.12.0 (/usr/bin/python)",
        system="Linux",
        torch=Torch(version="2.11.0", threads=8, interop_threads=4, onednn=True),
        gpus=(),
        nvidia="",
        cpu=Cpu("A processor", "x86_64", 8, 8, 4, None, {"AVX2": True, "AMX": False}, None),
        memory=Memory(32 * GIB, 20 * GIB),
        disk=Disk("/home/me/.cache/tellapart", 500 * GIB, 100 * GIB),
        packages=(),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def advice_of(**changes: object) -> str:
    return " | ".join(advice.advise(make_report(**changes)))


@pytest.fixture(scope="session")
def report() -> Callable[..., Any]:
    return make_report


@pytest.fixture(scope="session")
def advice_for() -> Callable[..., Any]:
    return advice_of


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "PACKAGES", ())
