"""Parts of tellapart for your own programs; each works without the others.

The contract (`Preprocessing`, `load`, `resize`, `normalise`), the store of decoded images and its loader
(`open_images`, `batches`), the batched augmentation (`Augmentation`), the sampler that resumes exactly where it was
(`ResumableSampler`), the comparison of two callables (`parity`) and a model as a function of pixels (`Predictor`,
`open_model`). These names stay where they are; what they are made of may move. Knows nothing of whole runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.artifact import Predictor, open_model
from tellapart.augment import Augment, resolve
from tellapart.data.loader import ImageSet, RawBatch, batches, source_sizes
from tellapart.data.sources.listing import many
from tellapart.data.sources.objects import take
from tellapart.data.stores.images import augmentation_sources, evaluation_images
from tellapart.errors import RunError, SpecError
from tellapart.export.callables import Agreement, parity
from tellapart.preprocess import Preprocessing, as_module, load, normalise, resize
from tellapart.spec import AugmentSpec
from tellapart.tracking import Console
from tellapart.training.sampling import epoch_length, epoch_order
from tellapart.workflow.asked import make_spec
from tellapart.workflow.given import open_data

__all__ = [
    "Agreement",
    "Augmentation",
    "ImageSet",
    "Predictor",
    "Preprocessing",
    "RawBatch",
    "ResumableSampler",
    "as_module",
    "batches",
    "epoch_order",
    "load",
    "normalise",
    "open_images",
    "open_model",
    "parity",
    "resize",
]


class Augmentation:
    """Random changes of whole batches on their device: pixels [B, H, W, C] in, the network's input out.

    The input is float32 [B, C, size, size], normalised by the contract. Equal in distribution to torchvision's
    transforms v2 (see `tellapart.augment`).
    """

    def __init__(
        self,
        contract: Preprocessing,
        num_classes: int,
        preset: str = "auto",
        *,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        """Take a preset (none, light, tutorial, cifar, photo, strong) and fields of the section ``augment`` over it."""
        spec = make_spec(None, None, None, augment={"preset": preset, **changes}).augment
        self.spec: AugmentSpec = resolve(spec, contract.size)
        self._augment = Augment(self.spec, contract, num_classes, seed=seed)

    @property
    def needs_large_source(self) -> bool:
        """Whether it takes crops of images of their own sizes, as `open_images` gives them."""
        return self._augment.needs_large_source

    def __call__(self, batch: RawBatch | torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the network's input for a batch of `batches`, or for pixels [B, H, W, C] of the contract's depth.

        ``generator``, on the CPU, is the only source of chance: with the same state the same batch comes of it.
        """
        if isinstance(batch, torch.Tensor):
            sizes = torch.tensor(batch.shape[1:3]).expand(len(batch), 2) if self.needs_large_source else None
            return self._augment.apply(batch, sizes, self._augment.draw(len(batch), sizes, generator))
        sizes = source_sizes(batch) if self.needs_large_source else None
        drawn = self._augment.draw(batch.count, sizes, generator, batch.epoch, batch.positions)
        rows = slice(batch.start, batch.start + len(batch.labels))
        return self._augment.apply(batch.images, sizes, drawn[rows])

    def mix(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and soft labels [B, num_classes] by MixUp or CutMix; both as given where neither is on."""
        return self._augment.mix(images, labels, generator)


def open_images(
    data: Any,
    contract: Preprocessing,
    augmentation: Augmentation | None = None,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> dict[str, ImageSet]:
    """Return the decoded images of a source by split (train, val, test): decoded once, then read from the store.

    Args:
        data: what `tellapart.train` takes: folder, list, archive, annotation file, name, or a Python object.
        contract: how images are decoded and sized.
        augmentation: of the training images; one that takes random crops gets images of their own sizes.
        val: as for `tellapart.train`.
        test: as for `tellapart.train`.
        classes: as for `tellapart.train`.
        quiet: no progress and messages on standard error, but for warnings.
        changes: fields of the section ``data``, such as ``cache_dir="…"``.

    Of each, ``samples`` is the table (paths, labels, classes). An image that cannot be read is left out with a warning,
    or is an error with ``on_bad_image="error"``. Raises DataError, SpecError.
    """
    given = take(data, val, test, classes)
    spec = make_spec(given or data, None, None, data=changes).data
    found = {}
    with Console(quiet=quiet) as console:
        if given is not None:
            given.ranged, given.depth = contract.range is not None, contract.depth
        samples = open_data(spec, given, console, console.message, console.warn)
        for split in ("train", "val", "test"):
            part = samples.split(split)
            if not len(part):
                continue
            large = split == "train" and augmentation is not None and augmentation.needs_large_source
            make = augmentation_sources if large else evaluation_images
            with console.busy(f"Reading {split} images", len(part)) as busy:
                found[split], bad = make(part, contract, spec, busy.advance)
            if bad:
                console.warn(
                    f"{many(len(bad), 'image')} cannot be read, left out; the first: {bad[0].path}: {bad[0].reason}"
                )
    return found


class ResumableSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of positions for a ``DataLoader`` (as its ``batch_sampler``), which resume exactly where they were.

    Each ``for`` over it is what is left of the current epoch. Call `done` after each step: what a loader has read ahead
    does not count, so the state is that of the training and not of the loader. An epoch's order is a function of
    seed and epoch alone.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        batch_size: int,
        mode: str = "shuffle",
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Take int labels [N] and a mode: shuffle, oversample, undersample or weighted (see `epoch_order`)."""
        if batch_size < 1:
            raise SpecError(f"batch_size is {batch_size}; it must be at least 1.")
        self.labels = np.asarray(labels, np.int64)
        self.batch_size, self.mode, self.seed, self.drop_last = batch_size, mode, seed, drop_last
        self.epoch = self.step = 0
        images = epoch_length(self.labels, mode)
        self.steps = images // batch_size if drop_last else -(-images // batch_size)
        """Batches of a whole epoch."""
        if not self.steps:
            raise SpecError(f"{images} images make no batch of {batch_size}.")

    def __len__(self) -> int:
        return self.steps - self.step

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.labels, self.mode, self.seed, self.epoch)
        for step in range(self.step, self.steps):
            yield order[step * self.batch_size : (step + 1) * self.batch_size].tolist()

    def done(self) -> None:
        """Count one step; after the last of an epoch the next one begins."""
        self.step += 1
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: its position, and the images and options that it is for."""
        return {"epoch": self.epoch, "step": self.step, **self._about()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises RunError if it belongs to other images or options."""
        for name, value in self._about().items():
            if state.get(name) != value:
                raise RunError(f"The sampler's state is of {name} {state.get(name)!r}; here it is {value!r}.")
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _about(self) -> dict[str, Any]:
        return {
            "images": len(self.labels),
            "batch_size": self.batch_size,
            "mode": self.mode,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }
