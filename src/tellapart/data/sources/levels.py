"""Whether the names of classes have levels (`animal/dog`), and how such names are written.

Works on names alone, whatever source they are from. How figures and answers use levels is in
`tellapart.contract.levels`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tellapart.contract.levels import joined, parts
from tellapart.data.sources.listing import Listing, Note, many, printable, some
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

_MARKS = (
    "/",
    "\\",
)  # what is looked for; other marks stand in ordinary names, and are taken where they are named
_BYTE = re.compile(r"\\x[0-9a-f]{2}")  # how a byte that is no text is written
_WORD = re.compile(r"[^\W\d_]")


def given(spec: DataSpec) -> str:
    """Return the separator that a person names, "" where none is named."""
    return "" if spec.levels in ("", "auto", "none") else spec.levels


def check(spec: DataSpec) -> None:
    """Raise SpecError where levels are asked for beside several labels for an image."""
    if given(spec) and spec.labels == "multi":
        raise SpecError("data.levels is for images of one label; with data.labels multi it must be none.")


def settle(listing: Listing, spec: DataSpec, note: Note, warn: Callable[[str], None]) -> str:
    """Return what separates the levels in the names of a listing's classes, "" where they have none.

    Where a person names the separator, names are rewritten with it and nothing around it (with ``/`` also those with a
    backslash); else they stay as they are, and have levels only where that is plain. Raises DataError where
    images can have several labels, or two classes get one name.
    """
    if listing.sets is not None:
        if given(spec):
            raise DataError(
                "data.levels is for images of one label, and those of this source can have several; data.labels single "
                "leaves out images with more than one."
            )
        return ""
    mark = given(spec)
    if mark:
        _rewrite(listing, mark, note)
    names = listing.classes or tuple(sorted(set(listing.labels)))
    if mark and not any(len(parts(name, mark)) > 1 for name in names):
        warn(
            f"data.levels is {mark!r}, and no class has levels by it ({some(names, 6)}), so there are no figures of "
            "levels. It names what separates them in the names of classes; / also takes class folders inside folders."
        )
        return ""
    found = mark or (_plain(names, note) if spec.levels != "none" else "")
    if found:
        _tell(names, found, mark, note, warn)
    return found


def _rewrite(listing: Listing, mark: str, note: Note) -> None:
    """Write all names alike: `animal / dog`, `/animal/dog/` and for / those with backslashes are `animal/dog`."""
    new: dict[str, str] = {}
    for name in {*listing.labels, *listing.classes}:
        text = name.replace("\\", "/") if mark == "/" and not _BYTE.search(name) else name
        new[name] = joined(text, mark) or name
    changed = sorted(name for name, text in new.items() if name != text)
    if not changed:
        return
    listing.labels = [new[label] for label in listing.labels]
    classes = tuple(new[name] for name in listing.classes)
    if len(set(classes)) < len(classes):
        twice = Counter(classes).most_common(1)[0][0]
        raise DataError(f"Written with {mark!r} between levels, two classes are called {printable(twice)!r}.")
    listing.classes = classes
    first = changed[0]
    note(
        f"{many(len(changed), 'class name is', 'class names are')} written with {mark!r} alone between levels, such as "
        f"{printable(first)!r} as {printable(new[first])!r}."
    )


def _plain(names: Sequence[str], note: Note) -> str:
    """Return the mark by which names plainly have levels, else ""; say it where they might.

    Plainly: half of the names have it, all of these are written as `joined` writes them, several share what is before
    it, and more than one thing is told apart at the top.
    """
    for mark in _MARKS:
        marked = [name for name in names if mark in name]
        if mark == "\\" and any(map(_BYTE.search, marked)):
            continue
        if not marked or not all(_WORD.search(name) for name in marked):
            continue
        if not _shared(marked, mark):
            continue  # and/or, N/A
        if 2 * len(marked) >= len(names) and _regular(marked, mark) and len(_tops(names, mark)) > 1:
            return mark
        note(
            f"{len(marked):,} of {many(len(names), 'class name has', 'class names have')} {mark!r} in them, such as "
            f"{printable(marked[0])!r}: --data.levels {_typed(mark)} takes it for levels, with figures at each."
        )
        return ""
    return ""


def _typed(mark: str) -> str:
    return mark if mark == "/" else f"'{mark}'"


def _regular(names: Iterable[str], mark: str) -> bool:
    return all(joined(name, mark) == name and len(parts(name, mark)) > 1 for name in names)


def _shared(names: Iterable[str], mark: str) -> bool:
    """Return whether two names share what is before a mark."""
    heads = Counter(split[:-1] for name in names if len(split := parts(name, mark)) > 1)
    return any(count > 1 for count in heads.values())


def _tops(names: Iterable[str], mark: str) -> dict[str, int]:
    """Return the names of the topmost level, with their number of classes."""
    return Counter((parts(name, mark) or (name,))[0] for name in names)


def _tell(names: Sequence[str], mark: str, asked: str, note: Note, warn: Callable[[str], None]) -> None:
    split = [parts(name, mark) or (name,) for name in names]
    deepest = max(map(len, split))
    counts = [len({one[:level] for one in split}) for level in range(1, deepest)]
    shown = ", ".join(f"{count:,} at level {level}" for level, count in enumerate(counts, 1))
    off = "" if asked else " --data.levels none takes the names as they are."
    note(
        f"The names of the {len(names):,} classes have {deepest} levels, separated by {mark!r}: {shown} "
        f"({some(_tops(names, mark), 5)}). Figures and answers are given at each.{off}"
    )
    both = sorted(_both(split))
    if both:
        first = mark.join(both[0])
        warn(
            f"{many(len(both), 'class is', 'classes are')} also what others belong to: "
            f"{some((mark.join(one) for one in both), 5)}. Images that say no more count as a class of their own, "
            f"beside {some(name for name in names if name.startswith(first + mark))}."
        )


def _both(split: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Return the classes whose whole name begins another's."""
    heads = {one[:level] for one in split for level in range(1, len(one))}
    return heads.intersection(split)
