"""From the user's data to the table of samples, every row with its split.

Decides how a source is read (folder, list, archive, annotations, known name), fills in splits and class indices, and
gathers the messages. The reading itself is in the other modules; nothing is decoded here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import SPLITS, Samples, class_counts
from tellapart.data.sources import (
    archives,
    class_names,
    containers,
    filling,
    grades,
    known,
    levels,
    linked,
    lookalikes,
)
from tellapart.data.sources.annotations import FORMATS, TITLES, detect, file_format, read_annotations
from tellapart.data.sources.containers import unread, webdataset
from tellapart.data.sources.folders import class_folders, walk
from tellapart.data.sources.leftovers import class_folders_first
from tellapart.data.sources.listing import Listing, many, printable, some
from tellapart.data.sources.lists import in_folders, reading
from tellapart.data.sources.notes import Notes
from tellapart.data.sources.objects import Objects, explain, is_objects
from tellapart.data.sources.text import check_encoding
from tellapart.errors import DataError, did_you_mean
from tellapart.spec import DataSpec

_EXPECTED = (
    "Expected a folder of images, a list (.csv, .tsv, .jsonl), an archive (.tar, .zip), an annotation file "
    "(.xml, .json), a Parquet file with image bytes, WebDataset shards or the name of a known data set"
)


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
    levels.check(spec)
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
    listing = class_folders.read_named(named, where, notes, nested(spec))
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
        kept = class_folders_first(tree, kind, spec, notes) if kind else None
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
        only = spec.format == "classes"
        return known.name_imagenet(class_folders.read_folder(tree, notes, only, nested(spec)), notes)
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
            listing = known.name_imagenet(class_folders.read_folder(tree, notes, nested=nested(spec)), notes)
        except DataError as error:
            raise DataError(f"{found.failures()} {error}".strip()) from error
    if found.unused:
        notes(found.reasons())
    return listing


def nested(spec: DataSpec) -> bool:
    """Return whether class folders inside folders are classes, whose names have levels."""
    return levels.given(spec) == "/"


def _wrapped(tree: walk.Tree) -> str:
    """Return the only folder of a tree without images (a packed set of arrays in one folder), else ""."""
    tops = {path.partition("/")[0] for path in tree.others if "/" in path}
    return tops.pop() if len(tops) == 1 else ""


# --- From a listing to the table --------------------------------------------------------------------------


def _finish(listing: Listing, spec: DataSpec, notes: Notes) -> Samples:
    mark = levels.settle(listing, spec, notes, notes.warn)
    classes = _class_names(listing, notes)
    classes = _in_order(listing, classes, spec, notes) if spec.order else classes
    index = {name: number for number, name in enumerate(classes)}
    targets = None if listing.sets is None else _targets(listing.sets, index)
    labels = (
        np.fromiter((index[label] for label in listing.labels), np.int64, len(listing.labels))
        if targets is None
        else np.full(len(listing.paths), -1, np.int64)
    )
    meant = labels if targets is None else targets
    groups = filling.groups_of(listing, spec, notes)
    apart = _apart(listing, spec)
    if spec.fold:
        filling.fill_fold(listing, meant, groups, spec, notes, classes)
    else:
        filling.fill(listing, meant, groups, spec, notes)
    filling.leave_out(listing, meant, groups, spec, notes)
    _report_classes(meant, listing.splits, classes, notes)
    samples = Samples(
        paths=filling.as_objects(listing.paths),
        labels=labels,
        splits=filling.as_objects(listing.splits),
        classes=classes,
        root=listing.root,
        name=listing.name,
        groups=None if groups is None else filling.as_objects(groups),
        boxes=None if listing.boxes is None else np.asarray(listing.boxes, np.float64).reshape(-1, 4),
        pixels=listing.pixels,
        keys=listing.keys,
        items=listing.items,
        conflicts=tuple(listing.conflicts),
        unusable=tuple(listing.bad),
        notes=tuple(notes),
        targets=targets,
        ordered=bool(spec.order),
        levels=mark,
    )
    if samples.pixels is not None and samples.keys is None:
        samples = dataclasses.replace(samples, keys=np.arange(len(samples)))
    return samples.select(~apart) if apart.any() else samples


def _apart(listing: Listing, spec: DataSpec) -> npt.NDArray[np.bool_]:
    """Return which rows no fold has: the source's own test split."""
    own: npt.NDArray[np.bool_] = filling.as_objects(listing.splits) == "test"
    return own if spec.fold else np.zeros_like(own)


def _targets(sets: Sequence[tuple[str, ...]], index: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    """Return which labels each image has, uint8 [N, K]."""
    targets = np.zeros((len(sets), len(index)), np.uint8)
    for row, names in enumerate(sets):
        targets[row, [index[name] for name in names]] = 1
    return targets


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


def _in_order(listing: Listing, classes: tuple[str, ...], spec: DataSpec, notes: Notes) -> tuple[str, ...]:
    """Return the classes as grades, the lowest first, and say so. Raises DataError, SpecError."""
    if listing.sets is not None:
        raise DataError("Grades are for images of one label each (data.order), and these can have several.")
    order, why = grades.arranged(classes, spec.order, listing.numbered)
    notes(f"Grades, the lowest first ({why}): {some(order, 24)}.")
    return order


def _report_classes(
    labels: npt.NDArray[Any], column: Sequence[str], classes: Sequence[str], notes: Notes
) -> None:
    array = filling.as_objects(column)
    whole = class_counts(labels, len(classes))
    if not whole.all():
        notes(f"Classes without any image: {some(classes[k] for k in np.flatnonzero(whole == 0).tolist())}.")
    for split in SPLITS:
        counts = class_counts(labels[array == split], len(classes))
        missing = np.flatnonzero((counts == 0) & (whole > 0))
        if counts.any() and len(missing):
            names = some(classes[k] for k in missing.tolist())
            notes(f"{many(len(missing), 'class', 'classes')} of {len(classes)} not in {split}: {names}.")
