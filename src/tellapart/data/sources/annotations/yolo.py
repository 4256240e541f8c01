"""YOLO: a text file for each image, and the names of its class numbers."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from tellapart import yaml_text
from tellapart.data.sources.annotations.entries import Box, Entry, Files, attempt
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import Note, clean_label, many, printable, some
from tellapart.data.sources.text import lines, read_bytes
from tellapart.errors import DataError

NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")
_LINE = re.compile(r"\d+(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?){4,}", re.ASCII)


def looks_like_yolo(path: str) -> bool:
    """Return whether each line of a text file is a class number and coordinates (an empty file: False)."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4096).decode("latin-1")  # digits are the same in every possible encoding
    except OSError:
        return False
    first = [line.strip("\xef\xbb\xbf \t") for line in lines(head)[:5]]
    return any(first) and all(_LINE.fullmatch(line) for line in first[:4] if line)


def read_yolo(files: Files, source: str, names: Sequence[str] | Mapping[int, str]) -> Iterator[Entry]:
    """Yield the entry of a YOLO file: class, centre x, centre y, width, height as fractions of the image.

    A sixth value is a confidence and is ignored; seven or more are a polygon, of which the bounding box
    counts. Without ``names`` the class number is the label.
    """
    path = files.path(source)
    entry = Entry(source, "", relative=True, own=True)

    def read() -> None:
        for number, line in enumerate(lines(files.text(source)), 1):
            if not line.strip():
                continue
            where = f"{printable(path)}, line {number}"
            if not _LINE.fullmatch(line.strip()):
                raise DataError(f"{where}: {line.strip()[:60]!r} is not a class number and four coordinates.")
            first, *rest = line.split()
            entry.objects.append(
                (_yolo_name(int(first), names, where), _yolo_box([float(v) for v in rest], where))
            )

    yield attempt(entry, read)


def _yolo_name(index: int, names: Sequence[str] | Mapping[int, str], where: str) -> str:
    if not names:
        return str(index)
    try:
        return names[index] or str(index)
    except LookupError:
        raise DataError(f"{where}: class {index} has no name; there are {len(names)} names.") from None


def _yolo_box(values: Sequence[float], where: str) -> Box:
    if len(values) <= 5:
        x, y, w, h = values[:4]
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) % 2:
        raise DataError(f"{where}: a polygon needs pairs of coordinates; there are {len(values)} numbers.")
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


class Names:
    """Class names for a label file: from ``data.yaml`` if there is one, otherwise the nearest file of names above."""

    def __init__(self, tree: Tree, files: Files, note: Note) -> None:
        self.common: dict[int, str] = {}
        self.folders: dict[str, list[str]] = {}
        origin = ""
        for path in tree.others:
            if extension(path) in (".yaml", ".yml") and _may_name(files.path(path)):
                found = _yaml_names(files, path, note)
                if found and self.common and found != self.common:
                    raise DataError(
                        f"{printable(origin)} and {printable(path)} name the classes differently; keep the "
                        "right one."
                    )
                self.common, origin = (found, path) if found else (self.common, origin)
            if is_names(path) and not looks_like_yolo(files.path(path)):
                self.folders.setdefault(posixpath.dirname(path), _names(files, path, note))
        if self.common and any(dict(enumerate(names)) != self.common for names in self.folders.values()):
            note(f"{printable(origin)} names the classes; other files of class names differ from it.")
        if not self.common and not self.folders:
            note("There are no class names (data.yaml, classes.txt): the classes are numbers.")

    def of(self, source: str) -> Mapping[int, str] | Sequence[str]:
        """Return the names for a label file, empty where there are none."""
        if self.common:
            return self.common
        folder = posixpath.dirname(source)
        while folder and folder not in self.folders:
            folder = posixpath.dirname(folder)
        if folder in self.folders:
            return self.folders[folder]
        return next(iter(self.folders.values())) if len(self.folders) == 1 else ()


def _may_name(path: str) -> bool:
    return b"names" in read_bytes(path).replace(b"\0", b"")


def is_names(path: str) -> bool:
    """Return whether a file's name is one of a file of class names."""
    return posixpath.basename(path).lower() in NAME_FILES or extension(path) == ".names"


def _names(files: Files, path: str, note: Note) -> list[str]:
    names = [clean_label(line) for line in lines(files.text(path))]
    while names and not names[-1]:
        names.pop()
    if any("\ufeff" in name for name in names):
        raise DataError(
            f"{printable(files.path(path))!r} has a byte-order mark within a line, as joined files do: put "
            "each name on a line of its own."
        )
    _tell_doubles(names, path, note)
    return names


def _tell_doubles(names: Sequence[str], path: str, note: Note) -> None:
    doubles = sorted({name for name in names if name and names.count(name) > 1})
    if doubles:
        note(
            f"{printable(path)} names {many(len(doubles), 'class', 'classes')} more than once ({some(doubles, 3)}): "
            "these numbers are one class."
        )


def _yaml_names(files: Files, path: str, note: Note) -> dict[int, str]:
    """Return the class names of a ``data.yaml`` by number; {} if it has none. Names are text, ``no`` too."""
    try:
        value = yaml_text.load(files.text(path), words=True)
    except ValueError as error:
        raise DataError(f"{printable(files.path(path))!r} is not valid YAML: {error}.") from error
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, list):
        names = {str(key): name for key, name in enumerate(names)}
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        return {}
    # expanding aliases might never end
    if not all(isinstance(name, str) for name in names.values()):
        raise DataError(
            f"{printable(files.path(path))!r}: names must be a list of words, or of numbers and words."
        )
    found = {int(key): clean_label(name) for key, name in names.items()}
    count = value.get("nc")
    if isinstance(count, str) and count.isdecimal() and int(count) != len(found):
        note(f"{printable(path)} has nc {count} and {many(len(found), 'name')}.")
    _tell_doubles(list(found.values()), path, note)
    return found
