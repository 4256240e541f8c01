"""The network, compiled by torch.compile or replayed as CUDA graphs; as it is, with a message, where that fails.

Knows nothing of when either pays: see ``probe`` and ``spec.SpeedSpec``.
"""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable
from typing import Any

import torch

from tellapart import packages

# torch leaves half of a library in its cache where it is killed while compiling, and fails to load it ever after.
_HINT = (
    "(If a run was killed while compiling, delete torch's cache of compiled code: TORCHINDUCTOR_CACHE_DIR, or "
    "torchinductor_USER in the temporary folder.)"
)
_COMPILERS = ("g++", "clang++", "c++")
Warn = Callable[[str], None]


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile has what it needs here: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cuda":
        return packages.installed("triton")
    names = (os.environ["CXX"].split()[0],) if os.environ.get("CXX", "").strip() else _COMPILERS
    return device.type == "cpu" and any(shutil.which(name) for name in names)


class Compiled(torch.nn.Module):
    """``model`` through torch.compile; where the compiler fails, the model itself from then on.

    Each shape of the input is compiled for itself: an epoch has two (its last batch may be smaller), and code for
    any shape is slower.
    """

    def __init__(self, model: torch.nn.Module, warn: Warn) -> None:
        super().__init__()
        self.model, self._warn = model, warn
        self._call: Callable[..., Any] = torch.compile(model, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's logits."""
        try:
            return typing.cast(torch.Tensor, self._call(images))
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._call is self.model:
                raise
            first = str(error).strip().partition("\n")[0]
            self._warn(f"torch.compile failed, so the network is not compiled: {first} {_HINT}")
        self._call = self.model
        return typing.cast(torch.Tensor, self.model(images))


class _Shell(torch.nn.Module):
    """Something for make_graphed_callables to change: it replaces the ``forward`` of what it is given."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(images)


class Graphed(torch.nn.Module):
    """``model`` whose forward and backward pass over a whole batch are replayed as CUDA graphs.

    Recorded at the first whole batch of ``batch_size`` images of each size; other batches (an epoch's last) and
    evaluation are computed as usual. Only for steps in one part: a replay writes the gradients to the same memory, so a
    second part in the same step would overwrite what the first one left. Where recording fails, everything is
    computed as usual.
    """

    def __init__(self, model: torch.nn.Module, batch_size: int, warn: Warn) -> None:
        super().__init__()
        self.model, self._batch_size, self._warn = model, batch_size, warn
        self._replays: dict[tuple[Any, ...], Callable[[torch.Tensor], Any]] = {}  # by shape, type and strides
        self._failed = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's logits."""
        whole = len(images) == self._batch_size and self.model.training and torch.is_grad_enabled()
        like = (images.shape, images.dtype, images.stride())
        if whole and like not in self._replays and not self._failed:
            self._record(images, like)
        logits: torch.Tensor = (self._replays.get(like, self.model) if whole else self.model)(images)
        return logits

    def _record(self, images: torch.Tensor, like: tuple[Any, ...]) -> None:
        """Record the graphs; the passes that this takes leave nothing behind in the model's buffers."""
        buffers = list(self.model.buffers())
        kept = [buffer.clone() for buffer in buffers]
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        try:
            # A cast weight in autocast's cache would be outside of the graph.
            with torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
                example = torch.empty_like(images).copy_(images)
                self._replays[like] = torch.cuda.make_graphed_callables(_Shell(self.model), (example,))
        except RuntimeError as error:
            self._failed = True
            first = str(error).strip().partition("\n")[0]
            self._warn(f"CUDA graphs could not be recorded, so the network runs without: {first}")
        if buffers:
            torch._foreach_copy_(buffers, kept)
