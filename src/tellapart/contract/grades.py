"""Class names that are grades: the numbers that they say, and what each grade counts in a mean.

Standard library only. Knows nothing of where names come from, nor of words (see `tellapart.data.sources.grades`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BARE = re.compile(r"[+-]?\d+(?:\.\d+)?")
_AROUND = re.compile(r"(\D*?)(\d+(?:\.\d+)?)(\D*)")
_LEADING = re.compile(r"(\d+)[\s_.:)-]+(\D.*)", re.DOTALL)
_TRAILING = re.compile(r"(.*\D)[\s_.:(-]+(\d+)\)?", re.DOTALL)
_ROMAN = re.compile(r"(?:(.*)[\s_.:-])?([IVX]+)", re.IGNORECASE | re.DOTALL)
_DIGITS = ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def numbers(names: Sequence[str]) -> list[float] | None:
    """Return the number that each name says, None where they do not all say one in the same way.

    The ways: the name is a number (``-1``, ``0.5``); a number among the same words (``grade_10``, ``Stage 2``), then
    without a sign; a number before words of its own (``0_none``, ``1_mild``), or after them (``mild (1)``); a Roman
    numeral, alone or after the same words (``stage III``).
    """
    for read in (_bare, _around, _leading, _trailing, _roman):
        found = read(names)
        if found is not None:
            return found
    return None


def values(names: Sequence[str]) -> list[float]:
    """Return what each of the grades, lowest first, counts in a mean: the number in its name, else 0, 1, 2, …."""
    found = numbers(names)
    return found if found is not None else [float(place) for place in range(len(names))]


def _same(texts: set[str]) -> bool:
    return len({re.sub(r"[\s_-]+", " ", text).casefold() for text in texts}) == 1


def _bare(names: Sequence[str]) -> list[float] | None:
    return [float(name) for name in names] if all(_BARE.fullmatch(name) for name in names) else None


def _around(names: Sequence[str]) -> list[float] | None:
    found = [match for name in names if (match := _AROUND.fullmatch(name))]
    alike = len(found) == len(names) and _same({one[1] for one in found}) and _same({one[3] for one in found})
    return [float(one[2]) for one in found] if alike else None


def _leading(names: Sequence[str]) -> list[float] | None:
    found = [match for name in names if (match := _LEADING.fullmatch(name))]
    return [float(one[1]) for one in found] if len(found) == len(names) else None


def _trailing(names: Sequence[str]) -> list[float] | None:
    found = [match for name in names if (match := _TRAILING.fullmatch(name))]
    return [float(one[2]) for one in found] if len(found) == len(names) else None


def _roman(names: Sequence[str]) -> list[float] | None:
    found = [match for name in names if (match := _ROMAN.fullmatch(name))]
    if len(found) < len(names) or not _same({one[1] or "" for one in found}):
        return None
    read = [_of_roman(one[2].upper()) for one in found]
    known = [value for value in read if value]
    return known if len(known) == len(read) else None


def _of_roman(text: str) -> float:
    """Return the value of a Roman numeral up to 39, 0 where it is none."""
    return next((float(value) for value in range(1, 40) if _roman_text(value) == text), 0.0)


def _roman_text(value: int) -> str:
    text = ""
    for worth, letters in _DIGITS:
        text += letters * (value // worth)
        value %= worth
    return text
