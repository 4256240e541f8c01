"""What is rounded to half precision where a file is asked for in fp16: the weights of products, and not all of those.

Rounding a bias or a norm to fp16 moves all values of a channel together, where the rounding of many weights averages
out. For the same reason weights stay float32 where they are few: of convolutions with groups, and of the smallest
other products, together a hundredth of all. (One such layer of EfficientNet-Lite0, with 5,760 of 3.4 million weights,
made half of the difference that was left.) Knows no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 65504.0
KEPT = 0.01  # of all weights: those of the smallest products


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
    """Return weights as fp16; those beyond its range become its largest value."""
    halves: npt.NDArray[np.float16] = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
    return halves
