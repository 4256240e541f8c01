"""Every write, flush, rename and new file of a command fails once; what lies there is nothing, the old or the new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("faulty.py")


def _faults(job: str, root: Path, kind: str, start: int, step: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), job, str(root), kind, str(start), str(step)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(found: list[dict[str, Any]], least: int) -> None:
    *faults, last = found
    assert last["points"] >= least
    for one in faults:
        place = f"{one['kind']} at {one['at']} ({one['what']})"
        assert not one["wrong"], f"{place}: {one['wrong']}"
        assert not one["left"], f"{place} left {one['left']}"
        assert one["end"] in ("told", "killed", "done"), f"{place}: {one['text']}"


@pytest.mark.parametrize(("kind", "start"), [("full", 37), ("kill", 61)])
def test_a_run_of_which_a_write_fails_continues_to_the_same_end(
    kind: str, start: int, tmp_path: Path
) -> None:
    _check(_faults("train", tmp_path, kind, start, 65), 150)


@pytest.mark.parametrize(
    ("job", "kind", "start", "step", "least"),
    [
        ("train", "disk", 20, 31, 150),
        ("train", "kill", 5, 31, 150),
        ("evaluate", "full", 1, 4, 15),
        ("evaluate", "kill", 2, 4, 15),
        ("export", "full", 0, 6, 10),
        ("export", "kill", 3, 6, 10),
        ("compress", "full", 3, 53, 100),
    ],
)
def test_the_same_of_every_command(
    job: str, kind: str, start: int, step: int, least: int, tmp_path: Path
) -> None:
    _check(_faults(job, tmp_path, kind, start, step), least)
