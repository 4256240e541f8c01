"""Which folders of a tree are splits, which are classes, and which are neither: decided by names and structure.

Counts images by folder; reads no file and makes no table. If it cannot decide, the error shows the folders and the
options that decide it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tellapart.data.sources.folders.split_names import frame, meaning, settle
from tellapart.data.sources.listing import many, printable, some
from tellapart.errors import DataError

_CONTAINERS = """
    images image imgs img pics pictures photos jpg jpeg jpegs jpegimages png data dataset frames rgb files raw
    masks mask labels label annotations annotation segmentations ground_truth groundtruth gt 图片 图像 照片
"""
CONTAINERS = frozenset(_CONTAINERS.split())
"""Folder names that say what kind of files they contain, not what the images show."""
_SHARDS = frozenset(("part", "batch", "chunk", "shard", "vol", "volume", "folder", "archive"))

UNLABELLED = frozenset(("unlabeled", "unlabelled", "unlab", "unannotated", "unsorted", "未标注", "无标签"))


@dataclass
class Node:
    """A folder: ``direct`` is the number of images directly in it, ``inner`` are its subfolders with images."""

    direct: int = 0
    inner: dict[str, Node] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of images in the folder and below."""
        return self.direct + sum(node.total for node in self.inner.values())


@dataclass(frozen=True)
class Part:
    """A split's folder: its class folders, and where they are (``prefix`` ends with a slash)."""

    prefix: str
    classes: Mapping[str, Node]

    def shared(self, other: Part) -> int:
        """Return how many class folders both have (in any case of letters)."""
        mine, theirs = ({n.casefold() for n in part.classes if not is_container(n)} for part in (self, other))
        return len(mine & theirs)

    def alike(self, other: Part) -> bool:
        """Return whether both contain the same class folders: at least two, and half of the smaller's."""
        common = self.shared(other)
        return common >= 2 and 2 * common >= min(len(self.classes), len(other.classes))


def grow(images: Iterable[str]) -> Node:
    """Return the folders of a list of relative paths."""
    root = Node()
    folders: dict[str, Node] = {"": root}
    for path in images:
        folder = path.rpartition("/")[0]
        node = folders.get(folder)
        if node is None:
            node = root
            for name in folder.split("/"):
                node = node.inner.setdefault(name, Node())
            folders[folder] = node
        node.direct += 1
    return root


def at(node: Node, prefix: str) -> Node:
    """Return the folder at a prefix such as ``photos/train/`` or ""."""
    for name in prefix.split("/")[:-1]:
        node = node.inner[name]
    return node


def is_container(name: str) -> bool:
    """Return whether a folder's name only says that it contains images, masks or files (`images_001`)."""
    if name.strip().casefold() in CONTAINERS:
        return True
    words = [word.casefold() for word in re.findall(r"[^\W\d_]+", name)]
    return bool(words) and all(word in CONTAINERS or word in _SHARDS for word in words)


def only_containers(names: Iterable[str]) -> bool:
    """Return whether no folders of these names can be the classes: `images` and `masks`, or numbered parts of
    one whole (`photos_part_1`, `photos_part_2`).
    """
    names = list(names)
    if all(map(is_container, names)):
        return True
    words = {tuple(word.casefold() for word in re.findall(r"[^\W\d_]+", name)) for name in names}
    numbered = all(re.search(r"\d", name) for name in names)
    return (
        numbered
        and len(names) > 1 == len(words)
        and any(w in CONTAINERS or w in _SHARDS for w in next(iter(words)))
    )


def unwrapped(name: str, node: Node) -> Part:
    """Return the class folders of one split's folder, looking through `train/train/` and `train/images/`."""
    prefix = name + "/"
    for _ in range(3):
        if node.direct or len(node.inner) != 1:
            break
        inner, child = next(iter(node.inner.items()))
        plain = inner.strip().casefold()
        again = meaning(inner).pure and meaning(inner).split == meaning(name).split
        if not (plain == name.strip().casefold() or is_container(inner) or again):
            break
        prefix += inner + "/"
        node = child
    return Part(prefix, node.inner)


def _holds_classes(part: Part) -> bool:
    return not only_containers(part.classes)


def _sure(name: str, tops: Mapping[str, Node]) -> bool:
    """Return whether a name says a split and nothing else, or what another folder says with another split's word
    (`asl_train` beside `asl_test`). `valid` beside `invalid` is no split.
    """
    found = meaning(name)
    if found.pure:
        return not (
            name.strip().casefold() == "valid" and any(n.strip().casefold() == "invalid" for n in tops)
        )
    return bool(found.split) and any(
        meaning(other).split not in ("", found.split) and frame(other) == frame(name) for other in tops
    )


