"""Data sets with annotation files: which format it is, which image each file means, and the table of it all.

One image-level label for each image, or one row for each box. An image with two labels is a conflict,
reported and left out, never decided here. The formats themselves are parsed in `annotation_formats`.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from PIL import Image

from tellapart.data import annotation_formats as formats
from tellapart.data.annotation_formats import Entry, Labelled
from tellapart.data.folders import Tree, extension
from tellapart.data.listing import (
    NO_BOX,
    Box,
    Listing,
    Note,
    clean_label,
    many,
    printable,
    some,
    split_of_folders,
    split_of_stem,
)
from tellapart.data.samples import Conflict
from tellapart.errors import DataError
from tellapart.spec import DataSpec

FORMATS = ("voc", "createml", "yolo", "coco")
TITLES = {"voc": "Pascal VOC", "createml": "CreateML", "yolo": "YOLO", "coco": "COCO"}
_YOLO_NAMES = ("classes.txt", "obj.names", "labels.txt")


class ImageIndex:
    """Finds the image file that an annotation file means."""

    def __init__(self, images: Sequence[str]) -> None:
        self.paths = set(images)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.beside: dict[str, str] = {}
        for path in images:
            name = posixpath.basename(path)
            self.by_name[name].append(path)
            self.by_stem[posixpath.splitext(name)[0]].append(path)
            self.beside.setdefault(posixpath.splitext(path)[0], path)

    def find(self, source: str, image: str) -> str:
        """Return the image that ``source`` calls ``image``, or "".

        In this order: the name relative to the annotation file, relative to the root; a file of that name
        anywhere; the annotation file's own name beside it, in the ``images`` twin of its ``labels`` folder,
        or anywhere. Of several, the one that shares most of the annotation file's folders and split; none if
        that is undecided.
        """
        image = image.replace("\\", "/")
        folder = posixpath.dirname(source)
        if image:
            for candidate in (posixpath.normpath(posixpath.join(folder, image)), posixpath.normpath(image)):
                if candidate in self.paths:
                    return candidate
            named = [
                p for p in self.by_name.get(posixpath.basename(image), ()) if f"/{p}".endswith(f"/{image}")
            ]
            found = _nearest(source, named or self.by_name.get(posixpath.basename(image), []))
            if found:
                return found
        stem = posixpath.splitext(source)[0]
        for candidate in (stem, re.sub(r"(^|.*/)(?:labels|annotations)(/)", r"\1images\2", stem, flags=re.I)):
            if candidate in self.beside:
                return self.beside[candidate]
        return _nearest(source, self.by_stem.get(posixpath.basename(stem), []))


def _nearest(source: str, candidates: Sequence[str]) -> str:
    if len(candidates) < 2:
        return candidates[0] if candidates else ""
    split = split_of_folders(source) or split_of_stem(source)
    parts = set(source.split("/")[:-1])

    def likeness(path: str) -> tuple[bool, int]:
        return bool(split) and split_of_folders(path) == split, len(parts & set(path.split("/")[:-1]))

    ranked = sorted(candidates, key=likeness, reverse=True)
    return ranked[0] if likeness(ranked[0]) > likeness(ranked[1]) else ""


def detect(tree: Tree) -> str:
    """Return the annotation format that a folder holds ("voc", "createml", "yolo", "coco"), or "" for none.

    Looks into at most 20 files of each kind.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in tree.others:
        kinds[extension(path)].append(path)
    if any(formats.looks_like_voc(os.path.join(tree.root, path)) for path in kinds[".xml"][:20]):
        return "voc"
    for path in kinds[".json"][:20]:
        found = json_format(os.path.join(tree.root, path))
        if found:
            return found
    if not kinds[".txt"]:
        return ""
    index = ImageIndex(tree.images)
    paired = (os.path.join(tree.root, path) for path in kinds[".txt"] if index.find(path, ""))
    filled = [path for path in itertools.islice(paired, 20) if os.stat(path).st_size]
    return "yolo" if filled and all(map(formats.looks_like_yolo, filled)) else ""


