"""Which lists of a folder describe its images, and whether they or its class folders are read.

Says which lists are not used, and why. Reads lists through `lists`; knows nothing of annotation formats.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tellapart.data.sources import levels
from tellapart.data.sources.folders import class_folders
from tellapart.data.sources.folders.folder_tree import is_container
from tellapart.data.sources.folders.split_names import split_of_file
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import Listing, Note, many, printable, some
from tellapart.data.sources.lists import reading
from tellapart.data.sources.lists.reading import Plan
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_FORMS = re.compile(r"submission|submit", re.IGNORECASE)
_MOST = 100  # lists that are opened at most


@dataclass
class Lists:
    """The lists of a folder: ``used`` with how each is read, and why others are not (``unused``)."""

    used: dict[str, Plan] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def reasons(self, limit: int = 4) -> str:
        """Return a sentence on the lists that are not used, "" if there are none."""
        shown = [f"{printable(path)} is not used: {why}" for path, why in list(self.unused.items())[:limit]]
        more = len(self.unused) - limit
        return " ".join(shown) + (f" {many(more, 'more list')} not used." if more > 0 else "")

    def failures(self) -> str:
        """Return `reasons` if one of them may be what the user has to fix, otherwise ""."""
        return (
            self.reasons() if any(not _FORMS.search(os.path.basename(path)) for path in self.unused) else ""
        )


def wanted(spec: DataSpec) -> bool:
    """Return whether the spec asks for a list by its format or by an option that only lists have."""
    columns = (spec.path_column, spec.label_column, spec.split_column, spec.root, spec.suffix)
    return spec.format == "list" or (spec.format == "auto" and any(columns))


def look(tree: Tree, spec: DataSpec) -> Lists:
    """Return the lists of a folder that can be read, nearest to its top, and why others cannot.

    Of several, those named after splits, or in split folders, are read together; otherwise none is used.
    """
    found = Lists()
    candidates = [path for path in tree.others if path.count("/") < 3 and _is_candidate(tree, path)]
    for path in sorted(candidates, key=lambda path: (path.count("/"), path))[:_MOST]:
        if _FORMS.search(os.path.basename(path)):
            found.unused[path] = "its name says that it is a form for answers."
            continue
        try:
            plan = reading.plan(os.path.join(tree.root, path), tree.root, lambda: tree, spec)
            if reading.names_images(plan):
                found.used[path] = plan
            else:
                found.unused[path] = _names_none(plan)
        except DataError as error:
            found.unused[path] = _short(error, os.path.join(tree.root, path))
    _choose(found, tree, spec)
    return found


def _short(error: DataError, path: str) -> str:
    """Return an error's text without the list's path at its beginning."""
    text = str(error)
    for start in (f"{printable(path)!r} ", f"{printable(path)!r}, ", f"{printable(path)}, "):
        text = text.removeprefix(start)
    return text


def _names_none(plan: Plan) -> str:
    cells = [cell for cell in plan.table.cells(plan.columns.path, 20) if cell]
    first = f", such as {printable(cells[0])!r}" if cells else ""
    return f"its column {printable(plan.columns.path)!r} names no existing image{first}."


def _is_candidate(tree: Tree, path: str) -> bool:
    if reading.is_list(path):
        return True
    if extension(path) != ".txt" or path.count("/") > 1:
        return False
    return reading.is_list_of_images(os.path.join(tree.root, path))


def _choose(found: Lists, tree: Tree, spec: DataSpec) -> None:
    depth = min((path.count("/") for path in found.used), default=0)
    for path in [path for path in found.used if path.count("/") > depth]:
        found.unused[path] = "there are lists nearer to the top."
        del found.used[path]
    named = [path for path in found.used if split_of_file(path)]
    if len(found.used) < 2 or len(named) == len(found.used):
        return
    if len({split_of_file(path) for path in named}) > 1:
        for path in [path for path in found.used if path not in named]:
            found.unused[path] = f"{some(named)} name their splits."
            del found.used[path]
        return
    widest = _widest(found, tree, spec)
    if widest:
        for path in [path for path in found.used if path != widest]:
            found.unused[path] = f"{printable(widest)} names most images."
            del found.used[path]
        return
    if spec.format == "list":
        raise DataError(
            f"{printable(tree.root)!r} holds several lists ({some(found.used)}); give the path of one."
        )
    for path in list(found.used):
        found.unused[path] = "there are several lists; give the path of one as DATA."
    found.used.clear()


def _widest(found: Lists, tree: Tree, spec: DataSpec) -> str:
    """Return the list that names nearly all images, if none of the others names half as many; else ""."""
    named: dict[str, int] = {}
    for path, plan in found.used.items():
        try:
            part = reading.read_plan(plan, spec, lambda _: None)
            named[path] = len(set(part.paths) - part.missing) + len(part.conflicts)
        except DataError:
            named[path] = 0
    best = max(named, key=lambda path: named[path])
    alone = all(2 * number < named[best] for path, number in named.items() if path != best)
    return best if alone and named[best] >= 0.9 * len(tree.images) else ""


def prefers_lists(found: Lists, tree: Tree, spec: DataSpec) -> bool:
    """Return whether the used lists are read, and not the class folders; notes why in ``found.unused``.

    Split folders take precedence over lists, unless the lists label a further split. Lists that name most of the images
    take precedence over class folders without splits.
    """
    if not found.used or wanted(spec):
        return bool(found.used)
    try:
        quiet: Note = lambda _: None  # noqa: E731
        listing = class_folders.read_folder(tree, quiet, nested=levels.given(spec) == "/")
    except DataError:
        return True
    classes = set(listing.labels)
    if spec.labels == "multi" or len(classes) < 2 or any(map(is_container, classes)):
        return True
    start = os.path.relpath(listing.root, tree.root).replace(os.sep, "/")
    images = {path if start == "." else f"{start}/{path}" for path in listing.paths}
    try:
        parts = read_all(found, spec, quiet)
    except DataError as error:
        return _leave(found, str(error))
    named = {path for part in parts for path in part.paths if path not in part.missing}
    common = len(named & images)
    if any(listing.splits):
        more = {split for part in parts for split in part.splits} - {"", *listing.splits}
        return (bool(more) and 2 * common >= len(images)) or _leave(
            found, "the folders make splits and classes."
        )
    if common >= 0.9 * len(images):
        return True
    return _leave(found, f"it names {many(common, 'image')} of the {len(images):,} in class folders.")


def _leave(found: Lists, why: str) -> bool:
    for path in found.used:
        found.unused[path] = f"{why} --data.format list reads it."
    found.used.clear()
    return False


def read_all(found: Lists, spec: DataSpec, note: Note) -> list[Listing]:
    """Return the listing of each used list, each with the split that its name or folder says."""
    parts = []
    for path, plan in found.used.items():
        part = reading.read_plan(plan, spec, note)
        if split_of_file(path) and not any(part.splits):
            part.splits = [split_of_file(path)] * len(part.paths)
        parts.append(part)
    return parts


def read(found: Lists, tree: Tree, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of one list, or of several named train, val and test."""
    note(f"Read from {some(found.used)}; --data.format folder reads class folders instead.")
    said: set[str] = set()

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    whole, *others = read_all(found, spec, once)
    for part in others:
        _extend(whole, part)
    _say_unlisted(whole, tree, note)
    _keep_last(whole, note)
    return whole


