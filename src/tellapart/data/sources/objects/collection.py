"""The user's objects for train, val and test, combined into one `Listing`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tellapart.data.samples import SPLITS, Unusable
from tellapart.data.sources.listing import Listing, Note, many
from tellapart.data.sources.lists.files import Table
from tellapart.data.sources.objects import frames, kinds
from tellapart.data.sources.objects.items import Advance, Gathered, Part, Read, Reader
from tellapart.data.sources.objects.kinds import Files, Kind
from tellapart.data.sources.objects.labels import Label, checked_classes, in_order, naming
from tellapart.errors import DataError
from tellapart.spec import DataSpec

MARK = "object:"  # before the name of objects in a spec
_NUMBER = re.compile(r"-?\d{1,18}(?:\.0)?")


def is_objects(source: str) -> bool:
    """Return whether a spec's source names Python objects, which are in no file."""
    return source.startswith(MARK) and not os.path.exists(source)


def explain(source: str) -> str:
    """Return what to do if a spec's source names objects and none are given."""
    return (
        f"The data is {source!r}: a Python object, which is in no file. Give the same object again, in Python: "
        "tellapart.train(data, …), tellapart.resume(RUN, data=…), tellapart.evaluate(MODEL, data); export and compress "
        "take it as data=…."
    )


def take(
    data: Any, val: Any = None, test: Any = None, classes: Iterable[str] | None = None
) -> Objects | None:
    """Return the objects that are given as data; None where ``data`` is a path or a name. Raises DataError."""
    if isinstance(data, Objects):
        return data
    path = data is None or isinstance(data, (str, os.PathLike))
    others = {name: part for name, part in (("val", val), ("test", test)) if part is not None}
    if path and not others and classes is None:
        return None
    if path:
        given = " and ".join([*others, *([] if classes is None else ["classes"])])
        raise DataError(
            f"{given} go with objects, but data is {'not given' if data is None else f'the path {os.fspath(data)!r}'}. "
            'Folders for the splits are data={"train": [...], "val": [...]}; paths and labels in Python are a list of '
            "(path, label)."
        )
    named = [name for name, part in others.items() if isinstance(part, (str, os.PathLike))]
    if named:
        raise DataError(
            f"{' and '.join(named)} is a path and data is an object; give both as objects, or both as paths."
        )
    parts = kinds.parts(data) or {"": data}
    twice = [name for name in others if name in parts]
    if twice:
        raise DataError(f"data has a {twice[0]} split itself, and {twice[0]} is given too.")
    if others and "" in parts:
        parts = {"train": parts[""]}
    return Objects({**parts, **others}, checked_classes(classes))


