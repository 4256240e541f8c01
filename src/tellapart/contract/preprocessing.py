"""The preprocessing contract as data: how an image's pixels become a network's input.

Version 2 places the centre crop as torchvision and timm do; artifacts without a version were made by version 1 and stay
with it.

Applied by `tellapart.preprocess`, and by the graph of every export. Standard library only; knows nothing of
how it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tellapart.contract import sides, strict
from tellapart.contract.architecture import MOST_CHANNELS, MOST_SIZE
from tellapart.contract.sides import Size
from tellapart.errors import SpecError

# How much larger than the resized image a reduced JPEG must be at least. libjpeg's reduction differs from full
# decoding by 2.3 levels on average (root mean square 4.2) at 1, 1.4 (2.7) at 1.5 and 1.1 (2.1) at 2.
REDUCED_MARGIN = 1.5
MOST_EDGE = 65_535
VERSION = 2
Depth = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Preprocessing:
    """The contract's data. ``mean``, ``std`` are for values of 0..1; ``fill`` (0..255) is letterbox's border.

    size: of both sides, or height and width.

    resize: ``squash`` scales to ``size``; ``crop`` scales the image to the smallest that covers ``edges`` and keeps the
    centre; ``letterbox`` scales it to the largest that fits (each side at least 2 pixels), centred on ``fill``. With a
    square, it is the short side that becomes the edge, and the long one that becomes the size.

    decode: ``full`` decodes every image at its own size; ``scaled`` decodes a JPEG of which the whole is used at
    the smallest of 1/8, 1/4, 1/2 and 1 at which every side that `resize` scales down is still REDUCED_MARGIN
    times as long as after it.

    range: of images of more than 8 bits, the numbers that become black and white; None: the file's whole range.

    depth: of pixels, from decoding to normalisation: ``uint8`` are whole levels of 0..255, ``float32`` the same levels
    without rounding, so that images of more than 8 bits keep their precision.

    version: 1 cut the centre at floor((scaled - size) / 2) of an edge of round(size / crop_fraction); 2 at
    round((scaled - size) / 2), halves to even, of floor(size / crop_fraction).

    Raises SpecError for an impossible value.
    """

    size: Size
    channels: int
    resize: Literal["squash", "crop", "letterbox"]
    interpolation: Literal["bilinear", "bicubic"]
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: int = 128
    decode: Literal["full", "scaled"] = "full"
    range: tuple[float, float] | None = None
    version: int = VERSION
    depth: Depth = "uint8"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sides.normal(self.size))
        for name, valid in _VALID.items():
            if getattr(self, name) not in valid:
                raise SpecError(f"{name} is {getattr(self, name)!r}; valid are {', '.join(map(str, valid))}")
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise SpecError(f"channels is {self.channels!r}; it must be from 1 to {MOST_CHANNELS}")
        shortest, longest = min(self.sides), max(self.sides)
        if (
            not 1 <= shortest <= longest <= MOST_SIZE
            or not 0 < self.crop_fraction <= 1
            or not 0 <= self.fill <= 255
        ):
            raise SpecError(
                f"size must be at least 1 and at most {MOST_SIZE}, crop_fraction in (0, 1] and fill in 0..255"
            )
        if longest > MOST_EDGE * self.crop_fraction:
            raise SpecError(f"crop_fraction is {self.crop_fraction:g}: too small for a size of {self.size}")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise SpecError(f"mean and std need {self.channels} values each, and std must be above 0")
        if not (max(map(abs, self.mean)) <= 1e6 and min(self.std) >= 1e-6 and max(self.std) <= 1e6):
            raise SpecError(
                "mean must be from -1e6 to 1e6 and std from 1e-6 to 1e6: they are for values of 0..1"
            )
        if self.range is not None and not (
            len(self.range) == 2 and all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]
        ):
            raise SpecError(f"range is {self.range!r}; it must be two numbers, the lower first, or null")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the input."""
        return sides.sides(self.size)

    @property
    def edges(self) -> tuple[int, int]:
        """The height and width that an image covers where ``crop`` has scaled it."""
        height, width = (self._edge(side / self.crop_fraction) for side in self.sides)
        return height, width

    def _edge(self, exact: float) -> int:
        return round(exact) if self.version == 1 else math.floor(exact + 1e-6)

    def start(self, scaled: Any, side: int) -> Any:
        """Return where ``crop`` cuts ``side`` out of a scaled side: how many pixels come before. Also for symbols."""
        rest = scaled - side
        return rest // 2 if self.version == 1 else (rest + rest // 2 % 2) // 2

    def suffices(self, height: int, width: int) -> bool:
        """Return whether a reduced JPEG of this size is large enough for the resize policy."""
        part = self.crop_fraction if self.resize == "crop" else 1.0
        enough = [
            have >= REDUCED_MARGIN * side / part
            for have, side in zip((height, width), self.sides, strict=True)
        ]
        return any(enough) if self.resize == "letterbox" else all(enough)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; ``depth`` where it is not the one that there always was."""
        values = {
            **asdict(self),
            "size": sides.plain(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.depth == "uint8":
            del values["depth"]
        return {**values, "range": None if self.range is None else list(self.range)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return the contract that `to_dict` wrote.

        An older one without ``decode`` means ``full``, one without ``version`` the first.
        """
        return cls(**{"version": 1, **strict.fields(cls, values, "preprocessing")})


_VALID: dict[str, tuple[Any, ...]] = {
    "resize": ("squash", "crop", "letterbox"),
    "interpolation": ("bilinear", "bicubic"),
    "decode": ("full", "scaled"),
    "version": (1, 2),
    "depth": ("uint8", "float32"),
}
