"""The rules for networks that start from weights: which layers train, how the head is found, and at which rates.

``effort`` says how much is done where optimizer, rate and epochs are open. With any of them given, a run is what it was
before there were efforts. Knows nothing of when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tellapart import references
from tellapart.errors import SpecError
from tellapart.spec import AugmentSpec, Spec
from tellapart.training.resolution import by_size
from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import DataFacts

FEW_IMAGES = (
    5000  # below this many training photographs only the head is trained, if epochs or rates are given
)
# All layers after a fitted head: small rates, which fall from block to block, since the weights are nearly right.
LR, LAYER_DECAY, LABEL_SMOOTHING, WARMUP, WEIGHT_DECAY = 0.001, 0.85, 0.1, 0.5, 0.01
HEAD_LR = 0.003  # of a head that is new, where no solver can fit it

Leaves = Callable[[str], bool]
"""Whether a field, by its dotted name, may still be chosen (`Resolution.leaves`)."""


def is_open(spec: Spec) -> bool:
    """Return whether optimizer, rate and epochs are all left to tellapart."""
    training = spec.training
    return training.optimizer == "auto" and not training.lr and not training.epochs


def of_finetune(spec: Spec, data: DataFacts, automatic: bool) -> list[Choice]:
    """Choose which layers train, and whether a solver fits the head.

    ``automatic``: whether network and weights were chosen by the images. Raises SpecError for a fitted head that cannot
    be.
    """
    if spec.model.weights == "none":
        _refuse(spec, "there are no weights to start from (model.weights)")
        finetune = "full" if spec.model.finetune == "auto" else spec.model.finetune
        return [
            Choice("model.finetune", finetune, "all layers train"),
            Choice("model.head", "gradient", "no weights to start from"),
            *_norms(spec, False),
        ]
    obstacle = _obstacle(spec)
    _refuse(spec, obstacle)
    open_ = is_open(spec)
    if spec.model.head != "auto":
        fitted, why = spec.model.head == "fitted", "as given"
    else:
        fitted = open_ and not obstacle
        why = obstacle or "its features are computed once" if open_ else "optimizer, rate or epochs are given"
    return [
        *_layers(spec, data, automatic, fitted),
        Choice("model.head", "fitted" if fitted else "gradient", why, fitted),
        *_norms(spec, fitted),
    ]


def _norms(spec: Spec, fitted: bool) -> list[Choice]:
    """Choose whether batch norms keep their statistics: with those of a few images, features are not what was fitted.

    Measured on 459 images of CIFAR-10 at 96 pixels, 4 epochs after the head (68.5 %): 73.1 %, and 64.5 % without.
    """
    if spec.model.norms != "auto":
        return []
    why = "the head was fitted to features with these statistics" if fitted else "as training usually does"
    return [Choice("model.norms", "keep" if fitted else "train", why)]


def _layers(spec: Spec, data: DataFacts, automatic: bool, fitted: bool) -> list[Choice]:
    """Choose which layers train."""
    if spec.model.finetune != "auto":
        return []
    if not fitted:
        limit, kind = by_size.few(data, FEW_IMAGES)
        few = automatic and data.train < limit
        reason = f"fewer than {limit:,} training {kind}" if few else "all layers train"
        return [Choice("model.finetune", "head" if few else "full", reason, few)]
    if spec.effort == "quick":
        return [Choice("model.finetune", "head", "effort quick: the new head alone", True)]
    reason = "effort good: after the head all layers, if that is better"
    return [Choice("model.finetune", "full", reason, True)]


def _obstacle(spec: Spec) -> str:
    """Return why the head cannot be fitted by a solver, or why that is not what was asked for; empty if it can."""
    model, training = spec.model, spec.training
    if references.is_own(training.loss):
        return "the loss is one of your own"
    if references.is_own(model.name):
        return "the network is one of your own"
    if spec.distill.teacher:
        return "a teacher needs whole images (distill.teacher)"
    if training.quantize != "none":
        return "the network computes with rounded weights (training.quantize)"
    if training.keep_zeros:
        return "weights at zero are kept there (training.keep_zeros)"
    if training.prune:
        return "training.prune counts the losses of every epoch"
    if training.sampling != "shuffle":
        return f"training.sampling is {training.sampling}, and a solver sees each image once"
    augmented = spec.augment != AugmentSpec() or spec.speed.feature_views
    if model.head == "auto" and model.finetune == "head" and augmented:
        return "augmentation was asked for"
    return ""


def _refuse(spec: Spec, obstacle: str) -> None:
    if spec.model.head == "fitted" and obstacle:
        raise SpecError(f"model.head is fitted, and {obstacle}. Use --model.head gradient.")


def of_training(spec: Spec, data: DataFacts, leaves: Leaves) -> list[Choice]:
    """Choose how all layers train after a fitted head, and that one epoch is enough for the head alone."""
    training = spec.training
    if spec.model.head != "fitted":
        return []
    if spec.model.finetune == "head":
        done = Choice("training.epochs", 1, "the head is fitted once")
        return [] if training.epochs else [done]
    if training.optimizer != "auto" or training.lr:
        return []
    epochs = 1 + epochs_for(data.train)
    reason = f"the head, then {epochs - 1} for {data.train:,} training images"
    small = "small, as the weights are nearly right"
    chosen: dict[str, tuple[Any, str]] = {
        "training.optimizer": ("adamw", "for fine-tuning"),
        "training.lr": (LR, small),
        "model.layer_decay": (LAYER_DECAY, "earlier layers need less change"),
        "training.weight_decay": (WEIGHT_DECAY, "with the optimizer"),
        "training.warmup_epochs": (WARMUP, "the optimizer has seen nothing of these images"),
    }
    if (
        not references.is_own(training.loss)
        and training.loss in ("auto", "cross-entropy")
        and not data.several
    ):
        chosen["training.label_smoothing"] = (LABEL_SMOOTHING, "against too certain answers")
    found = [Choice(name, value, why) for name, (value, why) in chosen.items() if leaves(name)]
    if not training.epochs:
        found.append(Choice("training.epochs", epochs, reason, True))
    return found


def epochs_for(images: int) -> int:
    """Return the epochs in which all layers train: fewer images need more of them."""
    return next(
        epochs
        for most, epochs in ((500, 12), (2000, 8), (10_000, 6), (50_000, 4), (images, 3))
        if images <= most
    )


def without_fit(spec: Spec, reason: str) -> list[Choice]:
    """Choose steps for a head that was to be fitted and cannot be, for ``reason``."""
    found = [Choice("model.head", "gradient", reason, True)]
    if spec.model.finetune == "head":
        return [*found, Choice("training.epochs", 10, "for a head that trains by steps")]
    return [*found, Choice("training.head_lr", HEAD_LR, "the head is new", True)]
