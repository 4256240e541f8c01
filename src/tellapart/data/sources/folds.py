"""Folds for cross-validation: every image is held out once. Stratified, seeded, and never dividing a group.

As a split does, a fold depends on the samples' paths, labels and groups and on the seed, not on the order in which
the samples are listed. Knows nothing of files or of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.sources import iterative
from tellapart.data.sources.splits import Dealer, Labels, seeded
from tellapart.errors import DataError


def assign(labels: npt.NDArray[Any], units: Sequence[str], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each sample, int64 [N] from 0 to ``count`` - 1.

    ``units`` names what stays together: samples of one unit are in one fold. If each sample is a unit of its own, no
    two folds differ by more than one sample, neither as a whole nor in any class. Units of several samples are assigned
    the largest first (equal ones in seeded order), each to the fold that needs its classes most. If ``labels`` are
    targets [N, K], images with several labels are assigned by `iterative.places`. Raises DataError if there are fewer
    units than folds.
    """
    names, index = np.unique(np.asarray(units, dtype=object), return_inverse=True)
    if len(names) < count:
        what = "images" if len(names) == len(units) else "groups of images that stay together"
        raise DataError(
            f"{count} folds need at least {count} {what}, and there are {len(names)}. Use fewer folds."
        )
    order = seeded(seed, [str(name) for name in names])
    if labels.ndim == 2:
        return iterative.places(labels, units, [1 / count] * count, order[index])
    if len(names) == len(units):
        folds = np.empty(len(units), np.int64)
        folds[np.lexsort((order[index], labels))] = np.arange(len(units)) % count
        return folds
    return _deal(labels, index.astype(np.int64), order, count)


def _deal(
    labels: Labels, index: npt.NDArray[np.int64], order: npt.NDArray[np.uint64], count: int
) -> npt.NDArray[np.int64]:
    width = int(labels.max(initial=0)) + 1
    cells, found = np.unique(index * width + labels, return_counts=True)
    counts: list[list[tuple[int, int]]] = [[] for _ in order]
    for cell, number in zip(cells.tolist(), found.tolist(), strict=True):
        counts[cell // width].append((cell % width, number))
    dealer = Dealer(
        np.bincount(labels, minlength=width).tolist(), {str(fold): 1 / count for fold in range(count)}
    )
    sizes = np.bincount(index, minlength=len(order))
    have = [0] * count
    place = np.empty(len(order), np.int64)
    for unit in np.lexsort((order, -sizes)).tolist():
        costs = [round(dealer.cost(str(fold), counts[unit]), 9) for fold in range(count)]
        fold = min(range(count), key=lambda fold: (costs[fold], have[fold]))
        dealer.move(str(fold), counts[unit])
        have[fold] += int(sizes[unit])
        place[unit] = fold
    return place[index]


def scarce(labels: npt.NDArray[Any], units: Sequence[str], count: int) -> list[int]:
    """Return the classes that have fewer units than there are folds: some folds hold out none of them.

    ``labels``: int64 [N], or targets [N, K] where an image can have several.
    """
    rows, classes = np.nonzero(labels) if labels.ndim == 2 else (np.arange(len(labels)), labels)
    pairs = {(label, units[row]) for label, row in zip(classes.tolist(), rows.tolist(), strict=True)}
    found = np.bincount([label for label, _ in pairs])
    return [k for k, units_of in enumerate(found.tolist()) if 0 < units_of < count]
