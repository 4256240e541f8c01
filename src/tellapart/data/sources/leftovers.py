"""Annotation files beside class folders: which of the two the user means.

Neither may win silently: a leftover file would give wrong labels or, if it covers few images, hide the rest.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from tellapart.data.sources import levels
from tellapart.data.sources.annotations import TITLES, read_annotations
from tellapart.data.sources.folders import class_folders
from tellapart.data.sources.folders.walk import Tree
from tellapart.data.sources.listing import Listing, Note, many, printable, some
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_CONTAINER = re.compile(
    r"(voc|images?|jpegimages|imgs?|photos?|pictures?|pics|batch|part|task|job|data|set)?[\W\d_]*",
    re.IGNORECASE,
)
_AGREE = 0.5  # share of labels equal to the folders' names from which on both name the same classes
_CORRESPOND = 0.95  # the same share if they only correspond


def class_folders_first(tree: Tree, kind: str, spec: DataSpec, note: Note) -> Listing | None:
    """Return class folders that take precedence over annotation files beside them, None if the annotations count.

    They do if every image is in a class folder, of at least two, and the annotations cover fewer than half of them,
    name only one class, or name the folders' classes. Raises DataError if the two name different classes.
    """
    own: list[str] = []
    kept = _complete(tree, own.append, levels.given(spec) == "/")
    if kept is None or spec.boxes == "crop":
        return None
    why = f"the {TITLES[kind]} annotations beside them are not"
    try:
        listing = read_annotations(tree, kind, spec, lambda text: None)
    except DataError as error:
        listing = None
        why += f": {error}"
    if listing is not None:
        reason = _leftover(tree, kept, listing)
        if not reason and listing.sets is not None:
            return None  # several labels were asked for, which the folders do not have
        if not reason:
            raise DataError(
                f"{printable(tree.root)!r} holds class folders ({some(sorted(set(kept.labels)), 5)}) and "
                f"{TITLES[kind]} annotations with other labels ({some(sorted(set(listing.labels)), 5)}). Say which "
                f"counts: --data.format folder or --data.format {kind}."
            )
        why += f" ({reason}); --data.format {kind} reads those."
    for text in (*own, f"Class folders are read, and {why}"):
        note(text)
    return kept


def _complete(tree: Tree, note: Note, nested: bool) -> Listing | None:
    """Return the class folders of a tree if they contain all of its images, and are at least two."""
    try:
        found = class_folders.read_folder(tree, note, nested=nested)
    except DataError:
        return None
    names = set(found.labels)
    containers = all(_CONTAINER.fullmatch(name) and not name.isdecimal() for name in names)
    return None if len(names) < 2 or len(found.paths) < len(tree.images) or containers else found


def _leftover(tree: Tree, kept: Listing, listing: Listing) -> str:
    """Return why annotations do not count beside complete class folders, "" if they may."""
    covered = len(listing.paths) + len(listing.conflicts)
    images = many(len(tree.images), "image")
    if 2 * covered < len(tree.images):
        return f"they speak of {covered:,} of {images}"
    if listing.sets is not None:
        return ""
    if len(set(listing.labels)) < 2:
        return f"they name one class, {some(sorted(set(listing.labels)))}"
    prefix = os.path.relpath(kept.root, tree.root).replace(os.sep, "/")
    whole = (posixpath.normpath(posixpath.join(prefix, path)) for path in kept.paths)
    folder = dict(zip(whole, kept.labels, strict=True))
    pairs = [(folder[path], label) for path, label in zip(listing.paths, listing.labels, strict=True)]
    same = sum(one.casefold() == other.casefold() for one, other in pairs)
    usual = {one: count.most_common(1)[0] for one, count in _by_first(pairs).items()}
    distinct = len({label for label, _ in usual.values()}) == len(usual) == len(set(listing.labels))
    corresponding = sum(number for _, number in usual.values()) if distinct else 0
    if same >= _AGREE * len(pairs):
        return f"their labels are the folders' for {same:,} of {many(len(pairs), 'image')}"
    if corresponding >= _CORRESPOND * len(pairs):
        return f"their labels correspond to the folders' for {corresponding:,} of {many(len(pairs), 'image')}"
    return ""


def _by_first(pairs: Sequence[tuple[str, str]]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one, other in pairs:
        counts[one][other] += 1
    return counts
