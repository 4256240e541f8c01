"""Whether two pictures are one: the second is laid over the first, and what is drawn in both is compared.

Works on thumbnails of 32x32. The second picture is mirrored as the candidate says, then moved, scaled and
turned by Gauss-Newton steps (affine; gain and offset of the brightness are free), so that exposure, small crops
and small rotations do not count. Reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tellapart.data.health.near_copies import FLIPS, SIDE, Pairs, Thumbs

Floats = npt.NDArray[np.float32]
Gradient = Sequence[Floats]  # down, across

STEPS = 6
BLOCK = 200  # pairs at a time: about 25 MB
COARSE = 0.8  # correlation at 16x16; what lies below is not compared any further
MARGIN = 5  # pixels of 32 around the middle
PENALTY = 0.02  # of the score, for each pixel (of 32) of movement, scaling or turning


@dataclass(frozen=True)
class Alignment:
    """How well each pair fits, and how the second picture lies in the first.

    score: float32 [P], 1 where all edges agree; 0 where there is nothing to compare. motion: float32 [P, 6],
    pixels of 32: shift in x and y, then at the picture's edge what scaling and shearing add (x by x, x by y, y by
    x, y by y). brightness: float32 [P], levels by which the second is brighter. contrast: float32 [P], its ratio.
    """

    score: Floats
    motion: Floats
    brightness: Floats
    contrast: Floats


def align(thumbs: Thumbs, pairs: Pairs, flips: npt.NDArray[np.int64]) -> Alignment:
    """Align the second picture of each pair with the first and compare them."""
    count = len(pairs)
    result = Alignment(
        np.zeros(count, np.float32),
        np.zeros((count, 6), np.float32),
        np.zeros(count, np.float32),
        np.ones(count, np.float32),
    )
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(count, start + BLOCK))
        first, second = _pictures(thumbs, pairs[rows], flips[rows])
        motion, fit = _register(_halved(first), _halved(second), np.zeros((len(rows), 6), np.float32), 4)
        close = np.flatnonzero(fit > COARSE)
        if len(close) == 0:
            continue
        motion, _ = _register(first[close], second[close], 2 * motion[close], STEPS)
        at = rows[close]
        result.motion[at] = motion
        result.score[at] = _edges(first[close], second[close], motion) - PENALTY * np.abs(motion).sum(axis=1)
        result.brightness[at] = second[close].mean(axis=(1, 2)) - first[close].mean(axis=(1, 2))
        spreads = [picture[close].std(axis=(1, 2)) for picture in (first, second)]
        result.contrast[at] = spreads[1] / np.maximum(spreads[0], 1)
    return result


def _pictures(thumbs: Thumbs, pairs: Pairs, flips: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return both pictures of each pair, slightly blurred, the second flipped: float32 [P, 32, 32]."""
    from scipy.ndimage import gaussian_filter

    first, second = (thumbs[pairs[:, n]].reshape(-1, SIDE, SIDE).astype(np.float32) for n in (0, 1))
    for number, (across, down) in enumerate(FLIPS):
        chosen = flips == number
        second[chosen] = second[chosen][:, :: -1 if down else 1, :: -1 if across else 1]
    blurred = [gaussian_filter(p, (0, 0.7, 0.7), mode="nearest") for p in (first, second)]
    return blurred[0], blurred[1]


def _halved(pictures: Floats) -> Floats:
    side = pictures.shape[1] // 2
    halved: Floats = pictures.reshape(len(pictures), side, 2, side, 2).mean(axis=(2, 4))
    return halved


