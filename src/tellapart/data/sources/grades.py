"""The order of classes that are grades: as given, or as their names express it beyond doubt.

Nothing is guessed: if names express no order, or two, the error shows them and how to give one. Knows nothing of
losses.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence

from tellapart.contract import grades
from tellapart.data.sources.listing import clean_label, some
from tellapart.errors import DataError, SpecError, did_you_mean

AUTO = ("auto",)
_SHOWN = 24
_RANGE = re.compile(r"(\D*?)(?:(\d+)\s*(?:-|–|_|to)\s*(\d+)|[<≤]\s*(\d+)|[>≥]\s*(\d+)|(\d+)\s*\+)(\D*)")
_LETTER = re.compile(r"(?:(.*)[\s_.:-])?([A-Z])", re.IGNORECASE | re.DOTALL)

COUNTING: tuple[tuple[str, ...], ...] = (
    ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)
"""Words that are numbers, of which none may be missing in between."""
SCALES: tuple[tuple[str, ...], ...] = (
    (
        "none no non normal healthy negative absent clean intact undamaged",
        "trace minimal questionable doubtful",
        "mild slight light minor",
        "moderate medium",
        "severe serious heavy major",
        "proliferative proliferate extreme critical destroyed",
    ),
    ("very-low lowest", "low", "medium middle mid moderate average normal", "high", "very-high highest"),
    (
        "very-poor very-bad terrible awful worst",
        "poor bad",
        "fair acceptable mediocre average ok okay medium",
        "good",
        "very-good",
        "excellent great best perfect",
    ),
    (
        "extra-small tiny xs",
        "small s little",
        "medium m mid",
        "large l big",
        "extra-large huge xl",
        "xxl",
    ),
    ("never", "rarely seldom", "sometimes occasionally", "often usually frequently", "always"),
    ("unripe underripe raw green", "semi-ripe half-ripe", "ripe", "overripe", "rotten spoiled"),
    ("baby infant", "child kid", "teen teenager adolescent", "young-adult", "adult", "senior elderly old"),
    *COUNTING,
    ("light", "medium", "dark"),
    ("cold", "cool", "warm", "hot"),
    ("slow", "medium", "fast"),
    ("easy", "medium", "hard", "very-hard"),
    ("无 正常 健康", "微量 轻微", "轻度 轻", "中度 中", "重度 重 严重", "极重度 极重"),
    ("很低 极低", "低", "中 中等", "高", "很高 极高"),
    ("很差 极差", "差", "一般 中 中等 可", "良 良好 好", "优 优秀 很好"),
    ("小", "中", "大"),
)
"""Words that are grades, lowest first, those of one grade in one text; a hyphen stands for a space."""


def arranged(
    classes: Sequence[str], wanted: Sequence[str], numbered: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Return the classes, the lowest grade first, and what says so.

    ``wanted``: their names in that order, or `AUTO`. ``numbered``: the names in the order of the numbers that the
    source gives them, () where it gives none; the order of the alphabet, which programs number by, says nothing.
    Raises SpecError, and DataError where names do not match or where no order, or more than one, can be read.
    """
    if tuple(wanted) != AUTO:
        return _given(classes, wanted), "as data.order says"
    found: dict[tuple[str, ...], str] = {}
    for order, why in _read(classes):
        found.setdefault(order, why)
    if set(numbered) == set(classes) and list(numbered) != sorted(numbered):
        found.setdefault(tuple(numbered), "by the numbers that the source gives them")
    if len(found) == 1:
        return next(iter(found.items()))
    give = f"Give it, the lowest grade first: --data.order {_typed(sorted(classes))}, in the right order."
    if not found:
        raise DataError(
            f"Grades need an order, and the names of these classes do not say one: {some(sorted(classes), _SHOWN)}. "
            f"{give}"
        )
    orders = "; ".join(f"{some(order, _SHOWN)} ({why})" for order, why in found.items())
    raise DataError(f"The classes have more than one order: {orders}. {give}")


