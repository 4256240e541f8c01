"""Running sums of an epoch and of the time since the last logged line: loss, right answers, images.

On the CPU they are plain numbers; on other devices they stay there until somebody asks, so that no step waits for
the device. Knows nothing of what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Sums = list[float]


class Tally:
    """Sums of (loss, right answers, images): ``epoch`` and ``window``, which ``read`` gives as float lists."""

    def __init__(self, device: torch.device, epoch: Sequence[float], window: Sequence[float]) -> None:
        self._on_cpu = device.type == "cpu"
        self._lists = [list(epoch), list(window)]
        if not self._on_cpu:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._tensor = torch.tensor(self._lists, dtype=dtype).to(device)

    def add(self, loss: torch.Tensor, right: torch.Tensor, seen: int) -> bool:
        """Add a step's sums, two scalars and a count; return False where the loss is known not to be finite."""
        if not self._on_cpu:
            step = torch.stack([loss, right, loss.new_full((), seen)])
            self._tensor += step.to(self._tensor.dtype)
            return True
        values = loss.item(), right.item(), seen
        for sums in self._lists:
            for place, value in enumerate(values):
                sums[place] += value
        return math.isfinite(values[0])

    def read(self) -> tuple[Sums, Sums]:
        """Return the sums of the epoch and of the window (waits for the device)."""
        epoch, window = self._lists if self._on_cpu else self._tensor.tolist()
        return list(epoch), list(window)

    def clear_window(self) -> None:
        """Begin a new window."""
        self._lists[1] = [0.0, 0.0, 0.0]
        if not self._on_cpu:
            self._tensor[1] = 0
