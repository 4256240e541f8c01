"""What becomes of an export whose file cannot be compared: its runtime dies, raises, or there is no file at all."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tellapart import workflow
from tellapart.errors import ExportError
from tellapart.export import formats
from tellapart.runtime.environments import LITERT, ending

Call = Callable[..., Any]

# Runs in every Python that is started from the test, before anything else.
AT_START = """
import os, signal
from tellapart.runtime.onnx import OnnxBackend

def logits(self, images):
    {fault}

OnnxBackend.logits = logits
"""
# Takes the place of LiteRT's program: converts, answers with the card, and dies at the first batch.
DYING = """
import os, shutil, signal, struct, sys

if sys.argv[2] == "convert":
    shutil.copy(sys.argv[4], sys.argv[5])
else:
    card = open(sys.argv[3], "rb").read()
    sys.stdout.buffer.write(struct.pack("<I", len(card)) + card + struct.pack("<I", 1))
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read(16)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def found(answer: Any, folder: Path) -> tuple[Any, Any]:
    """Return both formats' entries of parity.json, which are what --json printed."""
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.err
    printed, kept = json.loads(answer.out), json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert printed["parity"] == kept["formats"]
    assert printed["passed"] is False
    first, second = kept["formats"]
    return first, second


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process that ran it was ended by SIGSEGV"),
        ("raise ValueError('no more\\nsecond line')", "ValueError: no more"),
    ],
)
def test_a_runtime_that_dies_rejects_its_file_and_no_other(
    fault: str, reason: str, trained: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start/sitecustomize.py").write_text(AT_START.format(fault=fault))
    monkeypatch.syspath_prepend(tmp_path / "start")
    answer = call(
        "export", trained.run, "--to", "onnx", "state-dict", "--out", "out", "--images", 9, "--json"
    )
    bad, good = found(answer, tmp_path / "out")
    assert (bad["passed"], bad["written"], good["passed"], good["n"]) == (False, True, True, 9)
    assert bad["reasons"] == [f"the file could not be compared: {reason}"]
    assert "Conv" in bad["facts"]["operators"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.onnx.rejected", "model.pth", "parity.html", "parity.json"]
    page = (tmp_path / "out/parity.html").read_text(encoding="utf-8")
    assert reason in page
    assert "rejected" in page


def test_a_worker_that_is_killed(
    trained: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "env/bin/python"
    python.parent.mkdir(parents=True)
    (tmp_path / "dying.py").write_text(DYING)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "dying.py"} "$@"\n')
    python.chmod(0o755)
    words = ("--to", "litert", "state-dict", "--env", tmp_path / "env", "--images", 9)
    bad, good = found(call("export", trained.run, *words, "--out", "out", "--json"), tmp_path / "out")
    assert bad["reasons"] == [
        "the file could not be compared: RuntimeError: its process was ended by SIGKILL"
    ]
    assert good["passed"]
    assert (tmp_path / "out/model.tflite.rejected").is_file()
    shown = call("export", trained.run, *words, "--out", "again")
    assert shown.code == 1
    assert "model.tflite: REJECTED (litert, fp32)" in shown.out


def test_a_format_that_cannot_be_written_keeps_no_other_back(
    trained: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> Any:
        raise ExportError("to order")

    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(formats.FORMATS["onnx"], write=write))
    monkeypatch.delenv(LITERT.variable, raising=False)
    words = ("export", trained.run, "--images", 9, "--json")
    bad, good = found(call(*words, "--to", "onnx", "state-dict", "--out", "out"), tmp_path / "out")
    assert (bad["reasons"], bad["written"], good["passed"]) == (["to order"], False, True)
    bad, good = found(call(*words, "--to", "litert", "state-dict", "--out", "two"), tmp_path / "two")
    assert LITERT.command() in bad["reasons"][0]
    assert good["passed"]
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == ["model.pth", "parity.html", "parity.json"]
    alone = call(*words, "--to", "litert", "--out", "three")  # nothing else: it is what the user has to mend
    assert (alone.code, alone.out) == (2, "")
    with pytest.raises(ExportError, match="to order"):
        workflow.export(trained.run, ["onnx"], tmp_path / "four", images=9)


def test_what_is_done_is_on_the_disk_when_the_rest_is_cut_off(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(formats.FORMATS["onnx"], write=write))
    with pytest.raises(KeyboardInterrupt):
        workflow.export(trained.run, ["state-dict", "onnx"], tmp_path / "out", images=9)
    (kept,) = json.loads((tmp_path / "out/parity.json").read_text(encoding="utf-8"))["formats"]
    assert (kept["format"], kept["passed"]) == ("state-dict", True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.pth",
        "parity.html",
        "parity.json",
    ]


def test_how_a_process_ended() -> None:
    assert [ending(code) for code in (3, -11, -200)] == [
        "ended with 3",
        "was ended by SIGSEGV",
        "was ended by signal 200",
    ]
