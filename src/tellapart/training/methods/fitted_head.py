"""A head that is fitted to features: a linear layer whose best weights a solver finds, for a path of weight decays.

What is minimised is the mean of the task's own loss over the images, plus half the weight decay times the sum of the
squared weights of centred features of unit size (the mean square of all their values is 1, so that a decay means the
same for any network). The problem is convex for cross-entropy and its kin; L-BFGS (Liu and Nocedal 1989; torch's, with
a strong Wolfe line search) solves it, each weight decay starting from the solution of the one before, from strong to
weak. The decay that is kept has the lowest loss on validation images, and, where these are few, on those left out of
folds of the training images.

Gradients are computed from all images, a chunk at a time, so that only the features themselves need memory, which may
be a mapped file. Knows nothing of networks, of files, or of what labels mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits [B, K], targets) -> the loss of each image, float32 [B]."""

DECAYS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
CHUNK = 8192  # images whose logits are in memory at once
FOLDS = 5
FEW = 1000  # validation images below which the folds have a say too
PATH_IMAGES = 10_000  # that the weight decay is chosen on, at most; the last fits have all
PATH_WORK = 200_000_000  # images x features x classes of a fit on the path; but at least 2,000 images, and ten a class
_WORSE = 2  # weight decays in a row that are worse than the best so far, after which no weaker ones are tried
_STEPS, _TOLERANCE = 100, 1e-5


@dataclass(frozen=True)
class Examples:
    """Features float32 [N, F] with their targets, int64 [N] or float32 [N, K]."""

    features: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Return some of them."""
        chosen = torch.from_numpy(rows).to(self.targets.device)
        return Examples(self.features[chosen.to(self.features.device)], self.targets[chosen])


@dataclass(frozen=True)
class Linear:
    """A linear layer: weight [K, F] and bias [K] for the features as they are."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of features [B, F]."""
        return torch.nn.functional.linear(features, self.weight, self.bias)


@dataclass(frozen=True)
class Fitted:
    """The layer that was found, its weight decay, how many were tried, and what the choice was made on."""

    layer: Linear
    decay: float
    tried: int
    chosen_on: str


@dataclass(frozen=True)
class _Scale:
    """What is taken from features, [F], and what they are divided by."""

    mean: torch.Tensor
    size: float

    @classmethod
    def of(cls, features: torch.Tensor) -> _Scale:
        parts = features.split(CHUNK)
        mean = sum(part.double().sum(0) for part in parts) / len(features)
        assert isinstance(mean, torch.Tensor)
        square = sum(float((part.double() - mean).square().sum()) for part in parts) / features.numel()
        return cls(mean.float(), math.sqrt(square) or 1.0)


