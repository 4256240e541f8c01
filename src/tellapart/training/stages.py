"""Stages of training: which parameters train in an epoch, on what, and what wraps the network.

A stage follows from how many passes of the plan are done (the epoch, if nothing moves the run's end), so that resuming
is exact. Knows nothing of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tellapart.models import heads
from tellapart.spec import Spec
from tellapart.training.distributed import Processes
from tellapart.training.speed.compiled import Compiled
from tellapart.training.step import Plan, Way


@dataclass(frozen=True)
class Stage:
    """How many blocks train, counted from the head, and which of their parameters no longer do.

    ``fitted``: a solver fits the head, in place of steps.
    """

    depth: int
    frozen: tuple[str, ...]
    fitted: bool = False


def fitted_at(spec: Spec, epoch: float) -> bool:
    """Return whether a solver fits the head in ``epoch`` (from 0)."""
    return spec.model.head == "fitted" and epoch == 0


def depth_at(spec: Spec, epoch: float, blocks: int) -> int:
    """Return how many of the blocks train in ``epoch`` (from 0), counted from the head."""
    if spec.model.finetune == "head" or fitted_at(spec, epoch):
        return 1
    if spec.model.finetune == "staged":
        return heads.staged_depth(epoch, spec.training.epochs, spec.model.unfreeze, blocks)
    return blocks


def frozen_at(spec: Spec, epoch: float) -> int:
    """Return how many of the first blocks have stopped training in ``epoch``."""
    late = epoch >= math.ceil(spec.model.freeze_from * spec.training.epochs)
    return spec.model.freeze_blocks if late else 0


def stage_of(plan: Plan, epoch: float) -> Stage:
    """Return the stage that ``epoch`` (from 0) belongs to."""
    spec, blocks = plan.spec, plan.blocks
    names = heads.early_names(plan.model) if epoch >= spec.training.early_epochs else ()
    if frozen := frozen_at(spec, epoch):
        names += tuple(name for block in blocks[-frozen:] for name in block)
    return Stage(depth_at(spec, epoch, len(blocks)), names, fitted_at(spec, epoch))


def freeze(plan: Plan, stage: Stage) -> None:
    """Make only the stage's parameters require a gradient."""
    heads.set_trainable(plan.model, plan.blocks, stage.depth, stage.frozen)


def way_of(plan: Plan, stage: Stage) -> Way:
    """Return what the stage runs: the head on features if possible (they are computed here), otherwise everything."""
    if stage.fitted:
        assert plan.fitting is not None
        return plan.fitting()
    if stage.depth == 1 and plan.on_features:
        return plan.on_features()
    return plan.whole


def wrapped(plan: Plan, way: Way, processes: Processes, warn: Callable[[str], None]) -> Any:
    """Return the way's network as steps call it: compiled, and with its gradients averaged over the processes."""
    network: Any = way.model
    # A head on features is too little work for a compiler.
    if way.model is plan.model and plan.spec.speed.compile == "on":
        network = Compiled(plan.model, warn)
    if processes.world > 1:
        device = processes.device
        ids = [device.index] if device.type == "cuda" else None
        network = torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)
    return network
