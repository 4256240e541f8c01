"""Losses: logits and targets -> the loss of each sample.

Each loss returns one value for each sample, so that the caller sums and divides by the size of the whole
batch: micro-batches and processes then add up to the same gradient. Computed in float32, inside autocast too.
Knows nothing of models, batches or the data beyond the number of training images of each class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from tellapart import references
from tellapart.errors import DataError, SpecError
from tellapart.spec import TrainingSpec
from tellapart.training.own_loss import OwnLoss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(
    spec: TrainingSpec, class_counts: npt.NDArray[np.int64], device: torch.device | str = "cpu"
) -> Loss:
    """Return the loss that ``spec`` describes.

    The loss takes logits [B, K] of any floating dtype and targets, int64 [B] or probabilities float [B, K]
    (from MixUp or CutMix), and returns float32 [B]. Everything is defined for soft targets: cross-entropy as
    ``torch.nn.functional.cross_entropy`` defines it, focal as a sum over classes (see ``focal``), ordinal by what
    probabilities add up to (see ``ordinal``).

    With class weights an image's whole loss is multiplied by the weight of its own class (of a mixed image: by
    ``sum_c t[c] * w[c]``). So weights change how much an image counts, but never its best answer.
    torch's ``weight`` multiplies each class's term instead, so that with ``label_smoothing`` (or mixed labels) the
    smoothed mass of a rare class counts more than the image's own class, and the rarest class is the best answer for
    every image.

    ``class_counts`` are the training images of each class, int64 [K], as an epoch shows them: with balanced
    sampling give the balanced counts, or the rare classes are favoured twice.
    """
    weight: torch.Tensor | None = None
    if spec.class_weights not in ("auto", "none"):  # auto: of a spec that was not resolved
        values = class_weights(class_counts, spec.class_weights, spec.effective_beta)
        weight = torch.as_tensor(values, dtype=torch.float32, device=device)
    if references.is_own(spec.loss):
        return OwnLoss(spec.loss, spec.loss_arguments, weight)
    if spec.loss_arguments:
        raise SpecError(f"training.loss_arguments are for a loss of your own; {spec.loss} takes none.")
    builders = {
        "auto": _build_cross_entropy,
        "cross-entropy": _build_cross_entropy,
        "focal": _build_focal,
        "ordinal": _build_ordinal,
    }
    loss = builders[spec.loss](spec)
    return loss if weight is None else _weighted(loss, weight)


def class_weights(
    counts: npt.NDArray[np.int64], method: str, effective_beta: float = 0.999
) -> npt.NDArray[np.float64]:
    """Return the weight of each class, float64 [K], with a mean of 1 over the training *images*.

    inverse
        1 / count; the same as scikit-learn's "balanced" if no class is empty.
    effective
        (1 - beta) / (1 - beta ** count), the inverse of the effective number of samples (Cui et al. 2019,
        "Class-Balanced Loss Based on Effective Number of Samples"). beta 0 weighs all classes the same; near
        1 it becomes the inverse frequency.

    The mean of 1 keeps the scale of the loss, and so of the learning rate, whatever the imbalance: the step divides
    the weighted losses by the number of images (torch's weighted mean: by the sum of their weights). A class with no
    training image gets weight 0: there is nothing to weight. Raises DataError if no class has an image.
    """
    counts = np.asarray(counts, dtype=np.int64)
    present = counts > 0
    if not present.any():
        raise DataError("Class weights need training images, and no class has one.")
    number = np.where(present, counts, 1).astype(np.float64)
    if method == "inverse":
        raw = 1.0 / number
    elif method == "effective":
        raw = (1.0 - effective_beta) / (1.0 - effective_beta**number)
    else:
        raise ValueError(f"class weights {method!r}: must be inverse or effective")
    raw = np.where(present, raw, 0.0)
    weights: npt.NDArray[np.float64] = raw * (counts.sum() / (raw * counts).sum())
    return weights


def _weighted(loss: Loss, weight: torch.Tensor) -> Loss:
    """Return ``loss`` with each image's value multiplied by the weight of its class."""

    def weighted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal weight
        if weight.device != logits.device:
            weight = weight.to(logits.device)
        soft = targets.is_floating_point()
        # Not a matrix product, which autocast would round.
        return loss(logits, targets) * ((targets.float() * weight).sum(1) if soft else weight[targets])

    return weighted


def _build_cross_entropy(spec: TrainingSpec) -> Loss:
    smoothing = spec.label_smoothing
    if smoothing == 0.0:
        return _plain_cross_entropy

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)

    return loss


