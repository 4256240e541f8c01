"""Figures as people read them: digits, signs, units; the same figure is written the same way everywhere."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

import tellapart
from tellapart import numerals
from tellapart.errors import SpecError

RANDOM = random.Random(0)
VALUES = [
    *(10.0**k for k in range(-7, 13)),
    *(sign * RANDOM.uniform(1, 10) * 10 ** RANDOM.randint(-9, 13) for sign in (1, -1) for _ in range(300)),
    0.0, -0.0, -1e-9, 0.9995, 9.995, 99.95, 999.5, 0.005, -0.005,
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1900, "1,900 ms"), (1923.4, "1,923 ms"), (12345.6, "12,346 ms"), (999.6, "1,000 ms"), (99.96, "100 ms"),
        (12.34, "12.3 ms"), (9.996, "10.0 ms"), (1.9, "1.90 ms"), (0.0424, "0.0424 ms"), (0, "0 ms"),
        (None, "–"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_milliseconds_have_three_digits_and_no_exponent(value, text):
    assert numerals.milliseconds(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.98053, "98.05 %"), (1, "100.00 %"), (0, "0.00 %"), (-1e-9, "0.00 %"), (None, "–"), (math.nan, "–")],
)
def test_what_was_measured_has_two_digits(share, text):
    assert numerals.percent(share) == text
    if share is not None and math.isfinite(share):
        assert numerals.interval(share, share) == f"{text.removesuffix(' %')} to {text}"


def test_two_digits_tell_ten_thousand_images_apart():
    assert len({numerals.percent(right / 10_000) for right in range(10_001)}) == 10_001


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (0.0025, "+0.25"),
        (-0.011, "-1.10"),
        (-0.00004, "0.00"),
        (0.00004, "0.00"),
        (0, "0.00"),
        (-0.0, "0.00"),
    ],
)
def test_points_that_are_rounded_to_zero_have_no_sign(difference, text):
    assert numerals.points(difference) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00001, "0.00 s"), (0.423, "0.42 s"), (9.996, "10.0 s"), (12.34, "12.3 s"), (59.94, "59.9 s"),
        (59.96, "1 min 00 s"), (125, "2 min 05 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"),
        (7195, "2 h 00 min"), (360000, "100 h 00 min"), (None, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert numerals.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "running", "column"),
    [(0.42, "0:00", "0.42 s"), (9.996, "0:10", "10 s"), (99.6, "1:40", "1:40"), (3723, "1:02:03", "1:02:03")],
)
def test_clocks(seconds, running, column):
    assert numerals.clock(seconds) == running
    assert numerals.elapsed(seconds) == column


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (0.1 + 0.2, "0.3"), (4 / 3, "1.33333"), (1e-05, "1e-05"), (2e6, "2000000"), (3.0, "3"), (-0.0, "0"), (0.1234567, "0.1234567")],
)  # fmt: skip
def test_settings_are_as_typed(value, text):
    assert numerals.setting(value) == text
    assert float(text) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_a_number_keeps_its_digits(digits):
    for value in VALUES:
        text = numerals.number(value, digits)
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=0)
        if 1e-5 < abs(value) < 1e11:
            assert "e" not in text


@pytest.mark.parametrize("digits", [0, 1, 2, 4])
def test_no_zero_has_a_sign(digits):
    for value in VALUES:
        for text in (numerals.fixed(value, digits), numerals.signed(value, digits)):
            assert float(text.replace(",", "")) == pytest.approx(round(value, digits), abs=1e-12)
            assert re.search("[1-9]", text) or text[0] not in "+-"


def test_a_page_gets_figures_that_stay_on_one_line():
    assert numerals.FILTERS["percent"](0.98053) == "98.05\N{NO-BREAK SPACE}%"
    assert numerals.FILTERS["milliseconds"](1900.0) == "1,900\N{NO-BREAK SPACE}ms"


def test_no_other_module_writes_percentages_or_signed_points():
    """A figure that goes round this module is soon written in another way elsewhere."""
    found = []
    for path in sorted(Path(tellapart.__file__).parent.rglob("*")):
        if path.suffix not in (".py", ".j2") or path.name == "numerals.py":
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if re.search(
                r":[<>^]?\d*\+?(\.\d+)?%[}\"']|:\+\.\d+f|%\+\.\d+f|\{100 \* [^{}]*:[^{}]*\.\d", line
            ):
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), (".5 min", 30), (" 1H 05 s ", 3605),
        ("2 hours 3 minutes 4 seconds", 7384), (90, 90), (0.25, 0.25), (1e-5, 1e-5),
    ],
)  # fmt: skip
def test_durations_as_people_type_them(text, seconds):
    assert numerals.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [0.42, 12.3, 59, 61, 125, 3599, 3600, 3725, 86_400])
def test_a_written_duration_can_be_typed(seconds):
    unit = 60 if seconds >= 3600 else 1 if seconds >= 60 else 0.1
    assert numerals.parse_duration(numerals.duration(seconds)) == pytest.approx(seconds, abs=unit / 2)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0s", "-5", "10x", "30m1h", "1h1h", "1h30", "h", "nan", "inf", "1e3", "1,5h", "1:30", "１０m", "9" * 400,
     None, True, math.nan, math.inf, -1, 0],
)  # fmt: skip
def test_what_is_not_a_duration_is_refused(text):
    with pytest.raises(SpecError, match="is not a duration: give seconds"):
        numerals.parse_duration(text)
