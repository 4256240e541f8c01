"""The contract's resizing, normalisation and views in numpy, for runtimes without torch.

The rules are those of `tellapart.preprocess`, against which this is tested: anti-aliased interpolation as
``torch.nn.functional.interpolate`` defines it, each direction a matrix of weights. Knows nothing of networks but
that they are callable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tellapart.contract.decoding import MAX_PIXELS, Pixels, decode, to_channels
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.views import Views

Floats = npt.NDArray[np.float32]
_STRIP_PIXELS = 4_000_000  # pixels of which a float copy is made at once


def open_pixels(content: bytes | Pixels, contract: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return an image before resizing: a file's bytes or uint8 [H, W(, C)] -> uint8 [H, W, channels].

    A JPEG is decoded at a part of its size where the contract says so. Raises BadImage.
    """
    if isinstance(content, np.ndarray):
        return to_channels(content, contract.channels)
    suffices = contract.suffices if contract.decode == "scaled" else None
    return decode(content, contract.channels, max_pixels, suffices)


def scaled_size(height: int, width: int, contract: Preprocessing) -> tuple[int, int]:
    """Return the height and width that the policy scales an image to, before it is cut or bordered."""
    size = contract.size
    if contract.resize == "squash":
        return size, size
    if contract.resize == "crop":
        edge, short = round(size / contract.crop_fraction), min(height, width)
        return edge * height // short, edge * width // short
    long, least = max(height, width), min(2, size)
    rounded = ((2 * size * side + long) // (2 * long) for side in (height, width))
    scaled_height, scaled_width = (max(side, least) for side in rounded)
    return scaled_height, scaled_width


def resize(image_HWC: Pixels, contract: Preprocessing) -> Pixels:
    """Apply the resize policy: uint8 [H, W, C] -> [size, size, C]."""
    size = contract.size
    height, width = scaled_size(image_HWC.shape[0], image_HWC.shape[1], contract)
    rows, columns = min(size, height), min(size, width)
    if contract.resize != "letterbox":
        rows, columns = size, size
    vertical = _weights(image_HWC.shape[0], height, contract.interpolation)
    horizontal = _weights(image_HWC.shape[1], width, contract.interpolation)
    top, left = (height - rows) // 2, (width - columns) // 2
    inner = _scale(image_HWC, vertical[top : top + rows], horizontal[left : left + columns])
    if (rows, columns) == (size, size):
        return inner
    canvas = np.full((size, size, image_HWC.shape[2]), contract.fill, np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    canvas[top : top + rows, left : left + columns] = inner
    return canvas


def _scale(image_HWC: Pixels, vertical: Floats, horizontal: Floats) -> Pixels:
    """Return round(vertical @ image @ horizontal.T) for weights [rows, H] and [columns, W]: uint8."""
    height, width, channels = image_HWC.shape
    step = max(1, _STRIP_PIXELS // width)
    strips = [
        horizontal @ image_HWC[start : start + step].astype(np.float32) for start in range(0, height, step)
    ]
    lines = strips[0] if len(strips) == 1 else np.concatenate(strips)  # [H, columns, C]
    scaled = vertical @ lines.reshape(height, -1)
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    result: Pixels = pixels.reshape(len(vertical), len(horizontal), channels)
    return result


@functools.lru_cache(maxsize=32)
def _weights(length: int, scaled: int, mode: str) -> Floats:
    """Return how much each source pixel counts for each scaled one: float32 [scaled, length], rows of sum 1.

    In the steps of torch's kernel, some of them in float64: other roundings put more values on the other side of
    a half.
    """
    scale = np.float32(length) / np.float32(scaled)
    stretch = max(scale, np.float32(1))
    reach = float(np.float32(1 if mode == "bilinear" else 2) * stretch)
    centres = (float(scale) * (np.arange(scaled) + 0.5)).astype(np.float32)[:, None]
    first = np.maximum((centres - np.float32(reach) + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + np.float32(reach) + 0.5).astype(np.int64), length)
    sources = np.arange(length)[None]
    distance = ((sources.astype(np.float32) - centres).astype(np.float64) + 0.5) * np.float32(1 / stretch)
    weights = (_triangle if mode == "bilinear" else _cubic)(np.abs(distance).astype(np.float32))
    weights = np.where((sources >= first) & (sources < last), weights, np.float32(0))
    return weights / weights.cumsum(1, dtype=np.float32)[:, -1:]


def _triangle(x: Floats) -> Floats:
    result: Floats = np.maximum(np.float32(1) - x, np.float32(0))
    return result


def _cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.5, as anti-aliased interpolation uses it."""
    a = np.float32(-0.5)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0))).astype(np.float32)


def normalise(images_NHWC: Pixels, contract: Preprocessing) -> Floats:
    """Return the network's input (x / 255 - mean) / std: uint8 [B, H, W, C] -> float32 [B, C, H, W]."""
    mean, std = np.array(contract.mean), np.array(contract.std)
    scale, bias = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    return np.ascontiguousarray((images_NHWC.astype(np.float32) * scale + bias).transpose(0, 3, 1, 2))


def averaged(network: Callable[[Floats], Floats], images_NCHW: Floats, views: Views) -> Floats:
    """Return the average of the logits over ``views``, as `tellapart.preprocess.averaged`: float32 [B, K]."""
    logits = network(images_NCHW)
    if views.count == 1 or not len(logits):
        return logits
    if views.below >= 1 or logits.shape[1] < 2:
        return _others(network, images_NCHW, views, logits)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    best = np.sort(powers / powers.sum(1, keepdims=True), axis=1)
    doubtful = np.flatnonzero(best[:, -1] - best[:, -2] < views.below)
    if len(doubtful):
        logits = logits.copy()
        logits[doubtful] = _others(network, images_NCHW[doubtful], views, logits[doubtful])
    return logits


def _others(network: Callable[[Floats], Floats], images: Floats, views: Views, first: Floats) -> Floats:
    def both(some: Floats) -> Floats:
        return network(some) + network(np.ascontiguousarray(some[..., ::-1]))

    unmoved: Floats = (first + network(np.ascontiguousarray(images[..., ::-1]))) / np.float32(2)
    if views.name == "mirror":
        return unmoved
    height, width = images.shape[2:]
    border = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    moved = [
        both(np.ascontiguousarray(border[:, :, c : c + height, c : c + width])) / np.float32(4)
        for c in (0, 2)
    ]
    result: Floats = (unmoved + moved[0] + moved[1]) / np.float32(2)
    return result
