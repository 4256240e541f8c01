"""The image file that each row of a list means: as written, otherwise by rules that hold for many rows at once.

A path that does not exist may be below another folder, lack its extension, be spelt in another case or Unicode form, or
begin with another machine's folders. No row is matched by its name alone if its folder contradicts that, and a name
that is in several folders is not decided here. Opens no image.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tellapart.data.sources.folders.folder_tree import is_container
from tellapart.data.sources.folders.split_names import meaning, split_of_stem
from tellapart.data.sources.folders.walk import IMAGE_EXTENSIONS, Tree, extension
from tellapart.data.sources.listing import Note, many, printable, some
from tellapart.errors import DataError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SAMPLE = 50


def key(name: str) -> str:
    """Return a name as names are compared: in one Unicode form, without case and outer white space."""
    return (
        name.strip().casefold() if name.isascii() else unicodedata.normalize("NFC", name).strip().casefold()
    )


@dataclass
class Found:
    """What was found for a list: a path for each of its names ("" for none), and the rules that applied."""

    paths: dict[str, str] = field(default_factory=dict)
    rules: Counter[str] = field(default_factory=Counter)


class Finder:
    """Finds images of one list. ``root``: what its paths are relative to in the table; ``tree``: all images
    below ``root``, made on the first need.
    """

    def __init__(self, path: str, root: str, given: str, suffix: str, tree: Callable[[], Tree]) -> None:
        self.list = path
        self.root = root
        self.given = given
        self.suffix = suffix
        self._folder = os.path.dirname(os.path.abspath(path))
        self._tree = tree
        self._index: tuple[set[str], dict[str, list[str]], dict[str, list[str]]] | None = None

    def clean(self, text: str) -> str:
        """Return a path with forward slashes and no needless parts; backslashes separate unless such a file
        exists.
        """
        text = (text if self._there(self._folder, text) else text.strip()) + (
            self.suffix if self.suffix and not text.endswith(self.suffix) else ""
        )
        if "\\" in text and not self._there(self._folder, text):
            text = text.replace("\\", "/")
        return posixpath.normpath(text) if text else ""

    @staticmethod
    def _there(folder: str, path: str) -> bool:
        try:
            return bool(path) and os.path.lexists(os.path.join(folder, path))
        except (OSError, ValueError):  # a NUL in the name, or one that is too long
            return False

    def is_file(self, text: str) -> bool:
        """Return whether a cell names a file that is there as written."""
        try:
            return bool(text) and os.path.isfile(os.path.join(self.given or self._folder, self.clean(text)))
        except (OSError, ValueError):
            return False

    def direct(self, path: str) -> str:
        """Return the location of a cleaned path if it exists as written, relative to ``root`` if it is below it."""
        for folder in (self.given,) if self.given else (self._folder, self.root):
            if self._there(folder, path):
                return path if folder == self.root else self._relative(os.path.join(folder, path))
        return ""

    def _relative(self, path: str) -> str:
        full = posixpath.normpath(path.replace(os.sep, "/"))
        root = self.root.replace(os.sep, "/").rstrip("/") + "/"
        if full.startswith(root):
            return full[len(root) :]
        if self.given or os.path.isabs(path):
            return full
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def share(self, cells: Sequence[str]) -> float:
        """Return the share of some cells that name images, as written or by name alone (an upper bound)."""
        cells = cells[:: max(1, len(cells) // _SAMPLE)]
        if not cells:
            return 0.0
        cleaned = [self.clean(cell) for cell in cells]
        there = sum(bool(self.direct(path)) for path in cleaned)
        if there == len(cells):
            return 1.0
        possible = (self.direct(path) or self._alike(posixpath.basename(path)) for path in cleaned)
        return sum(map(bool, possible)) / len(cells)

    # --- By rules ---------------------------------------------------------------------------------------------

    def _tables(self) -> tuple[set[str], dict[str, list[str]], dict[str, list[str]]]:
        if self._index is None:
            by_name: dict[str, list[str]] = defaultdict(list)
            by_stem: dict[str, list[str]] = defaultdict(list)
            tree = self._tree()
            start = ""
            if self.given:
                start = self._relative(self.given) + "/"
                start = "" if start == "./" or os.path.samefile(self.given, self.root) else start
            images = [p for p in tree.images if p.startswith(start)]
            for path in images:
                name = posixpath.basename(path)
                by_name[key(name)].append(path)
                by_stem[key(posixpath.splitext(name)[0])].append(path)
            self._index = set(images), by_name, by_stem
        return self._index

    def _alike(self, path: str) -> list[str]:
        """Return the images whose last folders and name are those of ``path``, in any spelling; the same case
        goes before others.
        """
        _, by_name, by_stem = self._tables()
        parts = [part for part in path.split("/") if part]
        if not parts:
            return []
        found = by_name.get(key(parts[-1]), [])
        if not found and extension(parts[-1]) not in IMAGE_EXTENSIONS:
            found = by_stem.get(key(parts[-1]), [])
        folders = [key(part) for part in parts[:-1]]
        if folders:
            found = [p for p in found if list(map(key, p.split("/")[:-1]))[-len(folders) :] == folders]
        exact = [p for p in found if p.endswith(path) or posixpath.splitext(p)[0].endswith(path)]
        return exact or found

    def find(self, names: Sequence[str]) -> Found:
        """Return where the images of cleaned ``names`` are. Raises DataError if two folders contain them all.

        A bare name is looked for in other folders only if at least half of the names do not exist as written: a single
        missing image is not replaced by one of the same name elsewhere.
        """
        found = Found({name: self.direct(name) for name in names})
        left = [name for name, place in found.paths.items() if not place]
        many_left = 2 * len(left) >= len(found.paths)
        tried = {name: name for name in left if many_left or "/" in name}
        self._below(found, tried, many_left)
        for group in _by_start([name for name in left if not found.paths[name]]):
            self._stripped(found, group)
        _one_each(found)
        return found

    def _below(self, found: Found, names: dict[str, str], strict: bool) -> None:
        """Find ``names`` (name in the list: path to look for) below folders that contain many of them.

        If two folders contain the same names: an error if ``strict``, otherwise they are not found.
        """
        places: dict[str, dict[str, str]] = {}
        for name, path in names.items():
            bases: dict[str, list[str]] = defaultdict(list)
            depth = path.count("/") + 1
            for image in self._alike(path.lstrip("/")) if not _foreign(path) else ():
                bases["/".join(image.split("/")[:-depth])].append(image)
            places[name] = {base: images[0] for base, images in bases.items() if len(images) == 1}
        holds: dict[str, set[str]] = defaultdict(set)
        for name, options in places.items():
            for base in options:
                holds[base].add(name)
        left = set(names)
        while any(holds.values()):
            base = self._best(holds)
            doubtful = self._doubtful(base, holds, strict)
            for name in holds.pop(base) - doubtful:
                found.paths[name] = places[name][base]
                found.rules[_rule(names[name], name, places[name][base], base)] += 1
                left.discard(name)
            for other in holds:
                holds[other] &= left - doubtful

    def _doubtful(self, base: str, holds: dict[str, set[str]], strict: bool) -> set[str]:
        """Return the names that a few images of another folder bear too; drop folders that hold much the same
        names (of another split, say). Raises DataError if one of these is as good as ``base``.
        """
        doubtful: set[str] = set()
        for other in [other for other in holds if other != base]:
            both = holds[base] & holds[other]
            if 10 * len(both) < min(len(holds[base]), len(holds[other])):
                doubtful |= both
                continue
            if self._liking(base) == self._liking(other) and 10 * len(holds[other]) >= 9 * len(holds[base]):
                if not strict:
                    doubtful |= both
                    continue
                one, two = sorted((base or ".", other or "."))
                raise DataError(
                    f"The names in {printable(self.list)!r} lie in {printable(one)}/ and in {printable(two)}/ of "
                    f"{printable(self.root)!r} alike; say which is meant: "
                    f"--data.root {printable(os.path.join(self.root, one))}."
                )
            if both:
                holds[other] = set()
        return doubtful

    def _best(self, holds: dict[str, set[str]]) -> str:
        """Return the folder that holds most of the names; of about equal ones that of the list's own name or
        split.
        """
        most = max(map(len, holds.values()))
        near = [base for base, names in sorted(holds.items()) if 10 * len(names) >= 9 * most]
        return max(near, key=lambda base: (self._liking(base), len(holds[base])))

    def _liking(self, base: str) -> tuple[int, int, int]:
        """Return how well a folder fits the list: by split, by the list's own name, as a folder of images."""
        stem, split = posixpath.splitext(posixpath.basename(self.list))[0], split_of_stem(self.list)
        split = split or meaning(posixpath.basename(posixpath.dirname(self._relative(self.list)))).split
        words = [word for word in base.split("/") if word]
        said = next((meaning(word).split for word in words if meaning(word).split), "")
        own = bool(words) and key(words[-1]) == key(stem)
        fits = 1 if said == (split or "train") else -1 if said else 0
        return fits, int(own), int(not words or is_container(words[-1]))

    def _stripped(self, found: Found, names: list[str]) -> None:
        """Find ``names`` without the first of the folders that all of them share.

        Those must be another machine's: a drive or a root, or a folder that is not there. Where no folder is left
        before the file's name, the names must be at least half of the list.
        """
        parts = {name: name.split("/") for name in names}
        shared = _shared([p[:-1] for p in parts.values()])
        if not shared or (not _foreign(names[0]) and shared[0] != ".." and self._is_folder(shared[0])):
            return
        most = 2 * len(names) >= len(found.paths)
        for depth in range(1, len(shared) + 1):
            if not most and any(len(p) - depth < 2 for p in parts.values()):
                return
            shorter = {name: "/".join(p[depth:]) for name, p in parts.items()}
            possible = sum(bool(self.direct(path) or self._alike(path)) for path in shorter.values())
            if 2 * possible < len(names):
                continue
            for name, path in list(shorter.items()):
                if place := self.direct(path):
                    found.paths[name] = place
                    found.rules[_rule(path, name, place, "")] += 1
                    del shorter[name]
            self._below(found, shorter, most)
            return

    def _is_folder(self, name: str) -> bool:
        return any(
            os.path.isdir(os.path.join(folder, name)) for folder in (self.given or self._folder, self.root)
        )


