"""Options without effect in this run, and drops of the learning rate that never come: warned about before it begins.

Covers only what the user set: fields that differ from the defaults or the recipe that the run started from. Each rule
is in one of the tables below: the fields, and a function that returns why they have no effect, or an empty text. Knows
nothing of logging.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from tellapart.augment import resolve as resolve_augment
from tellapart.models import heads
from tellapart.spec import AugmentSpec, Spec, flatten
from tellapart.training.speed import features
from tellapart.training.step import Plan


@dataclass(frozen=True)
class Facts:
    """Facts that are not in the spec."""

    validation: bool
    counts: tuple[int, ...]  # training images of each class
    channels: int = 3
    device: str = "cpu"
    processes: int = 1
    on_features: bool = False  # the whole run trains a head on features
    batch_norm: bool = True
    early: bool = False  # the network names parameters that train in the first epochs only
    zeros: bool = False  # some weight of the network is zero


Why = Callable[[Spec, Facts], str]


def facts(plan: Plan, channels: int, processes: int) -> Facts:
    """Gather the facts about what will be trained."""
    model = plan.model
    kinds = torch.nn.modules.batchnorm._BatchNorm
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    keeps = plan.spec.training.keep_zeros
    return Facts(
        validation=plan.validate is not None,
        counts=tuple(plan.train.samples.counts().tolist()),
        channels=channels,
        device=next(model.parameters()).device.type,
        processes=processes,
        on_features=(plan.on_features or plan.fitting) is not None and plan.spec.model.finetune == "head",
        batch_norm=any(isinstance(module, kinds) for module in model.modules()),
        early=bool(heads.early_names(model)),
        zeros=keeps and any(bool((layer.weight == 0).any()) for layer in layers),
    )


def _when(condition: Callable[[Spec, Facts], bool], reason: str) -> Why:
    return lambda spec, facts: reason if condition(spec, facts) else ""


def _one_of(section: str, field: str, *values: object) -> Why:
    """Return the reason for fields that are used only with some values of another one."""
    wanted = " or ".join(str(value) for value in values)

    def why(spec: Spec, facts: Facts) -> str:
        now = getattr(getattr(spec, section), field)
        return "" if now in values else f"{section}.{field} is {now}, and only {wanted} uses it"

    return why


def _on(section: str, field: str, what: str) -> Why:
    """Return the reason for fields of something that is switched off."""
    return _when(
        lambda spec, _: not getattr(getattr(spec, section), field), f"{section}.{field} is off: {what}"
    )


def _schedule(*names: str) -> Why:
    return _one_of("training", "schedule", *names)


def _optimizer(*names: str) -> Why:
    return _one_of("training", "optimizer", *names)


_NO_VALIDATION = _when(lambda _, f: not f.validation, "there is no validation split")
_NOT_CUDA = _when(lambda _, f: f.device != "cuda", "it is for CUDA, and this run is on another device")
_LABELS_DO_NOT_COUNT = _when(
    lambda s, _: bool(s.distill.teacher) and s.distill.weight == 1,
    "distill.weight is 1: training follows only the teacher, not the labels",
)
_HEAD_ONLY = _when(lambda s, _: s.model.finetune == "head", "only the head trains (model.finetune head)")
_FITTED = _when(
    lambda s, _: s.model.head == "fitted" and s.model.finetune == "head" and s.training.epochs == 1,
    "a solver fits the head, which is all that trains (--model.head gradient trains it by steps)",
)
_STEPS = (
    "optimizer",
    "lr",
    "batch_size",
    "accumulate",
    "schedule",
    "warmup_epochs",
    "weight_decay",
    "momentum",
    "ema",
    "clip_norm",
    "start_size",
    "head_lr",
    "bias_lr",
    "patience",
)
_CHANGES = tuple(f"augment.{field}" for field in flatten(AugmentSpec()))
_NO_EFFORT = _when(
    lambda s, _: s.model.head != "fitted",
    "it says how a network with weights is trained where optimizer, rate and epochs are left open and a solver can fit "
    "the head",
)
_ONE_MODEL = _when(
    lambda s, _: s.effort != "best" and not s.distill.teacher, "only effort best trains several models"
)
_NO_TEACHER = _when(lambda s, _: not s.distill.teacher, "there is no teacher (distill.teacher)")


def _moved(spec: AugmentSpec) -> bool:
    still = not (spec.rotation or spec.translate or spec.shear) and tuple(spec.scale or (1, 1)) == (1, 1)
    return not still


RULES: tuple[tuple[tuple[str, ...], Why], ...] = (
    (("training.patience", "training.best_metric", "training.plateau_patience"), _NO_VALIDATION),
    (("training.min_delta",), _NO_VALIDATION),
    (("training.min_delta",), _on("training", "patience", "there is no early stopping")),
    (("distill.members",), _ONE_MODEL),
    (("training.step_epochs",), _schedule("step")),
    (("training.milestones",), _schedule("multi-step")),
    (("training.plateau_patience",), _schedule("plateau")),
    (("training.gamma",), _schedule("step", "multi-step", "plateau")),
    (("training.min_lr_factor",), _schedule("linear", "cosine", "plateau")),
    (("training.focal_gamma",), _one_of("training", "loss", "focal")),
    (
        ("training.gamma_negative", "training.gamma_positive", "training.margin"),
        _one_of("training", "loss", "asymmetric"),
    ),
    (
        ("training.class_weight_limit",),
        _when(
            lambda s, _: s.training.loss not in ("bce", "asymmetric") or s.training.class_weights == "none",
            "it is for training.class_weights inverse and several labels",
        ),
    ),
    (
        ("training.label_smoothing",),
        _when(
            lambda s, _: ":" in s.training.loss,
            "the loss is one of your own, which has to handle that itself",
        ),
    ),
    (("training.effective_beta",), _one_of("training", "class_weights", "effective")),
    (("training.momentum",), _optimizer("sgd", "rmsprop", "muon", "muon-sgd")),
    (("training.sgd_momentum",), _optimizer("muon-sgd")),
    (("training.nesterov",), _optimizer("sgd", "muon", "muon-sgd")),
    (("training.betas",), _optimizer("adam", "adamw", "muon")),
    (
        ("training.early_epochs",),
        _when(
            lambda s, f: bool(s.training.early_epochs) and not f.early,
            "the network has no parameters that train only early",
        ),
    ),
    (("training.size_epochs",), _on("training", "start_size", "images have one size in all epochs")),
    (
        ("training.prune_from", "training.prune_until"),
        _on("training", "prune", "every epoch reads all images"),
    ),
    (("training.keep_zeros",), _when(lambda _, f: not f.zeros, "no weight is zero at the start")),
    (("training.sync_batch_norm",), _when(lambda _, f: f.processes == 1, "there is one process only")),
    (("training.sync_batch_norm",), _when(lambda _, f: not f.batch_norm, "the network has no batch norm")),
    (
        ("training.class_weights",),
        _when(
            lambda s, _: s.training.sampling != "shuffle" and s.training.class_weights != "none",
            "training.sampling shows every class equally often already, so all weights are the same",
        ),
    ),
    (
        ("training.class_weights",),
        _when(
            lambda s, f: len(set(f.counts)) == 1 and s.training.class_weights != "none",
            "all classes have the same number of training images",
        ),
    ),
    (
        ("training.label_smoothing", "training.class_weights", "training.loss", "training.focal_gamma"),
        _LABELS_DO_NOT_COUNT,
    ),
    (("distill.temperature", "distill.weight", "distill.features"), _NO_TEACHER),
    (
        ("distill.temperature",),
        _when(lambda s, _: bool(s.distill.teacher) and s.distill.weight == 0, "distill.weight is 0"),
    ),
    (("model.unfreeze",), _one_of("model", "finetune", "staged")),
    (("model.freeze_from",), _on("model", "freeze_blocks", "no block stops training")),
    (("model.freeze_blocks", "model.freeze_from", "model.layer_decay"), _HEAD_ONLY),
    (tuple(f"training.{field}" for field in _STEPS), _FITTED),
    (_CHANGES, _FITTED),
    (("effort",), _NO_EFFORT),
    (("model.norms",), _when(lambda _, f: not f.batch_norm, "the network has no batch norm")),
    (("augment.crop_padding",), _one_of("augment", "crop", "pad")),
    (("augment.crop_scale", "augment.crop_ratio"), _one_of("augment", "crop", "resized")),
    (
        ("augment.padding_mode",),
        _when(
            lambda s, _: s.augment.crop != "pad" and not _moved(s.augment),
            "no crop with padding, rotation, shift, zoom or shear shows a border",
        ),
    ),
    (("augment.hflip_mode",), _on("augment", "hflip", "no image is flipped")),
    (("augment.policy_ops", "augment.policy_magnitude"), _one_of("augment", "policy", "randaugment")),
    (("augment.saturation", "augment.hue"), _when(lambda _, f: f.channels == 1, "the images are grey")),
    (
        ("augment.saturation", "augment.hue"),
        _when(lambda _, f: f.channels not in (1, 3), "they are defined for red, green and blue only"),
    ),
    (("input.crop_fraction",), _one_of("input", "resize", "crop")),
    (("input.views_below",), _when(lambda s, _: s.input.views == "one", "input.views is one")),
    (
        ("speed.feature_views",),
        _when(
            lambda s, _: s.model.finetune not in ("head", "staged"),
            "no stage trains the head alone (model.finetune)",
        ),
    ),
    (
        ("speed.feature_views",),
        _when(
            lambda s, _: not features.changing(s.augment), "augmentation is off: all views would be the same"
        ),
    ),
    (("speed.feature_views",), _on("speed", "features", "features are not computed once")),
    (("speed.cuda_graphs", "speed.kernel_search"), _NOT_CUDA),
    (
        ("speed.compile", "speed.cuda_graphs"),
        _when(
            lambda _, f: f.on_features,
            "the head trains on features, which takes too little work for it to matter",
        ),
    ),
)
_SWITCHES = ("speed.cuda_graphs", "speed.kernel_search", "speed.compile")


def without_effect(names: Collection[str], spec: Spec, facts: Facts) -> list[str]:
    """Return a sentence for each option among ``names`` that does nothing; ``spec`` is the run's, resolved."""
    flat, found = flatten(spec), dict[str, list[str]]()
    preset = flatten(resolve_augment(AugmentSpec(preset=spec.augment.preset), spec.input.size))
    told: set[str] = set()
    for fields, why in RULES:
        for name in fields:
            section, _, field = name.partition(".")
            if name not in names or name in told:
                continue
            # a resolved spec contains values that nobody set
            if section == "augment" and flat[name] == preset[field]:
                continue
            if (name in _SWITCHES and flat[name] != "on") or (
                name == "input.crop_fraction" and flat[name] == 1
            ):
                continue
            if reason := why(spec, facts):
                told.add(name)
                found.setdefault(reason, []).append(name)
    return [_sentence(fields, reason) for reason, fields in found.items()]


