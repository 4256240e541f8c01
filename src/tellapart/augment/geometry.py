"""Moving pixels: crops, flips, resized crops and affine maps of whole batches. Knows nothing of chance.

Images are [B, H, W, C], uint8 or float32, for what copies pixels, float32 [B, C, H, W] for what interpolates. What is
scaled keeps its kind of number; float32 is not rounded. Boxes and
flags are CPU tensors; results are on the device of the images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tellapart.contract.decoding import Pixels
from tellapart.contract.sides import Size, sides
from tellapart.devices import put
from tellapart.preprocess import Images, Ragged, as_tensor

Border = Literal["zeros", "reflection"]  # what lies outside of an image for what interpolates
LARGE = 1 << 15  # values of an image above which images are faster one by one


def pad(images: Tensor, padding: int, mode: Literal["zeros", "reflect"]) -> Tensor:
    """Return [B, H, W, C] with a border of zeros, or mirrored without repeating the edge."""
    if mode == "zeros":
        return F.pad(images, (0, 0, padding, padding, padding, padding))
    batch, height, width, channels = images.shape
    canvas = images.new_empty(batch, height + 2 * padding, width + 2 * padding, channels)
    middle = canvas[:, padding : padding + height]
    middle[:, :, padding : padding + width] = images
    last = 2 * padding + width - 1
    for away in range(1, padding + 1):  # few long copies: a flip of so few columns takes twice as long
        middle[:, :, padding - away] = images[:, :, away]
        middle[:, :, last - padding + away] = images[:, :, width - 1 - away]
    last = 2 * padding + height - 1
    for away in range(1, padding + 1):
        canvas[:, padding - away] = canvas[:, padding + away]
        canvas[:, last - padding + away] = canvas[:, last - padding - away]
    return canvas


def padded_crop(images: Tensor, boxes: Tensor, padding: int, mode: Literal["zeros", "reflect"]) -> Tensor:
    """Pad [B, H, W, C] and cut each image's box back to [B, H, W, C]."""
    batch, height, width, channels = images.shape
    padded = pad(images, padding, mode).contiguous()
    if images.device.type == "cpu":  # numpy's copies of blocks are three times as fast as a gather
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for row, source, (top, left, _, _) in zip(
            result.numpy(), padded.numpy(), boxes.tolist(), strict=True
        ):
            row[...] = source[top : top + height, left : left + width]
        return result
    rows, row = height + 2 * padding, (width + 2 * padding) * channels
    # A view of all possible crops: [B, top, left, row of the crop, its bytes]; one gather picks each's own.
    windows = padded.as_strided(
        (batch, 2 * padding + 1, 2 * padding + 1, height, width * channels),
        (rows * row, row, channels, row, 1),
    )
    corner = put(boxes[:, :2], images.device)
    index = torch.arange(batch, device=images.device)
    return windows[index, corner[:, 0], corner[:, 1]].view(batch, height, width, channels)


