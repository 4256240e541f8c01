"""From what a person names as data to the table of samples, every row with its split.

Decides how a source is read (folder, list, archive, annotations, known name), fills in splits and class
indices, and gathers the notes for the person. The reading itself is in the modules beside; nothing is decoded
here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tellapart.data import annotation_formats as formats
from tellapart.data import archives, copies, folders, known, lists, lookalikes, splits
from tellapart.data.annotations import FORMATS, detect, json_format, read_annotations
from tellapart.data.listing import Listing, many, printable, some, split_of_stem
from tellapart.data.samples import SPLITS, Samples
from tellapart.errors import DataError, did_you_mean
from tellapart.spec import DataSpec

_EXPECTED = (
    "Expected a folder of images, a list (.csv, .tsv, .jsonl), an archive (.tar, .zip), an annotation file "
    "(.xml, .json) or the name of a known data set"
)


class Notes(list[str]):
    """What is to be told to the person: said at once, and kept for the table."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def __call__(self, text: str) -> None:
        """Say and keep a note."""
        self.append(text)
        self._say(text)


def open_source(spec: DataSpec, say: Callable[[str], None]) -> Samples:
    """Return the samples of ``spec.source``, each with its split.

    A source's own splits are kept; where it has a train part and no val, val is taken from train
    (``val_fraction``); where it has no splits at all, val and test are taken (``test_fraction``): stratified,
    seeded, and never through a group (`splits.assign`). Classes are the union over all splits, sorted by name
    (a known set's: the official order). ``say`` receives each note, as it is found; all of them are in
    ``Samples.notes`` too. Raises DataError (and OfflineError, MissingPackageError for known names), each
    saying what would be right.
    """
    notes = Notes(say)
    name = _known_name(spec, notes)
    if name:
        listing = known.open_known(name, spec, notes)
    else:
        path = _existing(spec)
        listing = _open_path(path, spec, notes)
        listing.name = listing.name or _title(path)
    if not listing.paths:
        raise DataError(
            f"No image with a label can be used in {printable(spec.source)!r}. " + " ".join(notes)
        )
    return _finish(listing, spec, notes)


# --- Which source -----------------------------------------------------------------------------------------


def _title(path: str) -> str:
    return printable(os.path.basename(os.path.normpath(os.path.abspath(path))))


def _known_name(spec: DataSpec, notes: Notes) -> str:
    """Return the known data set that is meant, or "" for a path; a path of that name wins, and that is "
    "said.
    """
    name = known.canonical(spec.source)
    if spec.format == "name":
        if not name:
            raise DataError(
                f"There is no known data set {printable(spec.source)!r}. "
                f"{did_you_mean(spec.source, known.names())}"
            )
        return name
    if name and (spec.format != "auto" or os.path.exists(os.path.expanduser(spec.source))):
        notes(f"{spec.source!r} is taken as a path; --data.format name means the known data set.")
        return ""
    return name


def _existing(spec: DataSpec) -> str:
    source = os.path.expanduser(spec.source)
    if not source.strip():
        raise DataError(f"data.source is empty. {_EXPECTED}.")
    try:
        found = os.path.exists(source)
    except ValueError:  # a NUL in the name
        found = False
    if not found:
        raise DataError(
            f"There is no {printable(source)!r} (looked for at {printable(os.path.abspath(source))!r}), and "
            f"no known data set has that name. {did_you_mean(source, known.names())} {_EXPECTED}."
        )
    return os.path.abspath(source)


def _open_path(path: str, spec: DataSpec, notes: Notes) -> Listing:
    if os.path.isdir(path):
        return _open_folder(path, spec, notes)
    if archives.is_archive(path):
        return _open_folder(archives.extract(path, archives.cache_folder(spec), notes), spec, notes)
    if spec.format == "list" or (spec.format == "auto" and lists.is_list(path)):
        return lists.read_list(path, spec, notes)
    kind = _file_format(path, spec)
    if kind:
        folder, name = os.path.split(os.path.abspath(path))
        prefix = ""
        if os.path.basename(folder).lower() in ("annotations", "labels"):
            folder, prefix = os.path.split(folder)
        only = f"{prefix}/{name}" if prefix else name
        return read_annotations(folders.walk(folder, notes), kind, spec, notes, only)
    if folders.extension(path) in folders.IMAGE_EXTENSIONS or folders.looks_like_image(path):
        raise DataError(f"{printable(path)!r} is a single image. {_EXPECTED}.")
    raise DataError(f"{printable(path)!r} is not a kind of data that is known. {_EXPECTED}.")


