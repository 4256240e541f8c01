"""Resized crops and affine maps in one resampling, against float64 references and against the two resamplings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from tellapart.augment import Augment, Params, geometry, resample, resolve
from tellapart.preprocess import Preprocessing, Ragged, normalise
from tellapart.spec import AugmentSpec

Array = npt.NDArray[np.float64]
AFFINE = {"rotation": 25.0, "translate": 0.15, "scale": (0.7, 1.5), "shear": 8.0}
BORDERS = {"zeros": "zeros", "reflect": "reflection"}


def augment(size: int, channels: int = 3, **spec) -> Augment:
    made = Preprocessing(size, channels, "crop", "bilinear", 1.0, (0.5,) * channels, (0.2,) * channels)
    return Augment(resolve(AugmentSpec(preset="none", **spec), size), made, 10)


def pictures(batch: int, height: int, width: int, channels: int) -> torch.Tensor:
    """Smooth waves with noise, uint8 [B, H, W, C]."""
    rng = np.random.default_rng(batch)
    coarse = rng.uniform(0, 255, (batch, height // 4 + 2, width // 4 + 2, channels))
    smooth = ndimage.zoom(coarse, (1, 4, 4, 1), order=1)[:, :height, :width]
    return torch.from_numpy((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def inverse_maps(drawn: Params) -> torch.Tensor:
    assert drawn.affine is not None
    return geometry.inverse_affine(*drawn.affine.unbind(1), torch.zeros(len(drawn), dtype=torch.float64))


def two_resamplings(made: Augment, images: torch.Tensor, drawn: Params) -> torch.Tensor:
    """Return what cropping, turning round and warping one after the other give: float32 [B, C, S, S]."""
    pixels = geometry.resized_crop(images, drawn.crop, made.contract.size)
    for flags, dim in ((drawn.hflip, 2), (drawn.vflip, 1)):
        pixels = pixels if flags is None else geometry.flip(pixels, flags, dim)
    border = BORDERS[made.spec.padding_mode]
    return geometry.warp(
        pixels.permute(0, 3, 1, 2).contiguous().float(), inverse_maps(drawn), "bilinear", border
    )


def one_resampling(made: Augment, images: torch.Tensor, drawn: Params) -> torch.Tensor:
    maps = resample.flipped(inverse_maps(drawn), drawn.hflip, drawn.vflip)
    return resample.crop_and_warp(
        images, drawn.crop, maps, made.contract.size, BORDERS[made.spec.padding_mode]
    )


def by_scipy(made: Augment, image: Array, drawn: Params, row: int) -> Array:
    """Return one image's result from its definition, step by step backwards, in float64: [S, S, C]."""
    size, matrix = made.contract.size, inverse_maps(drawn)[row].numpy()
    place = np.arange(size) - (size - 1) / 2
    x, y = (
        matrix[axis, 0] * place[None] + matrix[axis, 1] * place[:, None] + matrix[axis, 2] for axis in (0, 1)
    )
    x, y = -x if drawn.hflip[row] else x, -y if drawn.vflip[row] else y
    top, left, height, width = drawn.crop[row].tolist()
    values = image[top : top + height, left : left + width].astype(np.float64)
    for axis, (extent, line) in enumerate(((height, matrix[1]), (width, matrix[0]))):
        step = np.hypot(line[0], line[1]) * extent / size
        reach = max(step, 1.3 * min(step, extent / size) - 0.2)
        if reach > 1:
            away = np.arange(-int(reach) - 1, int(reach) + 2)
            weights = np.maximum(0, 1 - np.abs(away) / reach)
            there = ndimage.correlate1d(np.ones_like(values), weights, axis, mode="constant")
            values = ndimage.correlate1d(values, weights, axis, mode="constant") / there
    mode = {"zeros": "nearest", "reflect": "reflect"}[made.spec.padding_mode]
    where = [(y / size + 0.5) * height - 0.5, (x / size + 0.5) * width - 0.5]
    result = np.stack(
        [ndimage.map_coordinates(plane, where, order=1, mode=mode) for plane in np.moveaxis(values, 2, 0)],
        axis=2,
    )
    if mode == "nearest":
        part = np.clip(size / 2 + 0.5 - np.abs([x, y]), 0, 1)
        result *= (part[0] * part[1])[:, :, None]
    return result


