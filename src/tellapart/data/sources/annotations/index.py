"""Which image file an annotation means: by its own name, and by the name inside."""

from __future__ import annotations

import posixpath
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tellapart.data.sources.annotations.entries import Entry
from tellapart.data.sources.listing import split_of_folders, split_of_stem

_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an upload


@dataclass
class Found:
    """The image that is meant, "" for none; ``other``: the one by the other name; ``several``: all that fit."""

    image: str = ""
    other: str = ""
    several: tuple[str, ...] = ()


class ImageIndex:
    """Finds the image file that an annotation means."""

    def __init__(self, images: Sequence[str]) -> None:
        self.paths = set(images)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.beside: dict[str, list[str]] = defaultdict(list)
        for path in images:
            name = _folded(posixpath.basename(path))
            self.by_name[name].append(path)
            self.by_stem[posixpath.splitext(name)[0]].append(path)
            self.beside[_folded(posixpath.splitext(path)[0])].append(path)

    def find(self, entry: Entry, match: str = "auto") -> Found:
        """Return the image of an entry.

        A file for one image (``own``) means the image with its own stem: beside it, in the ``images`` twin of its
        ``labels`` or ``annotations`` folder, or anywhere; if there are several, the name inside decides. Otherwise, or
        if ``match`` is "name", the name inside counts.
        """
        named = self.named(entry)
        if not entry.own:
            return Found(named)
        same = self.beside_or_twin(entry.source)
        anywhere = self.by_stem.get(_folded(_stem(entry.source)), [])
        if match == "name" and named:
            return Found(named)
        if named and (named in same or (not same and (named in anywhere or not anywhere))):
            return Found(named)
        if len(same) > 1 or (not same and len(anywhere) > 1):
            nearest = "" if same else _nearest(entry.source, anywhere)
            if not nearest:
                return Found(several=tuple(same or anywhere))
            return Found(nearest, named)
        own = (same or anywhere or [""])[0]
        return Found(own or named, named if own and named != own else "")

    def beside_or_twin(self, source: str) -> list[str]:
        """Return the images with a file's stem, beside it or otherwise in the twin of its folder."""
        stem = posixpath.splitext(source)[0]
        twin = re.sub(r"(^|.*/)(?:labels|annotations)(/)", r"\1images\2", stem, flags=re.IGNORECASE)
        return self.beside.get(_folded(stem)) or self.beside.get(_folded(twin)) or []

    def named(self, entry: Entry) -> str:
        """Return the image that an entry names, or "".

        In this order: the path relative to the annotation file, relative to the root; the longest tail of it that
        exists, in any case and Unicode form; the name without Label Studio's prefix; the name without an extension. Of
        several, the one that shares most of the annotation file's folders and split.
        """
        for image in _spellings(entry.image):
            folder = posixpath.dirname(entry.source)
            for candidate in (posixpath.normpath(posixpath.join(folder, image)), posixpath.normpath(image)):
                if candidate in self.paths:
                    return candidate
            found = self._by_tail(image, entry)
            if found:
                return found
        return ""

    def _by_tail(self, image: str, entry: Entry) -> str:
        name = _folded(posixpath.basename(image))
        candidates = self.by_name.get(name) or self.by_stem.get(name, [])
        if len(candidates) > 1:
            exact = [path for path in candidates if posixpath.basename(path) == posixpath.basename(image)]
            candidates = exact or candidates
        if len(candidates) > 1:
            parts = _folded(f"{entry.folder}/{image}" if entry.folder and "/" not in image else image).split(
                "/"
            )
            lengths = {path: _common_tail(_folded(path).split("/"), parts) for path in candidates}
            longest = max(lengths.values())
            if longest > 1:
                candidates = [path for path in candidates if lengths[path] == longest]
        return _nearest(entry.source, candidates)


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _spellings(image: str) -> list[str]:
    """Return a name as a path with forward slashes, and what it may stand for as a web address or an upload."""
    image = image.strip().replace("\\", "/")
    if not image:
        return []
    found = [image]
    address = re.match(r"[A-Za-z][\w+.-]+://", image)
    if "/local-files/?" in image:
        found.append(urllib.parse.unquote(image.rpartition("d=")[2]))
    elif address or "?" in image:
        found.append(image.partition("?")[0].partition("#")[0] if "?" in image else image)
    if "%" in image:
        found += [urllib.parse.unquote(text) for text in found]
    plain = [_UPLOADED.sub("", posixpath.basename(text)) for text in found]
    return list(dict.fromkeys([*found, *plain]))


def _common_tail(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _nearest(source: str, candidates: Sequence[str]) -> str:
    if len(candidates) < 2:
        return candidates[0] if candidates else ""
    split = split_of_folders(source) or split_of_stem(source)
    parts = set(source.split("/")[:-1])

    def likeness(path: str) -> tuple[bool, int]:
        return bool(split) and split_of_folders(path) == split, len(parts & set(path.split("/")[:-1]))

    ranked = sorted(candidates, key=likeness, reverse=True)
    return ranked[0] if likeness(ranked[0]) > likeness(ranked[1]) else ""