def json_format(path: str) -> str:
    """Return "coco" or "createml" for a JSON file of that format, else ""."""
    try:
        with open(path, "rb") as stream:
            if stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
                return ""
        value = formats.load_json(path)
    except (DataError, OSError):
        return ""
    return "coco" if formats.is_coco(value) else "createml" if formats.is_createml(value) else ""


def read_annotations(tree: Tree, kind: str, spec: DataSpec, note: Note, only: str = "") -> Listing:
    """Return the listing of a folder with annotation files of format ``kind`` (``only``: of just that file).

    Splits come from folders named train, val, test, VOC's ``ImageSets/Main``, or the name of a COCO or
    CreateML file. Raises DataError where no annotation can be used.
    """
    sources = [only] if only else tree.others
    reader = {"voc": _voc, "createml": _json, "coco": _json, "yolo": _yolo}[kind]
    index = ImageIndex(tree.images)
    objects: dict[str, list[Labelled]] = defaultdict(list)
    splits: dict[str, str] = {}
    relative: set[str] = set()
    missing: list[str] = []
    for entry, split in reader(tree, sources, kind):
        image = index.find(entry.source, entry.image)
        if not image:
            missing.append(entry.image or entry.source)
            continue
        objects[image] += entry.objects
        splits[image] = split_of_folders(image) or split_of_folders(entry.source) or split
        relative |= {image} if entry.relative else set()
    if not objects:
        lost = f" The first names {printable(missing[0])!r}, which is not there." if missing else ""
        raise DataError(
            f"No {TITLES[kind]} annotations of images were found in {printable(tree.root)!r}.{lost}"
        )
    if missing:
        note(f"{many(len(missing), 'annotation')} without their image left out: {some(missing, 3)}.")
    if not only:
        bare = sum(image not in objects for image in tree.images)
        if bare:
            note(f"{many(bare, 'image')} without an annotation left out.")
    if kind == "voc":
        splits = _image_sets(tree, splits)
    note(f"Read as {TITLES[kind]} annotations of {many(len(objects), 'image')}.")
    make = _crops if spec.boxes == "crop" else _images
    return make(Listing(root=tree.root), objects, splits, relative, note)


def _voc(tree: Tree, sources: Iterable[str], kind: str) -> Iterator[tuple[Entry, str]]:
    for source in sources:
        if extension(source) == ".xml" and formats.looks_like_voc(os.path.join(tree.root, source)):
            yield formats.read_voc(tree.root, source), ""


def _json(tree: Tree, sources: Iterable[str], kind: str) -> Iterator[tuple[Entry, str]]:
    for source in sources:
        if extension(source) != ".json":
            continue
        value = formats.load_json(os.path.join(tree.root, source))
        entries: list[Entry] = []
        if kind == "coco" and formats.is_coco(value):
            entries = list(formats.read_coco(value, source))
        if kind == "createml" and formats.is_createml(value):
            entries = list(formats.read_createml(value, source))
        split = split_of_stem(source) if len(entries) > 1 else ""
        for entry in entries:
            yield entry, split


def _yolo(tree: Tree, sources: Iterable[str], kind: str) -> Iterator[tuple[Entry, str]]:
    names = _YoloNames(tree)
    for source in sources:
        path = os.path.join(tree.root, source)
        if extension(source) != ".txt" or posixpath.basename(source).lower() in _YOLO_NAMES:
            continue
        if os.stat(path).st_size == 0:
            yield Entry(source, ""), ""
        elif formats.looks_like_yolo(path):
            yield formats.read_yolo(tree.root, source, names.of(source)), ""


