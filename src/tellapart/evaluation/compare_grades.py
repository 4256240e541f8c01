"""Two runs whose classes are grades, on the images that both answered: the difference of their quadratic kappa.

By a bootstrap that draws the same images for both (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993).
Knows nothing of files.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tellapart.evaluation import ordinal
from tellapart.evaluation.compare_labels import p_value


@dataclass(frozen=True)
class Difference:
    """Kappa of the second run less that of the first, with its 95 % interval and its two-sided p value."""

    difference: float
    interval: tuple[float, float]
    p_value: float


def compare(
    answers: Sequence[tuple[str, str, str]], grades: Sequence[str], seed: int = 0
) -> Difference | None:
    """Return how two runs differ; ``answers``: the true grade of each image, and that which each of them told.

    ``grades``: their order, the lowest first. None where a kappa is not defined, or a grade is not among them.
    """
    place = {name: float(number) for number, name in enumerate(grades)}
    if not all(name in place for answer in answers for name in answer):
        return None
    counts = collections.Counter(answers)
    truth, one, two = np.array([[place[name] for name in answer] for answer in counts]).T
    shares = np.array(list(counts.values())) / len(answers)
    drawn = np.random.default_rng(seed).multinomial(len(answers), shares, ordinal.RESAMPLES) / len(answers)
    found = [
        ordinal.figures(truth, two, part)["kappa"] - ordinal.figures(truth, one, part)["kappa"]
        for part in (shares, drawn)
    ]
    known = found[1][np.isfinite(found[1])]
    if not np.isfinite(found[0]) or not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5)).tolist()
    return Difference(float(found[0]), (low, high), p_value(known))