def _file_format(path: str, spec: DataSpec) -> str:
    """Return the annotation format of a file, "" if it is of none."""
    if spec.format in FORMATS:
        return spec.format
    if spec.format != "auto":
        raise DataError(f"data.format is {spec.format!r}, but {printable(path)!r} is a file.")
    kind = folders.extension(path)
    if kind == ".xml" and formats.looks_like_voc(path):
        return "voc"
    return json_format(path) if kind == ".json" else ""


def _open_folder(path: str, spec: DataSpec, notes: Notes) -> Listing:
    arrays = known.open_local(path, notes) if spec.format == "auto" else None
    if arrays is not None:
        return arrays
    tree = folders.walk(path, notes)
    kind: str = spec.format if spec.format in FORMATS else ""
    if not kind and spec.format == "auto":
        kind = detect(tree)
    if kind:
        return read_annotations(tree, kind, spec, notes)
    found = [] if spec.format == "folder" else _lists_of(tree, spec)
    if found:
        return _open_lists(tree, found, spec, notes)
    if spec.format == "list":
        raise DataError(
            f"{printable(path)!r} holds no list (.csv, .tsv, .jsonl) of files that are there with columns "
            "for a path and a label."
        )
    if not tree.images:
        inner = _wrapped(tree)
        if inner:
            return _open_folder(os.path.join(path, inner), spec, notes)
    return known.name_imagenet(folders.read_folder(tree, notes), notes)


def _wrapped(tree: folders.Tree) -> str:
    """Return the only folder of a tree without images (a packed set of arrays in one folder), else ""."""
    tops = {path.partition("/")[0] for path in tree.others if "/" in path}
    return tops.pop() if len(tops) == 1 else ""


def _lists_of(tree: folders.Tree, spec: DataSpec) -> list[str]:
    """Return the lists that describe the folder: at its top or in one wrapping folder, with columns.

    Unless ``spec.format`` says list, folders of splits with classes go before lists, and so do class folders
    where a list names no file that is there, or where there are several lists without a split in their names.
    """
    given = spec.format == "list"
    if not given and tree.images and folders.has_split_folders(tree):
        return []
    candidates = [path for path in tree.others if lists.is_list(path)]
    depth = min((path.count("/") for path in candidates), default=0)
    top = [path for path in candidates if path.count("/") == depth < 2]
    usable = [path for path in top if lists.is_usable(os.path.join(tree.root, path))]
    several = len(usable) > 1 and not all(map(split_of_stem, usable))
    if several and given:
        raise DataError(
            f"{printable(tree.root)!r} holds several lists ({some(usable)}); give the path of one."
        )
    return [] if several else usable


def _open_lists(tree: folders.Tree, found: Sequence[str], spec: DataSpec, notes: Notes) -> Listing:
    """Return the listing of one list, or of several named train, val and test."""
    notes(f"Read from {some(found)}; --data.format folder reads class folders instead.")
    parts = [lists.read_list(os.path.join(tree.root, path), spec, notes) for path in found]
    whole = parts[0]
    for path, part in zip(found, parts, strict=True):
        if split_of_stem(path) and not any(part.splits):
            part.splits = [split_of_stem(path)] * len(part.paths)
        if part is not whole:
            _extend(whole, part)
    return whole


def _extend(whole: Listing, part: Listing) -> None:
    for column in ("groups", "boxes"):
        one, other = getattr(whole, column), getattr(part, column)
        if (one is None) != (other is None):
            raise DataError(f"Some of the lists have a column for {column} and others have not.")
        if one is not None:
            one += other
    whole.paths += part.paths
    whole.labels += part.labels
    whole.splits += part.splits
    whole.conflicts += part.conflicts


# --- From a listing to the table --------------------------------------------------------------------------


def _finish(listing: Listing, spec: DataSpec, notes: Notes) -> Samples:
    classes = _class_names(listing, notes)
    index = {name: number for number, name in enumerate(classes)}
    labels = np.fromiter((index[label] for label in listing.labels), np.int64, len(listing.labels))
    groups = _groups(listing, spec, notes)
    _fill_splits(listing, labels, groups, spec, notes)
    _report_classes(labels, listing.splits, classes, notes)
    return Samples(
        paths=_objects(listing.paths),
        labels=labels,
        splits=_objects(listing.splits),
        classes=classes,
        root=listing.root,
        name=listing.name,
        groups=None if groups is None else _objects(groups),
        boxes=None if listing.boxes is None else np.asarray(listing.boxes, np.float64).reshape(-1, 4),
        pixels=listing.pixels,
        keys=listing.keys,
        conflicts=tuple(listing.conflicts),
        notes=tuple(notes),
    )


