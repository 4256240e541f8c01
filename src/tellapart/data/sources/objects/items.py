"""Images read from data sets, one by one: content, label, and the check that an index returns the same image again.

Each is read once to know label and content, and once more when it is decoded. Decoded images are kept, so of a data set
that changes them at random, one random version would stand for all: that is refused. One thread reads at a time, since
few data sets allow more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tellapart.contract.decoding import Pixels
from tellapart.contract.deep import BadImage
from tellapart.contract.given import UnfitImage, content_of, is_picture
from tellapart.data.samples import content_hash, read_file
from tellapart.data.sources.objects import labels
from tellapart.data.sources.objects.labels import Label, UnfitLabel
from tellapart.errors import DataError

Advance = Callable[[int], None]
_TWICE = 16  # images that are read twice before all others
_IMAGES = ("image", "img", "picture", "photo", "pixel_values", "pixels", "jpg", "jpeg", "png", "x")
_LABELS = ("label", "labels", "target", "targets", "class", "fine_label", "category", "cls", "y")


@dataclass(frozen=True)
class Part:
    """A data set: ``get(index)`` gives (image, label), a longer tuple, or a mapping with both.

    names: of its classes, by number. image, label: the keys of a mapping, "" if not given.
    """

    title: str
    count: int
    get: Callable[[int], Any]
    names: tuple[str, ...] = ()
    image: str = ""
    label: str = ""


@dataclass
class Read:
    """The result of one pass over a split: label, hash ("": bad) and, without a label, the reason.

    longest: length of the longest tuple.
    """

    labels: list[Label] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    longest: int = 2


class Reader:
    """Reads one split. ``ranged``, ``depth``: see `content_of`."""

    def __init__(self, part: Part, ranged: bool, depth: str = "uint8") -> None:
        self.part, self.ranged, self.depth = part, ranged, depth
        self._longest = 2
        self._lock = threading.Lock()

    def pass_over(self, advance: Advance = lambda count: None) -> Read:
        """Read every image once. Raises DataError for a kind of image or label that is not supported."""
        self._try_twice()
        found = Read()
        for index in range(self.part.count):
            content, label, reason = self._tried(index)
            if reason and label is _UNREAD:
                found.lost[index] = reason
            found.labels.append(None if label is _UNREAD else label)
            found.hashes.append("" if content is None else content_hash(content))
            advance(1)
        found.longest = self._longest
        return found

    def _try_twice(self) -> None:
        """Raise DataError if a few images, read twice, differ."""
        few = min(_TWICE, self.part.count)
        for index in np.unique(np.linspace(0, self.part.count - 1, few).astype(int)).tolist():
            one, other = self._tried(index), self._tried(index)
            if (one[0] is None) != (other[0] is None) or (
                one[0] is not None and other[0] is not None and content_hash(one[0]) != content_hash(other[0])
            ):
                raise changing(self.part.title, index)
            if one[1] != other[1]:
                raise DataError(
                    f"{self.part.title}: index {index} has the label {one[1]!r}, and {other[1]!r} when it is read "
                    "a second time."
                )

    def _tried(self, index: int) -> tuple[bytes | Pixels | None, Any, str]:
        """Return content, label (`_UNREAD` where reading fails before there is one), and what is wrong."""
        where = f"{self.part.title}: index {index}"
        try:
            image, label = self._pair(index)
        except OSError as error:
            return None, _UNREAD, f"cannot be read: {error.strerror or error}"
        try:
            name = labels.plain(label)
        except UnfitLabel as error:
            raise DataError(f"{where}: {error}.") from None
        try:
            return self._content(image), name, ""
        except UnfitImage as error:
            raise DataError(f"{where} gives {error.reason}.") from None
        except BadImage as error:
            return None, name, error.reason
        except (OSError, SyntaxError) as error:  # a file that Pillow opened earlier and reads only now
            return None, name, f"cannot be read: {getattr(error, 'strerror', None) or error}"

    def content(self, index: int) -> bytes | Pixels:
        """Return an image's bytes or pixels. Raises BadImage, OSError, DataError."""
        return self._content(self._pair(index)[0])

    def _content(self, image: Any) -> bytes | Pixels:
        if isinstance(image, Mapping):  # as Hugging Face's datasets keeps an image
            image = image.get("bytes") or image.get("path") or b""
        if isinstance(image, (str, os.PathLike)):
            return read_file(os.fspath(image))
        with self._lock:  # Pillow reads a file here, of which two items may hold the same
            return content_of(image, self.ranged, self.depth)

    def _pair(self, index: int) -> tuple[Any, Any]:
        try:
            with self._lock:
                item = self.part.get(index)
        except (OSError, DataError, MemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"{self.part.title}: index {index} could not be loaded: {type(error).__name__}: {error}"
            ) from error
        if isinstance(item, Mapping):
            return self._of_mapping(item)
        if isinstance(item, (tuple, list)) and len(item) >= 2:
            self._longest = max(self._longest, len(item))
            return item[0], item[1]
        raise DataError(
            f"{self.part.title}: index {index} gives {_shown(item)}; expected an image and its label, as a pair "
            "(image, label) or a mapping with both."
        )

    def _of_mapping(self, item: Mapping[str, Any]) -> tuple[Any, Any]:
        image = self.part.image or next((n for n in _IMAGES if n in item), "")
        label = self.part.label or next((n for n in _LABELS if n in item), "")
        for name, what, option in ((image, "an image", "path_column"), (label, "a label", "label_column")):
            if not name or name not in item:
                missing = f"{name!r} is not among" if name else f"none is known for {what} among"
                raise DataError(
                    f"{self.part.title}: {missing} its keys {', '.join(map(repr, item))}; name {what}'s with "
                    f'data={{"{option}": …}}.'
                )
        return item[image], item[label]


_UNREAD = object()


def _shown(item: Any) -> str:
    kind = "an image alone" if is_picture(item) else f"a {type(item).__name__}"
    return f"{kind} of {len(item)}" if isinstance(item, (tuple, list)) else kind


def changing(title: str, index: int) -> DataError:
    """Return the error for an index that returns different pixels when it is read again."""
    return DataError(
        f"{title}: index {index} returns other pixels when it is read a second time: something in it changes images at "
        "random. Images are read once and kept, so every epoch would see one version. Take the random transform out "
        'of the data set and give it as augment (augment={"preset": …}, or augment={"transform": …} for your own).'
    )


class Gathered:
    """The images of all splits, by one number each: `Items` of the table."""

    def __init__(self, places: Sequence[tuple[Reader, int]], hashes: Sequence[str]) -> None:
        self._places = places
        self.hashes = list(hashes)

    def read(self, key: int) -> bytes | Pixels:
        """Return an image's bytes or pixels. Raises OSError, and DataError if it has changed."""
        reader, index = self._places[key]
        try:
            content = reader.content(index)
        except BadImage as error:
            raise OSError(error.reason) from None
        except SyntaxError as error:  # Pillow's, for a broken PNG
            raise OSError(str(error)) from None
        if self.hashes[key] and content_hash(content) != self.hashes[key]:
            raise changing(reader.part.title, index)
        return content
