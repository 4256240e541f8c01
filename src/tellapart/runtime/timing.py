"""How long calls take, measured so that the call just before does not matter. Loads no torch.

Evaluation, the comparison of exports, compression and the service's choice of batches measure with it. Knows nothing of
what is called.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]
_SETTLE = 0.1


class Stopwatch:
    """The total seconds spent inside ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(frozen=True)
class Turn:
    """The measurements of one call in one turn. ``used``: by how much the meter rose meanwhile."""

    milliseconds: list[float]
    used: float


def settle(call: Call) -> None:
    """Call for a tenth of a second, at least once, before anything is measured.

    The threads of most runtimes spin for some hundredths of a second waiting for their next call, and meanwhile take
    the processors from whatever is called next: in turns with ONNX Runtime, an image took torch 27 instead of 11 ms.
    """
    until = time.perf_counter() + _SETTLE
    call()
    while time.perf_counter() < until:
        call()


def milliseconds(
    call: Call, seconds: float = 0.0, least: int = 3, *, warm_up: int = 0, longest: float = math.inf
) -> list[float]:
    """Return the times of calls one after the other: at least ``least``, and for at least ``seconds``.

    ``warm_up``: calls before them that do not count. No call begins after ``longest`` seconds, but there is at least
    one.
    """
    for _ in range(warm_up):
        call()
    times: list[float] = []
    began = time.perf_counter()
    passed = 0.0
    while not times or (passed < longest and (len(times) < least or passed < seconds)):
        started = time.perf_counter()
        call()
        ended = time.perf_counter()
        times.append(1000 * (ended - started))
        passed = ended - began
    return times


def in_turns(
    calls: Sequence[Call],
    rounds: int,
    seconds: float,
    *,
    longest: float = math.inf,
    meter: Callable[[], float] = lambda: 0.0,
    advance: Callable[[], None] = lambda: None,
) -> list[list[Turn]]:
    """Return each call's turns: other work on the machine disturbs whatever is running, so each runs in every round.

    A turn settles, then measures for at least ``seconds``. After ``longest`` seconds no further round begins.
    ``meter`` is read before and after each measurement; ``advance`` is called after each turn.
    """
    turns: list[list[Turn]] = [[] for _ in calls]
    began = time.perf_counter()
    for _ in range(rounds):
        for place, call in enumerate(calls):
            settle(call)
            before = meter()
            times = milliseconds(call, seconds)
            turns[place].append(Turn(times, meter() - before))
            advance()
        if time.perf_counter() - began > longest:
            break
    return turns


def percentiles(times: Sequence[float], points: Sequence[int] = (50, 90, 99)) -> dict[str, float] | None:
    """Return percentiles by name, such as ``p50`` (linear between ranks); None for no times."""
    if not len(times):
        return None
    found = np.percentile(np.asarray(times, np.float64), points)
    return {f"p{point}": float(value) for point, value in zip(points, found, strict=True)}
