"""Muon for matrices whose norm is kept constant, and Nesterov SGD for everything else, as one optimizer.

Knows nothing of schedules, losses or which parameters belong where: groups say that.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# A quintic that, applied repeatedly, takes every singular value in (0, 1] to about 1 (0.7 to 1.2): the steepest at 0
# of those that stay bounded, so few rounds suffice (Jordan 2024, https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


def orthogonalise(matrices: Tensor, rounds: int = ROUNDS, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return float ``[..., m, n]`` matrices with their singular values moved towards 1, vectors kept.

    A Newton-Schulz iteration: with X of Frobenius norm 1, X <- aX + b(XX')X + c(XX')^2 X for each of ``rounds``,
    computed in ``dtype`` over the shorter side. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    x = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices.unsqueeze(0)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    norm = torch.linalg.matrix_norm(x.float(), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    x = (x / norm).to(dtype)
    for _ in range(rounds):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype).reshape(matrices.shape)


class MuonSgd(torch.optim.Optimizer):
    """The optimizer of cifar10-airbench's ``muon`` variant (Jordan 2024), over groups of parameters.

    In a group with ``muon`` True, each weight W [out, ...] is seen as a matrix [out, rest]. A step is: its
    momentum M <- momentum * M + gradient; W scaled to a norm of sqrt(out); W <- W - lr * orthogonalise(gradient +
    momentum * M) (of M alone without Nesterov). Since the norm is constant, weight decay has no effect here. In the
    other groups it is torch's SGD with its own momentum, Nesterov's too, and coupled weight decay: gradient +
    weight_decay * w. ``dtype`` is that of the iteration.

    Each group needs ``lr``, ``momentum``, ``nesterov``, ``weight_decay`` and ``muon``.
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the parameters' gradients; closures are not supported."""
        if closure is not None:
            raise ValueError("MuonSgd takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                move = self._muon if group["muon"] else self._sgd
                move(parameters, self._directions(parameters, group), group["lr"])

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the momentum, and return the direction of the step."""
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
        factors = list(torch._foreach_norm(parameters))
        torch._foreach_clamp_min_(factors, 1e-12)
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, [math.sqrt(len(p)) for p in parameters])
        torch._foreach_mul_(parameters, factors)
        # Matrices of one shape go through the iteration together. It does not depend on the order of columns, so
        # the rows are taken in memory order.
        places = [_as_it_lies(p, p).shape for p in parameters]
        for shape in dict.fromkeys(places):
            alike = [place for place, other in enumerate(places) if other == shape]
            rows = [_as_it_lies(parameters[place], directions[place]).flatten(1) for place in alike]
            updates = orthogonalise(torch.stack(rows), dtype=self.dtype)
            targets = [_as_it_lies(parameters[place], parameters[place]) for place in alike]
            torch._foreach_add_(targets, [u.view(shape) for u in updates], alpha=-lr)


def _as_it_lies(parameter: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` of a parameter's shape as a view whose last dimensions are the parameter's innermost ones."""
    last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return values.permute(0, 2, 3, 1) if last else values
