"""What is timed: enough calls, and not the first ones."""

from __future__ import annotations

from typing import Any

import pytest

from tellapart.runtime import timing


class Clocked:
    """A call and the clock that it is timed by: the first call takes a second, every other one ``each``."""

    def __init__(self, each: float) -> None:
        self.now, self.each, self.calls = 0.0, each, 0

    def perf_counter(self) -> float:
        return self.now

    def __call__(self) -> None:
        self.now += self.each if self.calls else 1.0
        self.calls += 1


@pytest.mark.parametrize(("each", "count"), [(0.01, 20), (0.5, 3)])
def test_enough_calls_and_none_of_the_first(each: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call: Any = Clocked(each)
    monkeypatch.setattr(timing, "time", call)
    timing.settle(call)
    assert call.calls == 1
    times = timing.milliseconds(call, 0.195)
    assert times == pytest.approx([1000 * each] * count)
    settled = call.calls
    timing.settle(call)
    assert call.calls - settled == max(1, round(0.1 / each))


def test_a_warm_up_does_not_count_and_a_slow_call_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    call: Any = Clocked(0.25)
    monkeypatch.setattr(timing, "time", call)
    assert timing.milliseconds(call, least=4, warm_up=2) == [250.0] * 4
    assert call.calls == 6
    assert timing.milliseconds(call, least=4, longest=0.4) == [250.0] * 2
    assert timing.milliseconds(call, least=4, longest=0.1) == [250.0]


def test_calls_take_turns_and_each_has_its_own_use(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = Clocked(0.0)
    monkeypatch.setattr(timing, "time", clock)
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    calls = [lambda: call("a", 0.125), lambda: call("b", 0.375)]
    done: list[int] = []
    first, second = timing.in_turns(
        calls, 2, 0.25, meter=lambda: 5 * clock.now, advance=lambda: done.append(1)
    )
    assert "".join(order) == "aaaabbbb" * 2
    assert [turn.milliseconds for turn in first] == [pytest.approx([125.0] * 3)] * 2
    assert [turn.used for turn in second] == pytest.approx([5 * 1.125] * 2)
    assert len(done) == 4
    assert len(timing.in_turns(calls, 9, 0.25, longest=3.0)[0]) == 2


def test_percentiles_are_those_of_the_definition() -> None:
    assert timing.percentiles([1, 2, 3, 4, 10]) == {
        "p50": 3.0,
        "p90": pytest.approx(7.6),
        "p99": pytest.approx(9.76),
    }
    assert timing.percentiles(range(101), (5, 95)) == {"p5": 5.0, "p95": 95.0}
    assert timing.percentiles([]) is None


def test_a_stopwatch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = Clocked(0.5)
    monkeypatch.setattr(timing, "time", clock)
    watch = timing.Stopwatch()
    for _ in range(3):
        with watch:
            clock()
        clock.now += 100
    assert watch.seconds == 2.0
