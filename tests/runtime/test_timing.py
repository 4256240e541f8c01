"""What is timed: enough calls, and not the first ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tellapart.runtime import timing


class Clocked:
    """A backend and the clock that it is timed by: the first call takes a second, every other one ``each``."""

    def __init__(self, each: float) -> None:
        self.now, self.each, self.calls = 0.0, each, 0

    def perf_counter(self) -> float:
        return self.now

    def logits(self, images: Any) -> Any:
        self.now += self.each if self.calls else 1.0
        self.calls += 1
        return images


@pytest.mark.parametrize(("each", "count"), [(0.01, 20), (0.5, 3)])
def test_enough_calls_and_none_of_the_first(each: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = Clocked(each)
    monkeypatch.setattr(timing, "time", backend)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    timing.settle(backend, images)
    assert backend.calls == 1
    times = timing.milliseconds(backend, images, 0.195)
    assert times == pytest.approx([1000 * each] * count)
    settled = backend.calls
    timing.settle(backend, images)
    assert backend.calls - settled == max(1, round(0.1 / each))
