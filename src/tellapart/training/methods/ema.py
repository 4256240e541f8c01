"""EMA: an exponential moving average of a model's weights, for evaluation and for the final model.

Averaging of weights goes back to Polyak and Juditsky 1992; the decay's warm-up, ``min(decay, (1 + n) / (10 +
n))`` after n updates, is TensorFlow's, so that the random first weights are soon forgotten. Knows nothing of
optimizers or of where the model comes from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tellapart.errors import RunError


class Ema:
    """The average of a model's parameters and of its floating-point buffers.

    Running statistics of batch normalisation are averaged like the parameters: to first order the statistics
    of the averaged weights are the average of the statistics, while those of the last step belong to other
    weights. Counters and other integer buffers, and buffers that are not in a state dict, are constants or bookkeeping
    and are left out.

    Give the model itself, not its wrapper of DistributedDataParallel or ``torch.compile``. The average is on the
    model's device; it costs one more copy of the weights, and a second one during ``swapped_in``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        kept = model.state_dict().keys()
        self._keep = [name in kept and buffer.is_floating_point() for name, buffer in model.named_buffers()]
        names = [name for name, _ in model.named_parameters()]
        names += [name for (name, _), keep in zip(model.named_buffers(), self._keep, strict=True) if keep]
        copies = [tensor.detach().clone() for tensor in self._live(model)]
        self.averages: dict[str, torch.Tensor] = dict(zip(names, copies, strict=True))
        self._list = copies

    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights: once after each step of the optimizer."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._list:
            average = get_ema_multi_avg_fn(decay)
            average(self._list, self._live(model), None)
        self.updates += 1

    def restart(self, model: nn.Module) -> None:
        """Begin again at the model's weights, which were set otherwise than by a step of the optimizer."""
        _copy(self._list, self._live(model))
        self.updates = 0

    @contextlib.contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the ``with`` block, and its own back after it.

        Values are copied bit for bit; tensors stay the same objects at the same address, so that optimizers and
        compiled graphs are not affected. Changes made to the weights inside the block are lost.
        """
        live = self._live(model)
        own = [tensor.detach().clone() for tensor in live]
        _copy(live, self._list)
        try:
            yield
        finally:
            _copy(live, own)

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"updates": int, "averages": {name: tensor}}``; the tensors are not copies."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned; raises RunError if the model is a different one."""
        averages: dict[str, torch.Tensor] = state["averages"]
        theirs = {name: tensor.shape for name, tensor in averages.items()}
        ours = {name: tensor.shape for name, tensor in self.averages.items()}
        if theirs != ours:
            different = sorted(
                name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
            )
            raise RunError(
                f"The saved average of the weights belongs to another model; parameters that differ: "
                f"{', '.join(different[:3])}. Resume with the model that the run began with."
            )
        for name, tensor in self.averages.items():
            tensor.copy_(averages[name])
        self.updates = int(state["updates"])

    def _live(self, model: nn.Module) -> list[torch.Tensor]:
        """Return the model's own tensors in the order of the averages."""
        tensors: list[torch.Tensor] = list(model.parameters())
        buffers = zip(model.buffers(), self._keep, strict=True)
        tensors += [buffer for buffer, keep in buffers if keep]
        return tensors


@torch.no_grad()
def _copy(into: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for target, value in zip(into, values, strict=True):
        target.copy_(value)
