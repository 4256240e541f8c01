"""From pixels to the network's input: the one code that applies the contract.

How pixels become the input (`resize`): floating-point interpolation with anti-aliasing as
``torch.nn.functional.interpolate(antialias=True, align_corners=False)`` defines it, rounded to the nearest
integer (halves to even) and clipped to 0..255, so that a graph can hold the same operation (`as_module`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tellapart.contract.decoding import MAX_PIXELS, Pixels, crop_box
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.resizing import open_pixels

_sym_min: Callable[[Any, Any], Any] = torch.sym_min  # as min and max, also of a graph's symbols
_sym_max: Callable[[Any, Any], Any] = torch.sym_max

CACHED_VALUES = 640_000  # floats on which several passes are made before the next part (4 images at 224)
_STRIP_PIXELS = 4_000_000  # above this the float copy of the source is made strip by strip


def _scaled(height: Any, width: Any, contract: Preprocessing) -> tuple[Any, Any]:
    """Return the height and width that the policy scales an image to (ints, or a graph's symbols)."""
    size = contract.size
    if contract.resize == "squash":
        return size, size
    if contract.resize == "crop":
        edge = round(size / contract.crop_fraction)
        short = _sym_min(height, width)
        return edge * height // short, edge * width // short
    long = _sym_max(height, width)
    least = min(2, size)  # not 0, and not 1: torch's kernel does not average down a lone column, others do
    return (
        _sym_max((2 * size * height + long) // (2 * long), least),
        _sym_max((2 * size * width + long) // (2 * long), least),
    )


def _interpolate(images_NCHW: Tensor, height: Any, width: Any, mode: str) -> Tensor:
    """Scale [B, C, H, W] (uint8 or float) with anti-aliasing; float32, not rounded yet."""
    scale = functools.partial(F.interpolate, mode=mode, antialias=True, align_corners=False)
    return scale(images_NCHW.to(torch.float32), size=(height, width))


def _scale(
    image_HWC: Pixels, height: int, width: int, mode: str, box: tuple[int, int, int, int] | None
) -> Pixels:
    """Scale to [height, width], rounded; of that only ``box`` (top, left, height, width) where given."""
    top, left, rows, columns = box or (0, 0, height, width)
    source_height, source_width = image_HWC.shape[:2]
    if (source_height, source_width) == (height, width):  # interpolation would be the identity
        return np.ascontiguousarray(image_HWC[top : top + rows, left : left + columns])
    source = torch.from_numpy(_writable(image_HWC)).permute(2, 0, 1)[None]
    # Separable, along rows first: strips give the same bits and need no float copy of a large whole, and of the
    # columns only the wanted ones go on. (torch's kernel treats a lone column in a way of its own, as `as_module`.)
    strips = torch.split(source, max(1, _STRIP_PIXELS // source_width), dim=2)
    if columns not in (1, width):
        lines = [_interpolate(s, s.shape[2], width, mode)[..., left : left + columns] for s in strips]
        joined = lines[0] if len(lines) == 1 else torch.cat(lines, dim=2)
        flat = joined.permute(0, 2, 3, 1).reshape(1, 1, source_height, columns * image_HWC.shape[2])
        scaled = _interpolate(flat, height, flat.shape[3], mode)[0, 0, top : top + rows]
    else:
        if len(strips) > 1:
            source = torch.cat([_interpolate(s, s.shape[2], width, mode) for s in strips], dim=2)
        scaled = _interpolate(source, height, width, mode)[0, :, top : top + rows, left : left + columns]
        scaled = scaled.permute(1, 2, 0)
    pixels = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return cast(Pixels, pixels.reshape(rows, columns, -1).contiguous().numpy())


def _writable(pixels: Pixels) -> Pixels:
    """Return pixels that torch takes without a warning."""
    return pixels if pixels.flags.writeable and min(pixels.strides) > 0 else pixels.copy()


def resize(image_HWC: Pixels, contract: Preprocessing) -> Pixels:
    """Apply the resize policy: uint8 [H, W, C] -> [size, size, C].

    Where the policy's scaled height and width are the image's own, no pixel changes. ``crop`` gives exactly
    the centre of the whole scaled image, its upper left corner at floor((scaled - size) / 2).
    """
    size = contract.size
    height, width = _scaled(image_HWC.shape[0], image_HWC.shape[1], contract)
    if contract.resize != "letterbox":
        box = ((height - size) // 2, (width - size) // 2, size, size)
        return _scale(image_HWC, height, width, contract.interpolation, box)
    inner = _scale(image_HWC, height, width, contract.interpolation, None)
    if (height, width) == (size, size):
        return inner
    canvas = np.full((size, size, image_HWC.shape[2]), contract.fill, dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = inner
    return canvas


def fit_short_side(image_HWC: Pixels, short_side: int) -> Pixels:
    """Scale down (bilinear, anti-aliased) so that the short side is ``short_side``; a smaller image stays.

    uint8 [H, W, C] -> [h, w, C] of the same shape of picture (long side rounded down). For sources of
    augmentation, not for the contract: computed in integers, within one level of `resize` and five times as fast.
    """
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image_HWC
    source = torch.from_numpy(np.ascontiguousarray(_writable(image_HWC))).unsqueeze(0).permute(0, 3, 1, 2)
    size = (short_side * height // short, short_side * width // short)
    scaled = F.interpolate(source, size, mode="bilinear", antialias=True, align_corners=False)
    return cast(Pixels, scaled[0].permute(1, 2, 0).contiguous().numpy())


def load(
    content: bytes | Pixels,
    contract: Preprocessing,
    max_pixels: int = MAX_PIXELS,
    box: npt.NDArray[np.float64] | tuple[float, ...] | None = None,
) -> Pixels:
    """Return an image as the contract wants it: uint8 [size, size, channels]. Raises BadImage.

    ``content``: a file's bytes, or pixels uint8 [H, W] or [H, W, C]. ``box``: x0, y0, x1, y1 in pixels of the
    upright image, of which only that part is used; None or NaN: all of it.
    """
    whole = box is None or bool(np.isnan(np.asarray(box)).any())
    full = contract if whole else dataclasses.replace(contract, decode="full")
    image = open_pixels(content, full, max_pixels)
    return resize(image if box is None else crop_box(image, box), contract)


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
    """Return the network's input (x / 255 - mean) / std: uint8 [B, H, W, C] -> float32 [B, C, H, W].

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
    """`resize` and `normalise` as a graph: uint8 [B, H, W, C] of any H, W -> float32 [B, C, size, size].

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
        """Normalise float32 [B, C, size, size] of 0..255."""
        return values_NCHW * self.scale + self.bias

    def sized(self, images_NHWC: Tensor) -> Tensor:
        """Resize and round: uint8 [B, H, W, C] -> float32 [B, C, size, size] of whole numbers from 0 to 255."""
        contract, size = self.contract, self.contract.size
        images = images_NHWC.permute(0, 3, 1, 2)
        height, width = _scaled(images.shape[2], images.shape[3], contract)
        scaled = _interpolate(images, height, width, contract.interpolation).round().clamp(0, 255)
        if contract.resize == "crop":
            centre = torch.arange(
                size, device=scaled.device
            )  # selected by index: `narrow` loses the size in a graph
            scaled = scaled.index_select(2, centre + (height - size) // 2)
            scaled = scaled.index_select(3, centre + (width - size) // 2)
        elif contract.resize == "letterbox":
            top, left = (size - height) // 2, (size - width) // 2
            border = (left, size - width - left, top, size - height - top)
            scaled = F.pad(scaled, border, value=float(contract.fill))
        return scaled


def as_module(contract: Preprocessing) -> PreprocessModule:
    """Return the contract after decoding as a module that every export can put before its network."""
    return PreprocessModule(contract)
