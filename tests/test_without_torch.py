"""Commands where torch is not installed: they say what to install, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from tellapart.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [["evaluate", "model.onnx", "data"], ["train", "data"], ["report", "run"]])
def test_what_to_install_is_reported(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    (tmp_path / "data").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _HIDDEN, *words], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "error: this command needs torch, which is not installed; type: pip install torch\n"
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model.onnx"]
