"""Unstructured pruning as in the tutorials: single weights become zero, by magnitude, over all layers.

The network stays as large and, with the dense kernels of torch and of the runtimes that tellapart exports to, as slow
as before: a zero costs as much as any number. It only saves space in a compressed file. Structured pruning (`channels`)
makes a network faster.
"""

from __future__ import annotations

import copy
import zlib

import torch
from torch import nn
from torch.nn.utils import prune as pruning


def prune(model: nn.Module, amount: float) -> nn.Module:
    """Return a copy in which the share ``amount`` of the weights of convolutions and linear layers is zero.

    The smallest by magnitude over all layers (`torch.nn.utils.prune.global_unstructured`), made permanent.
    """
    sparse: nn.Module = copy.deepcopy(model)
    sparse.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    layers = [m for m in sparse.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = [(layer, "weight") for layer in layers]
    pruning.global_unstructured(weights, pruning_method=pruning.L1Unstructured, amount=amount)
    for layer, name in weights:
        pruning.remove(layer, name)
    return sparse


def zeros(model: nn.Module) -> float:
    """Return the share of the weights of convolutions and linear layers that is zero."""
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return float(sum((w == 0).sum() for w in weights)) / sum(w.numel() for w in weights)


def compressed_size(state: dict[str, torch.Tensor]) -> int:
    """Return the bytes of the weights after zlib, which shows what zeros save in a file."""
    content = b"".join(tensor.contiguous().cpu().numpy().tobytes() for tensor in state.values())
    return len(zlib.compress(content, 6))
