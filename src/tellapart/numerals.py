"""Figures as people read them: the one place that decides digits, signs and units.

A terminal, a page, a card and a log write the same figure the same way. Files for programs (JSON, CSV) hold the
numbers themselves and do not come here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from tellapart.errors import SpecError

NONE = "–"  # shown if there is no figure
_MOST, _LEAST = 1e12, 1e-6  # beyond these a number has an exponent
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION = re.compile(
    rf"(?:{_NUMBER} *(?:h|hours?|hrs?))? *(?:{_NUMBER} *(?:m|min|mins|minutes?))? *"
    rf"(?:{_NUMBER} *(?:s|secs?|seconds?))?"
)


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as 98.05 %. Two digits are for what was measured: of 10,000 images each one shows."""
    return NONE if share is None or not math.isfinite(share) else f"{fixed(100 * share, digits)} %"


def probability(share: float | None) -> str:
    """Return how sure an answer is, as 98.1 %."""
    return percent(share, 1)


def interval(low: float | None, high: float | None) -> str:
    """Return two shares as 96.63 to 98.90 %."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f"{fixed(100 * low, 2)} to {percent(high)}"


def points(difference: float, digits: int = 2) -> str:
    """Return a difference of two shares in percentage points, as +0.25, -1.10 or 0.00."""
    return signed(100 * difference, digits)


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; what is rounded to zero has none."""
    text = fixed(value, digits)
    return f"+{text}" if value > 0 and float(text.replace(",", "")) else text


def fixed(value: float, digits: int) -> str:
    """Return a number with this many digits after the point; zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text if text.strip("-0.,") else text.lstrip("-")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with this many significant digits, or all those before the point; 1,923 is not 1.92e+03."""
    if value is None or not math.isfinite(value):
        return NONE
    if not value:
        return "0"
    mantissa = f"{value:.{digits - 1}e}"
    if not _LEAST <= abs(float(mantissa)) < _MOST:
        return mantissa
    return f"{value:,.{max(0, digits - 1 - int(mantissa.partition('e')[2]))}f}"


def loss(value: float | None, digits: int = 4) -> str:
    """Return a loss as 0.0651; a large one with fewer digits after the point."""
    if value is None or not math.isfinite(value):
        return NONE
    return fixed(value, digits) if abs(value) < 1000 else number(value, digits)


def milliseconds(value: float | None) -> str:
    """Return a latency as 0.042 ms, 12.3 ms or 1,923 ms."""
    return NONE if value is None or not math.isfinite(value) else f"{number(value)} ms"


def megabytes(count: float) -> str:
    """Return a number of bytes as 2.74 MB."""
    return f"{fixed(count / 1e6, 2) if count >= 10_000 else number(count / 1e6, 2)} MB"


def rate(value: float) -> str:
    """Return how many in a second, as 0.8, 9.5 or 14,402."""
    return f"{value:,.0f}" if value >= 10 else fixed(value, 1)


def duration(seconds: float | None) -> str:
    """Return how long something took: 0.42 s, 12.3 s, 2 min 05 s or 1 h 02 min."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if round(seconds, 1) < 60:
        return f"{fixed(seconds, 2 if round(seconds, 2) < 10 else 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def parse_duration(text: str | float) -> float:
    """Return the seconds that ``90``, ``90s``, ``10m``, ``1h30m`` or ``1.5 h`` mean; a bare number means seconds.

    Also what `duration` writes: ``2 min 05 s``. Raises SpecError for anything else, and for no time at all.
    """
    typed = str(text).strip().lower()
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text)
    elif re.fullmatch(_NUMBER, typed):
        seconds = float(typed)
    else:
        found = _DURATION.fullmatch(typed)
        parts = [float(part or 0) for part in found.groups()] if found else []
        seconds = sum(part * unit for part, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))
    if not 0 < seconds < math.inf:
        raise SpecError(f"{text!r} is not a duration: give seconds (90), or 90s, 10m, 1h30m.")
    return seconds


def option(value: object) -> str:
    """Return an option's value: yes for True, a dash for what is empty, sequences with commas."""
    if value is None or value in ("", [], ()):
        return NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(option(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return setting(value) if isinstance(value, float) else str(value)


def clock(seconds: float | None) -> str:
    """Return a time that runs, or one of a column, as 0:07, 12:34 or 1:02:03."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def elapsed(seconds: float | None) -> str:
    """Return a duration for a narrow column: 0.42 s, 12 s, 12:34 or 1:02:03."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if round(seconds) < 100:
        return f"{fixed(seconds, 2 if round(seconds, 2) < 10 else 0)} s"
    return clock(seconds)


def setting(value: float) -> str:
    """Return an option's number as a user would type it: 0.1, 1e-05, 2000000."""
    value += 0.0  # a zero has no sign
    if abs(value) < 1e15 and value == int(value):
        return f"{value:.0f}"
    exact = repr(value)
    return exact if len(exact) <= 12 else f"{value:.6g}"


def metric(value: float | None) -> str:
    """Return the figure of a metric that is not ours, whose unit nobody knows: 0.81, or not defined."""
    return "not defined" if value is None or not math.isfinite(value) else setting(round(value, 6))


def _unbroken(spell: Callable[..., str]) -> Callable[..., str]:
    """Return the function for a page, whose lines must not break between a figure and its unit."""

    def spelt(*values: float | None, **more: int) -> str:
        return spell(*values, **more).replace(" ", "\N{NO-BREAK SPACE}")

    return spelt


FILTERS: dict[str, Callable[..., str]] = {
    one.__name__: _unbroken(one)
    for one in (percent, probability, points, number, milliseconds, megabytes, fixed, metric)
}
"""Of Jinja templates."""
