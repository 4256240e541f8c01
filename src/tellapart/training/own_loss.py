"""The user's own loss: it takes (logits, targets) and returns the loss of each image.

Knows nothing of tasks or steps.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tellapart import references
from tellapart.errors import SpecError

_IMAGES = 4  # size of the batch that a loss is tried on


class OwnLoss(nn.Module):
    """The loss that a spec names; its parameters, if it has any, are trained and saved with the task.

    weight: of each class, float32 [K], by which an image's loss is multiplied; None: all alike.
    """

    weight: torch.Tensor | None

    def __init__(self, name: str, arguments: Sequence[str], weight: torch.Tensor | None) -> None:
        super().__init__()
        found = references.load(name, "loss", f"A run with the loss {name}")
        if isinstance(found, type):  # such as torch.nn:CrossEntropyLoss
            found = references.called(found, arguments, name)
        elif isinstance(found, nn.Module):
            if arguments:
                raise SpecError(f"{name} is already an object, so it takes no training.loss_arguments.")
            found = copy.deepcopy(found)
        elif arguments:
            found = functools.partial(found, **references.keywords(arguments))
        if not callable(found):
            raise SpecError(f"{name} is of type {type(found).__name__}; a loss is a function or a class.")
        self.name, self.function = name, found
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return float32 [B]; see `tellapart.training.losses.build_loss`. Raises SpecError for another shape."""
        result: Any = self.function(logits.float(), targets)
        if not isinstance(result, torch.Tensor) or result.shape != logits.shape[:1]:
            raise SpecError(_wrong(self.name, result, len(logits)))
        losses = result.float()
        if self.weight is None:
            return losses
        soft = targets.is_floating_point()
        return losses * ((targets.float() * self.weight).sum(1) if soft else self.weight[targets])


def _wrong(name: str, result: Any, count: int) -> str:
    if isinstance(result, torch.Tensor) and result.numel() == 1:
        got = "one number for the whole batch, such as its mean"
    elif isinstance(result, torch.Tensor):
        got = f"a tensor of shape {list(result.shape)}"
    else:
        got = f"a {type(result).__name__}"
    return (
        f"The loss {name} returns {got}. It must return the loss of each image, a tensor of shape [{count}] for "
        f"{count} images: tellapart sums these over micro-batches and processes and divides by the whole batch, and "
        'uses them for class weights and pruning. Leave the mean out (losses of torch: reduction="none").'
    )


def try_out(loss: OwnLoss, classes: int, soft: bool) -> bool:
    """Try a loss on random logits, with mixed targets too if ``soft``; return whether each image's loss is its own.

    Raises SpecError if it cannot be used for training.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_IMAGES, classes, generator=generator)
    labels = torch.arange(_IMAGES) % classes
    tried = [("labels, int64 [B]", labels)]
    if soft:
        mixed = torch.rand(_IMAGES, classes, generator=generator)
        tried.append(("the targets of MixUp and CutMix, float32 [B, K]", mixed / mixed.sum(1, keepdim=True)))
    alone = True
    for what, targets in tried:
        given = logits.clone().requires_grad_()
        try:
            whole = loss(given, targets)
            part = loss(logits[:2], targets[:2])
        except SpecError:
            raise
        except Exception as error:
            raise SpecError(
                f"The loss {loss.name} cannot take {what}: {type(error).__name__}: {error}"
            ) from error
        if not whole.requires_grad:
            raise SpecError(f"The loss {loss.name} has no gradient: compute it from the logits with torch.")
        alone = alone and torch.allclose(whole[:2].detach(), part.detach(), rtol=1e-4, atol=1e-6)
    return alone
