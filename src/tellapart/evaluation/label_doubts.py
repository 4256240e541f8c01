"""Labels that a model's out-of-sample answers contradict more often, and more surely, than its own errors explain.

Each given label is taken to be drawn from the model's calibrated probabilities, or, in a share of the images, from all
classes alike: temperature and share are those of the highest likelihood. If the images can be explained without such a
share, nothing is suspected. Otherwise an image is listed if it is confidently of another class, by the thresholds of
confident learning (Northcutt, Jiang and Chuang 2021), and more likely mislabelled than not. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST = 100  # images, below which a share of a few per cent cannot be told from none
SURE = 10.83  # likelihood ratio by which a share counts: chance gives it once in a thousand times
_HALF = 3.84  # that bounds an interval of 95 %
_TEMPERATURES = np.geomspace(0.02, 20, 61)
_SHARES = np.concatenate([[0.0], np.geomspace(0.001, 0.6, 80)])

Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Doubts:
    """What is doubted among so many images. ``share``: of labels that are wrong, estimated; ``interval``: of 95 %.

    ``ratio``: of the likelihoods with and without such a share (twice its logarithm). ``rows``: the suspected images,
    the likeliest first; ``chances``: how likely the label of each is wrong; ``answers``: what each seems to be.
    """

    images: int
    share: float
    interval: tuple[float, float]
    ratio: float
    rows: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()
    answers: tuple[int, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether the share is more than chance."""
        return self.ratio > SURE and bool(self.rows)


def find(logits: Logits, labels: Labels) -> Doubts:
    """Return what is doubted, for logits [N, K] of images that the model was not trained on, with labels int64 [N]."""
    count, classes = logits.shape
    if count < LEAST:
        raise ValueError(f"{count} images are too few to doubt labels")
    values = logits.astype(np.float64)
    place = np.arange(count)
    likelihood = np.empty((len(_TEMPERATURES), len(_SHARES)))
    for row, temperature in enumerate(_TEMPERATURES):
        given = _softmax(values / temperature)[place, labels]
        mixed = (1 - _SHARES[:, None]) * given + _SHARES[:, None] / classes
        likelihood[row] = np.log(np.maximum(mixed, 1e-300)).sum(1)
    profile = likelihood.max(0)
    best = int(profile.argmax())
    inside = _SHARES[2 * (profile[best] - profile) <= _HALF]
    right = (classes - 1) / classes  # of the labels drawn from all classes, those that are wrong
    share = float(_SHARES[best]) * right
    ratio = float(2 * (profile[best] - profile[0]))
    interval = (float(inside.min()) * right, float(inside.max()) * right)
    probabilities = _softmax(values / _TEMPERATURES[likelihood[:, best].argmax()])
    given = probabilities[place, labels]
    uniform = _SHARES[best] / classes
    chances = uniform / np.maximum(uniform + (1 - _SHARES[best]) * given, 1e-300)
    rows = np.flatnonzero(_confidently_other(probabilities, labels) & (chances > 0.5))
    order = rows[np.argsort(-chances[rows], kind="stable")]
    answers = probabilities[order].argmax(1)
    return Doubts(
        count,
        share,
        interval,
        ratio,
        tuple(map(int, order)),
        tuple(map(float, chances[order])),
        tuple(map(int, answers)),
    )


def _softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = np.exp(values - values.max(1, keepdims=True))
    found: npt.NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return found


def _confidently_other(probabilities: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.bool_]:
    """Return which images are above another class's threshold, and above none more surely than that class's.

    A class's threshold is the mean probability of it over the images that have its label.
    """
    classes = probabilities.shape[1]
    own = np.array(
        [probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in range(classes)]
    )
    above = np.where(probabilities >= own, probabilities, -1.0)
    other: npt.NDArray[np.bool_] = (above.max(1) > 0) & (above.argmax(1) != labels)
    return other
