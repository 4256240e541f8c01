"""Splits: which samples are train, val and test. Stratified, seeded, and never dividing a group.

A split depends on the samples' paths, labels and groups and on the seed, not on the order in which the
samples are listed nor on where the data is. Knows nothing of files or formats.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.sources import iterative
from tellapart.errors import DataError

Labels = npt.NDArray[np.int64]


def quotas(count: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return how many of a class's ``count`` samples go to val and to test.

    Each is the nearest whole number to its fraction, but at least 1 if the fraction is not 0; train keeps at least one
    sample, taken from test first, then from val. So a class needs 2 samples for one in val and 3 for one in test too
    (more if val takes over two thirds), and every count (train's apart) is less than one away from its target.
    """
    targets = (count * val_fraction, count * test_fraction)
    val, test = (max(1, int(target + 0.5)) if target > 0 else 0 for target in targets)
    floors = (int(targets[0]), int(targets[1]))
    while val + test > max(count - 1, 0):
        if test > floors[1]:
            test -= 1
        elif val > 0:
            val -= 1
        else:
            test -= 1
    return val, test


def assign(
    labels: npt.NDArray[Any],
    paths: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> npt.NDArray[Any]:
    """Return the split of each sample, an object array [N] of "train", "val" or "test".

    Without groups, each class is ordered by a hash of seed and path, and gives its `quotas`. With groups,
    whole groups are dealt out, see `_deal_groups`. Where ``labels`` are targets [N, K], images of several labels are
    dealt by `iterative.deal`. Rows with the same path always stay together. Raises
    DataError if the two fractions leave nothing for train.
    """
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction ({val_fraction:g}) and data.test_fraction ({test_fraction:g}) together leave "
            "nothing to train on; their sum must be below 1."
        )
    if labels.ndim == 2:
        names = list(paths) if groups is None else merge(paths, groups)
        return iterative.deal(labels, names, val_fraction, test_fraction, seeded(seed, names))
    if groups is None and len(set(paths)) == len(paths):
        return _deal_samples(labels, paths, val_fraction, test_fraction, seed)
    merged = list(paths) if groups is None else merge(paths, groups)
    return _deal_groups(labels, merged, val_fraction, test_fraction, seed)


def seeded(seed: int, names: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return a pseudo-random number for each name, the same for the same seed and name."""
    start = hashlib.blake2b(f"{seed}\0".encode(), digest_size=8)
    drawn = np.empty(len(names), np.uint64)
    for row, name in enumerate(names):
        digest = start.copy()
        digest.update(name.encode("utf-8", "surrogatepass"))
        drawn[row] = int.from_bytes(digest.digest(), "little")
    return drawn


def _deal_samples(
    labels: Labels, paths: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> npt.NDArray[Any]:
    splits = np.full(len(labels), "train", dtype=object)
    order = np.lexsort((seeded(seed, paths), labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        val, test = quotas(len(rows), val_fraction, test_fraction)
        splits[rows[:val]] = "val"
        splits[rows[val : val + test]] = "test"
    return splits


def merge(paths: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return groups in which all rows of one path are together: groups that share a path become one."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for path, group in zip(paths, groups, strict=True):
        one, other = top(first.setdefault(path, group)), top(group)
        if one != other:
            parent[max(one, other)] = min(one, other)
    return [top(group) for group in groups]


class Dealer:
    """Assigns groups to splits so that the class counts of each split stay near their targets.

    The measure is the chi-square distance, the sum over splits s and classes k of (have - target)² / target.
    For groups of one image that is Sainte-Laguë's method of apportionment.
    """

    def __init__(self, totals: Sequence[int], fractions: dict[str, float]) -> None:
        self.target = {s: [total * f for total in totals] for s, f in fractions.items() if f > 0}
        self.have = {s: [0] * len(totals) for s in self.target}

    def cost(self, split: str, counts: Sequence[tuple[int, int]], sign: int = 1) -> float:
        """Return how the distance changes when ``counts`` (class, number) join (or, -1, leave) ``split``."""
        target, have = self.target[split], self.have[split]
        return sum(c * (c + sign * 2 * (have[k] - target[k])) / target[k] for k, c in counts)

    def move(self, split: str, counts: Sequence[tuple[int, int]], sign: int = 1) -> None:
        """Count ``counts`` as belonging to ``split`` (or, -1, as not any more)."""
        for k, c in counts:
            self.have[split][k] += sign * c


def _deal_groups(
    labels: Labels, groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> npt.NDArray[Any]:
    """Assign whole groups, the largest first (equal ones in seeded order), each to the split where it fits best.

    Greedy, as scikit-learn's StratifiedGroupKFold is; that one deals k equal folds and so cannot make
    70/10/20, needs scikit-learn (2 s to import), and depends on the order of rows. Afterwards a class without
    a train sample gets its smallest group back, and an empty val or test gets the group whose move costs
    least, if one can be spared. Counts are as near to their targets as the sizes of the groups let them be.
    """
    names, index = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    width = int(labels.max(initial=0)) + 1
    cells, found = np.unique(index.astype(np.int64) * width + labels, return_counts=True)
    counts: list[list[tuple[int, int]]] = [[] for _ in names]
    for cell, number in zip(cells.tolist(), found.tolist(), strict=True):
        counts[cell // width].append((cell % width, number))
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    dealer = Dealer(np.bincount(labels, minlength=width).tolist(), fractions)
    sizes = np.bincount(index, minlength=len(names))
    order = np.lexsort((seeded(seed, [str(name) for name in names]), -sizes)).tolist()
    place = ["train"] * len(names)
    for group in order:
        place[group] = min(dealer.target, key=lambda split: dealer.cost(split, counts[group]))
        dealer.move(place[group], counts[group])
    _return_to_train(place, counts, dealer, order)
    _fill_empty(place, counts, dealer, order)
    return np.asarray(place, dtype=object)[index]


def _return_to_train(
    place: list[str], counts: Sequence[Sequence[tuple[int, int]]], dealer: Dealer, order: Sequence[int]
) -> None:
    for group in reversed(order):  # the smallest first
        if place[group] != "train" and any(dealer.have["train"][k] == 0 for k, _ in counts[group]):
            dealer.move(place[group], counts[group], -1)
            dealer.move("train", counts[group])
            place[group] = "train"


def _fill_empty(
    place: list[str], counts: Sequence[Sequence[tuple[int, int]]], dealer: Dealer, order: Sequence[int]
) -> None:
    for split in dealer.target:
        if split in place:
            continue
        spare = [
            g for g in order if place[g] == "train" and all(dealer.have["train"][k] > c for k, c in counts[g])
        ]
        if spare:
            group = min(
                spare, key=lambda g: dealer.cost("train", counts[g], -1) + dealer.cost(split, counts[g])
            )
            dealer.move("train", counts[group], -1)
            dealer.move(split, counts[group])
            place[group] = split


def crossing(groups: Sequence[str], splits: Sequence[str]) -> int:
    """Return how many groups have samples in more than one split."""
    pairs = set(zip(groups, splits, strict=True))
    return sum(number > 1 for number in Counter(group for group, _ in pairs).values())
