"""What an examination finds, as plain data: images, duplicates, suspects, findings. Judges nothing itself."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import Samples

Pixels = npt.NDArray[np.uint8]
Level = Literal["error", "warning", "info"]
Read = Callable[[int], "bytes | Pixels"]


@dataclass(frozen=True)
class Image:
    """One image; ``row`` is its (first) row in the samples, ``content`` the hash of its bytes."""

    row: int
    path: str
    label: str
    split: str
    content: str = ""


@dataclass(frozen=True)
class Bad:
    """An image that cannot be read, and why."""

    image: Image
    reason: str


@dataclass(frozen=True)
class Group:
    """Copies of one picture: the same bytes (``exact``), or nearly the same picture.

    changes: in words, what differs between near copies ("mirrored", "cropped"); empty for exact ones. likeness: how
    surely they are one picture, up to 1, of the two that are most alike; of exact copies 1.
    """

    images: tuple[Image, ...]
    exact: bool
    changes: tuple[str, ...] = ()
    likeness: float = 1.0

    def differing(self, field: str, same_bytes: bool) -> bool:
        """Whether copies (with ``same_bytes``: byte for byte) differ in ``field``, "split" or "label"."""
        values: dict[str, set[str]] = collections.defaultdict(set)
        for image in self.images:
            values[image.content if same_bytes else ""].add(getattr(image, field))
        return any(len(found) > 1 for found in values.values())


@dataclass(frozen=True)
class Suspect:
    """An image far from the rest; the score has no unit (4 and more is listed)."""

    image: Image
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know: what was found, and what to do about it."""

    level: Level
    code: str
    message: str
    advice: str = ""
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Health:
    """What `examine` found.

    counts: readable samples of each class in each split that has any. rows: int64 [M], rows of the readable
    images; widths, heights: int32 [M] in pixels, upright; sizes: int64 [M] in bytes. formats, modes: how many
    images have each. deep: the images of more than 8 bits; largest: the largest number in them. grey: the greyscale
    images of a colour set. groups: duplicates, those across splits first; ``complete`` is False where the search for
    near duplicates had to stop. findings: gravest first. images: where an image can have several labels, the readable
    ones of each split (``counts`` are of labels then), else None; unlabelled: those of all splits without any.
    """

    name: str
    root: str
    classes: tuple[str, ...]
    counts: dict[str, list[int]]
    rows: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    formats: dict[str, int]
    modes: dict[str, int]
    is_colour: bool
    rotated: tuple[Image, ...]
    grey: tuple[Image, ...]
    wrong_extension: tuple[Image, ...]
    bad: tuple[Bad, ...]
    groups: tuple[Group, ...]
    complete: bool
    suspects: tuple[Suspect, ...]
    deep: tuple[Image, ...] = ()
    largest: float = 0.0
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    images: dict[str, int] | None = None
    unlabelled: int = 0

    @property
    def exit_code(self) -> int:
        """1 where there is an error among the findings, else 0."""
        return int(any(finding.level == "error" for finding in self.findings))

    def in_splits(self) -> dict[str, int]:
        """Return the readable samples of each split."""
        return (
            {split: sum(counts) for split, counts in self.counts.items()}
            if self.images is None
            else self.images
        )

    def total(self) -> npt.NDArray[np.int64]:
        """Return the readable samples of each class over all splits, int64 [K]."""
        counts = [np.array(column, dtype=np.int64) for column in self.counts.values()]
        return sum(counts, start=np.zeros(len(self.classes), dtype=np.int64))

    def quantiles(self) -> dict[str, list[float]]:
        """Return minimum, quartiles and maximum of width, height (pixels), aspect ratio and size (bytes)."""
        aspect = self.widths / np.maximum(self.heights, 1)
        columns: dict[str, npt.NDArray[Any]] = {
            "width": self.widths, "height": self.heights, "aspect": aspect, "bytes": self.sizes
        }  # fmt: skip
        at = (0, 0.25, 0.5, 0.75, 1)
        return {k: [round(float(q), 4) for q in np.quantile(v, at)] for k, v in columns.items() if len(v)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        fields = ("name", "root", "formats", "modes", "notes")
        return {
            **{name: getattr(self, name) for name in fields},
            "images": len(self.rows) + len(self.bad),
            "counts": {split: dict(zip(self.classes, n, strict=True)) for split, n in self.counts.items()},
            **(
                {}
                if self.images is None
                else {"images_of_splits": self.images, "unlabelled": self.unlabelled}
            ),
            "quantiles": self.quantiles(),
            "rotated": [image.path for image in self.rotated],
            "grey": [image.path for image in self.grey],
            "wrong_extension": [image.path for image in self.wrong_extension],
            "bad": [{**_public(item.image), "reason": item.reason} for item in self.bad],
            "groups": [
                {
                    "exact": g.exact,
                    "changes": list(g.changes),
                    "likeness": round(g.likeness, 3),
                    "images": [_public(i) for i in g.images],
                }
                for g in self.groups
            ],
            "suspects": [
                {**_public(s.image), "score": round(s.score, 2), "reasons": list(s.reasons)}
                for s in self.suspects
            ],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "exit_code": self.exit_code,
        }


def _public(image: Image) -> dict[str, str]:
    return {"path": image.path, "label": image.label, "split": image.split}


def image_at(samples: Samples, row: int, content: str = "") -> Image:
    """Return a row of the samples as an `Image`."""
    return Image(
        int(row), str(samples.paths[row]), samples.label_text(int(row)), str(samples.splits[row]), content
    )


def images_at(samples: Samples, rows: Iterable[Any]) -> tuple[Image, ...]:
    """Return rows of the samples as images."""
    return tuple(image_at(samples, row) for row in rows)
