from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from tellapart.errors import SpecError
from tellapart.spec import TrainingSpec
from tellapart.training.schedule import Schedule

LR = 0.5
Scheduler = lr_scheduler.LRScheduler


def torch_factors(
    make: Callable[[torch.optim.Optimizer], Scheduler], steps: int, every: int = 1
) -> list[float]:
    """The factors of a scheduler of torch that is stepped every ``every`` steps of the optimizer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR, momentum=0.9)
    scheduler = make(optimizer)
    factors = []
    for step in range(steps):
        factors.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < steps:
            scheduler.step()
    return factors


def ours(steps_per_epoch: int, epochs: int, **fields: object) -> list[float]:
    schedule = Schedule(TrainingSpec(epochs=epochs, **fields), steps_per_epoch, epochs)  # type: ignore[arg-type]
    return [schedule.factor(step) for step in range(steps_per_epoch * epochs)]


def test_constant_is_one() -> None:
    assert ours(3, 4, schedule="constant") == [1.0] * 12


def test_step_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.StepLR(o, 3, 0.3), 5 * 10, 5)
    assert ours(5, 10, schedule="step", step_epochs=3, gamma=0.3) == pytest.approx(expected)


def test_multi_step_is_torchs() -> None:
    expected = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 7], 0.2), 4 * 9, 4)
    assert ours(4, 9, schedule="multi-step", milestones=(5, 2, 7), gamma=0.2) == pytest.approx(expected)


@pytest.mark.parametrize("lowest", [0.0, 0.05])
def test_linear_is_torchs(lowest: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.LinearLR(o, 1.0, lowest, 35), 35)
    assert ours(5, 7, schedule="linear", min_lr_factor=lowest) == pytest.approx(expected)
    warm = ours(5, 7, schedule="linear", min_lr_factor=lowest, warmup_epochs=1)
    assert warm[5:] == pytest.approx(torch_factors(lambda o: lr_scheduler.LinearLR(o, 1.0, lowest, 30), 30))


@pytest.mark.parametrize("lowest", [0.0, 0.05])
def test_cosine_is_torchs(lowest: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, 35, LR * lowest), 35)
    assert ours(5, 7, schedule="cosine", min_lr_factor=lowest) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 100, 333])
def test_one_cycle_is_torchs(steps: int) -> None:
    expected = torch_factors(lambda o: lr_scheduler.OneCycleLR(o, LR, steps), steps)
    assert ours(steps, 1, schedule="one-cycle") == pytest.approx(expected)


def linear_then(optimizer: torch.optim.Optimizer, warmup: int, rest: Scheduler) -> Scheduler:
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, rest], [warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_warm_up_is_torchs_linear_before_cosine_and_constant() -> None:
    cosine = torch_factors(lambda o: linear_then(o, 12, lr_scheduler.CosineAnnealingLR(o, 40 - 12)), 40)
    assert ours(8, 5, schedule="cosine", warmup_epochs=1.5) == pytest.approx(cosine)
    constant = torch_factors(lambda o: linear_then(o, 12, lr_scheduler.ConstantLR(o, 1.0)), 40)
    assert ours(8, 5, schedule="constant", warmup_epochs=1.5) == pytest.approx(constant)


def test_drops_stay_at_their_epochs_after_a_warm_up() -> None:
    factors = ours(4, 6, schedule="multi-step", milestones=(1, 3), gamma=0.1, warmup_epochs=2)
    plain = ours(4, 6, schedule="multi-step", milestones=(1, 3), gamma=0.1)
    assert factors[8:] == plain[8:]
    assert factors[:8] == pytest.approx([plain[i] * (i + 1) / 9 for i in range(8)])


def test_one_cycle_after_a_warm_up_takes_the_remaining_steps() -> None:
    factors = ours(10, 4, schedule="one-cycle", warmup_epochs=1)
    assert factors[10:] == pytest.approx(ours(10, 3, schedule="one-cycle"))
    assert factors[:10] == pytest.approx([(i + 1) / 11 / 25 for i in range(10)])


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(["constant", "step", "multi-step", "linear", "cosine", "one-cycle"]),
    steps_per_epoch=st.integers(1, 50),
    epochs=st.integers(2, 12),
    warmup=st.floats(0, 0.9),
)
def test_factors_are_bounded_and_need_no_history(
    kind: str, steps_per_epoch: int, epochs: int, warmup: float
) -> None:
    spec = TrainingSpec(schedule=kind, warmup_epochs=warmup, milestones=(1, 4), step_epochs=2)
    total = steps_per_epoch * epochs
    schedule = Schedule(spec, steps_per_epoch, epochs)
    forward = [schedule.factor(step) for step in range(total)]
    assert all(0 < value <= 1 for value in forward)
    resumed = Schedule(spec, steps_per_epoch, epochs)
    assert [resumed.factor(step) for step in reversed(range(total))] == forward[::-1]
    warm = forward[: schedule.warmup]
    if kind != "step" and kind != "multi-step":
        assert warm == sorted(warm)


@pytest.mark.parametrize("kind", ["linear", "cosine", "one-cycle"])
def test_steps_past_the_end_keep_the_last_value(kind: str) -> None:
    schedule = Schedule(TrainingSpec(schedule=kind, min_lr_factor=0.1), 10, 2)
    assert schedule.factor(20) == pytest.approx(1 / 25 * 1e-4 if kind == "one-cycle" else 0.1)
    assert schedule.factor(1000) == schedule.factor(20)


LOSSES = [3.0, 2.0, 2.5, 2.4, 1.9999, 1.9, 1.9, math.nan, 1.9, 1.95, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8]


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("lowest", [0.0, 0.15])
def test_plateau_is_torchs(patience: int, lowest: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.4, patience=patience, min_lr=LR * lowest)
    spec = TrainingSpec(schedule="plateau", gamma=0.4, plateau_patience=patience, min_lr_factor=lowest)
    schedule = Schedule(spec, 5, len(LOSSES))
    seen = set()
    for epoch, loss in enumerate(LOSSES):
        assert schedule.factor(5 * epoch + 2) == pytest.approx(optimizer.param_groups[0]["lr"] / LR)
        theirs.step(loss)
        schedule.observe(epoch, loss)
        seen.add(schedule.factor(0))
    assert len(seen) > 2


@pytest.mark.parametrize("cut", range(0, len(LOSSES), 3))
def test_plateau_goes_on_from_its_state(cut: int) -> None:
    spec = TrainingSpec(schedule="plateau", gamma=0.5, plateau_patience=1, warmup_epochs=0.5)
    whole, first, second = (Schedule(spec, 4, 30) for _ in range(3))
    for epoch, loss in enumerate(LOSSES):
        whole.observe(epoch, loss)
    for epoch, loss in enumerate(LOSSES[:cut]):
        first.observe(epoch, loss)
    second.load_state_dict(first.state_dict())
    if cut:
        second.observe(cut - 1, LOSSES[cut - 1])  # told again after a resume
    for epoch, loss in enumerate(LOSSES[cut:], cut):
        second.observe(epoch, loss)
    assert second.state_dict() == whole.state_dict()
    assert second.factor(50) == whole.factor(50) < 1
    assert second.factor(0) == whole.factor(0) == whole.factor(50) / 3


def test_other_schedules_have_no_state() -> None:
    schedule = Schedule(TrainingSpec(schedule="cosine"), 4, 4)
    before = schedule.factor(7)
    schedule.observe(0, 1.0)
    schedule.load_state_dict(schedule.state_dict())
    assert schedule.state_dict() == {}
    assert schedule.factor(7) == before


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(SpecError, match=r"training.warmup_epochs is 3.*below training.epochs \(3\)"):
        Schedule(TrainingSpec(warmup_epochs=3.0), 10, 3)
    with pytest.raises(SpecError, match=r"training.gamma is 1"):
        Schedule(TrainingSpec(schedule="plateau", gamma=1.0), 10, 3)
    with pytest.raises(ValueError, match="at least one step"):
        Schedule(TrainingSpec(), 0, 3)