def _say_unlisted(whole: Listing, tree: Tree, note: Note) -> None:
    """Say how many images of the folder are in no list."""
    named = {*whole.paths, *(conflict.path for conflict in whole.conflicts)}
    places = Counter(f"{os.path.dirname(path)}/".lstrip("/") for path in tree.images if path not in named)
    if whole.root == tree.root and places:
        shown = some((place or "the top folder" for place, _ in places.most_common()), 3)
        note(f"Skipped {many(sum(places.values()), 'image')} that no list gives a label (in {shown}).")


def _extend(whole: Listing, part: Listing) -> None:
    if (whole.sets is None) != (part.sets is None):
        raise DataError(
            "Some of the lists give images several labels, and others one. --data.labels multi reads all as several."
        )
    for column in ("groups", "boxes", "sets"):
        one, other = getattr(whole, column), getattr(part, column)
        if (one is None) != (other is None):
            raise DataError(f"Some of the lists have a column for {column} and others have not.")
        if one is not None:
            one += other
    if part.root != whole.root:
        raise DataError(f"The lists start from different folders: {some([whole.root, part.root])}.")
    whole.paths += part.paths
    whole.labels += part.labels
    whole.splits += part.splits
    whole.conflicts += part.conflicts
    whole.missing |= part.missing
    whole.bad += part.bad


def _keep_last(whole: Listing, note: Note) -> None:
    """Keep an image that several lists name in the last of its splits only; leave out one with two labels."""
    if whole.boxes is not None or len(set(whole.paths)) == len(whole.paths):
        return
    rank = {"": 0, "train": 1, "val": 2, "test": 3}
    best: dict[str, int] = {}
    labels: dict[str, set[str]] = {}
    for row, path in enumerate(whole.paths):
        labels.setdefault(path, set()).add(whole.labels[row])
        if path not in best or rank[whole.splits[row]] > rank[whole.splits[best[path]]]:
            best[path] = row
    torn = {path for path, names in labels.items() if len(names) > 1}
    if whole.sets is not None:  # with the labels of all lists
        sets: dict[str, dict[str, None]] = {}
        for path, several in zip(whole.paths, whole.sets, strict=True):
            sets.setdefault(path, {}).update(dict.fromkeys(several))
        whole.sets = [tuple(sets[path]) for path in whole.paths]
    rows = [row for path, row in best.items() if path not in torn]
    note(
        f"Skipped {many(len(whole.paths) - len(best), 'row')} of images that several lists name: each image counts in "
        "the last of train, val, test only."
    )
    if torn:
        note(f"Skipped {many(len(torn), 'image')} with different labels in several lists.")
    _keep(whole, rows)


def _keep(whole: Listing, rows: Sequence[int]) -> None:
    for name in ("paths", "labels", "splits", "groups", "sets"):
        column = getattr(whole, name)
        if column is not None:
            setattr(whole, name, [column[row] for row in rows])
