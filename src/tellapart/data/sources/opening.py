"""From the user's data to the table of samples, every row with its split.

Decides how a source is read (folder, list, archive, annotations, known name), fills in splits and class indices, and
gathers the messages. The reading itself is in the other modules; nothing is decoded here.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import SPLITS, Samples, class_counts
from tellapart.data.sources import (
    archives,
    class_names,
    containers,
    copies,
    folds,
    known,
    linked,
    lookalikes,
    splits,
)
from tellapart.data.sources.annotations import FORMATS, TITLES, detect, file_format, read_annotations
from tellapart.data.sources.containers import unread, webdataset
from tellapart.data.sources.folders import class_folders, walk
from tellapart.data.sources.leftovers import class_folders_first
from tellapart.data.sources.listing import Guess, Listing, many, printable, some
from tellapart.data.sources.lists import in_folders, reading
from tellapart.data.sources.objects import Objects, explain, is_objects
from tellapart.data.sources.text import check_encoding
from tellapart.errors import DataError, did_you_mean
from tellapart.spec import DataSpec

_EXPECTED = (
    "Expected a folder of images, a list (.csv, .tsv, .jsonl), an archive (.tar, .zip), an annotation file "
    "(.xml, .json), a Parquet file with image bytes, WebDataset shards or the name of a known data set"
)


class Notes(list[str]):
    """Messages for the user: shown at once, and kept for the table."""

    def __init__(self, say: Callable[[str], None], warn: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._say, self._warn = say, warn or say
        self.guesses: list[str] = []

    def __call__(self, text: str) -> None:
        """Show and keep a note; a guess waits until its result is known."""
        if isinstance(text, Guess):
            self.guesses.append(text)
            return
        self.append(text)
        self._say(text)

    def warn(self, text: str) -> None:
        """Show and keep a warning."""
        self.append(text)
        self._warn(text)

    def tell_guesses(self, classes: Sequence[str] = ()) -> None:
        """Warn about each guess, with class names that show whether it is right."""
        telling = [name for name in classes if not name.isascii()]
        names = f" The classes are then: {some(telling or classes, 6)}." if classes else ""
        for text in self.guesses:
            self.warn(f"{text}{names} If that is wrong, --data.encoding names the encoding.")
        self.guesses = []


def open_source(
    spec: DataSpec,
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,
    given: Objects | None = None,
) -> Samples:
    """Return the samples of ``spec.source``, each with its split.

    A source's own splits are kept; if it has a train split and no val, val is held out from train
    (``val_fraction``); if it has no splits at all, val and test are held out (``test_fraction``): stratified, seeded,
    and never dividing a group (`splits.assign`). Classes are the union over all splits, sorted by name (a known set's:
    the official order). ``say`` receives each note, as it is found, and ``warn`` (None: ``say``) each warning; all of
    them are in ``Samples.notes`` too. ``given``: the Python objects that the source names. Raises DataError (and
    OfflineError, MissingPackageError for known names), each saying what would be right.
    """
    notes = Notes(say, warn)
    check_encoding(spec.encoding)
    try:
        listing = _read(spec, given, notes)
    except DataError:
        notes.tell_guesses()  # one may be the reason
        raise
    notes.tell_guesses(sorted(set(listing.labels)))
    if listing.bad and spec.on_bad_image == "error":
        raise DataError(
            f"{many(len(listing.bad), 'image or annotation', 'images or annotations')} cannot be used, the first: "
            f"{printable(listing.bad[0].path)}: {listing.bad[0].reason} Repair or remove them, or use "
            "--data.on-bad-image skip."
        )
    if not listing.paths:
        raise DataError(
            f"No image with a label can be used in {printable(spec.source)!r}. " + " ".join(notes)
        )
    if spec.labels == "multi" and listing.sets is None:
        listing = linked.merged(listing, notes)
    return _finish(listing, spec, notes)


# --- Which source -----------------------------------------------------------------------------------------


def _read(spec: DataSpec, given: Objects | None, notes: Notes) -> Listing:
    if given is not None:
        return given.listing(spec, notes)
    if is_objects(spec.source):
        raise DataError(explain(spec.source))
    named = {split: names for split in SPLITS if (names := getattr(spec, split))}
    name = "" if named else _known_name(spec, notes)
    if named:
        listing = _open_named(named, spec, notes)
    elif name:
        listing = known.open_known(name, spec, notes)
    else:
        shards = webdataset.expand(spec.source)
        path = _existing(shards[0] if shards else spec.source)
        listing = _open_shards(shards, spec, notes) if shards else _open_path(path, spec, notes)
        listing.name = listing.name or _title(path)
    return listing


def _title(path: str) -> str:
    return printable(os.path.basename(os.path.normpath(os.path.abspath(path))))


def _known_name(spec: DataSpec, notes: Notes) -> str:
    """Return the known data set that is meant, or "" for a path; a path takes precedence, with a message."""
    name = known.canonical(spec.source)
    if spec.format == "name":
        if not name:
            raise DataError(
                f"There is no known data set {printable(spec.source)!r}. "
                f"{did_you_mean(spec.source, known.names())}"
            )
        return name
    if name and (spec.format != "auto" or os.path.exists(os.path.expanduser(spec.source))):
        notes(f"{spec.source!r} is read as a path; --data.format name reads the known data set.")
        return ""
    return name


def _open_named(named: Mapping[str, Sequence[str]], spec: DataSpec, notes: Notes) -> Listing:
    """Return the listing of the folders that the spec names for the splits, in the source or anywhere."""
    if known.canonical(spec.source) and not os.path.exists(os.path.expanduser(spec.source)):
        where = os.getcwd()
    else:
        where = _existing(spec.source)
        if archives.is_archive(where):
            where = _unpacked(where, spec, notes)
    listing = class_folders.read_named(named, where, notes)
    listing.name = _title(where)
    return listing


def _existing(given: str) -> str:
    source = os.path.expanduser(given)
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


def _open_shards(shards: Sequence[str], spec: DataSpec, notes: Notes) -> Listing:
    """Return the listing of the shards that braces name, each of which has to exist."""
    paths = [_existing(shard) for shard in shards]
    root = os.path.dirname(paths[0])
    return webdataset.read_shards(root, [os.path.relpath(path, root) for path in paths], spec, notes)


def _open_path(path: str, spec: DataSpec, notes: Notes) -> Listing:
    if os.path.isdir(path):
        return _open_folder(path, spec, notes)
    packed = containers.open_file(path, spec, notes)
    if packed is not None:
        return packed
    if archives.is_archive(path):
        return _open_folder(_unpacked(path, spec, notes), spec, notes)
    kind = _file_format(path, spec)
    if kind:
        folder, name = os.path.split(os.path.abspath(path))
        prefix = ""
        if os.path.basename(folder).lower() in ("annotations", "labels"):
            folder, prefix = os.path.split(folder)
        only = f"{prefix}/{name}" if prefix else name
        return read_annotations(walk.walk(folder, notes), kind, spec, notes, only)
    if spec.format == "list" or (spec.format == "auto" and reading.is_list_of_images(path)):
        listing = reading.read_list(path, spec, notes)
        with os.scandir(listing.root) as entries:
            beside = sorted(entry.name for entry in entries if entry.name != os.path.basename(path))
        return class_names.name_numbers(listing, listing.root, beside, spec.encoding, notes)
    if walk.extension(path) in walk.IMAGE_EXTENSIONS or walk.looks_like_image(path):
        raise DataError(f"{printable(path)!r} is a single image. {_EXPECTED}.")
    known_as = unread.explain_file(path)
    raise DataError(
        f"{known_as} {_EXPECTED}."
        if known_as
        else f"{printable(path)!r} is not a kind of data that is known. {_EXPECTED}."
    )


def _unpacked(path: str, spec: DataSpec, notes: Notes) -> str:
    return archives.extract(path, archives.cache_folder(spec), notes, encoding=spec.encoding)


def _file_format(path: str, spec: DataSpec) -> str:
    """Return the annotation format of a file, "" if it is of none."""
    if spec.format in FORMATS:
        return spec.format
    if spec.format == "list":
        return ""
    if spec.format != "auto":
        raise DataError(f"data.format is {spec.format!r}, but {printable(path)!r} is a file.")
    return file_format(path)


def _open_folder(path: str, spec: DataSpec, notes: Notes) -> Listing:
    arrays = known.open_local(path, notes) if spec.format == "auto" else None
    if arrays is not None:
        return arrays
    tree = walk.walk(path, notes)
    kind: str = spec.format if spec.format in FORMATS else ""
    if not kind and spec.format == "auto":
        kind, *others = detect(tree) or [""]
        multi = spec.labels == "multi"
        kept = class_folders_first(tree, kind, spec, notes) if kind and not multi else None
        if kept is not None:
            return known.name_imagenet(kept, notes)
        for other in others:
            notes(f"There are {TITLES[other]} annotations too; --data.format {other} reads those.")
    if kind:
        return read_annotations(tree, kind, spec, notes)
    packed = containers.open_folder(tree, spec, notes)
    if packed is not None:
        return packed
    if not tree.images:
        inner = _wrapped(tree)
        if inner:
            return _open_folder(os.path.join(path, inner), spec, notes)
    return class_names.name_numbers(_open_tree(tree, spec, notes), path, tree.others, spec.encoding, notes)


def _open_tree(tree: walk.Tree, spec: DataSpec, notes: Notes) -> Listing:
    """Return the listing of a folder's lists or class folders, and say which lists are not used."""
    if spec.format in ("folder", "classes"):
        return known.name_imagenet(class_folders.read_folder(tree, notes, spec.format == "classes"), notes)
    found = in_folders.look(tree, spec)
    if in_folders.prefers_lists(found, tree, spec):
        listing = in_folders.read(found, tree, spec, notes)
    elif in_folders.wanted(spec):
        raise DataError(
            f"{printable(tree.root)!r} has no list (.csv, .tsv, .jsonl) of existing files with columns for a "
            f"path and a label. {found.reasons()}".rstrip()
        )
    else:
        try:
            listing = known.name_imagenet(class_folders.read_folder(tree, notes), notes)
        except DataError as error:
            raise DataError(f"{found.failures()} {error}".strip()) from error
    if found.unused:
        notes(found.reasons())
    return listing


