"""The splits in files beside annotations: VOC's ImageSets, and the image lists of YOLO data sets."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from tellapart.data.sources.annotations.entries import Entry, Files
from tellapart.data.sources.annotations.index import ImageIndex
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import Note, many, split_name, split_of_stem
from tellapart.data.sources.text import lines

_RANK = {"": 0, "train": 1, "val": 2, "test": 3}
_LOOKS = 20  # lines of a file that decide whether it lists images


def one_split(found: Mapping[str, set[str]], note: Note) -> dict[str, str]:
    """Return one split for each image: of several the last of train, val, test, with a message."""
    crossing = sum(len(splits - {""}) > 1 for splits in found.values())
    if crossing:
        note(
            f"{many(crossing, 'image')} listed in more than one split kept in the last of train, val, test only."
        )
    return {image: max(splits, key=_RANK.__getitem__) for image, splits in found.items()}


def image_sets(tree: Tree, files: Files, images: Iterable[str]) -> dict[str, set[str]]:
    """Return the splits that ``ImageSets/Main/{train,val,test}.txt`` give to images, by their stems."""
    stems: dict[str, set[str]] = {}
    for path in tree.others:
        name = re.search(r"(?:^|/)ImageSets/(?:Main/)?(\w+)\.txt$", path, re.IGNORECASE)
        split = split_name(name[1]) if name else ""
        for line in lines(files.text(path)) if split else ():
            words = line.split()
            for stem in {line.strip(), words[0]} if words else ():
                stems.setdefault(stem, set()).add(split)
    found = {}
    for image in images:
        base = posixpath.basename(image)
        splits = stems.get(posixpath.splitext(base)[0], set()) | stems.get(base, set())
        if splits:
            found[image] = splits
    return found


def image_lists(tree: Tree, files: Files) -> dict[str, set[str]]:
    """Return the splits that ``train.txt``, ``val.txt`` and ``test.txt`` with paths of images give to these."""
    index = ImageIndex(tree.images)
    found: dict[str, set[str]] = {}
    for path in tree.others:
        split = split_of_stem(path) if extension(path) == ".txt" and not index.beside_or_twin(path) else ""
        if not split:
            continue
        names = [line.strip() for line in lines(files.text(path)) if line.strip()]
        if not any(index.named(Entry(path, name)) for name in names[:_LOOKS]):
            continue
        for name in names:
            image = index.named(Entry(path, name))
            if image:
                found.setdefault(image, set()).add(split)
    return found
