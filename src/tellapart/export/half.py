"""What is rounded to half precision in an fp16 file: the weights of products, and not all of those.

Rounding a bias or a norm to fp16 shifts all values of a channel together, whereas the rounding of many weights averages
out. For the same reason weights stay float32 where they are few: in grouped convolutions, and in the smallest other
products, together a hundredth of all. (One such layer of EfficientNet-Lite0, with 5,760 of 3.4 million weights, made
half of the remaining difference.) A product also stays float32 if its weights, inputs or outputs exceed fp16's range:
they would become infinite. Knows no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 65504.0
ROOM = 4.0  # how many times larger than any value seen another image's may be
KEPT = 0.01  # of all weights: those of the smallest products


def fits(values: npt.NDArray[Any], room: float = 1.0) -> bool:
    """Return whether finite values, even ``room`` times larger, are within fp16's range."""
    return bool(np.abs(values).max(initial=0.0) * room <= LARGEST)  # not where a value is not a number


def smallest(sizes: Mapping[str, int], total: int) -> set[str]:
    """Return the names of the products with the fewest weights, together ``KEPT`` of ``total`` at most."""
    left, names = KEPT * total, set()
    for size, name in sorted((size, name) for name, size in sizes.items()):
        left -= size
        if left < 0:
            break
        names.add(name)
    return names


def rounded(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Return weights, which `fits` has passed, as fp16."""
    halves: npt.NDArray[np.float16] = values.astype(np.float16)
    return halves
