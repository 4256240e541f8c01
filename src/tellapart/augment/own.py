"""The user's own augmentation: torchvision's v2 transforms, albumentations, any function of an image, or of a batch.

It gets images of the network's size before they are normalised: as whole numbers, or of the depth float32 as floating
point from 0 to 1. Chance in it comes from torch's,
numpy's and Python's global generators (and ``set_random_seed``, where the object has that), which are seeded for each
image and put back afterwards. Knows nothing of where the seeds come from.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tellapart import references
from tellapart.errors import SpecError
from tellapart.spec import AugmentSpec

_LIKELY = 1e-3  # by so much may rounding take a value out of its range


class OwnTransform:
    """What a spec names as ``augment.transform``; called on levels [B, H, W, C], it returns the same of other images.

    Levels are uint8, or float32 of 0..255, of which the function gets 255ths.
    """

    def __init__(self, spec: AugmentSpec) -> None:
        name, arguments = spec.transform, spec.transform_arguments
        found = references.load(name, "transform", f"A run with the augmentation {name}")
        if isinstance(found, type):
            found = references.called(found, arguments, name)
        elif arguments:
            found = functools.partial(found, **references.keywords(arguments))
        if not callable(found):
            raise SpecError(f"{name} is of type {type(found).__name__}; augment.transform must be callable.")
        self.name, self._function = name, found
        self.takes = _takes(found) if spec.transform_takes == "auto" else spec.transform_takes

    def __call__(self, images_NHWC: Tensor, seeds: Tensor) -> Tensor:
        """Return images like ``images_NHWC``; ``seeds``: int64 [B] on the CPU. Raises SpecError."""
        if images_NHWC.is_floating_point():
            return self._changed(images_NHWC / 255, seeds)
        return self._changed(images_NHWC, seeds)

    def _changed(self, images_NHWC: Tensor, seeds: Tensor) -> Tensor:
        with _kept(images_NHWC.device):
            if self.takes == "batch":
                self._seed(int(seeds[0]))
                batch = images_NHWC.permute(0, 3, 1, 2).contiguous()
                return self._checked(self._call(batch), batch).permute(0, 2, 3, 1).contiguous()
            images = images_NHWC.cpu()
            changed = [self._one(image, int(seed)) for image, seed in zip(images, seeds, strict=True)]
        return torch.stack(changed).to(images_NHWC.device)

    def check(self, sides: tuple[int, int], channels: int, depth: str = "uint8") -> None:
        """Try it on an image. Raises SpecError."""
        kind = torch.float32 if depth == "float32" else torch.uint8
        self(torch.full((2, *sides, channels), 128, dtype=kind), torch.zeros(2, dtype=torch.int64))

    def _one(self, image_HWC: Tensor, seed: int) -> Tensor:
        self._seed(seed)
        if self.takes == "array":
            array = np.ascontiguousarray(image_HWC.numpy())
            found = self._call(image=array.copy())
            found = found.get("image") if isinstance(found, dict) else found
            result = torch.from_numpy(np.array(found)) if isinstance(found, np.ndarray) else found
            return self._checked(result, image_HWC)
        image = image_HWC.permute(2, 0, 1).contiguous()
        return self._checked(self._call(image), image).permute(1, 2, 0).contiguous()

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what the user's code draws from
        random.seed(seed)
        own = getattr(self._function, "set_random_seed", None)
        if callable(own):
            own(seed % 2**32)

    def _call(self, *given: Any, **named: Any) -> Any:
        return references.called(self._function, (), self.name, *given, **named)

    def _checked(self, result: Any, given: Tensor) -> Tensor:
        """Return the result as levels. Raises SpecError where it is no image like the one that was given."""
        shape, floating = given.shape, given.is_floating_point()
        if not isinstance(result, torch.Tensor) or result.shape != shape:
            got = f"shape {list(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            raise SpecError(
                f"augment.transform {self.name} returns {got} for an image of shape {list(shape)}; it must return one "
                "of the same shape (a tensor; albumentations: an array under 'image')."
            )
        values = result.detach().as_subclass(torch.Tensor)
        if values.dtype == torch.uint8 and not floating:
            return values
        if floating and not values.is_floating_point():
            raise SpecError(
                f"augment.transform {self.name} returns {values.dtype} for floating-point images (input.depth "
                "float32); it must return floating point from 0 to 1, too."
            )
        if not values.is_floating_point():
            raise SpecError(
                f"augment.transform {self.name} returns {values.dtype}; it must be uint8 or 0 to 1."
            )
        low, high = float(values.min()), float(values.max())
        if not (low >= -_LIKELY and high <= 1 + _LIKELY):
            raise SpecError(
                f"augment.transform {self.name} returns values from {low:g} to {high:g}; floating point must be from 0 "
                "to 1. Leave out Normalize: tellapart normalises afterwards, in training as in prediction."
            )
        if floating:
            return (values.to(torch.float32) * 255).clamp(0, 255)
        return (values * 255).round().clamp(0, 255).to(torch.uint8)


def _takes(function: Any) -> str:
    """Return what a function takes: ``image``, a tensor [C, H, W]; ``array``; or ``batch``, a tensor [B, C, H, W]."""
    if isinstance(function, nn.Module):
        inside = {type(module).__module__.partition(".")[0] for module in function.modules()}
        return "image" if "torchvision" in inside else "batch"
    if type(function).__module__.partition(".")[0] in ("albumentations", "albumentationsx"):
        return "array"
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return "image"
    named = parameters.get("image")
    return "array" if named is not None and named.kind is named.KEYWORD_ONLY else "image"


@contextlib.contextmanager
def _kept(device: torch.device) -> Iterator[None]:
    """Leave the generators of the program as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