@pytest.mark.parametrize("mode", BORDERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 60])
def test_the_source_is_sampled_once_and_everywhere_alike(mode: str, channels: int, size: int) -> None:
    made = augment(size, channels, crop="resized", hflip=0.5, vflip=0.5, padding_mode=mode, **AFFINE)
    images = pictures(9, 70, 90, channels)
    sizes = torch.tensor(
        [[70, 90], [60, 61], [70, 33], [25, 90], [9, 9], [1, 90], [2, 3], [70, 90], [70, 90]]
    )
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[height:] = 255  # what lies outside of an image must not be seen
        image[:, width:] = 255
    ragged = Ragged(
        [image[:h, :w].numpy() for image, (h, w) in zip(images, sizes.tolist(), strict=True)], channels
    )
    drawn = made.draw(9, sizes, torch.Generator().manual_seed(size))
    result = one_resampling(made, images, drawn)
    for row, image in enumerate(images.numpy()):
        expected = by_scipy(made, image, drawn, row)
        assert np.abs(result[row].permute(1, 2, 0).numpy() - expected).max() < 0.02  # of 255
    maps = resample.flipped(inverse_maps(drawn), drawn.hflip, drawn.vflip)
    places, reach = geometry.grid(maps, size, images.device), resample.reaches(drawn.crop, maps, size)
    for sources in (images, ragged):
        assert torch.equal(one_resampling(made, sources, drawn), result)
        together = resample.together(sources, drawn.crop, reach, places, BORDERS[mode])
        apart = resample._one_by_one(sources, drawn.crop, reach, places, BORDERS[mode])
        assert (together - apart).abs().max() < 0.005
    expected = normalise_values(made, result)
    torch.testing.assert_close(made.apply(ragged, None, drawn), expected, atol=1e-5, rtol=0)


def normalise_values(made: Augment, values: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (made.contract.mean, made.contract.std))
    return (values / 255 - mean) / std


@pytest.mark.parametrize("reach", [1.0, 1.01, 1.7, 2.0, 3.4, 40.0])
@pytest.mark.parametrize("length", [1, 2, 3, 6, 30])
def test_averages_keep_what_is_plain(reach: float, length: int) -> None:
    plain = torch.full((length, length + 1, 3), 77.0)
    for axis in (0, 1):
        torch.testing.assert_close(resample.smooth(plain, axis, reach), plain)
    rough = torch.rand(length, length + 1, 3)
    assert (resample.smooth(rough, 0, reach) is rough) == (reach <= 1 or length == 1)


@pytest.mark.parametrize(
    "changes", [{"hflip": 0.5, "vflip": 0.5}, {"crop": "resized", "hflip": 0.5, "vflip": 0.5}]
)
def test_crops_and_flips_without_a_map_are_copied_and_scaled_as_ever(changes: dict[str, object]) -> None:
    made = augment(40, **changes)
    images = pictures(12, *((40, 40) if "crop" not in changes else (70, 90)), 3)
    drawn = made.draw(12, torch.tensor([images.shape[1:3]] * 12), torch.Generator().manual_seed(1))
    pixels = images if drawn.crop is None else geometry.resized_crop(images, drawn.crop, 40)
    pixels = torch.stack([p.flip(1) if f else p for p, f in zip(pixels, drawn.hflip, strict=True)])
    pixels = torch.stack([p.flip(0) if f else p for p, f in zip(pixels, drawn.vflip, strict=True)])
    assert torch.equal(made.apply(images, None, drawn), normalise(pixels, made.contract))