def _wrapped(tree: walk.Tree) -> str:
    """Return the only folder of a tree without images (a packed set of arrays in one folder), else ""."""
    tops = {path.partition("/")[0] for path in tree.others if "/" in path}
    return tops.pop() if len(tops) == 1 else ""


# --- From a listing to the table --------------------------------------------------------------------------


def _finish(listing: Listing, spec: DataSpec, notes: Notes) -> Samples:
    classes = _class_names(listing, notes)
    index = {name: number for number, name in enumerate(classes)}
    targets = None if listing.sets is None else _targets(listing.sets, index)
    labels = (
        np.fromiter((index[label] for label in listing.labels), np.int64, len(listing.labels))
        if targets is None
        else np.full(len(listing.paths), -1, np.int64)
    )
    meant = labels if targets is None else targets
    groups = _groups(listing, spec, notes)
    apart = _apart(listing, spec)
    fill = _fill_splits if not spec.fold else _fill_fold
    fill(listing, meant, groups, spec, notes)
    _report_classes(meant, listing.splits, classes, notes)
    samples = Samples(
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
        items=listing.items,
        conflicts=tuple(listing.conflicts),
        unusable=tuple(listing.bad),
        notes=tuple(notes),
        targets=targets,
    )
    if samples.pixels is not None and samples.keys is None:
        samples = dataclasses.replace(samples, keys=np.arange(len(samples)))
    return samples.select(~apart) if apart.any() else samples


