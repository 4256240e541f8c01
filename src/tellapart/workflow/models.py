"""Models by name, and in other forms: listing, summary and loading."""

from __future__ import annotations

import os
from typing import Any

from tellapart import references, runtime
from tellapart.devices import choose_device
from tellapart.models import summary, zoo
from tellapart.models.zoo import ModelInfo
from tellapart.predict import Classifier
from tellapart.references import Trust


def load(
    path: str | os.PathLike[str], device: str = "cpu", trust: Trust = False, model: Any = None
) -> Classifier:
    """Open a model or an exported file: ``tellapart.load(path).predict(images)``. Raises ArtifactError, SpecError.

    ``trust``: True: open a ``.pt2`` or TorchScript file also where tellapart did not write it here: such files are
    programs. Names of packages: import these for an artifact whose network is not tellapart's (True: any). ``model``:
    that network itself, or what makes it.
    """
    chosen = device if runtime.is_export(path) else str(choose_device(device))
    return Classifier(runtime.open_backend(path, chosen, trust=trust, model=model))


def models(pattern: str = "") -> list[ModelInfo]:
    """Return the models whose names match."""
    return zoo.list_models(pattern)


def model_summary(name: str, size: int = 0, channels: int = 3, num_classes: int = 10) -> str:
    """Return a model's layers, shapes, parameters and FLOPs as text. Raises ModelError."""
    canonical = zoo.resolve(name)
    references.allow(name)  # who asks for it by name may have it
    side = size or zoo.default_size(canonical) or 32
    stem = zoo.choose_stem(canonical, side)
    architecture = zoo.Architecture(canonical, num_classes, channels=channels, size=side, stem=stem)
    return summary.render(summary.summarise(zoo.build(architecture), channels, side))
