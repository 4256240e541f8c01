"""Autotune: which precision, micro-batches and use of torch.compile are fastest here, by measuring a few steps.

The steps are taken on a copy of the network, with real images, and leave nothing behind: weights, statistics and
random state are those from before. A choice is cached, so that noise in the timing cannot make two runs of the same
command on the same machine differ. Knows nothing of run folders.

- bf16 only where it is at least 1.15 times as fast. Weights, their updates, losses and the statistics of norms are
  float32 under torch's autocast in either case. On CUDA, bf16 is tried from compute capability 8.0 on (older cards
  emulate it); fp16 is never chosen, since it needs a gradient scaler. fp32 is torch's own there: TF32 in
  convolutions, not in matrix products. MPS: fp32.
- Micro-batches (CPU only) that fit the processor's cache. If batch norms train, their statistics are those of a
  micro-batch, so it has at least 128 images: ghost batch norm of that size trains as well as whole batches (Hoffer et
  al. 2017, arXiv 1705.08741). Otherwise at least 16.
- torch.compile if the rest of the run, at the measured pace, is longer than 20 minutes, and compiled steps are so much
  faster that they save three times what compiling costs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tellapart import numerals
from tellapart.devices import AMP_DTYPES, is_out_of_memory, release
from tellapart.doctor import host
from tellapart.models import heads
from tellapart.spec import Spec
from tellapart.training import resolution, sampling, setup
from tellapart.training.distributed import Processes
from tellapart.training.speed import features, tuning_cache
from tellapart.training.speed.compiled import Compiled, can_compile
from tellapart.training.step import Plan

# Autotuning takes about the time of 20 steps; a run must be ten times as long.
LEAST_STEPS = 200
# Below this time, at the pace of a measured step, there is little to gain.
LEAST_SECONDS = 120.0
DEVICES = ("cpu", "cuda")
BF16_MARGIN = 1.15
PARTS_MARGIN = 1.05
SMALLEST_MICRO, SMALLEST_WITH_BATCH_NORM = 16, 128
MOST_PARTS = 16
ROUNDS = 3
COMPILE_SECONDS = 20 * 60.0
COMPILE_MARGIN = 1.1


@dataclass(frozen=True)
class Setting:
    """A way to compute a step: the precision, and the number of micro-batches."""

    precision: str
    parts: int


@dataclass(frozen=True)
class Fastest:
    """The fastest way that was measured, in words too; ``rate``: images a second of forward and backward passes."""

    precision: str
    accumulate: int
    rate: float
    text: str


def choose(prepared: setup.RunData, model: torch.nn.Module, processes: Processes) -> setup.RunData:
    """Return ``prepared`` with a spec that leaves nothing open for speed; measure if the run is long enough.

    ``model`` is the built network, which is not changed.
    """
    measured: list[resolution.Choice] = []
    if _may_measure(prepared, model, processes.device):
        if processes.first and _is_long(prepared, model, processes):
            measured = _measured(prepared, model, processes)
        measured = processes.from_first(measured)
    return setup.complete(prepared, model, processes, measured)


def _may_measure(prepared: setup.RunData, model: torch.nn.Module, device: torch.device) -> bool:
    """Return whether there is anything to measure, and the run may be long; a function of the spec and the data."""
    spec = prepared.spec
    if features.expected(spec):  # little is left to make faster
        return False
    return _is_open(spec) and spec.speed.probe and _may_be_long(prepared, model, device)


def _is_open(spec: Spec) -> bool:
    training = spec.training
    return training.precision == "auto" or not training.accumulate or spec.speed.compile == "auto"


def _may_be_long(prepared: setup.RunData, model: torch.nn.Module, device: torch.device) -> bool:
    """Return whether it is worthwhile to measure a step at all; a function of the spec and the data."""
    batch_size = prepared.spec.training.batch_size
    if device.type not in DEVICES or _images(prepared) / batch_size < LEAST_STEPS:
        return False
    return not (
        device.type == "cpu" and setup.flops(prepared, model) * batch_size < setup.PLAIN_KERNELS_FLOPS
    )


def _is_long(prepared: setup.RunData, model: torch.nn.Module, processes: Processes) -> bool:
    """Return whether autotuning can save more time than it takes, by the pace of a measured step; the pace is cached.

    Counting operations says little about time: those of depthwise convolutions take many times as long as others.
    """
    pace = _pace(prepared, model, processes)
    # None: not enough memory for the whole batch
    return pace is None or pace * _images(prepared) / processes.world >= LEAST_SECONDS


def _pace(prepared: setup.RunData, model: torch.nn.Module, processes: Processes) -> float | None:
    """Return the seconds for an image of a step, from the tuning cache or measured; None without memory for it."""
    memory = tuning_cache.TuningCache(prepared.spec.data, _key(prepared, processes))
    known = memory.read("pace") or {}
    pace = known.get("seconds")
    if isinstance(pace, float) and pace > 0:
        return pace
    with _Bench(prepared, model, processes) as bench:
        pace = bench.pace(_images(prepared) / processes.world)
    if pace is not None:
        memory.write("pace", {"seconds": pace})
    return pace


def seconds(prepared: setup.RunData, model: torch.nn.Module, processes: Processes) -> float:
    """Return roughly how long the run's steps will take, without autotuning; 0 if plainly not long.

    For the first process; nothing is measured of a run that is short by its numbers.
    """
    if not prepared.spec.speed.probe or features.expected(prepared.spec):
        return 0.0
    if not _may_be_long(prepared, model, processes.device):
        return 0.0
    return (_pace(prepared, model, processes) or 0.0) * _images(prepared) / processes.world


def _images(prepared: setup.RunData) -> int:
    """Return the images of the whole run."""
    training = prepared.spec.training
    return sampling.epoch_length(prepared.train.samples.labels, training.sampling) * training.epochs


def _measured(
    prepared: setup.RunData, model: torch.nn.Module, processes: Processes
) -> list[resolution.Choice]:
    """Return the fastest way, from the tuning cache or as measured now."""
    spec = prepared.spec
    memory = tuning_cache.TuningCache(spec.data, _key(prepared, processes))
    fastest, note = _recalled(memory), "from the tuning cache of this machine"
    if fastest is None:
        started = time.perf_counter()
        with _Bench(prepared, model, processes) as bench:
            rates = bench.rates(_ways(spec, bench))
            if not rates:  # not enough memory for any; the step itself will find a size that fits
                return []
            fastest = pick(rates, bench.batch_size)
        memory.write("step", dataclasses.asdict(fastest))
        note = f"measured in {time.perf_counter() - started:.0f} s"
    why = f"{fastest.text} ({note})"
    told = fastest.accumulate > 1 or spec.training.precision != "auto"
    found = [
        resolution.Choice("training.precision", fastest.precision, why, matters=True),
        resolution.Choice("training.accumulate", fastest.accumulate, why, told),
    ]
    if spec.speed.compile == "auto":
        found.append(_compile(prepared, model, processes, fastest, memory))
    return found


def _recalled(memory: tuning_cache.TuningCache) -> Fastest | None:
    record = memory.read("step")
    try:
        return Fastest(**record) if record else None
    except TypeError:  # of another version
        return None


def _key(prepared: setup.RunData, processes: Processes) -> dict[str, Any]:
    """Return everything that a choice depends on, as plain values."""
    spec, device = prepared.spec, processes.device
    cpu = host.about_cpu([])
    return {
        "version": 1,
        "torch": torch.__version__,
        "processor": cpu.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "model": dataclasses.asdict(spec.model),
        "classes": len(prepared.classes),
        "size": prepared.contract.size,
        "channels": prepared.contract.channels,
        "batch": spec.training.batch_size,
        "given": [spec.training.precision, spec.training.accumulate],
        "channels_last": spec.speed.channels_last,
    }


# Which ways there are


def _ways(spec: Spec, bench: _Bench) -> list[Setting]:
    precisions = [spec.training.precision]
    if precisions == ["auto"]:
        precisions = ["fp32", "bf16"] if has_bf16(bench.device) else ["fp32"]
    parts = [spec.training.accumulate]
    if parts == [0]:
        smallest = SMALLEST_WITH_BATCH_NORM if bench.trains_batch_norms else SMALLEST_MICRO
        on_cpu = bench.device.type == "cpu" and bench.task.separable
        parts = parts_of(bench.batch_size, smallest) if on_cpu else [1]
    return [Setting(precision, count) for precision in precisions for count in parts]


def parts_of(batch_size: int, smallest: int) -> list[int]:
    """Return 1, 2, 4, … micro-batches as long as the largest of them has at least ``smallest`` images."""
    counts, count = [1], 2
    while count <= MOST_PARTS and math.ceil(batch_size / count) >= smallest:
        counts.append(count)
        count *= 2
    return counts


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes bf16 natively (unknown processors count as if they did: they are measured)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and host.about_cpu([]).fast_bf16 is not False


def pick(rates: dict[Setting, float], batch_size: int) -> Fastest:
    """Return the choice by images a second; for each precision the fewest micro-batches that are nearly the fastest."""
    best: dict[str, Setting] = {}
    for precision in dict.fromkeys(way.precision for way in rates):
        ours = {way: rate for way, rate in rates.items() if way.precision == precision}
        enough = max(ours.values()) / PARTS_MARGIN
        best[precision] = min(
            (way for way, rate in ours.items() if rate >= enough), key=lambda way: way.parts
        )
    names = list(best)
    name = names[0]
    if best.keys() == {"fp32", "bf16"}:
        faster = rates[best["bf16"]] >= BF16_MARGIN * rates[best["fp32"]]
        name = "bf16" if faster else "fp32"
    chosen = best[name]
    others = [f"{_speed(rates[best[other]])} in {other}" for other in names if other != name]
    whole = Setting(name, 1)
    if chosen.parts > 1 and not others and whole in rates:
        others = [f"{_speed(rates[whole])} with the whole batch at once"]
    size = math.ceil(batch_size / chosen.parts)
    how = f"{chosen.parts} micro-batches of {size}" if chosen.parts > 1 else f"the batch of {size} at once"
    text = f"{name}, {how}: {_speed(rates[chosen])} images/s" + (f" against {others[0]}" if others else "")
    return Fastest(name, chosen.parts, rates[chosen], text)


def _speed(rate: float) -> str:
    return numerals.rate(rate)


# Measuring


class _Bench:
    """Forward and backward passes of a copy of the network on one real batch, and a clock."""

    def __init__(self, prepared: setup.RunData, model: torch.nn.Module, processes: Processes) -> None:
        self.prepared, self.device = prepared, processes.device
        self.batch_size = math.ceil(prepared.spec.training.batch_size / processes.world)
        self._original = model

    def __enter__(self) -> _Bench:
        self._restore = contextlib.ExitStack()
        self._restore.enter_context(random_state_kept(self.device))
        plan = self._plan()
        self.task, self.network = plan.task.train(), plan.model
        order = sampling.epoch_order(
            plan.train.samples.labels, plan.spec.training.sampling, self.prepared.spec.seed, 0
        )
        raw = plan.train.batch(order[: self.batch_size]).to(self.device)
        self.batch = self.task.inputs(raw, torch.Generator().manual_seed(0), self.batch_size)
        self.batch_size = len(self.batch)
        kinds = torch.nn.modules.batchnorm._BatchNorm
        self.trains_batch_norms = any(isinstance(m, kinds) and m.training for m in self.network.modules())
        return self

    def __exit__(self, *_: object) -> None:
        del self.network, self.batch, self.task
        self._restore.close()
        release(self.device)

    def _plan(self) -> Plan:
        """Return a plan for a copy, with as many blocks training as there will ever be."""
        alone = Processes(0, 1, self.device)
        model = copy.deepcopy(self._original)
        plan = setup.plan(setup.complete(self.prepared, model, alone), model, alone)
        depth = 1 if self.prepared.spec.model.finetune == "head" else len(plan.blocks)
        heads.set_trainable(plan.model, plan.blocks, depth)
        heads.train_mode(plan.model, plan.spec.model.norms == "keep")
        return plan

    def rates(self, ways: list[Setting]) -> dict[Setting, float]:
        """Return images a second for each way that fits into memory: the fastest of three interleaved rounds.

        The fastest, because other programs can only make a step slower. Ways that are far behind after the first round
        are not measured again.
        """
        seconds: dict[Setting, float] = {}
        left = [way for way in ways if self._fits(way)]
        for turn in range(ROUNDS):
            for way in left:
                seconds[way] = min(seconds.get(way, math.inf), self.seconds(self.network, way))
            if turn == 0:
                fastest = min(seconds.values(), default=0.0)
                left = [way for way in left if seconds[way] < 1.5 * fastest]
        return {way: 1 / value for way, value in seconds.items()}

    def pace(self, images: float) -> float | None:
        """Return seconds for an image as the run would compute it without autotuning; None without memory for it.

        Of the first step, which also prepares kernels, where ``images`` at that pace are a short run; else of the next.
        """
        training = self.prepared.spec.training
        way = Setting(
            "fp32" if training.precision == "auto" else training.precision, training.accumulate or 1
        )
        try:
            first = self.seconds(self.network, way)
            if first * images < LEAST_SECONDS:
                return first
            return self.seconds(self.network, way)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release(self.device)
        return None

    def _fits(self, way: Setting) -> bool:
        """Compute a micro-batch once, which also lets libraries prepare their kernels."""
        try:
            self.seconds(self.network, way)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        else:
            fits = True
        if not fits and way.parts == 1:  # the step itself will find a size that fits
            release(self.device)
        return fits

    def seconds(self, network: torch.nn.Module, way: Setting) -> float:
        """Return the seconds for each image, measured on the first two micro-batches of the batch."""
        size = math.ceil(self.batch_size / way.parts)
        dtype = AMP_DTYPES[way.precision]
        end = min(self.batch_size, 2 * size)
        self._wait()
        started = time.perf_counter()
        for start in range(0, end, size):
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                losses, _ = self.task.loss(network, self.batch.part(start, start + size))
                (losses.sum() / self.batch_size).backward()
        self._wait()
        took = time.perf_counter() - started
        for parameter in self.network.parameters():
            parameter.grad = None
        return took / end

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """While entered, random numbers are drawn from copies of the generators' states."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        yield


