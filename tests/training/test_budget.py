"""Steps that fit into a time, and where a run is in its plan if its end is moved; by hypothesis against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart.spec import TrainingSpec
from tellapart.training import budget
from tellapart.training.budget import Cost, Timeline
from tellapart.training.schedule import Schedule

COSTS = st.builds(Cost, st.floats(0.001, 10), st.floats(0, 50))


def seconds_by_counting(cost: Cost, step: int, total: int, per_epoch: int) -> float:
    """Take the steps one by one; an epoch ends with a validation, the last one too."""
    seconds = 0.0
    for number in range(step, total):
        seconds += cost.step
        if (number + 1) % per_epoch == 0 or number + 1 == total:
            seconds += cost.end
    return seconds


@given(COSTS, st.integers(0, 200), st.integers(1, 60), st.floats(0, 500))
def test_the_steps_that_fit_fit_and_hardly_more_would(
    cost: Cost, step: int, per_epoch: int, seconds: float
) -> None:
    total = budget.steps_in(seconds, cost, step, per_epoch)
    assert total >= step
    if total - step > 2000:
        return
    assert (
        total == step
        or seconds_by_counting(cost, step, total, per_epoch) <= seconds + 1e-5 * (cost.step + cost.end) * 2
    )
    longer = total + max(1, math.ceil(0.1 * per_epoch))
    assert seconds_by_counting(cost, step, longer, per_epoch) > seconds - 1e-6


@given(COSTS, st.integers(0, 100), st.integers(0, 100), st.integers(1, 30))
def test_the_time_of_steps_is_that_of_counting(cost: Cost, step: int, more: int, per_epoch: int) -> None:
    expected = seconds_by_counting(cost, step, step + more, per_epoch)
    assert budget.time_of(cost, step, step + more, per_epoch) == pytest.approx(expected)


@given(st.floats(1, 10_000), COSTS, st.integers(1, 5000))
def test_an_epoch_is_a_pass_or_about_a_tenth_of_the_time(seconds: float, cost: Cost, per_pass: int) -> None:
    steps = budget.epoch_steps(seconds, cost, per_pass)
    assert 1 <= steps <= per_pass
    whole = per_pass * cost.step + cost.end
    if whole <= 0.15 * seconds:
        assert steps == per_pass
    elif steps < per_pass:
        share = cost.end / (steps * cost.step + cost.end)
        about_a_tenth = steps * cost.step + cost.end <= 0.1 * seconds + 2 * cost.step
        assert about_a_tenth or share <= 0.2 + 1e-6


ENDS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 120)), max_size=6)


@given(st.integers(1, 20), st.integers(1, 10), ENDS)
def test_a_moved_end_makes_no_jump_and_is_reached(per_pass: int, passes: int, moves: list) -> None:
    line = Timeline(per_pass * passes, per_pass, per_pass)
    step = 0
    for ahead, left in moves:
        if step + ahead >= line.total:
            break
        step += ahead
        before = line.at(step)
        line = line.with_end(step, step + left)
        if left:
            assert line.at(step) == pytest.approx(before)
    places = [line.at(number) for number in range(line.total + 3)]
    assert places[0] == 0 or line.total == 0
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(places))
    assert line.at(line.total) == line.nominal
    assert all(place < line.nominal for place in places[: line.total])


def test_without_a_moved_end_a_step_is_its_own_place() -> None:
    line = Timeline(30, 10, 10)
    assert [line.at(step) for step in range(31)] == list(range(31))
    assert all(type(line.at(step)) is int for step in range(31))
    assert [line.passes(step) for step in (0, 10, 20)] == [0, 1, 2]
    assert (line.total, line.epochs) == (30, 3)
    same = line.with_end(0, 30)
    assert [same.at(step) for step in range(31)] == list(range(31))


def test_halving_what_is_left_doubles_the_pace_in_the_plan() -> None:
    line = Timeline(100, 10, 10).with_end(40, 70)  # 60 steps of the plan in 30
    assert [line.at(step) for step in (0, 40, 50, 55, 70, 99)] == [0, 40, 60, 70, 100, 100]
    assert (line.total, line.epochs) == (70, 7)
    again = line.with_end(55, 85)  # and what is left then, 30 steps, in 30
    assert [again.at(step) for step in (55, 56, 85)] == [70, 71, 100]
    assert again.ends == [(40, 70), [55, 85]] or again.ends == [[40, 70], [55, 85]]


@pytest.mark.parametrize("kind", ["cosine", "linear", "one-cycle"])
def test_the_rate_of_a_run_whose_end_is_moved_ends_annealed(kind: str) -> None:
    schedule = Schedule(TrainingSpec(schedule=kind, warmup_epochs=0.5), 20, 10)
    line = Timeline(200, 20, 20).with_end(0, 150).with_end(60, 100).with_end(80, 130)
    factors = [schedule.factor(line.at(step)) for step in range(line.total)]
    assert factors[-1] < 0.01
    # per step it changes at most as fast as the densest part of the plan does
    steepest = max(abs(schedule.factor(k + 1) - schedule.factor(k)) for k in range(199))
    stretch = max(line.at(k + 1) - line.at(k) for k in range(line.total - 1))
    jumps = [abs(a - b) for a, b in itertools.pairwise(factors)]
    assert max(jumps) <= steepest * math.ceil(stretch) + 1e-6


def test_fewer_passes_are_enough_of_more_images() -> None:
    for kind in budget.MOST_PASSES:
        passes = [budget.most_passes(images, kind) for images in (10, 1000, 5000, 50_000, 10**7)]
        assert passes == sorted(passes, reverse=True)
