"""A linear head fitted in closed form, whose answer for each training image is that of a fit without the image.

Ridge regression on the classes' indicators. Leaving one image out needs no second fit: its residual is divided by how
much the fit did not depend on it (Hoerl and Kennard 1970; Golub, Heath and Wahba 1979). Loads no torch. Knows nothing
of where features come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the penalty, in mean variances of the features' directions
_MOST = 1000  # images on which the penalty is chosen


@dataclass(frozen=True)
class Head:
    """A fitted head. ``left_out``: float32 [N, K], the scores of each training image by a fit without it."""

    weights: Floats
    bias: Floats
    left_out: Floats

    def scores(self, features: Floats) -> Floats:
        """Return the classes' scores, float32 [n, K]; the highest is the answer."""
        found: Floats = features @ self.weights + self.bias
        return found


def indicators(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """Return 1 for each image's class, float32 [N, K]."""
    return np.eye(classes, dtype=np.float32)[labels]


def fit(features: Floats, targets: Floats, strength: float) -> Head:
    """Fit a head to features float32 [N, F] and targets float32 [N, K]."""
    centre, mean = features.mean(0), targets.mean(0)
    inputs, wanted = features - centre, targets - mean
    count, width = inputs.shape
    penalty = strength * max(float((inputs**2).sum()) / count, 1e-12)
    if count <= width:
        gram = inputs @ inputs.T
        gram.flat[:: count + 1] += penalty
        inverse = np.linalg.inv(gram)
        duals = inverse @ wanted
        weights = inputs.T @ duals
        free = penalty * np.diagonal(inverse) - 1 / count
        residuals = penalty * duals
    else:
        scatter = inputs.T @ inputs
        scatter.flat[:: width + 1] += penalty
        inverse = np.linalg.inv(scatter)
        weights = inverse @ (inputs.T @ wanted)
        free = 1 - np.einsum("nf,nf->n", inputs @ inverse, inputs) - 1 / count
        residuals = wanted - inputs @ weights
    left_out = targets - residuals / np.maximum(free, 1e-4)[:, None]
    return Head(weights, mean - centre @ weights, left_out.astype(np.float32))


def choose_strength(features: Floats, targets: Floats) -> float:
    """Return the penalty with the smallest squared error on images that are left out, by the first images."""
    features, targets = features[:_MOST], targets[:_MOST]

    def error(strength: float) -> float:
        return float(((fit(features, targets, strength).left_out - targets) ** 2).mean())

    return min(STRENGTHS, key=error)
