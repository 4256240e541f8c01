"""The loop: batches in, better weights out, and nothing lost when it is interrupted.

Everything random in a step (order of the images, augmentation, dropout) is a function of the seed and the
step's number, so a run that is resumed from a checkpoint computes what the uninterrupted run would have computed, bit
for bit on the CPU. Knows nothing of files other than checkpoints, of image sources, of what the task means, or of what
callbacks do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import clock
from tellapart.data.loader import RawBatch, batches
from tellapart.devices import kernel_search, plain_kernels
from tellapart.models import heads
from tellapart.training import checkpoint, finite, foreseen, reporting, sampling, stages
from tellapart.training.best_epoch import BestEpoch
from tellapart.training.callbacks import Callback, Callbacks
from tellapart.training.distributed import Processes
from tellapart.training.interrupt import Interrupt
from tellapart.training.optim import set_lr
from tellapart.training.progress import Progress, State, callback_states, content, take_up
from tellapart.training.reporting import Reporter, Reporting
from tellapart.training.running import RunningMetrics
from tellapart.training.speed.compiled import Graphs
from tellapart.training.step import Fit, Outcome, Plan, Stepper

# Steps after which several processes agree on stopping or saving: an exchange in every step would slow them down.
_AGREE_EVERY = 20


class Trainer:
    """Runs a plan to its end, or to where it is interrupted.

    For callbacks: ``progress`` is the state of the run, ``order`` the positions of the epoch's images, ``factor`` that
    of the learning rate, ``logging`` whether the step is logged, ``seen`` the images since the epoch began or was
    resumed, ``passes`` those of the plan that were done when it began, ``timeline`` where the run is in its plan and
    where it ends; ``stop`` ends training, ``end_at`` moves its end.
    """

    def __init__(
        self,
        plan: Plan,
        processes: Processes,
        folder: Path,
        report: Reporter,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.plan, self.processes, self.folder, self.report = plan, processes, folder, report
        self.spec, self.training, self.device = plan.spec, plan.spec.training, processes.device
        self.progress = Progress()
        self.timeline, self.passes = plan.timeline, 0.0
        self.best: State | None = None  # weights of the epoch that is the best so far
        self.stage: stages.Stage | None = None
        self.way = plan.whole
        self.interrupt = Interrupt()  # of the run; says which signal stopped it
        self.stopping = ""  # why training ends with this epoch
        self._ending = False  # whether all processes know that it does
        self.stepper = Stepper(plan, processes, report.warn)
        self.running = RunningMetrics(self.device, plan.task.metrics)
        self.log_every = self.spec.run.log_every or max(1, plan.steps_per_epoch // 10)
        self.order: sampling.Order = np.zeros(0, np.int64)
        self.factor, self.logging, self.seen = 1.0, False, 0
        self.trained_at = 0.0  # when the epoch's last step was done, of `clock`
        self.best_epoch = BestEpoch(plan)
        self.callbacks = Callbacks([*plan.callbacks, Reporting(report), self.best_epoch, *callbacks])
        self._pace, self._saved_step = checkpoint.Pace(self.spec.run.checkpoint_minutes), -1

    def run(self) -> Progress:
        """Train until the last epoch, until a callback stops it, or an interruption. Raises TrainingError."""
        with Interrupt() as self.interrupt:
            self._pace.begin()
            try:
                self.callbacks("on_fit_start", self)
                going = True
                while going and self.progress.epoch < self.timeline.epochs and not self.progress.finished:
                    going = self._run_epoch()
                self.callbacks("on_fit_end")
            except BaseException as error:
                self.callbacks("on_exception", error)
                raise
        return self.progress

    def stop(self, reason: str) -> None:
        """End training: this epoch is cut short after the current step, validated, and is the last one."""
        self.stopping = self.stopping or reason or "A callback asked to stop."

    def end_at(self, total: int, since: int | None = None) -> None:
        """Let training end after step ``total``: what is left of the plan is spread over the steps until then.

        ``since``: the step from which on it is spread, now where None; 0: as if the end had been there from the start.
        """
        self.timeline = self.timeline.with_end(self.progress.step if since is None else since, total)
        self.progress.ends = [list(pair) for pair in self.timeline.ends]
        self.report.plan(self.timeline.epochs, foreseen.costs(self.plan, self.timeline))

    # One epoch

    def _run_epoch(self) -> bool:
        """Train what is left of the current epoch, and judge it; return False if the run stops here, to be resumed."""
        self.begin_epoch()
        with (
            plain_kernels(self.plan.plain_kernels, self.training.threads or 1),
            kernel_search(self.plan.search),
        ):
            if not (self._fit_epoch(self.way.fit) if self.way.fit else self._train_epoch()):
                return False
        self._end_epoch()
        # A signal in an epoch's last step takes effect here, after validation: the next epoch is what is resumed.
        if not self.processes.any(self.interrupt.asked) or self.progress.finished:
            return True
        if self.progress.step != self._saved_step:
            self.save()
        return False

    def begin_epoch(self) -> None:
        """Choose the epoch's images, what trains in it and on what; functions of the epoch, so resuming is exact."""
        epoch, plan = self.progress.epoch, self.plan
        self.passes = self.timeline.passes(epoch * plan.steps_per_epoch)
        self.set_stage()
        # A pass has one image less if it would be alone in the last batch: see `setup`.
        size = plan.images_per_epoch
        self.order = sampling.part_order(
            plan.train.samples.labels,
            self.training.sampling,
            self.spec.seed,
            epoch,
            size,
            plan.images_per_pass or size,
        )
        self.running = RunningMetrics(
            self.device, self.plan.task.metrics, self.progress.sums, self.progress.window
        )
        self.callbacks("on_epoch_start", epoch)

    def set_stage(self) -> None:
        """Make the current epoch's stage: what freezes, what is computed on features, what wraps the network."""
        plan, stage, before = self.plan, stages.stage_of(self.plan, self.passes), self.stage
        if stage == before:
            return
        if before and before.depth != stage.depth:
            self.report.message(
                f"Epoch {self.progress.epoch + 1}: {stage.depth} of {len(plan.blocks)} blocks train now."
            )
        self.stage = stage
        stages.freeze(plan, stage)
        self.way = stages.way_of(plan, stage)
        self.stepper.task = self.way.task
        self.stepper.network = stages.wrapped(plan, self.way, self.processes, self.report.warn)
        replayed = plan.graphs and self.way.model is plan.model
        self.stepper.graphs = Graphs(plan.model, self.report.warn) if replayed else None

    def train_mode(self) -> None:
        """Put what trains in training mode, and what is frozen in evaluation mode."""
        heads.train_mode(self.way.model, self.spec.model.norms == "keep")
        self.plan.task.train()

    def _train_epoch(self) -> bool:
        """Train the rest of the current epoch; return False if the user asked to stop (a checkpoint is saved)."""
        progress, plan = self.progress, self.plan
        steps = -(-len(self.order) // self.training.batch_size)
        self.train_mode()
        started, before, self.seen = time.perf_counter(), progress.seconds, 0
        for index, batch in self._batches():
            last = self._is_last(index, steps)
            place = self.timeline.at(progress.step)
            self.factor = plan.schedule.factor(place)
            self.logging = last or (index + 1) % self.log_every == 0
            set_lr(plan.optimizer, self.training.lr, self.factor, place)
            outcome = self._step(self.callbacks.before_step(batch))
            # A step's number is its place in the schedule: an epoch with fewer images skips numbers.
            progress.step = (
                progress.epoch * plan.steps_per_epoch + (index + 1) * plan.steps_per_epoch // steps
            )
            progress.step_in_epoch = index + 1
            self.seen += batch.count
            progress.seconds = before + time.perf_counter() - started
            self.callbacks.after_step(outcome)
            if not self._go_on(last):
                return False
            if self._ending or last:
                break
        progress.sums, progress.window = self.running.read()
        finite.check_sums(self, progress.sums)
        # Only now has a GPU finished all queued work, so the time below is that of the whole epoch.
        self.trained_at = clock.now()
        progress.seconds = before + time.perf_counter() - started
        return True

    def _is_last(self, index: int, steps: int) -> bool:
        """Return whether a step is the epoch's last: of ``steps``, or of the run if that ends within an epoch."""
        progress, total = self.progress, self.timeline.total
        within = total < (progress.epoch + 1) * self.plan.steps_per_epoch
        return index + 1 == steps or (within and progress.step + 1 >= total)

    def _fit_epoch(self, fit: Callable[[], Fit]) -> bool:
        """Let a solver do what the epoch's steps would; return True. What is asked for meanwhile waits for its end."""
        progress, plan = self.progress, self.plan
        started = time.perf_counter()
        done = fit()
        self.processes.share(plan.model.parameters())
        if plan.ema:
            plan.ema.restart(plan.model)
        if self.processes.first:
            self.running.add(done.loss, done.metrics, done.images)
            self.report.message(f"Epoch {progress.epoch + 1}: {done.text}.")
        progress.step = (progress.epoch + 1) * plan.steps_per_epoch
        progress.sums, progress.window = self.running.read()
        progress.seconds = time.perf_counter() - started
        return True

    def _batches(self) -> Iterator[tuple[int, RawBatch]]:
        """Yield the rest of the epoch's (step in epoch, this process's slice of the batch)."""
        progress, processes, size = self.progress, self.processes, self.training.batch_size
        source = batches(
            self.way.train,
            self.order,
            size,
            progress.step_in_epoch,
            processes.rank,
            processes.world,
            progress.epoch * self.plan.steps_per_epoch // self.plan.steps_per_pass,
            self.device,
        )
        while True:
            with self.plan.sections("data"):
                item = next(source, None)
            if item is None:
                return
            yield item

    def _step(self, batch: RawBatch) -> Outcome:
        """Take one step, and count it."""
        sections = self.plan.sections
        with sections("copy"):
            moved = batch.to(self.device)
        try:
            outcome = self.stepper.take(moved, self.progress.step, self.logging)
        except FloatingPointError:
            finite.diverged(self)
        with sections("logging"):
            self.running.add(outcome.loss, outcome.metrics, 0 if batch.filler else len(batch.labels))
        return outcome

    def _go_on(self, last: bool) -> bool:
        """Save if a checkpoint is due; return False if the run should stop here, to be resumed."""
        processes = self.processes
        if processes.world > 1:
            if self.progress.step_in_epoch % _AGREE_EVERY and not last:
                return True
            self._agree_to_stop()
        self._ending = bool(self.stopping)
        save = processes.any(self._pace.due)
        stop = processes.any(self.interrupt.asked)
        # At an epoch's end `_end_epoch` saves, after validation. Ruined weights must not replace a good checkpoint.
        if stop or (save and not last):
            finite.check_weights(self)
            with self.plan.sections("checkpoint"):
                self.save()
        return not stop

    def _agree_to_stop(self) -> None:
        """Adopt the reason to stop of the first process that has one."""
        self.stopping = next(filter(None, self.processes.gather(self.stopping)), "")

    # Between epochs

    def _end_epoch(self) -> None:
        """Validate, let the callbacks judge and report, and move on to the next epoch."""
        progress, plan = self.progress, self.plan
        finite.check_weights(self)
        means = self.running.means(self.processes.total([progress.sums])[0])
        scores = self._validate()
        self.callbacks("on_validate", scores)
        if scores:
            plan.schedule.observe(progress.epoch, scores.get("loss", -progress.highest))
        self._agree_to_stop()
        progress.finished = bool(self.stopping) or progress.epoch + 1 >= self.timeline.epochs
        self.callbacks("on_epoch_end", reporting.epoch_values(progress, means, scores))
        progress.next_epoch()
        if progress.finished or self.processes.from_first(self._pace.pays):
            self.save()

    def _validate(self) -> dict[str, float]:
        """Return the validation figures of the weights that count."""
        if self.way.validate is None:
            return {}
        with self._averaged():
            # Each process's batch norms have seen different images; those of the first process are saved and measured.
            self.processes.share(self.plan.model.buffers())
            return self.way.validate(self.way.model)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the network has the averaged weights, with EMA."""
        return self.plan.ema.swapped_in(self.plan.model) if self.plan.ema else contextlib.nullcontext()

    def weights(self) -> State:
        """Return a copy of the weights that count (the averaged ones, with EMA), on the CPU."""
        with self._averaged():
            state = self.plan.model.state_dict()
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        progress = self.progress
        with self._pace.saving():
            # The file has the sums of all processes; each process continues with its own in ``running``.
            if progress.step_in_epoch:
                progress.sums, progress.window = self.processes.total(self.running.read())
                finite.check_sums(self, progress.sums)
            progress.micro = self.stepper.micro
            progress.planned = [self.training.epochs, self.training.patience, self.spec.time_limit]
            states = self.callbacks.state_dict()
            if self.processes.first:
                checkpoint.save(self.folder, progress.step, content(self.plan, progress, self.best, states))
            self.callbacks("on_save")
        self._saved_step = progress.step

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore a checkpoint's state."""
        self.progress = take_up(self.plan, saved)
        self.timeline = dataclasses.replace(self.plan.timeline, ends=self.progress.ends)
        self.best = saved["best"]
        self.stepper.micro = self.progress.micro
        self.callbacks.load_state_dict(callback_states(saved), self.report.warn)
        # The checkpoint has the sums of all processes: only the first continues with them, or they would count twice.
        if not self.processes.first:
            self.progress.sums, self.progress.window = [], []
