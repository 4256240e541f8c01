"""Which parts of a network train: its head, its blocks from the head down to the stem, and their modes.

A *block* is a list of parameter names; block 0 is the classifier's last layer, the last block the stem. Works for
tellapart's networks, timm's (which define how their parameters are grouped) and torchvision's (in the order of their
modules). Knows nothing of optimizers or of the loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import nn

from tellapart import packages

MOST_STAGES = 6
"""Staged fine-tuning frees the blocks in at most this many steps, the head's own included."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the module paths of the layers that give the logits (more than one for distilled networks)."""
    declared = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if declared:
        names = (declared,) if isinstance(declared, str) else tuple(declared)
        known = dict(model.named_modules())
        if all(name in known for name in names):
            return names
    paths: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:  # SqueezeNet ends in a convolution
        paths = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return (paths[-1],) if paths else ()


def is_inside(name: str, prefixes: Sequence[str]) -> bool:
    """Return whether the parameter ``name`` belongs to one of the modules at ``prefixes``."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def blocks(model: nn.Module) -> list[list[str]]:
    """Return the parameter names of each block, from the head (index 0) down to the stem.

    Every parameter is in exactly one block. A norm belongs to the block before it.
    """
    heads = head_names(model)
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if is_inside(name, heads)]
    rest = [name for name in names if not is_inside(name, heads)]
    groups = _timm_groups(model) if hasattr(model, "group_matcher") else None
    if groups is None:
        groups = [list(_inside(rest, unit)) for unit in _units(model)]
    groups = _merge_norms(model, groups)
    left = set(rest)
    ordered: list[list[str]] = []
    for group in groups:
        members = [name for name in group if name in left]
        left.difference_update(members)
        if members:
            ordered.append(members)
    loose = [name for name in rest if name in left]  # tokens and position embeddings: part of the stem
    if loose and ordered:
        ordered[0] = loose + ordered[0]
    elif loose:
        ordered = [loose]
    return ([head] if head else []) + ordered[::-1]


def _inside(names: Sequence[str], unit: str) -> Iterator[str]:
    return (name for name in names if is_inside(name, (unit,)))


def _timm_groups(model: nn.Module) -> list[list[str]] | None:
    """Return timm's own groups of parameter names, stem first; None if the network has none."""
    timm_models = packages.require("timm.models", "models", "This model")
    try:
        matcher = model.group_matcher(coarse=False)  # type: ignore[operator]
        grouped = timm_models.group_parameters(model, matcher)
    except (AssertionError, NotImplementedError, AttributeError, TypeError):
        return None
    return [list(grouped[key]) for key in sorted(grouped)]


def _units(model: nn.Module) -> list[str]:
    """Return the paths of the modules that are one block each, in the order of their creation."""
    total = sum(parameter.numel() for parameter in model.parameters())
    found: list[str] = []
    for name, child in model.named_children():
        size = sum(parameter.numel() for parameter in child.parameters())
        # An encoder that contains most of the network is divided like a plain container.
        wrapper = size > total / 2 and any(type(inner) in _CONTAINERS for inner in child.children())
        found += _open(name, child) if wrapper or type(child) in _CONTAINERS else [name]
    return found


def _open(path: str, module: nn.Module) -> list[str]:
    found: list[str] = []
    for name, child in module.named_children():
        inner = f"{path}.{name}"
        found += _open(inner, child) if type(child) in _CONTAINERS else [inner]
    return found


def _merge_norms(model: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Join a group of vectors only (norms, scales) to the one before it."""
    parameters = dict(model.named_parameters())
    merged: list[list[str]] = []
    for group in groups:
        if merged and all(parameters[name].ndim <= 1 for name in group):
            merged[-1] += group
        elif group:
            merged.append(list(group))
    return merged


def early_names(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters that the network says need only the first epochs (``early_parameters()``)."""
    named = getattr(model, "early_parameters", None)
    return tuple(named()) if callable(named) else ()


def set_trainable(
    model: nn.Module, blocks: Sequence[Sequence[str]], depth: int, frozen: Sequence[str] = ()
) -> None:
    """Let ``blocks[:depth]`` train, except ``frozen``; every other parameter gets ``requires_grad=False``.

    Its gradient is removed too, so that no optimizer updates it. Blocks contain names of parameters or of modules.
    """
    wanted = [name for block in blocks[:depth] for name in block]
    exact = set(wanted)
    for name, parameter in model.named_parameters():
        trains = (name in exact or is_inside(name, wanted)) and not is_inside(name, frozen)
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


def train_mode(model: nn.Module, keep_norms: bool = False) -> None:
    """Put the network in training mode, but leave its frozen parts in evaluation mode.

    Frozen is a module whose parameters all have ``requires_grad=False``: its batch norms keep their
    statistics and its dropouts are off. A module without parameters follows its neighbours: a norm (it has
    buffers) the one before it, any other (dropout, stochastic depth) the one after it. ``keep_norms``: batch norms use
    their running statistics and keep them; their weights train all the same.
    """
    if _trains(model) is False:
        model.eval()
        return
    model.train()
    _settle(model)
    if keep_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _trains(module: nn.Module) -> bool | None:
    """Return whether any parameter inside trains; None if there are no parameters."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return any(flags) if flags else None


def _settle(module: nn.Module) -> None:
    children = list(module.children())
    flags = [_trains(child) for child in children]
    for index, child in enumerate(children):
        flag = flags[index]
        if flag is None:
            before = [f for f in flags[:index] if f is not None][-1:]
            after = [f for f in flags[index + 1 :] if f is not None][:1]
            near = before + after if any(True for _ in child.buffers()) else after + before
            flag = near[0] if near else True
        if flag:
            _settle(child)
        else:
            child.eval()


def staged_depth(epoch: float, epochs: int, unfreeze: Sequence[int], n_blocks: int) -> int:
    """Return how many blocks train in ``epoch`` (counted from 0) of staged fine-tuning.

    The blocks are taken in at most :data:`MOST_STAGES` stages: the head alone, then equal parts of the
    rest, from the head down. Each epoch listed in ``unfreeze`` frees one more stage from that epoch on;
    stages that are never reached stay frozen. If nothing is listed, the stages are spread evenly over the first half,
    so that from epoch ``epochs // 2`` (at least 1) on all blocks train. A pure function.
    """
    if n_blocks <= 1:
        return n_blocks
    stages = min(MOST_STAGES, n_blocks)
    half = max(1, epochs // 2)
    starts = list(unfreeze) or [max(1, math.ceil(stage * half / (stages - 1))) for stage in range(1, stages)]
    reached = min(sum(start <= epoch for start in starts), stages - 1)
    return 1 + math.ceil((n_blocks - 1) * reached / (stages - 1))
