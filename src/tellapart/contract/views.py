"""The versions of an image over which a classifier's answer is averaged, as data.

Computed by `tellapart.preprocess.averaged`. Standard library only; knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tellapart.contract import strict
from tellapart.errors import SpecError

COUNTS = {"one": 1, "mirror": 2, "mirror-shift": 6}


@dataclass(frozen=True)
class Views:
    """Which views the logits of an image are averaged over.

    ``mirror``: the image and its mirror image, half each. ``mirror-shift`` (arXiv:2404.00498, section 3.4): both
    also moved by a pixel up and left, and down and right, the border filled by reflection; the two that are not
    moved count a quarter each, the four others an eighth.

    With ``below`` under 1 the other views are computed only if the first view is in doubt: if the most probable class
    leads the next by less than ``below`` in probability. The answer to an image is then either its first view's logits
    or the average; it does not depend on the other images.
    """

    name: Literal["one", "mirror", "mirror-shift"] = "one"
    below: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in COUNTS:
            raise SpecError(f"views is {self.name!r}; valid are {', '.join(COUNTS)}")
        if not 0 <= self.below <= 1:
            raise SpecError(f"views' below is {self.below}; it must be from 0 to 1")

    @property
    def count(self) -> int:
        """The largest number of views of an image."""
        return COUNTS[self.name] if self.below > 0 else 1

    def describe(self) -> str:
        """Return a sentence on what is averaged; empty for one view."""
        if self.count == 1:
            return ""
        kinds = "mirrored" if self.name == "mirror" else "mirrored, and moved by a pixel two ways"
        text = f"The logits of {self.count} views of each image are averaged ({kinds})"
        if self.below < 1:
            text += f", if the first view's best class leads by less than {self.below:g} in probability"
        return text + "."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "below": self.below}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Views:
        """Return what `to_dict` wrote; no values mean one view."""
        return cls(**strict.fields(cls, values, "views"))
