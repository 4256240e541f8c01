"""What a reader found in a source, before splits are filled in and classes are numbered.

Every reader of this package (folders, lists, annotations, named sets) returns a `Listing`. Knows the rules
for names that they share; knows nothing of any format.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import Conflict, Items, Unusable
from tellapart.data.sources.folders.split_names import split_name, split_of_folders, split_of_stem

__all__ = [
    "NO_BOX",
    "Box",
    "Guess",
    "Listing",
    "Note",
    "clean_label",
    "many",
    "printable",
    "some",
    "split_name",
    "split_of_folders",
    "split_of_stem",
]

Note = Callable[[str], None]
Box = tuple[float, float, float, float]


class Guess(str):
    """A note on a guess that may be wrong unnoticed; it becomes a warning that shows its result."""

    __slots__ = ()


NO_BOX: Box = (float("nan"),) * 4
"""The box that stands for the whole image."""


@dataclass
class Listing:
    """Columns of equal length, as lists.

    ``splits`` is "" if the source does not say. ``sets``: all labels of each image, if it can have several (``labels``
    is "" then), otherwise None. ``classes`` is the official order of class names; when empty, classes are the names
    found, sorted. ``missing``: paths without a file. ``numbered``: the class names in the order of the numbers that
    the source has for them, () where it has none. ``pixels``, ``keys`` and ``items`` as in `Samples`.
    """

    root: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] | None = None
    boxes: list[Box] | None = None
    conflicts: list[Conflict] = field(default_factory=list)
    bad: list[Unusable] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    classes: tuple[str, ...] = ()
    pixels: npt.NDArray[np.uint8] | None = None
    keys: npt.NDArray[Any] | None = None
    items: Items | None = None
    name: str = ""
    sets: list[tuple[str, ...]] | None = None
    numbered: tuple[str, ...] = ()

    def add(self, path: str, label: str, split: str) -> None:
        """Append a row."""
        self.paths.append(path)
        self.labels.append(label)
        self.splits.append(split)

    def add_set(self, path: str, labels: tuple[str, ...], split: str) -> None:
        """Append an image that can have several labels."""
        assert self.sets is not None
        self.add(path, "", split)
        self.sets.append(labels)


def clean_label(text: str) -> str:
    r"""Return a class name in its stored form: no outer white space, Unicode NFC, only encodable characters.

    One name can be spelt in two Unicode forms (macOS writes decomposed ones); both must be one class. Bytes of a file
    name that are not UTF-8 are written as ``\xNN``.
    """
    text = text.strip()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", printable(text))


def printable(text: str) -> str:
    r"""Return ``text`` with undecodable bytes of file names written as ``\xNN``, safe to print in UTF-8."""
    spelt = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)
    return spelt.encode("utf-8", "backslashreplace").decode("utf-8")


def some(names: Iterable[str], limit: int = 8) -> str:
    """Return names joined by commas, at most ``limit`` of them and how many more there are."""
    items = [printable(name) for name in names]
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def many(number: int, one: str, several: str = "") -> str:
    """Return "1 file", "1,234 files"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
