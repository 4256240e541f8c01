"""The classification sets of torchvision, as listings: the only owner of ``torchvision.datasets``.

A literal table says which class of torchvision's builds a set, with which arguments for each split, and where
the object keeps its files or arrays. torchvision decides what is downloaded and checks it; nothing is decoded
here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from tellapart.data.sources.archives import fresh_folder
from tellapart.data.sources.arrays import DIGITS, from_arrays
from tellapart.data.sources.listing import Listing, Note, clean_label, printable
from tellapart.errors import DataError, OfflineError
from tellapart.packages import require

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
Files = Iterator[tuple[str, str]]
Arrays = tuple[npt.NDArray[np.uint8], Sequence[int]]


def _classes(dataset: Any) -> list[str]:
    return [clean_label(name if isinstance(name, str) else name[0]) for name in dataset.classes]


def _samples(dataset: Any) -> Files:
    names = _classes(dataset)
    for path, label in getattr(dataset, "samples", None) or dataset._samples:
        yield str(path), names[label]


def _image_files(dataset: Any) -> Files:
    names = _classes(dataset)
    for path, label in zip(dataset._image_files, dataset._labels, strict=True):
        yield str(path), names[label]


def _pets(dataset: Any) -> Files:
    names = _classes(dataset)
    for path, label in zip(dataset._images, dataset._labels, strict=True):
        yield str(path), names[label]


def _names(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder))


def _caltech(dataset: Any) -> Files:
    for folder in dataset.categories:
        place = os.path.join(dataset.root, "101_ObjectCategories", folder)
        for name in _names(place):
            yield os.path.join(place, name), folder


def _caltech256(dataset: Any) -> Files:
    for folder in dataset.categories:
        place = os.path.join(dataset.root, "256_ObjectCategories", folder)
        for name in _names(place):
            if name.endswith(".jpg"):  # one class folder holds a stray file
                yield os.path.join(place, name), folder.partition(".")[2] or folder


def _signs(dataset: Any) -> Files:
    for path, label in dataset._samples:
        yield str(path), TRAFFIC_SIGNS[label]


def _counted(dataset: Any) -> Files:
    for path, label in zip(dataset._image_files, dataset._labels, strict=True):
        yield str(path), f"{label:02d} objects"


def _characters(dataset: Any) -> Files:
    for name, label in dataset._flat_character_images:
        folder = dataset._characters[label]
        yield os.path.join(dataset.target_folder, folder, name), folder.replace(os.sep, "/")


def _places(dataset: Any) -> Files:
    names = _classes(dataset)
    for path, label in dataset.imgs:
        yield str(path), re.sub(r"^/./", "", names[label])


def _species(dataset: Any) -> Files:
    for label, name in dataset.index:
        folder = dataset.all_categories[label]
        yield os.path.join(dataset.root, folder, name), folder


def _nhw(dataset: Any) -> Arrays:
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    if labels.ndim == 2:  # QMNIST: the class is the first of eight columns
        labels = labels[:, 0]
    return np.asarray(dataset.data), labels.tolist()


def _nchw(dataset: Any) -> Arrays:
    return np.asarray(dataset.data).transpose(0, 2, 3, 1), dataset.labels.tolist()


def _tensors(dataset: Any) -> Arrays:
    known = [(image, label) for image, label in dataset._samples if label is not None]
    return np.stack([np.asarray(image) for image, _ in known]), [label for _, label in known]


@dataclass(frozen=True)
class TorchvisionSet:
    """How one set is built.

    ``splits`` are tellapart's (or "") with torchvision's arguments; one of ``files`` and ``arrays`` reads the object.
    ``group``: a pattern on the path if frames of one scene must stay together.
    """

    class_name: str
    splits: Mapping[str, Mapping[str, Any]]
    files: Callable[[Any], Files] | None = None
    arrays: Callable[[Any], Arrays] | None = None
    classes: tuple[str, ...] = ()
    group: str = ""
    expected: str = ""


_SPLIT: dict[str, dict[str, str]] = {s: {"split": s} for s in ("train", "val", "test")}
_TWO = {s: {"split": s} for s in ("train", "test")}
_FLAT: dict[str, dict[str, Any]] = {"": {}}
_BOOL = {"train": {"train": True}, "test": {"train": False}}
FEELINGS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
TRAFFIC_SIGNS = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by lorries",
    "right of way at next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "general danger",
    "bend left",
    "bend right",
    "double bend",
    "uneven road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic signals",
    "pedestrians",
    "children",
    "cyclists",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right",
    "turn left",
    "straight on only",
    "straight on or right",
    "straight on or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by lorries",
)

SETS: dict[str, TorchvisionSet] = {
    "caltech101": TorchvisionSet("Caltech101", _FLAT, files=_caltech),
    "caltech256": TorchvisionSet("Caltech256", _FLAT, files=_caltech256),
    "clevr": TorchvisionSet("CLEVRClassification", {s: _SPLIT[s] for s in ("train", "val")}, files=_counted),
    "country211": TorchvisionSet("Country211", {**_SPLIT, "val": {"split": "valid"}}, files=_samples),
    "dtd": TorchvisionSet("DTD", _SPLIT, files=_image_files),
    "eurosat": TorchvisionSet("EuroSAT", _FLAT, files=_samples),
    "fer2013": TorchvisionSet(
        "FER2013", _TWO, arrays=_tensors, classes=FEELINGS, expected="fer2013/fer2013.csv"
    ),
    "fgvc-aircraft": TorchvisionSet("FGVCAircraft", _SPLIT, files=_image_files),
    "flowers102": TorchvisionSet("Flowers102", _SPLIT, files=_image_files),
    "food101": TorchvisionSet("Food101", _TWO, files=_image_files),
    "gtsrb": TorchvisionSet(
        "GTSRB", _TWO, files=_signs, classes=TRAFFIC_SIGNS, group=r"Training/\d+/\d+(?=_)"
    ),
    "imagenette": TorchvisionSet("Imagenette", {s: _SPLIT[s] for s in ("train", "val")}, files=_samples),
    "inaturalist-2021-mini": TorchvisionSet(
        "INaturalist",
        {"train": {"version": "2021_train_mini"}, "val": {"version": "2021_valid"}},
        files=_species,
    ),
    "omniglot": TorchvisionSet("Omniglot", {"": {"background": True}}, files=_characters),
    "oxford-iiit-pet": TorchvisionSet(
        "OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, files=_pets
    ),
    "places365": TorchvisionSet(
        "Places365",
        {"train": {"split": "train-standard", "small": True}, "val": {"split": "val", "small": True}},
        files=_places,
    ),
    "qmnist": TorchvisionSet("QMNIST", _BOOL, arrays=_nhw, classes=DIGITS),
    "rendered-sst2": TorchvisionSet("RenderedSST2", _SPLIT, files=_samples),
    "semeion": TorchvisionSet("SEMEION", _FLAT, arrays=_nhw, classes=DIGITS),
    "stanford-cars": TorchvisionSet(
        "StanfordCars",
        _TWO,
        files=_samples,
        expected="stanford_cars/{devkit,cars_train,cars_test,cars_test_annos_withlabels.mat}",
    ),
    "stl10": TorchvisionSet("STL10", _TWO, arrays=_nchw),
    "sun397": TorchvisionSet("SUN397", _FLAT, files=_image_files),
    "svhn": TorchvisionSet("SVHN", _TWO, arrays=_nchw, classes=DIGITS),
    "usps": TorchvisionSet("USPS", _BOOL, arrays=_nhw, classes=DIGITS),
}


def open_set(name: str, root: str, download: bool, note: Note) -> tuple[TorchvisionSet, dict[str, Any]]:
    """Return a set's row of the table and torchvision's object for each split, downloaded if need be.

    Raises OfflineError if the files are missing and cannot be downloaded, MissingPackageError without torchvision.
    """
    known = SETS[name]
    parts = [(split, dict(arguments)) for split, arguments in known.splits.items()]
    made = build(known.class_name, parts, root, download, note, name, known.expected)
    return known, made


def build(
    class_name: str,
    parts: Sequence[tuple[str, dict[str, Any]]],
    root: str,
    download: bool,
    note: Note,
    name: str,
    expected: str = "",
) -> dict[str, Any]:
    """Return ``{split: dataset}`` of a class of torchvision.datasets, from ``root`` or downloaded into it.

    A download goes to a temporary folder that becomes ``root`` when complete; if ``root`` already exists (someone put
    the archives there), it is used as it is.
    """
    factory = getattr(require("torchvision.datasets", "models", f"The data set {name!r}"), class_name)

    def make(place: str, download: bool) -> dict[str, Any]:
        takes = {"download": download} if class_name != "FER2013" else {}
        return {split: factory(place, **arguments, **takes) for split, arguments in parts}

    if os.path.isdir(root):
        try:
            return make(root, False)
        except (RuntimeError, OSError, ImportError, ValueError, KeyError, EOFError) as error:
            reason: Exception = error
    else:
        reason = FileNotFoundError("it is not there")
    if not download or class_name in ("FER2013", "StanfordCars"):
        raise offline(name, root, reason, download, expected) from reason
    note(f"Downloading {name} into {printable(root)}.")
    try:
        if os.path.isdir(root):
            return make(root, True)
        os.makedirs(os.path.dirname(root), exist_ok=True)
        with fresh_folder(root) as place:
            make(place, True)
        return make(root, False)
    except (OSError, RuntimeError, ValueError, ImportError, EOFError, HTTPException) as error:
        if isinstance(error, OSError) and not isinstance(error, URLError) and error.errno in _DISK:
            raise DataError(f"{name} cannot be stored in {printable(root)!r}: {error}.") from error
        raise offline(name, root, error, download, expected) from error


def offline(name: str, root: str, reason: object, download: bool, expected: str = "") -> OfflineError:
    """Return the error that says what to put where."""
    tried = (
        f"could not be downloaded ({reason})"
        if download
        else "is not on this machine, and data.download is off"
    )
    advice = "" if download else " Allow the download (--data.download), or"
    return OfflineError(
        f"The data set {name!r} {tried}.{advice or ' Without a network,'} put a copy"
        f"{f' of {expected}' if expected else ''} as torchvision lays it out into {printable(root)!r} "
        "(another machine's cache folder will do), or give the path of its folder instead of the name; "
        "--data.cache-dir chooses where copies are looked for. `digits` needs no download."
    )


def listing(known: TorchvisionSet, parts: Mapping[str, Any], root: str) -> Listing:
    """Return the listing of torchvision's objects, one for each split."""
    try:
        if known.arrays is not None:
            classes = known.classes or _classes(next(iter(parts.values())))
            return from_arrays(root, [(s, *known.arrays(part)) for s, part in parts.items()], classes)
        result = Listing(root=root)
        assert known.files is not None
        for split, part in parts.items():
            for path, label in known.files(part):
                result.add(os.path.relpath(path, root).replace(os.sep, "/"), label, split)
    except AttributeError as error:
        raise DataError(
            f"This version of torchvision keeps {known.class_name} differently ({error})."
        ) from error
    if known.classes:
        result.classes = known.classes
    elif hasattr(first := next(iter(parts.values())), "classes") and set(_classes(first)) == set(
        result.labels
    ):
        result.classes = tuple(_classes(first))
    if known.group:
        result.groups = [
            found[0] if (found := re.search(known.group, path)) else path for path in result.paths
        ]
    return result
