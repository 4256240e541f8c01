"""Muon for matrices whose norm is held, and Nesterov SGD for everything else, as one optimizer.

Knows nothing of schedules, losses or which parameters belong where: groups say that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Quintic whose repeated use takes every singular value between 0 and 1 to about 1 (0.7 to 1.2): the steepest at 0
# of those that stay bounded, so few rounds suffice (Jordan 2024, https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


def orthogonalise(matrices: Tensor, rounds: int = ROUNDS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return float ``[..., m, n]`` matrices with their singular values moved towards 1, vectors kept.

    A Newton-Schulz iteration: with X of Frobenius norm 1, X <- aX + b(XX')X + c(XX')^2 X for each of ``rounds``,
    computed in ``dtype`` over the shorter side. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norm = torch.linalg.matrix_norm(x.float(), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    x = (x / norm).to(dtype)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


class MuonSgd(torch.optim.Optimizer):
    """The optimizer of cifar10-airbench's ``muon`` variant (Jordan 2024), over groups of parameters.

    In a group with ``muon`` True, each weight W [out, ...] is seen as a matrix [out, rest]. A step is: its
    momentum M <- momentum * M + gradient; W scaled to a norm of sqrt(out); W <- W - lr * orthogonalise(gradient +
    momentum * M) (of M alone without Nesterov). Since the norm is held, weight decay means nothing here. In the
    other groups it is torch's SGD with its own momentum, Nesterov's too, and coupled weight decay: gradient +
    weight_decay * w. ``dtype`` is that of the iteration.

    Each group needs ``lr``, ``momentum``, ``nesterov``, ``weight_decay`` and ``muon``.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that lie in the parameters; closures are not supported."""
        if closure is not None:
            raise ValueError("MuonSgd takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                move = self._muon if group["muon"] else self._sgd
                move(parameters, self._directions(parameters, group), group["lr"])

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Move the momentum on, and return where to go."""
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"] and not group["muon"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if not group["momentum"]:
            return gradients
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        if not group["nesterov"]:
            return buffers
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))

    def _sgd(self, parameters: list[Tensor], directions: list[Tensor], lr: float) -> None:
        torch._foreach_add_(parameters, directions, alpha=-lr)

    def _muon(self, parameters: list[Tensor], directions: list[Tensor], lr: float) -> None:
        norms = torch._foreach_norm(parameters)
        factors = [
            math.sqrt(len(p)) / norm.clamp(min=1e-12) for p, norm in zip(parameters, norms, strict=True)
        ]
        torch._foreach_mul_(parameters, factors)
        for parameter, direction in zip(parameters, directions, strict=True):
            # Which column is which does not matter, so the rows are taken as they lie in memory.
            last = (
                parameter.is_contiguous(memory_format=torch.channels_last) if parameter.ndim == 4 else False
            )
            rows = direction.permute(0, 2, 3, 1) if last else direction
            update = orthogonalise(rows.flatten(1), dtype=self.dtype).view(rows.shape)
            parameter.add_(update.permute(0, 3, 1, 2) if last else update, alpha=-lr)
