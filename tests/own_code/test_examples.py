"""The examples of own code run as a user would run them, and are as short as promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("own_loss", 0.5), ("own_callback", 0.1), ("own_network", 0.5)])
def test_an_example_runs_and_learns(name: str, least: float, tmp_path: Path) -> None:
    """In another folder, and leaves no file beside the run."""
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(script), "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"accuracy (0\.\d+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) >= least, done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run", "cache"}
