"""What a comparison of an exported file with its artifact takes and gives, as plain values.

Loads no torch. Knows nothing of how the two are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tellapart.contract import Pixels
from tellapart.export.base import Tolerance


@dataclass(frozen=True)
class Case:
    """One image: its name, a function that returns its bytes or pixels, and its class if it is known."""

    name: str
    read: Callable[[], bytes | Pixels]
    label: int | None = None


@dataclass(frozen=True)
class Cases:
    """Images to compare on. ``origin`` says in words where they are from; ``real``: whether they are real images."""

    images: Sequence[Case]
    origin: str
    real: bool = True


@dataclass(frozen=True)
class Side:
    """The measurements of one of the two. Latencies in milliseconds by batch size: p50 and p95 of one call."""

    accuracy: float | None
    interval: tuple[float, float] | None
    bytes: int
    latency_ms: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Difference:
    """One image on which both differ: name, both answers' classes and probabilities, largest difference."""

    name: str
    artifact: str
    export: str
    difference: float


@dataclass(frozen=True)
class Parity:
    """The comparison of one exported file with its artifact.

    Fractions in [0, 1]. ``agreement``: images with the same most probable class, of all. ``ties``: those that differ
    but whose two classes are within the tolerance of each other in the artifact; they do not count against it.
    ``whole_difference``: the largest difference when the file ran as one graph on images decoded by plain Pillow (None:
    the file is not one graph). ``full_difference``: the same with JPEG files decoded at full size although the contract
    reduces them (None: it does not). ``pixels``: the share of values of the network's input that differ, and by how
    many levels at most. ``features_difference``: the largest norm of the difference of an image's features, relative to
    that of the artifact's (None: the file has none). ``where``: where a difference begins; only after a failed
    comparison. ``several``: images can have several labels; ``agreement`` is then the share of images with the same
    labels, and ties are at a threshold.
    """

    format: str
    precision: str
    file: str
    n: int
    origin: str
    real: bool
    unreadable: int
    agreement: float
    ties: int
    max_difference: float
    mean_difference: float
    whole_difference: float | None
    pixels: Mapping[str, float]
    tolerance: Tolerance
    reasons: tuple[str, ...]
    artifact: Side
    export: Side
    threads: int
    largest: tuple[Difference, ...]
    where: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    full_difference: float | None = None
    several: bool = False
    features_difference: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        for side in ("artifact", "export"):
            latencies = values[side]["latency_ms"].items()
            values[side]["latency_ms"] = {str(batch): times for batch, times in latencies}
        return {"passed": self.passed, **values}


@dataclass(frozen=True)
class Uncompared:
    """A file without a comparison, or a format without a file, and the reason.

    ``written``: whether there is a file.
    """

    format: str
    precision: str
    file: str
    reasons: tuple[str, ...]
    written: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    passed = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"passed": False, **dataclasses.asdict(self)}
