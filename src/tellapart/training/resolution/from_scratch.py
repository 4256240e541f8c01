"""The rules for small pictures without weights: which network learns from nothing, and with which settings.

The settings are those of the recipe cifar10-fast, which were made for 50,000 images in batches of 2,000, scaled to the
number of images. They belong together, so none is chosen where the optimizer or a rate was given. Knows nothing of when
it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tellapart.contract import sides
from tellapart.contract.sides import Size
from tellapart.devices import choose_device
from tellapart.doctor import host
from tellapart.spec import Spec
from tellapart.training.resolution import by_size
from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import DataFacts

Leaves = Callable[[str], bool]
"""Whether a field, by its dotted name, may still be chosen (`Resolution.leaves`)."""

SIDE = 96  # pictures up to this size are small
SMALL, WIDE = "whitened-cnn-small", "whitened-cnn"
MANY = 20_000  # from so many images on the wide network is worth its time, where the device is fast enough
GROWING_SIDE = 24  # pictures from this size on are smaller in the first epochs

# As in the recipe, for its number of images and its batch.
IMAGES, BATCH, EPOCHS = 50_000, 2000, 10
LR, BIAS_LR, HEAD_LR, WEIGHT_DECAY = 0.24, 106.0, 0.0204, 0.0167
EARLY, START = 0.3, 0.625  # fractions of the epochs, and of the size
BATCH_POWER, EPOCHS_POWER = 0.75, 0.35
LEAST_BATCH, MOST_EPOCHS = 16, 60
CACHED_BATCH = (
    512  # for processors: a larger one takes a quarter longer for each image, as its maps leave the caches
)

_RATES = (
    "optimizer",
    "lr",
    "bias_lr",
    "head_lr",
    "weight_decay",
    "momentum",
    "sgd_momentum",
    "nesterov",
    "betas",
)


def of_network(spec: Spec, data: DataFacts, leaves: Leaves) -> list[Choice]:
    """Choose a network with whitened patches for small pictures, if its settings may be chosen with it."""
    if obstacle(spec, data, leaves):
        return []
    if data.train >= MANY and _fast_half(spec.training.device):
        return [Choice("model.name", WIDE, f"small pictures, {data.train:,} to learn from", True)]
    why = "small pictures: it learns in few steps"
    if spec.model.weights == "auto" and by_size.few_for_scratch(data):
        why = by_size.MISSING
    return [Choice("model.name", SMALL, why, True)]


def obstacle(spec: Spec, data: DataFacts, leaves: Leaves) -> str:
    """Return why the network and its settings are not chosen; empty if they are."""
    model, training = spec.model, spec.training
    if (
        model.name != "auto"
        or model.weights not in ("auto", "none")
        or model.finetune not in ("auto", "full")
    ):
        return "the network, its weights or what trains was given"
    if model.weights == "auto" and by_size.few_for_scratch(data) and by_size.lite_installed():
        return "pretrained weights are better for so few"
    size = sides.longest(spec.input.size) if spec.input.size else data.seen.longest
    if max(size, data.seen.longest) > SIDE:
        return "the pictures are not small"
    channels = spec.input.channels or data.seen.bands or (1 if data.seen.grey else 3)
    if channels not in (1, 3):
        return "the pictures are neither grey nor in colour"
    if data.several or data.grades or training.loss not in ("auto", "cross-entropy"):
        return "its rates are for cross-entropy"
    if spec.distill.teacher:
        return "it would follow a teacher"
    given = any(not leaves(f"training.{name}") for name in _RATES)
    return "the optimizer, or a rate, was given" if given else ""


def of_training(spec: Spec, data: DataFacts, leaves: Leaves) -> list[Choice]:
    """Choose batch, rates, epochs and augmentation for the network of `of_network`.

    With fewer images the batch is smaller, but not in proportion, so that there are fewer steps in an epoch, and more
    epochs. The rates of SGD and the weight decay are proportional to the batch, Muon's is constant.
    """
    images, training = data.train, spec.training
    batch = training.batch_size or batch_for(images, BATCH if spec.model.name == WIDE else CACHED_BATCH)
    epochs = training.epochs or epochs_for(images)
    part = batch / BATCH
    to_batch, few = f"for a batch of {batch:,}", f"for {images:,} training images"
    chosen: dict[str, tuple[Any, str, bool]] = {
        "training.batch_size": (batch, few, True),
        "training.epochs": (epochs, few, True),
        "training.optimizer": ("muon-sgd", "with the network", True),
        "training.lr": (LR, "Muon's, for any batch", False),
        "training.bias_lr": (BIAS_LR * part, to_batch, False),
        "training.head_lr": (HEAD_LR * part, to_batch, False),
        "training.weight_decay": (WEIGHT_DECAY * part, to_batch, False),
        "training.momentum": (0.6, "with the optimizer", False),
        "training.sgd_momentum": (0.85, "with the optimizer", False),
        "training.nesterov": (True, "with the optimizer", False),
        "training.schedule": ("linear", "with the optimizer", False),
        "training.early_epochs": (max(1, round(EARLY * epochs)), "the first epochs of all", False),
        "training.label_smoothing": (0.2, "with the network", False),
        "training.accumulate": (1, "batch norms see the whole batch", False),
    }
    if start := start_size(spec.input.size):
        chosen["training.start_size"] = (start, "smaller pictures first", False)
        chosen["training.size_epochs"] = (0.75, "smaller pictures first", False)
    return [
        *(Choice(name, value, why, told) for name, (value, why, told) in chosen.items() if leaves(name)),
        *_augmentation(spec),
    ]


def _augmentation(spec: Spec) -> list[Choice]:
    """Small shifts and alternating flips, where the preset is left open; whether to flip at all is chosen elsewhere."""
    augment = spec.augment
    if augment.preset != "auto" or augment.transform:
        return []
    found = []
    if augment.hflip_mode is None:
        found.append(Choice("augment.hflip_mode", "alternating", "the other side in every other epoch"))
    if augment.crop is None and augment.crop_padding is None:
        short = sides.shortest(spec.input.size)
        found.append(Choice("augment.crop_padding", max(1, short // 16), "few epochs need small shifts"))
    return found


def batch_for(images: int, most: int = BATCH) -> int:
    """Return the batch size for so many images: 2,000 for 50,000, 352 for 5,000, 64 for 500; at most ``most``."""
    exact = BATCH * math.pow(images / IMAGES, BATCH_POWER)
    return max(LEAST_BATCH, min(most, round(exact / 8) * 8))


def epochs_for(images: int) -> int:
    """Return the epochs for so many images: 10 for 50,000, 22 for 5,000, 50 for 500."""
    return max(EPOCHS, min(MOST_EPOCHS, round(EPOCHS * math.pow(IMAGES / images, EPOCHS_POWER))))


def start_size(size: Size) -> int:
    """Return the short side of the pictures in the first epoch, a multiple of 4; 0: they do not grow."""
    short = sides.shortest(size)
    return 4 * round(START * short / 4) if short >= GROWING_SIDE else 0


def _fast_half(device: str) -> bool:
    """Return whether the device computes in half precision fast: a GPU, or a processor with instructions for it."""
    kind = choose_device(device).type if device == "auto" else device.partition(":")[0]
    return kind != "cpu" or bool(host.about_cpu([]).fast_bf16)
