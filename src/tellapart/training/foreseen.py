"""What is known of a run's epochs in advance: which blocks train, and roughly what that costs.

Pure functions of plan and epoch. Knows nothing of clocks: what a pass takes is measured (`tracking.remaining`).
"""

from __future__ import annotations

import math

from tellapart.contract.sides import sides
from tellapart.spec import Spec
from tellapart.tracking.remaining import Ahead, EpochCost
from tellapart.training import stages
from tellapart.training.budget import Timeline
from tellapart.training.methods import progressive
from tellapart.training.step import Plan


def cost_at(plan: Plan, passes: float) -> EpochCost:
    """Return what a step costs after so many passes of the plan."""
    depth = stages.depth_at(plan.spec, passes, len(plan.blocks))
    features = depth == 1 and plan.on_features is not None
    kind = "fitted" if stages.fitted_at(plan.spec, passes) else "features" if features else "images"
    return EpochCost(kind, passes_at(plan.spec, passes, len(plan.blocks)))


def passes_at(spec: Spec, passes: float, blocks: int) -> float:
    """Return the forward passes that a step costs after so many passes over the images: 3 if all blocks train."""
    full = spec.input.size
    depth = stages.depth_at(spec, passes, blocks)
    part = max(0.0, depth - stages.frozen_at(spec, passes)) / max(1, blocks)
    area = math.prod(sides(progressive.size_at(passes, spec.training, full))) / math.prod(sides(full))
    return (1 + 2 * part) * area


def costs(plan: Plan, timeline: Timeline | None = None) -> Ahead:
    """Return the cost of each epoch's steps and validation in forward passes (backward: two if all blocks train)."""
    timeline = timeline or plan.timeline
    found = [cost_at(plan, timeline.passes(epoch * timeline.per_epoch)) for epoch in range(timeline.epochs)]
    images = 0 if plan.val_counts is None else int(plan.val_counts.sum())
    return Ahead(tuple(found), images / plan.spec.training.batch_size, timeline.total)
