"""Whether the mix of classes in the answers moves away from what is expected.

The drift is the total variation distance of the two mixes: the share of the latest answers that would have to change.
Beside it is the value that chance alone gives for that many answers. Knows nothing of HTTP or of where the numbers go.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import Card
from tellapart.errors import ServeError

Shares = npt.NDArray[np.float64]


class ClassMix:
    """The classes of the latest ``window`` answers against ``expected`` shares [K].

    Without an expectation the first ``window`` answers become it.
    """

    def __init__(self, classes: int, window: int, expected: Shares | None, source: str) -> None:
        self.expected = expected
        self.source = source if expected is not None else "first answers"
        self._window: collections.deque[int] = collections.deque()
        self._size = window
        self._counts = np.zeros(classes, np.int64)

    def add(self, label: int) -> bool:
        """Count an answer; return whether it completed the expectation."""
        self._window.append(label)
        self._counts[label] += 1
        if len(self._window) > self._size:
            self._counts[self._window.popleft()] -= 1
        if self.expected is None and len(self._window) == self._size:
            self.expected = self._counts / self._size
            return True
        return False

    @property
    def drift(self) -> float:
        """The current distance, 0 to 1; NaN without answers or without an expectation."""
        if self.expected is None or not self._window:
            return float("nan")
        return float(np.abs(self._counts / len(self._window) - self.expected).sum() / 2)

    @property
    def by_chance(self) -> float:
        """The mean distance of as many answers drawn from the expected mix.

        By the normal approximation, but for each class at most the value for a single answer: 2 p (1 - p).
        """
        if self.expected is None or not self._window:
            return float("nan")
        variances = self.expected * (1 - self.expected)
        distances = np.minimum(np.sqrt(2 / np.pi * variances / len(self._window)), 2 * variances)
        return float(distances.sum() / 2)


def expectation(card: Card, model: Path, option: str) -> tuple[Shares | None, str]:
    """Return the expected shares by class and where they are from ("option", "card", "run", "").

    From the file of ``option`` (JSON: number or share by class), otherwise from the predicted classes on validation in
    the card, otherwise in the run folder that contains the model.
    """
    if option:
        return _of_option(option, card.classes), "option"
    for part in ("val", "test"):
        found = _predicted(card.scores.get(part), card.classes)
        if found is not None:
            return found, f"card, {part}"
    folder = model if model.is_dir() else model.parent
    for part in ("val", "test"):
        try:
            content = json.loads((folder / "evaluation" / part / "metrics.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        found = _predicted(content, card.classes)
        if found is not None:
            return found, f"run, {part}"
    return None, ""


def _shares(numbers: Any, classes: int) -> Shares | None:
    try:
        values = np.asarray(numbers, np.float64)
    except (TypeError, ValueError):
        return None
    usable = (
        values.shape == (classes,) and np.isfinite(values).all() and values.min() >= 0 and values.sum() > 0
    )
    return values / values.sum() if usable else None


def _predicted(scores: Any, classes: Sequence[str]) -> Shares | None:
    """Return the mix of predicted classes, from their numbers or a confusion matrix, otherwise that of the true ones.

    ``predicted``: numbers by class; ``confusion``: rows of true classes, columns of predicted ones.
    """
    if not isinstance(scores, Mapping) or list(scores.get("classes", classes)) != list(classes):
        return None
    if scores.get("predicted") is not None:
        return _shares(scores["predicted"], len(classes))
    confusion = scores.get("confusion")
    if confusion is not None:
        try:
            return _shares(np.asarray(confusion, np.float64).sum(axis=0), len(classes))
        except (TypeError, ValueError):
            return None
    per_class = scores.get("per_class")
    if isinstance(per_class, list):
        return _shares(
            [row.get("support") if isinstance(row, dict) else None for row in per_class], len(classes)
        )
    return None


def _of_option(option: str, classes: Sequence[str]) -> Shares:
    try:
        content = json.loads(Path(option).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ServeError(f"--class-mix {option} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or set(content) - set(classes):
        raise ServeError(f"--class-mix {option} must have a number for each class of: {', '.join(classes)}.")
    shares = _shares([content.get(name, 0) for name in classes], len(classes))
    if shares is None:
        raise ServeError(f"--class-mix {option} must have numbers of at least 0, and one above it.")
    return shares
