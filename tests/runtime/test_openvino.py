from __future__ import annotations

import subprocess
import sys

import pytest

STACKS = """
import ctypes, faulthandler, sys
import numpy as np, openvino
from openvino import opset13 as op
from tellapart.runtime.openvino import _Stack, compiled, settings

def stack():
    found = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.start, found.flags, found.size

faulthandler.enable(open(sys.argv[1], "w"))  # brings a signal stack
before = stack()
start = op.parameter([-1, 64], np.float32)
model = openvino.Model([op.relu(start)], [start])
bare = openvino.Core().compile_model(model, "CPU") if sys.argv[2] == "bare" else compiled(openvino, model, settings(1))
print("kept" if stack() == before else "taken")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks of Linux")
def test_compiling_leaves_the_signal_stack(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("openvino")
    log = tmp_path_factory.mktemp("stack") / "log"
    command = [sys.executable, "-c", STACKS, str(log), "guarded"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr
