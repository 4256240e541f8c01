"""Folders of images as a listing: `train/CLASS/*`, `CLASS/*`, `CLASS/train/*`, or folders given for each split.

`folder_tree` decides which folder is what; nothing is decoded, and lists are ignored.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tellapart.data.sources import lookalikes
from tellapart.data.sources.containers import unread
from tellapart.data.sources.folders import folder_tree
from tellapart.data.sources.folders.folder_tree import Node, Part
from tellapart.data.sources.folders.split_names import is_plain
from tellapart.data.sources.folders.walk import Tree, walk
from tellapart.data.sources.listing import Listing, Note, clean_label, many, printable, some
from tellapart.errors import DataError

_EXPECTED = "Expected CLASS/image or train/CLASS/image, a list (CSV, TSV, JSONL) or annotation files."


def read_folder(tree: Tree, note: Note, classes_only: bool = False, nested: bool = False) -> Listing:
    """Return the listing of `train/val/test/CLASS/*` (any of the splits), `CLASS/*` or `CLASS/train/*`.

    Folders inside a class belong to the class; with ``nested`` they are classes, called `CLASS/FOLDER` and so on. With
    ``classes_only`` the top folders are the classes, whatever they are called. Raises DataError if there are no
    images or no class folders, or if it is not clear which folders are the splits.
    """
    if not tree.images:
        others = f" ({many(len(tree.others), 'other file')} there)" if tree.others else ""
        known = unread.explain_folder(tree.root, tree.others)
        raise DataError(f"No images were found in {printable(tree.root)!r}{others}. {known}".rstrip())
    node = folder_tree.grow(tree.images)
    if classes_only:
        return _collect(tree, "", {"": Part("", node.inner)}, {"": ""}, note, nested, any_name=True)
    base = folder_tree.find_base(node, tree.root, nested)
    for prefix in _above(base):
        for name, count in _siblings(folder_tree.at(node, prefix[0]), prefix[1]):
            note(f"Skipped {many(count, 'image')} in {printable(name)}: they lie outside {printable(base)}.")
    node = folder_tree.at(node, base)
    splits = folder_tree.find_splits(node, os.path.join(tree.root, base), nested)
    if splits:
        return _read_splits(tree, base, node, splits, note, nested)
    inner = folder_tree.splits_of_nested(node, tree.root) if nested else folder_tree.class_first(node)
    if inner:
        return _read_class_first(tree, base, inner, note)
    return _read_classes(tree, base, node, note, nested)


def _above(base: str) -> list[tuple[str, str]]:
    """Return (prefix, the folder taken in it) for each wrapping folder."""
    names = base.split("/")[:-1]
    return [("".join(f"{part}/" for part in names[:depth]), name) for depth, name in enumerate(names)]


def _siblings(node: Node, taken: str) -> list[tuple[str, int]]:
    found = [(f"{name}/", child.total) for name, child in sorted(node.inner.items()) if name != taken]
    return [*found, ("the top folder", node.direct)] if node.direct else found


def _read_splits(
    tree: Tree, base: str, node: Node, splits: Mapping[str, str], note: Note, nested: bool
) -> Listing:
    parts = {name: folder_tree.unwrapped(name, node.inner[name]) for name in splits}
    for name, part in parts.items():
        if folder_tree.only_containers(part.classes) and len(parts) == 1:
            raise _no_classes(tree, f"{name}/")
    if not all(is_plain(name) and parts[name].prefix == f"{name}/" for name in splits):
        said = (f"{printable(parts[name].prefix)} is {split}" for name, split in sorted(splits.items()))
        note(f"Splits by the folders' names: {', '.join(said)}.")
    for _, why in folder_tree.left_over(node.inner, list(splits)):
        note(why)
    if node.direct:
        note(f"Skipped {many(node.direct, 'image')} in the top folder, outside of class folders.")
    for part in () if nested else parts.values():
        if text := _of_inner(part.classes):
            note(text)
            break
    return _collect(tree, base, parts, splits, note, nested)


def _read_classes(tree: Tree, base: str, node: Node, note: Note, nested: bool) -> Listing:
    out = {name for name in node.inner if folder_tree.is_no_class(name, node.inner)}
    copies = {name for name in node.inner if name not in out and folder_tree.is_copy(name, node.inner)}
    classes = {name: child for name, child in node.inner.items() if name not in out | copies}
    if not classes or folder_tree.only_containers(classes):
        raise _no_classes(tree, base)
    for name in sorted(out):
        note(
            f"Skipped {many(node.inner[name].total, 'image')} in {printable(name)}/: no class folder says what "
            "they show. (--data.format classes takes the folder as a class.)"
        )
    for name in sorted(copies):
        note(
            f"Skipped {many(node.inner[name].total, 'image')} in {printable(name)}/: its folders are named like those "
            "beside it, as in a copy. (--data.format classes takes it as a class.)"
        )
    if node.direct:
        note(f"Skipped {many(node.direct, 'image')} in the top folder, outside of class folders.")
    if not nested and (text := _of_inner(classes)):
        note(text)
    return _collect(tree, base, {"": Part("", classes)}, {"": ""}, note, nested)


def _of_inner(classes: Mapping[str, Node]) -> str:
    """Return what is said of the folders inside class folders where they may be classes too, else ""."""
    inner = [
        f"{name}/{below}"
        for name, child in sorted(classes.items())
        if not child.direct and len(child.inner) > 1 and not folder_tree.only_containers(child.inner)
        for below in sorted(child.inner)
    ]
    if not inner:
        return ""
    return (
        f"The classes are the top folders ({some(classes, 4)}); the folders in them ({some(inner, 4)}) belong to "
        f"them. If each is a class: --data.levels / ({printable(inner[0])}, with figures at each level)."
    )


def _read_class_first(tree: Tree, base: str, inner: Mapping[str, Mapping[str, str]], note: Note) -> Listing:
    names = sorted({name for splits in inner.values() for name in splits})
    note(f"Each class folder holds its splits: {', '.join(f'CLASS/{printable(name)}' for name in names)}.")
    listing = Listing(root=_root(tree, base))
    for path in tree.images:
        if not path.startswith(base):
            continue
        label = next((name for name in _heads(path[len(base) :]) if name in inner), "")
        if label:
            split = inner[label][path[len(base) + len(label) + 1 :].partition("/")[0]]
            listing.add(path[len(base) :], _joined(label), split)
    _end(tree, note)
    return listing


def _heads(path: str) -> Iterator[str]:
    """Yield the folders above a file: ``a`` and ``a/b`` of ``a/b/c``."""
    place = path.find("/")
    while place >= 0:
        yield path[:place]
        place = path.find("/", place + 1)


def _joined(folder: str) -> str:
    """Return the name of the class in a folder, which may lie in others."""
    return "/".join(map(clean_label, folder.split("/")))


def _root(tree: Tree, base: str) -> str:
    return os.path.join(tree.root, *base.split("/")[:-1])


def _collect(
    tree: Tree,
    base: str,
    parts: Mapping[str, Part],
    splits: Mapping[str, str],
    note: Note,
    nested: bool = False,
    any_name: bool = False,
) -> Listing:
    """Return the listing of all images in the class folders of ``parts`` (by top folder)."""
    listing = Listing(root=_root(tree, base))
    names: dict[str, str] = {}
    inner = {top: folder_tree.nested_classes(part.classes) for top, part in parts.items() if nested}
    loose: Counter[str] = Counter()
    for path in tree.images:
        if not path.startswith(base):
            continue
        path = path[len(base) :]
        top = path.partition("/")[0] if "" not in parts else ""
        part = parts.get(top)
        if part is None or not path.startswith(part.prefix):
            loose[top] += part is not None
            continue
        label, slash, _ = path[len(part.prefix) :].partition("/")
        if not slash:
            loose[top] += 1
            continue
        if label not in part.classes:
            continue
        if nested:
            label = inner[top][posixpath.dirname(path[len(part.prefix) :])]
        if label not in names:
            names[label] = _joined(label)
        listing.add(path, names[label], splits[top])
    for top, number in sorted(loose.items()):
        if top and number:
            note(f"Skipped {many(number, 'image')} in {printable(top)}/ outside of class folders.")
    for text in lookalikes.merged(names):
        note(text)
    if not any_name and folder_tree.only_containers(name.partition("/")[0] for name in names):
        raise _no_classes(tree, base)
    _end(tree, note)
    return listing


def _end(tree: Tree, note: Note) -> None:
    if tree.others:
        note(f"{many(len(tree.others), 'file that is not an image', 'files that are not images')} ignored.")


def _no_classes(tree: Tree, base: str) -> DataError:
    """Return the error for images that are not in class folders, with what their names suggest."""
    images = [path for path in tree.images if path.startswith(base)]
    folders = sorted({f"{posixpath.dirname(path)}/" for path in images if "/" in path})
    text = f"The images in {printable(tree.root)!r} are not in class folders"
    text += f" (they are in {some(folders, 5)})" if folders else ""
    words = Counter(
        match[0]
        for path in images
        if (match := re.match(r"[^\W\d_]{2,}(?=[\W\d_])", posixpath.basename(path)))
    )
    usual = [word for word, number in words.most_common() if number > 1]
    if 1 < len(usual) <= 1000 and 2 * sum(words[word] for word in usual) > len(images):
        text += (
            f". Their names begin with words ({some(usual, 5)}): if those are the classes, put each word's images "
            "into a folder of that name, or write a list with the columns path and label"
        )
    if folders:
        text += ". If these folders are the classes: --data.format classes"
    return DataError(f"{text}. {_EXPECTED}")


def read_named(folders: Mapping[str, Sequence[str]], where: str, note: Note, nested: bool = False) -> Listing:
    """Return the listing of the folders that the user gives for each split, each with class folders in it.

    ``nested``: as in `read_folder`. Paths are relative to ``where``, otherwise to the current folder. Raises DataError.
    """
    found = {
        split: [_find(name, where, split) for name in names] for split, names in folders.items() if names
    }
    every = [path for paths in found.values() for path in paths]
    if len(set(map(os.path.realpath, every))) < len(every):
        raise DataError(f"One folder is named for two splits: {some(every)}.")
    root = os.path.commonpath(every) if len(every) > 1 else every[0]
    listing = Listing(root=root)
    for split, paths in found.items():
        for path in paths:
            tree = walk(path, note)
            inside = tuple(
                os.path.relpath(other, path).replace(os.sep, "/") + "/" for other in every if other != path
            )
            tree.images = [image for image in tree.images if not image.startswith(inside)]
            part = _one_split(tree, split, note, nested)
            prefix = os.path.relpath(path, root).replace(os.sep, "/")
            prefix = "" if prefix == "." else f"{prefix}/"
            for inner, label in zip(part.paths, part.labels, strict=True):
                listing.add(prefix + inner, label, split)
    return listing


def _find(name: str, where: str, split: str) -> str:
    given = os.path.expanduser(name)
    for path in (os.path.join(where, given), given):
        if os.path.isdir(path):
            return os.path.abspath(path)
    what = (
        "is a file"
        if os.path.exists(given) or os.path.exists(os.path.join(where, given))
        else "does not exist"
    )
    raise DataError(
        f"data.{split} is {printable(name)!r}, which {what} (looked for at {printable(os.path.join(where, given))!r} "
        f"and {printable(os.path.abspath(given))!r}); expected a folder of class folders."
    )


def _one_split(tree: Tree, split: str, note: Note, nested: bool) -> Listing:
    node = folder_tree.grow(tree.images)
    if node.inner and len(set(folder_tree.find_splits(node, tree.root, nested).values())) > 1:
        raise DataError(
            f"data.{split} is {printable(tree.root)!r}, which holds splits itself ({some(node.inner, 6)}); expected "
            "a folder of class folders."
        )
    part = folder_tree.unwrapped(posixpath.basename(tree.root.replace(os.sep, "/")), node)
    prefix = part.prefix.partition("/")[2]
    if not tree.images or folder_tree.only_containers(part.classes):
        raise DataError(
            f"data.{split} is {printable(tree.root)!r}, which holds no class folders with images "
            f"({many(len(tree.images), 'image')} there, {many(len(tree.others), 'other file')})."
        )
    whole = {"": Part(prefix, part.classes)}
    return _collect(Tree(tree.root, tree.images), "", whole, {"": split}, note, nested)
