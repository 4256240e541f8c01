"""Splits of images with several labels, so that each label has its part of every split.

Iterative stratification: K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD
2011, algorithm 1, here over whole groups. Knows nothing of files or formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def deal(
    targets_NK: npt.NDArray[Any],
    groups: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    order: npt.NDArray[np.uint64],
) -> npt.NDArray[Any]:
    """Return the split of each sample, an object array [N] of "train", "val" or "test", as `places` deals them."""
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    splits = [name for name, fraction in fractions.items() if fraction > 0]
    return np.asarray(splits, dtype=object)[
        places(targets_NK, groups, [fractions[name] for name in splits], order)
    ]


def places(
    targets_NK: npt.NDArray[Any],
    groups: Sequence[str],
    shares: Sequence[float],
    order: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Return the number of each sample's part, int64 [N]; a group stays together.

    Samples without any label are dealt as a class of their own, so that each part has its share of these too.
    ``shares``: of each part, of the whole. ``order``: a pseudo-random number for each sample, the same in a group; it
    decides between equals, so that nothing depends on the order of rows.
    """
    names, first, index = np.unique(np.asarray(groups, dtype=object), return_index=True, return_inverse=True)
    kinds = np.column_stack([targets_NK > 0, ~(targets_NK > 0).any(axis=1)]).astype(np.int64)
    counts_GK = np.zeros((len(names), kinds.shape[1]), np.int64)
    np.add.at(counts_GK, index, kinds)
    sizes = np.bincount(index, minlength=len(names))
    queue = np.lexsort((order[first], -sizes))  # large groups are placed while there is room
    return _deal(counts_GK, sizes, queue, np.array(shares, np.float64))[index]


def _deal(
    counts_GK: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    queue: npt.NDArray[np.intp],
    share: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Return the number of each group's split. ``share``: the splits' parts of the whole."""
    wanted = share * sizes.sum()  # samples that each split still asks for
    wanted_of = share[:, None] * counts_GK.sum(axis=0)  # and of each label
    place = np.full(len(sizes), -1, np.int64)
    left = counts_GK.sum(axis=0)

    def put(group: int, split: int) -> None:
        place[group] = split
        wanted[place[group]] -= sizes[group]
        wanted_of[place[group]] -= counts_GK[group]
        np.subtract(left, counts_GK[group], out=left)

    while left.any():
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())  # the rarest of those left
        for group in queue[(place[queue] < 0) & (counts_GK[queue, label] > 0)].tolist():
            most = wanted_of[:, label].max() - 1e-9
            put(group, int(np.where(wanted_of[:, label] >= most, wanted, -np.inf).argmax()))
    return place
