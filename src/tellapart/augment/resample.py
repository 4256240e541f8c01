"""A box of each source through an affine map, in one resampling. Knows nothing of chance.

A place of the result is mapped through the inverse affine map, the flips and the scaling of the box at once, and the
source is sampled there bilinearly. If the source is scaled down, it is first averaged, at its own resolution and along
each of its axes, by a triangle as wide as the steps taken along that axis (`reaches`); if it is enlarged, nothing else
blurs it.

The border is that of the box scaled to the result: zeros, fading in over one pixel of the result, or a mirror.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tellapart.augment.geometry import Border, cut, grid, half_for_bytes, tents
from tellapart.contract.sides import Size, sides
from tellapart.devices import put
from tellapart.preprocess import Images, as_tensor


def flipped(maps: Tensor, hflip: Tensor | None, vflip: Tensor | None) -> Tensor:
    """Return maps [B, 2, 3] of `geometry.inverse_affine` for images that are turned round before, bool [B] each."""
    maps = maps.clone()
    for row, flags in enumerate((hflip, vflip)):
        if flags is not None:
            maps[flags, row] *= -1
    return maps


def reaches(boxes: Tensor, maps: Tensor, size: Size) -> npt.NDArray[np.float64]:
    """Return how many source pixels the triangles reach to both sides along each axis: float64 [B, 2], y and x.

    Below one nothing is averaged. ``steps`` is how far a step to each side of the result goes along an axis of the
    source, and the triangles reach as far. Where the box itself makes the source smaller, that would leave more
    aliasing than two resamplings did, which blurred the source twice; there the triangles reach so much further that it
    is less (tests/test_augment_resample.py).
    """
    lengths = np.linalg.norm(maps[:, :, :2].numpy(), axis=2)[:, ::-1]
    scaling = boxes[:, 2:].numpy() / np.array(sides(size))
    steps: npt.NDArray[np.float64] = lengths * scaling
    reach: npt.NDArray[np.float64] = np.maximum(steps, 1.3 * np.minimum(steps, scaling) - 0.2)
    return reach


def crop_and_warp(images: Images, boxes: Tensor, maps: Tensor, size: Size, border: Border) -> Tensor:
    """Cut each box, scale it to ``size`` and change it by ``maps`` [B, 2, 3] of `geometry.inverse_affine`.

    [B, H, W, C] -> float32 [B, C, height, width] of 0..255. ``boxes`` (int64 [B, 4]) and ``maps`` (float64)
    are on the CPU, the result on the device of the images.
    """
    places = grid(maps, size, images.device)
    way = _one_by_one if images.device.type == "cpu" else together
    values = way(images, boxes, reaches(boxes, maps, size), places, border)
    return values.mul_(_coverage(places)) if border == "zeros" else values


def _coverage(places: Tensor) -> Tensor:
    """Return which part of each pixel lies on the image, as bilinear sampling of its scaled version does."""
    away, halves = places.abs(), (places.shape[3] / 2, places.shape[2] / 2)
    across, down = (
        torch.add(half + 0.5, away[:, axis : axis + 1], alpha=-half).clamp_(0, 1)
        for axis, half in enumerate(halves)
    )
    return across.mul_(down)


def _one_by_one(
    images: Images, boxes: Tensor, reach: npt.NDArray[np.float64], places: Tensor, border: Border
) -> Tensor:
    """Sample each box by itself; no canvas is made of images of several sizes."""
    sources = images.numpy() if isinstance(images, Tensor) else images
    planes, mode = places.permute(0, 2, 3, 1), "border" if border == "zeros" else border
    sampled = []
    for row, (image, box) in enumerate(zip(sources, boxes.tolist(), strict=True)):
        values = cut(image, box).to(torch.float32)
        for axis, wide in enumerate(reach[row].tolist()):
            values = smooth(values, axis, wide)
        image_NCHW = values.permute(2, 0, 1).unsqueeze(0)
        sampled.append(
            F.grid_sample(image_NCHW, planes[row : row + 1], padding_mode=mode, align_corners=False)
        )
    return torch.cat(sampled)


def smooth(values: Tensor, axis: int, reach: float) -> Tensor:
    """Average float32 [H, W, C] along ``axis`` by a triangle that reaches ``reach`` pixels to both sides.

    Up to one pixel changes nothing. At the edges the weights of the pixels that there are sum to one.
    """
    length = values.shape[axis]
    most = min(math.ceil(reach), length) - 1
    if most < 1:
        return values
    sides = [1 - away / reach for away in range(1, most + 1)]
    side = [0.0, *itertools.accumulate(sides)]
    total = 1 + 2 * side[most]
    result = values * (1 / total)
    for away, weight in enumerate(sides, 1):
        rest = length - away
        result.narrow(axis, away, rest).add_(values.narrow(axis, 0, rest), alpha=weight / total)
        result.narrow(axis, 0, rest).add_(values.narrow(axis, away, rest), alpha=weight / total)
    for place in {*range(most), *range(length - most, length)}:
        there = 1 + side[min(place, most)] + side[min(length - 1 - place, most)]
        result.select(axis, place).mul_(total / there)
    return result


def together(
    images: Images, boxes: Tensor, reach: npt.NDArray[np.float64], places: Tensor, border: Border
) -> Tensor:
    """Sample the boxes of a whole batch at once, for devices where many small kernels are slow."""
    sources = as_tensor(images)
    batch, height, width, channels = sources.shape
    kind = half_for_bytes(sources)  # as for resized crops by matrices
    top, left, box_height, box_width = put(boxes, sources.device).unbind(1)
    down, across = put(torch.from_numpy(reach).to(torch.float32), sources.device).unbind(1)
    rows = _triangles(height, top, box_height, down).to(kind)
    columns = _triangles(width, left, box_width, across).to(kind)
    lines = torch.bmm(rows, sources.view(batch, height, width * channels).to(kind))
    lines = lines.view(batch, height, width, channels).permute(0, 3, 1, 2)
    smoothed = torch.matmul(lines, columns.transpose(1, 2).unsqueeze(1)).to(torch.float32)
    x = _on_canvas(places[:, 0], left, box_width, width, border)
    y = _on_canvas(places[:, 1], top, box_height, height, border)
    return F.grid_sample(smoothed, torch.stack([x, y], dim=3), padding_mode="border", align_corners=False)


def _triangles(length: int, start: Tensor, extent: Tensor, step: Tensor) -> Tensor:
    """Return `smooth` for [start, start + extent) of ``length`` pixels as matrices: [B, length, length].

    What lies outside of that becomes what its next pixel inside does.
    """
    step, start, extent = (values[:, None, None] for values in (step, start, extent))
    places = torch.arange(length, device=start.device)[None, :, None]
    centre = torch.minimum(torch.maximum(places, start), start + extent - 1) + 0.5
    return tents(centre, step, start, extent, length)


def _on_canvas(place: Tensor, start: Tensor, extent: Tensor, length: int, border: Border) -> Tensor:
    """Turn coordinates [B, H, W] where -1..1 is a box into those where it is the canvas, kept inside of the box."""
    start, extent = start[:, None, None], extent[:, None, None]
    part = (place + 1) / 2
    if border == "reflection":
        part = 1 - (part.remainder(2) - 1).abs()
    middle = torch.minimum(torch.maximum(part * extent, start.new_tensor(0.5)), extent - 0.5)
    return (start + middle) * (2 / length) - 1