@pytest.mark.parametrize("mode", BORDERS)
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_whole_pixel_shifts_and_flips_before_a_map_are_one_resampling(crop: str, mode: str) -> None:
    made = augment(40, crop=crop, hflip=0.5, vflip=0.5, padding_mode=mode, **AFFINE)
    images = pictures(12, 40, 40, 3)
    drawn = made.draw(12, None, torch.Generator().manual_seed(1))
    moved = (
        images if crop == "none" else geometry.padded_crop(images, drawn.crop, made.spec.crop_padding, mode)
    )
    moved = geometry.flip(geometry.flip(moved, drawn.hflip, 2), drawn.vflip, 1)
    values = geometry.warp(
        moved.permute(0, 3, 1, 2).contiguous().float(), inverse_maps(drawn), "bilinear", BORDERS[mode]
    )
    torch.testing.assert_close(
        made.apply(images, None, drawn), normalise_values(made, values), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("mode", BORDERS)
def test_the_border_lies_where_it_lay(mode: str) -> None:
    made = augment(32, crop="resized", hflip=0.5, padding_mode=mode, **AFFINE)
    images = torch.full((20, 60, 80, 3), 200, dtype=torch.uint8)
    drawn = made.draw(20, torch.tensor([[60, 80]] * 20), torch.Generator().manual_seed(2))
    before, now = two_resamplings(made, images, drawn), one_resampling(made, images, drawn)
    torch.testing.assert_close(now, before, atol=0.01, rtol=0)
    assert (before.amin() == 0) == (mode == "zeros")


# ---------------------------------------------------------------------------------------------------- quality

SIDE = 64


class Scene:
    """Waves of all directions, their strength that of photographs (1 / frequency), known between the pixels too."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.frequency = rng.uniform(-0.5, 0.5, (120, 2))  # cycles in a pixel of the source, y and x
        self.strength = 1 / np.maximum(np.hypot(*self.frequency.T), 0.03)
        self.strength *= 100 / self.strength.sum() * 2.5
        self.phase = rng.uniform(0, 2 * np.pi, 120)

    def at(self, y: Array, x: Array, share: Array) -> Array:
        """Return values about 128 at these places, of each wave so large a ``share`` [120]."""
        result = np.full(y.shape, 128.0)
        for (down, across), strength, phase in zip(
            self.frequency, self.strength * share, self.phase, strict=True
        ):
            if strength:
                result += strength * np.cos(2 * np.pi * (down * y + across * x) + phase)
        return result


def errors(scale_down: float, angle: float, seed: int) -> Array:
    """Return root mean square errors [2, 2]: rows two resamplings and one; columns aliasing, all.

    Aliasing: what becomes of the waves that the result cannot hold, which should leave nothing. All: against the
    waves that it can hold, sampled exactly.
    """
    scene, box = Scene(seed), round(SIDE * scale_down)
    made = augment(SIDE, 1, crop="resized", rotation=1.0)
    values = torch.tensor([[angle, 0, 0, 1.0, 4.0]], dtype=torch.float64)
    drawn = Params(1, crop=torch.tensor([[2, 3, box, box]]), affine=values)
    matrix = inverse_maps(drawn)[0].numpy()
    place = np.arange(SIDE) - (SIDE - 1) / 2
    x, y = (matrix[k, 0] * place[None] + matrix[k, 1] * place[:, None] + matrix[k, 2] for k in (0, 1))
    inside = (np.abs(x) < SIDE / 2 - 6) & (np.abs(y) < SIDE / 2 - 6)
    down, across = 2 + box / 2 + y * box / SIDE - 0.5, 3 + box / 2 + x * box / SIDE - 0.5
    steps = scene.frequency[:, ::-1] @ matrix[:, :2] * box / SIDE  # cycles in a pixel of the result
    held = (np.abs(steps) < 0.5).all(1).astype(np.float64)
    rows, columns = np.mgrid[: box + 6, : box + 6].astype(np.float64)

    def error(source: Array, wanted: Array) -> list[float]:
        image = torch.from_numpy(scene.at(rows, columns, source).round().clip(0, 255).astype(np.uint8))[
            None, :, :, None
        ]
        results = (way(made, image, drawn)[0, 0].numpy() for way in (two_resamplings, one_resampling))
        exact = scene.at(down, across, wanted)
        return [float(np.sqrt(((result - exact)[inside] ** 2).mean())) for result in results]

    return np.array([error(1 - held, 0 * held), error(np.ones_like(held), held)]).T


# Root mean square errors of two resamplings and one, of 255 levels, at these scales down (four maps each): of all
# 5.9 5.6, 6.8 5.6, 7.7 7.6, 8.1 7.3, 8.1 7.1; of that by aliasing - -, - -, 0.82 0.74, 0.87 0.73, 0.97 0.87.
@pytest.mark.parametrize(
    ("scale_down", "most"), [(0.4, 0.97), (0.7, 0.85), (1.1, 1.0), (1.5, 0.93), (1.8, 0.91)]
)
def test_one_resampling_blurs_less_and_aliases_no_more(scale_down: float, most: float) -> None:
    measured = [errors(scale_down, angle, seed) for seed, angle in enumerate((5.0, -14.0, 27.0, 45.0))]
    (aliasing_of_two, all_of_two), (aliasing, all_of_one) = np.mean(measured, axis=0)
    assert all_of_one < most * all_of_two
    assert aliasing < aliasing_of_two + 1e-4  # nothing where the source is made larger
