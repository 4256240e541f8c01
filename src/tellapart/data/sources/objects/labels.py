"""Labels from Python (numbers of Python, numpy or torch, texts), and the names of their classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tellapart.contract.given import is_tensor
from tellapart.data.sources.listing import clean_label, some
from tellapart.errors import DataError

Label = str | int | bool | None  # None: the image has none


class UnfitLabel(Exception):  # noqa: N818 - told with the place where it was found
    """A value that is not a label of one class; the message says what it is."""


def plain(value: Any) -> Label:
    """Return a label as text or number; None for a missing label. Raises UnfitLabel."""
    if is_tensor(value):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise UnfitLabel(
                f"the label is an array of {value.size} numbers; expected one class for each image. Of one-hot labels "
                "give the position of the 1 (argmax)"
            )
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return clean_label(value) or None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            return int(value)
        raise UnfitLabel(f"the label is {value:g}; expected a class, as a whole number or a text")
    shown = f"{type(value).__name__} ({str(value)[:60]})"
    raise UnfitLabel(
        f"the label is a {shown}; expected one class for each image, as a whole number or a text"
    )


def checked_classes(classes: Iterable[Any] | None) -> tuple[str, ...]:
    """Return class names in their stored form. Raises DataError if they are not a list of different texts."""
    if classes is None:
        return ()
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise DataError(
            f"classes is {classes!r}; expected a list of names, in the order of the labels' numbers."
        )
    names = list(classes)
    wrong = next((name for name in names if not isinstance(name, str) or not clean_label(name)), None)
    if wrong is not None or not names:
        raise DataError(
            f"classes has {wrong!r} in it; expected a list of names." if names else "classes is empty."
        )
    kept = tuple(clean_label(name) for name in names)
    twice = sorted({name for name in kept if kept.count(name) > 1})
    if twice:
        raise DataError(f"classes names {some(map(repr, twice))} more than once.")
    return kept


def own_names(names: Any) -> tuple[str, ...]:
    """Return a data set's class names; () if they are not a list of different names.

    If it has several words for each class (as ImageNet has), the first; all of them if the first words are not unique.
    """
    if not isinstance(names, (list, tuple)) or not names:
        return ()
    if all(isinstance(name, str) for name in names):
        found = [clean_label(name) for name in names]
    elif all(isinstance(n, (list, tuple)) and n and all(isinstance(w, str) for w in n) for n in names):
        found = [clean_label(words[0]) for words in names]
        found = [
            name if found.count(name) == 1 else clean_label(", ".join(words))
            for name, words in zip(found, names, strict=True)
        ]
    else:
        return ()
    return tuple(found) if len(set(found)) == len(found) and all(found) else ()


def naming(
    labels: Sequence[Label],
    own: tuple[str, ...],
    classes: tuple[str, ...],
    known: tuple[str, ...],
    title: str,
) -> list[str]:
    """Return the class of each label, "" where there is none.

    Numbers are indices into ``own`` (the data set's class names), otherwise ``classes`` (the user's), otherwise
    ``known`` (a model's, unless its classes have these numbers as names), otherwise names themselves. Raises DataError
    for what is in none of them.
    """
    numbers = {int(label) for label in labels if isinstance(label, int)} - {-1}
    names = _of_numbers(numbers, own, classes, known, title)
    result = []
    for row, label in enumerate(labels):
        if label is None or (isinstance(label, int) and label == -1):
            result.append("")
        elif isinstance(label, str):
            if classes and label not in classes:
                raise DataError(
                    f"{title}: the label of index {row} is {label!r}, which is not in classes ({some(classes, 12)})."
                )
            result.append(label)
        elif not names:
            result.append(str(label))
        elif 0 <= label < len(names):
            result.append(names[label])
        else:
            raise DataError(
                f"{title}: the label of index {row} is {int(label)}, but there are names for 0 to {len(names) - 1} "
                f"({some(names, 12)})."
            )
    return result


def _of_numbers(
    numbers: set[int], own: tuple[str, ...], classes: tuple[str, ...], known: tuple[str, ...], title: str
) -> tuple[str, ...]:
    if not numbers:
        return ()
    if own and classes and not set(own) <= set(classes):
        if len(own) != len(classes) or set(own) & set(classes):
            raise DataError(
                f"{title} calls its classes {some(own, 12)}, but classes is {some(classes, 12)}: which number means "
                "which? Give all of its names (in any order), or as many others."
            )
        return classes
    if own or classes:
        return own or classes
    if known and all(str(number) in known for number in numbers):
        return ()
    return () if all(name.isdigit() for name in known) else known


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return different names of classes: numbers by their size, else () for the usual order."""
    found = set(names)
    return tuple(sorted(found, key=int)) if all(name.isdecimal() for name in found) else ()
