"""Twenty settings of our own options as someone who knows them would choose by hand: see `defaults.py --settings`."""

from __future__ import annotations

LITE0 = ["--model.name", "timm/tf_efficientnet_lite0", "--model.weights", "efficientnet-lite0"]
HEAD = [*LITE0, "--model.finetune", "head", "--augment.preset", "none"]
FULL = [*LITE0, "--model.finetune", "full", "--training.optimizer", "adamw"]
STAGED = [*LITE0, "--model.finetune", "staged"]
FAST = ["--model.name", "fast-cnn", "--model.weights", "none"]
WHITE = ["--recipe", "cifar10-fast"]


def _lr(value: str) -> list[str]:
    return ["--training.lr", value]


def _size(value: str) -> list[str]:
    return ["--input.size", value]


def _augment(preset: str) -> list[str]:
    return ["--augment.preset", preset]


# Head on kept features, all layers, stages, from scratch; each at the sizes, rates and augmentation that suit it.
SETTINGS: dict[str, list[str]] = {
    "head, 128 px": [*HEAD, *_size("128"), *_lr("0.003")],
    "head, 192 px": [*HEAD, *_size("192"), *_lr("0.003")],
    "head, 224 px": [*HEAD, *_size("224"), *_lr("0.003")],
    "head, 288 px": [*HEAD, *_size("288"), *_lr("0.003")],
    "head, 224 px, lr 0.01": [*HEAD, *_size("224"), *_lr("0.01")],
    "head, 224 px, lr 0.001, decay 0.01": [
        *HEAD,
        *_size("224"),
        *_lr("0.001"),
        "--training.weight-decay",
        "0.01",
    ],
    "recipe transfer": ["--recipe", "transfer"],
    "all layers, 96 px, photo": [*FULL, *_size("96"), *_lr("0.001"), *_augment("photo")],
    "all layers, 128 px, light": [*FULL, *_size("128"), *_lr("0.001"), *_augment("light")],
    "all layers, 128 px, photo, lr 0.0003": [*FULL, *_size("128"), *_lr("0.0003"), *_augment("photo")],
    "all layers, 224 px, photo, lr 0.0003": [*FULL, *_size("224"), *_lr("0.0003"), *_augment("photo")],
    "all layers, 160 px, none": [*FULL, *_size("160"), *_lr("0.0005"), *_augment("none")],
    "all layers, 160 px, layer decay": [*FULL, *_size("160"), *_lr("0.001"), "--model.layer-decay", "0.8"],
    "all layers, 128 px, average of weights": [*FULL, *_size("128"), *_lr("0.001"), "--training.ema", "0.99"],
    "recipe staged": ["--recipe", "staged"],
    "stages, 160 px, light": [*STAGED, *_size("160"), *_augment("light")],
    "fast-cnn, cifar": [*FAST, *_augment("cifar")],
    "fast-cnn, light, lr 0.003": [*FAST, *_augment("light"), *_lr("0.003")],
    "recipe cifar10-fast": WHITE,
    "recipe cifar10-fast, batches of 128": [*WHITE, "--training.batch-size", "128"],
}
