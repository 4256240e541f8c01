"""Tests of two accuracies on the same images, by the number of images that only one of the two gets right.

Knows only numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tellapart.evaluation.metrics import wilson_interval


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test; null hypothesis: both runs err equally often."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the second accuracy minus the first, on the same images.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17 (1998), method 10.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    low1, high1 = wilson_interval(first, n)
    low2, high2 = wilson_interval(second, n)
    share1, share2 = first / n, second / n
    scale = first * (n - first) * second * (n - second)
    cross = both * neither - only_first * only_second
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)  # the paper's continuity correction
    phi = corrected / math.sqrt(scale) if scale else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = share2 - share1
    down, up = reach(share2 - low2, high1 - share1), reach(high2 - share2, share1 - low1)
    return (max(-1.0, difference - down), min(1.0, difference + up))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted
