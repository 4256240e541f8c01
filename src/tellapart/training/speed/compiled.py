"""The network compiled by torch.compile, and steps replayed as CUDA graphs, each with a fallback if that fails.

Knows nothing of when either pays: see ``autotune`` and ``spec.SpeedSpec``.
"""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tellapart import packages
from tellapart.data.transfer import exclusive

# If torch is killed while compiling, it leaves a truncated library in its cache and can never load it again.
_HINT = (
    "(If a run was killed while compiling, delete torch's cache of compiled code: TORCHINDUCTOR_CACHE_DIR, or "
    "torchinductor_USER in the temporary folder.)"
)
_COMPILERS = ("g++", "clang++", "c++")
_WARM_UP = 3  # passes before a recording
Warn = Callable[[str], None]


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile has what it needs here: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cuda":
        return packages.installed("triton")
    names = (os.environ["CXX"].split()[0],) if os.environ.get("CXX", "").strip() else _COMPILERS
    return device.type == "cpu" and any(shutil.which(name) for name in names)


class Compiled(torch.nn.Module):
    """``model`` through torch.compile; if the compiler fails, the model itself from then on.

    Each input shape is compiled separately: an epoch has two (its last batch may be smaller), and code for
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


@dataclass(frozen=True)
class _Recording:
    """A recorded step: the tensors for its inputs and for its results."""

    graph: Any
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    gradients: tuple[torch.Tensor | None, ...]


Work = Callable[..., tuple[torch.Tensor, ...]]


class Graphs:
    """Records the computation of a step's gradients on CUDA, once for each input shape, and replays it.

    A replay costs the processor one call instead of one for each kernel, of which a small network has hundreds in a few
    milliseconds. Recorded are forward pass, loss and backward pass together, so that autograd does not run in a replay.
    The passes needed for recording leave the model's buffers unchanged. If recording fails, ``warn`` is called, and
    everything is computed as usual from then on.
    """

    def __init__(self, model: torch.nn.Module, warn: Warn) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._warn = warn
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._failed = False

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, work: Work, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what ``work(*inputs)`` returns, which computes gradients too; ``work`` must always be the same.

        inputs: on the device. The gradients of the parameters are left in ``grad``, which must be None before.
        """
        like = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs)
        if like not in self._recordings and not self._failed:
            self._record(like, work, inputs)
        recording = self._recordings.get(like)
        if recording is None:
            return work(*inputs)
        for place, tensor in zip(recording.inputs, inputs, strict=True):
            place.copy_(tensor)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return tuple(output.clone() for output in recording.outputs)

    def _record(self, like: tuple[Any, ...], work: Work, inputs: tuple[torch.Tensor, ...]) -> None:
        kept = [buffer.clone() for buffer in self._buffers]
        with exclusive():  # no other thread may use the device during a recording
            try:
                self._recordings[like] = self._recorded(work, inputs)
            except RuntimeError as error:
                self._failed = True
                first = str(error).strip().partition("\n")[0]
                self._warn(f"CUDA graphs could not be recorded, so steps run without: {first}")
            if kept:
                torch._foreach_copy_(self._buffers, kept)
        self._forget_gradients()

    def _recorded(self, work: Work, inputs: tuple[torch.Tensor, ...]) -> _Recording:
        places = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose and prepare their kernels in ordinary passes
            for _ in range(_WARM_UP):
                self._forget_gradients()
                work(*places)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(output.detach() for output in work(*places))
        return _Recording(graph, places, outputs, tuple(p.grad for p in self._parameters))

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
