"""The contract's resizing, normalisation and views in numpy, which training and every runtime without torch use.

Resizing is anti-aliased interpolation: a scaled pixel is the average of source pixels weighted by a triangle
(bilinear) or Keys' cubic (bicubic), as wide as the scale where the image gets smaller, as
``torch.nn.functional.interpolate(antialias=True)`` and Pillow define it. Its weights are whole numbers of 2048ths, and
sums are whole numbers that float32 holds. So any program on any machine gets the same bits, in whatever order it adds,
and an exported graph can hold the same operation. Pixels of the depth float32 are weighted by the exact weights and not
rounded; there programs agree within a thousandth of a level. Knows nothing of networks but that they are callable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.decoding import MAX_PIXELS, Pixels, crop_box, decode, in_depth
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.views import Views

Floats = npt.NDArray[np.float32]
_PART_VALUES = 12_000_000  # values of which a float copy is made at once
DENSE = 12  # a matrix with more than one value in so many that counts is faster as a whole
ONE = 2048  # a weight of 1
BETWEEN = 16  # parts of a level that are kept between the two directions
REACH = {"bilinear": 1, "bicubic": 2}  # of the kernels, in pixels of the larger of both images


def open_pixels(content: bytes | Pixels, contract: Preprocessing, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return an image before resizing: a file's bytes or levels [H, W(, C)] -> [H, W, channels] of its depth.

    A JPEG is decoded at a part of its size where the contract says so. Raises BadImage.
    """
    if isinstance(content, np.ndarray):
        return in_depth(content, contract.channels, contract.depth)
    suffices = contract.suffices if contract.decode == "scaled" else None
    return decode(content, contract.channels, max_pixels, suffices, contract.range, contract.depth)


def load(
    content: bytes | Pixels,
    contract: Preprocessing,
    max_pixels: int = MAX_PIXELS,
    box: npt.NDArray[np.float64] | tuple[float, ...] | None = None,
) -> Pixels:
    """Return an image as the contract wants it: [height, width, channels] of its depth. Raises BadImage.

    ``content``: a file's bytes, or levels [H, W] or [H, W, C], uint8 (float32: of that depth). ``box``: x0, y0, x1, y1
    in pixels of the upright image, of which only that part is used; None or NaN: all of it.
    """
    whole = box is None or bool(np.isnan(np.asarray(box)).any())
    full = contract if whole else dataclasses.replace(contract, decode="full")
    image = open_pixels(content, full, max_pixels)
    return resize(image if box is None else crop_box(image, box), contract)


