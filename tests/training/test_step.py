"""A step: its seeds, and that it reads nothing from the device that nobody asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tellapart.training.step import step_seed


def test_seeds_differ_by_seed_step_and_stream() -> None:
    found = {step_seed(s, t, u) for s in range(6) for t in range(50) for u in range(4)}
    assert len(found) == 6 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in found)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_the_norm_is_read_only_where_it_is_asked_for(clip: float, build: Any, pictures: Any) -> None:
    bench = build(pictures(), **{"training.clip_norm": clip})
    bench.trainer._set_stage()
    batch = bench.prepared.train.batch(np.arange(8))
    silent = bench.trainer.stepper.take(batch, 0, False)
    assert silent.norm is None
    asked = bench.trainer.stepper.take(batch, 1, True)
    assert asked.norm > 0
    assert isinstance(asked.loss, torch.Tensor)
