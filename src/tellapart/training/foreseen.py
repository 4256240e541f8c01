"""What is known of a run's epochs in advance: which blocks train, and roughly what that costs.

Pure functions of plan and epoch. Knows nothing of clocks: what a pass takes is measured (`tracking.remaining`).
"""

from __future__ import annotations

import math

from tellapart.contract.sides import sides
from tellapart.tracking.remaining import Ahead, EpochCost
from tellapart.training import stages
from tellapart.training.methods import progressive
from tellapart.training.step import Plan


def costs(plan: Plan) -> Ahead:
    """Return the cost of each epoch's steps and validation in forward passes (backward: two if all blocks train)."""
    spec, full = plan.spec, plan.spec.input.size
    count = max(1, len(plan.blocks))
    found = []
    for epoch in range(spec.training.epochs):
        depth = stages.depth_at(spec, epoch, len(plan.blocks))
        features = depth == 1 and plan.on_features is not None
        part = max(0.0, depth - stages.frozen_at(spec, epoch)) / count
        area = math.prod(sides(progressive.size_at(epoch, spec.training, full))) / math.prod(sides(full))
        kind = "fitted" if stages.fitted_at(spec, epoch) else "features" if features else "images"
        found.append(EpochCost(kind, (1 + 2 * part) * area))
    images = 0 if plan.val_counts is None else int(plan.val_counts.sum())
    return Ahead(tuple(found), images / spec.training.batch_size)
