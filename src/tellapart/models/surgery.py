"""Changes to a library's network after it is built: first layer, small stem, dropout, and a test run.

Works on any ``nn.Module`` by the paths of its parts. Knows nothing of names, weights or training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tellapart.contract.architecture import Architecture
from tellapart.contract.sides import shortest, words
from tellapart.errors import ModelError
from tellapart.models.small_cnn import initialise

TRIED_SIZES = (8, 16, 28, 32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 384, 448)
"""Sizes tried, in this order, to find the smallest that works, for the message."""
SEARCH_SECONDS = 4.0
"""How long that may take before the size that the network was made for is suggested instead."""
SIZE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError)
"""What networks raise, at building or at use, for an image size that they cannot take."""


@dataclass(frozen=True)
class SmallStem:
    """How a family's stem keeps the resolution of small images.

    The first convolution gets ``stride`` and, where it had more than ``kernel`` (0: whatever it has), a new
    kernel of that size; the modules at ``pools`` that exist are taken out.
    """

    stride: int = 1
    kernel: int = 0
    pools: tuple[str, ...] = ()
    extra: Callable[[nn.Module], None] | None = None
    """A further change that only this family needs."""
    arguments: tuple[tuple[str, int], ...] = ()
    """Arguments for the builder instead of surgery (patch and window sizes)."""


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``path`` inside ``model``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def exists(model: nn.Module, path: str) -> bool:
    """Return whether there is a module at the dotted ``path``."""
    return any(name == path for name, _ in model.named_modules())


def first_conv(model: nn.Module) -> str | None:
    """Return the path of the first convolution, in the order in which the modules were created."""
    paths: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return paths[0] if paths else None


def set_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution ``channels`` input channels, with Kaiming's initialisation."""
    path = first_conv(model)
    conv = model.get_submodule(path) if path else None
    if path is None or not isinstance(conv, nn.Conv2d):
        raise ModelError(f"{type(model).__name__} has no convolution, so its channels cannot be changed.")
    if conv.in_channels != channels:
        replace(model, path, _like(conv, channels, conv.kernel_size, conv.padding))


def _like(
    conv: nn.Conv2d, channels: int, kernel: tuple[int, ...], padding: str | tuple[int, ...]
) -> nn.Conv2d:
    """Return a new convolution like ``conv``, except for channels, kernel and padding."""
    fresh = type(conv)(
        channels,
        conv.out_channels,
        kernel,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        1,
        conv.bias is not None,
    )
    initialise(fresh)
    return fresh


def apply_small_stem(model: nn.Module, stem: SmallStem) -> None:
    """Change the first layers of ``model`` as ``stem`` says."""
    path = first_conv(model)
    conv = model.get_submodule(path) if path else None
    if path and isinstance(conv, nn.Conv2d) and not stem.arguments:
        if stem.kernel and conv.kernel_size[0] > stem.kernel:
            patches = conv.kernel_size == conv.stride  # patch embedding: no overlap, no padding
            padding = 0 if patches else stem.kernel // 2
            conv = _like(conv, conv.in_channels, (stem.kernel, stem.kernel), (padding, padding))
            replace(model, path, conv)
        conv.stride = (stem.stride, stem.stride)
    for pool in stem.pools:
        if exists(model, pool):
            replace(model, pool, nn.Identity())
    if stem.extra is not None:
        stem.extra(model)


class DropoutLinear(nn.Linear):
    """A linear layer with dropout before it, whose state dict is that of the linear layer alone."""

    def __init__(self, linear: nn.Linear, dropout: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.dropout = dropout
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[..., in_features]`` -> ``[..., out_features]``."""
        dropped = functional.dropout(features, self.dropout, self.training)
        return functional.linear(dropped, self.weight, self.bias)


def set_dropout(model: nn.Module, head: str, dropout: float) -> None:
    """Set every dropout that the network was built with; give the linear ``head`` one if it had none."""
    active = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for module in active:
        module.p = dropout
    linear = model.get_submodule(head)
    if dropout and not active and isinstance(linear, nn.Linear):
        replace(model, head, DropoutLinear(linear, dropout))


def check_forward(model: nn.Module, architecture: Architecture) -> None:
    """Send one black image through ``model``; raise ModelError if it does not return ``num_classes`` logits.

    Errors of the network itself (see :data:`SIZE_ERRORS`) pass through.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, architecture.channels, *architecture.sides, device=device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(image)
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, architecture.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{architecture.name} gives {shape} for one image, not {architecture.num_classes} logits: it is "
            "not a classifier."
        )


def build_checked(
    make: Callable[[Architecture], nn.Module], architecture: Architecture, made_for: int | None
) -> nn.Module:
    """Return ``make(architecture)`` after it has classified one image.

    Raises ModelError if the network cannot take this image size, naming the smallest of
    :data:`TRIED_SIZES` that works; the size it was ``made_for`` if that is not found quickly.
    """
    try:
        model = _quietly(make, architecture)
        check_forward(model, architecture)
    except SIZE_ERRORS as error:
        side = architecture.size
        works = _smallest(make, architecture) or made_for
        advice = f" It takes {works}x{works}: --input.size {works}." if works and works != side else ""
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{architecture.name} with the {architecture.stem} stem cannot take images of {words(side)} "
            f"pixels ({reason}).{advice}"
        ) from error
    return model


def _quietly(make: Callable[[Architecture], nn.Module], architecture: Architecture) -> nn.Module:
    with warnings.catch_warnings():  # images without a whole patch are refused right afterwards
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return make(architecture)


def _smallest(make: Callable[[Architecture], nn.Module], architecture: Architecture) -> int | None:
    """Search on meta tensors, which cost nothing; if a network does not support them, on real ones."""
    until = time.monotonic() + SEARCH_SECONDS
    larger = [size for size in TRIED_SIZES if size > shortest(architecture.size)]
    for device, size in [(device, size) for device in ("meta", "cpu") for size in larger]:
        if time.monotonic() > until:
            return None
        other = dataclasses.replace(architecture, size=size)
        with contextlib.suppress(*SIZE_ERRORS, ModelError), torch.device(device):
            check_forward(_quietly(make, other), other)
            return size
    return None
