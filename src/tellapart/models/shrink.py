"""Pruned networks as data: which layers are narrower than in the named network, and how to build them.

A pruned network is the named one in which some convolutions, linear layers and batch norms have fewer channels. Numbers
alone describe that (`contract.architecture.Pruned`), so a file with weights of those shapes can be read by every part
of the program. Knows nothing of how the channels were chosen.
"""

from __future__ import annotations

import torch
from torch import nn

from tellapart.contract.architecture import Architecture, Pruned
from tellapart.errors import ModelError
from tellapart.models import surgery

_Norm = nn.modules.batchnorm._BatchNorm


def sizes(module: nn.Module) -> tuple[int, ...] | None:
    """Return a layer's sizes as `Pruned` has them; None for modules that have none."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels, module.groups
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _Norm):
        return (module.num_features,)
    return None


def describe(whole: nn.Module, narrow: nn.Module) -> Pruned:
    """Return the sizes in which ``narrow`` differs from ``whole``, a network of the same modules.

    Sizes that agree are given as 0, so that the number of classes and of input channels stay the architecture's.
    Raises ModelError if anything but these sizes differs.
    """
    found = []
    modules = dict(narrow.named_modules())
    for path, module in whole.named_modules():
        ours, theirs = sizes(module), sizes(modules.pop(path)) if path in modules else None
        if ours is None or theirs is None or len(ours) != len(theirs):
            if ours != theirs:
                raise ModelError(f"The layer {path} is in one of the two networks only.")
        elif ours != theirs:
            pairs = zip(ours, theirs, strict=True)
            found.append((path, tuple(new if new != old else 0 for old, new in pairs)))
    if modules:
        raise ModelError(f"The layer {next(iter(modules))} is in one of the two networks only.")
    return tuple(found)


def apply(model: nn.Module, architecture: Architecture) -> nn.Module:
    """Cut the layers of ``model`` to the sizes of ``architecture.pruned``, and try it on one image; return it.

    The first channels of each layer are kept: the weights are loaded afterwards. Raises ModelError if the network does
    not have these layers or they do not fit together.
    """
    for path, wanted in architecture.pruned:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"{architecture.name} has no layer {path!r} that could be pruned.") from None
        own = sizes(module)
        if own is None or len(own) != len(wanted) or any(w > o for w, o in zip(wanted, own, strict=True)):
            raise ModelError(f"{architecture.name}: {path} cannot have the sizes {wanted}; it has {own}.")
        _cut(module, tuple(w or o for w, o in zip(wanted, own, strict=True)))
    try:
        surgery.check_forward(model, architecture)
    except surgery.SIZE_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"The pruned layers of this {architecture.name} do not fit together ({reason})."
        ) from error
    return model


def _cut(module: nn.Module, wanted: tuple[int, ...]) -> None:
    if isinstance(module, nn.Conv2d):
        outputs, inputs, groups = wanted
        module.out_channels, module.in_channels, module.groups = outputs, inputs, groups
        shape: tuple[int, ...] = (outputs, max(inputs // max(groups, 1), 1))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape = (wanted[0], wanted[1])
    else:
        assert isinstance(module, _Norm)
        module.num_features = wanted[0]
        shape = wanted
    for name, parameter in list(module.named_parameters(recurse=False)):
        kept = shape if parameter.ndim > 1 else shape[:1]
        setattr(module, name, nn.Parameter(_first(parameter, kept), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(module, name, _first(buffer, shape[:1]))


def _first(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return values.detach()[tuple(slice(0, size) for size in shape)].clone()