def _apart(listing: Listing, spec: DataSpec) -> npt.NDArray[np.bool_]:
    """Return which rows no fold has: the source's own test split."""
    own: npt.NDArray[np.bool_] = _objects(listing.splits) == "test"
    return own if spec.fold else np.zeros_like(own)


def _targets(sets: Sequence[tuple[str, ...]], index: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    """Return which labels each image has, uint8 [N, K]."""
    targets = np.zeros((len(sets), len(index)), np.uint8)
    for row, names in enumerate(sets):
        targets[row, [index[name] for name in names]] = 1
    return targets


def _objects(items: Sequence[str]) -> npt.NDArray[np.object_]:
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


def _class_names(listing: Listing, notes: Notes) -> tuple[str, ...]:
    found = (
        set(listing.labels) if listing.sets is None else {name for names in listing.sets for name in names}
    )
    if not found:
        raise DataError(f"No image of {listing.name} has a label.")
    classes = listing.classes or tuple(sorted(found))
    if len(found) == 1:
        notes(f"There is only one class, {next(iter(found))!r}; training needs two.")
    if not listing.classes:  # the names of a known set are what its authors meant
        for warning in lookalikes.warnings(classes):
            notes.warn(warning)
    return classes


def _groups(listing: Listing, spec: DataSpec, notes: Notes) -> list[str] | None:
    """Return the group of each row: a list's column, or what the pattern finds in the path; else its own path."""
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
    listing: Listing, labels: npt.NDArray[Any], groups: list[str] | None, spec: DataSpec, notes: Notes
) -> None:
    column = listing.splits
    if any(column):
        unknown = column.count("")
        if unknown:
            notes(f"{many(unknown, 'image')} without a split count as train.")
            column = listing.splits = [split or "train" for split in column]
        if "train" in column and "val" not in column and spec.val_fraction > 0:
            rows = np.flatnonzero(_there(listing) & (_objects(column) == "train"))
            _deal(listing, labels, groups, rows, (spec.val_fraction, 0.0), spec, notes)
        if groups is not None and (cut := splits.crossing(groups, listing.splits)):
            notes.warn(f"The source's own splits divide {many(cut, 'group')}: the figures may be too good.")
    else:
        rows = np.flatnonzero(_there(listing))
        listing.splits = ["train"] * len(column)
        _deal(listing, labels, groups, rows, (spec.val_fraction, spec.test_fraction), spec, notes)
        taken = [
            f"{listing.splits.count(split):,} as {split}"
            for split in ("val", "test")
            if split in listing.splits
        ]
        if taken:
            notes(
                f"The source has no splits: held out {' and '.join(taken)} of its {many(len(rows), 'image')}."
            )
    _report_splits(listing.splits, notes)


