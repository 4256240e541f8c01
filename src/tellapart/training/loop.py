"""The loop: batches in, better weights out, and nothing lost when it is cut off.

Everything random in a step (order of the images, augmentation, dropout) is a function of the seed and the
step's number, so a run that goes on from a checkpoint computes what the uncut run would have computed, bit for
bit on the CPU. Knows nothing of files other than checkpoints, of image sources, or of what the objective means.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tellapart.data.loader import ImageSet, RawBatch, batches
from tellapart.devices import is_out_of_memory, release, seed_device
from tellapart.errors import TrainingError
from tellapart.models import heads
from tellapart.spec import Spec
from tellapart.training import checkpoint, sampling
from tellapart.training.distributed import Processes
from tellapart.training.ema import Ema
from tellapart.training.interrupt import Interrupt
from tellapart.training.objectives import Objective, Prepared
from tellapart.training.optim import set_lr
from tellapart.training.schedule import Schedule

State = dict[str, torch.Tensor]
_AGREE_EVERY = 20  # steps between the moments when several processes agree to stop or to save


class Reporter(Protocol):
    """What the loop tells while it runs."""

    def start(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Training begins, or goes on after ``first_step`` steps."""

    def message(self, text: str) -> None:
        """Something to know."""

    def warn(self, text: str) -> None:
        """Something that must not be missed."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Where the epoch stands after ``step`` of its steps: its means so far."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name, as they were after ``step`` steps of the run."""

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        """An epoch's figures, and whether its weights are the best so far."""


@dataclass
class Plan:
    """All that training needs, put together by ``setup``."""

    spec: Spec
    model: torch.nn.Module
    blocks: list[list[str]]
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: ImageSet
    validate: Callable[[torch.nn.Module], dict[str, float]] | None
    steps_per_epoch: int
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None


@dataclass
class Progress:
    """Where the run stands; plain values, saved with every checkpoint."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    micro: int = 0
    stale: int = 0
    best_epoch: int = -1
    best_value: float = -math.inf
    finished: bool = False
    seconds: float = 0.0  # of training in this epoch, over all processes that had a part in it
    best_scores: dict[str, float] = field(default_factory=dict)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of the epoch: loss, right, seen
    window: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # since the last logged line


def step_seed(seed: int, step: int, stream: int) -> int:
    """Return a well-mixed 63-bit seed of (seed, step, stream), by the finaliser of SplitMix64 (Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB + 1) & (
        2**64 - 1
    )
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


