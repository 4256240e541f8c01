"""Objectives: what the loop minimises. Each turns a raw batch into model inputs, and those into losses.

The loop knows only ``prepare`` and ``__call__``; distillation, SimCLR or MoCo are further objectives with the
same two. Knows nothing of optimizers, epochs or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tellapart.augment import Augment, Params
from tellapart.data.loader import RawBatch, source_sizes

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """images: float32 [B, C, H, W]; targets: int64 [B] or soft float32 [B, K]; labels: int64 [B]."""

    images: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Batch:
        """Return samples ``start`` to ``stop``."""
        if start == 0 and stop >= len(self):
            return self
        return Batch(self.images[start:stop], self.targets[start:stop], self.labels[start:stop])


class Objective(Protocol):
    """batch -> loss and named values."""

    def prepare(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        """Return the model's inputs for a whole step, computed at most ``micro`` images at a time.

        Random numbers are drawn for the global batch, so that they do not depend on the number of processes.
        """
        ...

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each sample, float32 [b], and how many were right, a scalar."""
        ...


class Classification:
    """Classification with labels: augment, mix, and compare the logits with the targets."""

    def __init__(self, augment: Augment, loss: Loss) -> None:
        self.augment = augment
        self.loss = loss

    def prepare(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        """See Objective. MixUp and CutMix mix within one process's part of the batch."""
        images = self._inputs(batch, generator, micro)
        images, targets = self.augment.mix(images, batch.labels, generator)
        return Batch(images, targets, batch.labels)

    def _inputs(self, batch: RawBatch, generator: torch.Generator, micro: int) -> torch.Tensor:
        """Return the augmented images, float32 [B, C, H, W]."""
        if batch.window is not None and batch.within is not None and not self.augment.changes:
            return batch.window.part(batch.within, self._plain)
        sizes = source_sizes(batch) if self.augment.needs_large_source else None
        params = self.augment.draw(batch.count, sizes, generator, batch.epoch, batch.positions)
        first, count = batch.start, len(batch.labels)
        parts = []
        for start in range(0, count, micro):
            stop = min(start + micro, count)
            ours = slice(first + start, first + stop)
            local = None if batch.sizes is None else batch.sizes[ours]
            parts.append(self.augment.apply(batch.images[start:stop], local, params[ours]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        return self.augment.apply(images, None, Params(len(images)))

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Objective."""
        logits = model(batch.images)
        right = (logits.detach().argmax(1) == batch.labels).sum()
        return self.loss(logits, batch.targets), right
