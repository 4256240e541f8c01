"""What kind of data a Python object is, and how to get its images: the only module that knows foreign types.

Types are recognised by their module and attributes; nothing is imported that the object has not loaded itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tellapart.contract.given import is_tensor
from tellapart.data.sources import known
from tellapart.data.sources.folders.split_names import split_name
from tellapart.data.sources.lists.files import Table
from tellapart.data.sources.objects import frames
from tellapart.data.sources.objects.items import Part
from tellapart.data.sources.objects.labels import UnfitLabel, own_names, plain
from tellapart.errors import DataError
from tellapart.spec import DataSpec

EXPECTED = (
    "Expected a path, a torch Dataset (with a length, giving (image, label)), a list of (path, label), a frame of "
    "pandas or polars, a pair of arrays (images, labels), a Dataset of Hugging Face, or a mapping from train, val and "
    "test to one of these"
)


@dataclass(frozen=True)
class Files:
    """A data set whose images are files that can be read directly: (path below ``root``, label's number)."""

    title: str
    root: str
    rows: Sequence[tuple[str, int]]
    names: tuple[str, ...]


Kind = Part | Files | Table


def title(value: Any) -> str:
    """Return a readable name of an object: its type and length."""
    count = length(value)
    if _is_arrays(value):
        return f"{'arrays' if isinstance(value[0], np.ndarray) else 'tensors'}({count})"
    return f"{type(value).__name__}({'?' if count is None else count})"


def length(value: Any) -> int | None:
    """Return how many images an object has, None if it does not say."""
    if _is_arrays(value):
        return len(value[0])
    try:
        return len(value)
    except TypeError:
        return None


def parts(value: Any) -> dict[str, Any] | None:
    """Return the objects of a mapping by split, None if ``value`` is not a mapping. Raises DataError."""
    if not isinstance(value, Mapping):
        return None
    found: dict[str, Any] = {}
    for key, part in value.items():
        split = split_name(str(key))
        if not split or split in found:
            said = f"means {split}, as another does" if split else "is not a split"
            raise DataError(
                f"The {type(value).__name__} has {', '.join(map(repr, value))}, of which {key!r} {said}; expected "
                "train, val and test. Give a mapping of the ones that are meant."
            )
        found[split] = part
    if not found:
        raise DataError(f"The {type(value).__name__} is empty.")
    return found


def kind_of(value: Any, spec: DataSpec) -> Kind:
    """Return what ``value`` is. Raises DataError."""
    name = title(value)
    if frames.is_frame(value):
        return _of_frame(value, name, spec)
    package = type(value).__module__.partition(".")[0]
    if package == "datasets":
        return _of_hugging_face(value, name, spec)
    if _is_arrays(value):
        return _of_arrays(value[0], value[1], name)
    if type(value).__name__ == "DataLoader" and hasattr(value, "dataset"):
        raise DataError(
            "A DataLoader gives batches, in an order of its own; give its data set (loader.dataset)."
        )
    count = length(value)
    if is_tensor(value) or isinstance(value, (np.ndarray, bytes, set)) or not hasattr(value, "__getitem__"):
        lacking = " It has no index: read it into a list first." if hasattr(value, "__iter__") else ""
        raise DataError(f"A {type(value).__name__} is not taken as data.{lacking} {EXPECTED}.")
    if count is None:
        raise DataError(f"A {type(value).__name__} without a length is not taken as data. {EXPECTED}.")
    if not count:
        raise DataError(f"{name} is empty.")
    if isinstance(value, (list, tuple)):
        return _of_list(value, name, spec)
    return _files(value, name) or _of_items(value, name, count, spec)


def _label_key(spec: DataSpec) -> str:
    if len(spec.label_column) > 1:
        raise DataError("data.label_column has several names; here it is one.")
    return spec.label_column[0] if spec.label_column else ""


def _of_items(value: Any, name: str, count: int, spec: DataSpec) -> Part:
    return Part(name, count, value.__getitem__, _names(value), spec.path_column, _label_key(spec))


# --- Lists and arrays -------------------------------------------------------------------------------------


def _of_list(value: Sequence[Any], name: str, spec: DataSpec) -> Kind:
    first = value[0]
    if isinstance(first, Mapping):
        if isinstance(first.get(spec.path_column or "path"), (str, os.PathLike)):
            return frames.table(value, name)
        return _of_items(value, name, len(value), spec)
    if not isinstance(first, (tuple, list)) or len(first) < 2:
        raise DataError(f"{name} holds {type(first).__name__} and no pairs (path, label). {EXPECTED}.")
    paths = [isinstance(item, (tuple, list)) and isinstance(item[0], (str, os.PathLike)) for item in value]
    if not all(paths):
        return _of_items(value, name, len(value), spec)
    for row, item in enumerate(value):
        if len(item) != 2:
            raise DataError(f"{name}: index {row} has {len(item)} parts; expected (path, label).")
    try:
        return frames.pairs(value, name, plain)
    except UnfitLabel as error:
        raise DataError(f"{name}: {error}.") from None


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _is_arrays(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and _is_array(value[0]) and value[0].ndim >= 3 and (
        _is_array(value[1]) or isinstance(value[1], (list, tuple)) or hasattr(value[1], "to_list")
    )  # fmt: skip


def _of_arrays(images: Any, labels: Any, name: str) -> Part:
    labels = labels.to_list() if hasattr(labels, "to_list") else labels
    if len(images) != len(labels):
        raise DataError(f"{len(images):,} images and {len(labels):,} labels do not fit together.")
    if images.ndim not in (3, 4) or not len(images):
        raise DataError(
            f"The images are an array of the shape {list(images.shape)}; expected [images, height, width], or four "
            "dimensions with the channels last (arrays) or second (tensors)."
        )
    return Part(name, len(images), lambda index: (images[index], labels[index]))


# --- Frames and Hugging Face ------------------------------------------------------------------------------


def _of_frame(frame: Any, name: str, spec: DataSpec) -> Kind:
    rows = frames.records(frame)
    if not rows:
        raise DataError(f"{name} is empty.")
    column = frames.picture_column(rows, spec)
    if not column:
        return frames.table(rows, name)
    if spec.split_column or spec.group:
        raise DataError(
            "data.split_column and data.group are for frames that name files; this one holds images. Give the splits "
            "as data, val and test."
        )
    return Part(name, len(rows), rows.__getitem__, image=column, label=_label_key(spec))


def _of_hugging_face(dataset: Any, name: str, spec: DataSpec) -> Part:
    features = getattr(dataset, "features", None)
    if type(dataset).__name__ != "Dataset" or features is None:
        raise DataError(
            f"A {type(dataset).__name__} of Hugging Face is not taken: images are read by their index. Give a Dataset "
            "(load_dataset without streaming=True) or a DatasetDict."
        )
    if not len(dataset):
        raise DataError(f"{name} is empty.")
    image = spec.path_column or _only(features, "Image", name, "path_column")
    label = _label_key(spec) or _only(features, "ClassLabel", name, "label_column")
    wrong = next((column for column in (image, label) if column and column not in features), "")
    if wrong:
        raise DataError(f"{name} has no column {wrong!r}. It has: {', '.join(features)}.")
    names = own_names(getattr(features.get(label), "names", None))
    if dataset.format["type"] is None:  # a file's own bytes, not what Pillow made of them
        kept = [column for column in (image, label) if column]
        dataset = dataset.select_columns(kept) if len(kept) == 2 else dataset
        if type(features.get(image)).__name__ == "Image":
            dataset = dataset.cast_column(image, sys.modules["datasets"].Image(decode=False))
    return Part(name, len(dataset), dataset.__getitem__, names, image, label)


def _only(features: Mapping[str, Any], kind: str, name: str, option: str) -> str:
    """Return the only column of a kind, "" where there is none. Raises DataError where there are several."""
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) > 1:
        raise DataError(
            f"{name} has several columns of the kind {kind}: {', '.join(found)}. Name the one that is meant: "
            f'data={{"{option}": {found[0]!r}}}.'
        )
    return found[0] if found else ""


# --- torch and torchvision --------------------------------------------------------------------------------


def _inner(dataset: Any) -> Iterator[Any]:
    """Yield a data set and, recursively, the one behind a Subset and the members of a concatenation."""
    yield dataset
    if type(dataset).__module__ == "torch.utils.data.dataset":
        for inner in [*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)]:
            if inner is not None:
                yield from _inner(inner)


