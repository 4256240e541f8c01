"""The walk over a folder's files, and what counts as an image.

Knows nothing of classes, splits, lists, annotation files or archives, and decodes nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from tellapart.contract import npy
from tellapart.contract.formats import BY_EXTENSION, FORMATS
from tellapart.data.sources.listing import Note, printable, some
from tellapart.errors import DataError

_OTHERS = """
    .txt .csv .tsv .json .jsonl .ndjson .xml .yaml .yml .toml .ini .cfg .md .rst .html .htm .css .js .py
    .ipynb .sh .bat .log .pdf .doc .docx .xls .xlsx .zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .npz .pt
    .pth .pkl .mat .h5 .hdf5 .parquet .arrow .tfrecord .lmdb .db .sqlite .mp4 .avi .mov .mkv .webm .mp3 .wav
    .svg .psd .cache .md5 .sha256 .safetensors .onnx
"""
IMAGE_EXTENSIONS = frozenset(BY_EXTENSION)
_NUMPY = ".npy"
OTHER_EXTENSIONS = frozenset(_OTHERS.split())
_HIDDEN = frozenset(
    name.casefold()
    for name in (
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "Thumbs.db",
        "desktop.ini",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    )
)
_STRONG = [one.begins for one in FORMATS if one.name not in ("BMP", "TGA", "PCX", "ICO", "PPM")]
_STRONG.append(
    re.compile(rb"P[1-6][\s#]|BM.{4}\0{4}", re.DOTALL)
)  # for the others the first bytes are not enough


@dataclass
class Tree:
    """All visible files below ``root``: relative paths with forward slashes, sorted.

    ``images`` are files with an image's extension (dangling links and empty files too: they are found bad
    when decoded), and files with an unknown extension whose first bytes are an image's. ``others`` are the
    rest.
    """

    root: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def hidden(name: str) -> bool:
    """Return whether a file or folder is the system's and not the user's (`.DS_Store`, `__MACOSX`, …)."""
    return name.startswith(".") or name.casefold() in _HIDDEN


def extension(name: str) -> str:
    """Return the lower-case extension with its dot, or ""."""
    return os.path.splitext(name)[1].lower()


def looks_like_image(path: str) -> bool:
    """Return whether the first bytes of a file are those of an image format."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64)
            return any(begins.match(head) for begins in _STRONG)
    except OSError:
        return False


@dataclass(frozen=True)
class _Folder:
    """A folder still to be read. ``links``: the number of folder links on the way to it."""

    path: str
    prefix: str = ""
    above: frozenset[tuple[int, int]] = frozenset()
    links: int = 0
    is_link: bool = False


def walk(root: str, note: Note) -> Tree:
    """Return the `Tree` of a folder. Raises DataError if the folder itself cannot be read.

    Links to folders are followed, except back to a folder above; a link inside a linked folder is followed
    only once for each real folder. So links can make the walk neither endless nor exponentially long.
    """
    tree = Tree(root)
    seen: set[tuple[int, int]] = set()
    todo = [_Folder(root)]
    unread: list[str] = []
    loops: list[str] = []
    special: list[str] = []
    while todo:
        folder = todo.pop()
        try:
            status = os.stat(folder.path)
            identity = (status.st_dev, status.st_ino)
            nested = folder.is_link and folder.links > 1
            if identity in folder.above or (nested and identity in seen):
                loops.append(folder.prefix)
                continue
            if nested:
                seen.add(identity)
            todo += _scan(tree, folder, folder.above | {identity}, special)
        except OSError as error:
            if not folder.prefix:
                raise DataError(f"{printable(root)!r} cannot be read: {error.strerror}.") from error
            unread.append(folder.prefix)
    _leave_out_companions(tree)
    tree.images.sort()
    tree.others.sort()
    for names, text in (
        (unread, "Skipped folders that cannot be read"),
        (loops, "Did not follow links to folders that were visited already"),
        (special, "Skipped entries that are not regular files"),
    ):
        if names:
            note(f"{text}: {some(sorted(names))}.")
    return tree


def _leave_out_companions(tree: Tree) -> None:
    """Count a NumPy file beside an image of the same name, such as its mask or features, among the others."""
    arrays = {name for name in tree.images if extension(name) == _NUMPY}
    if not arrays:
        return
    pictures = {os.path.splitext(name)[0] for name in tree.images if name not in arrays}
    companions = {name for name in arrays if os.path.splitext(name)[0] in pictures}
    tree.images = [name for name in tree.images if name not in companions]
    tree.others += companions


def _is_one_image(path: str) -> bool:
    """Return whether a NumPy file's shape is that of one image, and not of many, or of labels."""
    try:
        with open(path, "rb") as stream:
            return npy.could_be_image(stream.read(1024))
    except OSError:
        return True  # decoding will find that it is bad


def _scan(
    tree: Tree, folder: _Folder, above: frozenset[tuple[int, int]], special: list[str]
) -> list[_Folder]:
    """Put a folder's files into ``tree`` and return the folders in it, in a fixed order."""
    inner = []
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            if _is_folder(entry):
                link = entry.is_symlink()
                inner.append(
                    _Folder(entry.path, f"{folder.prefix}{entry.name}/", above, folder.links + link, link)
                )
            elif not _file(tree, folder.prefix, entry):
                special.append(folder.prefix + entry.name)
    return sorted(inner, key=lambda item: item.prefix, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself must not make the whole folder unreadable
        return False


def _file(tree: Tree, prefix: str, entry: os.DirEntry[str]) -> bool:
    """Put a file in its column; return False for a pipe, socket or device (opening one may block for ever)."""
    kind = extension(entry.name)
    dangling = False
    if not os.path.isfile(entry.path):
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        if not dangling:
            return False
    known = kind in IMAGE_EXTENSIONS and (kind != _NUMPY or _is_one_image(entry.path))
    if known or (kind not in (*OTHER_EXTENSIONS, _NUMPY) and not dangling and looks_like_image(entry.path)):
        tree.images.append(prefix + entry.name)
    else:
        tree.others.append(prefix + entry.name)
    return True
