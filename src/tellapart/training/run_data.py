"""What a run is made of: its decoded images, its spec as far as these decide it, and its preprocessing contract.

Knows nothing of networks being built, or of run folders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.augment import Augment, needs_large_source
from tellapart.data.loader import ImageSet
from tellapart.data.samples import LEFT_OUT, Samples
from tellapart.data.stores import images as decoded
from tellapart.errors import DataError
from tellapart.models import weights
from tellapart.preprocess import Preprocessing
from tellapart.spec import DataSpec, Spec
from tellapart.training.resolution import Resolution, Stage, facts
from tellapart.training.resolution.inputs import contract as contract_of

FAINT = 1.5  # levels; where all pixels deviate by less, rounding them leaves little


@dataclass(frozen=True)
class RunData:
    """The images of a run, its spec as far as it is resolved, and its preprocessing contract."""

    resolution: Resolution
    contract: Preprocessing
    augment: Augment
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    bad: tuple[decoded.Bad, ...]

    @property
    def spec(self) -> Spec:
        """The spec; nothing in it is left open after `complete`."""
        return self.resolution.spec

    @property
    def weights(self) -> weights.WeightsInfo | None:
        """What the weights say about themselves; None without weights."""
        model = self.resolution.facts.model
        return model.info if model else None

    @property
    def unused_range(self) -> str:
        """A warning: the images use a small part of the range that their files can hold."""
        data = self.resolution.facts.data
        if self.contract.depth == "float32" and self.weights is None:
            return ""  # dark is not lost, and the mean and deviation are measured
        return data.seen.unused_range() if data and self.contract.range is None else ""

    @property
    def rounded_away(self) -> str:
        """A warning: images of more than 8 bits hardly differ any more, rounded to 256 levels."""
        known = self.resolution.facts
        if self.contract.depth != "uint8" or not known.data or not known.data.seen.deep or not known.pixels:
            return ""
        widest = 255 * max(known.pixels.std)
        if widest >= FAINT:
            return ""
        return (
            f"The images of more than 8 bits deviate from their mean by {widest:.1g} of 256 levels only: rounding to "
            "levels loses most of what is in them. Keep it with --input.depth float32, or name the numbers that matter "
            "with --input.range LOW-HIGH."
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.train.samples.classes

    def label_names(self, label: npt.NDArray[Any]) -> str:
        """Return what a label of a batch says: a class by index, or several by their places."""
        if not label.ndim:
            return self.classes[int(label)]
        return ", ".join(self.classes[k] for k in np.flatnonzero(label)) or "none"


def prepare(wanted: Spec | Resolution, samples: Samples, advance: Callable[[int], None]) -> RunData:
    """Choose what the images and the weights decide, and decode the images.

    Options for speed are chosen by `complete`, once there is a network. Raises DataError, SpecError, ModelError.
    """
    _check_samples(samples)
    resolution = wanted if isinstance(wanted, Resolution) else Resolution(wanted)
    if resolution.stage is Stage.WANTED:
        resolution = resolution.by_data(facts.of_data(resolution.spec, samples))
    spec = resolution.spec
    contract = contract_of(spec.input)
    train, bad = _decoded_training(samples, spec, contract, advance)
    resolution = resolution.by_pixels(facts.of_pixels(train) if resolution.needs_pixels else None)
    spec = resolution.spec
    contract = contract_of(spec.input)
    bad = [*(decoded.Bad(item.path, item.reason) for item in samples.unusable), *bad]
    others: dict[str, ImageSet | None] = {"val": None, "test": None}
    for split in others:
        if (samples.splits == split).any():
            others[split], more = _of_split(samples, split, spec.data, _evaluated(contract, spec, advance))
            bad += more
    for split, images in others.items():
        if images is not None and not len(images):
            raise DataError(f"None of the {split} images can be read.")
    augment = Augment(spec.augment, contract, len(samples.classes), seed=spec.seed)
    if augment.own is not None:
        augment.own.check(contract.sides, contract.channels, contract.depth)
    return RunData(resolution, contract, augment, train, others["val"], others["test"], tuple(bad))


def _check_samples(samples: Samples) -> None:
    """Raise DataError if there is nothing to train on."""
    if len(samples.classes) < 2:
        raise DataError(
            f"{samples.root or samples.name} has only the class {samples.classes[0]!r}; training needs two."
        )
    if not (samples.splits == "train").any():
        raise DataError(f"{samples.root or samples.name} has no training images.")
    for split in ("train", "val", "test"):
        part = samples.split(split)
        if part.targets is not None and len(part) and not part.targets.any():
            raise DataError(
                f"None of the {len(part):,} {split} images of {samples.root or samples.name} has a label, so there is "
                "nothing to learn or to measure in them."
            )


_Read = tuple[ImageSet, list[decoded.Bad]]


def _decoded_training(
    samples: Samples, spec: Spec, contract: Preprocessing, advance: Callable[[int], None]
) -> _Read:
    """Return the training images as augmentation needs them, and the bad ones. Raises DataError if all are bad."""
    decode = _evaluated(contract, spec, advance)
    if needs_large_source(spec.augment):
        reduced = spec.input.decode != "full"

        def decode(part: Samples) -> _Read:
            return decoded.augmentation_sources(part, contract, spec.data, advance, reduced)

    train, bad = _of_split(samples, "train", spec.data, decode)
    if not len(train):
        count = int((samples.splits == "train").sum())
        raise DataError(f"None of the {count} training images can be read; the first: {bad[0]}")
    return train, bad


def _evaluated(
    contract: Preprocessing, spec: Spec, advance: Callable[[int], None]
) -> Callable[[Samples], _Read]:
    """Return a function that decodes images exactly by the contract."""
    return lambda part: decoded.evaluation_images(part, contract, spec.data, advance)


def _of_split(samples: Samples, split: str, spec: DataSpec, decode: Callable[[Samples], _Read]) -> _Read:
    """Return a split's images, and the bad ones.

    The folds of a cross-validation share a store of all images, those of the training split its store.
    """
    if not spec.fold:
        if not spec.leave_out or split != "train":
            return decode(samples.split(split))
        samples = samples.select((samples.splits == "train") | (samples.splits == LEFT_OUT))
    images, bad = decode(samples)
    paths = set(samples.split(split).paths)
    return images.select(images.samples.splits == split), [one for one in bad if one.path in paths]
