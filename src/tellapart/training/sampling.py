"""Sampling: which training images an epoch shows, and in which order.

An order is a pure function of the labels, the mode, the seed and the epoch: every process computes the same
one and takes its share, and a resumed run finds its place by counting. Knows nothing of images, batches or
processes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tellapart.errors import SpecError, did_you_mean

Order = npt.NDArray[np.int64]


def epoch_order(labels: npt.NDArray[np.int64], mode: str, seed: int, epoch: int) -> Order:
    """Return the positions in ``labels`` (int64 [N]) of one epoch's images, in order, int64 [length].

    shuffle
        every image once.
    oversample
        as many of every class as the largest has: each image of a class of n appears floor(largest / n)
        times, and a random subset of them once more.
    undersample
        as many of every class as the smallest has, drawn without repetition, anew each epoch.
    weighted
        N draws with repetition, every class equally likely and every image of a class too.

    Classes without an image are ignored. Memory is O(N + length). The numbers come from numpy's Philox with
    the key (seed, epoch), so that no two pairs share a stream. ``seed`` counts modulo 2**64; ``epoch`` is at
    least 0. Raises SpecError for an unknown mode.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return _mode(mode)[0](_Classes(labels), rng)


def part_order(
    labels: npt.NDArray[np.int64], mode: str, seed: int, part: int, size: int, length: int | None = None
) -> Order:
    """Return the positions of the ``part``-th (from 0) ``size`` images of all passes one after the other, int64 [size].

    A pass has the first ``length`` images (None: all) of its `epoch_order`, so each image gets its turn.
    """
    length = epoch_length(labels, mode) if length is None else length
    first, last = part * size, (part + 1) * size
    passes = range(first // length, (last - 1) // length + 1)
    joined = np.concatenate([epoch_order(labels, mode, seed, number)[:length] for number in passes])
    start = first - passes[0] * length
    return joined[start : start + size]


def epoch_length(labels: npt.NDArray[np.int64], mode: str) -> int:
    """Return how many images an epoch of ``epoch_order`` shows, without computing the order."""
    return _mode(mode)[1](_Classes(labels))


class _Classes:
    """The images of each class that is not empty, as ranges of one array."""

    def __init__(self, labels: npt.NDArray[np.int64]) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.total = len(self.labels)

    def counts(self) -> Order:
        """Return the sizes of the classes that have images, by ascending label, int64 [k]."""
        return np.unique(self.labels, return_counts=True)[1].astype(np.int64)

    def members(self) -> tuple[Order, Order]:
        """Return the images sorted by class, and the sizes of the classes."""
        return np.argsort(self.labels, kind="stable").astype(np.int64), self.counts()


def _shuffle(classes: _Classes, rng: np.random.Generator) -> Order:
    return rng.permutation(classes.total).astype(np.int64, copy=False)


def _balance(classes: _Classes, rng: np.random.Generator, size: int) -> Order:
    """Return ``size`` images of every class, repeated as evenly as possible, shuffled."""
    members, counts = classes.members()
    parts = []
    for group in np.split(members, np.cumsum(counts)[:-1]):
        whole, extra = divmod(size, len(group))
        parts.append(np.tile(group, whole))
        if extra:
            parts.append(rng.permutation(group)[:extra])
    return rng.permutation(np.concatenate(parts))


def _oversample(classes: _Classes, rng: np.random.Generator) -> Order:
    return _balance(classes, rng, int(classes.counts().max())) if classes.total else _shuffle(classes, rng)


def _undersample(classes: _Classes, rng: np.random.Generator) -> Order:
    return _balance(classes, rng, int(classes.counts().min())) if classes.total else _shuffle(classes, rng)


def _weighted(classes: _Classes, rng: np.random.Generator) -> Order:
    if not classes.total:
        return _shuffle(classes, rng)
    members, counts = classes.members()
    drawn = rng.integers(len(counts), size=classes.total)
    within = rng.integers(counts[drawn])
    starts = np.cumsum(counts) - counts
    order: Order = members[starts[drawn] + within]
    return order


def _each(classes: _Classes) -> int:
    return classes.total


def _largest(classes: _Classes) -> int:
    counts = classes.counts()
    return len(counts) * int(counts.max(initial=0))


def _smallest(classes: _Classes) -> int:
    counts = classes.counts()
    return len(counts) * int(counts.min()) if len(counts) else 0


_MODES: dict[str, tuple[Callable[[_Classes, np.random.Generator], Order], Callable[[_Classes], int]]] = {
    "shuffle": (_shuffle, _each),
    "oversample": (_oversample, _largest),
    "undersample": (_undersample, _smallest),
    "weighted": (_weighted, _each),
}


def _mode(
    name: str,
) -> tuple[Callable[[_Classes, np.random.Generator], Order], Callable[[_Classes], int]]:
    if name not in _MODES:
        raise SpecError(f"training.sampling is {name!r}. {did_you_mean(name, _MODES)}")
    return _MODES[name]