class _YoloNames:
    """Class names for a label file: of ``data.yaml`` if there is one, else of the nearest ``classes.txt`` "
    "above.
    """

    def __init__(self, tree: Tree) -> None:
        self.common: dict[int, str] = {}
        self.folders: dict[str, list[str]] = {}
        for path in tree.others:
            full = os.path.join(tree.root, path)
            if extension(path) in (".yaml", ".yml") and not self.common:
                self.common = formats.yolo_yaml(full)
            if posixpath.basename(path).lower() in _YOLO_NAMES and not formats.looks_like_yolo(full):
                lines = [clean_label(line) for line in formats.read_text(full).rstrip().splitlines()]
                self.folders.setdefault(posixpath.dirname(path), lines)

    def of(self, source: str) -> Mapping[int, str] | Sequence[str]:
        if self.common:
            return self.common
        folder = posixpath.dirname(source)
        while folder and folder not in self.folders:
            folder = posixpath.dirname(folder)
        if folder in self.folders:
            return self.folders[folder]
        return next(iter(self.folders.values())) if len(self.folders) == 1 else ()


def _image_sets(tree: Tree, splits: dict[str, str]) -> dict[str, str]:
    """Return ``splits`` with what ``ImageSets/Main/{train,val,test}.txt`` says where no folder says "
    "anything.
    """
    stems: dict[str, str] = {}
    for path in tree.others:
        name = re.search(r"(?:^|/)ImageSets/Main/(train|val|test)\.txt$", path)
        if name:
            lines = formats.read_text(os.path.join(tree.root, path)).split()
            stems.update(dict.fromkeys(lines, name[1]))
    return {p: s or stems.get(posixpath.splitext(posixpath.basename(p))[0], "") for p, s in splits.items()}


def _images(
    listing: Listing,
    objects: Mapping[str, list[Labelled]],
    splits: Mapping[str, str],
    _: set[str],
    note: Note,
) -> Listing:
    """Fill the listing with one row for each image that has one label."""
    empty = 0
    for image, found in sorted(objects.items()):
        labels = {label for label, _ in found}
        if not labels:
            empty += 1
        elif len(labels) > 1:
            listing.conflicts.append(Conflict(image, tuple(sorted(labels))))
        else:
            listing.add(image, labels.pop(), splits[image])
    if empty:
        note(f"{many(empty, 'image')} without a labelled box left out.")
    if listing.conflicts:
        note(
            f"{many(len(listing.conflicts), 'image')} with boxes of more than one label left out "
            f"({some([c.path for c in listing.conflicts], 3)}). --data.boxes crop makes a sample of each box."
        )
    return listing


def _crops(
    listing: Listing,
    objects: Mapping[str, list[Labelled]],
    splits: Mapping[str, str],
    relative: set[str],
    note: Note,
) -> Listing:
    """Fill the listing with one row for each box; the same box twice is one row, with two labels a "
    "conflict.
    """
    listing.boxes = []
    empty = hollow = 0
    for image, found in sorted(objects.items()):
        empty += not found
        size = _upright_size(listing, image) if image in relative and found else None
        labels: dict[str, set[str]] = defaultdict(set)
        boxes: dict[str, Box] = {}
        for label, box in found:
            pixels = _in_pixels(box, size) if image in relative else box
            if pixels[0] >= pixels[2] or pixels[1] >= pixels[3]:
                hollow += 1
                continue
            labels[str(pixels)].add(label)
            boxes[str(pixels)] = pixels
        for key, names in labels.items():
            if len(names) > 1:
                listing.conflicts.append(Conflict(image, tuple(sorted(names))))
            else:
                listing.add(image, names.pop(), splits[image])
                listing.boxes.append(boxes[key])
    for number, text in ((empty, "image"), (hollow, "box")):
        if number:
            note(f"{many(number, text, 'boxes' if text == 'box' else '')} without content left out.")
    if listing.conflicts:
        note(f"{many(len(listing.conflicts), 'box', 'boxes')} with more than one label left out.")
    return listing


def _upright_size(listing: Listing, image: str) -> tuple[int, int] | None:
    """Return width and height after EXIF orientation, or None if unreadable (decoding will list the "
    "image).
    """
    try:
        with Image.open(os.path.join(listing.root, image)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # Pillow raises many kinds for damaged files; which one is decoding's to say
        return None
    return (height, width) if turned else (width, height)


def _in_pixels(box: Box, size: tuple[int, int] | None) -> Box:
    if size is None:
        return NO_BOX
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height
