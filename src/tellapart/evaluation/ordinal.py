"""The figures of classes that are grades: how far wrong answers are from the right ones.

All of them follow from the confusion matrix, whose classes lie in order, the lowest grade first; the distance of two
grades is that of their places, and the predicted grade the most probable one. Knows nothing of logits or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import numerals

Interval = tuple[float, float]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
QUICK = ("kappa", "mae")
RESAMPLES = 1000


@dataclass(frozen=True)
class GradeScores:
    """Figures of grades.

    kappa: Cohen's, weighted quadratically, from -1 to 1; None where all images are of one grade and told so. mae: the
    mean absolute error in grades. within_one: the share of images whose answer is at most one grade off. The intervals
    are of 95 %, None where there is no mistake to draw (for the share, see `tellapart.evaluation.metrics`).
    """

    kappa: float | None
    kappa_interval: Interval | None
    mae: float
    mae_interval: Interval | None
    within_one: float
    within_one_interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def figures(self) -> dict[str, float | None]:
        """Return the values without their intervals."""
        return {"kappa": self.kappa, "mae": self.mae, "within_one": self.within_one}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GradeScores:
        """Return what `to_dict` gave the values of. Raises KeyError for a missing one."""
        known: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


def kappa(confusion: Counts) -> float:
    """Return Cohen's kappa with quadratic weights (Cohen 1968) of counts [K, K], rows true; NaN if undefined.

    It is 1 less the squared distances of the answers over those by chance, which has the same rows and columns.
    scikit-learn's ``cohen_kappa_score(weights="quadratic", labels=range(K))``.
    """
    return float(figures(*_cells(confusion))["kappa"])


def _cells(confusion: Counts) -> tuple[Floats, Floats, Floats]:
    """Return the true and the told grade of each cell that is not empty, and its share of the images."""
    rows, columns = np.nonzero(confusion)
    shares = confusion[rows, columns] / confusion.sum()
    return rows.astype(np.float64), columns.astype(np.float64), shares


def figures(truth: Floats, told: Floats, shares: Floats) -> dict[str, Floats]:
    """Return kappa and mae where ``shares`` [..., M] of the images have M pairs of true and told grade, each [...]."""
    a, b = truth, told
    squared, a1, a2, b1, b2 = (shares @ values for values in ((a - b) ** 2, a, a * a, b, b * b))
    chance = a2 + b2 - 2 * a1 * b1  # the mean squared distance of independent grades
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(chance > 1e-12 * (1 + a2 + b2), 1 - squared / chance, np.nan)
    return {"kappa": found, "mae": shares @ np.abs(a - b)}


def quick(truth: npt.NDArray[np.int64], told: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the figures by which an epoch is judged, of grades int64 [N].

    Where kappa is not defined, all images are of one grade and told so: here it is 1, so that an epoch without a
    mistake can be chosen.
    """
    shares = np.full(len(truth), 1 / len(truth))
    found = figures(truth.astype(np.float64), told.astype(np.float64), shares)
    return {"kappa": float(np.nan_to_num(found["kappa"], nan=1.0)), "mae": float(found["mae"])}


def scores(confusion: Counts, share_interval: Interval) -> GradeScores:
    """Return all figures of a confusion matrix; ``share_interval``: of the answers within one grade.

    Intervals are percentiles of `RESAMPLES` drawings of as many images (the bootstrap).
    """
    found = {name: float(value) for name, value in figures(*_cells(confusion)).items()}
    drawn = drawings(confusion) if confusion.sum() > confusion.trace() else {}
    defined = math.isfinite(found["kappa"])
    return GradeScores(
        kappa=found["kappa"] if defined else None,
        kappa_interval=_interval(drawn["kappa"]) if drawn and defined else None,
        mae=found["mae"],
        mae_interval=_interval(drawn["mae"]) if drawn else None,
        within_one=within_one(confusion) / int(confusion.sum()),
        within_one_interval=share_interval,
    )


def within_one(confusion: Counts) -> int:
    """Return how many answers are at most one grade off."""
    places = np.arange(len(confusion))
    return int(confusion[np.abs(places[:, None] - places) <= 1].sum())


def drawings(confusion: Counts, seed: int = 0) -> dict[str, Floats]:
    """Return kappa and mae of `RESAMPLES` samples of as many images as there are, drawn with replacement.

    Both depend on how many images are in each cell alone, and these counts are multinomial.
    """
    truth, told, shares = _cells(confusion)
    n = int(confusion.sum())
    return figures(truth, told, np.random.default_rng(seed).multinomial(n, shares, RESAMPLES) / n)


def _interval(drawn: Floats) -> Interval | None:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return None
    low, high = np.percentile(known, (2.5, 97.5)).tolist()
    return low, high


def texts(scores: GradeScores) -> list[tuple[str, str, str]]:
    """Return the figures as shown to people: name, value, and 95 % interval ("" if there is none)."""

    def between(interval: Interval | None) -> str:
        return "" if interval is None else " to ".join(numerals.fixed(value, 3) for value in interval)

    return [
        ("quadratic kappa", numerals.loss(scores.kappa, 3), between(scores.kappa_interval)),
        ("mean absolute error", f"{numerals.fixed(scores.mae, 3)} grades", between(scores.mae_interval)),
        (
            "within one grade",
            numerals.percent(scores.within_one),
            numerals.interval(*scores.within_one_interval),
        ),
    ]
