"""Quantisation-aware training: the network computes with rounded weights and activations, and trains in float.

What an INT8 runtime does to a convolution or a linear layer is done to it here in float: the weights are rounded to 8
signed bits with one scale for each output channel, the layer's input to 8 unsigned bits over a range that was measured
on training images. Gradients pass the rounding as if it were not there (Bengio et al. 2013, "Estimating or Propagating
Gradients Through Stochastic Neurons", the straight-through estimator; Jacob et al. 2018, "Quantization and Training of
Neural Networks"). A symmetric rounding by channel is the same before and after a batch norm is folded into the weights,
so norms train as they always do.

The rounding is done by hooks and has no state of its own: ranges are a function of the weights that training starts
with and of the images that the seed selects. So the state dict, the artifact, checkpoints and exact resuming are those
of any training, and the INT8 file is made from the artifact by the same static quantisation as from any other. Knows
nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import SpecError
from tellapart.spec import Spec

IMAGES = 128  # training images that the ranges are measured on
_PART = 32


def check(spec: Spec) -> None:
    """Refuse options that cannot be combined with rounding. Raises SpecError."""
    if spec.training.quantize == "none":
        return
    if spec.model.weights == "none":
        raise SpecError(
            "training.quantize fine-tunes a trained network; give --model.weights (a file or a run)."
        )
    if "on" in (spec.speed.compile, spec.speed.cuda_graphs):
        raise SpecError(
            "training.quantize rounds inside the network, which speed.compile and speed.cuda_graphs do not see; "
            "switch them off."
        )


def install(model: nn.Module, images: Tensor) -> None:
    """Let every convolution and linear layer of ``model`` compute with rounded weights and inputs from now on.

    ``images``: float32 [N, C, height, width], normalised, on which the range of each layer's input is measured.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer, (low, high) in zip(layers, _ranges(model, layers, images), strict=True):
        layer.register_forward_pre_hook(_before(*grid(low, high)))
        layer.register_forward_hook(_after, always_call=True)


def grid(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of 8 unsigned bits for a range, widened to include 0, which is then exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-8)
    return scale, min(max(round(-low / scale), 0), 255)


def rounded_weight(weight: Tensor) -> Tensor:
    """Return weights [O, ...] rounded to 8 signed bits, symmetric, by output channel; gradients pass unchanged."""
    largest = weight.detach().flatten(1).abs().amax(1).float()
    scale = (largest / 127).clamp(min=1e-8)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -127, 127)


def rounded_input(values: Tensor, scale: float, zero: int) -> Tensor:
    """Return values rounded to 8 unsigned bits of the grid, clipped to its range."""
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255)
    return rounded.to(values.dtype)


def _before(scale: float, zero: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # Found before the parameter of that name, which is still what trains and is saved.
        module.__dict__["weight"] = rounded_weight(module._parameters["weight"])  # type: ignore[arg-type]
        return (rounded_input(inputs[0], scale, zero), *inputs[1:])

    return hook


def _after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    module.__dict__.pop("weight", None)


@torch.no_grad()
def _ranges(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> list[tuple[float, float]]:
    """Return the smallest and largest value of each layer's input."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        low, high = (float(value) for value in inputs[0].aminmax())
        before = found.get(module, (low, high))
        found[module] = min(low, before[0]), max(high, before[1])

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for part in images.split(_PART):
            model(part.to(device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [found.get(layer, (0.0, 0.0)) for layer in layers]