def replace(images: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Replace the images at ``rows`` (int64 on the CPU) by ``changed``, in place."""
    if images.device.type != "cpu":
        images.index_copy_(0, put(rows, images.device), changed)
        return
    for row, image in zip(rows.tolist(), changed, strict=True):  # whole images: index_copy_ goes by elements
        images[row].copy_(image)


def flip(images: Tensor, flags: Tensor, dim: int, own: bool = False) -> Tensor:
    """Return [B, H, W, C] with the flagged images turned round along ``dim`` (1 up-down, 2 left-right).

    With ``own`` the images given are changed themselves.
    """
    rows = flags.nonzero()[:, 0]
    if not len(rows):
        return images
    if images.device.type == "cpu" and images[0].numel() >= LARGE:
        images = images if own else images.clone()
        for row in rows.tolist():
            images[row] = images[row].flip(dim - 1)
        return images
    turned = images.index_select(0, put(rows, images.device)).flip(dim)
    images = images if own else images.clone()
    replace(images, rows, turned)
    return images


def cut(image: Pixels, box: list[int]) -> Tensor:
    """Copy a box (top, left, height, width) of an image [H, W, C]."""
    top, left, height, width = box
    return torch.from_numpy(np.ascontiguousarray(image[top : top + height, left : left + width]))


def resized_crop(images: Images, boxes: Tensor, size: Size) -> Tensor:
    """Cut each box and scale it with anti-aliasing: [B, H, W, C] -> [B, height, width, C]."""
    if images.device.type != "cpu":
        return resized_crop_by_matrices(as_tensor(images), put(boxes, images.device), size)
    channels = images.channels if isinstance(images, Ragged) else images.shape[3]
    result = torch.empty(len(images), *sides(size), channels, dtype=images.dtype)
    sources = images if isinstance(images, Ragged) else images.numpy()
    scaled = result.permute(0, 3, 1, 2)
    for row, (image, box) in enumerate(zip(sources, boxes.tolist(), strict=True)):
        # Channels-last in torch's eyes, so that its 8-bit kernel neither unpacks the channels nor packs them again:
        # that takes longer than the scaling.
        box_NCHW = cut(image, box).unsqueeze(0).permute(0, 3, 1, 2)
        scaled[row : row + 1] = F.interpolate(box_NCHW, sides(size), mode="bilinear", antialias=True)
    return result


def scale(images: Tensor, size: Size) -> Tensor:
    """Scale whole images with anti-aliasing: [B, H, W, C] -> [B, height, width, C]."""
    images_NCHW = images.permute(0, 3, 1, 2)
    if images.device.type != "cpu" and images.dtype == torch.uint8:  # only the CPU has a kernel for bytes
        scaled = F.interpolate(images_NCHW.float(), sides(size), mode="bilinear", antialias=True)
        images_NCHW = scaled.round_().clamp_(0, 255).to(torch.uint8)
    else:
        images_NCHW = F.interpolate(images_NCHW, sides(size), mode="bilinear", antialias=True)
    return images_NCHW.permute(0, 2, 3, 1).contiguous()


def _filter(length: int, start: Tensor, extent: Tensor, size: int) -> Tensor:
    """Return the filter that scales [start, start + extent) of ``length`` pixels: [B, size, length]."""
    start, extent = start.float()[:, None, None], extent.float()[:, None, None]
    step = extent / size
    centre = (torch.arange(size, device=start.device)[None, :, None] + 0.5) * step + start
    return tents(centre, step, start, extent, length)


def tents(centre: Tensor, step: Tensor, start: Tensor, extent: Tensor, length: int) -> Tensor:
    """Return triangles about ``centre`` [B, n, 1] as weights of ``length`` pixels that sum to one: [B, n, length].

    Each reaches ``step`` pixels to both sides, at least one, and not beyond [start, start + extent) (all [B, 1, 1]).
    """
    pixel = torch.arange(length, device=centre.device)[None, None, :] + 0.5
    weight = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    weight = weight * ((pixel > start) & (pixel < start + extent))
    return weight / weight.sum(dim=2, keepdim=True)


def resized_crop_by_matrices(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """`resized_crop` of the whole batch at once, for devices where many small kernels are slow."""
    # Half precision on a GPU: whole numbers up to 255 are exact in it, weights and sums are off by less than a tenth
    # of a level, and half of the bytes are moved.
    kind = half_for_bytes(images)
    batch, height, width, channels = images.shape
    high, wide = sides(size)
    rows = _filter(height, boxes[:, 0], boxes[:, 2], high).to(kind)
    columns = _filter(width, boxes[:, 1], boxes[:, 3], wide).to(kind)
    scaled = torch.bmm(rows, images.view(batch, height, width * channels).to(kind))
    across = scaled.view(batch, high, width, channels).transpose(1, 2).reshape(batch, width, high * channels)
    scaled = torch.bmm(columns, across).view(batch, wide, high, channels).transpose(1, 2)
    scaled = scaled.contiguous()
    return scaled if images.dtype == torch.float32 else scaled.round_().clamp_(0, 255).to(torch.uint8)


def half_for_bytes(images: Tensor) -> torch.dtype:
    """Return in what sums of pixels are computed: for whole levels on a GPU half precision suffices."""
    half = images.device.type == "cuda" and images.dtype == torch.uint8
    return torch.float16 if half else torch.float32


def inverse_affine(
    angle: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
    scale: Tensor,
    shear_x: Tensor,
    shear_y: Tensor,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Return the maps from result to source, [B, 2, 3], in pixels from the middle of the image.

    The map is shift * about centre (rotation * scale * shear y * shear x), each float64 [B] on the CPU, angles
    in degrees, y pointing down, as torchvision's ``affine`` defines it; ``centre`` is x and y of a point.
    """
    turn, along, across = (np.deg2rad(values.numpy()) for values in (angle, shear_x, shear_y))
    cosine, sine = np.cos(turn - across) / np.cos(across), np.sin(turn - across) / np.cos(across)
    a, c = torch.from_numpy(cosine), torch.from_numpy(sine)
    b = torch.from_numpy(-cosine * np.tan(along) - np.sin(turn))
    d = torch.from_numpy(-sine * np.tan(along) + np.cos(turn))
    m00, m01, m10, m11 = d / scale, -b / scale, -c / scale, a / scale
    x, y = centre[0] + shift_x, centre[1] + shift_y
    first = torch.stack([m00, m01, centre[0] - m00 * x - m01 * y], dim=1)
    second = torch.stack([m10, m11, centre[1] - m10 * x - m11 * y], dim=1)
    return torch.stack([first, second], dim=1)


def grid(maps: Tensor, size: Size, device: torch.device) -> Tensor:
    """Return where the maps of `inverse_affine` take each pixel: float32 [B, 2, height, width], x and y.

    -1..1 is the image, from edge to edge.
    """
    height, width = sides(size)
    halves = torch.tensor([width / 2, height / 2], dtype=maps.dtype)[:, None]
    maps = put((maps / halves).float(), device)[..., None, None]
    across, down = (
        torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2 for side in (width, height)
    )
    along_x = maps[:, :, 0] * across[None, None, None, :] + maps[:, :, 2]
    return along_x + maps[:, :, 1] * down[None, None, :, None]


def warp(
    images_NCHW: Tensor, maps: Tensor, mode: Literal["nearest", "bilinear"], border: Border = "zeros"
) -> Tensor:
    """Resample float32 [B, C, H, W] by the maps of `inverse_affine`."""
    places = grid(maps, (images_NCHW.shape[2], images_NCHW.shape[3]), images_NCHW.device).permute(0, 2, 3, 1)
    return F.grid_sample(images_NCHW, places, mode=mode, padding_mode=border, align_corners=False)
