"""Two runs whose images can have several labels, on the images that both answered.

The difference of their mean average precision, by a bootstrap that draws the same images for both (Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993). Reads the runs' folders only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.card import label_mark
from tellapart.evaluation import multilabel
from tellapart.evaluation.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Told:
    """A run's record of a split's images: by path the hash ("" if unknown), the true labels and the answer."""

    classes: tuple[str, ...]
    rows: dict[str, tuple[str, frozenset[str], list[float], bool]]


@dataclass(frozen=True)
class Difference:
    """mAP of the second run minus that of the first on the same images, with its 95 % interval and its p value.

    only_first, only_second: images for which only that run gives exactly the true labels.
    """

    shared: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float


class NotComparableError(Exception):
    """Why two runs cannot be tested against each other."""


def read(run: RunFolder, split: str) -> Told:
    """Return what a run's predictions.csv says about a split."""
    hashes = {
        row.get("path", ""): row.get("hash", "")
        for name in ("samples.csv", "fold-1/samples.csv")  # the latter of a cross-validation
        for row in run.rows(name)
    }
    classes = run.evaluations[split].classes
    mark = label_mark(classes)
    rows: dict[str, Any] = {}
    for row in run.rows(f"evaluation/{split}/predictions.csv"):
        path = row.get("path", "")
        labels = frozenset(filter(None, row.get("labels", "").split(mark)))
        values = [float(row[f"p:{name}"]) for name in classes]
        rows[path] = (hashes.get(path, ""), labels, values, row.get("correct") == "1")
    return Told(classes, rows)


def compare(one: Told, two: Told, split: str) -> Difference:
    """Return how two runs differ. Raises NotComparableError."""
    if set(one.classes) != set(two.classes):
        odd = sorted(set(one.classes) ^ set(two.classes))
        raise NotComparableError(f"do not have the same classes (in one only: {', '.join(odd[:5])})")
    shared = [
        path
        for path, (digest, *_) in one.rows.items()
        if path in two.rows and (digest == two.rows[path][0] or not (digest and two.rows[path][0]))
    ]
    if not shared:
        raise NotComparableError(f"share no {split} images")
    unlike = [path for path in shared if one.rows[path][1] != two.rows[path][1]]
    if unlike:
        raise NotComparableError(
            f"label {len(unlike):,} of {len(shared):,} shared {split} images differently (such as {unlike[0]})"
        )
    place = [two.classes.index(name) for name in one.classes]
    first = np.array([one.rows[path][2] for path in shared])
    second = np.array([two.rows[path][2] for path in shared])[:, place]
    targets = np.array([[name in one.rows[path][1] for name in one.classes] for path in shared]).astype(
        np.uint8
    )
    drawn = multilabel.resampled_maps([first, second], targets)
    differences = drawn[1] - drawn[0]
    right = np.array([(one.rows[path][3], two.rows[path][3]) for path in shared])
    return Difference(
        shared=len(shared),
        only_first=int((right[:, 0] & ~right[:, 1]).sum()),
        only_second=int((right[:, 1] & ~right[:, 0]).sum()),
        difference=_map(second, targets) - _map(first, targets),
        interval=(float(np.percentile(differences, 2.5)), float(np.percentile(differences, 97.5))),
        p_value=p_value(differences),
    )


def p_value(differences: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p value of no difference: twice the smaller share of the resamples on either side of 0."""
    count = len(differences)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (count + 1))


def _map(scores: npt.NDArray[np.float64], targets: multilabel.Targets) -> float:
    return multilabel.mean_of_present(multilabel.average_precisions(scores, targets))
