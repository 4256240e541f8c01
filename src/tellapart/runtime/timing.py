"""How long a backend takes for a batch, measured so that another one just before it does not matter. Loads no torch."""

from __future__ import annotations

import time

from tellapart.contract import Pixels
from tellapart.runtime.base import Backend

_SETTLE = 0.1


def settle(backend: Backend, images_NHWC: Pixels) -> None:
    """Call for a tenth of a second, at least once, before anything is measured.

    The threads of most runtimes wait busily for their next call for some hundredths of a second, and meanwhile take the
    processors from whatever is called next: an image took 27 instead of 11 ms in torch, in turns with ONNX Runtime.
    """
    until = time.perf_counter() + _SETTLE
    backend.logits(images_NHWC)
    while time.perf_counter() < until:
        backend.logits(images_NHWC)


def milliseconds(backend: Backend, images_NHWC: Pixels, seconds: float, least: int = 3) -> list[float]:
    """Return the times of calls one after the other, at least ``least`` and for at least ``seconds``."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < until:
        started = time.perf_counter()
        backend.logits(images_NHWC)
        times.append(1000 * (time.perf_counter() - started))
    return times
