"""Packages that offer networks and losses by entry points, which are known by their short names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tellapart import artifact, runs


@pytest.fixture
def package(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with a network and a loss."""
    site = tmp_path / "site"
    (site / "their_package-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "their_net.py").rename(site / "their_package.py")
    with open(site / "their_package.py", "a") as stream:
        stream.write(
            "\ndef loss(logits, targets):\n    return nn.functional.cross_entropy(logits, targets, reduction='none')\n"
        )
    info = site / "their_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tellapart.models]\ntheir-net = their_package:Net\n[tellapart.losses]\ntheir-loss = their_package:loss\n"
    )
    monkeypatch.syspath_prepend(str(site))


def test_what_a_package_offers_is_known_by_its_name(
    call: Callable[..., Any], package: None, data: Path, told: Path, elsewhere: Callable[[], None]
) -> None:
    """It is listed without being imported; spec and artifact have the full name, and files from elsewhere need
    consent."""
    listed = call("models", "their")
    assert "their-net" in listed.out
    assert not told.exists()
    words = ("--training.epochs", 1, "--run.no-report", "--run.no-tensorboard", "--run.dir", "run")
    made = call("train", data, "--model.name", "their-net", "--training.loss", "their-loss", *words)
    assert made.code == 0, made.err
    assert artifact.read_card("run").architecture.name == "their_package:Net"
    assert runs.read_spec("run/spec.yaml").training.loss == "their_package:loss"
    elsewhere()
    assert "--trust their_package" in call("evaluate", "run").err
