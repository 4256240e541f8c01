"""What the cells of `defaults.py` say: intervals, verdicts, and how many epochs a side has time for. Pure functions."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NORMAL = 1.96  # of a two-sided interval of 95 %
SOONER = 3.0  # what "equal" must be to count as better
Points = Sequence[tuple[float, float]]  # seconds, accuracy


@dataclass(frozen=True)
class Cell:
    """One run. limit: the seconds that it was given; right: of each test image in order "1" or "0"."""

    set: str
    side: str
    seed: int
    limit: float
    seconds: float
    accuracy: float
    right: str
    points: tuple[tuple[float, float], ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cell:
        return cls(**{**values, "points": tuple((s, a) for s, a in values["points"])})


def seconds(text: str) -> float:
    """Return the seconds of 90s, 10m, 1h or 90; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is no time such as 90s, 10m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def time_text(limit: float) -> str:
    """Return seconds as an option's value: whole minutes as 10m, others as 90s."""
    return f"{limit / 60:g}m" if limit % 60 == 0 else f"{limit:g}s"


def fitting_epochs(limit: float, setup: float, once: float, epoch: float, most: int) -> int:
    """Return how many epochs fit: at least one, at most ``most``. once: what is trained before the first of them."""
    return max(1, min(most, math.floor((limit - setup - once) / epoch) if epoch > 0 else most))


def difference(ours: Sequence[Cell], theirs: Sequence[Cell]) -> tuple[float, float]:
    """Return how much more accurate ``ours`` is, and half of the interval of 95 %.

    Two sources of chance: which images are in the test split (both sides saw the same, so they are compared image by
    image), and the seeds of each side.
    """
    gap = _rights(ours) - _rights(theirs)
    return float(gap.mean()), _half(gap, ours, theirs)


def accuracy(cells: Sequence[Cell]) -> tuple[float, float]:
    """Return the mean accuracy over seeds, and half of its interval of 95 %."""
    rights = _rights(cells)
    return float(rights.mean()), _half(rights, cells)


def _rights(cells: Sequence[Cell]) -> npt.NDArray[np.float64]:
    return np.mean([[float(mark) for mark in cell.right] for cell in cells], axis=0)


def _half(values: npt.NDArray[np.float64], *sides: Sequence[Cell]) -> float:
    variance = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    for cells in sides:
        if len(cells) > 1:
            variance += statistics.variance(cell.accuracy for cell in cells) / len(cells)
    return NORMAL * math.sqrt(variance)


def curve(cells: Iterable[Cell]) -> list[tuple[float, float]]:
    """Return the mean seconds and accuracy of runs with each limit: what one command gives in how much time."""
    found: dict[float, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.limit, []).append(cell)
    return sorted((_mean(c.seconds for c in g), _mean(c.accuracy for c in g)) for g in found.values())


def within(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """Return the mean course of runs over seeds, point by point, and their end."""
    courses = [[*cell.points, (cell.seconds, cell.accuracy)] for cell in cells]
    length = min(map(len, courses))
    courses = [[*course[: length - 1], course[-1]] for course in courses]
    return [(_mean(s for s, _ in p), _mean(a for _, a in p)) for p in zip(*courses, strict=True)]


def time_to(points: Points, target: float) -> float | None:
    """Return the seconds at which a course is first as accurate as ``target``, None if it never is."""
    return next((s for s, a in sorted(points) if a >= target - 1e-9), None)


@dataclass(frozen=True)
class Compared:
    """Ours against one side on one set. ratio: their seconds over ours to their accuracy; None: not reached."""

    set: str
    side: str
    accuracy: float
    half: float
    seconds: float
    ahead: float
    ahead_half: float
    ours_to_it: float | None
    ratio: float | None
    verdict: str
    holds: bool


def compared(ours: Sequence[Cell], theirs: Sequence[Cell]) -> Compared:
    """Compare the runs of both with the same limit; ``ours`` may hold runs with shorter ones too."""
    limit = theirs[0].limit
    own = [cell for cell in ours if cell.limit == limit]
    ahead, half = difference(own, theirs)
    mean, own_half = accuracy(theirs)
    took = _mean(cell.seconds for cell in theirs)
    reached = time_to(curve(ours), mean)
    ratio = None if reached is None else took / reached
    sooner = took / _mean(cell.seconds for cell in own) if ratio is None else ratio
    words, holds = verdict(ahead, half, sooner)
    names = theirs[0].set, theirs[0].side
    return Compared(*names, mean, own_half, took, ahead, half, reached, ratio, words, holds)


def verdict(ahead: float, half: float, sooner: float) -> tuple[str, bool]:
    """Return in words which side is better, and whether that is: more accurate, or equal and three times sooner."""
    if ahead - half > 0:
        return "more accurate", True
    if ahead + half < 0:
        return "worse", False
    return f"equal within the interval and {sooner:.1f}× sooner", sooner >= SOONER


def median_ratio(rows: Sequence[Compared]) -> float | None:
    """Return the median of the ratios over sets; what was never reached counts as 0. None without rows."""
    return statistics.median(row.ratio or 0.0 for row in rows) if rows else None


def better(rows: Sequence[Compared], variants: Sequence[str]) -> list[Compared]:
    """Return the rows with only the most accurate one of ``variants`` on each set."""
    best: dict[str, Compared] = {}
    for row in rows:
        if row.side in variants and (row.set not in best or row.accuracy > best[row.set].accuracy):
            best[row.set] = row
    return [row for row in rows if row.side not in variants or best[row.set] is row]


def punctual(limit: float, took: float, part: float = 0.05) -> str:
    """Return whether a run ended in its time: within 5 %, or earlier, or late."""
    gap, margin = took - limit, part * limit + 1e-9
    return "late" if gap > margin else "in time" if gap >= -margin else "earlier"


def falls(shorter: Sequence[Cell], longer: Sequence[Cell]) -> bool:
    """Return whether more time gave a lower accuracy by more than chance."""
    gap, half = difference(longer, shorter)
    return gap + half < 0


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
