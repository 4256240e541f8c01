"""Models by name: listing and summary."""

from __future__ import annotations

from typing import overload

from tellapart import references
from tellapart.models import zoo
from tellapart.models.summary import render, summarise
from tellapart.models.zoo import ModelInfo


@overload
def models(
    pattern: str = "", *, size: int = 0, channels: int = 3, num_classes: int = 10
) -> list[ModelInfo]: ...


@overload
def models(
    pattern: str = "", *, summary: str, size: int = 0, channels: int = 3, num_classes: int = 10
) -> str: ...


def models(
    pattern: str = "", *, summary: str = "", size: int = 0, channels: int = 3, num_classes: int = 10
) -> list[ModelInfo] | str:
    """Return the models whose names match; or the summary of one model as text.

    Args:
        pattern: part of a name, or a pattern such as ``resnet*``.
        summary: name of one model, whose layers, shapes, parameters and FLOPs are returned instead.
        size: of the summary: input size in pixels; 0: the model's own.
        channels: of the summary: input channels.
        num_classes: of the summary: classes.

    Raises ModelError.
    """
    if summary:
        return model_summary(summary, size, channels, num_classes)
    return zoo.list_models(pattern)


def model_summary(name: str, size: int = 0, channels: int = 3, num_classes: int = 10) -> str:
    """Return a model's layers, shapes, parameters and FLOPs as text. Raises ModelError."""
    canonical = zoo.resolve(name)
    references.allow(name)  # hidden from the list, but available by name
    side = size or zoo.default_size(canonical) or 32
    stem = zoo.choose_stem(canonical, side)
    architecture = zoo.Architecture(canonical, num_classes, channels=channels, size=side, stem=stem)
    return render(summarise(zoo.build(architecture), channels, side))
