"""How fast a network would be on this machine, by measuring: forward passes as for features, and whole training steps.

Measured with random weights, which takes as long as with any others, on a few real images: a second or two for each
network, kept in the tuning cache. Steps have everything that steps of a run have (augmentation, all layers, the
optimizer), at a learning rate of 0. Leaves nothing behind; knows nothing of which networks are worth measuring.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tellapart.contract import sides
from tellapart.data.loader import RawBatch
from tellapart.data.samples import Samples
from tellapart.devices import AMP_DTYPES, release
from tellapart.doctor import host
from tellapart.errors import TrainingError
from tellapart.evaluation.infer import batch_that_pays
from tellapart.models import heads
from tellapart.preprocess import normalise
from tellapart.spec import flatten, to_dict, update
from tellapart.training import optim, setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution import Resolution
from tellapart.training.speed.autotune import BF16_MARGIN, has_bf16
from tellapart.training.speed.tuning_cache import TuningCache
from tellapart.training.step import Plan, Stepper

SECONDS = 0.4  # that one measurement should take, after a first pass
FIRST, FIRST_PIXELS = 4, 200_000  # least images, and pixels, of the first pass, which also prepares kernels
REPEATS = 3


@dataclass(frozen=True)
class Pace:
    """What was measured: images a second of forward passes and of training all layers, and in which precision.

    ``parameters``: of the network with the data's number of classes.
    """

    parameters: int
    forward: float
    training: float
    precision: str


def recall(resolved: Resolution, classes: int, processes: Processes) -> Pace | None:
    """Return what was measured before for a spec whose data stage is done, from the tuning cache; None: nothing."""
    record = _cache(resolved, classes, processes).read("pace of everything")
    if record is None:
        return None
    try:
        pace = Pace(**record)
        return pace if min(pace.forward, pace.training) > 0 else None
    except TypeError:  # of another version, or not what we wrote
        return None


def measure(resolved: Resolution, part: Samples, processes: Processes) -> Pace:
    """Measure a spec whose data stage is done, on the training images ``part``, and keep it in the tuning cache.

    There should be a batch of them; fewer are repeated.

    Raises DataError, ModelError, SpecError; TrainingError without enough memory.
    """
    with tempfile.TemporaryDirectory(prefix="tellapart-") as folder, _random_state_kept(processes.device):
        # random weights and few images: nothing is downloaded, and nothing is left in the cache
        alone = Processes(0, 1, processes.device)
        asked = {"model.weights": "none", "model.finetune": "full", "data.cache_dir": folder}
        prepared = setup.prepare(resolved.asking(asked), part, lambda count: None)
        model, _, _ = setup.build_model(prepared)
        prepared = setup.complete(prepared, model, alone)
        plan = setup.plan(prepared, model, alone)
        try:
            pace = _measured(plan, prepared, alone, resolved.spec.training.precision)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise TrainingError("there is not enough memory for it") from error
        except FloatingPointError as error:
            raise TrainingError("its loss is not a finite number") from error
        finally:
            del plan, model, prepared
            release(processes.device)
    _cache(resolved, len(part.classes), processes).write("pace of everything", dataclasses.asdict(pace))
    return pace


def _measured(plan: Plan, prepared: setup.RunData, processes: Processes, asked: str) -> Pace:
    heads.set_trainable(plan.model, plan.blocks, len(plan.blocks))
    optim.set_lr(plan.optimizer, 0.0, 1.0)
    parameters = sum(parameter.numel() for parameter in plan.model.parameters())
    forward = _forward(plan, prepared, processes.device)
    heads.train_mode(plan.model)
    rates = {precision: _steps(plan, processes, precision) for precision in _precisions(asked, processes)}
    name = next(iter(rates))
    if "bf16" in rates and rates["bf16"] >= BF16_MARGIN * rates[name]:
        name = "bf16"
    return Pace(parameters, forward, rates[name], name)


def _precisions(asked: str, processes: Processes) -> list[str]:
    if asked != "auto":
        return [asked]
    return ["fp32", "bf16"] if has_bf16(processes.device) else ["fp32"]


def _forward(plan: Plan, prepared: setup.RunData, device: torch.device) -> float:
    """Return images a second of forward passes, in the precision of features."""
    contract = prepared.contract
    at_once = batch_that_pays(contract.size, device)
    blank = torch.zeros(1, *contract.sides, contract.channels, dtype=getattr(torch, contract.depth))
    dtype = AMP_DTYPES[plan.spec.training.precision]

    def run(count: int) -> None:
        images = normalise(blank.expand(count, -1, -1, -1).to(device), contract, plan.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            plan.model(images)

    plan.model.eval()
    return _rate(run, contract.sides, at_once, device)


def _steps(plan: Plan, processes: Processes, precision: str) -> float:
    """Return images a second of whole steps."""
    spec = update(plan.spec, {"training.precision": precision})
    stepper = Stepper(dataclasses.replace(plan, spec=spec), processes, lambda text: None)
    batch_size = spec.training.batch_size
    rows = np.resize(np.arange(len(plan.train)), batch_size)

    @functools.cache
    def batch(count: int) -> RawBatch:
        return plan.train.batch(rows[:count]).to(processes.device)

    def run(count: int) -> None:
        stepper.take(batch(count), 0, False)

    return _rate(run, sides.sides(spec.input.size), batch_size, processes.device)


def _rate(run: Callable[[int], None], of: tuple[int, int], most: int, device: torch.device) -> float:
    """Return images a second of ``run(count)``, for as many at once, up to ``most``, as take about `SECONDS`.

    ``of``: height and width of the images.

    The fastest of a few passes, because other programs can only make one slower.
    """
    count = min(max(FIRST, FIRST_PIXELS // math.prod(of)), most)
    _seconds(run, count, device)
    least = spent = _seconds(run, count, device)
    while (larger := min(most, int(count * SECONDS / least))) >= 2 * count:
        count = larger  # what a pass costs beside its images counts less with each
        least = spent = _seconds(run, count, device)
    for _ in range(REPEATS - 1):
        if spent >= SECONDS:
            break
        again = _seconds(run, count, device)
        least, spent = min(least, again), spent + again
    return count / least


def _seconds(run: Callable[[int], None], count: int, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run(count)
    _wait(device)
    return max(time.perf_counter() - started, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        yield


def _cache(resolved: Resolution, classes: int, processes: Processes) -> TuningCache:
    """Return the tuning cache for everything that the pace depends on."""
    spec, device = resolved.spec, processes.device
    training = {
        name: value
        for name, value in flatten(spec.training).items()
        if name in ("batch_size", "precision", "accumulate", "optimizer", "loss", "ema", "clip_norm")
    }
    key: dict[str, Any] = {
        "version": 1,
        "torch": torch.__version__,
        "processor": host.about_cpu([]).model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "model": [spec.model.name, spec.model.stem, spec.model.dropout, spec.model.drop_path],
        "classes": classes,
        "input": [spec.input.size, spec.input.channels, spec.input.depth, spec.input.decode],
        "augment": to_dict(spec.augment),
        "training": training,
        "channels_last": spec.speed.channels_last,
    }
    return TuningCache(spec.data, key)
