"""Class names that are probably one class spelt in two ways, or not a class at all but a missing value.

Judges only names; the callers decide what to report (`sources`, `health.findings`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

_DASHES = re.compile(r"[\u00ad\u058a\u2010-\u2015\u2043\u207b\u2212\u2e3a\u2e3b\ufe58\ufe63\uff0d-]")
_UNDERSCORES = re.compile(r"[_\u203f\u2040\ufe33\ufe34\ufe4d-\ufe4f\uff3f]")
_BETWEEN = re.compile(r"[\s_-]+")
_QUOTES = str.maketrans("\u2018\u2019\u201b\u2032\u00b4`\u201c\u201d\u201e\u2033", "''''''\"\"\"\"")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")

# Letters of other scripts that look like Latin ones in every usual typeface (a part of Unicode's UTS 39 table).
_TWINS = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u043a\u043c\u0442\u043d\u0432\u03b1\u03bf\u03c1\u03bd\u03c5\u03ba\u03b9\u0131",
    "aeopcyxijskmthbaopvukii",
)

MISSING = frozenset((
    "nan", "na", "n/a", "n.a.", "n.a", "#n/a", "#na", "<na>", "null", "nil", "none", "undefined", "missing",
    "unknown", "unlabeled", "unlabelled", "nat", "-", "--", "?", ".", "#value!", "#ref!", "#name?", "(null)",
    "[null]", "\u672a\u77e5", "\u65e0",
))  # fmt: skip


def skeleton(name: str) -> str:
    """Return what is left of a name without case, form, spacing and script: names that share it look alike.

    Single letters keep their case (``A`` and ``a`` are classes of handwriting), numbers become their value, and
    a sign at either end stays (``A-`` is not ``A``).
    """
    text = unicodedata.normalize("NFKC", _DASHES.sub("-", name))
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc")).translate(_QUOTES)
    text = _UNDERSCORES.sub("_", text).strip(" \t\u3000_")
    text = unicodedata.normalize("NFKC", text)
    if len(text) > 1:
        text = unicodedata.normalize("NFKC", text.casefold())
        text = text.translate(_TWINS)
    if _NUMBER.fullmatch(text):
        return str(float(text) + 0.0)
    if text in MISSING:
        return "missing value" if text not in ("-", "--", "?", ".") else text
    # Separators do not count, but between figures: 1-2 is not 12.
    middle = text[1:-1]
    joined = _BETWEEN.sub("-", middle)
    text = text[:1] + joined + text[-1:] if len(text) > 1 else text
    return re.sub(r"(?<=[^\W\d_])-(?=\w)|(?<=\w)-(?=[^\W\d_])", "", text)


def look_alike(classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that look alike, in the order of their first names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[skeleton(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def missing_values(classes: Sequence[str]) -> list[str]:
    """Return the names that programs write for a missing value."""
    return [name for name in classes if unicodedata.normalize("NFKC", name).strip().casefold() in MISSING]


def spelt(group: Sequence[str]) -> str:
    """Return names in quotes, joined by "and"; where they look the same in print, with what differs."""
    parts = []
    for name in group:
        shown = name.encode("utf-8", "backslashreplace").decode()
        odd = [c for c in dict.fromkeys(name) if not c.isascii() and not all(c in other for other in group)]
        odd += [c for c in dict.fromkeys(name) if unicodedata.category(c) in ("Cc", "Cf") and c not in odd]
        hidden = f" ({', '.join(f'U+{ord(c):04X}' for c in odd[:4])})" if odd else ""
        parts.append(f"{shown!r}{hidden}")
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def merged(names: Mapping[str, str]) -> list[str]:
    """Return a sentence for each class that several folders are read as. ``names``: folder -> class."""
    folders: dict[str, list[str]] = defaultdict(list)
    for folder, name in names.items():
        folders[name].append(folder)
    return [
        f"The folders {spelt(group)} are read as one class, {name!r}: their names differ in outer spaces or in the "
        "form of Unicode only."
        for name, group in sorted(folders.items())
        if len(group) > 1
    ]


def warnings(classes: Sequence[str]) -> list[str]:
    """Return the messages before training: one for names that look alike, one for missing values."""
    said = []
    groups = look_alike(classes)
    if groups:
        some = "; ".join(spelt(group) for group in groups[:4])
        more = f"; and {len(groups) - 4:,} more" if len(groups) > 4 else ""
        said.append(
            f"Classes whose names look alike: {some}{more}. Each counts as a class of its own; if they are one, "
            "give them one name."
        )
    missing = missing_values(classes)
    if missing:
        said.append(
            f"A class is named like a missing value: {', '.join(map(repr, missing))}. If these images have no "
            "label, take them out of the data."
        )
    return said
