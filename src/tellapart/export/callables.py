"""Whether two callables give the same answers: any two, such as a network and what a converter made of it.

`tellapart.export.parity` compares an exported file with its artifact, from the bytes of images on; this module only
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import answers
from tellapart.errors import DataError, ExportError


@dataclass(frozen=True)
class Agreement:
    """How far two callables are apart, over all inputs.

    ``max_difference``, ``mean_difference``: of single outputs; infinite where only one of the two is a number.
    ``worst``: index of the input with the largest difference. ``agreement``: share of inputs with the same largest
    output of a row [K] (None: outputs are no rows). ``ties``: inputs that differ in that, whose two classes lie within
    the tolerance of each other in the first; they do not count against it.
    """

    n: int
    max_difference: float
    mean_difference: float
    worst: int
    agreement: float | None
    ties: int
    tolerance: float
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the second may stand for the first."""
        return not self.reasons


def parity(
    first: Callable[[Any], Any], second: Callable[[Any], Any], batches: Iterable[Any], tolerance: float = 1e-4
) -> Agreement:
    """Run both over the same batches and compare what they return.

    Args:
        first: what counts as right: takes a batch, returns outputs [B, …], an array or a tensor.
        second: what is compared with it.
        batches: inputs of both, each as it is passed to them.
        tolerance: the largest difference of any output that is allowed.

    Raises ExportError if the outputs differ in shape, DataError if there is no input.
    """
    ours, theirs = [], []
    for number, batch in enumerate(batches):
        one, other = _floats(first(batch)), _floats(second(batch))
        if one.shape != other.shape or one.ndim < 1:
            raise ExportError(
                f"Outputs of batch {number} are {list(one.shape)} of the first and {list(other.shape)} of the second; "
                "they must be [B, …] and alike."
            )
        ours.append(one)
        theirs.append(other)
    if not sum(map(len, ours)):
        raise DataError("There are no inputs to compare on.")
    return _judge(np.concatenate(ours), np.concatenate(theirs), tolerance)


def _judge(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], tolerance: float) -> Agreement:
    with np.errstate(invalid="ignore"):
        distance = np.where(
            (ours == theirs) | (np.isnan(ours) & np.isnan(theirs)), 0.0, np.abs(ours - theirs)
        )
    distance = np.nan_to_num(distance, nan=np.inf, posinf=np.inf).reshape(len(ours), -1)
    furthest = distance.max(axis=1, initial=0.0)
    reasons = []
    if not furthest.max() <= tolerance:
        reasons.append(f"an output differs by {furthest.max():.2g}; at most {tolerance:g} is allowed")
    agreement, ties = None, 0
    if ours.ndim == 2 and ours.shape[1] > 1:
        best, other, rows = answers.best(ours), answers.best(theirs), np.arange(len(ours))
        tied = (best != other) & (ours[rows, best] - ours[rows, other] <= tolerance)
        agreement, ties = float((best == other).mean()), int(tied.sum())
        wrong = int(((best != other) & ~tied).sum())
        if wrong:
            reasons.append(f"{wrong} of {len(ours)} inputs get a different class")
    return Agreement(
        len(ours), float(furthest.max()), float(distance.mean()) if distance.size else 0.0, int(furthest.argmax()),
        agreement, ties, tolerance, tuple(reasons),
    )  # fmt: skip


def _floats(outputs: Any) -> npt.NDArray[np.float64]:
    """Return an array's or a tensor's values."""
    if hasattr(outputs, "detach"):
        outputs = outputs.detach().cpu().double()
    return np.asarray(outputs, np.float64)