def _fill_fold(
    listing: Listing, labels: npt.NDArray[Any], groups: list[str] | None, spec: DataSpec, notes: Notes
) -> None:
    """Make the fold named in the spec the test split, and split the others into train and val.

    Folds are of all images but those of the source's own test split, which is left as it is.
    """
    chosen = spec.folds()
    assert chosen is not None
    if labels.ndim == 2:
        raise DataError(
            "Cross-validation deals images by their one label; these have several. Train without --folds "
            "(data.fold)."
        )
    number, count = chosen
    own = _objects(listing.splits) == "test"
    rows = np.flatnonzero(_there(listing) & ~own)
    units = copies.units(listing, labels, groups, rows, spec, notes, notes.warn)
    held = folds.assign(labels[rows], units, count, spec.split_seed) == number - 1
    rest = np.flatnonzero(~held)
    together = [units[n] for n in rest.tolist()]
    paths = [listing.paths[row] for row in rows[rest].tolist()]
    alone = len(set(together)) == len(together)
    dealt = splits.assign(
        labels[rows[rest]], paths, spec.val_fraction, 0.0, spec.split_seed, None if alone else together
    )
    column = np.where(own, "test", "train").astype(object)
    column[rows[held]] = "test"
    column[rows[rest]] = dealt
    listing.splits = column.tolist()
    few = folds.scarce(labels[rows], units, count)
    if few:
        names = [listing.labels[int(np.flatnonzero(labels == k)[0])] for k in few]
        notes.warn(
            f"{many(len(few), 'class', 'classes')} with fewer images, or groups of them, than the {count} folds, so "
            f"that some folds hold out none: {some(names, 6)}."
        )
    apart = (
        f"; the source's own test split ({many(int(own.sum()), 'image')}) is in no fold" if own.any() else ""
    )
    notes(f"{count} folds of {many(len(rows), 'image')}{apart}.")


def _there(listing: Listing) -> npt.NDArray[np.bool_]:
    """Return which rows have a file: missing images take no place in a split."""
    return np.fromiter((path not in listing.missing for path in listing.paths), bool, len(listing.paths))


def _deal(
    listing: Listing,
    labels: npt.NDArray[Any],
    groups: list[str] | None,
    rows: npt.NDArray[np.intp],
    fractions: tuple[float, float],
    spec: DataSpec,
    notes: Notes,
) -> None:
    dealt = copies.deal(listing, labels, groups, rows, fractions, spec, notes, notes.warn)
    for row, split in zip(rows.tolist(), dealt.tolist(), strict=True):
        listing.splits[row] = split


def _report_splits(column: Sequence[str], notes: Notes) -> None:
    present = set(column)
    if "train" not in present:
        notes("There is no train split: this data can only be used for evaluation.")
    elif "val" not in present:
        notes("There is no validation split: training uses all images and keeps the last epoch.")
    if "test" not in present and "val" in present:
        notes("There is no test split: the final figures will be those of validation.")


def _report_classes(
    labels: npt.NDArray[Any], column: Sequence[str], classes: Sequence[str], notes: Notes
) -> None:
    array = _objects(column)
    whole = class_counts(labels, len(classes))
    if not whole.all():
        notes(f"Classes without any image: {some(classes[k] for k in np.flatnonzero(whole == 0).tolist())}.")
    for split in SPLITS:
        counts = class_counts(labels[array == split], len(classes))
        missing = np.flatnonzero((counts == 0) & (whole > 0))
        if counts.any() and len(missing):
            names = some(classes[k] for k in missing.tolist())
            notes(f"{many(len(missing), 'class', 'classes')} of {len(classes)} not in {split}: {names}.")
