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
    bench.trainer.set_stage()
    batch = bench.prepared.train.batch(np.arange(8))
    silent = bench.trainer.stepper.take(batch, 0, False)
    assert silent.norm is None
    asked = bench.trainer.stepper.take(batch, 1, True)
    assert asked.norm > 0
    assert isinstance(asked.loss, torch.Tensor)


def test_only_steps_in_one_part_are_replayed(build: Any, pictures: Any, difference: Any) -> None:
    """Where memory did not suffice, parts are added up: a replay of each would leave the last one's gradients."""
    plain, replayed = (build(pictures()) for _ in range(2))
    calls: list[int] = []

    class Replays:
        """Leaves the gradients of what it ran alone, as a recording does."""

        def run(self, work: Any, *inputs: torch.Tensor) -> Any:
            calls.append(len(inputs[0]))
            for parameter in replayed.model.parameters():
                parameter.grad = None
            return work(*inputs)

    for bench in (plain, replayed):
        bench.trainer.set_stage()
    replayed.trainer.stepper.graphs = Replays()
    for step, (micro, count) in enumerate([(8, 8), (4, 8), (8, 5)]):
        for bench in (plain, replayed):
            bench.trainer.stepper.micro = micro
            bench.trainer.stepper.take(bench.prepared.train.batch(np.arange(count)), step, False)
    assert calls == [8]
    assert difference(plain.model, replayed.model) < 1e-6
