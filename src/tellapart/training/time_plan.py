"""The plan for a limit of time: measure real steps here and now, and fit epochs and their length to it.

The pace is that of whole steps of the run (reading, augmentation, gradients, update) on a copy of the network, measured
anew each time, because it depends on what else the machine does. What comes after training is reserved for. Knows
nothing of the training that follows: `timekeeper` holds it to the limit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tellapart import clock, numerals
from tellapart.data.loader import batches
from tellapart.devices import is_out_of_memory, kernel_search, plain_kernels, release
from tellapart.models import heads
from tellapart.spec import Spec
from tellapart.training import budget, foreseen, resolution, sampling, setup, stages
from tellapart.training.budget import Cost
from tellapart.training.distributed import Processes
from tellapart.training.speed import autotune, features
from tellapart.training.step import Plan, Stepper
from tellapart.training.validation import autocast

BOUND = 30 * 60.0  # seconds of a run for which neither a limit nor a number of epochs was given
MEASURED_SECONDS, MEASURED_STEPS = 1.5, 50  # of steps to measure at most
MEASURED_SHARE = 0.03  # of the time that is left
AFTER = 2.0  # seconds to write the model, draw the report and end the process, on a machine that does nothing else
LATENCY_CALLS = (
    60  # forward passes of single images with which the evaluation of a split measures the latency
)
FEATURES_SHARE = (
    0.8  # of the time that is left: if features take more, the head trains on images, on some at least
)
HEAD_STEP = 0.001  # seconds of a step of a head on features, besides its share of a forward pass
_POSITIONS = 64  # in the plan, at which the cost of a step is averaged


@dataclass(frozen=True)
class Pace:
    """What was measured: seconds of a step at a cost in forward passes, and of an image's forward pass.

    ``slow``: how many times as long as its processor time a computation takes because other programs run too.
    """

    step: float
    passes: float
    forward: float
    slow: float = 1.0


@dataclass(frozen=True)
class Budget:
    """A limit and how a run is fitted to it: what was measured, what is reserved for the end, and at most how much.

    ``began``: when the limit began to count, of `clock`; ``first`` and ``most``: the last step as planned, and at
    most; ``enough``: whether the data are the reason for ``most``, not a number of epochs that was given; ``text``: the
    plan in words.
    """

    limit: float
    began: float
    reserve: float
    pace: Pace
    end: float
    first: int
    most: int
    enough: bool
    text: str


class Timing:
    """Fits a run to its limit of time; each of its calls does nothing for a run without one.

    ``began``: see `Budget`. ``network`` is built, and not changed. ``resumed``: the run goes on as its spec says.
    """

    def __init__(
        self, network: torch.nn.Module, processes: Processes, began: float, resumed: bool = False
    ) -> None:
        self.network, self.processes, self.began, self.resumed = network, processes, began, resumed
        self.budget: Budget | None = None
        self._measured_as: tuple[object, ...] = ()
        self._long = False  # a run that nothing bounds, so that it will get a bound

    def fit(self, prepared: setup.RunData) -> setup.RunData:
        """Fit the epochs to the limit that was given; autotuning, which follows, looks at how long the run is."""
        if prepared.spec.time_limit:
            return self._fitted(prepared)
        leaves, processes = self._leaves(prepared), self.processes
        if leaves("training.epochs") and leaves("time_limit"):
            # as autotuning does, with what that will find in its cache
            expected = autotune.seconds(prepared, self.network, processes) if processes.first else 0.0
            self._long = processes.from_first(expected) >= BOUND
        return prepared

    def fit_again(self, prepared: setup.RunData) -> setup.RunData:
        """Fit them once more where autotuning changed the pace; bound a run that nothing bounds and that is long."""
        if prepared.spec.time_limit:
            return self._fitted(prepared) if _way(prepared.spec) != self._measured_as else prepared
        return self._bounded(prepared) if self._long else prepared

    def _bounded(self, prepared: setup.RunData) -> setup.RunData:
        pace = self._pace(prepared, BOUND)
        work = Work.of(prepared, self.network, pace)
        training = prepared.spec.training
        steps = training.epochs * -(-work.images // training.batch_size)
        if (expected := steps * pace.step * work.mean) < BOUND:
            return prepared
        whole = numerals.duration(expected)
        why = (
            f"{training.epochs} epochs would take about {whole}; another: --time-limit, or --training.epochs"
        )
        bound = resolution.Choice("time_limit", BOUND, why, matters=True)
        return self._fitted(_with(prepared, [bound]))

    def _pace(self, prepared: setup.RunData, left: float) -> Pace:
        """Measure in the first process, and share what it found."""
        pace = measure(prepared, self.network, self.processes, left) if self.processes.first else None
        # Where there is not enough memory it is unknown, and the first steps will tell.
        unknown = Pace(1.0, 3.0, 1 / (3 * prepared.spec.training.batch_size))
        return self.processes.from_first(pace) or unknown

    def _fitted(self, prepared: setup.RunData) -> setup.RunData:
        pace = self._pace(prepared, self._left(prepared.spec))
        self._measured_as = _way(prepared.spec)
        used = self.processes.from_first(clock.now() - self.began)
        work = Work.of(prepared, self.network, pace)
        if (without := self._without_features(prepared.resolution, work, used)) is not None:
            return self._fitted(dataclasses.replace(prepared, resolution=without))
        choices, self.budget = fitted(prepared.spec, self._leaves(prepared), work, used, self.began)
        return _with(prepared, choices)

    def _leaves(self, prepared: setup.RunData) -> Callable[[str], bool]:
        """Return whether a field is open, by its name; of a resumed run none is."""
        return (lambda field: False) if self.resumed else prepared.resolution.leaves

    def _without_features(
        self, chosen: resolution.Resolution, work: Work, used: float
    ) -> resolution.Resolution | None:
        """Return the choices without features of all images, if these take too much of the limit; None: as they are.

        A solver that fits the head, where nothing else trains, needs them in any case.
        """
        spec = chosen.spec
        fits = stages.fitted_at(spec, 0)
        left = spec.time_limit - used - reserve(work, spec)
        is_open = not self.resumed and chosen.leaves("model.head" if fits else "speed.features")
        if (
            (fits and spec.model.finetune == "head")
            or not is_open
            or work.before <= FEATURES_SHARE * max(left, 0)
        ):
            return None
        why = f"features of all images would take {numerals.duration(work.before)}, which the limit has not"
        if fits:
            return chosen.without_fit(why)
        return chosen.by_time([resolution.Choice("speed.features", False, why, matters=True)])

    def _left(self, spec: Spec) -> float:
        return max(0.0, spec.time_limit - (clock.now() - self.began))


def _with(prepared: setup.RunData, choices: list[resolution.Choice]) -> setup.RunData:
    return dataclasses.replace(prepared, resolution=prepared.resolution.by_time(choices))


def _way(spec: Spec) -> tuple[object, ...]:
    """Return what of the spec autotuning may change, and the pace with it (auto is computed as fp32)."""
    training = spec.training
    precision = "fp32" if training.precision == "auto" else training.precision
    return precision, training.accumulate or 1, spec.speed.compile == "on"


# Measuring


def measure(
    prepared: setup.RunData, network: torch.nn.Module, processes: Processes, left: float
) -> Pace | None:
    """Return the pace of whole steps of a copy of the network; None if there is not enough memory for one.

    The random state is as before. At most a small share of the seconds that are ``left``, but at least two steps.
    """
    most = min(MEASURED_SECONDS, MEASURED_SHARE * left)
    alone = Processes(0, 1, processes.device)
    wall, busy = time.perf_counter(), time.process_time()
    with autotune.random_state_kept(processes.device):
        model = copy.deepcopy(network)
        plan = setup.plan(setup.complete(prepared, model, alone), model, alone)
        try:
            forward = _forward(plan, prepared, processes.device, most / 3)
            if features.expected(prepared.spec):  # no step runs the whole network
                step = HEAD_STEP + forward * prepared.spec.training.batch_size / 50
                return Pace(step, 3.0, forward, _slowness(wall, busy, processes.device))
            depth = 1 if prepared.spec.model.finetune == "head" else len(plan.blocks)
            heads.set_trainable(plan.model, plan.blocks, depth)
            step = _step(plan, alone, most) / processes.world
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            release(processes.device)
    passes = 1 + 2 * depth / max(1, len(plan.blocks))
    return Pace(step, passes, forward, _slowness(wall, busy, processes.device))


def _slowness(wall: float, busy: float, device: torch.device) -> float:
    """Return `Pace.slow` since two moments, of the clock and of processor time."""
    if device.type != "cpu":  # it waits for the device
        return 1.0
    spent = time.process_time() - busy
    return max(1.0, (time.perf_counter() - wall) / spent) if spent > 0 else 1.0


def _step(plan: Plan, alone: Processes, most: float) -> float:
    """Return the seconds of a step; the first, which prepares kernels, does not count unless there is one alone."""
    training, size = plan.spec.training, plan.spec.training.batch_size
    stepper = Stepper(plan, alone, lambda text: None)
    heads.train_mode(plan.model)
    plan.task.train()
    order = sampling.epoch_order(plan.train.samples.labels, training.sampling, plan.spec.seed, 0)
    taken: list[float] = []
    with plain_kernels(plan.plain_kernels, training.threads or 1), kernel_search(plan.search):
        wait(alone.device)
        at = time.perf_counter()
        for number, batch in batches(plan.train, order, size, device=alone.device):
            stepper.take(batch.to(alone.device), number, False)
            wait(alone.device)
            before, at = at, time.perf_counter()
            taken.append(at - before)
            enough = sum(taken) >= most and len(taken) > 1
            if enough or len(taken) > MEASURED_STEPS or batch.count < size:
                break
    counted = taken[1:] or taken
    return sum(counted) / len(counted)


def _forward(plan: Plan, prepared: setup.RunData, device: torch.device, most: float) -> float:
    """Return the seconds of an image's forward pass, as validation computes it."""
    images = setup.initial_images(prepared, min(32, len(prepared.train))).to(device)
    plan.model.eval()
    best, spent, turns = math.inf, 0.0, 0
    with torch.inference_mode(), autocast(plan.spec, device):
        while turns < 2 or (spent < most and turns < 5):
            wait(device)
            began = time.perf_counter()
            plan.model(images)
            wait(device)
            took = time.perf_counter() - began
            best, spent, turns = min(best, took), spent + took, turns + 1
    return best / len(images)


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Planning


