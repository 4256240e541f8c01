"""Running metrics of an epoch and since the last logged line: sums of the loss, the task's metrics, images.

On the CPU they are plain numbers; on other devices they stay there until they are read, and on CUDA they are copied
while the steps continue, so that no step waits for the device. Knows nothing of what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Sums = list[float]


@dataclass(frozen=True)
class Reading:
    """Sums as they were at a step, float64 [2 * n + 1]: n of the epoch, n of the window, and the gradient's norm.

    ``done`` is the event of their arrival; None: they have arrived.
    """

    values: torch.Tensor
    done: torch.cuda.Event | None = None

    @property
    def ready(self) -> bool:
        """Whether `read` does not have to wait."""
        return self.done is None or bool(self.done.query())

    def read(self) -> tuple[Sums, Sums, float]:
        """Return the sums of the epoch and of the window, and the gradient's norm, NaN if there is none."""
        if self.done is not None:
            self.done.synchronize()
        values = self.values.tolist()
        n = len(values) // 2
        return values[:n], values[n:-1], values[-1]


class RunningMetrics:
    """Sums of (loss, each of the named metrics, images): ``epoch`` and ``window``, which ``read`` returns as lists.

    ``epoch``, ``window``: initial values; empty: zeros.
    """

    def __init__(
        self,
        device: torch.device,
        names: Sequence[str],
        epoch: Sequence[float] = (),
        window: Sequence[float] = (),
    ) -> None:
        self._device, self.names = device, tuple(names)
        self._on_cpu = device.type == "cpu"
        self._zeros = [0.0] * (len(self.names) + 2)
        self._lists = [list(epoch or self._zeros), list(window or self._zeros)]
        if not self._on_cpu:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._tensor = torch.tensor(self._lists, dtype=dtype).to(device)

    def add(self, loss: torch.Tensor, metrics: Mapping[str, torch.Tensor], seen: int) -> bool:
        """Add a step's sums, scalars and a count; return False if the loss is known not to be finite."""
        if not self._on_cpu:
            step = torch.stack([loss, *(metrics[name] for name in self.names), loss.new_full((), seen)])
            self._tensor += step.to(self._tensor.dtype)
            return True
        values = [loss.item(), *(metrics[name].item() for name in self.names), seen]
        for sums in self._lists:
            for place, value in enumerate(values):
                sums[place] += value
        return math.isfinite(values[0])

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the means over the images that ``sums`` count, by name: the loss, then the metrics."""
        *totals, seen = sums
        return {name: total / max(seen, 1) for name, total in zip(("loss", *self.names), totals, strict=True)}

    def ask(
        self, norm: torch.Tensor | None, total: Callable[[torch.Tensor], object] | None = None
    ) -> Reading:
        """Begin to read the sums as they are now, and a gradient's norm, a scalar on the device or None.

        ``total``: a function that adds up a tensor over all processes, in place; it is called on the sums in each
        process.
        """
        if self._on_cpu:
            measured = math.nan if norm is None else float(norm)
            values = torch.tensor([*self._lists[0], *self._lists[1], measured], dtype=torch.float64)
            if total is not None:
                total(values[:-1])
            return Reading(values)
        last = (
            self._tensor.new_full((1,), math.nan) if norm is None else norm.detach().to(self._tensor).view(1)
        )
        values = torch.cat([self._tensor.flatten(), last])
        if total is not None:
            total(values[:-1])
        if self._device.type != "cuda":
            return Reading(values.cpu())
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        return Reading(host, torch.cuda.current_stream(self._device).record_event())

    def read(self) -> tuple[Sums, Sums]:
        """Return the sums of the epoch and of the window (waits for the device)."""
        epoch, window = self._lists if self._on_cpu else self._tensor.tolist()
        return list(epoch), list(window)

    def clear_window(self) -> None:
        """Begin a new window."""
        self._lists[1] = list(self._zeros)
        if not self._on_cpu:
            self._tensor[1] = 0
