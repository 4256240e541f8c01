"""From pixels to the network's input: the one code that applies the contract.

How pixels become the input (`resize`) is said and computed by `tellapart.contract.resizing`; here is the same operation
as a module for graphs (`as_module`), which gives the same bits (of float32 pixels: the same within a thousandth of a
level).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tellapart.contract.decoding import Pixels
from tellapart.contract.preprocessing import Preprocessing

_sym_min: Callable[[Any, Any], Any] = torch.sym_min  # as min and max, also of a graph's symbols
_sym_max: Callable[[Any, Any], Any] = torch.sym_max

CACHED_VALUES = 640_000  # floats on which several passes are made before the next part (4 images at 224)


def _scaled(height: Any, width: Any, contract: Preprocessing) -> tuple[Any, Any]:
    """Return the height and width that the policy scales an image to (ints, or a graph's symbols)."""
    rows, columns = contract.sides
    if contract.resize == "squash":
        return rows, columns
    if contract.resize == "crop":
        rows, columns = contract.edges
        return _sym_max(rows, columns * height // width), _sym_max(columns, rows * width // height)
    by_width = (2 * columns * height + width) // (2 * width)
    by_height = (2 * rows * width + height) // (2 * height)
    # Not 0, and not 1: torch's kernel does not average down a lone column, others do.
    return (
        _sym_max(_sym_min(rows, by_width), min(2, rows)),
        _sym_max(_sym_min(columns, by_height), min(2, columns)),
    )


def _writable(pixels: Pixels) -> Pixels:
    """Return pixels that torch takes without a warning."""
    return pixels if pixels.flags.writeable and min(pixels.strides) > 0 else pixels.copy()


def fit_short_side(image_HWC: Pixels, short_side: int) -> Pixels:
    """Scale down (bilinear, anti-aliased) so that the short side is ``short_side``; a smaller image stays.

    [H, W, C] -> [h, w, C] of the same shape of picture (long side rounded down). For sources of
    augmentation, not for the contract: whole levels are computed in integers, within one level of `resize` and five
    times as fast.
    """
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image_HWC
    source = torch.from_numpy(np.ascontiguousarray(_writable(image_HWC))).unsqueeze(0).permute(0, 3, 1, 2)
    size = (short_side * height // short, short_side * width // short)
    scaled = F.interpolate(source, size, mode="bilinear", antialias=True, align_corners=False)
    result: Pixels = scaled[0].permute(1, 2, 0).contiguous().numpy()
    return result


@functools.lru_cache(maxsize=64)
def _scale_and_bias(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, repeats: int = 1
) -> tuple[Tensor, Tensor]:
    """Return float32 [repeats * C] each, such that x * scale + bias == (x / 255 - mean) / std."""
    with torch.inference_mode(False):
        means, deviations = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        terms = torch.stack([1 / (255 * deviations), -means / deviations]).repeat(1, repeats)
        scale, bias = terms.float().to(device).unbind()
        return scale, bias


def normalise_(values_NCHW: Tensor, contract: Preprocessing) -> Tensor:
    """Normalise float32 [B, C, H, W] of 0..255 in place, in whatever memory order it has."""
    width, device = values_NCHW.shape[3], values_NCHW.device
    if values_NCHW.is_contiguous(memory_format=torch.channels_last) and not values_NCHW.is_contiguous():
        scale, bias = _scale_and_bias(contract.mean, contract.std, device, width)
        rows = values_NCHW.permute(0, 2, 3, 1).view(-1, len(scale))  # long rows: ten times as fast
        rows.mul_(scale).add_(bias)
        return values_NCHW
    scale, bias = _scale_and_bias(contract.mean, contract.std, device)
    return values_NCHW.mul_(scale.view(-1, 1, 1)).add_(bias.view(-1, 1, 1))


def normalise(
    images_NHWC: Tensor, contract: Preprocessing, channels_last: bool = False, out: Tensor | None = None
) -> Tensor:
    """Return the network's input (x / 255 - mean) / std: levels [B, H, W, C] -> float32 [B, C, H, W].

    ``channels_last`` chooses the memory order of the result, which stays on the images' device. With ``out``,
    float32 [B, C, H, W] of that order, the result is written there.
    """
    if out is None:
        shape = (len(images_NHWC), images_NHWC.shape[3], *images_NHWC.shape[1:3])
        order = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(shape, dtype=torch.float32, device=images_NHWC.device, memory_format=order)
    images_NCHW = images_NHWC.permute(0, 3, 1, 2)
    for rows in slices(out):
        # The channels are put in order as bytes, which are fewer, and then made floats.
        pixels = images_NCHW[rows] if channels_last else images_NCHW[rows].contiguous()
        normalise_(out[rows].copy_(pixels), contract)
    return out


def slices(images_NCHW: Tensor) -> list[slice]:
    """Return parts of a float32 batch whose passes one after the other stay in the processor's cache.

    On other devices than the CPU: the whole batch, because each part costs the start of kernels.
    """
    batch = len(images_NCHW)
    if images_NCHW.device.type != "cpu" or not batch:
        return [slice(0, batch)]
    step = max(1, CACHED_VALUES * batch // max(1, images_NCHW.numel()))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def denormalise(images_NCHW: Tensor, contract: Preprocessing) -> Tensor:
    """Return pictures of the network's input: float [B, C, H, W] -> uint8 [B, H, W, C], clipped to 0..255."""
    scale, bias = _scale_and_bias(contract.mean, contract.std, images_NCHW.device)
    pixels = (images_NCHW.detach().to(torch.float32) - bias.view(-1, 1, 1)) / scale.view(-1, 1, 1)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class PreprocessModule(nn.Module):
    """`resize` and `normalise` as a graph: levels [B, H, W, C] of any H, W -> float32 [B, C, height, width].

    Decoding is not in it. All images of a batch have one size. `torch.export` takes it with dynamic B, H, W.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, contract: Preprocessing) -> None:
        super().__init__()
        self.contract = contract
        scale, bias = _scale_and_bias(contract.mean, contract.std, torch.device("cpu"))
        self.register_buffer("scale", scale.view(-1, 1, 1).clone(), persistent=False)
        self.register_buffer("bias", bias.view(-1, 1, 1).clone(), persistent=False)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Return the network's input."""
        return self.normalised(self.sized(images_NHWC))

    def normalised(self, values_NCHW: Tensor) -> Tensor:
        """Normalise float32 [B, C, height, width] of 0..255."""
        return values_NCHW * self.scale + self.bias

    def sized(self, images_NHWC: Tensor) -> Tensor:
        """Resize and round: uint8 [B, H, W, C] -> float32 [B, C, height, width] of whole numbers, 0 to 255.

        Of the contract's depth float32: resize float32 [B, H, W, C] without rounding.
        """
        contract, exact = self.contract, self.contract.depth == "float32"
        height, width = images_NHWC.shape[1], images_NHWC.shape[2]
        images = images_NHWC.permute(0, 3, 2, 1).to(torch.float32)
        down, across = (
            matrix(
                side,
                scaled,
                _sym_max(side, scaled),
                self._start(scaled, to),
                to,
                contract.interpolation,
                exact,
            )
            for side, scaled, to in zip(
                (height, width), _scaled(height, width, contract), contract.sides, strict=True
            )
        )
        values = average(images, down, across) if exact else weigh(images, down, across)
        if contract.resize != "letterbox":
            return values
        inside = down.sum(1).unsqueeze(1) * across.sum(1)  # 0 on the border
        return torch.where(inside > 0, values, float(contract.fill))

    def _start(self, scaled: Any, side: int) -> Any:
        """Return which scaled pixel is the input's first; below 0 where a border comes before the scaled image."""
        policy = self.contract.resize
        if policy == "squash":
            return 0
        return self.contract.start(scaled, side) if policy == "crop" else -((side - scaled) // 2)


def matrix(
    length: int, scaled: int, larger: int, start: int, count: int, mode: str, exact: bool = False
) -> Tensor:
    """Return `contract.resizing`'s weights of all source pixels for ``count`` scaled ones from ``start`` on.

    Whole numbers, with ``exact`` shares of sum 1; float32 [count, length]; 0 for places outside the ``scaled`` ones.
    ``larger``: the larger of both.
    The sizes may be a graph's symbols. TorchScript can compile this function.
    """
    targets = torch.arange(count).unsqueeze(1) + start
    places = torch.arange(length).unsqueeze(0)
    distance = ((2 * places + 1) * scaled - (2 * targets + 1) * length).abs().to(torch.float64) / (2 * larger)
    if mode == "bilinear":
        shares = (1.0 - distance).clamp(min=0.0)
    else:
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        shares = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    if exact:
        weights = shares / shares.sum(1, keepdim=True)
    else:
        weights = torch.round(shares * (2048.0 / shares.sum(1, keepdim=True)) + 1e-7)
        left = 2048.0 - weights.sum(1, keepdim=True)  # by rounding
        weights = weights + torch.where(places == shares.argmax(1, keepdim=True), left, 0.0)
    valid = (targets >= 0) & (targets < scaled)
    return torch.where(valid, weights, 0.0).to(torch.float32)


def weigh(images_NCWH: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return the weighted averages by `matrix`'s weights, rounded: float32 [B, C, W, H] -> [B, C, rows, columns].

    The weights are the right factor of both products, and no transposition comes directly before one: so every
    runtime multiplies one plain matrix by another, also where there are no images.
    """
    sums = torch.matmul(images_NCWH, down.t()).transpose(2, 3)
    lines = torch.round(sums * (16.0 / 2048.0))
    return torch.round(torch.matmul(lines, across.t()) * (1.0 / 32768.0)).clamp(0.0, 255.0)


def average(images_NCWH: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return the weighted averages by `matrix`'s exact weights, not rounded: [B, C, W, H] -> [B, C, rows, columns]."""
    lines = torch.matmul(images_NCWH, down.t()).transpose(2, 3).contiguous()
    return torch.matmul(lines, across.t()).clamp(0.0, 255.0)


def as_module(contract: Preprocessing) -> PreprocessModule:
    """Return the contract after decoding as a module that every export can put before its network."""
    return PreprocessModule(contract)
