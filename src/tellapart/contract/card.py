"""The model card: everything that goes with a classifier's weights, as data in an artifact and in every export.

Standard library only; knows nothing of the files that it is kept in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tellapart import json_text
from tellapart.contract import strict
from tellapart.contract.architecture import Architecture
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.views import Views
from tellapart.errors import ModelError

# 1: one view, no calibration; 2: views; 3: calibration; 4: another kind of label, or inputs that are not square or have
# other channels than 1 and 3; 5: pixels of another depth than 8 bits. The lowest that says all is written.
FORMAT = 5
KINDS = ("single", "multi-label")
"""What a label can be: ``single``, exactly one class for each image; ``multi-label``, any number of them, each given as
a label if its probability reaches its threshold (see `tellapart.contract.answers`)."""
MOST_CLASSES = 100_000
MOST_WARNINGS = 1000
LONGEST_MARK = 8
TEMPERATURES = (1e-3, 1e3)


@dataclass(frozen=True)
class Card:
    """What the file says about itself: everything but the weights."""

    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    scores: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    views: Views = field(default_factory=Views)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """The warnings of training."""
    kind: str = KINDS[0]
    """The kind of label, one of `KINDS`: it decides how logits become probabilities and labels."""
    thresholds: tuple[float, ...] = ()
    """multi-label: the probability from which on each class is given as a label; empty for single."""
    ordered: bool = False
    """Whether the classes are grades, the lowest first. The answers are those of a program that does not know this
    field but for the expected grade, so no format says so."""
    levels: str = ""
    """What separates the levels in the names of classes (``/`` in ``animal/dog``); empty where they have none."""

    @property
    def several(self) -> bool:
        """Whether an image can have several labels, or none."""
        return self.kind == "multi-label"

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax; 1 without a calibration (Guo et al. 2017)."""
        return float(self.calibration.get("temperature", 1.0))

    def to_json(self) -> str:
        """Return the card as JSON text."""
        content = {
            "format": self._format(),
            "architecture": self.architecture.to_dict(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "scores": dict(self.scores),
            "weights": dict(self.weights),
            "versions": dict(self.versions),
            "views": self.views.to_dict(),
            "calibration": dict(self.calibration),
        }
        if self.kind != KINDS[0]:
            content["kind"] = self.kind
        if self.thresholds:
            content["thresholds"] = list(self.thresholds)
        if self.ordered:
            content["ordered"] = True
        if self.levels:
            content["levels"] = self.levels
        if self.warnings:
            content["warnings"] = [text.encode(errors="replace").decode() for text in self.warnings]
        return json_text.dumps(content, ensure_ascii=False)

    def _format(self) -> int:
        shape = self.preprocessing
        if shape.depth != "uint8":
            return 5
        if self.kind != KINDS[0] or shape.channels not in (1, 3) or not isinstance(shape.size, int):
            return 4
        return 3 if self.calibration else 2 if self.views.count > 1 else 1

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read ``to_json``'s text, which may be a stranger's: every field is checked. Raises CardError.

        Unknown fields are ignored: the ``format`` of a later version says whether they matter.
        """
        try:
            content = strict.mapping(strict.parse(text), "the card")
            _check_format(content)
            values = {name: read(content[name], name) for name, read in _READERS.items() if name in content}
            lacking = [name for name in _REQUIRED if name not in values]
            if lacking:
                raise strict.StrictError(f"it lacks {lacking[0]!r}")
            card = cls(**values)
            _check_together(card)
        except (ValueError, TypeError, ModelError, OverflowError) as error:
            raise CardError(str(error)) from None
        return card


class CardError(ValueError):
    """A card with a field that is missing or impossible; says which."""


def _check_format(content: Mapping[str, Any]) -> None:
    if "format" not in content:
        raise strict.StrictError("it lacks 'format'")
    number = strict.conform(content["format"], int, "format")
    if number > FORMAT:
        raise strict.StrictError(f"format {number} is newer than this program's {FORMAT}")
    if number < 1:
        raise strict.StrictError(f"format is {number}; it must be at least 1")


def class_names(value: Any, where: str = "classes") -> tuple[str, ...]:
    """Return class names that are distinct and can be displayed. Raises StrictError."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CLASSES:
        raise strict.StrictError(
            f"{where} is {strict.shorten(value)}; it must be a list of 1 to {MOST_CLASSES:,} names"
        )
    seen: set[str] = set()
    for place, name in enumerate(value):
        name = strict.conform(name, str, f"{where}[{place}]")
        if not name.strip() or name in seen:
            what = "appears twice" if name in seen else "is empty"
            raise strict.StrictError(f"{where}[{place}], {strict.shorten(name)}, {what}")
        seen.add(name)
    return tuple(value)


def _texts(value: Any, where: str) -> dict[str, str]:
    found = strict.mapping(value, where)
    return {key: strict.conform(one, str, f"{where}.{key[:50]}") for key, one in found.items()}


def _sentences(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MOST_WARNINGS:
        raise strict.StrictError(
            f"{where} is {strict.shorten(value)}; it must be a list of at most {MOST_WARNINGS:,} texts"
        )
    return tuple(strict.conform(one, str, f"{where}[{place}]") for place, one in enumerate(value))


def _weights(value: Any, where: str) -> dict[str, Any]:
    found = strict.mapping(value, where)
    for key, hint in (("source", str), ("tag", str | None), ("licence", str | None)):
        strict.conform(found.get(key, ""), hint, f"{where}.{key}")
    return found


def _scores(value: Any, where: str) -> dict[str, Any]:
    """The kept epoch, and figures by split; known ones are checked, others may be anything that JSON holds."""
    found = strict.mapping(value, where)
    if (epoch := found.get("epoch")) is not None and strict.conform(epoch, int, f"{where}.epoch") < 0:
        raise strict.StrictError(f"{where}.epoch is {epoch}; it must not be negative")
    for split, figures in found.items():
        for key, (hint, highest) in _FIGURES.items():
            if not isinstance(figures, dict) or figures.get(key) is None:
                continue
            place = f"{where}.{split[:50]}.{key}"
            numbers = figures[key] if key in _LISTS else [figures[key]]
            if not isinstance(numbers, list):
                raise strict.StrictError(
                    f"{place} is {strict.shorten(numbers)}; it must be a list of numbers"
                )
            for number in numbers:
                if number is not None and not 0 <= strict.conform(number, hint, place) <= highest:
                    allowed = "be from 0 to 1" if hint is float else "not be negative"
                    raise strict.StrictError(f"{place} is {number}; it must {allowed}")
    return found


_FIGURES: Mapping[str, tuple[type, float]] = {
    "n": (int, math.inf),
    "predicted": (int, math.inf),
    "accuracy": (float, 1.0),
    "accuracy_interval": (float, 1.0),
    "macro_f1": (float, 1.0),
    "balanced_accuracy": (float, 1.0),
}
_LISTS = ("predicted", "accuracy_interval")


def _calibration(value: Any, where: str) -> dict[str, Any]:
    found = strict.mapping(value, where)
    temperature = strict.conform(found.get("temperature", 1.0), float, f"{where}.temperature")
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise strict.StrictError(
            f"{where}.temperature is {temperature:g}; it must be from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}"
        )
    return found


def _kind(value: Any, where: str) -> str:
    name = strict.conform(value, str, where)
    if name not in KINDS:
        raise strict.StrictError(
            f"{where} is {strict.shorten(name)}, which this program does not know; it knows {', '.join(KINDS)}"
        )
    return str(name)


def _thresholds(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) > MOST_CLASSES:
        raise strict.StrictError(f"{where} is {strict.shorten(value)}; it must be a list of numbers")
    found = tuple(strict.conform(one, float, f"{where}[{place}]") for place, one in enumerate(value))
    for place, one in enumerate(found):
        if not 0 <= one <= 1:
            raise strict.StrictError(f"{where}[{place}] is {one:g}; it must be from 0 to 1")
    return found


def _levels(value: Any, where: str) -> str:
    mark = strict.conform(value, str, where)
    if len(mark) > LONGEST_MARK or any(c.isspace() for c in mark):
        raise strict.StrictError(
            f"{where} is {strict.shorten(mark)}; it must be at most {LONGEST_MARK} characters, none of them a space"
        )
    return str(mark)


def label_mark(classes: Sequence[str]) -> str:
    """Return the separator of several labels of one image in text: the first mark that no class name contains."""
    marks: tuple[str, ...] = (
        *"|;/+&#~^",
        *map(chr, range(0xE000, 0xF8FF)),
    )  # after the usual ones, characters for private use
    return next(mark for mark in marks if not any(mark in name for name in classes))


def _check_together(card: Card) -> None:
    """Raise StrictError if two fields contradict each other."""
    network, contract = card.architecture, card.preprocessing
    wanted = len(card.classes) if card.several else 0
    if len(card.thresholds) != wanted:
        raise strict.StrictError(
            f"thresholds has {len(card.thresholds)} values; of kind {card.kind} with {len(card.classes)} classes it "
            f"must have {wanted}"
        )
    if card.several and card.ordered:
        raise strict.StrictError("ordered is for images of one label, and kind is multi-label")
    if card.several and card.levels:
        raise strict.StrictError("levels is for images of one label; of kind multi-label it must be empty")
    if card.several and card.views.count > 1 and card.views.below < 1:
        raise strict.StrictError("views.below is for images of one label; of kind multi-label it must be 1")
    for what, ours, theirs in (
        ("classes", len(card.classes), network.num_classes),
        ("preprocessing.channels", contract.channels, network.channels),
        ("preprocessing.size", contract.size, network.size),
    ):
        if ours != theirs:
            raise strict.StrictError(f"{what} says {ours} where the architecture says {theirs}")


_REQUIRED = ("architecture", "classes", "preprocessing")
_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "architecture": lambda value, where: Architecture.from_dict(strict.mapping(value, where)),
    "classes": class_names,
    "preprocessing": lambda value, where: Preprocessing.from_dict(strict.mapping(value, where)),
    "scores": _scores,
    "weights": _weights,
    "versions": _texts,
    "views": lambda value, where: Views.from_dict(strict.mapping(value, where)),
    "calibration": _calibration,
    "warnings": _sentences,
    "kind": _kind,
    "thresholds": _thresholds,
    "ordered": lambda value, where: bool(strict.conform(value, bool, where)),
    "levels": _levels,
}
"""How each field of a card is read; a new field is a line here, and one in `Card`."""