def _shared(lists: Sequence[list[str]]) -> list[str]:
    """Return the items that all of the lists begin with."""
    low, high = min(lists), max(lists)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return [item for item, _ in alike]


def _foreign(path: str) -> bool:
    """Return whether a path begins at a drive or a root."""
    return path.startswith("/") or bool(_DRIVE.match(path)) or "://" in path


def _by_start(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["/".join(name.split("/")[: 2 if _foreign(name) else 1])].append(name)
    return [group for group in groups.values() if "/" in group[0]]


def _one_each(found: Found) -> None:
    """Undo what was found by rules if two names of the list would mean one file."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, place in found.paths.items():
        if place:
            names[place].append(name)
    for place, several in names.items():
        if len(several) > 1:
            for name in several:
                if name != place:
                    found.paths[name] = ""


def _rule(path: str, name: str, place: str, base: str) -> str:
    """Return the rule that led from a name in the list to a place, in words."""
    words = []
    if path != name:
        words.append(f"without {name[: len(name) - len(path)]!r}")
    tail = place[len(base) :].lstrip("/")
    if base:
        words.append(f"below {base}/")
    ending = extension(tail)
    if len(key(tail)) > len(key(path)) and ending:
        words.append(f"with {ending}")
        tail = tail[: -len(ending)]
    if tail != path.strip("/"):
        if unicodedata.normalize("NFC", tail) == unicodedata.normalize("NFC", path):
            words.append("in another Unicode form")
        elif tail.casefold() == path.casefold():
            words.append("in another case")
        else:
            words.append("in another spelling")
    return ", ".join(words)


def report(found: Found, path: str, note: Note) -> None:
    """Say by which rules images were found, and which are missing."""
    title = printable(posixpath.basename(path))
    for rule, number in found.rules.most_common(4):
        if rule:
            note(f"{many(number, 'path')} of {title} found {printable(rule)}.")
    missing = [name for name, place in found.paths.items() if not place]
    if missing:
        note(
            f"{many(len(missing), 'image')} of {many(len(found.paths), 'image')} that {title} lists "
            f"{'is' if len(missing) == 1 else 'are'} not there: {some(missing, 3)}."
        )