def _plain_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One call: with small networks at batch 4, a step is a fraction of a millisecond."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def _build_focal(spec: TrainingSpec) -> Loss:
    gamma, smoothing = spec.focal_gamma, spec.label_smoothing

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return focal(logits, targets, gamma, smoothing)

    return loss


def focal(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the focal loss of each sample, float32 [B], over a softmax (Lin et al. 2017, "Focal Loss").

    For a label y it is ``-(1 - p[y]) ** gamma * log(p[y])``. For soft targets t it is the sum over the classes
    ``sum_c t[c] * -(1 - p[c]) ** gamma * log(p[c])``, which is the same for one-hot t. Label smoothing is that
    sum with ``t = (1 - s) * target + s / K``. With gamma 0 all of it is cross-entropy.

    logits [B, K]; targets int64 [B] or float [B, K].
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    hard = not targets.is_floating_point()
    if hard and label_smoothing == 0.0:
        return _focal_terms(log_p.gather(1, targets.unsqueeze(1)), gamma).squeeze(1)
    terms = _focal_terms(log_p, gamma)
    wanted = terms.gather(1, targets.unsqueeze(1)).squeeze(1) if hard else (terms * targets.float()).sum(1)
    return wanted if label_smoothing == 0.0 else torch.lerp(wanted, terms.mean(1), label_smoothing)


def _focal_terms(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    if gamma == 0.0:
        return -log_p
    # Clamped at the smallest normal number: at p = 1 the slope of x ** gamma with gamma < 1 is infinite, and
    # inf * 0 would make the gradient NaN.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return rest.pow(gamma) * -log_p


def _build_ordinal(spec: TrainingSpec) -> Loss:
    smoothing = spec.label_smoothing

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ordinal(logits, targets, smoothing)

    return loss


def ordinal(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return cross-entropy plus the squared earth mover's distance of each sample, float32 [B].

    Of classes that are grades, the lowest first. The distance is ``sum_k (P[k] - T[k]) ** 2``, where P and T are what
    the probabilities and the targets of the grades up to k add up to (Hou, Yu, Samaras 2016, "Squared Earth Mover's
    Distance-based Loss for Training Deep Neural Networks", arXiv:1611.05916). So an answer two grades off costs more
    than one that is one off, which is all the same to cross-entropy. For a label it is the ranked probability score
    (Epstein 1969). Both terms are proper: the mean over labels drawn from t is lowest where the probabilities are t,
    and for soft targets t (MixUp, CutMix, label smoothing: ``(1 - s) * target + s / K``) the best answer is t.

    logits [B, K]; targets int64 [B] or float [B, K].
    """
    logits = logits.float()
    hard = not targets.is_floating_point()
    soft = F.one_hot(targets, logits.shape[1]).float() if hard else targets.float()
    soft = torch.lerp(soft, torch.full_like(soft, 1 / logits.shape[1]), label_smoothing)
    apart = (logits.softmax(1) - soft).cumsum(1)
    return F.cross_entropy(logits, soft, reduction="none") + apart.square().sum(1)


def average(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits, float32 [B, K], whose softmax at ``temperature`` is the mean of those of several models.

    logits: [M, B, K].
    """
    log_p = F.log_softmax(logits.float() / temperature, dim=2)
    return temperature * (log_p.logsumexp(0) - math.log(len(logits)))


def soft_labels(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T² KL(teacher || student) of each sample, float32 [B], for logits [B, K] of both.

    The square keeps the gradient's scale at any temperature (Hinton et al. 2015, section 2).
    """
    ours = F.log_softmax(logits.float() / temperature, dim=1)
    theirs = F.log_softmax(taught.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