def is_no_class(name: str, tops: Mapping[str, Node]) -> bool:
    """Return whether a folder without class folders is not a class: a flat `test/`, `val_images/`, `unlabelled/`.

    A flat `train/` among others is a class (of vehicles), unless a folder beside it is a split.
    """
    if _holds_classes(unwrapped(name, tops[name])):
        return False
    plain = name.strip().casefold()
    if plain in UNLABELLED:
        return True
    if plain in ("train", "trains"):
        return len(tops) == 1 or any(other != name and _sure(other, tops) for other in tops)
    return _sure(name, tops)


def find_splits(node: Node, where: str, nested: bool = False) -> dict[str, str]:
    """Return the split of each folder directly in ``node`` that is one; {} if there are none.

    A split's folder has class folders in it and a split's name, or (of several) a split's word in its name and
    the same class folders as another. Raises DataError if folders contain the same class folders and their names do not
    say which split they are (with ``nested`` they are then classes: `cat/black`, `dog/black`), or if a
    lone `train` may be a split or a class.
    """
    tops = node.inner
    deep = {name: part for name in tops if _holds_classes(part := unwrapped(name, tops[name]))}
    named = {name for name in deep if meaning(name).split}
    sure = {name for name in named if _sure(name, tops)}
    kept = sure | {n for n in named if any(deep[n].shared(deep[o]) for o in named if o != n)}
    splits = settle({name: meaning(name).split for name in tops if name in kept})
    if len(set(splits.values())) > 1:
        return splits
    rest = [name for name in tops if name not in kept and not is_no_class(name, tops)]
    if kept:
        alike = [name for name in rest if name in deep and any(deep[name].alike(deep[k]) for k in kept)]
        if alike:
            raise _undecided([*kept, *alike], deep, where)
        flat = any(_sure(name, tops) for name in tops if name not in deep)
        if (len(rest) < 2 or flat or len(sure) > 1) and (sure or not rest):
            return splits
        lone = next(iter(kept))
        if len(kept) == 1 and sure and not tops[lone].direct and len(deep[lone].classes) > 1:
            raise _lone(lone, splits[lone], deep[lone], tops, where)
        return {}
    if not rest and len(named) == 1 == len(tops):  # flowers_train/CLASS alone
        return settle({name: meaning(name).split for name in named})
    if nested or class_first(node):
        return {}
    pure = {name: part for name, part in deep.items() if 10 * tops[name].direct < tops[name].total}
    return _without_names(pure, len(tops), where)


def _lone(name: str, split: str, part: Part, tops: Mapping[str, Node], where: str) -> DataError:
    others = [other for other in tops if other != name]
    inside = {inner.casefold() for inner in part.classes}
    text = (
        f"{printable(name)}/ in {printable(os.path.normpath(where))!r} may be the {split} split (it holds "
        f"{some(part.classes, 4)}) or a class beside {some(others, 6)}. "
    )
    if split != "train" and all(other.casefold() in inside for other in others):
        return DataError(
            f"{text}If the folders beside it are the train split: --data.train {_typed(where, '.')} "
            f"--data.{split} {_typed(where, name)}. For a class: --data.format classes."
        )
    return DataError(
        f"{text}For a split: --data.{split} {_typed(where, name)} (and likewise for the others). "
        "For a class: --data.format classes."
    )


def _without_names(deep: Mapping[str, Part], tops: int, where: str) -> dict[str, str]:
    """Refuse folders of the same class folders; return {}."""
    often = Counter(inner.casefold() for part in deep.values() for inner in part.classes)
    same = []
    for name, part in deep.items():
        common = [inner for inner in part.classes if often[inner.casefold()] > 1]
        if len(common) > 1 and 2 * len(common) >= len(part.classes):
            same.append(name)
    if len(same) > 1 and 2 * len(same) >= tops:
        raise _undecided(same, deep, where)
    return {}


def _undecided(names: list[str], deep: Mapping[str, Part], where: str) -> DataError:
    names = sorted(names, key=lambda name: (meaning(name).split != "train", name))
    first = deep[names[0]]
    shown = some((deep[name].prefix for name in names), 6)
    where = os.path.normpath(where)
    return DataError(
        f"The folders {shown} in {printable(where)!r} hold the same class folders ({some(first.classes, 4)}), "
        "so they are splits or versions of one data set, and their names do not say which is train, val or "
        f"test. Say which: --data.train {_typed(where, names[0])} --data.test {_typed(where, names[1])} "
        "(--data.val likewise; several folders each). Or give one of them alone as DATA: "
        f"{_typed(where, first.prefix[:-1])}. If the top folders are the classes: --data.format classes. If each "
        f"folder in them is a class, such as {printable(names[0])}/{printable(min(first.classes))}: --data.levels /"
    )


def _typed(where: str, name: str) -> str:
    """Return a folder as it is typed on a command line."""
    return shlex.quote(printable(os.path.normpath(os.path.join(where, name))))