def _grid(side: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Return x and y of each pixel, and the same from -1 to 1: float32 [side²]."""
    y, x = (axis.ravel().astype(np.float32) for axis in np.mgrid[:side, :side])
    middle = np.float32((side - 1) / 2)
    return x, y, (x - middle) / middle, (y - middle) / middle


def _warp(pictures: Floats, motion: Floats) -> tuple[Floats, Floats]:
    """Return the moved pictures, float32 [P, side²], and 1 where there is something, else 0."""
    count, side, _ = pictures.shape
    x, y, u, v = _grid(side)
    m = motion[:, :, None]
    at_x, at_y = x + m[:, 0] + m[:, 2] * u + m[:, 3] * v, y + m[:, 1] + m[:, 4] * u + m[:, 5] * v
    inside = (at_x >= 0) & (at_x <= side - 1) & (at_y >= 0) & (at_y <= side - 1)
    at_x, at_y = (np.clip(at, 0, side - 1.001) for at in (at_x, at_y))
    left, top = at_x.astype(np.int64), at_y.astype(np.int64)
    right_part, low_part = at_x - left, at_y - top
    place = (np.arange(count) * side * side)[:, None] + top * side + left
    flat = pictures.ravel()
    upper = flat[place] + (flat[place + 1] - flat[place]) * right_part
    lower = flat[place + side] + (flat[place + side + 1] - flat[place + side]) * right_part
    warped = upper + (lower - upper) * low_part
    return warped.astype(np.float32), inside.astype(np.float32)


def _standard(values: Floats, mask: Floats) -> Floats:
    """Return values without offset and gain, of unit length within the mask."""
    mean = (values * mask).sum(axis=1, keepdims=True) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    centred = (values - mean) * mask
    standard: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-3)
    return standard


def _register(first: Floats, second: Floats, motion: Floats, steps: int) -> tuple[Floats, Floats]:
    """Return the best motion of the second pictures and the correlation that it reaches.

    Gauss-Newton steps on the squared difference after gain and offset are removed, with the first picture's
    gradients (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004; the criterion is that of Evangelidis and
    Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient", PAMI 2008).
    """
    count, side, _ = first.shape
    _, _, u, v = _grid(side)
    gradient_y, gradient_x = (g.reshape(count, -1) for g in np.gradient(first, axis=(1, 2)))
    columns = [gradient_x, gradient_y, gradient_x * u, gradient_x * v, gradient_y * u, gradient_y * v]
    target = first.reshape(count, -1)
    jacobian = np.stack([*columns, target - target.mean(axis=1, keepdims=True), np.ones_like(target)], axis=2)
    best, fit = motion.copy(), np.full(count, -1, np.float32)
    for step in range(steps + 1):
        warped, mask = _warp(second, motion)
        one, other = _standard(target, mask), _standard(warped, mask)
        reached = np.where(mask.mean(axis=1) > 0.6, (one * other).sum(axis=1), -1)
        better = reached > fit
        best[better], fit[better] = motion[better], reached[better]
        if step == steps:
            break
        scale = np.linalg.norm((target - target.mean(axis=1, keepdims=True)) * mask, axis=1, keepdims=True)
        change = _solve(jacobian * mask[:, :, None], (other - one) * scale)
        limit = side / 16
        motion = motion - np.clip(change, -limit, limit)
        motion[:, :2] = np.clip(motion[:, :2], -side / 4, side / 4)
        motion[:, 2:] = np.clip(motion[:, 2:], -side / 6, side / 6)
    return best, fit


def _solve(jacobian: Floats, error: Floats) -> Floats:
    """Return the first six least-squares coefficients of each pair, slightly damped: float32 [P, 6]."""
    normal = np.matmul(jacobian.transpose(0, 2, 1), jacobian)
    right = np.matmul(jacobian.transpose(0, 2, 1), error[:, :, None])
    size = normal.shape[1]
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / size + 1e-2
    normal += np.eye(size, dtype=np.float32) * damping[:, None, None]
    solution: Floats = np.linalg.solve(normal, right)[:, :6, 0].astype(np.float32)
    return solution


def _edges(first: Floats, second: Floats, motion: Floats) -> Floats:
    """Return how well the gradients of the aligned pictures agree, -1 to 1; 0 where there are none.

    The lower of two values: of the whole, and of the middle, since pictures in the same frame are no copies.
    """
    warped, mask = _warp(second, motion)
    one, other = (_gradient(p) for p in (first, warped.reshape(first.shape)))
    inside = mask.reshape(first.shape)
    middle = inside.copy()
    for side in (middle, middle.transpose(0, 2, 1)):
        side[:, :MARGIN] = side[:, -MARGIN:] = 0
    whole, inner = (_agreement(one, other, part) for part in (inside, middle))
    return np.minimum(whole, inner)


def _gradient(pictures: Floats) -> Gradient:
    down, across = (np.asarray(g, dtype=np.float32) for g in np.gradient(pictures, axis=(1, 2)))
    return down, across


def _agreement(one: Gradient, other: Gradient, mask: Floats) -> Floats:
    product = sum((a * b * mask).sum(axis=(1, 2)) for a, b in zip(one, other, strict=True))
    lengths = [sum((g * g * mask).sum(axis=(1, 2)) for g in gradient) for gradient in (one, other)]
    area = np.maximum(mask.sum(axis=(1, 2)), 1)
    enough = np.minimum(*lengths) > 0.5 * area  # below, noise and nothing else
    agreement: Floats = np.where(enough, product / np.sqrt(np.maximum(lengths[0] * lengths[1], 1)), 0)
    return agreement
