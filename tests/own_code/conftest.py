"""Modules of a user's own, which only a person's word lets be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tellapart import references

NETWORK = """
from pathlib import Path
from torch import nn
Path({told!r}).write_text("imported")
def build(num_classes, channels, width=4):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(16 * width, num_classes),
    )
class Net(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.body = build(num_classes, channels, 4)
    def forward(self, x):
        return self.body(x)
def wrong(num_classes, channels):
    return build(num_classes + 1, channels)
def raises(num_classes, channels):
    raise ValueError("no such luck")
def text(num_classes, channels):
    return "a network"
number = 3
"""


@pytest.fixture(autouse=True)
def _nobody_consented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins as a new process of another person would."""
    monkeypatch.setattr(references, "_allowed", set())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "their-data"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("their_"):
            del sys.modules[name]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Return a function after which nobody has consented to anything, as on another machine."""

    def move() -> None:
        monkeypatch.setattr(references, "_allowed", set())
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other-data"))
        for name in [name for name in sys.modules if name.startswith("their_")]:
            del sys.modules[name]

    return move


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """The file that the module writes when it is imported."""
    return tmp_path / "told"


@pytest.fixture
def module(tmp_path: Path, told: Path) -> str:
    """Write a module with networks into the working folder of `call`; return its name."""
    (tmp_path / "their_net.py").write_text(NETWORK.format(told=str(told)))
    return "their_net"


@pytest.fixture
def data(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A small data set with all three splits."""
    return make_folder(tmp_path / "data", splits=("train", "val", "test"), count=8)
