"""Less data: images that are learned well are read in some epochs only (InfoBatch).

The method is InfoBatch (Qin et al., ICLR 2024, arXiv:2303.04947). In each epoch some of the images whose last seen loss
is below the mean are left out, different ones each time, and the losses of the remaining ones of them count more, so
that the epoch's gradient is in expectation that of all images. The last epochs read everything, which removes the
remaining bias. An order is a function of seed, epoch and the losses known when the epoch began; all processes know the
same. Knows nothing of models, images or batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.loader import RawBatch
from tellapart.devices import put
from tellapart.errors import SpecError
from tellapart.spec import AugmentSpec, TrainingSpec
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes

if TYPE_CHECKING:
    from tellapart.training.loop import Trainer
    from tellapart.training.step import Outcome

Order = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
_STREAM = 1 << 63  # keeps these random numbers separate from those of the epochs' orders


def choose(scores: npt.NDArray[np.float32], part: float, seed: int, epoch: int) -> Weights:
    """Return the weight of each image in an epoch's loss, float32 [N]; 0: it is left out.

    ``scores``: last seen losses, float32 [N], NaN if there is none yet. Of the n images below the mean of the
    known ones floor(part * n) are left out, the others weigh n / (n - floor(part * n)); all else weighs 1.
    """
    weights = np.ones(len(scores), np.float32)
    known = ~np.isnan(scores)
    if not known.any():
        return weights
    easy = np.flatnonzero(known & (scores < scores[known].mean(dtype=np.float64)))
    drop = int(part * len(easy))
    if not drop:
        return weights
    key = np.array([seed % 2**64, _STREAM + epoch], dtype=np.uint64)
    left_out = np.random.Generator(np.random.Philox(key=key)).permutation(easy)[:drop]
    weights[easy] = len(easy) / (len(easy) - drop)
    weights[left_out] = 0
    return weights


def check(spec: TrainingSpec, augment: AugmentSpec) -> None:
    """Raise SpecError if pruning cannot be combined with the other options."""
    if not spec.prune:
        return
    if spec.sampling != "shuffle":
        raise SpecError(
            f"training.prune is {spec.prune:g}, which decides how often an image is read, and training.sampling is "
            f"{spec.sampling!r}, which does too. Use --training.sampling shuffle, or --training.class-weights."
        )
    if augment.mixup or augment.cutmix:
        raise SpecError(
            f"training.prune is {spec.prune:g}, which needs each image's own loss; MixUp and CutMix have none. "
            "Use --augment.mixup 0 --augment.cutmix 0."
        )


class InfoBatch(Callback):
    """Which images an epoch reads, by their losses.

    ``weights`` holds each image's weight in the current epoch, float32 [N].
    """

    name = "infobatch"

    def __init__(
        self, spec: TrainingSpec, count: int, seed: int, device: torch.device, processes: Processes
    ) -> None:
        self.spec, self.seed, self.processes = spec, seed, processes
        self.scores = np.full(count, np.nan, np.float32)  # known when the epoch began
        self.weights: Weights = np.ones(count, np.float32)
        self._seen = torch.full((count,), torch.nan, device=device)  # in this epoch, by this process
        self._images: Order | None = None  # positions of the current step's images, if their losses count

    # Hooks

    def on_fit_start(self, trainer: Trainer) -> None:
        """See Callback."""
        self.trainer = trainer

    def on_epoch_start(self, epoch: int) -> None:
        """Leave out images of the epoch's order."""
        self.trainer.order = self.order(self.trainer.order, epoch, self.trainer.passes)

    def before_step(self, batch: RawBatch) -> RawBatch:
        """Return the batch with its images' weights in the loss."""
        self._images = None if batch.filler else batch.ours
        return dataclasses.replace(batch, weights=torch.from_numpy(self.weights[batch.ours]))

    def after_step(self, outcome: Outcome) -> None:
        """Note the losses."""
        if self._images is not None:
            self.note(self._images, outcome.losses)

    def on_epoch_end(self, values: Mapping[str, float]) -> None:
        """See ``end_epoch``."""
        self.end_epoch()

    # The method

    def order(self, order: Order, epoch: int, passes: float | None = None) -> Order:
        """Return what is read of an epoch's ``order`` of all images, and set ``weights``.

        ``passes``: how many of the plan are done; None: as many as epochs.
        """
        passes = epoch if passes is None else passes
        spec = self.spec
        begins, ends = spec.prune_from * spec.epochs, spec.prune_until * spec.epochs
        if begins <= passes < ends:
            self.weights = choose(self.scores, spec.prune, self.seed, epoch)
        else:
            self.weights = np.ones_like(self.scores)
        return order[self.weights[order] > 0]

    def note(self, images: Order, losses: torch.Tensor) -> None:
        """Note these images' losses, float32 [b] on the device (without waiting for the device)."""
        self._seen[put(torch.from_numpy(images), self._seen.device)] = losses.to(self._seen.dtype)

    def gather(self) -> None:
        """Share what every process has noted in this epoch with all of them."""
        merged = self._seen.cpu().numpy()
        for other in self.processes.gather(merged):
            merged = np.where(np.isnan(merged), other, merged)
        self._seen.copy_(torch.from_numpy(merged))

    def end_epoch(self) -> None:
        """Take over the epoch's losses: the next order is by them."""
        self.gather()
        seen = self._seen.cpu().numpy()
        self.scores = np.where(np.isnan(seen), self.scores, seen)
        self._seen.fill_(torch.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of all processes, with those of the current epoch separate."""
        self.gather()
        return {"scores": torch.from_numpy(self.scores.copy()), "seen": self._seen.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.scores = state["scores"].numpy().copy()
        self._seen.copy_(state["seen"])