@dataclass
class Objects:
    """Objects by split ("" if there is one for all), and what was read from them so far.

    classes: names that the user gives. known: a model's classes, for numbers without other names. ranged: images
    of floating-point numbers keep them; depth: of the pixels (`content_of`).
    """

    parts: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    ranged: bool = False
    depth: str = "uint8"
    _read: dict[str, tuple[Reader, Read]] = field(default_factory=dict)
    _kinds: dict[str, Kind] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a spec calls them, such as ``object:CIFAR10(50000), val CIFAR10(10000)``."""
        told = [
            kinds.title(part) if split in ("", "train") else f"{split} {kinds.title(part)}"
            for split, part in self.parts.items()
        ]
        return MARK + ", ".join(told)

    def __len__(self) -> int:
        return sum(kinds.length(part) or 0 for part in self.parts.values())

    def look(self, spec: DataSpec, advance: Advance = lambda count: None) -> None:
        """Read every image once, where they are no files. Raises DataError."""
        if not self._kinds:
            self._kinds = _alike({split: kinds.kind_of(part, spec) for split, part in self.parts.items()})
        for split, kind in self._kinds.items():
            if isinstance(kind, Part) and split not in self._read:
                reader = Reader(kind, self.ranged, self.depth)
                self._read[split] = (reader, reader.pass_over(advance))

    def listing(self, spec: DataSpec, notes: Note) -> Listing:
        """Return the listing of all parts. Raises DataError."""
        self._check(spec)
        spec = dataclasses.replace(spec, labels="single")
        self.look(spec)
        if self._read:
            result = self._of_items(notes)
        elif all(isinstance(kind, Files) for kind in self._kinds.values()):
            result = self._of_files(notes)
        else:
            result = self._of_tables(spec, notes)
        result.numbered = result.classes
        # for files it decides what is decided here too
        known = {kinds.known_name(part) for part in self.parts.values()}
        result.name = (known.pop() if len(known) == 1 else "") or self.name[len(MARK) :]
        return result

    def _check(self, spec: DataSpec) -> None:
        given = [name for name in SPLITS if getattr(spec, name)]
        if given:
            raise DataError(f"data.{given[0]} names folders, but the data is an object.")
        if spec.labels == "multi":
            raise DataError(
                "data.labels is multi, and Python objects have one label for each image so far: write a list (CSV "
                "with paths and labels) for several."
            )
        if spec.format != "auto":
            raise DataError(f"data.format is {spec.format!r}, which is for files; the data is an object.")

    # --- Images in objects ----------------------------------------------------------------------------------

    def _of_items(self, notes: Note) -> Listing:
        result = Listing(root="")
        places: list[tuple[Reader, int]] = []
        hashes: list[str] = []
        every = [label for _, read in self._read.values() for label in read.labels]
        for split, (reader, read) in self._read.items():
            names = self._named(split, read.labels, reader.part.names, reader.part.title, notes)
            without = 0
            for index, name in enumerate(names):
                path = f"{split or 'image'}/{index}"
                if index in read.lost:
                    result.bad.append(Unusable(path, read.lost[index]))
                elif not name:
                    without += 1
                else:
                    result.add(path, name, split)
                    places.append((reader, index))
                    hashes.append(read.hashes[index])
            if read.longest > 2:
                notes(
                    f"{reader.part.title} returns {read.longest} items for each index; the first is used as "
                    "the image, the second as the label."
                )
            if without:
                notes(f"Skipped {many(without, 'image')} of {reader.part.title} without a label.")
            if read.lost:
                notes(f"Skipped {many(len(read.lost), 'image')} of {reader.part.title} that cannot be read.")
        result.items = Gathered(places, hashes)
        result.keys = np.arange(len(places), dtype=np.int64)
        result.classes = self._order({reader.part.names for reader, _ in self._read.values()}, result, every)
        return result

    def _named(
        self, split: str, labels: Sequence[Label], own: tuple[str, ...], title: str, notes: Note
    ) -> list[str]:
        names = naming(labels, own, self.classes, self.known, f"{split} {title}".strip())
        if not own and not self.classes and self.known and any(isinstance(label, int) for label in labels):
            kept = {str(label) for label in labels}
            if not kept & set(names):
                notes(f"The labels of {title} are numbers: used as indices into the model's classes, from 0.")
        return names

    def _order(
        self, names: set[tuple[str, ...]], found: Listing, labels: Sequence[Label] = ()
    ) -> tuple[str, ...]:
        """Return the classes in order: as given, as all data sets have them, numbers by size; () for by name."""
        if self.classes:
            return self.classes
        if len(names) == 1 and (own := next(iter(names))) and set(found.labels) <= set(own):
            return own
        return in_order(found.labels)

    # --- Images in files ------------------------------------------------------------------------------------

    def _of_files(self, notes: Note) -> Listing:
        parts = {split: kind for split, kind in self._kinds.items() if isinstance(kind, Files)}
        roots = [part.root for part in parts.values()]
        result = Listing(root=roots[0] if len(set(roots)) == 1 else os.path.commonpath(roots))
        notes(
            f"{' and '.join(part.title for part in parts.values())}: its files are read directly, as those of a folder "
            "are (EXIF's orientation is obeyed)."
        )
        merged = 0
        for split, part in parts.items():
            labels = self._named(split, [label for _, label in part.rows], part.names, part.title, notes)
            seen: set[str] = set()
            for (path, _), label in sorted(zip(part.rows, labels, strict=True)):
                if path in seen:
                    merged += 1
                    continue
                seen.add(path)
                result.add(os.path.relpath(path, result.root).replace(os.sep, "/"), label, split)
        if merged:
            notes(f"{many(merged, 'row')} that repeat an image merged.")
        order = self._order({part.names for part in parts.values()}, result)
        result.classes = () if order == tuple(sorted(set(result.labels))) else order
        return result

    def _of_tables(self, spec: DataSpec, notes: Note) -> Listing:
        result: Listing | None = None
        for split, kind in self._kinds.items():
            assert isinstance(kind, Table)
            part = frames.listing(kind, spec, notes)
            if split and any(part.splits):
                notes(f"The splits that {kind.path} names do not count: all of it is {split}.")
            if split:
                part.splits = [split] * len(part.paths)
            part.labels = self._table_labels(split, part.labels, kind.path, notes)
            result = part if result is None else _joined(result, part)
        assert result is not None
        result.classes = self._order(set(), result)
        return result

    def _table_labels(self, split: str, labels: Sequence[str], title: str, notes: Note) -> list[str]:
        """Return a table's labels, of which whole numbers are places in ``classes``."""
        if not (self.classes or self.known) or not all(_NUMBER.fullmatch(label) for label in set(labels)):
            return self._named(split, labels, (), title, notes)
        if set(labels) <= set(self.classes or self.known):
            return list(labels)
        return self._named(split, [int(float(label)) for label in labels], (), title, notes)


def _alike(found: dict[str, Kind]) -> dict[str, Kind]:
    """Return parts of one kind: files count as images in objects where others are. Raises DataError."""
    if any(isinstance(kind, Part) for kind in found.values()):
        found = {
            split: Part(kind.title, len(kind.rows), kind.rows.__getitem__, kind.names)
            if isinstance(kind, Files)
            else kind
            for split, kind in found.items()
        }
    if len({type(kind) for kind in found.values()}) > 1:
        raise DataError("Some of the splits are tables of paths and others are not; give all of one kind.")
    return found


def _joined(one: Listing, other: Listing) -> Listing:
    if one.root != other.root or (one.groups is None) != (other.groups is None):
        raise DataError("The splits do not have the same columns; give all of them a group, or none.")
    one.paths += other.paths
    one.labels += other.labels
    one.splits += other.splits
    for mine, theirs in ((one.groups, other.groups), (one.boxes, other.boxes)):
        if mine is not None and theirs is not None:
            mine.extend(theirs)  # type: ignore[arg-type]
    one.conflicts += other.conflicts
    one.bad += other.bad
    one.missing |= other.missing
    return one
