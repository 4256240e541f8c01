"""The random numbers of a batch: what they are, and how each is drawn. Knows no pixels.

Every function draws for all images at once from a generator on the CPU and returns CPU tensors whose first
dimension is the batch. ``sizes`` is int64 [B, 2]: height and width of each source image.

What is computed from drawn numbers is computed by numpy: for a few numbers torch takes several times as long, and it
has a library compute roots and exponentials that starts all threads for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from tellapart.contract.sides import Size, sides

Boxes = npt.NDArray[np.int64]
ATTEMPTS = 10  # as torchvision: so often is a box drawn before the fallback
ERASING_SCALE, ERASING_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's and the paper's (arXiv:1708.04896)


@dataclass(frozen=True)
class Params:
    """All random numbers of a batch; None where an operation is off. ``params[a:b]`` are images a to b's.

    crop: int64 [B, 4], top, left, height and width of the box (of the padded image with crop=pad).
    hflip, vflip: bool [B]. affine: float64 [B, 5], angle in degrees, shift x and y in pixels, scale, shear in
    degrees. operations: int64 [B, n], index in `policies.OPERATIONS`; magnitudes: float64 [B, n].
    colour: float32 [B, 4], factors of brightness, contrast and saturation, shift of the hue; colour_order:
    which of these four change, and in what order. erase: int64 [B, 4], top, left, height, width; all 0 where
    nothing is erased. seeds: int64 [B], of chance in an augmentation that is not ours.
    """

    batch: int
    crop: Tensor | None = None
    hflip: Tensor | None = None
    vflip: Tensor | None = None
    affine: Tensor | None = None
    operations: Tensor | None = None
    magnitudes: Tensor | None = None
    colour: Tensor | None = None
    colour_order: tuple[int, ...] = ()
    erase: Tensor | None = None
    seeds: Tensor | None = None

    def __len__(self) -> int:
        return self.batch

    def __getitem__(self, rows: slice) -> Params:
        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return Params(
            batch=len(range(*rows.indices(self.batch))),
            crop=cut(self.crop),
            hflip=cut(self.hflip),
            vflip=cut(self.vflip),
            affine=cut(self.affine),
            operations=cut(self.operations),
            magnitudes=cut(self.magnitudes),
            colour=cut(self.colour),
            colour_order=self.colour_order,
            erase=cut(self.erase),
            seeds=cut(self.seeds),
        )


def uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return float64 values of [low, high)."""
    return torch.rand(shape, dtype=torch.float64, generator=generator).mul_(high - low).add_(low)


