"""The card: all that goes with a classifier's weights, as data that an artifact and every export carries.

Standard library only; knows nothing of the files that it is kept in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tellapart.contract.architecture import Architecture
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.views import Views

# 1: one view, no calibration; 2: views; 3: calibration. The lowest that says all is what is written.
FORMAT = 3


@dataclass(frozen=True)
class Card:
    """What the file says of itself: everything but the weights."""

    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    scores: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    views: Views = field(default_factory=Views)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What training warned of."""

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax; 1 without a calibration (Guo et al. 2017)."""
        return float(self.calibration.get("temperature", 1.0))

    def to_json(self) -> str:
        """Return the card as JSON text."""
        content = {
            "format": FORMAT if self.calibration else 2 if self.views.count > 1 else 1,
            "architecture": self.architecture.to_dict(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "scores": dict(self.scores),
            "weights": dict(self.weights),
            "versions": dict(self.versions),
            "views": self.views.to_dict(),
            "calibration": dict(self.calibration),
        }
        if self.warnings:
            content["warnings"] = [text.encode(errors="replace").decode() for text in self.warnings]
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read ``to_json``'s text. Raises KeyError, TypeError or ValueError where it is something else."""
        content = json.loads(text)
        if content["format"] > FORMAT:
            raise ValueError(f"format {content['format']} is newer than this program's {FORMAT}")
        return cls(
            architecture=Architecture.from_dict(content["architecture"]),
            classes=tuple(content["classes"]),
            preprocessing=Preprocessing.from_dict(content["preprocessing"]),
            scores=content.get("scores", {}),
            weights=content.get("weights", {}),
            versions=content.get("versions", {}),
            views=Views.from_dict(content.get("views", {})),
            calibration=content.get("calibration", {}),
            warnings=tuple(str(text) for text in content.get("warnings", ())),
        )
