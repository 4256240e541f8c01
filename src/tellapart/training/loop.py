"""The loop: batches in, better weights out, and nothing lost when it is cut off.

Everything random in a step (order of the images, augmentation, dropout) is a function of the seed and the
step's number, so a run that goes on from a checkpoint computes what the uncut run would have computed, bit for
bit on the CPU. Knows nothing of files other than checkpoints, of image sources, or of what the objective means.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from tellapart.data.loader import RawBatch, batches
from tellapart.devices import kernel_search, plain_kernels
from tellapart.models import heads
from tellapart.training import checkpoint, reporting, sampling
from tellapart.training.choosing import Chooser
from tellapart.training.distributed import Processes
from tellapart.training.interrupt import Interrupt
from tellapart.training.optim import set_lr
from tellapart.training.progress import Progress, State, content, take_up
from tellapart.training.reporting import Reporter
from tellapart.training.running import Reading, RunningMetrics
from tellapart.training.speed.compiled import Compiled, Graphs
from tellapart.training.speed.profile import Profile
from tellapart.training.step import Outcome, Plan, Stepper, Way

_SAVE_PART = 10.0  # an epoch's end gets a checkpoint so many times after what writing the last one took
_AGREE_EVERY = 20  # steps between the moments when several processes agree to stop or to save


@dataclass(frozen=True)
class _Asked:
    """A reading that the device may still be about to answer, and what else is told of its step."""

    reading: Reading
    step: int
    rate: float
    lr: float
    logged: bool


class Trainer:
    """Runs a plan to its end, or to where it is interrupted."""

    def __init__(
        self, plan: Plan, processes: Processes, folder: Path, report: Reporter, profile: Profile | None = None
    ) -> None:
        self.profile = profile
        self.plan, self.processes, self.folder, self.report = plan, processes, folder, report
        self.spec, self.training = plan.spec, plan.spec.training
        self.device = processes.device
        self.progress = Progress()
        self.chooser = Chooser(self.training, plan.val_counts)
        self.best: State | None = None
        # Blocks that train, parameters that do not any more.
        self.stage: tuple[int, tuple[str, ...]] | None = None
        self.on_features: Way | None = None
        self.interrupt = Interrupt()  # of the run, for who wants to know which signal stopped it
        self._save_seconds, self._saved_step = 0.0, -1
        self.stepper = Stepper(plan, processes, report.warn)
        self.log_every = self.spec.run.log_every or max(1, plan.steps_per_epoch // 10)
        self.running = RunningMetrics(self.device, self.progress.sums, self.progress.window)
        self._asked: collections.deque[_Asked] = collections.deque()
        self.on_save: Callable[[], None] = lambda: None  # called after each checkpoint, by the first process

    def run(self) -> Progress:
        """Train until the last epoch, early stopping, or an interruption. Raises TrainingError."""
        epochs = self.training.epochs
        self.report.start(epochs, self.plan.steps_per_epoch, self.progress.step)
        profile = self.profile or contextlib.nullcontext()
        with Interrupt() as interrupt, profile:
            self.interrupt = interrupt
            self._saved_at = time.monotonic()
            if self.profile:
                self.profile.attach(self)
            while self.progress.epoch < epochs and not self.progress.finished:
                self._set_stage()
                plain = plain_kernels(self.plan.plain_kernels, self.training.threads or 1)
                with plain, kernel_search(self.plan.search):
                    whole = self._train_epoch(interrupt)
                if not whole:
                    return self.progress
                self._end_epoch()
                if self.processes.any(interrupt.asked) and not self.progress.finished:
                    if self.progress.step != self._saved_step:
                        self.save()
                    return self.progress
        return self.progress

    # One epoch

    def _train_epoch(self, interrupt: Interrupt) -> bool:
        """Train the rest of the current epoch; return False where the user asked to stop (a checkpoint is saved)."""
        progress, plan = self.progress, self.plan
        order, way = self._order(), self.way
        steps = -(-len(order) // self.training.batch_size)
        heads.train_mode(way.model)
        started, seen, shown, before = time.perf_counter(), 0, 0.0, progress.seconds
        self.running = RunningMetrics(self.device, progress.sums, progress.window)
        for index, batch in self._batches(order):
            factor = plan.schedule.factor(progress.step)
            set_lr(plan.optimizer, self.training.lr, factor, progress.step)
            logging = (index + 1) % self.log_every == 0 or index + 1 == steps
            batch = self._weighted(batch)
            try:
                outcome = self.stepper.take(self._copy(batch), progress.step, logging)
            except FloatingPointError:
                self._not_finite()
            self._count(outcome, batch)
            # A step's number is its place in the schedule: an epoch of fewer images leaves numbers out.
            progress.step = (
                progress.epoch * plan.steps_per_epoch + (index + 1) * plan.steps_per_epoch // steps
            )
            progress.step_in_epoch = index + 1
            seen += batch.count
            now = time.perf_counter()
            progress.seconds = before + now - started
            if now - shown > 0.1 or logging:
                shown = now
                self._ask(outcome.norm, seen / max(now - started, 1e-9), factor, logging)
            self._tell()
            going = self._go_on(interrupt, index + 1 == steps)
            if self.profile:
                self.profile.stepped()
            if not going:
                return False
        self._tell(wait=True)
        progress.sums, progress.window = self.running.read()
        # Only now has a GPU done all that was asked for.
        progress.seconds = before + time.perf_counter() - started
        return True

    def _order(self) -> sampling.Order:
        """Return the positions of the current epoch's images, in order."""
        plan, epoch = self.plan, self.progress.epoch
        labels = plan.train.samples.labels
        order = sampling.epoch_order(labels, self.training.sampling, self.spec.seed, epoch)
        order = order[: plan.images_per_epoch]
        return plan.pruning.order(order, epoch) if plan.pruning else order

    def _batches(self, order: sampling.Order) -> Iterator[tuple[int, RawBatch]]:
        """Yield the rest of the epoch's (step in epoch, this process's part of the batch)."""
        progress, processes = self.progress, self.processes
        yield from batches(
            self.way.train,
            order,
            self.training.batch_size,
            progress.step_in_epoch,
            processes.rank,
            processes.world,
            progress.epoch,
            self.device,
        )

    def _weighted(self, batch: RawBatch) -> RawBatch:
        """Return a batch with its images' weights in the loss, where they have any."""
        if self.plan.pruning is None:
            return batch
        return dataclasses.replace(batch, weights=torch.from_numpy(self.plan.pruning.weights[batch.ours]))

    def _copy(self, batch: RawBatch) -> RawBatch:
        return batch.to(self.device)

    def _count(self, outcome: Outcome, batch: RawBatch) -> None:
        self.running.add(outcome.loss, outcome.right, 0 if batch.filler else len(batch.labels))
        if self.plan.pruning and not batch.filler:
            self.plan.pruning.note(batch.ours, outcome.losses)

    def _go_on(self, interrupt: Interrupt, last: bool) -> bool:
        """Save where it is time; return False where the run should stop here."""
        if self.processes.world > 1 and self.progress.step_in_epoch % _AGREE_EVERY and not last:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        save = self.processes.any(minutes >= self.spec.run.checkpoint_minutes)
        stop = self.processes.any(interrupt.asked)
        if stop or (save and not last):
            self._tell(wait=True)
            self._check_weights()
            self.save()
        return not stop

    def steps_at(self) -> Callable[[float], float]:
        """Return a function that takes one step at a learning rate and returns its loss, for the range test."""
        self._set_stage()
        way = self.way
        heads.train_mode(way.model)

        def endless() -> Iterator[RawBatch]:
            for epoch in itertools.count():
                labels = self.plan.train.samples.labels
                order = sampling.epoch_order(labels, self.training.sampling, self.spec.seed, epoch)
                for _, batch in batches(
                    way.train, order, self.training.batch_size, epoch=epoch, device=self.device
                ):
                    yield batch

        source = endless()

        def step(lr: float) -> float:
            set_lr(self.plan.optimizer, lr, 1.0)
            batch = next(source).to(self.device)
            try:
                outcome = self.stepper.take(batch, self.progress.step, False)
            except FloatingPointError:  # the test goes up to where training diverges
                return math.inf
            self.progress.step += 1
            return float(outcome.loss) / batch.count

        return step

    # Between epochs

    def _set_stage(self) -> None:
        """Choose which blocks train in this epoch; a pure function of the epoch, so resuming is exact."""
        model, blocks, spec = self.plan.model, self.plan.blocks, self.spec.model
        if self.plan.begin_epoch and (text := self.plan.begin_epoch(self.progress.epoch)):
            self.report.message(text)
        depth = len(blocks)
        if spec.finetune == "head":
            depth = 1
        elif spec.finetune == "staged":
            depth = heads.staged_depth(self.progress.epoch, self.training.epochs, spec.unfreeze, len(blocks))
        frozen = self._done()
        if (depth, frozen) == self.stage:
            return
        if self.stage and depth != self.stage[0]:
            self.report.message(
                f"Epoch {self.progress.epoch + 1}: {depth} of {len(blocks)} blocks train now."
            )
        self.stage = (depth, frozen)
        heads.set_trainable(model, blocks, depth, frozen)
        shorter = self.plan.on_features if depth == 1 else None
        self.on_features = shorter() if shorter else None
        self.stepper.objective = self.on_features.objective if self.on_features else None
        network: Any = self.way.model
        if self.on_features:
            pass  # too little work for either of the two
        elif self.spec.speed.compile == "on":
            network = Compiled(model, self.report.warn)
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)
        self.stepper.network = network
        replayed = self.plan.graphs and not self.on_features
        self.stepper.graphs = Graphs(model, self.report.warn) if replayed else None

    @property
    def way(self) -> Way:
        """What this stage runs."""
        return self.on_features or self.plan.whole

    def _done(self) -> tuple[str, ...]:
        """Return the parameters that have stopped training in this epoch: early ones, and the first blocks."""
        epoch, spec, blocks = self.progress.epoch, self.spec.model, self.plan.blocks
        names = heads.early_names(self.plan.model) if epoch >= self.training.early_epochs else ()
        if spec.freeze_blocks and epoch >= math.ceil(spec.freeze_from * self.training.epochs):
            names += tuple(name for block in blocks[-spec.freeze_blocks :] for name in block)
        return names

    def _end_epoch(self) -> None:
        progress, plan = self.progress, self.plan
        self._check_weights()
        loss_sum, right, seen = self.processes.total([progress.sums])[0]
        values = {"train/epoch-loss": loss_sum / seen, "train/epoch-accuracy": right / seen}
        scores = self._validate()
        values.update({f"val/{name}": value for name, value in scores.items()})
        values["epoch"] = progress.epoch + 1
        values["seconds"] = progress.seconds
        best = self._keep_best(scores)
        if scores:
            values["best-epoch"] = progress.best_epoch + 1
            plan.schedule.observe(progress.epoch, scores["loss"])
        if self.processes.first:
            self.report.log(progress.step, values)
            self.report.epoch_done(progress.epoch, {**values, "train/lr": self._lr()}, best)
        if plan.pruning:
            plan.pruning.end_epoch(self.processes)
        self._finish(right / seen, scores)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
        if progress.finished or self.processes.from_first(self._worth_saving()):
            self.save()

    def _finish(self, train_accuracy: float, scores: dict[str, float]) -> None:
        """Note whether this epoch was the last; then say which was chosen, and whether images were learned by heart."""
        progress = self.progress
        last = progress.epoch + 1 >= self.training.epochs
        stopped = "" if last or not scores else self.chooser.stops(progress)
        if stopped:
            self.report.message(stopped)
        if last or stopped:
            progress.finished = True
            if text := self.chooser.explain(progress):
                self.report.message(text)
            if text := reporting.overfitted(self.plan, train_accuracy, scores):
                self.report.warn(text)

    def _validate(self) -> dict[str, float]:
        way = self.way
        if way.validate is None:
            return {}
        with self.plan.ema.swapped_in(self.plan.model) if self.plan.ema else contextlib.nullcontext():
            # Each process's batch norms have seen other images; what is saved, and measured, is the first's.
            self.processes.share(self.plan.model.buffers())
            return way.validate(way.model)

    def _keep_best(self, scores: dict[str, float]) -> bool:
        """Keep this epoch's weights where the rule chooses them (without validation: always)."""
        better = self.chooser.judge(self.progress, scores)
        if better:
            self.best = self.weights()
        if scores and not math.isfinite(scores["loss"]):
            self.report.warn(
                f"The validation loss of epoch {self.progress.epoch + 1} is {scores['loss']}: this epoch's weights are "
                "never the best ones."
            )
        return better

    def weights(self) -> State:
        """Return a copy of the weights that count (the averaged ones, with EMA), on the CPU."""
        with self.plan.ema.swapped_in(self.plan.model) if self.plan.ema else contextlib.nullcontext():
            state = self.plan.model.state_dict()
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    # What is told

    def _lr(self) -> float:
        """Return the learning rate as it is now, by the groups that move with the schedule."""
        groups = [group for group in self.plan.optimizer.param_groups if not group.get("early_steps")]
        return max(float(group["lr"] / group["lr_scale"]) for group in groups)

    def _ask(self, norm: torch.Tensor | None, rate: float, factor: float, logged: bool) -> None:
        """Begin to read where the epoch stands; `_tell` goes on when the device has answered.

        Logged values are those of all processes, which log at the same steps; in between the first tells of its own.
        """
        total = self.processes.add_up if logged and self.processes.world > 1 else None
        reading, step = self.running.ask(norm, total), self.progress.step
        if logged:
            self.running.clear_window()
        self._asked.append(_Asked(reading, step, rate, self.training.lr * factor, logged))

    def _tell(self, wait: bool = False) -> None:
        """Tell what has been read, in the order of asking; ``wait``: also what the device still has to answer."""
        while self._asked and (wait or self._asked[0].reading.ready):
            asked = self._asked.popleft()
            epoch_sums, window, norm = asked.reading.read()
            if not math.isfinite(epoch_sums[0]):
                self._not_finite()
            if not self.processes.first:
                continue
            epoch, seen = self.progress.epoch, max(epoch_sums[2], 1)
            place = asked.step - epoch * self.plan.steps_per_epoch
            self.report.step(epoch, place, epoch_sums[0] / seen, epoch_sums[1] / seen, asked.rate)
            if asked.logged:
                self.report.log(asked.step, reporting.window_values(window, asked.lr, asked.rate, norm))

    def _check_weights(self) -> None:
        """Stop before weights that the last step ruined are kept or saved."""
        if not reporting.all_finite(self.plan.model):
            self._not_finite()

    def _not_finite(self) -> NoReturn:
        """Stop with what can be said about a loss that is NaN or infinite."""
        newest = checkpoint.existing(self.folder)
        progress = self.progress
        raise reporting.not_finite(self.plan, progress.step, progress.epoch, self._lr(), newest)

    # Checkpoints

    def _worth_saving(self) -> bool:
        """Return whether this epoch gets a checkpoint: not each where they take no longer than writing one."""
        return time.monotonic() - self._saved_at >= _SAVE_PART * self._save_seconds

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        plan, began = self.plan, time.monotonic()
        if self.progress.step_in_epoch:  # the file has the sums of all processes; each goes on with its own
            self.progress.sums, self.progress.window = self.processes.total(self.running.read())
            if plan.pruning:
                plan.pruning.gather(self.processes)
        self.progress.micro = self.stepper.micro
        if self.processes.first:
            checkpoint.save(self.folder, self.progress.step, content(plan, self.progress, self.best))
            self.on_save()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began
        self._saved_step = self.progress.step

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.progress = take_up(self.plan, saved)
        self.best = saved["best"]
        self.stepper.micro = self.progress.micro
        if not self.processes.first:  # the first process carries the sums of all
            self.progress.sums, self.progress.window = [0.0] * 3, [0.0] * 3