class Trainer:
    """Runs a plan to its end, or to where it is interrupted."""

    def __init__(self, plan: Plan, processes: Processes, folder: Path, report: Reporter) -> None:
        self.plan, self.processes, self.folder, self.report = plan, processes, folder, report
        self.spec, self.training = plan.spec, plan.spec.training
        self.device = processes.device
        self.progress = Progress()
        self.best: State | None = None
        self.generator = torch.Generator()
        self.buffers = list(plan.model.buffers())
        self.network: torch.nn.Module = plan.model
        self.depth = 0
        local = math.ceil(self.training.batch_size / processes.world)
        self.progress.micro = max(1, math.ceil(local / self.training.accumulate))
        self.log_every = self.spec.run.log_every or max(1, plan.steps_per_epoch // 10)
        self.amp_dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.training.precision
        ]

    def run(self) -> Progress:
        """Train until the last epoch, early stopping, or an interruption. Raises TrainingError."""
        epochs = self.training.epochs
        self.report.start(epochs, self.plan.steps_per_epoch, self.progress.step)
        with Interrupt() as interrupt:
            self._saved_at = time.monotonic()
            while self.progress.epoch < epochs and not self.progress.finished:
                self._set_stage()
                if not self._train_epoch(interrupt):
                    return self.progress
                self._end_epoch()
                if self.processes.any(interrupt.asked) and not self.progress.finished:
                    return self.progress
        return self.progress

    # One epoch

    def _train_epoch(self, interrupt: Interrupt) -> bool:
        """Train the rest of the current epoch; return False where the user asked to stop (a checkpoint is saved)."""
        progress, plan = self.progress, self.plan
        order = sampling.epoch_order(
            plan.train.samples.labels, self.training.sampling, self.spec.seed, progress.epoch
        )
        heads.train_mode(plan.model)
        started, seen, shown, before = time.perf_counter(), 0, 0.0, progress.seconds
        rank, world = self.processes.rank, self.processes.world
        sums = self._sums = (
            torch.tensor([progress.sums, progress.window], dtype=torch.float64)
            .to(torch.float32 if self.device.type == "mps" else torch.float64)
            .to(self.device)
        )
        for index, batch in batches(
            plan.train, order, self.training.batch_size, progress.step_in_epoch, rank, world
        ):
            factor = plan.schedule.factor(progress.step)
            set_lr(plan.optimizer, self.training.lr, factor)
            logging = (index + 1) % self.log_every == 0 or index + 1 == plan.steps_per_epoch
            norm = self._take_step(batch.to(self.device), sums, logging)
            progress.step += 1
            progress.step_in_epoch = index + 1
            seen += batch.count
            now = time.perf_counter()
            progress.seconds = before + now - started
            rate = seen / max(now - started, 1e-9)
            if now - shown > 0.1 or logging:
                shown = now
                self._show(sums, rate)
            if logging:
                self._log(sums, norm, factor, rate)
            if not self._go_on(interrupt, index + 1 == plan.steps_per_epoch):
                return False
        self._check_finite(sums)
        progress.sums, progress.window = sums.tolist()
        return True

    def _go_on(self, interrupt: Interrupt, last: bool) -> bool:
        """Save where it is time; return False where the run should stop here."""
        if self.processes.world > 1 and self.progress.step % _AGREE_EVERY:
            return True
        minutes = (time.monotonic() - self._saved_at) / 60
        save = self.processes.any(minutes >= self.spec.run.checkpoint_minutes)
        stop = self.processes.any(interrupt.asked)
        if stop or (save and not last):
            self._check_finite(self._sums)
            self.save()
        return not stop

    # One step

    def _take_step(self, batch: RawBatch, sums: torch.Tensor, measure: bool) -> float:
        """Compute gradients, halving the micro-batch while memory does not suffice, and update the weights."""
        plan, step, rank = self.plan, self.progress.step, self.processes.rank
        kept = [buffer.clone() for buffer in self.buffers] if self.buffers else []
        while True:
            short: str | None = None
            prepared: Prepared | None = None
            self.generator.manual_seed(step_seed(self.spec.seed, step, 0))
            seed_device(self.device, step_seed(self.spec.seed, step, 1 + rank))
            plan.optimizer.zero_grad(set_to_none=True)
            try:
                prepared = plan.objective.prepare(batch, self.generator, self.progress.micro)
                outcome = self._backward(prepared, batch.count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = str(error)
            if short is None:
                break
            del prepared  # outside of the handler, whose traceback holds the step's tensors
            self._halve(short)
            for buffer, old in zip(self.buffers, kept, strict=True):
                buffer.copy_(old)
        sums += outcome
        if self.device.type == "cpu" and not math.isfinite(outcome[0].item()):
            self._not_finite()
        return self._update(measure)

    def _backward(self, prepared: Prepared, count: int) -> torch.Tensor:
        """Add up the gradients of the mean loss over the global batch; return sums of loss, right, seen [3]."""
        plan, micro, world = self.plan, self.progress.micro, self.processes.world
        total = len(prepared)
        sums: torch.Tensor | None = None
        for start in range(0, max(total, 1), micro):
            part = prepared.part(start, start + micro)
            last = start + micro >= total
            with self._no_sync(not last), self._autocast():
                losses, right = plan.objective(self.network, part)
                loss = losses.sum() * (world / count)
                (plan.scaler.scale(loss) if plan.scaler else loss).backward()
            part_sums = torch.stack([losses.detach().sum(), right.to(losses.dtype)])
            sums = part_sums if sums is None else sums + part_sums
        assert sums is not None
        return torch.cat([sums, sums.new_full((1,), total)])

    def _update(self, measure: bool) -> float:
        """Step the optimizer; return the gradient's norm where it was computed, else NaN."""
        plan, clip, norm = self.plan, self.training.clip_norm, math.nan
        if plan.scaler and (clip or measure):
            plan.scaler.unscale_(plan.optimizer)
        if clip:
            norm = float(torch.nn.utils.clip_grad_norm_(plan.model.parameters(), clip))
        elif measure:
            gradients = [p.grad for p in plan.model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        if plan.scaler:
            plan.scaler.step(plan.optimizer)
            plan.scaler.update()
        else:
            plan.optimizer.step()
        if plan.ema:
            plan.ema.update(plan.model)
        return norm

    def _halve(self, error: str) -> None:
        """Halve the micro-batch; raise TrainingError where that cannot help."""
        micro = self.progress.micro
        if micro == 1:
            raise TrainingError(
                f"Out of memory with a single image at a time. Use a smaller model or --input.size. ({error})"
            )
        if self.processes.world > 1:
            raise TrainingError(
                f"Out of memory in process {self.processes.rank}. With several processes the micro-batch is not "
                f"halved by itself; use --training.accumulate {self.training.accumulate * 2}. ({error})"
            )
        first = micro == math.ceil(self.training.batch_size / self.training.accumulate)
        self.progress.micro = math.ceil(micro / 2)
        release(self.device)
        if first:
            self.report.warn(
                f"Out of memory: a step's {self.training.batch_size} images are now computed in smaller parts "
                "(halved until they fit); the effective batch stays the same."
            )

    @contextlib.contextmanager
    def _no_sync(self, active: bool) -> Iterator[None]:
        if active and isinstance(self.network, torch.nn.parallel.DistributedDataParallel):
            with self.network.no_sync():
                yield
        else:
            yield

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def steps_at(self) -> Callable[[float], float]:
        """Return a function that takes one step at a learning rate and returns its loss, for the range test."""
        self._set_stage()
        heads.train_mode(self.plan.model)

        def endless() -> Iterator[RawBatch]:
            for epoch in itertools.count():
                labels = self.plan.train.samples.labels
                order = sampling.epoch_order(labels, self.training.sampling, self.spec.seed, epoch)
                for _, batch in batches(self.plan.train, order, self.training.batch_size):
                    yield batch

        source = endless()

        def step(lr: float) -> float:
            set_lr(self.plan.optimizer, lr, 1.0)
            sums = torch.zeros(2, 3, device=self.device)
            try:
                self._take_step(next(source).to(self.device), sums, False)
            except TrainingError:  # the test goes up to where training diverges
                return math.inf
            self.progress.step += 1
            return float(sums[0, 0] / sums[0, 2])

        return step

    # Between epochs

    def _set_stage(self) -> None:
        """Choose which blocks train in this epoch; a pure function of the epoch, so resuming is exact."""
        model, blocks, spec = self.plan.model, self.plan.blocks, self.spec.model
        depth = len(blocks)
        if spec.finetune == "head":
            depth = 1
        elif spec.finetune == "staged":
            depth = heads.staged_depth(self.progress.epoch, self.training.epochs, spec.unfreeze, len(blocks))
        if depth == self.depth:
            return
        if self.depth:
            self.report.message(
                f"Epoch {self.progress.epoch + 1}: {depth} of {len(blocks)} blocks train now."
            )
        self.depth = depth
        heads.set_trainable(model, blocks, depth)
        self.network = torch.compile(model) if self.training.compile else model  # type: ignore[assignment]
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.network = torch.nn.parallel.DistributedDataParallel(self.network, device_ids=ids)

    def _end_epoch(self) -> None:
        progress, plan = self.progress, self.plan
        loss_sum, right, seen = self.processes.total(torch.tensor(progress.sums, device=self.device)).tolist()
        values = {"train/epoch-loss": loss_sum / seen, "train/epoch-accuracy": right / seen}
        scores = self._validate()
        values.update({f"val/{name}": value for name, value in scores.items()})
        values["epoch"] = progress.epoch + 1
        values["seconds"] = progress.seconds
        best = self._keep_best(scores)
        if scores:
            plan.schedule.observe(progress.epoch, scores["loss"])
        if self.processes.first:
            self.report.log(progress.step, values)
            self.report.epoch_done(progress.epoch, {**values, "train/lr": self._lr()}, best)
        if scores and self.training.patience and progress.stale >= self.training.patience:
            progress.finished = True
            self.report.message(
                f"Stopped early: {progress.stale} epochs without a better {self.training.best_metric}."
            )
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.sums, progress.seconds = [0.0, 0.0, 0.0], 0.0
        progress.finished = progress.finished or progress.epoch >= self.training.epochs
        self.save()

    def _validate(self) -> dict[str, float]:
        if self.plan.validate is None:
            return {}
        with self.plan.ema.swapped_in(self.plan.model) if self.plan.ema else contextlib.nullcontext():
            return self.plan.validate(self.plan.model)

    def _keep_best(self, scores: dict[str, float]) -> bool:
        """Keep this epoch's weights where they are the best so far (without validation: always the last)."""
        progress = self.progress
        if not scores:
            better = True
            value = -math.inf
        else:
            value = scores[self.training.best_metric]
            value = -value if self.training.best_metric == "loss" else value
            better = progress.best_epoch < 0 or value > progress.best_value
            improved = progress.best_epoch < 0 or value > progress.best_value + self.training.min_delta
            progress.stale = 0 if improved else progress.stale + 1
        if better:
            progress.best_value, progress.best_epoch = value, progress.epoch
            progress.best_scores = dict(scores)
            self.best = self.weights()
        return better

    def weights(self) -> State:
        """Return a copy of the weights that count (the averaged ones, with EMA), on the CPU."""
        with self.plan.ema.swapped_in(self.plan.model) if self.plan.ema else contextlib.nullcontext():
            state = self.plan.model.state_dict()
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    # What is told

    def _lr(self) -> float:
        return max(float(group["lr"]) for group in self.plan.optimizer.param_groups)

    def _show(self, sums: torch.Tensor, rate: float) -> None:
        if self.processes.first:
            loss_sum, right, seen = sums[0].tolist()
            seen = max(seen, 1)
            self.report.step(
                self.progress.epoch, self.progress.step_in_epoch, loss_sum / seen, right / seen, rate
            )

    def _log(self, sums: torch.Tensor, norm: float, factor: float, rate: float) -> None:
        loss_sum, right, seen = sums[1].tolist()
        values = {
            "train/loss": loss_sum / max(seen, 1),
            "train/accuracy": right / max(seen, 1),
            "train/lr": self.training.lr * factor,
            "train/images-per-second": rate,
        }
        if not math.isnan(norm):
            values["train/grad-norm"] = norm
        self._check_finite(sums)
        sums[1] = 0
        if self.processes.first:
            self.report.log(self.progress.step, values)

    def _check_finite(self, sums: torch.Tensor) -> None:
        if not bool(torch.isfinite(sums[0, 0])):
            self._not_finite()

    def _not_finite(self) -> None:
        """Stop with what can be said about a loss that is NaN or infinite."""
        bad = [n for n, p in self.plan.model.named_parameters() if not bool(torch.isfinite(p).all())]
        where = f"weights are not finite either (first: {bad[0]})" if bad else "the weights are still finite"
        newest = checkpoint.existing(self.folder)
        last = f"The last good checkpoint is {newest[0]}." if newest else "There is no checkpoint yet."
        raise TrainingError(
            f"The loss became NaN or infinite at step {self.progress.step} (epoch {self.progress.epoch + 1}), with "
            f"learning rate {self._lr():.3g} and {self.training.precision}; {where}. {last} "
            f"Try a lower --training.lr (now {self.training.lr:g}), --training.warmup-epochs 1 or "
            "--training.clip-norm 1."
        )

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint (the first process does)."""
        plan = self.plan
        if self.progress.step_in_epoch:
            self.progress.sums, self.progress.window = self._summed()
        if self.processes.first:
            content = {
                "model": plan.model.state_dict(),
                "optimizer": plan.optimizer.state_dict(),
                "schedule": plan.schedule.state_dict(),
                "ema": plan.ema.state_dict() if plan.ema else None,
                "scaler": plan.scaler.state_dict() if plan.scaler else None,
                "progress": vars(self.progress),
                "best": self.best,
            }
            checkpoint.save(self.folder, self.progress.step, content)
        self._saved_at = time.monotonic()

    def _summed(self) -> list[list[float]]:
        """Return the epoch's sums over all processes, to be saved; each process keeps its own."""
        summed: list[list[float]] = self.processes.total(self._sums.clone()).tolist()
        return summed

    def restore(self, content: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        plan = self.plan
        plan.model.load_state_dict(content["model"])
        plan.optimizer.load_state_dict(content["optimizer"])
        plan.schedule.load_state_dict(content["schedule"])
        if plan.ema:
            plan.ema.load_state_dict(content["ema"])
        if plan.scaler:
            plan.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        self.best = content["best"]
        if not self.processes.first:  # the first process carries the sums of all
            self.progress.sums, self.progress.window = [0.0] * 3, [0.0] * 3
