"""The time that a command has had, and durations as people write them: 90s, 10m, 1h30m.

A limit of time counts from the moment at which the command started, which its first line notes. Knows nothing of what
the time is used for.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from tellapart.errors import SpecError

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_WORDS = {
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "m": ("m", "min", "mins", "minute", "minutes"),
    "s": ("s", "sec", "secs", "second", "seconds"),
}
_LETTER = {word: unit for unit, words in _WORDS.items() for word in words}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.ASCII)
_START_SECONDS = 15.0  # that starting Python takes at most

_began: contextvars.ContextVar[float | None] = contextvars.ContextVar("began", default=None)


def now() -> float:
    """Return the seconds of a clock that only runs forward."""
    return time.monotonic()


@contextlib.contextmanager
def since(moment: float) -> Iterator[None]:
    """While entered, the command counts as started at ``moment`` (of `now`)."""
    token = _began.set(moment)
    try:
        yield
    finally:
        _began.reset(token)


def process_began() -> float:
    """Return when this process started, as far as the system tells; else now.

    Linux tells. A process that is much older than the program's first lines was something else before (``exec``).
    """
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - float(fields[19]) / os.sysconf("SC_CLK_TCK")
        if 0 <= age <= _START_SECONDS:
            return now() - age
    return now()


def began() -> float:
    """Return when the command started; without one, now."""
    moment = _began.get()
    return now() if moment is None else moment


def seconds(text: str, name: str = "The duration") -> float:
    """Return the seconds of 90, 90s, 10m, 1.5h or 1h30m. Raises SpecError, which names ``name``."""
    wrong = SpecError(
        f"{name} is {text!r}; it must be a duration such as 90s, 10m or 1h30m (a number alone is seconds)."
    )
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    rest = text.strip().casefold()
    total, order = 0.0, "hms"
    parts = _PART.findall(rest)
    if not parts or "".join(amount + unit for amount, unit in parts) != "".join(rest.split()):
        raise wrong
    for amount, word in parts:
        unit = _LETTER.get(word)
        if unit is None or unit not in order:
            raise wrong
        order = order[order.index(unit) + 1 :]
        total += float(amount) * _UNITS[unit]
    return total


def words(total: float) -> str:
    """Return a duration that somebody chose: 90 s, 10 min, 1 min 35 s or 1 h 30 min; none of it is lost."""
    if total <= 90 or total != round(total):
        return f"{total:g} s"
    minutes, rest = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count:,} {unit}" for count, unit in parts if count)
