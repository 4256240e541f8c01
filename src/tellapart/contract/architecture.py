"""What a network is, as data: enough to build it again anywhere.

Knows nothing of how networks are built or of their weights. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tellapart.errors import ModelError, did_you_mean

STEMS = ("standard", "small")


@dataclass(frozen=True)
class Architecture:
    """A network by name and the values that shape it; JSON-able, and saved with the weights.

    ``name`` is canonical (see :func:`tellapart.models.zoo.resolve`). Images have ``channels`` (at least 1)
    and are ``size`` pixels high and wide. Raises ModelError for an impossible value.
    """

    name: str
    num_classes: int
    channels: int = 3
    size: int = 32
    dropout: float = 0.0
    """Probability of every dropout that the network has; at least one before the head."""
    drop_path: float = 0.0
    """Stochastic depth: probability at the deepest block, from 0 at the first (where the network has it)."""
    batch_norm: bool = False
    """simple-cnn only: batch normalisation after each convolution."""
    stem: str = "standard"
    """``small`` keeps the resolution of images of up to 64 pixels; see :func:`zoo.choose_stem`."""

    def __post_init__(self) -> None:
        for field, low in (("num_classes", 1), ("channels", 1), ("size", 1)):
            if getattr(self, field) < low:
                raise ModelError(
                    f"{self.name}: {field} is {getattr(self, field)}; it must be at least {low}."
                )
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ModelError(f"{self.name}: {field} is {getattr(self, field)}; it must be in [0, 1).")
        if self.stem not in STEMS:
            raise ModelError(f"{self.name}: stem is {self.stem!r}. {did_you_mean(self.stem, STEMS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Return the architecture that :meth:`to_dict` described; raise ModelError for unknown keys."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ModelError(f"An architecture has no {key!r}. {did_you_mean(str(key), names)}")
        for key in ("name", "num_classes"):
            if key not in values:
                raise ModelError(f"An architecture needs {key!r}; there is only {sorted(values)}.")
        return cls(**values)
