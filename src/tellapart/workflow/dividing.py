"""How effort best divides its work: the number of members, and the time for them and for their student.

Pure functions of numbers; knows nothing of runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tellapart.errors import SpecError
from tellapart.spec import Spec

MOST, LEAST = 5, 2
SHARE = 0.6  # of the time, for all members together; the student's steps ask each of them too
_FEW, _MANY = 5_000, 20_000  # training images
_EPOCHS = 4  # that each member should have; below that fewer members are better


@dataclass(frozen=True)
class Division:
    """How many members there are, and the seconds for each and for the student; 0: as long as they take."""

    members: int
    each: float = 0.0
    student: float = 0.0


def divide(images: int, limit: float = 0.0, pace: float = 0.0) -> Division:
    """Return the division of ``limit`` seconds (0: no limit), at a ``pace`` of images a second (0: not known).

    Without a limit the images decide: 5 members below 5,000 training images, where each error counts and a model is
    soon trained, 4 below 20,000, else 3. A limit leaves as many of these as can have four epochs each, at least 2.
    """
    count = MOST if images < _FEW else 4 if images < _MANY else 3
    if limit <= 0:
        return Division(count)
    while pace > 0 and count > LEAST and SHARE * limit / count * pace < _EPOCHS * images * (1 - 1 / count):
        count -= 1
    return Division(count, SHARE * limit / count, (1 - SHARE) * limit)


def members(spec: Spec, images: int) -> int:
    """Return how many members a spec's run on so many training images has. Raises SpecError."""
    count = spec.distill.members or divide(images, spec.time_limit).members
    if count < LEAST:
        raise SpecError(
            f"distill.members is {count}; effort best averages {LEAST} to {MOST} models, or 0: chosen."
        )
    return count


def of_member(spec: Spec, count: int) -> float:
    """Return the seconds of each of ``count`` members; 0: no limit."""
    return SHARE * spec.time_limit / count


def of_student(spec: Spec, spent: float) -> float:
    """Return the seconds of the student after the members have ``spent`` theirs; 0: no limit."""
    limit = spec.time_limit
    return max(limit - spent, (1 - SHARE) * limit / 2)
