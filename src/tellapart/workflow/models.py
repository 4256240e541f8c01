"""Models by name: listing, summary, and those that suit a data set."""

from __future__ import annotations

import os
from typing import Any, overload

from tellapart import references
from tellapart.errors import SpecError
from tellapart.models import zoo
from tellapart.models.summary import render, summarise
from tellapart.models.zoo import ModelInfo
from tellapart.spec import Spec
from tellapart.workflow.shortlist import Candidates, candidates


@overload
def models(
    pattern: str = "", *, size: int = 0, channels: int = 3, num_classes: int = 10
) -> list[ModelInfo]: ...


@overload
def models(
    pattern: str = "", *, summary: str, size: int = 0, channels: int = 3, num_classes: int = 10
) -> str: ...


@overload
def models(
    pattern: str = "",
    *,
    for_data: Any,
    time_limit: str | float = "",
    spec: Spec | str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Candidates: ...


def models(
    pattern: str = "",
    *,
    for_data: Any = None,
    time_limit: str | float = "",
    summary: str = "",
    size: int = 0,
    channels: int = 3,
    num_classes: int = 10,
    spec: Spec | str | os.PathLike[str] | None = None,
    **changes: Any,
) -> list[ModelInfo] | str | Candidates:
    """Return the models whose names match; or the summary of one model as text; or those that suit a data set.

    Args:
        pattern: part of a name, or a pattern such as ``resnet*``.
        for_data: a path, a name or objects, whose candidates are returned instead (`candidates` says how).
        time_limit: with ``for_data``: the time for a training, such as ``10m``, or seconds.
        summary: name of one model, whose layers, shapes, parameters and FLOPs are returned instead.
        size: of the summary: input size in pixels; 0: the model's own.
        channels: of the summary: input channels.
        num_classes: of the summary: classes.
        spec: with ``for_data``: options about the images, training and speed.
        changes: with ``for_data``: such options, as for ``train``.

    Raises ModelError, SpecError, DataError.
    """
    if for_data is not None:
        if summary:
            raise SpecError("summary and for_data cannot be combined: give one of them.")
        return candidates(for_data, pattern=pattern, time_limit=time_limit, spec=spec, **changes)
    if time_limit or changes or not (spec is None or spec == Spec()):
        given = "--time-limit" if time_limit else "Options about images and training"
        raise SpecError(f"{given} can only be given with --for DATA, whose candidates are measured.")
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
