"""Fine-tuning a pruned network without losing its zeros."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def hold_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep the weights of convolutions and linear layers that are zero now at zero after each step of the optimizer.

    Call it when the network has the weights that training starts from. The zeros of a checkpoint are the same, so a
    resumed run keeps them.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    kept: list[tuple[Tensor, Tensor]] = [
        (m.weight, (m.weight != 0).to(m.weight.dtype)) for m in layers if bool((m.weight == 0).any())
    ]

    def clear(*_: object) -> None:
        with torch.no_grad():
            for weight, mask in kept:
                weight.mul_(mask)

    optimizer.register_step_post_hook(clear)
