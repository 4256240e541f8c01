"""Images unlike the rest by simple features: charts, placeholders, blank pictures. No model is asked.

Works on the table of `measure`; reads no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.health.measure import FEATURES, Table
from tellapart.data.health.result import Suspect, image_at
from tellapart.data.samples import Samples

SUSPECT_SCORE = 4.0
MAX_SUSPECTS = 24


def robust_scores(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return how many robust deviations each value [N, F] lies from its column's median.

    The deviation is 1.4826 times the median absolute deviation, or, where that is 0, 1.2533 times the mean
    one (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993); a constant column scores 0.
    """
    away = values.astype(np.float64) - np.median(values, axis=0)
    scale = 1.4826 * np.median(np.abs(away), axis=0)
    scale = np.where(scale > 1e-9, scale, 1.2533 * np.abs(away).mean(axis=0))
    return np.where(scale > 1e-9, away / np.maximum(scale, 1e-9), 0.0)


def find_suspects(samples: Samples, table: Table, rows: npt.NDArray[np.int64]) -> tuple[Suspect, ...]:
    """Return the images whose simple features lie furthest from the rest, at most MAX_SUSPECTS."""
    if len(rows) < 20:  # too few to say what is usual
        return ()
    scores = robust_scores(table["features"])
    excess = np.clip(np.abs(scores) * [weight for weight, _, _ in FEATURES.values()] - 1.5, 0, 6)
    rare = np.zeros((len(rows), 2))
    for column, name in enumerate(("format", "mode")):
        _, inverse, counts = np.unique(table[name], return_inverse=True, return_counts=True)
        rare[:, column] = np.where(counts[inverse] < 0.01 * len(rows), 1.5, 0)
    total = np.sqrt((excess**2).sum(axis=1) + (rare**2).sum(axis=1))
    suspects = []
    for index in np.argsort(-total, kind="stable")[:MAX_SUSPECTS]:
        if total[index] < SUSPECT_SCORE:
            break
        words = [
            (excess[index, column], low if scores[index, column] < 0 else high)
            for column, (_, low, high) in enumerate(FEATURES.values())
            if excess[index, column] > 0.5
        ]
        words += [
            (1.5, f"rare {n} {table[n][index].decode()}")
            for c, n in enumerate(("format", "mode"))
            if rare[index, c]
        ]
        reasons = tuple(word for _, word in sorted(words, key=lambda pair: -pair[0])[:4])
        suspects.append(Suspect(image_at(samples, rows[index]), float(total[index]), reasons))
    return tuple(suspects)
