"""The answer for an image: from a network's logits and the card to labels and probabilities.

The one place where that is computed. Prediction, the service, evaluation, comparison of exports and compression use it;
`tellapart.export.graph` has the same as operations for a graph. numpy only. Knows nothing of networks and files.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import grades, levels
from tellapart.contract.card import Card
from tellapart.errors import ArtifactError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Kind(abc.ABC):
    """What a label is, and so what logits mean: one small class for each kind that a card can name.

    What a kind needs besides the logits (such as a threshold for each class) it takes from the card when it is made.
    """

    thresholds: tuple[float, ...] = ()
    """The probability from which on each class is given as a label, if the kind has thresholds."""
    grades: tuple[float, ...] = ()
    """What each class counts in the expected grade, where classes are grades, the lowest first."""

    @abc.abstractmethod
    def probabilities(self, scaled_BK: Floats) -> Floats:
        """Return each class's probability, float64 [B, K], for logits over the card's temperature."""

    @abc.abstractmethod
    def told(self, scores_BK: npt.NDArray[Any], probabilities_BK: Callable[[], Floats]) -> list[list[int]]:
        """Return for each image the classes given as its labels, the most probable first.

        ``scores_BK``: what classes are ranked by; ``probabilities_BK`` computes `probabilities` where they are needed.
        """


class Single(Kind):
    """Each image has exactly one class: softmax, and the most probable class is the label."""

    def probabilities(self, scaled_BK: Floats) -> Floats:
        """Return the softmax, float64 [B, K]; NaN if a logit is NaN."""
        highest = scaled_BK.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            result: Floats = np.exp(scaled_BK - highest)
        result /= result.sum(axis=1, keepdims=True)
        return result

    def told(self, scores_BK: npt.NDArray[Any], probabilities_BK: Callable[[], Floats]) -> list[list[int]]:
        """Return the most probable class alone."""
        return [[index] for index in best(scores_BK).tolist()]


class Graded(Single):
    """The same where classes are grades: the most probable one, and the mean by probability beside it."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.grades = tuple(grades.values(classes))