def _sides(
    area: npt.NDArray[np.float64], ratio: tuple[float, float], generator: Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return rounded heights and widths of boxes of so much ``area`` [B, n].

    The logarithm of width over height is uniform between those of ``ratio``.
    """
    low, high = (math.log(value) for value in ratio)
    aspect = np.exp(uniform(low, high, area.shape, generator).numpy())
    return np.sqrt(area / aspect).round(), np.sqrt(area * aspect).round()


def _first_valid(boxes: Boxes, valid: npt.NDArray[np.bool_], fallback: Boxes) -> Boxes:
    """Return of [B, ATTEMPTS, n] the first valid attempt of each row, or its row of ``fallback`` [B, n]."""
    chosen = boxes[np.arange(len(boxes)), valid.argmax(axis=1)]
    return np.where(valid.any(axis=1, keepdims=True), chosen, fallback)


def _place(boxes: Boxes, sizes: Boxes, generator: Generator) -> Boxes:
    """Return [B, 4]: a uniformly drawn corner before each height and width of ``boxes`` [B, 2]."""
    room = sizes - boxes + 1
    drawn = torch.rand(boxes.shape, dtype=torch.float64, generator=generator).numpy()
    corner = (drawn * room).astype(np.int64)
    return np.concatenate([np.minimum(corner, room - 1), boxes], axis=1)


def resized_crop(
    sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> Tensor:
    """Draw RandomResizedCrop's boxes: int64 [B, 4], inside each image's own size.

    The area is uniform, the logarithm of width over height too (arXiv:1409.4842). After ten boxes that do not
    fit: the largest centred box of an allowed ratio.
    """
    whole = sizes.numpy()
    heights, widths = whole[:, :1].astype(np.float64), whole[:, 1:].astype(np.float64)
    area = heights * widths * uniform(*scale, (len(whole), ATTEMPTS), generator).numpy()
    box_h, box_w = _sides(area, ratio, generator)
    valid = (box_w > 0) & (box_w <= widths) & (box_h > 0) & (box_h <= heights)
    whole_w = np.minimum(widths, (heights * ratio[1]).round())
    whole_h = np.minimum(heights, (widths / ratio[0]).round())
    fallback = np.concatenate([whole_h, whole_w], axis=1).astype(np.int64)
    boxes = _first_valid(np.stack([box_h, box_w], axis=2).astype(np.int64), valid, fallback)
    placed = _place(boxes, whole, generator)
    centred = np.concatenate([(whole - fallback) // 2, fallback], axis=1)
    return torch.from_numpy(np.where(valid.any(axis=1, keepdims=True), placed, centred))


def padded_crop(batch: int, size: Size, padding: int, generator: Generator) -> Tensor:
    """Draw RandomCrop's boxes in the padded image: int64 [B, 4]."""
    corner = torch.randint(0, 2 * padding + 1, (batch, 2), generator=generator)
    return torch.cat([corner, torch.tensor(sides(size)).expand(batch, 2)], dim=1)


def flip(batch: int, probability: float, generator: Generator) -> Tensor:
    """Draw which images are flipped: bool [B]."""
    return torch.rand(batch, generator=generator) < probability


def alternating_flip(positions: npt.NDArray[np.int64], probability: float, seed: int, epoch: int) -> Tensor:
    """Return which images are flipped in ``epoch``: bool [B], a pure function of the seed, the image and the epoch.

    ``positions`` name the images. Each is drawn for epoch 0 with ``probability`` and is turned round in every other
    epoch from then on (Jordan 2024, arXiv:2404.00498, section 3.6): two epochs together hold each image both ways.
    """
    start = np.uint64((seed * 0xBF58476D1CE4E5B9 + 1) % 2**64)
    z = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + start
    # SplitMix64's finaliser (Steele et al., 2014)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    drawn = ((z ^ z >> np.uint64(31)) >> np.uint64(11)).astype(np.float64) / 2**53
    return torch.from_numpy((drawn < probability) ^ bool(epoch % 2))


def affine(
    batch: int,
    size: Size,
    rotation: float,
    translate: float,
    scale: tuple[float, float],
    shear: float,
    generator: Generator,
) -> Tensor:
    """Draw RandomAffine's values, float64 [B, 5]; shifts are whole pixels."""
    values = uniform(-1, 1, (batch, 5), generator)
    values[:, 0] *= rotation
    height, width = sides(size)
    most = torch.tensor([translate * width, translate * height], dtype=values.dtype)
    values[:, 1:3] = (values[:, 1:3] * most).round()
    values[:, 3] = scale[0] + (values[:, 3] + 1) / 2 * (scale[1] - scale[0])
    values[:, 4] *= shear
    return values


def colour(
    batch: int, brightness: float, contrast: float, saturation: float, hue: float, generator: Generator
) -> Tensor:
    """Draw ColorJitter's factors, float32 [B, 4]; the first three around 1 and never negative."""
    low = torch.tensor([max(0.0, 1 - brightness), max(0.0, 1 - contrast), max(0.0, 1 - saturation), -hue])
    high = torch.tensor([1 + brightness, 1 + contrast, 1 + saturation, hue])
    return torch.rand((batch, 4), generator=generator) * (high - low) + low


def erase(batch: int, size: Size, probability: float, generator: Generator) -> Tensor:
    """Draw RandomErasing's boxes, int64 [B, 4]; zeros where nothing is erased."""
    shape, (rows, columns) = (batch, ATTEMPTS), sides(size)
    area = rows * columns * uniform(*ERASING_SCALE, shape, generator).numpy()
    height, width = _sides(area, ERASING_RATIO, generator)
    valid = (height < rows) & (width < columns)
    boxes = np.stack([height, width], axis=2).astype(np.int64)
    chosen = _first_valid(boxes, valid, np.zeros((batch, 2), np.int64))
    placed = _place(chosen, np.tile(np.array(sides(size)), (batch, 1)), generator)
    wanted = flip(batch, probability, generator).numpy() & valid.any(axis=1)
    return torch.from_numpy(placed * wanted[:, None])


def cutout(batch: int, size: Size, side: int, generator: Generator) -> Tensor:
    """Draw squares of ``side`` pixels that lie wholly inside the image, as boxes like `erase`'s, int64 [B, 4]."""
    rows, columns = sides(size)
    if rows == columns:
        corner = torch.randint(0, rows - side + 1, (batch, 2), generator=generator)
    else:
        rooms = (rows - side + 1, columns - side + 1)
        corner = torch.stack([torch.randint(0, room, (batch,), generator=generator) for room in rooms], dim=1)
    return torch.cat([corner, torch.full((batch, 2), side)], dim=1)