@dataclass(frozen=True)
class Work:
    """What a run has to do: images of a pass, of val and of test, in which way, and what that costs.

    ``kind``: what trains, of `budget.MOST_PASSES`; ``before``: seconds that go before the first step, for features;
    ``mean``: the cost of a step of the plan on average, in those of the steps that were measured.
    """

    images: int
    val: int
    test: int
    kind: str
    pace: Pace
    before: float = 0.0
    mean: float = 1.0

    @classmethod
    def of(cls, prepared: setup.RunData, network: torch.nn.Module, pace: Pace) -> Work:
        """Gather it for a run whose images are decoded."""
        spec = prepared.spec
        images = sampling.epoch_length(prepared.train.samples.labels, spec.training.sampling)
        val, test = (0 if part is None else len(part) for part in (prepared.val, prepared.test))
        kind = "scratch" if spec.model.weights == "none" else "pretrained"
        kind = "head" if spec.model.finetune == "head" else kind
        if features.expected(spec):
            views = max(1, spec.speed.feature_views)
            return cls(images, val, test, kind, pace, pace.forward * (images * views + val))
        fitted = stages.fitted_at(spec, 0)
        before = pace.forward * (images + val) if fitted else 0.0
        count = max(1, len(heads.blocks(network)))
        places = (np.arange(_POSITIONS) + 0.5) / _POSITIONS * spec.training.epochs
        costs = [foreseen.passes_at(spec, float(place), count) for place in places]
        return cls(images, val, test, kind, pace, before, float(np.mean(costs)) / pace.passes)