class MultiLabel(Kind):
    """Each image has any number of classes: a sigmoid for each, a label if it reaches the class's threshold."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = tuple(thresholds)

    def probabilities(self, scaled_BK: Floats) -> Floats:
        """Return the sigmoids, float64 [B, K]; NaN if a logit is NaN."""
        small = np.exp(-np.abs(scaled_BK))  # of at most 1, so that nothing overflows
        result: Floats = np.where(scaled_BK >= 0, 1.0, small) / (1 + small)
        return np.where(np.isnan(scaled_BK), np.nan, result)

    def told(self, scores_BK: npt.NDArray[Any], probabilities_BK: Callable[[], Floats]) -> list[list[int]]:
        """Return the classes that reach their thresholds; none is an answer too."""
        order = ranked(scores_BK, scores_BK.shape[1])
        reached = probabilities_BK() >= np.asarray(self.thresholds)
        return [row[which[row]].tolist() for row, which in zip(order, reached, strict=True)]


KINDS: Mapping[str, Callable[[Card], Kind]] = {
    "single": lambda card: Graded(card.classes) if card.ordered else Single(),
    "multi-label": lambda card: MultiLabel(card.thresholds),
}
"""How each kind is made from a card; `tellapart.contract.card.KINDS` has the same names."""


@dataclass(frozen=True)
class Told:
    """A label given because its probability reaches its threshold."""

    label: str
    probability: float
    threshold: float


@dataclass(frozen=True)
class AtLevel:
    """The answer at one level above the classes (1 is the topmost): the label whose classes' probabilities sum
    to the most. ``agrees``: whether the most probable class is one of them, which it need not be.
    """

    level: int
    label: str
    probability: float
    agrees: bool


@dataclass(frozen=True)
class Answer:
    """The answer for one image: as many of the most probable classes as requested, best first.

    ``told``: the labels of an image that can have several, best first, possibly none; None if it has exactly one.
    ``expected_grade``: if classes are grades, their mean by probability: of the numbers in their names, otherwise of
    the places 0, 1, 2, … from the lowest on.
    ``levels``: the answers above the classes, if their names have levels, the topmost first.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    told: tuple[Told, ...] | None = None
    expected_grade: float | None = None
    levels: tuple[AtLevel, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the answer, followed by ``top`` with all requested classes.

        The answer is label and probability of the best class (with ``expected_grade`` of grades, and ``levels`` where
        there are any), or ``labels``, each with its probability and threshold.
        """
        pairs = zip(self.labels, self.probabilities, strict=True)
        top = [{"label": name, "probability": value} for name, value in pairs]
        if self.told is not None:
            return {"labels": [vars(one) for one in self.told], "top": top}
        expected = {} if self.expected_grade is None else {"expected_grade": self.expected_grade}
        above = {"levels": [vars(one) for one in self.levels]} if self.levels else {}
        return {**top[0], **expected, **above, "top": top}


class Answers:
    """The answers for a batch of images, each part computed on demand.

    Classes are ranked by their logits; of equal ones the lower class comes first, and NaN last.
    """

    def __init__(
        self,
        logits: npt.NDArray[Any],
        classes: Sequence[str],
        temperature: float = 1.0,
        kind: Kind | None = None,
        mark: str = "",
    ) -> None:
        """``logits``: float32 [B, K] as the network gave them; ``classes``: K names; ``kind``: None for `Single`;
        ``mark``: what separates the levels in the names, empty where they have none.
        """
        self.logits, self.classes, self._temperature = logits, classes, temperature
        self._kind, self._mark = kind or Single(), mark

    def __len__(self) -> int:
        return len(self.logits)

    @functools.cached_property
    def scaled(self) -> Floats:
        """The logits over the card's temperature, float64 [B, K]."""
        return self.logits.astype(np.float64) / self._temperature

    @functools.cached_property
    def probabilities(self) -> Floats:
        """The probability of each class, float64 [B, K]."""
        return self._kind.probabilities(self.scaled)

    @functools.cached_property
    def best(self) -> Indices:
        """The most probable class of each image, int64 [B]."""
        return best(self.logits)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image by name."""
        return [self.classes[index] for index in self.best.tolist()]

    @functools.cached_property
    def levels(self) -> tuple[levels.Level, ...]:
        """The levels above the classes, the topmost first; empty where their names have none."""
        return levels.above(self.classes, self._mark)

    @functools.cached_property
    def above(self) -> tuple[Answers, ...]:
        """The answers at each of these levels: the probability of a name there is the sum of its classes'."""
        return tuple(Answers(levels.logits(self.scaled, one), one.names) for one in self.levels)

    @property
    def told(self) -> list[list[int]]:
        """The classes given as labels of each image."""
        return self._kind.told(self.logits, lambda: self.probabilities)

    @property
    def several(self) -> bool:
        """Whether an image can have several labels, or none."""
        return bool(self.thresholds)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability from which on each class is given as a label; empty if the best class is the label."""
        return self._kind.thresholds

    @property
    def ordered(self) -> bool:
        """Whether the classes are grades, the lowest first."""
        return bool(self._kind.grades)

    @functools.cached_property
    def expected_grades(self) -> Floats:
        """The mean grade by probability, float64 [B]; for grades alone."""
        result: Floats = self.probabilities @ np.array(self._kind.grades)
        return result

    @functools.cached_property
    def told_matrix(self) -> npt.NDArray[np.bool_]:
        """The classes given as labels of each image, [B, K]."""
        matrix = np.zeros(self.logits.shape, bool)
        for row, indices in zip(matrix, self.told, strict=True):
            row[indices] = True
        return matrix

    def top(self, count: int) -> Iterator[Answer]:
        """Yield for each image its ``count`` most probable classes (all of them if there are fewer)."""
        order = ranked(self.logits, count)
        told = self.told if self.several else [None] * len(self)
        for place, (indices, values) in enumerate(zip(order, self.probabilities, strict=True)):
            names = tuple([self.classes[index] for index in indices.tolist()])
            several = told[place]
            found = None if several is None else tuple(self._told(place, index) for index in several)
            expected = float(self.expected_grades[place]) if self.ordered else None
            yield Answer(names, tuple(values[indices].tolist()), found, expected, self._above(place))

    def _above(self, row: int) -> tuple[AtLevel, ...]:
        own, found = int(self.best[row]) if self.levels else 0, []
        for number, (level, answers) in enumerate(zip(self.levels, self.above, strict=True), 1):
            best = int(answers.best[row])
            value = float(answers.probabilities[row, best])
            found.append(AtLevel(number, level.names[best], value, int(level.of[own]) == best))
        return tuple(found)

    def _told(self, row: int, index: int) -> Told:
        return Told(self.classes[index], float(self.probabilities[row, index]), self.thresholds[index])

    def places(self, truth: Indices) -> Indices:
        """Return how many classes are ranked before each image's own, int64 [B]."""
        scores = comparable(self.logits)
        own = scores[np.arange(len(truth)), truth][:, None]
        earlier = np.arange(scores.shape[1]) < truth[:, None]
        result: Indices = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        return result


def of(logits: Logits, card: Card) -> Answers:
    """Return the answers for logits, float32 [B, K]. Raises ArtifactError if they are not finite or do not fit."""
    return unchecked(checked(logits, card), card)


def unchecked(logits: Logits, card: Card) -> Answers:
    """Return the same as `of`, even if logits are not finite: their probabilities are then NaN."""
    return Answers(logits, card.classes, card.temperature, KINDS[card.kind](card), card.levels)


def probabilities(logits: Logits, card: Card) -> Floats:
    """Return the probability of each class: [B, K] -> float64 [B, K]. Raises ArtifactError."""
    return of(logits, card).probabilities


def checked(logits: Logits, card: Card) -> Logits:
    """Return logits [B, K] if they are valid: finite, one for each class. Raises ArtifactError."""
    if logits.ndim != 2 or logits.shape[1] != len(card.classes):
        raise ArtifactError(
            f"The model answers with {list(logits.shape[1:])} values for an image; its description has "
            f"{len(card.classes)} classes."
        )
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "The model's answer is not a number (its weights are damaged, or its values overflow)."
        )
    return logits


def comparable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values with NaN as the lowest, so that ranks are defined."""
    highest = values.max() if values.size else 0.0
    return values if highest == highest else np.where(np.isnan(values), -np.inf, values)


def best(values_BK: npt.NDArray[Any]) -> Indices:
    """Return the index of each row's highest value, int64 [B]; of equal ones the first."""
    result: Indices = comparable(values_BK).argmax(axis=1)
    return result


def ranked(values_BK: npt.NDArray[Any], count: int) -> Indices:
    """Return the indices of each row's ``count`` highest values, the highest first, int64 [B, min(count, K)]."""
    return np.argsort(-values_BK, axis=1, kind="stable")[:, :count]  # which puts NaN last
