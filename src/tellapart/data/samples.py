"""The table of samples: one row for each image (or box of an image), whatever the source was.

Knows where an image's bytes are; knows nothing of decoding, caches or training.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tellapart import files, tables
from tellapart.contract.card import label_mark

SPLITS = ("train", "val", "test")
LEFT_OUT = "left-out"  # in place of train: what data.leave_out leaves out, which no split has
_PART = 1 << 26  # bytes above which a file is read as a stream


@dataclass(frozen=True)
class Conflict:
    """An image with more than one label in the source."""

    path: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Unusable:
    """An image (or an annotation without one) that cannot be used, and why."""

    path: str
    reason: str


class Items(Protocol):
    """Images in Python objects, by number. ``hashes``: of their contents, "" for a bad one."""

    hashes: list[str]

    def read(self, key: int) -> bytes | npt.NDArray[np.uint8]:
        """Return an image's encoded bytes or pixels. Raises OSError."""


@dataclass(frozen=True)
class Samples:
    """Columns of equal length N.

    paths: object array of str, relative to ``root`` with forward slashes (or absolute); for arrays a name such as
    ``train/12``. labels: int64, index in ``classes``, or -1 in all rows if an image can have several: then targets is
    uint8 [N, len(classes)] with a 1 for each of its labels (none at all is valid), otherwise None. splits: object array
    of "train", "val" or "test", or `LEFT_OUT`. boxes: float64 [N, 4] as x0, y0, x1, y1 in pixels of the upright image,
    NaN if the whole image counts, or None. pixels: uint8 [M, H, W] or [M, H, W, 3] if the source is an array instead of
    files; ``keys`` (int64 [N]) are its rows. items: the images if the source is Python objects; ``keys`` are their
    numbers. hashes: object array of hexadecimal content hashes, "" if not read yet, or None. ordered: whether classes
    are grades, the lowest first. levels: what separates the levels in the names of classes (``/`` in ``animal/dog``),
    "" where they have none.
    """

    paths: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[Any]
    classes: tuple[str, ...]
    root: str = ""
    name: str = ""
    groups: npt.NDArray[Any] | None = None
    boxes: npt.NDArray[np.float64] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    keys: npt.NDArray[np.int64] | None = None
    items: Items | None = None
    hashes: npt.NDArray[Any] | None = None
    conflicts: tuple[Conflict, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    notes: tuple[str, ...] = field(default=())
    targets: npt.NDArray[np.uint8] | None = None
    ordered: bool = False
    levels: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: npt.NDArray[Any]) -> Samples:
        """Return the table of ``rows`` (a boolean mask or indices), in that order."""
        columns = ("paths", "labels", "splits", "groups", "boxes", "keys", "hashes", "targets")
        chosen = {n: getattr(self, n)[rows] for n in columns if getattr(self, n) is not None}
        return dataclasses.replace(self, **chosen)

    def split(self, name: str) -> Samples:
        """Return the rows of one split."""
        return self.select(self.splits == name)

    def counts(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """Return the number of samples of each class, int64 [len(classes)]."""
        rows = slice(None) if split is None else self.splits == split
        return class_counts(
            self.labels[rows] if self.targets is None else self.targets[rows], len(self.classes)
        )

    def label_text(self, row: int) -> str:
        """Return a row's label, or its labels joined by `label_mark`."""
        if self.targets is None:
            return str(self.classes[self.labels[row]])
        return label_mark(self.classes).join(
            self.classes[k] for k in np.flatnonzero(self.targets[row]).tolist()
        )

    def file(self, row: int) -> str:
        """Return the path of a row's file on this machine."""
        return os.path.join(self.root, self.paths[row])

    def read(self, row: int) -> bytes | npt.NDArray[np.uint8]:
        """Return a row's encoded bytes, or its pixels [H, W] or [H, W, 3]. Raises OSError."""
        if self.pixels is not None:
            return np.asarray(self.pixels[row if self.keys is None else self.keys[row]])
        if self.items is not None:
            return self.items.read(row if self.keys is None else int(self.keys[row]))
        return read_file(self.file(row))


def class_counts(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Return the number of samples of each class, int64 [classes], for labels [N] or targets [N, classes]."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    return np.bincount(labels, minlength=classes).astype(np.int64)


def read_file(path: str) -> bytes:
    """Return a file's bytes. Raises OSError, even for what is not a regular file: a pipe would never end."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError(errno.ENOENT, "it links to a file that does not exist") from None
        raise
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    # for small files faster than a stream
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        content = os.read(descriptor, status.st_size + 1)
        # it has changed, or is huge
        while len(content) != status.st_size and (more := os.read(descriptor, _PART)):
            content += more
        return content
    finally:
        os.close(descriptor)


def content_hash(content: bytes | npt.NDArray[np.uint8]) -> str:
    """Return 32 hexadecimal digits of BLAKE2b over the bytes (of an array: its shape too)."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(content, np.ndarray):
        digest.update(repr(content.shape).encode())
        digest.update(np.ascontiguousarray(content).data)
    else:
        digest.update(content)
    return digest.hexdigest()


def write_samples(samples: Samples, path: str | os.PathLike[str]) -> None:
    """Write the table as CSV: path, label, split, hash, and group and box if there are any.

    The label column is ``labels`` if an image can have several, joined by `label_mark`.
    """
    with files.writing(path, text=True, errors="surrogateescape") as stream:
        writer = tables.Writer(stream, "\r\n")
        extra = [n for n in ("groups", "boxes") if getattr(samples, n) is not None]
        label = "label" if samples.targets is None else "labels"
        writer.writerow(
            ["path", label, "split", "hash", *(n[:-1] if n == "groups" else "box" for n in extra)]
        )
        for row in range(len(samples)):
            line = [samples.paths[row], samples.label_text(row), samples.splits[row]]
            line.append("" if samples.hashes is None else samples.hashes[row])
            if samples.groups is not None:
                line.append(samples.groups[row])
            if samples.boxes is not None:
                box = samples.boxes[row]
                line.append("" if np.isnan(box).any() else " ".join(f"{value:g}" for value in box))
            writer.writerow(line)


def training_hashes(path: str | os.PathLike[str]) -> set[str]:
    """Return the content hashes of the training images in a table of ``write_samples``; empty without one."""
    return listed_hashes(path, ("train",))


def listed_hashes(path: str | os.PathLike[str], splits: Collection[str] = SPLITS) -> set[str]:
    """Return the content hashes of the images of some splits in a table of ``write_samples``; empty without one."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return {row["hash"] for row in tables.rows(stream) if row["split"] in splits} - {""}
    except (FileNotFoundError, KeyError):
        return set()
