"""Tasks: what is trained. A task turns a raw batch into the network's inputs, and those into losses.

The loop and the step only know `Task`. Another kind of training is another class here or elsewhere: distillation
(`methods.distillation`) is one, contrastive learning with two views and a projection head would be another. Knows
nothing of optimizers, epochs or processes.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import torch

from tellapart.augment import Augment, Params
from tellapart.data.loader import RawBatch, source_sizes
from tellapart.errors import RunError, SpecError, did_you_mean
from tellapart.evaluation import metrics, ordinal
from tellapart.sections import meant
from tellapart.training import own_metrics
from tellapart.training.losses import Loss, soft_labels
from tellapart.training.sections import Sections

Images = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """What a task computes its loss from: the network's inputs, and what is known about each image.

    images: float32 [B, C, H, W]; for several views of each image a tuple of such tensors, or one [V * B, C, H, W],
    in which case ``count`` says how many images there are. targets: int64 [B] or soft float32 [B, K], or None;
    labels: int64 [B], or float32 [B, K] where an image can have several, or None.
    """

    images: Images
    targets: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    count: int = 0

    def __len__(self) -> int:
        if self.count:
            return self.count
        return len(self.images[0] if isinstance(self.images, tuple) else self.images)

    def part(self, start: int, stop: int) -> Batch:
        """Return images ``start`` to ``stop``."""
        if start == 0 and stop >= len(self):
            return self
        ours = slice(start, stop)
        images = self.images
        cut = tuple(view[ours] for view in images) if isinstance(images, tuple) else images[ours]
        targets, labels = (None if x is None else x[ours] for x in (self.targets, self.labels))
        return Batch(cut, targets, labels)


@dataclass(frozen=True)
class Each:
    """How N images were answered: each one's loss, float32 [N], and which rightly, bool [N].

    ``right`` is None where an answer is not simply right or wrong.
    """

    losses: torch.Tensor
    right: torch.Tensor | None = None


class Task(torch.nn.Module, abc.ABC):
    """What is minimised, and the figures by which the result is judged.

    A task may own networks, parameters and buffers: a projection head, a momentum encoder, a queue, a teacher. They
    go to the device and into checkpoints; the optimizer trains those that require a gradient; several processes
    average these gradients and share the buffers. The network that is trained is not one of them: it is passed to
    ``loss``, with its wrappers (call it once, with all views in one batch, since processes wait for each other there).
    """

    separable = True
    """Whether an image's loss depends on that image alone, so that a batch may be computed in micro-batches."""
    on_features = False
    """Whether a frozen backbone's features may be used instead of images."""
    metrics: tuple[str, ...] = ()
    """What ``loss`` reports besides the losses."""
    score_names: tuple[str, ...] = ()
    """What ``scores`` reports; if empty, there is no validation."""
    lower_is_better: frozenset[str] = frozenset({"loss"})
    """The scores for which lower is better."""
    not_saved: tuple[str, ...] = ()
    """Submodules that the spec names by their files, such as a teacher: neither saved nor trained."""

    def __init__(self) -> None:
        super().__init__()
        self.sections = Sections()

    @abc.abstractmethod
    def inputs(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        """Return the network's inputs for a whole step, computed at most ``micro`` images at a time.

        Random numbers are drawn for the global batch, so that they do not depend on the number of processes.
        """

    @abc.abstractmethod
    def loss(self, network: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each image, float32 [b], and by name the sums of ``metrics`` over them, scalars."""

    def after_step(self, network: torch.nn.Module) -> None:
        """The weights were updated: a momentum encoder follows here."""

    def scores(self, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Return figures of the network's outputs for all validation images, [N, ...], by name."""
        raise NotImplementedError

    def each(self, outputs: torch.Tensor, labels: torch.Tensor) -> Each | None:
        """Return how each validation image was answered, if two networks can be compared by that."""
        return None

    # What belongs to the task alone

    def _belongs(self, name: str) -> bool:
        return not any(name == other or name.startswith(f"{other}.") for other in self.not_saved)

    def own_parameters(self) -> list[torch.nn.Parameter]:
        """Return the task's own parameters."""
        return [value for name, value in self.named_parameters() if self._belongs(name)]

    def own_buffers(self) -> list[torch.Tensor]:
        """Return the task's own buffers."""
        return [value for name, value in self.named_buffers() if self._belongs(name)]

    def own_state(self) -> dict[str, Any]:
        """Return the task's state for a checkpoint."""
        return {name: value for name, value in self.state_dict().items() if self._belongs(name)}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what ``own_state`` returned. Raises RunError if it is another task's."""
        if different := sorted(state.keys() ^ self.own_state().keys()):
            raise RunError(
                f"The checkpoint holds another state than the task {type(self).__name__} has; what differs: "
                f"{', '.join(different[:3])}."
            )
        self.load_state_dict(state, strict=False)

    def train(self, mode: bool = True) -> Task:
        """Set the mode, but keep what is not trained in evaluation mode."""
        super().train(mode)
        for name in self.not_saved:
            self.get_submodule(name).eval()
        return self

    def check(self, metric: str, accumulate: int) -> None:
        """Raise SpecError for a metric that this task does not report, or for micro-batches if it cannot have them."""
        if self.score_names and metric not in self.score_names:
            valid = list(self.score_names)
            hint = did_you_mean(metric, valid, meant=meant(metric, valid))
            raise SpecError(f"training.best_metric is {metric!r}, which validation does not report. {hint}")
        if not self.separable and accumulate > 1:
            raise SpecError(
                f"training.accumulate is {accumulate}, but this loss compares the images of a batch with one another "
                "and is not a sum over micro-batches. Use training.accumulate 1."
            )


class Labelled(Task):
    """Images with labels: augment, mix, and compare the logits with the targets, whatever a label is."""

    on_features = True

    def __init__(self, augment: Augment, criterion: Loss) -> None:
        super().__init__()
        self.augment = augment
        self.criterion = criterion

    def inputs(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        """See Task. MixUp and CutMix mix within one process's slice of the batch, the targets as the images."""
        images = augmented(self.augment, batch, generator, micro)
        images, targets = self.augment.mix(images, batch.labels, generator)
        return Batch(images, targets, batch.labels)

    def loss(self, network: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See Task."""
        logits = network(batch.images)
        with self.sections("loss"):
            losses = self.by_labels(logits, batch)
        return losses, {self.metrics[0]: self.counted(logits, batch)}

    def by_labels(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image by its labels, float32 [b]."""
        assert batch.targets is not None
        return self.criterion(logits, batch.targets)

    @abc.abstractmethod
    def counted(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the first of ``metrics`` over the images, a scalar on the device."""

    @abc.abstractmethod
    def follow(self, logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return how far the logits are from a teacher's, both [b, K], for each image, float32 [b]."""


class Classification(Labelled):
    """Classification where an image has one label."""

    metrics = ("accuracy",)
    score_names: tuple[str, ...] = ("accuracy", "macro-f1", "balanced-accuracy", "loss")

    def __init__(self, augment: Augment, criterion: Loss, ordered: bool = False) -> None:
        """``ordered``: whether classes are grades, the lowest first."""
        super().__init__(augment, criterion)
        self.own_metrics: own_metrics.Metrics = {}
        self.ordered = ordered
        if ordered:
            self.score_names = (*self.score_names, *ordinal.QUICK)
            self.lower_is_better = self.lower_is_better | {"mae"}

    def with_metrics(self, metrics: own_metrics.Metrics) -> Classification:
        """Report these too."""
        self.own_metrics, self.score_names = metrics, (*self.score_names, *metrics)
        return self

    def counted(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See Labelled."""
        return right(logits, batch)

    def follow(self, logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
        """See Labelled."""
        return soft_labels(logits, taught, temperature)

    def each(self, outputs: torch.Tensor, labels: torch.Tensor) -> Each:
        """See Task."""
        outputs, labels = outputs.float().cpu(), labels.cpu()
        losses = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
        return Each(losses, outputs.argmax(1) == labels)

    def scores(self, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """See Task."""
        found = metrics.quick(outputs, labels)
        guess = outputs.argmax(1).cpu().numpy()
        if self.ordered:
            found |= ordinal.quick(labels.cpu().numpy(), guess)
        if self.own_metrics:
            found |= own_metrics.measure(self.own_metrics, labels.cpu().numpy(), guess)
        return found


def right(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return how many rows of the logits, [B, K], have their largest value at the label, a scalar on the device."""
    assert batch.labels is not None
    return (logits.detach().argmax(1) == batch.labels).sum()


def augmented(augment: Augment, batch: RawBatch, generator: torch.Generator, micro: int) -> torch.Tensor:
    """Return one augmented view of each image, float32 [B, C, H, W]; called again, another view."""
    if batch.window is not None and batch.within is not None and not augment.changes:
        return batch.window.part(
            batch.within, lambda images: augment.apply(images, None, Params(len(images)))
        )
    sizes = source_sizes(batch) if augment.needs_large_source else None
    params = augment.draw(batch.count, sizes, generator, batch.epoch, batch.positions)
    first, count = batch.start, len(batch.images)
    parts = []
    for start in range(0, count, micro):
        stop = min(start + micro, count)
        ours = slice(first + start, first + stop)
        local = None if batch.sizes is None else batch.sizes[ours]
        parts.append(augment.apply(batch.images[start:stop], local, params[ours]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
