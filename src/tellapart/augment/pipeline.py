"""Augment: draws a batch's random numbers and applies them, from sources of pixels to the network's input.

Pixels are uint8, or float32 of the same levels without rounding, where the contract's depth says so; no change rounds
those, and the policies, which are defined on 256 levels, are refused.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from tellapart.augment import colour, geometry, params, policies, resample, threads
from tellapart.augment import mix as mixing
from tellapart.augment.mix import Mix
from tellapart.augment.own import OwnTransform
from tellapart.augment.params import Params
from tellapart.augment.presets import check_depth
from tellapart.contract.sides import Size, shortest
from tellapart.devices import put
from tellapart.preprocess import Images, Preprocessing, as_tensor, normalise, normalise_, slices
from tellapart.spec import AugmentSpec


def needs_large_source(spec: AugmentSpec) -> bool:
    """Return whether a resolved spec wants images of their own sizes (see `Augment`)."""
    return spec.crop == "resized"


class Augment:
    """The random changes that a resolved spec (`tellapart.augment.resolve`) describes.

    ``needs_large_source``: whether `apply` wants images of their own sizes (resized crops), not images that
    are of the contract's size already. ``channels_last``: memory order of the result. ``seed``: of what is drawn once
    for the whole run, which is where alternating flips begin.
    """

    def __init__(
        self,
        spec: AugmentSpec,
        contract: Preprocessing,
        num_classes: int,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        missing = [name for name, value in vars(spec).items() if value is None]
        if missing:
            raise ValueError(f"the spec is not resolved: {', '.join(missing)}")
        check_depth(spec, contract.depth)
        self.spec, self.contract = spec, contract
        self.num_classes, self.channels_last, self.seed = num_classes, channels_last, seed
        self.needs_large_source = needs_large_source(spec)
        self.own = OwnTransform(spec) if spec.transform else None
        self._affine = bool(spec.rotation or spec.translate or spec.shear) or spec.scale != (1.0, 1.0)
        jitter = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
        self._colour = tuple(which for which, strength in enumerate(jitter) if strength)
        self._table: Tensor | None = None
        if spec.policy in ("randaugment", "trivialaugment"):
            self._table = policies.strengths(spec.policy, contract.size)
        self._images = bool(
            self.needs_large_source or (spec.crop == "pad" and spec.crop_padding) or spec.hflip or spec.vflip
        )
        self._images = (
            self._images
            or self._affine
            or self.own is not None
            or bool(self._colour or spec.policy != "none" or spec.erasing or spec.cutout)
        )

    @property
    def changes(self) -> bool:
        """Whether images are changed at all, MixUp and CutMix apart."""
        return self._images

    def at_size(self, size: Size) -> Augment:
        """Return the same changes for another size of the result; the sources stay as they are.

        Resized crops are taken at that size; other images are scaled before they are changed, and the border of
        a padded crop and the square of Cutout with them.
        """
        if size == self.contract.size:
            return self

        def smaller(pixels: int | None) -> int:
            short, full = shortest(size), shortest(self.contract.size)
            return min(max(1, round(pixels * short / full)), max(short - 1, 0)) if pixels else 0

        spec = dataclasses.replace(
            self.spec, crop_padding=smaller(self.spec.crop_padding), cutout=smaller(self.spec.cutout)
        )
        contract = dataclasses.replace(self.contract, size=size)
        return Augment(spec, contract, self.num_classes, self.channels_last, self.seed)

    def in_order(self, channels_last: bool) -> Augment:
        """Return the same, with another order of the result in memory; the numbers are the same."""
        other = copy.copy(self)
        other.channels_last = channels_last
        return other

    # ------------------------------------------------------------------------------------------- drawing

    def draw(
        self,
        batch: int,
        sizes: Tensor | None,
        generator: Generator,
        epoch: int = 0,
        positions: npt.NDArray[np.int64] | None = None,
    ) -> Params:
        """Draw every random number of a batch.

        ``sizes``: int64 [B, 2] on the CPU, height and width of each source; None: all are of the contract's.
        ``generator``: on the CPU; the only source of chance, but for alternating flips: those are a function of
        the seed, ``epoch`` and ``positions``, which name the images (None: their places in the batch).
        """
        if not self._images:
            return Params(batch)
        spec, size = self.spec, self.contract.size
        operations, magnitudes = self._draw_policy(batch, generator)
        order, factors = self._draw_colour(batch, generator)
        affine = None
        if self._affine:
            values = (
                spec.rotation or 0.0,
                spec.translate or 0.0,
                spec.scale or (1.0, 1.0),
                spec.shear or 0.0,
            )
            affine = params.affine(batch, size, *values, generator)
        return Params(
            batch,
            crop=self._draw_crop(batch, sizes, generator),
            hflip=self._draw_hflip(batch, generator, epoch, positions) if spec.hflip else None,
            vflip=params.flip(batch, spec.vflip, generator) if spec.vflip else None,
            affine=affine,
            operations=operations,
            magnitudes=magnitudes,
            colour=factors,
            colour_order=order,
            erase=self._draw_erase(batch, generator),
            seeds=torch.randint(2**62, (batch,), generator=generator) if self.own else None,
        )

    def _draw_hflip(
        self, batch: int, generator: Generator, epoch: int, positions: npt.NDArray[np.int64] | None
    ) -> Tensor:
        probability = self.spec.hflip or 0.0
        if self.spec.hflip_mode != "alternating":
            return params.flip(batch, probability, generator)
        named = np.arange(batch) if positions is None else positions
        return params.alternating_flip(named, probability, self.seed, epoch)

    def _draw_erase(self, batch: int, generator: Generator) -> Tensor | None:
        if self.spec.cutout:
            return params.cutout(batch, self.contract.size, self.spec.cutout, generator)
        erasing = self.spec.erasing
        return params.erase(batch, self.contract.size, erasing, generator) if erasing else None

    def _draw_crop(self, batch: int, sizes: Tensor | None, generator: Generator) -> Tensor | None:
        spec, size = self.spec, self.contract.size
        if spec.crop == "pad" and spec.crop_padding:
            return params.padded_crop(batch, size, spec.crop_padding, generator)
        if spec.crop != "resized" or spec.crop_scale is None or spec.crop_ratio is None:
            return None
        sources = torch.tensor(self.contract.sides).repeat(batch, 1) if sizes is None else sizes
        return params.resized_crop(sources, spec.crop_scale, spec.crop_ratio, generator)

    def _draw_policy(self, batch: int, generator: Generator) -> tuple[Tensor | None, Tensor | None]:
        policy, ops, level = self.spec.policy, self.spec.policy_ops, self.spec.policy_magnitude
        if self._table is None or policy is None or policy == "none" or ops is None or level is None:
            return None, None
        return policies.draw(policy, batch, ops, level, self._table, generator)

    def _draw_colour(self, batch: int, generator: Generator) -> tuple[tuple[int, ...], Tensor | None]:
        if not self._colour:
            return (), None
        spec = self.spec
        order = tuple(
            self._colour[i] for i in torch.randperm(len(self._colour), generator=generator).tolist()
        )
        strengths = (spec.brightness or 0.0, spec.contrast or 0.0, spec.saturation or 0.0, spec.hue or 0.0)
        return order, params.colour(batch, *strengths, generator)

    # ------------------------------------------------------------------------------------------ applying

    def apply(self, images: Images, sizes: Tensor | None, drawn: Params) -> Tensor:
        """Return the network's input float32 [B, C, height, width], normalised, on the images' device.

        ``images``: [B, H, W, C] of the contract's depth, of its size (others are scaled to it), or with
        `needs_large_source` sources, as a `Ragged` or in the upper left of a common canvas. ``drawn``: of this
        batch, or the part ``params[a:b]`` that belongs to these images; the result is the same either way.
        ``sizes`` as for `draw`; the boxes hold all that is needed.
        """
        if not self._images:
            return normalise(self._fitted(images), self.contract, self.channels_last)
        if len(images) != len(drawn):
            raise ValueError(f"{len(images)} images, but the random numbers of {len(drawn)}")
        order = torch.contiguous_format
        if self.channels_last:
            order = torch.channels_last
        shape = (len(images), self.contract.channels, *self.contract.sides)
        result = torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=order)
        if self.own is not None and drawn.seeds is not None:
            self._apply_own(self.own, images, drawn, result)
        else:
            threads.run(lambda rows: self._apply(images[rows], drawn[rows], result[rows]), slices(result))
        return result

    def _apply_own(self, own: OwnTransform, images: Images, drawn: Params, result: Tensor) -> None:
        """Do as `_apply` for a whole batch, with the user's own augmentation before normalising, in one thread."""
        shape = (len(images), *self.contract.sides, self.contract.channels)
        pixels = torch.empty(shape, dtype=images.dtype, device=images.device)

        def change(rows: slice) -> None:
            pixels[rows] = self._pixels(images[rows], drawn[rows])

        threads.run(change, slices(result))
        assert drawn.seeds is not None
        normalise(own(pixels, drawn.seeds), self.contract, self.channels_last, out=result)
        self._erase(result, drawn)

    def _pixels(self, images: Images, drawn: Params) -> Tensor:
        """Return images as all of our changes but erasing leave them, [B, height, width, C] of the contract's depth."""
        if drawn.affine is None and drawn.colour is None:
            pixels = self._place(images, drawn)
            if drawn.operations is not None and drawn.magnitudes is not None:
                pixels = policies.apply(pixels, drawn.operations, drawn.magnitudes)
            return pixels
        values = self._recolour(self._values(images, drawn), drawn)
        if self.contract.depth != "uint8":
            return values.clamp_(0, 255).permute(0, 2, 3, 1)
        return values.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _apply(self, images: Images, drawn: Params, result: Tensor) -> None:
        """Write the network's input for a part of a batch into ``result``, float32 [B, C, size, size]."""
        if drawn.affine is None and drawn.colour is None:
            normalise(self._pixels(images, drawn), self.contract, self.channels_last, out=result)
        else:
            values = self._recolour(self._values(images, drawn), drawn)
            result.copy_(normalise_(values, self.contract))
        self._erase(result, drawn)

    def _fitted(self, images: Images) -> Tensor:
        """Return images of the input's size: a smaller one (`at_size`) is made from those of the larger."""
        pixels = as_tensor(images)
        fits = tuple(pixels.shape[1:3]) == self.contract.sides
        return pixels if fits else geometry.scale(pixels, self.contract.size)

    def _place(self, images: Images, drawn: Params) -> Tensor:
        """Crop and flip: [B, height, width, C] of the images' kind of number."""
        own = drawn.crop is not None  # the images are the caller's; what was cut from them is ours
        if self.needs_large_source and drawn.crop is not None:
            pixels = geometry.resized_crop(images, drawn.crop, self.contract.size)
        else:
            pixels = self._fitted(images)
            if drawn.crop is not None:
                padding, mode = self.spec.crop_padding or 0, self.spec.padding_mode or "zeros"
                pixels = geometry.padded_crop(pixels, drawn.crop, padding, mode)
        if drawn.hflip is not None:
            pixels = geometry.flip(pixels, drawn.hflip, 2, own)
        return pixels if drawn.vflip is None else geometry.flip(pixels, drawn.vflip, 1, own)

    def _values(self, images: Images, drawn: Params) -> Tensor:
        """Crop, flip, rotate, shift, zoom and shear: float32 [B, C, height, width] of 0..255."""
        if drawn.affine is None:
            return self._place(images, drawn).permute(0, 3, 1, 2).contiguous().to(torch.float32)
        angle, shift_x, shift_y, scale, shear = drawn.affine.unbind(1)
        maps = geometry.inverse_affine(angle, shift_x, shift_y, scale, shear, torch.zeros_like(shear))
        border: geometry.Border = "reflection" if self.spec.padding_mode == "reflect" else "zeros"
        if self.needs_large_source and drawn.crop is not None:
            maps = resample.flipped(maps, drawn.hflip, drawn.vflip)
            return resample.crop_and_warp(images, drawn.crop, maps, self.contract.size, border)
        values = self._place(images, drawn).permute(0, 3, 1, 2).contiguous().to(torch.float32)
        return geometry.warp(values, maps, "bilinear", border)

    def _recolour(self, values: Tensor, drawn: Params) -> Tensor:
        """Apply the policy, on integers as it is defined, and the colour changes."""
        if drawn.operations is not None and drawn.magnitudes is not None:
            pixels = values.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            changed = policies.apply(pixels, drawn.operations, drawn.magnitudes)
            values = changed.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        return values if drawn.colour is None else colour.jitter(values, drawn.colour, drawn.colour_order)

    @staticmethod
    def _erase(images_NCHW: Tensor, drawn: Params) -> None:
        """Set each image's box to 0, in place."""
        if drawn.erase is None:
            return
        if images_NCHW.device.type == "cpu":  # few boxes; a mask would go over every pixel
            for image, (top, left, height, width) in zip(images_NCHW, drawn.erase.tolist(), strict=True):
                if height:
                    image[:, top : top + height, left : left + width] = 0.0
            return
        down, across = (torch.arange(side, device=images_NCHW.device) for side in images_NCHW.shape[2:])
        top, left, height, width = put(drawn.erase, images_NCHW.device)[:, :, None].unbind(1)
        rows = (down >= top) & (down < top + height)
        columns = (across >= left) & (across < left + width)
        images_NCHW.masked_fill_((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0.0)

    # -------------------------------------------------------------------------------------------- mixing

    def draw_mix(self, generator: Generator) -> Mix | None:
        """Draw MixUp or CutMix for one batch; None where both are off."""
        return mixing.draw(self.spec.mixup or 0.0, self.spec.cutmix or 0.0, *self.contract.sides, generator)

    def mix(self, images_NCHW: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Mix a batch: images and soft labels float32 [B, num_classes]; both as given where mixing is off.

        ``labels``: int64 [B], or float32 [B, num_classes]. Partners are neighbours in the batch, so mix the whole
        batch before slicing it.
        """
        drawn = self.draw_mix(generator)
        if drawn is None:
            return images_NCHW, labels
        return mixing.apply(images_NCHW, labels, self.num_classes, drawn)
