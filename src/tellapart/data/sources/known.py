"""Data sets by name: where local copies are looked for, official class names, advice for working offline.

Knows names and places. Array files are read in `arrays`, torchvision's own sets in `torchvision_sets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tellapart.data.sources import arrays, torchvision_sets
from tellapart.data.sources.archives import cache_folder, extract
from tellapart.data.sources.folders.class_folders import read_folder
from tellapart.data.sources.folders.walk import walk
from tellapart.data.sources.listing import Listing, Note, printable
from tellapart.errors import OfflineError
from tellapart.packages import installed, require
from tellapart.spec import DataSpec

SHARED = "/usr/share/datasets"
"""Where Debian's packages put data sets (``dataset-fashion-mnist``)."""

Opener = Callable[[str, DataSpec, Note], Listing]


@dataclass(frozen=True)
class _Idx:
    """A set kept as IDX files: torchvision's class, official names, and EMNIST's part."""

    class_name: str
    classes: tuple[str, ...]
    part: str = ""


_IDX: dict[str, _Idx] = {
    "mnist": _Idx("MNIST", arrays.DIGITS),
    "fashion-mnist": _Idx("FashionMNIST", arrays.FASHION),
    "kmnist": _Idx("KMNIST", arrays.KUZUSHIJI),
    "emnist": _Idx("EMNIST", arrays.EMNIST["balanced"], "balanced"),
    **{f"emnist-{part}": _Idx("EMNIST", classes, part) for part, classes in arrays.EMNIST.items()},
}
_ALIASES = {
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
    "fashionmnist": "fashion-mnist",
    "fmnist": "fashion-mnist",
    "kuzushiji-mnist": "kmnist",
    "ilsvrc2012": "imagenet",
    "imagenet-1k": "imagenet",
    "imagenet1k": "imagenet",
    "stl-10": "stl10",
    "food-101": "food101",
    "flowers-102": "flowers102",
    "caltech-101": "caltech101",
    "caltech-256": "caltech256",
    "oxfordiiitpet": "oxford-iiit-pet",
    "oxford-pets": "oxford-iiit-pet",
    "pets": "oxford-iiit-pet",
    "fgvcaircraft": "fgvc-aircraft",
    "aircraft": "fgvc-aircraft",
    "stanfordcars": "stanford-cars",
    "renderedsst2": "rendered-sst2",
}


def _digits(name: str, spec: DataSpec, note: Note) -> Listing:
    return arrays.digits()


def _cifar(name: str, spec: DataSpec, note: Note) -> Listing:
    cache = cache_folder(spec)
    folder = arrays.CIFAR_FOLDERS[name]
    root = os.path.join(cache, name)
    packed = "cifar-10-python.tar.gz" if name == "cifar10" else "cifar-100-python.tar.gz"
    places = (root, cache, SHARED, os.path.join(SHARED, name))
    for place in places:
        if is_cifar(os.path.join(place, folder)):
            return arrays.cifar(os.path.join(place, folder))
    for place in places:
        if os.path.isfile(os.path.join(place, packed)):
            return arrays.cifar(os.path.join(extract(os.path.join(place, packed), cache, note), folder))
    parts = [("train", {"train": True})]
    torchvision_sets.build(name.upper(), parts, root, spec.download, note, name, f"{folder} or {packed}")
    return arrays.cifar(os.path.join(root, folder))


def _idx(name: str, spec: DataSpec, note: Note) -> Listing:
    known = _IDX[name]
    cache = cache_folder(spec)
    plain = "emnist" if known.part else name
    root = os.path.join(cache, plain)
    raw = os.path.join(known.class_name, "raw")
    prefix = f"emnist-{known.part}-" if known.part else ""
    places = [root, os.path.join(root, raw), os.path.join(cache, raw), os.path.join(SHARED, plain)]
    found = next((place for place in places if arrays.find_idx(place, prefix)), "")
    if not found:
        arguments = {"split": known.part} if known.part else {}
        parts = [("train", {**arguments, "train": True})]
        files = f"{prefix}train-images-idx3-ubyte.gz and the other three files"
        torchvision_sets.build(known.class_name, parts, root, spec.download, note, name, files)
        found = os.path.join(root, raw)
    return idx_folder(found, known.classes, known.part)


def idx_folder(folder: str, classes: Sequence[str], part: str = "") -> Listing:
    """Return the listing of a folder of IDX files; ``part`` is EMNIST's ("letters", …) or ""."""
    prefix = f"emnist-{part}-" if part else ""
    return arrays.idx_listing(folder, classes, prefix, first=int(part == "letters"), turned=bool(part))