def reserve(work: Work, spec: Spec) -> float:
    """Return the seconds that the evaluation at the end needs, advice and writing."""
    splits = (work.val > 0) + (work.test > 0)
    passes = work.val + work.test + LATENCY_CALLS * splits
    advice = budget.for_advice(spec.time_limit) if spec.run.advice else 0.0
    return AFTER * work.pace.slow + 1.1 * work.pace.forward * passes + advice


def fitted(
    spec: Spec, leaves: Callable[[str], bool], work: Work, used: float, began: float
) -> tuple[list[resolution.Choice], Budget]:
    """Return epochs and their length for a run that has ``used`` so many seconds of its limit; and the budget.

    ``leaves``: whether a field of the spec is open, by its dotted name.
    """
    training, limit, pace = spec.training, spec.time_limit, work.pace
    per_pass = -(-work.images // training.batch_size)
    after = reserve(work, spec)
    on_features = work.before > 0 or pace.step < pace.forward * training.batch_size
    cost = Cost(pace.step * work.mean, 0.0 if on_features else pace.forward * work.val)
    left = limit - used - after - work.before
    fitted_first = stages.fitted_at(spec, 0)
    open_epochs = leaves("training.epochs") and not (fitted_first and spec.model.finetune == "head")
    passes = budget.most_passes(work.images, work.kind) if open_epochs else training.epochs
    per_epoch = _epoch_steps(spec, leaves, left, cost, per_pass)
    free = (
        per_epoch if fitted_first else 0
    )  # steps in whose place a solver fits the head, in the time `before`
    most = passes * per_pass + (free if open_epochs else 0)
    fits = free + budget.steps_in(left, cost, 0, per_epoch)
    first = min(most, max(fits, free or budget.LEAST_STEPS))
    choices = []
    text = _text(
        spec, work, (per_pass, per_epoch, free), first, not free and min(most, fits) < first, after, used
    )
    if free and left < 0:
        text += " That takes longer than the limit."
    if open_epochs:
        epochs = max(math.ceil((first - free) / per_pass), math.floor(training.warmup_epochs) + 1)
        epochs += fitted_first
        why = "as many as help with so many images" if first == most else "what the time allows"
        choices.append(resolution.Choice("training.epochs", epochs, why, matters=True))
    if per_epoch != per_pass:
        why = f"a pass would take {numerals.duration(per_pass * cost.step)}: validation comes more often"
        images = per_epoch * training.batch_size
        choices.append(resolution.Choice("training.epoch_images", images, why, matters=True))
    found = Budget(limit, began, after, pace, cost.end, first, most, open_epochs, text)
    return choices, found


def _epoch_steps(spec: Spec, leaves: Callable[[str], bool], left: float, cost: Cost, per_pass: int) -> int:
    """Return the steps of an epoch; a pass, where anything that was given counts epochs between validations."""
    training = spec.training
    counted = training.patience or training.schedule == "plateau"
    if training.epoch_images:
        return min(per_pass, -(-training.epoch_images // training.batch_size))
    if counted or not leaves("training.epoch_images") or left <= 0:
        return per_pass
    return budget.epoch_steps(left, cost, per_pass)


def _text(
    spec: Spec, work: Work, steps: tuple[int, int, int], first: int, forced: bool, after: float, used: float
) -> str:
    """Return the plan in words; ``steps``: of a pass over the images, of an epoch, and of that of a fitted head."""
    per_pass, per_epoch, free = steps
    size, pace = spec.training.batch_size, work.pace
    limit, epochs = clock.words(spec.time_limit), (first - free) / per_pass
    precision = "fp32" if spec.training.precision == "auto" else spec.training.precision
    many = f"{work.images:,} image{'s' * (work.images != 1)}"
    rate = numerals.rate(size / (pace.step * work.mean))
    if pace.step < pace.forward * size:
        rate, many = numerals.rate(1 / pace.forward), f"features of {many} once"
    about = (
        f"{many} at {rate} images/s in {precision}, {numerals.duration(after)} reserved for the evaluation"
    )
    if forced:
        return (
            f"The limit of {limit} is too short: {numerals.duration(used)} of it are gone before the first step, and "
            f"the evaluation needs about {numerals.duration(after)}. Trains {first} steps ({size} images each), and "
            "takes as long as that takes."
        )
    plan = passes_words(epochs)
    if free:
        plan = f"the head, then {plan} of all layers" if epochs else "the head alone"
    if per_epoch < per_pass:
        plan += f", with {math.ceil(first / per_epoch)} validations"
    return f"Plan for {limit} ({numerals.duration(used)} are gone): {about}: {plan}."


def passes_words(epochs: float) -> str:
    """Return a number of passes over the training images: 0.42 epochs, 5.4 epochs, 1 epoch."""
    whole = epochs == int(epochs)
    figure = f"{epochs:,.0f}" if whole else numerals.number(epochs, 2)
    return f"{figure} epoch{'s' * (epochs != 1)}"
