"""What more images would bring: the error of a linear head on frozen features, for growing parts of the images.

The error at each part is measured on images that the fit has not seen, over several draws. Curves a + b * n**-c are
fitted for several fixed c (0: a + b * log n); each counts by how well it predicts the last, largest part from the
others. Only features that were learned without these labels give such a curve: on those of a trained network a part of
the images is as good as all, since the network has seen them all. Loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tellapart.evaluation import ridge

PARTS = (0.125, 0.25, 0.5, 1.0)
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
DRAWS = 6
LEAST = 8  # images in the smallest part
_MEASURABLE = 0.2  # seconds of a fit, from which its time says how long larger ones take
_TRUST = 0.005  # error of a prediction that is not worth telling from none
_WEIGHTS = np.array([0.3, 0.6, 1.0, 1.0])  # small parts are noisy, and furthest from what is asked

Labels = npt.NDArray[np.int64]
Errors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Growth:
    """A learning curve. ``gain``: by how much the error falls with twice the images; ``interval``: of 95 %.

    ``errors`` are at ``images`` training images. ``by_class``: what each class's recall gained by the last doubling,
    and the standard error of that.
    """

    images: tuple[int, ...]
    errors: tuple[float, ...]
    gain: float
    interval: tuple[float, float]
    by_class: tuple[tuple[float, float], ...] = ()


def measure(
    train: tuple[ridge.Floats, Labels],
    val: tuple[ridge.Floats, Labels],
    classes: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Growth | None:
    """Return the curve for features float32 [N, F] with labels int64 [N]; None if it would take more than the seconds.

    The images of ``val`` may be none. Raises ValueError for too few training images.
    """
    count = len(train[1])
    if count * PARTS[0] < LEAST:
        raise ValueError(f"{count} training images are too few for a learning curve")
    begun = clock()
    generator = np.random.default_rng(0)
    order = generator.permutation(count)
    features, labels = train[0][order], train[1][order]
    strength = ridge.choose_strength(features, ridge.indicators(labels, classes))
    sizes = [max(LEAST, round(part * count)) for part in PARTS]
    width = features.shape[1]
    wrong = np.zeros((len(PARTS), count + len(val[1])))
    times = np.zeros((len(PARTS), count + len(val[1])))
    for draw in range(DRAWS):
        for place, size in enumerate(sizes[:-1] if draw else sizes):
            before = clock()
            chosen = generator.permutation(count)[:size]
            _answer(wrong[place], times[place], (features, labels), val, classes, chosen, strength)
            spent = clock() - before
            if not draw and place + 1 < len(sizes) and spent > _MEASURABLE:
                ahead = sum(_work(later, width) for later in sizes[place + 1 :]) / _work(size, width)
                if clock() - begun + spent * ahead > seconds:
                    return None
        spent = clock() - begun
        if spent * (draw + 2) / (draw + 1) > seconds:
            break
    return _grown(wrong, times, np.concatenate([labels, val[1]]), classes, tuple(sizes))


def _work(size: int, width: int) -> float:
    """Return what a fit costs, in multiplications."""
    small, large = min(size, width), max(size, width)
    return float(small) ** 2 * (large + small)


def _answer(
    wrong: Errors,
    times: Errors,
    train: tuple[ridge.Floats, Labels],
    val: tuple[ridge.Floats, Labels],
    classes: int,
    chosen: npt.NDArray[np.int64],
    strength: float,
) -> None:
    """Add the errors of a head that is fitted to the chosen images, on all the others."""
    features, labels = train
    head = ridge.fit(features[chosen], ridge.indicators(labels[chosen], classes), strength)
    scores = head.scores(features)
    scores[chosen] = head.left_out
    answers = np.concatenate([scores, head.scores(val[0])]).argmax(1)
    counted = np.ones(len(wrong), bool)
    if len(chosen) < len(labels):
        counted[chosen] = False
    wrong[counted] += (answers != np.concatenate([labels, val[1]]))[counted]
    times[counted] += 1


def _grown(wrong: Errors, times: Errors, truth: Labels, classes: int, images: tuple[int, ...]) -> Growth:
    """Return the curve of mean errors, what the next doubling is expected to bring, and its interval."""
    with np.errstate(invalid="ignore"):
        each = wrong / times  # NaN where an image was in every draw
    errors = np.nanmean(each, axis=1)
    last = each[-2] - each[-1]
    known = ~np.isnan(last)
    by_class = []
    for k in range(classes):
        own = last[known & (truth == k)]
        by_class.append((float(own.mean()), _standard_error(own)) if len(own) else (0.0, float("inf")))
    gain, spread = expected_gain(errors)
    halving = float(errors[-2] - errors[-1])
    share = abs(gain / halving) if abs(halving) > 1e-9 else 1.0
    deviation = float(np.hypot(spread, min(share, 1.0) * _standard_error(last[known])))
    interval = (gain - 1.96 * deviation, gain + 1.96 * deviation)
    return Growth(images, tuple(map(float, errors)), gain, interval, tuple(by_class))


def _standard_error(values: Errors) -> float:
    """Return the standard error of a mean; an image without any difference is no proof that there is none."""
    count = len(values)
    return float(np.sqrt((values.var() + 1 / max(count, 1)) / count)) if count else float("inf")


def expected_gain(errors: Errors) -> tuple[float, float]:
    """Return by how much the error falls with the next doubling, and the deviation between the shapes of curves.

    ``errors``: at the `PARTS` of the images.
    """
    parts = np.array(PARTS)
    gains, misses = [], []
    for exponent in EXPONENTS:
        early = _fitted(parts[:-1], errors[:-1], _WEIGHTS[:-1], exponent)
        misses.append(abs(early(1.0) - errors[-1]))
        curve = _fitted(parts, errors, _WEIGHTS, exponent)
        gains.append(curve(1.0) - curve(2.0))
    weights = 1 / (np.array(misses) + _TRUST) ** 2
    mean = float(np.average(gains, weights=weights))
    return mean, float(np.sqrt(np.average((np.array(gains) - mean) ** 2, weights=weights)))


def _fitted(parts: Errors, errors: Errors, weights: Errors, exponent: float) -> Callable[[float], float]:
    """Return the curve that is closest to errors at parts of the images."""

    def basis(values: Errors) -> Errors:
        shape: Errors = -np.log2(values) if exponent == 0 else values**-exponent
        return shape

    columns = np.stack([np.ones_like(parts), basis(parts)], axis=1)
    (level, slope), *_ = np.linalg.lstsq(columns * weights[:, None], errors * weights, rcond=None)
    return lambda value: float(level + slope * basis(np.array(value)))
