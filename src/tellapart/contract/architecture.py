"""What a network is, as data: enough to build it again anywhere.

Knows nothing of how networks are built or of their weights. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tellapart.contract import sides, strict
from tellapart.contract.sides import Size
from tellapart.errors import ModelError, did_you_mean

STEMS = ("standard", "small")
MOST_SIZE = 4096
MOST_CHANNELS = 256

Pruned = tuple[tuple[str, tuple[int, ...]], ...]
"""(path of a layer, its sizes), 0 where a size is the network's own. A convolution: outputs, inputs, groups; a
linear layer: outputs, inputs; a norm: channels."""


@dataclass(frozen=True)
class Architecture:
    """A network by name and the values that shape it; JSON-able, and saved with the weights.

    ``name`` is canonical (see :func:`tellapart.models.zoo.resolve`). Images have ``channels`` (at least 1)
    and are ``size`` pixels high and wide (one number, or height and width). Raises ModelError for an impossible value.
    """

    name: str
    num_classes: int
    channels: int = 3
    size: Size = 32
    dropout: float = 0.0
    """Probability of every dropout that the network has; at least one before the head."""
    drop_path: float = 0.0
    """Stochastic depth: probability at the deepest block, from 0 at the first (where the network has it)."""
    batch_norm: bool = False
    """simple-cnn only: batch normalisation after each convolution."""
    stem: str = "standard"
    """``small`` keeps the resolution of images of up to 64 pixels; see :func:`zoo.choose_stem`."""
    pruned: Pruned = ()
    """Layers that are narrower than in the network ``name``; see :mod:`tellapart.models.shrink`."""
    arguments: tuple[str, ...] = ()
    """For a network of the user's own: further arguments of its function, ``NAME=VALUE``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sides.normal(self.size))
        for field, most in (("num_classes", 100_000), ("channels", MOST_CHANNELS), ("size", MOST_SIZE)):
            value = getattr(self, field)
            if not 1 <= sides.shortest(value) <= sides.longest(value) <= most:
                raise ModelError(
                    f"{self.name}: {field} is {value}; it must be at least 1 and at most {most}."
                )
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ModelError(f"{self.name}: {field} is {getattr(self, field)}; it must be in [0, 1).")
        if self.stem not in STEMS:
            raise ModelError(f"{self.name}: stem is {self.stem!r}. {did_you_mean(self.stem, STEMS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name; ``pruned``, a mapping here, and ``arguments`` only where there are any."""
        values = {**dataclasses.asdict(self), "size": sides.plain(self.size)}
        pruned = values.pop("pruned")
        if arguments := values.pop("arguments"):
            values["arguments"] = list(arguments)
        return {**values, "pruned": {path: list(sizes) for path, sizes in pruned}} if pruned else values

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of an image."""
        return sides.sides(self.size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Return the architecture that :meth:`to_dict` described; raise ModelError for unknown keys."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ModelError(
                    f"An architecture has no {str(key)[:80]!r}. {did_you_mean(str(key)[:80], names)}"
                )
        for key in ("name", "num_classes"):
            if key not in values:
                raise ModelError(f"An architecture needs {key!r}; there is only {sorted(values)}.")
        pruned = pruned_from(values.get("pruned", {}))
        rest = {key: value for key, value in values.items() if key != "pruned"}
        try:
            return cls(**strict.fields(cls, rest, "architecture"), pruned=pruned)
        except strict.StrictError as error:
            raise ModelError(f"{error}.") from None


def pruned_from(values: Any) -> Pruned:
    """Return what `Architecture.to_dict` gave as ``pruned``, checked. Raises ModelError."""
    try:
        items = tuple((path, tuple(sizes)) for path, sizes in values.items())
    except (AttributeError, TypeError):
        items = (("", ()),)
    for path, sizes in items:
        whole = all(type(size) is int and 0 <= size < 2**31 for size in sizes)
        if not path or len(sizes) not in (1, 2, 3) or not whole:
            raise ModelError(f"An architecture's pruned layers are sizes by path, not {values!r:.200}.")
    return items
