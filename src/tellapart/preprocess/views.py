"""Views: several versions of each image whose logits are averaged; a property of the classifier, kept with it.

One piece of code for validation, evaluation and prediction. Knows nothing of networks but that they are callable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]
COUNTS = {"one": 1, "mirror": 2, "mirror-shift": 6}


@dataclass(frozen=True)
class Views:
    """Which views the logits of an image are averaged over.

    ``mirror``: the image and its mirror image, half each. ``mirror-shift`` (arXiv:2404.00498, section 3.4): both
    also moved by a pixel up and left, and down and right, the border filled by reflection; the two that are not
    moved count a quarter each, the four others an eighth.

    With ``below`` under 1 the other views are only computed for images whose first view leaves doubt: those where
    the most probable class leads the next by less than ``below`` in probability. The answer to an image is then
    either its first view's logits or the average; it does not depend on the other images.
    """

    name: Literal["one", "mirror", "mirror-shift"] = "one"
    below: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in COUNTS:
            raise ValueError(f"views is {self.name!r}; valid are {', '.join(COUNTS)}")
        if not 0 <= self.below <= 1:
            raise ValueError(f"views' below is {self.below}; it must be from 0 to 1")

    @property
    def count(self) -> int:
        """The largest number of views of an image."""
        return COUNTS[self.name] if self.below > 0 else 1

    def describe(self) -> str:
        """Return what is averaged, in a sentence; empty for one view."""
        if self.count == 1:
            return ""
        kinds = "mirrored" if self.name == "mirror" else "mirrored, and moved by a pixel two ways"
        text = f"The logits of {self.count} views of each image are averaged ({kinds})"
        if self.below < 1:
            text += f", where the first view's best class leads by less than {self.below:g} in probability"
        return text + "."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "below": self.below}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Views:
        """Return what `to_dict` wrote; no values mean one view."""
        return cls(**values)


def averaged(network: Network, images_NCHW: Tensor, views: Views) -> Tensor:
    """Return the average of the logits over ``views``, float32 [B, K].

    ``images_NCHW``: float [B, C, H, W], normalised, in any memory order; ``network`` takes such images to logits
    [B, K]. Views are computed one after the other, so memory stays that of one. Reflection needs images of at
    least 2 pixels.
    """
    logits = network(images_NCHW).float()
    if views.count == 1 or not len(logits):
        return logits
    if views.below >= 1 or logits.shape[1] < 2:
        return _others(network, images_NCHW, views, logits)
    best = logits.softmax(1).topk(2).values
    doubtful = (best[:, 0] - best[:, 1] < views.below).nonzero()[:, 0]
    if len(doubtful):
        chosen = images_NCHW[doubtful].contiguous(memory_format=_order(images_NCHW))
        logits = logits.index_copy(0, doubtful, _others(network, chosen, views, logits[doubtful]))
    return logits


def _order(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _others(network: Network, images: Tensor, views: Views, first: Tensor) -> Tensor:
    """Return the average over the views, of which ``first`` are the logits of the image as it is."""
    unmoved = (first + network(images.flip(3)).float()) / 2
    if views.name == "mirror":
        return unmoved
    (height, width), order = images.shape[2:], _order(images)
    border = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = torch.zeros_like(unmoved)
    for corner in (0, 2):
        shifted = border[:, :, corner : corner + height, corner : corner + width]
        shifted = shifted.contiguous(memory_format=order)
        moved += (network(shifted).float() + network(shifted.flip(3)).float()) / 4
    return (unmoved + moved) / 2
