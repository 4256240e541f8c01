"""The result of every annotation parser: entries, one for each image in a file.

Knows nothing of splits, conflicts or the image files themselves.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tellapart.data.sources.listing import NO_BOX, Box, Note, clean_label, printable
from tellapart.data.sources.text import DEFAULT, EncodingError, Texts
from tellapart.errors import DataError

__all__ = ["NO_BOX", "Box", "Entry", "Files", "Labelled", "attempt", "number", "turned"]

Labelled = tuple[str, Box]
_HUGE = 1e9  # larger than any image, and small enough that sums and squares do not overflow


@dataclass
class Entry:
    """What one annotation file says about one image.

    ``source``: the annotation file; ``image``: the name that it gives the image, with ``folder`` if it names that
    separately; ``own``: the file is for this image only, and has its name. ``tags``: labels of the whole image, which
    take precedence over ``objects``, (label, box) with boxes in pixels as x0, y0, x1, y1, or as fractions of width and
    height if ``relative``; NO_BOX for the whole image. ``opinions``: the labels that each annotator gave,
    where the format tells annotators apart. ``problem``: why none of it can be used.
    """

    source: str
    image: str
    objects: list[Labelled] = field(default_factory=list)
    relative: bool = False
    own: bool = False
    folder: str = ""
    split: str = ""
    tags: list[str] = field(default_factory=list)
    opinions: list[frozenset[str]] = field(default_factory=list)
    problem: str = ""


class Files:
    """Reads a folder's annotation files, decoded as ``encoding`` says."""

    def __init__(self, root: str, encoding: str = DEFAULT, note: Note = lambda text: None) -> None:
        self.root = root
        self.texts = Texts(encoding, note)

    def path(self, source: str) -> str:
        """Return the path of a file on this machine."""
        return os.path.join(self.root, source)

    def text(self, source: str) -> str:
        """Return a file's text. Raises DataError."""
        return self.texts.read(self.path(source))

    def xml(self, source: str) -> str:
        """Return an XML file's text, decoded as it declares. Raises DataError."""
        return self.texts.xml(self.path(source))

    def json(self, source: str) -> Any:
        """Return a JSON file's value. Raises DataError."""
        try:
            return json.loads(self.text(source))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{printable(self.path(source))!r} is not valid JSON: {error}.") from error


def attempt(entry: Entry, read: Callable[[], object]) -> Entry:
    """Return the entry after ``read``, with the reason as its problem if that raises DataError.

    A wrong encoding is not the fault of one file: that error is raised.
    """
    try:
        read()
    except EncodingError:
        raise
    except DataError as error:
        entry.problem = str(error)
        entry.objects, entry.tags, entry.opinions = [], [], []
    return entry


def number(value: Any, where: str) -> float:
    """Return a coordinate. Raises DataError."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) < _HUGE:
        raise DataError(f"{where}: {value!r:.40} is not a number that a coordinate can be.")
    return found


def turned(box: Box, degrees: float, pivot: tuple[float, float]) -> Box:
    """Return the upright box around a box that is turned clockwise about a point."""
    if not degrees:
        return box
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - pivot[0], y - pivot[1]) for x in box[::2] for y in box[1::2]]
    xs = [pivot[0] + x * cosine - y * sine for x, y in corners]
    ys = [pivot[1] + x * sine + y * cosine for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def around(xs: Iterable[Any], ys: Iterable[Any], where: str) -> Box:
    """Return the box around points. Raises DataError."""
    across, down = [number(x, where) for x in xs], [number(y, where) for y in ys]
    if not across or not down:
        raise DataError(f"{where}: a shape without points.")
    return min(across), min(down), max(across), max(down)


def label_of(value: Any, where: str) -> str:
    """Return a label as a class name. Raises DataError if there is none."""
    label = clean_label(str(value)) if isinstance(value, (str, int, float)) else ""
    if not label or isinstance(value, bool):
        raise DataError(f"{where} has no label.")
    return label


def image_like(value: Any) -> bool:
    """Return whether a value can be an image's path or address."""
    return isinstance(value, str) and bool(re.search(r"\.\w{2,5}($|[?#])", value)) and "\n" not in value
