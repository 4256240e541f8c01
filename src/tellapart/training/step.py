"""One step: gradients of a batch, in micro-batches as small as memory requires, and an update of the weights.

Everything random in a step is a function of the seed and the step's number. Knows nothing of epochs, schedules,
validation or checkpoints.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tellapart.data.loader import ImageSet, RawBatch
from tellapart.devices import AMP_DTYPES, halved, is_out_of_memory, release, seed_device
from tellapart.errors import TrainingError
from tellapart.spec import Spec
from tellapart.training.budget import Timeline
from tellapart.training.callbacks import Callback
from tellapart.training.distributed import Processes
from tellapart.training.methods.ema import Ema
from tellapart.training.schedule import Schedule
from tellapart.training.sections import Sections
from tellapart.training.speed.compiled import Graphs
from tellapart.training.task import Batch, Task

_NOTHING = contextlib.nullcontext()
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Way:
    """What a stage of training runs: the whole network on images, or its head on features.

    ``model`` turns what ``task`` makes of ``train`` into logits; ``validate`` measures it. ``known``
    returns a network's logits for the validation images, float32 [N, K] on the CPU, if they are available without
    running it, otherwise None. ``fit``, if it is set, trains the epoch without steps (see `Fit`). ``val``: the
    validation images as ``train`` has its own, if the stage is on features.
    """

    model: torch.nn.Module
    train: ImageSet
    task: Task
    validate: Callable[[torch.nn.Module], dict[str, float]] | None
    known: Callable[[torch.nn.Module], torch.Tensor | None] = lambda model: None
    fit: Callable[[], Fit] | None = None
    val: ImageSet | None = None


@dataclass(frozen=True)
class Fit:
    """What a solver has done to the network in place of an epoch's steps.

    ``text``: in words; ``loss``, ``metrics``: what the task reports, sums over all ``images``.
    """

    text: str
    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    images: int


@dataclass
class Plan:
    """Everything that training needs, put together by ``setup``.

    ``on_features``, if it is set, returns the faster way to train the head alone; it is called only when that stage
    begins, because it may have to compute the features. ``fitting`` returns the way of the epoch in which a solver fits
    the head. ``callbacks`` are those that the spec asks for.
    """

    spec: Spec
    model: torch.nn.Module
    blocks: list[list[str]]
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: ImageSet
    validate: Callable[[torch.nn.Module], dict[str, float]] | None
    images_per_epoch: int
    images_per_pass: int = 0  # 0: as an epoch
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None
    plain_kernels: bool = False
    channels_last: bool = False
    graphs: bool = False  # replay whole steps as CUDA graphs
    search: bool = False  # let cuDNN try its kernels
    on_features: Callable[[], Way] | None = None
    fitting: Callable[[], Way] | None = None
    val_counts: npt.NDArray[np.int64] | None = None  # validation images of each class
    callbacks: list[Callback] = field(default_factory=list)
    sections: Sections = field(default_factory=Sections)

    @property
    def whole(self) -> Way:
        """The way that always works: the whole network on images."""
        return Way(self.model, self.train, self.task, self.validate)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer; the last may have fewer images."""
        return -(-self.images_per_epoch // self.spec.training.batch_size)

    @property
    def steps_per_pass(self) -> int:
        """Steps for all training images, for which an epoch of fewer images takes several epochs."""
        return -(-(self.images_per_pass or self.images_per_epoch) // self.spec.training.batch_size)

    @property
    def timeline(self) -> Timeline:
        """The steps of the run as planned, before anything moves its end."""
        passes = self.spec.training.epochs
        return Timeline(passes * self.steps_per_pass, self.steps_per_pass, self.steps_per_epoch)


@dataclass(frozen=True)
class Outcome:
    """A step's sums over this process's images, and the gradient's norm or None, all scalars on the device.

    metrics: what the task reports, by name; losses: each image's, float32 [B] on the device.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    norm: torch.Tensor | None
    losses: torch.Tensor


class _Sums(NamedTuple):
    """The sums of `Outcome` for some of the images, the metrics in the order of the task's names."""

    loss: torch.Tensor
    metrics: tuple[torch.Tensor, ...]
    losses: torch.Tensor


def step_seed(seed: int, step: int, stream: int) -> int:
    """Return a 63-bit seed of (seed, step, stream), mixed by SplitMix64's finaliser (Steele et al., 2014)."""
    z = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB + 1 & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return (z ^ z >> 31) >> 1


class Stepper:
    """Takes steps of a plan.

    ``network`` is the model, or what wraps it; ``task`` the plan's, or the one of a way on features; ``micro`` the
    images computed at once.
    """

    def __init__(self, plan: Plan, processes: Processes, warn: Callable[[str], None]) -> None:
        self.plan, self.processes, self.warn = plan, processes, warn
        self.training, self.sections = plan.spec.training, plan.sections
        self.network, self.task = plan.model, plan.task
        plan.task.sections = plan.sections
        local = math.ceil(self.training.batch_size / processes.world)
        self.first_micro = self.micro = max(1, math.ceil(local / self.training.accumulate))
        self._generator = torch.Generator()
        self._own, self._own_buffers = plan.task.own_parameters(), plan.task.own_buffers()
        self._parameters = [*plan.model.parameters(), *self._own]
        self._buffers = [*plan.model.buffers(), *self._own_buffers]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._amp = AMP_DTYPES[self.training.precision]
        self.graphs: Graphs | None = None  # replays steps that are one micro-batch, if wanted

    def take(self, batch: RawBatch, step: int, measure: bool) -> Outcome:
        """Compute the batch's gradients and update the weights; with ``measure`` the gradient's norm too.

        If memory runs out, the micro-batch is halved and the step is started again. Raises TrainingError if that cannot
        help, FloatingPointError (before the update) if the loss is seen not to be finite.
        """
        if self._own_buffers:  # such as a queue, which every process would otherwise fill differently
            self.processes.share(self._own_buffers)
        if (
            self._buffers
        ):  # batch norms change their statistics in the forward pass, so an attempt needs a copy
            torch._foreach_copy_(self._kept, self._buffers)
        while True:
            try:
                sums = self._gradients(batch, step)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error)
            self._halve(problem)  # outside the handler, whose traceback keeps the step's tensors alive
            if self._buffers:  # a failed attempt may have moved batch norms' statistics
                torch._foreach_copy_(self._buffers, self._kept)
        # On the CPU the check is free and prevents ruined weights; on a GPU it would wait, so the loop checks later.
        if sums.loss.device.type == "cpu" and not math.isfinite(sums.loss.item()):
            raise FloatingPointError
        with self.sections("optimizer"):
            norm = self._update(measure)
        metrics = dict(zip(self.task.metrics, sums.metrics, strict=True))
        return Outcome(sums.loss, metrics, norm, sums.losses)

    def _gradients(self, batch: RawBatch, step: int) -> _Sums:
        """Add up the gradients of the mean loss over the global batch."""
        # Augmentation is drawn alike in all processes, for the global batch (stream 0); dropout differs by process.
        # Seeding here, in each attempt, makes a step that is started again draw the same numbers.
        seed = self.plan.spec.seed
        self._generator.manual_seed(step_seed(seed, step, 0))
        seed_device(self.processes.device, step_seed(seed, step, 1 + self.processes.rank))
        for parameter in self._parameters:
            parameter.grad = None
        with self.sections("augment"):
            inputs = self.task.inputs(batch, self._generator, self.micro)
        total = len(inputs)
        if total <= self.micro or not self.task.separable:
            return self._part(inputs, batch, 0, True)
        parts = [
            self._part(inputs.part(start, start + self.micro), batch, start, start + self.micro >= total)
            for start in range(0, total, self.micro)
        ]
        totals, metrics, losses = zip(*parts, strict=True)
        added = tuple(torch.stack(values).sum() for values in zip(*metrics, strict=True))
        return _Sums(torch.stack(totals).sum(), added, torch.cat(losses))

    def _part(self, part: Batch, batch: RawBatch, start: int, last: bool) -> _Sums:
        # A replay overwrites gradients instead of adding to them, so it is only for steps of one micro-batch.
        whole = start == 0 and last and batch.count == self.training.batch_size
        if self.graphs is not None and whole and batch.weights is None and not self._own:
            return self._replayed(self.graphs, part)
        # DistributedDataParallel averages over the processes, but the loss is the mean over the global batch.
        weight = self.processes.world / batch.count
        # The processes exchange gradients once for each step, with its last micro-batch.
        with self._no_sync() if not last else _NOTHING, self._autocast():
            losses, metrics = self._losses(part)
            total = losses.sum()
            counted = total
            if batch.weights is not None:
                counted = (losses * batch.weights[start : start + len(losses)]).sum()
            if batch.filler:  # this process has no image in the step, but the others wait for its gradients
                total, counted = total * 0, counted * 0
                metrics = tuple(value * 0 for value in metrics)
            self._backward(counted * weight)
        if last and self._own and self.processes.world > 1:
            self._average_own()
        return _Sums(total.detach(), metrics, losses.detach())

    def _replayed(self, graphs: Graphs, part: Batch) -> _Sums:
        """Return what `_part` does for a whole batch, recorded once and replayed."""

        def work(
            images: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            # autocast must not reuse a cast weight of another pass: a recording has its own memory.
            with torch.autocast(
                images.device.type, self._amp, enabled=self._amp is not None, cache_enabled=False
            ):
                losses, metrics = self._losses(Batch(images, targets, labels))
                total = losses.sum()
                self._backward(total / self.training.batch_size)
            return total.detach(), *metrics, losses.detach()

        assert isinstance(part.images, torch.Tensor)
        assert part.targets is not None
        assert part.labels is not None
        with self.sections("replayed"):
            total, *metrics, losses = graphs.run(work, part.images, part.targets, part.labels)
        return _Sums(total, tuple(metrics), losses)

    def _backward(self, loss: torch.Tensor) -> None:
        scaler = self.plan.scaler
        with self.sections("backward"):
            (scaler.scale(loss) if scaler else loss).backward()

    def _average_own(self) -> None:
        """Average the gradients of the task's own parameters, which DistributedDataParallel does not know."""
        for parameter in self._own:
            if parameter.grad is not None:
                self.processes.add_up(parameter.grad)
                parameter.grad /= self.processes.world

    def _losses(self, part: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return each image's loss, and the sums of the task's metrics in the order of their names."""
        with self.sections("forward"):
            losses, sums = self._forward(part)
        return losses, tuple(sums[name] for name in self.task.metrics)

    def _forward(self, part: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the task's result.

        A batch norm over 1 x 1 maps cannot measure a lone image (such as the remainder of a batch computed in
        micro-batches): for that image the batch norms use their running statistics.
        """
        try:
            return self.task.loss(self.network, part)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
        kinds = torch.nn.modules.batchnorm._BatchNorm
        norms = [m for m in self.plan.model.modules() if isinstance(m, kinds) and m.training]
        for norm in norms:
            norm.eval()
        try:
            return self.task.loss(self.network, part)
        finally:
            for norm in norms:
                norm.train()

    def _update(self, measure: bool) -> torch.Tensor | None:
        """Step the optimizer; return the gradient's norm, a scalar on the device, if ``measure`` is set."""
        plan, clip = self.plan, self.training.clip_norm
        norm: torch.Tensor | None = None
        if plan.scaler and (clip or measure):  # norms are those of the true gradients, not of the scaled ones
            plan.scaler.unscale_(plan.optimizer)
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, clip)
        elif measure:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        if plan.scaler:
            plan.scaler.step(plan.optimizer)
            plan.scaler.update()
        else:
            plan.optimizer.step()
        if plan.ema:
            plan.ema.update(plan.model)
        self.task.after_step(plan.model)
        return norm if measure else None

    def _halve(self, error: str) -> None:
        """Halve the micro-batch; raise TrainingError if that cannot help."""
        smaller = halved(self.micro, error)
        if not self.task.separable:
            raise TrainingError(
                f"Out of memory with {self.training.batch_size} images at a time. This loss compares the images of a "
                "batch with one another, so a step cannot be computed in micro-batches; use a smaller "
                f"--training.batch-size, --input.size or model. ({error})"
            )
        if self.processes.world > 1:
            raise TrainingError(
                f"Out of memory in process {self.processes.rank}. With several processes the micro-batch is not "
                f"halved by itself; use --training.accumulate {self.training.accumulate * 2}. ({error})"
            )
        if self.micro == self.first_micro:
            self.warn(
                f"Out of memory: a step's {self.training.batch_size} images are now computed in smaller "
                "micro-batches (halved until they fit); the effective batch stays the same."
            )
        self.micro = smaller
        for parameter in self._parameters:
            parameter.grad = None
        release(self.processes.device)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.network, torch.nn.parallel.DistributedDataParallel):
            return self.network.no_sync()
        return _NOTHING

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.processes.device.type, self._amp) if self._amp else _NOTHING
