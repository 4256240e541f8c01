"""Structured pruning: whole channels go, and with them their work. Owner of torch-pruning.

Which layers depend on each other (a residual sum, a depthwise convolution, a norm) is found by tracing the network
(Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). Channels are removed in the order of how little the loss
would change without them, to first order: the product of weights and gradients (Molchanov et al. 2019, "Importance
Estimation for Neural Network Pruning"), ranked over all layers. Knows nothing of training afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tellapart import numerals, packages
from tellapart.errors import ModelError
from tellapart.models import heads

_KNOWN = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
# share of a layer's channels that stays: a layer that loses nearly all is a bottleneck for those that follow
_LEAST_LEFT = 0.125
_TRIALS = 7  # steps of the search for the share of channels that gives the desired cost


@dataclass(frozen=True)
class Cost:
    """What a network costs: weights, and floating-point operations of one image's forward pass."""

    parameters: int
    flops: int


def cost(model: nn.Module, example: Tensor) -> Cost:
    """Return a network's cost for an image like ``example``, float32 [1, C, H, W]."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    model.train(training)
    return Cost(sum(p.numel() for p in model.parameters()), int(counter.get_total_flops()))


def prune(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], ratio: float) -> nn.Module:
    """Return a copy of ``model`` without its least important channels, with ``ratio`` of its operations removed.

    Args:
        model: a network of convolutions, batch norms and linear layers.
        batches: training images as the network takes them, float32 [B, C, H, W], and labels, int64 [B].
        ratio: share of the floating-point operations to remove, above 0 and below 1.

    Channels are removed in multiples of eight if layers are wide enough, since processors compute that many at once.
    Raises ModelError for a network with other layers, or if that much cannot be removed.
    """
    tp = packages.require("torch_pruning", "compress", "Structured pruning")
    judged = copy.deepcopy(model).eval()
    _check(judged)
    example = _gradients(judged, batches)
    before = cost(judged, example).flops
    wanted = (1 - ratio) * before
    low, high = 0.0, 1 - _LEAST_LEFT
    narrow = _without(tp, judged, example, high)
    if cost(narrow, example).flops > wanted:
        raise ModelError(
            f"{numerals.percent(ratio, 0)} of the operations cannot be removed: "
            f"{numerals.percent(1 - cost(narrow, example).flops / before, 0)} is the most if each layer "
            "keeps an eighth of its channels. Give a smaller --ratio."
        )
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        tried = _without(tp, judged, example, middle)
        if cost(tried, example).flops <= wanted:
            narrow, high = tried, middle
        else:
            low = middle
    narrow.zero_grad(set_to_none=True)
    return narrow.train(model.training)


def _without(tp: Any, judged: nn.Module, example: Tensor, part: float) -> nn.Module:
    """Return a copy of a network with gradients, without the share ``part`` of all channels."""
    narrow = copy.deepcopy(judged)
    for ours, theirs in zip(narrow.parameters(), judged.parameters(), strict=True):
        ours.grad = theirs.grad  # which a copy leaves out
    ignored: list[Any] = [narrow.get_submodule(name) for name in heads.head_names(narrow)]
    ignored += [parameter for _, parameter in _loose(narrow)]
    with _scales_in_norms(narrow), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters")  # they are among the ignored
        graph = tp.DependencyGraph().build_dependency(narrow, example_inputs=example, ignored_params=ignored)
        judge = tp.importance.GroupTaylorImportance()
        groups = graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear])
        found = [(group[0].dep.target.module, group[0].dep.handler, judge(group)) for group in groups]
        level = torch.cat([scores for _, _, scores in found]).quantile(part)
        multiple = _multiple(narrow)
        for layer, handler, scores in found:
            gone = scores.argsort()[: _count(int((scores <= level).sum()), len(scores), multiple)]
            group = graph.get_pruning_group(layer, handler, gone.tolist())
            if len(gone) and graph.check_pruning_group(group):
                group.prune()
    return narrow


def _count(below: int, channels: int, multiple: int) -> int:
    """Return how many channels a layer loses of those ``below`` the level: what is left is a multiple, and enough."""
    left = max(channels - below, math.ceil(_LEAST_LEFT * channels))
    return max(channels - math.ceil(left / multiple) * multiple, 0)


def _multiple(model: nn.Module) -> int:
    """Return the number whose multiples channels are kept in: 8, or fewer if layers are too narrow for that."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    narrowest = min((conv.out_channels for conv in convs), default=8)
    return next(step for step in (8, 4, 2, 1) if narrowest >= 2 * step or step == 1)


def _check(model: nn.Module) -> None:
    """Refuse networks with layers whose channels cannot be described: see `models.shrink`."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups not in (1, module.in_channels):
            raise ModelError(f"{path} is a grouped convolution, whose channels cannot be removed one by one.")
        if isinstance(module, _KNOWN):
            continue
        matrices = any(p.ndim > 1 for p in module.parameters(recurse=False))
        if not (matrices or isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention))):
            continue
        what = type(module).__name__
        raise ModelError(
            f"{path or 'the network'} is a {what}: channels are removed only from networks of convolutions, batch "
            "norms and linear layers. Transformers: --method int8 or distill."
        )


def _loose(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return parameters that belong to no layer of a known kind (a whitening layer's bias): they stay as they are."""
    return [
        (f"{path}.{name}", parameter)
        for path, module in model.named_modules()
        if not isinstance(module, _KNOWN)
        for name, parameter in module.named_parameters(recurse=False)
    ]


def _gradients(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Add up the loss's gradients over the batches, with norms as they are; return one image."""
    example = None
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    for images, labels in batches:
        _loss(model(images), labels).backward()
        example = images[:1]
    if example is None:
        raise ValueError("There are no images from which to rank the channels.")
    return example


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the images' losses; ``labels``: int64 [b], or 0 and 1 [b, K] where they can be several."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1).sum()
    return F.cross_entropy(logits, labels, reduction="sum")


@contextlib.contextmanager
def _scales_in_norms(model: nn.Module) -> Iterator[None]:
    """Within this context, give norms without a scale one of 1: torch-pruning expects a scale."""
    bare = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight is None]
    for norm in bare:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))  # type: ignore[arg-type]
        norm.weight.grad = torch.zeros_like(norm.weight)
    try:
        yield
    finally:
        for norm in bare:
            norm.register_parameter("weight", None)
