"""Whether pictures have a left and a right: then a mirrored one says something else, or never occurs.

Measured on thumbnails: a linear classifier of the directions of edges (as in HOG, Dalal and Triggs 2005) learns from
some training images and answers for others, as they are and mirrored. If it is right far more often about the images as
they are, mirroring is no harmless change. Of an even number of images for which only one of the two answers is right,
about half should be right mirrored (McNemar 1947); the `Mirroring.score` counts standard errors from there.

Knows nothing of files, specs or augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tellapart import numerals

SIDE = 32  # pixels of a thumbnail
MOST = 400  # images that are looked at
LEAST = 60  # images; fewer show nothing
# Measured on 400 images of each set. Mirroring matters: digits 15.7, letters 7.4 and 12.4, words 14.8, arrows 16.0,
# Fashion-MNIST 9.6 (all its shoes point to the left), a woven textile 12.6. It does not: CIFAR-10 2.1, ants and bees
# -0.9, Fashion-MNIST without shoes -0.2.
CLEAR = 5.0
_CELLS, _BINS, _RIDGE, _PARTS = 4, 8, 0.3, 4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mirroring:
    """How many of ``images`` a simple classifier names rightly, as they are and mirrored; ``score``: see above.

    ``largest``: how many belong to the largest class, which is what a guess would reach.
    """

    images: int
    right: int
    mirrored: int
    score: float
    largest: int

    @property
    def matters(self) -> bool:
        """Whether mirrored images are clearly others."""
        return self.score >= CLEAR

    @property
    def harmless(self) -> bool:
        """Whether the classifier sees enough to tell, and mirroring changes nothing for it."""
        return self.right >= 1.5 * self.largest and self.score < CLEAR / 2

    def words(self) -> str:
        """Return the measurement in a line."""
        as_they_are, mirrored = (numerals.percent(n / self.images) for n in (self.right, self.mirrored))
        return f"mirrored ones differ: a simple test names {as_they_are} rightly, {mirrored} mirrored"


def measure(thumbs: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Mirroring | None:
    """Test thumbnails [N, SIDE, SIDE]; None where there are too few images or one class only."""
    names, labels = np.unique(labels, return_inverse=True)
    count = len(labels)
    if count < LEAST or len(names) < 2:
        return None
    pictures = thumbs.astype(np.float64) / 255
    own, other = edges(pictures), edges(pictures[:, :, ::-1])
    order = np.random.default_rng(0).permutation(count)
    right = mirrored = only_own = only_other = 0
    for part in range(_PARTS):
        held_out = order[part::_PARTS]
        weights, offset = _fitted(own, labels, np.setdiff1d(order, held_out), len(names))
        first, second = (
            (features[held_out] @ weights + offset).argmax(1) == labels[held_out] for features in (own, other)
        )
        right, mirrored = right + int(first.sum()), mirrored + int(second.sum())
        only_own += int((first & ~second).sum())
        only_other += int((second & ~first).sum())
    differing = only_own + only_other
    score = (only_own - only_other) / math.sqrt(differing) if differing else 0.0
    return Mirroring(count, right, mirrored, score, int(np.bincount(labels).max()))


def edges(pictures: Floats) -> Floats:
    """Return for each of [N, SIDE, SIDE] how strong edges of each direction are in each of 4x4 cells, [N, 128]."""
    across, down = np.zeros_like(pictures), np.zeros_like(pictures)
    across[:, :, 1:-1] = pictures[:, :, 2:] - pictures[:, :, :-2]
    down[:, 1:-1] = pictures[:, 2:] - pictures[:, :-2]
    strength = np.hypot(across, down)
    angle = (np.arctan2(down, across) + np.pi) / (2 * np.pi) * _BINS
    lower, share = np.floor(angle).astype(int) % _BINS, angle % 1.0
    count, cell = len(pictures), SIDE // _CELLS
    found = np.empty((count, _CELLS, _CELLS, _BINS))
    for place in range(_BINS):
        mine = strength * ((lower == place) * (1 - share) + ((lower + 1) % _BINS == place) * share)
        found[..., place] = mine.reshape(count, _CELLS, cell, _CELLS, cell).sum((2, 4))
    flat = found.reshape(count, -1)
    scaled: Floats = np.sqrt(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-3))
    return scaled


def _fitted(
    features: Floats, labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], classes: int
) -> tuple[Floats, Floats]:
    """Return weights and offset of a ridge regression on the classes' indicators."""
    mean = features[rows].mean(0)
    known = features[rows] - mean
    shares = np.bincount(labels[rows], minlength=classes) / len(rows)
    wanted = np.eye(classes)[labels[rows]] - shares
    gram = known @ known.T
    gram[np.diag_indices(len(rows))] += _RIDGE * np.trace(gram) / len(rows) + 1e-9
    weights: Floats = known.T @ np.linalg.solve(gram, wanted)
    return weights, shares - mean @ weights