class Problem:
    """Fits a linear layer to ``examples`` for one weight decay after another, each from the last solution."""

    def __init__(self, examples: Examples, classes: int, losses: Losses, bias: bool = True) -> None:
        self.examples, self.losses, self.bias = examples, losses, bias
        self.scale = _Scale.of(examples.features)
        features = examples.features.shape[1]
        self._weight = torch.zeros(classes, features, device=examples.features.device)
        self._offset = torch.zeros(classes, device=examples.features.device)

    def start(self, layer: Linear) -> None:
        """Begin at a solution of another problem with the same features."""
        self._weight = layer.weight * self.scale.size
        self._offset = layer.bias + layer.weight @ self.scale.mean

    def solve(self, decay: float) -> Linear:
        """Return the best layer for a weight decay."""
        weight, offset = self._weight.clone(), self._offset.clone()
        unknown = [weight, offset] if self.bias else [weight]
        for tensor in unknown:
            tensor.requires_grad_(True)
        solver = torch.optim.LBFGS(
            unknown,
            max_iter=_STEPS,
            max_eval=2 * _STEPS,
            tolerance_grad=_TOLERANCE,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            for tensor in unknown:
                tensor.grad = None
            value = self._mean_loss(weight, offset)
            penalty = decay / 2 * weight.square().sum()
            penalty.backward()
            return value + penalty.detach()

        with torch.enable_grad():
            solver.step(closure)
        self._weight, self._offset = weight.detach(), offset.detach()
        return self._plain(self._weight, self._offset)

    def _plain(self, weight: torch.Tensor, offset: torch.Tensor) -> Linear:
        """Return the layer for features as they are."""
        plain = weight / self.scale.size
        return Linear(plain, offset - plain @ self.scale.mean if self.bias else offset)

    def _mean_loss(self, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, and add its gradient to the weights', a chunk of images at a time."""
        layer = self._plain(weight, offset)
        leaves = [tensor.detach().requires_grad_(True) for tensor in (layer.weight, layer.bias)]
        total, count = torch.zeros((), device=weight.device), len(self.examples)
        for features, targets in _chunks(self.examples):
            loss = self.losses(Linear(leaves[0], leaves[1]).logits(features), targets).sum() / count
            loss.backward()
            total += loss.detach()
        made = [(layer.weight, leaves[0].grad), (layer.bias, leaves[1].grad)]
        roots = [(tensor, grad) for tensor, grad in made if tensor.requires_grad]
        torch.autograd.backward([tensor for tensor, _ in roots], [grad for _, grad in roots])
        return total


def _chunks(examples: Examples) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(examples.features.split(CHUNK), examples.targets.split(CHUNK), strict=True))


@torch.no_grad()
def mean_loss(layer: Linear, examples: Examples, losses: Losses) -> float:
    """Return the mean loss of a layer on examples."""
    sums = (float(losses(layer.logits(x), targets).sum()) for x, targets in _chunks(examples))
    return sum(sums) / len(examples)


def fit(
    train: Examples, val: Examples | None, classes: int, losses: Losses, seed: int = 0, bias: bool = True
) -> Fitted:
    """Return the best layer for the weight decay that generalises best.

    Chosen by the loss on ``val``; with fewer than FEW of these, the losses on the images left out of FOLDS folds of
    ``train`` are added (a handful of images would choose by chance), and without any they decide alone. With more than
    PATH_IMAGES training images (fewer with many classes) the choice is made on so many of them, and then continued on
    all towards weaker decays, which more images allow.
    """
    rows = np.random.Generator(np.random.PCG64(seed)).permutation(len(train)).astype(np.int64)
    most = _path_images(train.features.shape[1], classes)
    part = train if len(train) <= most else train.select(np.sort(rows[:most]))
    judges: list[_Judge] = []
    if val is not None and len(val):
        judges.append(_Judge(Problem(part, classes, losses, bias), val, losses))
    if not judges or len(judges[0].left_out) < FEW:
        order = rows[rows < len(part)] if part is train else np.arange(len(part), dtype=np.int64)
        judges += _folds(part, order, classes, losses, bias)
    place, tried = _descend(judges, DECAYS)
    words = _words(0 if val is None else len(val), len(judges))
    problem = Problem(train, classes, losses, bias)
    if val is not None and len(val):
        problem.start(judges[0].layers[place])
    if part is not train and val is not None and len(val):
        last = _Judge(problem, val, losses)
        best, _ = _descend([last], DECAYS[place:])
        return Fitted(last.layers[best], DECAYS[place + best], tried, words)
    return Fitted(problem.solve(DECAYS[place]), DECAYS[place], tried, words)


def _path_images(features: int, classes: int) -> int:
    """Return how many images the weight decay is chosen on, at most."""
    return min(PATH_IMAGES, max(PATH_WORK // (features * classes), 2000, 10 * classes))


def _words(val: int, judges: int) -> str:
    """Return what a choice was made on."""
    if not val:
        return f"{FOLDS} folds of the training images"
    folds = f" and {FOLDS} folds of the training images" if judges > 1 else ""
    return f"{val:,} validation image{'s' * (val != 1)}{folds}"


class _Judge:
    """A problem, and examples that its solutions are measured on."""

    def __init__(self, problem: Problem, left_out: Examples, losses: Losses) -> None:
        self.problem, self.left_out, self.losses = problem, left_out, losses
        self.layers: list[Linear] = []

    def total(self, decay: float) -> float:
        """Solve for the next weight decay; return the sum of the losses."""
        self.layers.append(self.problem.solve(decay))
        return mean_loss(self.layers[-1], self.left_out, self.losses) * len(self.left_out)


def _folds(
    train: Examples, order: npt.NDArray[np.int64], classes: int, losses: Losses, bias: bool
) -> list[_Judge]:
    """Return the judges of a cross-validation; none with too few images."""
    if len(train) < 2 * FOLDS:
        return []
    found = []
    for fold in range(FOLDS):
        out = np.zeros(len(train), bool)
        out[order[fold::FOLDS]] = True
        rest, left_out = (train.select(np.flatnonzero(mask)) for mask in (~out, out))
        found.append(_Judge(Problem(rest, classes, losses, bias), left_out, losses))
    return found


def _descend(judges: Sequence[_Judge], decays: Sequence[float]) -> tuple[int, int]:
    """Return the place of the decay with the lowest sum of losses, from strong to weak, and how many were tried."""
    if not judges:  # too few images for any choice: a middle one
        return decays.index(0.1) if 0.1 in decays else 0, 1
    totals: list[float] = []
    for decay in decays:
        totals.append(sum(judge.total(decay) for judge in judges))
        best = int(np.argmin([value if math.isfinite(value) else math.inf for value in totals]))
        if len(totals) - 1 - best >= _WORSE:
            break
    return best, len(totals)