def scaled_size(height: int, width: int, contract: Preprocessing) -> tuple[int, int]:
    """Return the height and width that the policy scales an image to, before it is cut or bordered."""
    rows, columns = contract.sides
    if contract.resize == "squash":
        return rows, columns
    if contract.resize == "crop":
        rows, columns = contract.edges
        return max(rows, columns * height // width), max(columns, rows * width // height)
    by_width, by_height = _rounded(columns * height, width), _rounded(rows * width, height)
    return max(min(rows, by_width), min(2, rows)), max(min(columns, by_height), min(2, columns))


def _rounded(number: int, by: int) -> int:
    """Return a quotient, rounded; halves go up."""
    return (2 * number + by) // (2 * by)


def resize(image_HWC: Pixels, contract: Preprocessing) -> Pixels:
    """Apply the resize policy: [H, W, C] of the contract's depth -> the same of its height and width, [h, w, C].

    Where the policy's scaled height and width are the image's own, no pixel changes. ``crop`` gives exactly the
    centre of the whole scaled image, from where `Preprocessing.start` says.
    """
    sides = contract.sides
    height, width = scaled_size(image_HWC.shape[0], image_HWC.shape[1], contract)
    rows, columns = sides if contract.resize != "letterbox" else (height, width)
    corner = (0, 0)
    if contract.resize == "crop":
        corner = contract.start(height, rows), contract.start(width, columns)
    inner = scale(image_HWC, (height, width), corner, (rows, columns), contract)
    if (rows, columns) == sides:
        return inner
    canvas = np.full((*sides, image_HWC.shape[2]), contract.fill, inner.dtype)
    top, left = (sides[0] - rows) // 2, (sides[1] - columns) // 2
    canvas[top : top + rows, left : left + columns] = inner
    return canvas


def scale(
    image_HWC: Pixels,
    to: tuple[int, int],
    corner: tuple[int, int],
    part: tuple[int, int],
    contract: Preprocessing,
) -> Pixels:
    """Return ``part`` (height, width) at ``corner`` (top, left) of the image scaled to ``to`` (height, width).

    Down the columns first: sums of value * weight, whole numbers, divided to sixteenths of a level and rounded; then
    along the rows in the same way, divided to levels, rounded (halves to even) and clipped. No number is above 2**24,
    so float32 holds all of them and every order of adding gives the same. Of float32 pixels the sums are not rounded.
    """
    height, width, channels = image_HWC.shape
    (top, left), (rows, columns) = corner, part
    if to == (height, width):  # each pixel is its own average
        return np.ascontiguousarray(image_HWC[top : top + rows, left : left + columns])
    exact = image_HWC.dtype == np.float32
    down = _Weights(height, to[0], top, rows, contract.interpolation, exact)
    across = _Weights(width, to[1], left, columns, contract.interpolation, exact)
    source = image_HWC[down.first : down.last, across.first : across.last]
    lines = down.applied(source.reshape(len(source), -1))
    lines = lines if exact else np.rint(lines * np.float32(BETWEEN / ONE))
    turned = np.ascontiguousarray(lines.reshape(rows, -1, channels).transpose(1, 0, 2))
    scaled = across.applied(turned.reshape(len(turned), -1))
    pixels = np.clip(scaled, 0, 255, out=scaled) if exact else _in_levels(scaled)
    return np.ascontiguousarray(pixels.reshape(columns, rows, channels).transpose(1, 0, 2))


def _in_levels(sums: Floats) -> Pixels:
    """Return levels of sums of 16ths times 2048ths, in whose place."""
    sums *= np.float32(1 / (BETWEEN * ONE))
    return np.clip(np.rint(sums, out=sums), 0, 255, out=sums).astype(np.uint8)


class _Weights:
    """How much each source pixel counts for ``count`` scaled ones from ``start`` on: whole numbers of sum ONE.

    With ``exact`` shares of sum 1, not rounded. Only source pixels from ``first`` to ``last`` count; `applied` takes
    those.
    """

    def __init__(self, length: int, scaled: int, start: int, count: int, mode: str, exact: bool) -> None:
        self.places, self.weights = _weights(length, scaled, start, count, mode, exact)
        self.first, self.last = int(self.places.min()), int(self.places.max()) + 1

    def applied(self, values: npt.NDArray[Any]) -> Floats:
        """Return the weighted sums along the first axis: [last - first, N] -> float32 [count, N]."""
        (count, taps), places = self.weights.shape, self.places - self.first
        if taps * DENSE > len(values):
            matrix = np.zeros((count, len(values)), np.float32)
            np.add.at(matrix, (np.arange(count)[:, None], places), self.weights)
            return np.concatenate([matrix @ part.astype(np.float32) for part in _parts(values)], axis=1)
        sums = values[places[:, 0]] * self.weights[:, :1]
        for tap in range(1, taps):
            sums += values[places[:, tap]] * self.weights[:, tap : tap + 1]
        return sums


def _parts(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the columns in parts, of which a float copy is small."""
    step = max(1, _PART_VALUES // len(values))
    return [values[:, start : start + step] for start in range(0, values.shape[1], step)]


@functools.lru_cache(maxsize=64)
def _weights(
    length: int, scaled: int, start: int, count: int, mode: str, exact: bool = False
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return source places, int64 [count, taps], and their weights, float32 [count, taps]; see `weigh`."""
    reach, larger = REACH[mode], max(length, scaled)
    targets = np.arange(start, start + count)[:, None]
    taps = 2 * reach * larger // scaled + 2
    first = ((2 * targets + 1) * length - 2 * reach * larger) // (2 * scaled)
    places = first + np.arange(taps)
    distance = np.abs((2 * places + 1) * scaled - (2 * targets + 1) * length) / (2.0 * larger)
    shares = np.where((places >= 0) & (places < length), _KERNELS[mode](distance), 0.0)
    if exact:
        return np.clip(places, 0, length - 1), (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    # What lies between two whole numbers goes up, however the last bit of the sum came out.
    weights = np.rint(shares * (ONE / shares.sum(1, keepdims=True)) + 1e-7)
    weights[np.arange(count), shares.argmax(1)] += ONE - weights.sum(1)  # what rounding has left over
    return np.clip(places, 0, length - 1), weights.astype(np.float32)


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1.0 - x, 0.0)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -0.5, as anti-aliased interpolation uses it."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def normalise(images_NHWC: Pixels, contract: Preprocessing) -> Floats:
    """Return the network's input (x / 255 - mean) / std: levels [B, H, W, C] -> float32 [B, C, H, W]."""
    mean, std = np.array(contract.mean), np.array(contract.std)
    scale, bias = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    return np.ascontiguousarray((images_NHWC.astype(np.float32) * scale + bias).transpose(0, 3, 1, 2))


def averaged(
    network: Callable[[Floats], Floats], images_NCHW: Floats, views: Views, classes: int | None = None
) -> Floats:
    """Return the average of the logits over ``views``, as `tellapart.preprocess.averaged`: float32 [B, K].

    ``classes``: how many of the columns are logits, which decide whether there is doubt; the rest is averaged alike.
    """
    logits = network(images_NCHW)
    if views.count == 1 or not len(logits):
        return logits
    own = logits[:, :classes]
    if views.below >= 1 or own.shape[1] < 2:
        return _others(network, images_NCHW, views, logits)
    powers = np.exp(own - own.max(1, keepdims=True))
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