def find_base(node: Node, where: str, nested: bool = False) -> str:
    """Return the wrapping folders to look through, as a prefix such as ``hymenoptera_data/`` or "".

    Goes down while there is only one folder, or only one in which most images are in splits. Raises DataError if
    several folders have splits of their own.
    """
    prefix = ""
    for _ in range(4):
        here = os.path.join(where, prefix)
        try:
            if find_splits(node, here, nested):
                break
        except DataError:
            if not _holders(node, nested):
                raise
        holders = _holders(node, nested)
        if len(holders) > 1:
            raise DataError(
                f"Several folders in {printable(here)!r} have splits of their own: {some(holders, 6)}. Give one of "
                f"them as DATA, such as {printable(os.path.join(here, holders[0]))!r}."
            )
        if holders and 2 * node.inner[holders[0]].total > node.total:
            name = holders[0]
        elif len(node.inner) == 1:
            name, child = next(iter(node.inner.items()))
            if child.direct or not child.inner or node.direct > child.total:
                break
        else:
            break
        prefix += name + "/"
        node = node.inner[name]
    return prefix


def _holders(node: Node, nested: bool) -> list[str]:
    """Return the folders in ``node`` that hold two or more splits with class folders in them."""
    found = []
    for name, child in node.inner.items():
        for _ in range(3):
            try:
                splits = find_splits(child, "", nested)
            except DataError:
                break
            if len(set(splits.values())) > 1:
                found.append(name)
                break
            if child.direct or len(child.inner) != 1:
                break
            child = next(iter(child.inner.values()))
    return found


def is_copy(name: str, tops: Mapping[str, Node]) -> bool:
    """Return whether a folder contains folders named like those beside it: the whole set once more."""
    inner = {key.strip().casefold() for key in unwrapped(name, tops[name]).classes}
    beside = {key.strip().casefold() for key in tops if key != name}
    return len(inner) > 1 and inner <= beside and not tops[name].direct


def class_first(node: Node) -> dict[str, dict[str, str]]:
    """Return the split of each inner folder of each class of `CLASS/train/*`, `CLASS/test/*`; {} otherwise."""
    found: dict[str, dict[str, str]] = {}
    for name, child in node.inner.items():
        if child.direct or not child.inner or not all(_sure(inner, child.inner) for inner in child.inner):
            return {}
        if any(grand.inner for grand in child.inner.values()):
            return {}
        found[name] = settle({inner: meaning(inner).split for inner in child.inner})
    several = len({split for splits in found.values() for split in splits.values()}) > 1
    return found if several and len(found) > 1 else {}


def nested_classes(classes: Mapping[str, Node]) -> dict[str, str]:
    """Return the class of each folder in class folders, its own path: ``animal/dog``.

    Folders that say what kind of files lie in them (`dog/images`), and nothing else beside, belong to their class.
    """
    found: dict[str, str] = {}
    waiting = [(name, name, node) for name, node in classes.items()]
    while waiting:
        path, name, node = waiting.pop()
        found[path] = name
        below = "" if only_containers(node.inner) else name
        waiting += [
            (f"{path}/{n}", f"{below}/{n}" if below else name, child) for n, child in node.inner.items()
        ]
    return found


def splits_of_nested(node: Node, where: str) -> dict[str, dict[str, str]]:
    """Return the split of each inner folder of each class of `animal/dog/train/*`, `animal/dog/test/*`; {} otherwise.

    Raises DataError where some classes hold their splits and others do not.
    """
    found: dict[str, dict[str, str]] = {}
    plain: list[str] = []
    waiting = sorted(node.inner.items(), reverse=True)
    while waiting:
        name, child = waiting.pop()
        holds = child.inner and not child.direct and not any(grand.inner for grand in child.inner.values())
        if holds and all(_sure(inner, child.inner) for inner in child.inner):
            found[name] = settle({inner: meaning(inner).split for inner in child.inner})
            continue
        plain += [name] if child.direct else []
        waiting += [(f"{name}/{inner}", grand) for inner, grand in child.inner.items()]
    several = [name for name, splits in found.items() if len(set(splits.values())) > 1]
    if several and plain:
        raise DataError(
            f"Some classes in {printable(where)!r} hold folders for their splits ({some(several, 4)}), and others do "
            f"not ({some(plain, 4)}). Expected train and test above all classes, or in each."
        )
    return found if len({split for splits in found.values() for split in splits.values()}) > 1 else {}


def left_over(tops: Mapping[str, Node], taken: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (folder, why) for each folder of images that is neither a split nor a class."""
    parts = {name: unwrapped(name, tops[name]) for name in tops}
    chosen = [parts[name] for name in taken]
    for name, node in tops.items():
        if name in taken:
            continue
        count = many(node.total, "image")
        if not _holds_classes(parts[name]):
            yield name, f"Skipped {count} in {printable(name)}/: no class folder says what they show."
        elif not is_container(name) and any(parts[name].alike(part) for part in chosen):
            yield (
                name,
                f"Skipped {count} in {printable(name)}/: it has the same class folders, but its name is not "
                f"that of a split. --data.train, --data.val or --data.test {printable(name)} takes it.",
            )
        else:
            yield name, f"Skipped {count} in {printable(name)}/: it is not a split."
