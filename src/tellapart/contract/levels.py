"""Names of classes that have levels, such as ``animal/dog``: what the levels are, and what each class is at them.

numpy only. Knows nothing of where the names come from.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_LEVELS = 32


@dataclass(frozen=True, eq=False)
class Level:
    """One level above the classes. ``names``: what is told apart there; ``of``: int64 [K], the name of each class.

    A class that has fewer levels is there by its whole name.
    """

    names: tuple[str, ...]
    of: npt.NDArray[np.int64]


def parts(name: str, mark: str) -> tuple[str, ...]:
    """Return a class's name taken apart at ``mark``, without outer white space and empty parts."""
    return tuple(part for piece in name.split(mark) if (part := piece.strip()))


def joined(name: str, mark: str) -> str:
    """Return a class's name as it is written: its parts joined by ``mark`` and nothing else."""
    return mark.join(parts(name, mark))


def above(classes: Sequence[str], mark: str) -> tuple[Level, ...]:
    """Return the levels above the classes, the topmost first; () where names have no ``mark``, or it is empty.

    Of names with at most D parts there are D - 1: on level i a class is called by its first i parts.
    """
    return _above(tuple(classes), mark) if mark else ()


@functools.lru_cache(maxsize=8)
def _above(classes: tuple[str, ...], mark: str) -> tuple[Level, ...]:
    split = [parts(name, mark) or (name,) for name in classes]
    deepest = min(MOST_LEVELS, max(map(len, split), default=1))
    found = []
    for level in range(1, deepest):
        names = [mark.join(one[:level]) for one in split]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        found.append(Level(tuple(places), np.array([places[name] for name in names], np.int64)))
    return tuple(found)


def logits(scaled_BK: npt.NDArray[np.float64], level: Level) -> npt.NDArray[np.float64]:
    """Return logits of a level's names, float64 [B, L], for those of the classes [B, K].

    Their softmax is the sum of the classes' probabilities: they are the logarithms of the sums of exponentials.
    """
    order = np.argsort(level.of, kind="stable")
    starts = np.searchsorted(level.of[order], np.arange(len(level.names)))
    values = scaled_BK[:, order]
    highest = np.maximum.reduceat(values, starts, axis=1)
    highest = np.where(np.isneginf(highest), 0.0, highest)
    with np.errstate(invalid="ignore", divide="ignore"):  # infinity less infinity
        sums = np.add.reduceat(np.exp(values - highest[:, level.of[order]]), starts, axis=1)
        result: npt.NDArray[np.float64] = highest + np.log(sums)
    return result