def _objects(items: Sequence[str]) -> npt.NDArray[np.object_]:
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


def _class_names(listing: Listing, notes: Notes) -> tuple[str, ...]:
    found = set(listing.labels)
    classes = listing.classes or tuple(sorted(found))
    if len(found) == 1:
        notes(f"There is only one class, {next(iter(found))!r}; training needs two.")
    if not listing.classes:  # the names of a known set are what its authors meant
        for warning in lookalikes.warnings(classes):
            notes(warning)
    return classes


def _groups(listing: Listing, spec: DataSpec, notes: Notes) -> list[str] | None:
    """Return the group of each row: a list's column, or what the pattern finds in the path; else its own "
    "path.
    """
    groups = listing.groups
    if groups is None and spec.group:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated spellings of patterns still work
                pattern = re.compile(spec.group)
        except re.error as error:
            raise DataError(
                f"data.group is {spec.group!r}, which is not a regular expression: {error}."
            ) from error
        groups = []
        for path in listing.paths:
            match = pattern.search(path)
            groups.append("" if match is None else (match[1] if pattern.groups else match[0]) or "")
        if not any(groups):
            raise DataError(
                f"data.group is {spec.group!r}, which matches no path; the first is {listing.paths[0]!r}."
            )
    if groups is None:
        return None
    alone = groups.count("")
    if alone:
        notes(f"{many(alone, 'image')} without a group count as groups of their own.")
    return [group or path for group, path in zip(groups, listing.paths, strict=True)]


def _fill_splits(
    listing: Listing, labels: npt.NDArray[np.int64], groups: list[str] | None, spec: DataSpec, notes: Notes
) -> None:
    column = listing.splits
    if any(column):
        unknown = column.count("")
        if unknown:
            notes(f"{many(unknown, 'image')} without a split count as train.")
            column = listing.splits = [split or "train" for split in column]
        if "train" in column and "val" not in column and spec.val_fraction > 0:
            rows = np.flatnonzero(np.fromiter((split == "train" for split in column), bool, len(column)))
            _deal(listing, labels, groups, rows, (spec.val_fraction, 0.0), spec, notes)
        if groups is not None and (cut := splits.crossing(groups, listing.splits)):
            notes(f"The source's own splits cut through {many(cut, 'group')}: its figures may be too good.")
    else:
        rows = np.arange(len(column))
        listing.splits = ["train"] * len(column)
        _deal(listing, labels, groups, rows, (spec.val_fraction, spec.test_fraction), spec, notes)
        taken = [
            f"{listing.splits.count(split):,} as {split}"
            for split in ("val", "test")
            if split in listing.splits
        ]
        if taken:
            notes(
                f"The source has no splits: {' and '.join(taken)} taken from its {many(len(rows), 'image')}."
            )
    _report_splits(listing.splits, notes)


def _deal(
    listing: Listing,
    labels: npt.NDArray[np.int64],
    groups: list[str] | None,
    rows: npt.NDArray[np.intp],
    fractions: tuple[float, float],
    spec: DataSpec,
    notes: Notes,
) -> None:
    dealt = copies.deal(listing, labels, groups, rows, fractions, spec, notes)
    for row, split in zip(rows.tolist(), dealt.tolist(), strict=True):
        listing.splits[row] = split


def _report_splits(column: Sequence[str], notes: Notes) -> None:
    present = set(column)
    if "train" not in present:
        notes("There is no train part: good for evaluation only.")
    elif "val" not in present:
        notes("There is no validation part: training uses everything, and its last epoch counts.")
    if "test" not in present and "val" in present:
        notes("There is no test part: the final figures will be validation's.")


def _report_classes(
    labels: npt.NDArray[np.int64], column: Sequence[str], classes: Sequence[str], notes: Notes
) -> None:
    array = _objects(column)
    whole = np.bincount(labels, minlength=len(classes))
    if not whole.all():
        notes(f"Classes without any sample: {some(classes[k] for k in np.flatnonzero(whole == 0).tolist())}.")
    for split in SPLITS:
        counts = np.bincount(labels[array == split], minlength=len(classes))
        missing = np.flatnonzero((counts == 0) & (whole > 0))
        if counts.any() and len(missing):
            names = some(classes[k] for k in missing.tolist())
            notes(f"{many(len(missing), 'class', 'classes')} of {len(classes)} not in {split}: {names}.")