def _given(classes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    order = tuple(clean_label(name) for name in wanted)
    twice = sorted({name for name in order if order.count(name) > 1})
    if twice:
        raise SpecError(f"data.order names {some(twice)} more than once.")
    unknown = [name for name in order if name not in classes]
    lacking = [name for name in classes if name not in order]
    if not unknown and not lacking:
        return order
    wrong = []
    if unknown:
        hint = did_you_mean(unknown[0], lacking) if lacking else ""
        wrong.append(f"it has {some(unknown)}, which no image has as its class. {hint}".strip())
    if lacking:
        wrong.append(f"it lacks {some(lacking)}.")
    raise DataError(
        f"data.order does not name the classes: {' '.join(wrong).rstrip('.')}. The classes are: "
        f"{some(classes, _SHOWN)}. Give each of them once, the lowest grade first."
    )


def _read(classes: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each order that names say, and what says so. Raises DataError where numbers have a gap."""
    numbers = grades.numbers(classes)
    letters = _by_letters(classes)
    if letters:  # which C and D, or I and V, could be numerals too
        yield letters, "by their letters"
    elif numbers is not None:
        yield _by_numbers(classes, numbers), "by the numbers in their names"
    if ranges := _by_ranges(classes):
        yield ranges, "by the ranges in their names"
    for scale in SCALES:
        if words := _by_words(classes, scale):
            yield words, "by the words in their names"


def _by_numbers(classes: Sequence[str], numbers: Sequence[float]) -> tuple[str, ...]:
    """Return the classes by their numbers, which must be equally spaced. Raises DataError."""
    pairs = sorted(zip(numbers, classes, strict=True))
    order = tuple(name for _, name in pairs)
    steps = [upper[0] - lower[0] for lower, upper in itertools.pairwise(pairs)]
    if any(step == 0 for step in steps):
        place = steps.index(0.0)
        same = (pairs[place][1], pairs[place + 1][1])
        raise DataError(
            f"Two classes have one grade: {some(same)}. Rename one of them in the data, or give the order: "
            f"--data.order {_typed(order)}."
        )
    if all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps):
        return order
    integers = all(float(number).is_integer() for number in numbers)
    between = range(int(pairs[0][0]), int(pairs[-1][0])) if integers else range(0)
    missing = [str(number) for number in between[:10_000] if number not in numbers]
    what = (
        f"{some(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        if missing
        else "a grade may be missing"
    )
    raise DataError(f"The grades are not equally spaced, so {what}: {some(order, _SHOWN)}. {_whole(order)}")


def _whole(order: Sequence[str]) -> str:
    return f"If these are all the grades that there are, say so: --data.order {_typed(order)}."


def _by_letters(classes: Sequence[str]) -> tuple[str, ...]:
    """Return single letters from A on, without a gap, alone or after the same word; else ()."""
    found = [match for name in classes if (match := _LETTER.fullmatch(name))]
    if len(found) < len(classes) or len({(one[1] or "").casefold() for one in found}) > 1:
        return ()
    pairs = sorted((one[2].upper(), one[0]) for one in found)
    wanted = [chr(ord("A") + place) for place in range(len(pairs))]
    return tuple(name for _, name in pairs) if [letter for letter, _ in pairs] == wanted else ()


def _by_ranges(classes: Sequence[str]) -> tuple[str, ...]:
    """Return ranges of numbers (``0-9``, ``10-19``, ``<5``, ``60+``) that do not overlap, in order; else ()."""
    found = [match for name in classes if (match := _RANGE.fullmatch(name))]
    if len(found) < len(classes):
        return ()
    ends = []
    for one in found:
        low, high, below, above, open_ = one.groups()[1:6]
        first = -math.inf if below else float(low or above or open_)
        ends.append((first, float(high or below) if high or below else math.inf, one[0]))
    ends.sort()
    apart = all(one[0] < one[1] <= two[0] for one, two in itertools.pairwise(ends))
    return tuple(name for _, _, name in ends) if apart and ends[-1][0] < ends[-1][1] else ()


def _by_words(classes: Sequence[str], scale: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in a scale's order, where each begins or ends with one of its words; else ()."""
    words = {word.replace("-", " "): place for place, group in enumerate(scale) for word in group.split()}
    places: dict[int, str] = {}
    for name in classes:
        text = re.sub(r"[\s_.-]+", " ", name).strip().casefold()
        ends = {place for place in _ends(text, words) if place is not None}
        if len(ends) != 1 or ends <= places.keys():
            return ()
        places[ends.pop()] = name
    order = tuple(places[place] for place in sorted(places))
    missing = [scale[place] for place in range(min(places), max(places)) if place not in places]
    if scale in COUNTING and missing:
        raise DataError(
            f"Between the grades {some(order, _SHOWN)}, {some(missing)} is missing. {_whole(order)}"
        )
    return order


def _ends(text: str, words: dict[str, int]) -> tuple[int | None, int | None]:
    """Return the places of the longest words that a text begins and ends with."""
    longest = sorted(words, key=len, reverse=True)
    first = next((words[word] for word in longest if f"{text} ".startswith(f"{word} ")), None)
    return first, next((words[word] for word in longest if f" {text}".endswith(f" {word}")), None)


def _typed(names: Sequence[str]) -> str:
    typed = [f'"{name}"' if re.search(r"[^\w.+-]", name) else name for name in names]
    return " ".join(typed[:_SHOWN]) + (" …" if len(typed) > _SHOWN else "")