# Compiling


def _compile(
    prepared: setup.RunData,
    model: torch.nn.Module,
    processes: Processes,
    fastest: Fastest,
    memory: tuning_cache.TuningCache,
) -> resolution.Choice:
    """Return the choice of ``speed.compile``."""
    images = _images(prepared)
    seconds = images / fastest.rate / processes.world
    staged = prepared.spec.model.finetune == "staged"  # each stage would be compiled anew
    if staged or not can_compile(processes.device):
        reason = "each stage would be compiled anew" if staged else "torch cannot compile here"
        return resolution.Choice("speed.compile", "off", reason)
    if seconds < COMPILE_SECONDS:
        return resolution.Choice("speed.compile", "off", "the run is too short to earn back the compiling")
    name = f"compile for {images} images"
    known = memory.read(name)
    if known and known.get("compile") in ("on", "off"):
        why = "as measured before on this machine"
        return resolution.Choice("speed.compile", str(known["compile"]), why, known["compile"] == "on")
    problems: list[str] = []
    with _Bench(prepared, model, processes) as bench:
        network = Compiled(bench.network, problems.append)
        way = Setting(fastest.precision, fastest.accumulate)
        started = time.perf_counter()
        bench.seconds(network, way)
        compiling = time.perf_counter() - started
        pairs = [(bench.seconds(bench.network, way), bench.seconds(network, way)) for _ in range(ROUNDS)]
    eager, compiled = (min(times) for times in zip(*pairs, strict=True))
    ratio = eager / compiled
    pays = not problems and ratio >= COMPILE_MARGIN and seconds * (1 - 1 / ratio) > 3 * compiling
    text = f"torch.compile makes steps {ratio:.2f} times as fast and takes {compiling:.0f} s"
    if not problems:  # a failure is not cached: it may work another time
        memory.write(name, {"compile": "on" if pays else "off"})
    return resolution.Choice(
        "speed.compile", "on" if pays else "off", problems[0] if problems else text, matters=True
    )
