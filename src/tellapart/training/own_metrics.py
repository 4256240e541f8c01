"""The user's own metrics: functions of (labels, predictions) that return a number, by name. Knows nothing of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import references
from tellapart.errors import SpecError

Metrics = Mapping[str, Callable[..., Any]]


def build(named: Sequence[str], taken: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the functions that a spec names, ``NAME=module:function``; ``taken``: names of tellapart's own metrics."""
    found = {}
    for one in named:
        name, _, where = one.partition("=")
        if name in taken:
            raise SpecError(
                f"training.metrics has {name!r}, which is a figure of tellapart's own; take another name."
            )
        found[name] = references.load(where, f"metrics.{name}", f"A run with the metric {name}")
        if not callable(found[name]):
            raise SpecError(
                f"The metric {name} is of type {type(found[name]).__name__}; it must be callable."
            )
    return found


def measure(
    metrics: Metrics, labels: npt.NDArray[np.int64], predictions: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Return each metric's value; NaN if it is not defined. Raises SpecError if one does not return a number."""
    values = {}
    for name, function in metrics.items():
        found = references.called(function, (), f"The metric {name}", labels, predictions)
        try:
            values[name] = float(found)
        except (TypeError, ValueError):
            raise SpecError(f"The metric {name} returns {found!r:.100}; it must be one number.") from None
    return values


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return values for JSON: None for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
