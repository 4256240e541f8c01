"""The user's own networks: an ``nn.Module``, or a callable of the number of classes and of channels.

Knows nothing of where they are named; `tellapart.references` finds them.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from tellapart import references
from tellapart.contract.architecture import Architecture
from tellapart.errors import ModelError


def build(architecture: Architecture) -> nn.Module:
    """Return the network that an architecture names. Raises ArtifactError without consent, UserError, ModelError."""
    name = architecture.name
    for option in ("dropout", "drop_path", "batch_norm"):
        if getattr(architecture, option):
            raise ModelError(
                f"{name} is a network of your own, which model.{option} does not change; give it arguments instead: "
                "--model.arguments NAME=VALUE."
            )
    if architecture.stem == "small":
        raise ModelError(
            f"{name} is a network of your own; model.stem small is for timm's and torchvision's."
        )
    found = references.load(name, "model", f"A model of {name}")
    if isinstance(found, nn.Module):
        if architecture.arguments:
            raise ModelError(f"{name} is already a network, so it takes no model.arguments.")
        return copy.deepcopy(found)
    if not callable(found):
        raise ModelError(
            f"{name} is of type {type(found).__name__}; a network is made by a function or a class."
        )
    network = _called(found, architecture)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returned {type(network).__name__}; it must return a torch.nn.Module.")
    return network


def _called(factory: Any, architecture: Architecture) -> Any:
    """Call ``factory(num_classes, channels)``, by name where it has these names (``size`` too, if it takes it)."""
    values = {
        "num_classes": architecture.num_classes,
        "channels": architecture.channels,
        "size": architecture.size,
    }
    try:
        takes = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        takes = {}  # type: ignore[assignment]
    given, name = architecture.arguments, architecture.name
    own = references.keywords(given)
    if "num_classes" in takes:
        named = {key: value for key, value in values.items() if key in takes and key not in own}
        return references.called(factory, given, name, **named)
    return references.called(factory, given, name, architecture.num_classes, architecture.channels)


def check(network: nn.Module, architecture: Architecture) -> None:
    """Raise ModelError if a network does not turn images into logits of its classes."""
    shape = (2, architecture.channels, *architecture.sides)
    name, training = architecture.name, network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = references.called(network, (), name, torch.zeros(shape))
    except Exception as error:
        raise ModelError(f"Images, float32 {list(shape)}, do not go through the network: {error}") from error
    finally:
        network.train(training)
    wanted = (2, architecture.num_classes)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != wanted:
        got = f"shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"{name} gives {got} for images of {list(shape)}; it must give logits of {list(wanted)}: one for each of "
            f"the {architecture.num_classes} classes."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(f"{name} has no parameter that could be trained.")
