"""Images with several labels: a sigmoid for each class, its losses, and the task that uses them.

Losses are means over the classes for each image, so that micro-batches and processes add up to the same gradient.
Knows nothing of thresholds, which are chosen after training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tellapart.errors import SpecError
from tellapart.evaluation import multilabel as measuring
from tellapart.spec import Spec, TrainingSpec
from tellapart.training.losses import Loss
from tellapart.training.task import Batch, Each, Labelled

LOSSES = ("bce", "asymmetric")
SCORES = measuring.QUICK


class MultiLabel(Labelled):
    """Classification where an image can have several labels, or none."""

    metrics = ("samples-f1",)
    """Of the batches, at the threshold 0.5: the mean over the images of each one's own F1."""
    score_names = SCORES

    def counted(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See Labelled."""
        return _f1_of_images(logits, batch)

    def follow(self, logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Labelled."""
        return soft_several(logits, taught, temperature)

    def each(self, outputs: torch.Tensor, labels: torch.Tensor) -> Each:
        """See Task."""
        outputs, labels = outputs.float().cpu(), labels.float().cpu()
        return Each(F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(1))

    def scores(self, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """See Task."""
        return measuring.quick(outputs.numpy(), labels.numpy())


def _f1_of_images(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the sum over the images of each one's F1; 1 if it has no label and none is predicted."""
    assert batch.labels is not None
    told, truth = logits.detach() > 0, batch.labels > 0.5
    either = told.sum(1) + truth.sum(1)
    f1 = 2 * (told & truth).sum(1) / either.clamp(min=1)
    return torch.where(either == 0, 1.0, f1).sum()


def check(spec: Spec, loss: str) -> None:
    """Refuse options that are for one label only; ``loss``: the chosen one. Raises SpecError."""
    training = spec.training
    refused = {
        "training.sampling": (
            training.sampling != "shuffle",
            "balances classes of images that have one; use shuffle, or --training.class-weights inverse",
        ),
        "training.class_weights": (
            training.class_weights == "effective",
            "is for images of one label; use inverse",
        ),
        "training.label_smoothing": (
            training.label_smoothing > 0 and loss == "asymmetric",
            "is for the loss bce: the asymmetric loss has --training.margin",
        ),
        "input.views_below": (
            spec.input.views != "one" and spec.input.views_below < 1,
            "compares the two best classes and needs exactly one right class; use 1",
        ),
    }
    for name, (wrong, why) in refused.items():
        if wrong:
            raise SpecError(f"Images of this data can have several labels, and {name} {why}.")


def build_loss(
    spec: TrainingSpec, counts: npt.NDArray[np.int64], images: int, device: torch.device | str = "cpu"
) -> Loss:
    """Return the loss that ``spec`` describes: logits [B, K] and targets float [B, K] -> float32 [B].

    ``counts``: training images of each class, int64 [K], of so many ``images``.
    """
    weight: torch.Tensor | None = None
    if spec.class_weights not in ("auto", "none"):
        values = positive_weights(counts, images, spec.class_weight_limit)
        weight = torch.as_tensor(values, dtype=torch.float32, device=device)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal weight
        if weight is not None and weight.device != logits.device:
            weight = weight.to(logits.device)
        if spec.loss == "asymmetric":
            terms = asymmetric(logits, targets, spec.gamma_negative, spec.gamma_positive, spec.margin, weight)
            return terms.mean(1)
        soft = torch.lerp(targets.float(), torch.full_like(targets, 0.5), spec.label_smoothing)
        return F.binary_cross_entropy_with_logits(
            logits.float(), soft, pos_weight=weight, reduction="none"
        ).mean(1)

    return loss


def positive_weights(counts: npt.NDArray[np.int64], images: int, limit: float) -> npt.NDArray[np.float64]:
    """Return the weight of each class's positives, float64 [K]: negatives per positive, at most ``limit``, or 1."""
    counts = np.asarray(counts, np.float64)
    weights: npt.NDArray[np.float64] = np.minimum((images - counts) / np.maximum(counts, 1), limit)
    return np.where((counts > 0) & (weights > 0), weights, 1.0)


def asymmetric(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma_negative: float,
    gamma_positive: float,
    margin: float,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return each class's asymmetric loss, float32 [B, K] (Ben-Baruch et al. 2020, arXiv:2009.14119, equation 7).

    With p the sigmoid: ``-(1 - p) ** gamma_positive * log(p)`` for a positive, and for a negative ``-q **
    gamma_negative * log(1 - q)`` with ``q = max(p - margin, 0)``. Targets between 0 and 1 (MixUp) take their share of
    both. ``weight`` [K] multiplies the positive term. The paper sums over the classes.
    """
    logits, targets = logits.float(), targets.float()
    p = torch.sigmoid(logits)
    yes = -F.logsigmoid(logits)
    # Clamped at the smallest normal number: at 0 the slope of a power below 1 is infinite (see `losses.focal`).
    least = torch.finfo(torch.float32).tiny
    if gamma_positive:
        yes = yes * torch.sigmoid(-logits).clamp(min=least) ** gamma_positive
    q = (p - margin).clamp(min=0)
    # log(1 - q) from the logits if there is no margin: 1 - p is 0 in float32 from a logit of 17 on.
    no = F.softplus(logits) if not margin else -torch.log1p(-q)
    if gamma_negative:
        no = no * q.clamp(min=least) ** gamma_negative
    if weight is not None:
        yes = yes * weight
    return targets * yes + (1 - targets) * no


def soft_several(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how far each class's softened answer is from the teacher's, float32 [B], for logits [B, K] of both.

    T² times the binary cross-entropy with the teacher's probabilities, the mean over the classes, less what no student
    can get below (the teacher's own entropy): the divergence of `losses.soft_labels`, of each class by itself.
    """
    ours, theirs = logits.float() / temperature, taught.float() / temperature
    wanted = theirs.sigmoid()
    found, least = (
        F.binary_cross_entropy_with_logits(x, wanted, reduction="none").mean(1) for x in (ours, theirs)
    )
    return temperature**2 * (found - least)


def average(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits, float32 [B, K], whose sigmoid at ``temperature`` is the mean of those of several models.

    logits: [M, B, K].
    """
    softened = logits.float() / temperature
    yes, no = (F.logsigmoid(x).logsumexp(0) for x in (softened, -softened))
    return temperature * (yes - no)
