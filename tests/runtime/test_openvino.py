from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tellapart.runtime.openvino import Requests, compiled, settings

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


FIRST_ARRAYS = """
import os, sys, threading
import numpy as np, openvino
from openvino import opset13 as op
from tellapart.runtime.openvino import compiled, settings

start = op.parameter([-1, 4], np.float32)
network = compiled(openvino, openvino.Model([op.relu(start)], [start]), settings(1))
together = threading.Barrier(16)
sys.setswitchinterval(1e-6)

def ask():
    request = network.create_infer_request()
    together.wait()
    request.infer([np.ones((1, 4), np.float32)], share_outputs=False)

threads = [threading.Thread(target=ask) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_threads_whose_first_arrays_these_are() -> None:
    """Without the array that `compiled` makes first, each of these processes hangs in six of ten runs."""
    pytest.importorskip("openvino")
    processes = [subprocess.Popen([sys.executable, "-c", FIRST_ARRAYS]) for _ in range(4)]
    try:
        assert [process.wait(60) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_threads_share_requests_and_no_values() -> None:
    openvino = pytest.importorskip("openvino")
    op = openvino.opset13
    start = op.parameter([-1, 8], np.float32)
    model = openvino.Model([op.multiply(start, op.constant(np.float32(2)))], [start])
    made = []

    class Counted:
        network = compiled(openvino, model, settings(1))

        def create_infer_request(self) -> object:
            made.append(self.network.create_infer_request())
            return made[-1]

    requests = Requests(openvino, Counted())

    def ask(number: int) -> np.ndarray:
        return requests(np.full((1 + number % 3, 8), number, np.float32))[0]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(200)))
    for number, answer in enumerate(answers):
        assert np.array_equal(answer, np.full((1 + number % 3, 8), 2 * number))
    assert 1 <= len(made) <= 4
