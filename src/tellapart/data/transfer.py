"""From the processor's memory to a GPU's: copies that overlap with computation, and images that stay there.

On the CPU nothing is copied. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from typing import Any, TypeVar

import torch

from tellapart.preprocess import Images, as_tensor

Batch = TypeVar("Batch", bound=Any)
_device = threading.Lock()  # held by a thread that reads ahead while it uses a GPU
RESIDENT_SHARE = 0.4  # of the free memory of a GPU that images may occupy permanently


def exclusive() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which no thread that reads ahead uses a GPU: a CUDA graph is recorded in it."""
    return _device


class Transfer:
    """Copies batches (dataclasses with ``images`` and ``labels``) to ``device``.

    `begin` is called by the thread that reads ahead: it pins the batch and starts its copy on a stream of its own.
    `end` is called by the thread that computes: from there on its stream waits for the copy (the processor does
    not), and the memory is not reused before the computation is done with it.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.needed = device is not None and device.type != "cpu"
        self._stream: Any = None
        self._copies: collections.deque[Any] = (
            collections.deque()
        )  # events at their ends, in the order of batches
        if device is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> Batch:
        """Return the batch with its copy under way."""
        if not self.needed or self.device is None:
            return batch
        if self._stream is None:
            return self._copied(batch, False)
        if batch.images.device.type == "cuda":  # gathered there, on the default stream like all computation
            moved = self._copied(batch, True)
            self._copies.append(torch.cuda.current_stream(self.device).record_event())
            return moved
        with torch.cuda.stream(self._stream):
            moved = self._copied(batch, True)
            self._copies.append(self._stream.record_event())
            return moved

    def _copied(self, batch: Batch, pin: bool) -> Batch:
        moved = {name: self._move(getattr(batch, name), pin) for name in ("images", "labels")}
        return dataclasses.replace(batch, **moved)

    def _move(self, tensor: Images, pin: bool) -> torch.Tensor:
        tensor = as_tensor(tensor)
        if pin and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def end(self, batch: Batch) -> Batch:
        """Return the batch for use on the current stream."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._copies.popleft())
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(current)
        return batch


def resident_limit(device: torch.device) -> int:
    """Return how many bytes of images may stay on ``device``: 0 if it is not a CUDA device."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(RESIDENT_SHARE * free)