def _imagenet(name: str, spec: DataSpec, note: Note) -> Listing:
    cache = cache_folder(spec)
    for place in (
        os.path.join(cache, "imagenet"),
        os.path.join(cache, "ILSVRC2012"),
        os.path.join(SHARED, "imagenet"),
    ):
        if os.path.isdir(place):
            return name_imagenet(read_folder(walk(place, note), note), note)
    raise OfflineError(
        "ImageNet cannot be downloaded without an account: get ILSVRC2012 from https://image-net.org, "
        f"unpack it as train/n01440764/*.JPEG and val/n01440764/*.JPEG, and put these folders into "
        f"{printable(os.path.join(cache, 'imagenet'))!r} (or give their folder's path instead of the name)."
    )


def name_imagenet(listing: Listing, note: Note) -> Listing:
    """Give the 1,000 classes of ILSVRC2012 their names in place of WordNet numbers, in the official order.

    A listing of other classes is returned as it is.
    """
    numbers = sorted(set(listing.labels))
    official = len(numbers) == 1000 and (numbers[0], numbers[-1]) == ("n01440764", "n15075141")
    if not official or not all(re.fullmatch(r"n\d{8}", number) for number in numbers):
        return listing
    if not installed("torchvision"):
        note("Class names of ImageNet come with torchvision, which is not installed; WordNet numbers stay.")
        return listing
    models = require("torchvision.models", "models", "The names of ImageNet's classes")
    titles = [str(title) for title in models.ResNet18_Weights.DEFAULT.meta["categories"]]
    names = dict(zip(numbers, titles, strict=True))
    listing.labels = [names[number] for number in listing.labels]
    listing.classes = tuple(names.values())
    return listing


def _torchvision(name: str, spec: DataSpec, note: Note) -> Listing:
    root = os.path.join(cache_folder(spec), name)
    known, parts = torchvision_sets.open_set(name, root, spec.download, note)
    return torchvision_sets.listing(known, parts, root)


OPENERS: dict[str, Opener] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenet": _imagenet,
    **dict.fromkeys(_IDX, _idx),
    **dict.fromkeys(torchvision_sets.SETS, _torchvision),
}


def names() -> list[str]:
    """Return the names of all known data sets, sorted."""
    return sorted(OPENERS)


def canonical(name: str) -> str:
    """Return the known name that ``name`` means (any case; underscores and spaces for hyphens), or ""."""
    plain = re.sub(r"[\s_]+", "-", name.strip().casefold())
    plain = _ALIASES.get(plain, plain)
    return plain if plain in OPENERS else ""


def open_known(name: str, spec: DataSpec, note: Note) -> Listing:
    """Return the listing of a known data set, from a local copy or downloaded into the cache folder.

    Raises OfflineError if it is missing and cannot be downloaded.
    """
    listing = OPENERS[name](name, spec, note)
    listing.name = name
    return listing


def is_cifar(folder: str) -> bool:
    """Return whether a folder holds CIFAR's Python batches."""
    return os.path.isfile(os.path.join(folder, "batches.meta")) or (
        os.path.isfile(os.path.join(folder, "meta")) and os.path.isfile(os.path.join(folder, "train"))
    )


def open_local(folder: str, note: Note) -> Listing | None:
    """Return the listing of a folder that holds CIFAR batches or IDX files, or None.

    IDX files do not say what they show: a path with "fashion" or with "kmnist" or "kuzushiji" in it gives
    those names, any other gives "0" to "9".
    """
    inside = [os.path.join(folder, name) for name in arrays.CIFAR_FOLDERS.values()]
    for place in (folder, *inside):
        if is_cifar(place):
            return arrays.cifar(place)
    places = (
        folder,
        os.path.join(folder, "raw"),
        *(os.path.join(folder, k.class_name, "raw") for k in _IDX.values()),
    )
    for place in places:
        if arrays.find_idx(place):
            lower = os.path.abspath(place).casefold()
            guesses = (("fashion", "fashion-mnist"), ("kmnist", "kmnist"), ("kuzushiji", "kmnist"))
            name = next((known for word, known in guesses if word in lower), "mnist")
            note(f"Read as IDX files with the class names of {name}.")
            return idx_folder(place, _IDX[name].classes)
        parts = [part for part in arrays.EMNIST if arrays.find_idx(place, f"emnist-{part}-")]
        if parts:
            part = "balanced" if "balanced" in parts else parts[0]
            note(f"Read as EMNIST {part}.")
            return idx_folder(place, arrays.EMNIST[part], part)
    return None