def _sentence(names: list[str], reason: str) -> str:
    return f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} no effect: {reason}."


def never(spec: Spec, facts: Facts) -> list[str]:
    """Return a sentence for each event that a run's spec schedules after the run's end."""
    training, epochs = spec.training, spec.training.epochs
    found = []
    lasts = f"and the run has {epochs} epoch{'s' * (epochs != 1)}"
    drops = training.schedule in ("step", "multi-step", "plateau")
    if training.schedule == "plateau" and not facts.validation:
        found.append(
            "schedule plateau follows the validation loss, and there is no validation split: it never drops."
        )
    elif training.schedule == "plateau" and training.plateau_patience + 2 >= epochs:
        found.append(
            f"schedule plateau never drops: it waits for more than {training.plateau_patience} epochs without a better "
            f"validation loss (training.plateau_patience), {lasts}."
        )
    if training.schedule == "step" and training.step_epochs >= epochs:
        found.append(
            f"schedule step never drops: its first drop is after epoch {training.step_epochs} "
            f"(training.step_epochs), {lasts}."
        )
    late = [m for m in training.milestones if m >= epochs]
    if training.schedule == "multi-step" and not training.milestones:
        found.append("schedule multi-step never drops: training.milestones names no epoch.")
    elif training.schedule == "multi-step" and late:
        which = ", ".join(map(str, late))
        none = "never drops" if len(late) == len(training.milestones) else "drops less often than specified"
        found.append(f"schedule multi-step {none}: training.milestones has {which}, {lasts}.")
    if drops and training.gamma == 1:
        found.append(f"schedule {training.schedule} changes nothing: training.gamma is 1.")
    if facts.validation and training.patience and training.patience >= epochs - 1:
        found.append(f"Early stopping never happens: training.patience is {training.patience}, {lasts}.")
    thaws = [epoch for epoch in spec.model.unfreeze if epoch >= epochs]
    if spec.model.finetune == "staged" and thaws:
        found.append(f"model.unfreeze has {', '.join(map(str, thaws))}, {lasts}: these blocks never train.")
    return found