def _names(dataset: Any) -> tuple[str, ...]:
    """Return a data set's class names; () if labels are transformed, or it has no names."""
    found = set()
    for inner in _inner(dataset):
        if getattr(inner, "target_transform", None) is not None:
            return ()
        if not isinstance(getattr(inner, "classes", None), (list, tuple)):
            continue
        found.add(own_names(inner.classes))
    if len(found) > 1:
        raise DataError(
            f"{title(dataset)} combines data sets with different class names, so that one number means "
            "several classes. Give them one by one, or use texts as labels."
        )
    return found.pop() if found else ()


def known_name(value: Any) -> str:
    """Return the name of torchvision's data set among the known ones, "" for any other object."""
    if frames.is_frame(value):
        return ""
    *_, last = _inner(value)
    own = type(last).__module__.startswith("torchvision.datasets.")
    return known.canonical(type(last).__name__) if own else ""


def _files(dataset: Any, name: str) -> Files | None:
    """Return the files of torchvision's ImageFolder (or a Subset of one), if it gives them unchanged."""
    rows: list[int] | None = None
    while type(dataset).__module__ == "torch.utils.data.dataset" and type(dataset).__name__ == "Subset":
        inside = [int(index) for index in dataset.indices]
        rows = inside if rows is None else [inside[row] for row in rows]
        dataset = dataset.dataset
    folder = sys.modules.get("torchvision.datasets.folder")
    if folder is None or getattr(type(dataset), "__getitem__", None) is not folder.DatasetFolder.__getitem__:
        return None
    changed = any(
        getattr(dataset, part, None) is not None for part in ("transform", "target_transform", "transforms")
    )
    if changed or dataset.loader is not folder.default_loader:
        return None
    root = os.path.abspath(os.fspath(dataset.root))
    chosen = dataset.samples if rows is None else [dataset.samples[row] for row in rows]
    found = [(os.path.abspath(path), int(label)) for path, label in chosen]
    return Files(name, root, found, own_names(dataset.classes))
