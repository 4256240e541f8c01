"""Durations as people write them, and since when a command runs."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart import clock
from tellapart.errors import SpecError
from tellapart.spec import Spec, update

WORDS = {
    "90s": 90, "10m": 600, "1h30m": 5400, "10": 10, "1.5h": 5400, "2 min": 120, "1 h 30 min": 5400, "0": 0,
    "1h 5s": 3605, ".5m": 30, "10M": 600, "1e2": 100, "3 Minutes": 180,
}  # fmt: skip


@pytest.mark.parametrize("text", WORDS)
def test_durations_are_read(text: str) -> None:
    assert clock.seconds(text) == WORDS[text]
    assert Spec(time_limit=text).time_limit == WORDS[text]  # type: ignore[arg-type]
    assert update(Spec(), {"time-limit": text}).time_limit == WORDS[text]


@pytest.mark.parametrize(
    "text", ["", "x", "10x", "m", "30m1h", "1h30", "10 m 5", "inf", "nan", "10m10m", "1:30", "1,5h", "١٠m"]
)
def test_what_is_no_duration_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(SpecError, match=r"time_limit is .*; it must be a duration such as 90s, 10m or 1h30m"):
        Spec(time_limit=text)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, "-5", -0.001, math.inf])
def test_a_limit_is_not_negative(value: object) -> None:
    with pytest.raises(SpecError, match="time_limit is"):
        Spec(time_limit=value)  # type: ignore[arg-type]


@given(st.integers(1, 10**6))
def test_what_is_shown_is_read_as_the_same(seconds: int) -> None:
    assert clock.seconds(clock.words(seconds).replace(",", "")) == seconds


def test_a_command_began_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: 50.0)
    assert clock.began() == 50
    with clock.since(40.0):
        assert clock.began() == 40
    assert clock.began() == 50


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell")
def test_a_process_knows_since_when_it_runs() -> None:
    """Not since the moment of asking: half a second after its first line, at least that much is gone."""
    program = "import time; from tellapart import clock; time.sleep(0.5); print(clock.now() - clock.process_began())"
    before = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert age == 0 or 0.5 <= age <= time.monotonic() - before + 0.1
