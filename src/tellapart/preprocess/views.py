"""The average of a network's logits over several versions of each image, as `tellapart.contract.Views` says.

One piece of code for validation, evaluation and prediction. Knows nothing of networks but that they are callable.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tellapart.contract import Views

Network = Callable[[Tensor], Tensor]


def averaged(network: Network, images_NCHW: Tensor, views: Views, classes: int | None = None) -> Tensor:
    """Return the average of the logits over ``views``, float32 [B, K].

    ``images_NCHW``: float [B, C, H, W], normalised, in any memory order; ``network`` takes such images to logits
    [B, K]. Views are computed one after the other, so memory stays that of one. Reflection needs images of at
    least 2 pixels. ``classes``: how many of the columns are logits, if the network returns others behind them, such as
    features; those are averaged too.
    """
    logits = network(images_NCHW).float()
    if views.count == 1 or not len(logits):
        return logits
    first = logits[:, :classes]
    if views.below >= 1 or first.shape[1] < 2:
        return with_others(network, images_NCHW, views, logits)
    best = first.softmax(1).topk(2).values
    doubtful = (best[:, 0] - best[:, 1] < views.below).nonzero()[:, 0]
    if len(doubtful):
        chosen = images_NCHW[doubtful].contiguous(memory_format=_order(images_NCHW))
        logits = logits.index_copy(0, doubtful, with_others(network, chosen, views, logits[doubtful]))
    return logits


def _order(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def with_others(network: Network, images: Tensor, views: Views, first: Tensor) -> Tensor:
    """Return the average over all views, of which ``first``, float32 [B, K], are the logits of the image as it is."""
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
