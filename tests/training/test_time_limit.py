"""Runs with a limit of time, on a clock that the test moves: each step and each validation takes what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tellapart
from tellapart import cli, clock, printing, runs, typed, workflow
from tellapart.errors import SpecError
from tellapart.spec import Spec, update
from tellapart.training import budget, checkpoint, resolution, sampling, time_plan
from tellapart.training.budget import Cost
from tellapart.training.callbacks import Callback
from tellapart.training.loop import Trainer
from tellapart.training.time_plan import Budget, Pace, Timing, Work
from tellapart.training.timekeeper import TimeKeeper, taken
from tellapart.workflow import extending


class Clock(Callback):
    """A clock that steps and validations move; ``slow`` gives the seconds of a step by its number."""

    def __init__(self, slow: Callable[[int], float], validation: float) -> None:
        self.now, self.slow, self.validation = 100.0, slow, validation
        self.rates: dict[int, float] = {}
        self.orders: list[Any] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_epoch_start(self, epoch: int) -> None:
        self.orders.append(self.trainer.order.copy())

    def before_step(self, batch: Any) -> None:
        step = self.trainer.progress.step
        self.rates[step] = self.trainer.factor
        self.now += self.slow(step)


@pytest.fixture
def limited(build: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function: samples, limit, seconds of a step -> a bench whose trainer has a limit, and its clock."""

    def make(
        samples: Any,
        limit: float,
        slow: Callable[[int], float],
        *,
        planned: float = 1.0,
        validation: float = 2.0,
        reserve: float = 5.0,
        most: int = 10_000,
        enough: bool = True,
        at: float = 100.0,
        **changes: Any,
    ) -> tuple[Any, Clock]:
        bench = build(samples, **{"time_limit": limit, "training.schedule": "cosine", **changes})
        time = Clock(slow, validation)
        time.now = at
        monkeypatch.setattr(clock, "now", lambda: time.now)
        validate, plan = bench.plan.validate, bench.plan

        def validating(model: Any) -> Any:
            time.now += validation
            return validate(model)

        plan.validate = validating
        cost = Cost(planned, validation)
        fits = budget.steps_in(limit - reserve, cost, 0, plan.steps_per_epoch)
        first = min(most, max(fits, budget.LEAST_STEPS))
        keeper = TimeKeeper(
            Budget(limit, at, reserve, Pace(planned, 3.0, 0.1), validation, first, most, enough, "Plan.")
        )
        plan.callbacks.append(keeper)
        bench.trainer = Trainer(plan, bench.trainer.processes, bench.trainer.folder, bench.recorder, [time])
        return bench, time

    return make


@pytest.fixture
def few(pictures: Any) -> Any:
    return pictures((30, 30), (6, 6))  # 8 steps of 8 images in a pass


def used(time: Clock) -> float:
    return time.now - 100.0


@pytest.mark.parametrize("planned", [1.0, 0.5, 2.0, 5.0])
def test_a_steady_pace_ends_in_time_whatever_was_planned(limited: Any, few: Any, planned: float) -> None:
    bench, time = limited(few, 200.0, lambda step: 1.0, planned=planned)
    assert bench.trainer.run().finished
    assert 185 <= used(time) <= 197  # 5 are reserved
    assert time.rates[max(time.rates)] < 0.01


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_pace_that_changes_midway_moves_the_end(limited: Any, few: Any, factor: float) -> None:
    bench, time = limited(few, 200.0, lambda step: 1.0 if step < 60 else factor)
    assert bench.trainer.run().finished
    assert 185 <= used(time) <= 200
    total, planned = bench.trainer.progress.step, 154
    assert total < planned if factor > 1 else total > planned
    steps = sorted(time.rates)
    rates = [time.rates[step] for step in steps]
    assert steps == list(range(total))
    assert rates[-1] < 0.05
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(rates))  # cosine, whose end moves
    assert max(a - b for a, b in itertools.pairwise(rates)) < 0.2
    told = [text for text in bench.recorder.messages if text.startswith("Training is ")]
    assert told
    assert ("slower" if factor > 1 else "faster") in told[0]
    assert [epoch for epoch, _, _ in bench.recorder.epochs] == list(range(bench.recorder.planned))


def test_one_long_wait_is_made_up_for(limited: Any, few: Any) -> None:
    bench, time = limited(few, 200.0, lambda step: 60.0 if step == 40 else 1.0)
    assert bench.trainer.run().finished
    assert 180 <= used(time) <= 200


def test_enough_is_enough(limited: Any, few: Any) -> None:
    bench, time = limited(few, 1000.0, lambda step: 1.0, most=80)
    assert bench.trainer.run().finished
    assert bench.trainer.progress.step == 80
    (said,) = (text for text in bench.recorder.messages if "before it would have to" in text)
    assert "10 epochs are enough for this many images" in said
    found = taken(bench.plan.callbacks)
    assert found["limit"] == 1000
    assert found["why"] == "10 epochs are enough for this many images"
    assert found["seconds"] == pytest.approx(used(time), abs=0.01)


def test_a_limit_that_is_too_short_still_trains_a_few_steps(limited: Any, few: Any) -> None:
    bench, _ = limited(few, 3.0, lambda step: 1.0)
    assert bench.trainer.run().finished
    assert budget.LEAST_STEPS <= bench.trainer.progress.step <= budget.LEAST_STEPS + 1


def test_a_run_that_was_cut_ends_as_the_whole_one(
    limited: Any, few: Any, interrupt_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(step: int) -> float:
        return 1.0 if step < 30 else 2.0

    whole, time = limited(few, 200.0, slow)
    whole.trainer.run()
    cut, before = limited(few, 200.0, slow)
    interrupt_at(cut, 75)
    assert not cut.trainer.run().finished
    again, after = limited(few, 200.0, slow, at=5000.0)
    again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
    ends = [list(pair) for pair in again.trainer.timeline.ends]
    assert ends == cut.trainer.progress.ends
    assert len(ends) > 1
    assert again.trainer.run().finished
    assert again.trainer.progress.ends[: len(ends)] == ends
    both = (before.now - 100) + (after.now - 5000)
    assert both == pytest.approx(used(time), abs=6)
    again_rates = {**before.rates, **after.rates}
    same = [step for step in time.rates if step < 76]
    assert all(again_rates[step] == time.rates[step] for step in same)


def test_between_two_decisions_resuming_is_exact(
    limited: Any, few: Any, interrupt_at: Any, difference: Any
) -> None:
    """Here the pace is as planned, so that nothing is decided anew."""
    whole, _ = limited(few, 100.0, lambda step: 1.0)
    whole.trainer.run()
    cut, _ = limited(few, 100.0, lambda step: 1.0)
    interrupt_at(cut, 21)
    assert not cut.trainer.run().finished
    again, _ = limited(few, 100.0, lambda step: 1.0, at=9000.0)
    again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
    assert again.trainer.run().finished
    assert again.trainer.progress.ends == whole.trainer.progress.ends
    assert difference(again.model, whole.model) == 0


def test_without_a_limit_nothing_is_decided(build: Any, few: Any) -> None:
    bench = build(few)
    assert bench.trainer.run().finished
    assert bench.trainer.progress.ends == []
    assert bench.trainer.timeline.total == 16
    assert taken(bench.plan.callbacks) == {}


# Shorter epochs


@pytest.mark.parametrize("size", [8, 24, 56])
@pytest.mark.parametrize("mode", ["shuffle", "oversample", "weighted"])
def test_parts_of_passes_give_each_image_its_turn(size: int, mode: str) -> None:
    labels = np.array([0] * 30 + [1] * 11)
    length = sampling.epoch_length(labels, mode)
    parts = [sampling.part_order(labels, mode, 3, part, size) for part in range(40)]
    assert {len(part) for part in parts} == {size}
    joined = np.concatenate(parts)
    for number in range(40 * size // length):
        whole = sampling.epoch_order(labels, mode, 3, number)
        assert np.array_equal(joined[number * length : (number + 1) * length], whole)


def test_epochs_of_fewer_images_train_as_many_steps_as_the_passes(limited: Any, build: Any, few: Any) -> None:
    bench = build(few, **{"training.epochs": 3, "training.epoch_images": 17, "training.schedule": "cosine"})
    time = Clock(lambda step: 0.0, 0.0)
    trainer = Trainer(bench.plan, bench.trainer.processes, bench.trainer.folder, bench.recorder, [time])
    assert trainer.run().finished
    assert trainer.progress.step == 24  # as with 3 epochs of 60 images
    assert [len(order) for order in time.orders] == [24] * 8
    joined = np.concatenate(time.orders)
    assert sorted(joined[:60]) == sorted(joined[60:120]) == list(range(60))
    plain = build(few, **{"training.epochs": 3, "training.schedule": "cosine"})
    factors = [plain.plan.schedule.factor(step) for step in range(24)]
    assert bench.recorder.column("train/lr") == pytest.approx([0.002 * f for f in factors])
    assert len(bench.recorder.epochs) == 8


def test_what_follows_the_epochs_follows_a_moved_end(limited: Any, few: Any) -> None:
    """Sizes grow over the passes of the plan, which are spread over the time there is."""
    changes = {
        "training.start_size": 4,
        "training.epochs": 10,
        "training.size_epochs": 0.5,
        "model.name": "fast-cnn",
    }
    bench, _ = limited(few, 60.0, lambda step: 1.0, **changes)
    assert bench.trainer.run().finished
    said = [text for text in bench.recorder.messages if "training images of" in text]
    line = bench.trainer.timeline
    first = next(epoch for epoch in range(50) if line.passes(8 * epoch) >= 2.5)  # of 10: 4 pixels, then 8
    assert 0 < first < len(bench.recorder.epochs) < 10
    assert [text.split(":")[0] for text in said] == ["Epoch 1", f"Epoch {1 + first}"]


# The plan


def _work(images: int = 1000, val: int = 100, step: float = 0.1, **more: Any) -> Work:
    return Work(images, val, 50, "scratch", Pace(step, 3.0, step / 30), **more)


def _fitted(work: Work, leaves: bool = True, used: float = 10.0, **changes: Any) -> tuple[dict, Budget]:
    spec = update(Spec(), {"training.batch_size": 10, "time_limit": 110.0, **changes})
    found, plan = time_plan.fitted(spec, lambda field: leaves, work, used, 0.0)
    return {choice.field: choice.value for choice in found}, plan


def test_open_epochs_are_those_that_fit() -> None:
    chosen, plan = _fitted(_work(step=0.02))  # a pass takes 2 s
    fits = plan.first * 0.02 + plan.reserve + 10
    assert 100 < fits < 110
    assert chosen == {"training.epochs": math.ceil(plan.first / 100)}
    assert "10.0 s are gone" in plan.text
    assert "1,000 images at 500 images/s" in plan.text


def test_no_more_epochs_than_help() -> None:
    chosen, plan = _fitted(_work(images=100, step=0.001))
    assert chosen == {"training.epochs": 200}
    assert plan.first == plan.most == 2000
    assert plan.enough


def test_given_epochs_are_only_shortened() -> None:
    chosen, plan = _fitted(_work(step=0.02), leaves=False, **{"training.epochs": 3})
    assert not chosen
    assert plan.first == plan.most == 300
    chosen, plan = _fitted(_work(step=0.02), leaves=False, **{"training.epochs": 3000})
    assert not chosen
    assert 2000 < plan.first < plan.most == 300_000
    assert not plan.enough


def test_a_pass_that_takes_too_long_is_divided() -> None:
    chosen, plan = _fitted(_work(images=10_000, step=0.2))  # a pass would take 200 s
    steps = chosen["training.epoch_images"] / 10
    assert 5 <= plan.first / steps <= 12
    assert chosen["training.epochs"] == 1
    assert plan.first < 500


@pytest.mark.parametrize("changes", [{"training.patience": 3}, {"training.schedule": "plateau"}])
def test_epochs_that_something_counts_are_left_whole(changes: dict[str, Any]) -> None:
    chosen, _ = _fitted(_work(images=10_000, step=0.2), **changes)
    assert "training.epoch_images" not in chosen


def test_a_warm_up_has_room_in_the_plan() -> None:
    chosen, _ = _fitted(_work(step=0.5), **{"training.warmup_epochs": 5.0})
    assert chosen["training.epochs"] == 6


def test_if_nothing_fits_it_says_so_with_numbers() -> None:
    _, plan = _fitted(_work(), used=200.0)
    assert plan.first == budget.LEAST_STEPS
    assert plan.text.startswith("The limit of 1 min 50 s is too short: 3 min 20 s of it are gone")


def test_what_was_measured_is_the_pace_of_real_steps(build: Any, few: Any) -> None:
    bench = build(few)
    before = torch.random.get_rng_state()
    weights = [parameter.clone() for parameter in bench.model.parameters()]
    pace = time_plan.measure(bench.prepared, bench.model, bench.trainer.processes, 10.0)
    assert pace is not None
    assert 0 < pace.forward < pace.step < 5
    assert pace.passes == 3
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, bench.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("expected", "step", "bound"), [(4000.0, 200.0, 1800), (4000.0, 20.0, 0), (100.0, 200.0, 0)]
)
def test_a_long_run_that_nothing_bounds_gets_a_bound(
    build: Any, few: Any, monkeypatch: pytest.MonkeyPatch, expected: float, step: float, bound: int
) -> None:
    """By the pace that autotuning knows, and by that with the precision that it chose, which may be faster."""
    bench = build(few)
    measured = []

    def measure(*_: Any) -> Pace:
        measured.append(1)
        return Pace(step, 3.0, 0.1)

    resolution = dataclasses.replace(bench.prepared.resolution, given=frozenset())
    prepared = dataclasses.replace(bench.prepared, resolution=resolution)
    monkeypatch.setattr(time_plan.autotune, "seconds", lambda *_: expected)
    monkeypatch.setattr(time_plan, "measure", measure)
    timing = Timing(bench.model, bench.trainer.processes, clock.now())
    found = timing.fit_again(timing.fit(prepared))
    assert found.spec.time_limit == bound
    assert (timing.budget is not None) == bool(bound)
    assert bool(measured) == (expected > 1800)  # nothing is measured of a short run
    if bound:
        (why,) = (choice for choice in found.resolution.choices if choice.field == "time_limit")
        assert "2 epochs would take about 53 min 20 s" in why.reason
        assert found.spec.training.epochs == 2
        assert timing.budget is not None
        assert timing.budget.first < 10 + 1
    else:
        assert found.spec == prepared.spec


def test_epochs_that_were_given_are_bound_by_nothing(
    build: Any, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = build(few)
    monkeypatch.setattr(time_plan.autotune, "seconds", lambda *_: 1e6)
    timing = Timing(bench.model, bench.trainer.processes, clock.now())
    assert timing.fit_again(timing.fit(bench.prepared)) is bench.prepared


# Whole runs


TINY: dict[str, Any] = {
    "model.name": "simple-cnn", "augment.preset": "none", "training.batch_size": 8, "run.tensorboard": False,
    "run.report": False, "training.device": "cpu",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, make_folder: Any) -> Path:
    return make_folder(tmp_path / "data", splits=("train", "val"), count=12)


def test_a_whole_run_says_its_plan_and_keeps_it(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """The limit is far too short for anything, so the clock of the machine does not matter."""
    result = tellapart.train(folder, time_limit="0.001s", **{**TINY, "run.dir": str(tmp_path / "run")})
    said = " ".join(capsys.readouterr().err.split())
    assert "The limit of 0.001 s is too short" in said
    assert result.time["limit"] == 0.001
    assert result.time["seconds"] > 0.001
    spec = runs.read_spec(result.run / runs.SPEC_FILE)
    assert spec.time_limit == 0.001
    saved = checkpoint.load_newest(result.run / "checkpoint")
    assert saved is not None
    assert saved["progress"]["step"] >= budget.LEAST_STEPS - 1
    again = tellapart.resume(result.run)
    assert again.metrics == result.metrics


def test_given_epochs_end_before_a_long_limit_and_it_says_why(folder: Path, tmp_path: Path) -> None:
    words = {**TINY, "run.dir": str(tmp_path / "run"), "training.epochs": 2}
    result = tellapart.train(folder, time_limit=3600, quiet=True, **words)
    assert result.time["why"] == "2 epochs were asked for"
    assert result.time["seconds"] < 3600


def test_a_later_limit_goes_on_past_the_end(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budget.MOST_PASSES, "scratch", ((math.inf, 8),))
    words = {**TINY, "run.dir": str(tmp_path / "run")}
    result = tellapart.train(folder, time_limit=0.001, quiet=True, **words)
    before = checkpoint.load_newest(result.run / "checkpoint")["progress"]["step"]  # type: ignore[index]
    longer = tellapart.resume(result.run, time_limit=3600)
    said = " ".join(capsys.readouterr().err.split())
    assert "The limit is now 1 h (before: 0.001 s)" in said
    after = checkpoint.load_newest(longer.run / "checkpoint")["progress"]["step"]  # type: ignore[index]
    assert after > before
    assert runs.read_spec(result.run / runs.SPEC_FILE).time_limit == 3600


@pytest.mark.parametrize(("name", "text"), [("time_limit", "above 0"), ("training.epochs", "at least 1")])
def test_what_a_resumed_run_has_chosen_is_not_opened_again(name: str, text: str) -> None:
    before = update(Spec(), {"time_limit": 60.0, "training.epochs": 3})
    with pytest.raises(SpecError, match=text):
        extending.changed(before, {name: 0})
    assert extending.changed(before, {name: 90}) == update(before, {name: 90})


def test_each_of_several_runs_has_its_share(folder: Path, tmp_path: Path) -> None:
    words = {**TINY, "run.dir": str(tmp_path / "run")}
    result = tellapart.repeat(folder, times=2, time_limit=0.01, quiet=True, **words)
    for seed in (0, 1):
        spec = runs.read_spec(result.run / f"seed-{seed}" / runs.SPEC_FILE)
        assert spec.time_limit == 0.005
    assert runs.read_spec(result.run / runs.SPEC_FILE).time_limit == 0.01


# The command line


def test_durations_are_typed_as_words() -> None:
    assert typed.in_seconds(["data", "--time-limit", "1h30m", "--seed", "3"])[2] == "5400.0"
    assert typed.in_seconds(["--time_limit=90s"]) == ["--time_limit=90.0"]
    assert typed.in_seconds(["--time-limit"]) == ["--time-limit"]
    assert typed.in_seconds(["--seed", "10m"]) == ["--seed", "10m"]


@pytest.mark.parametrize(
    "words", [["train", "--time-limit", "10 parsecs"], ["resume", "x", "--time-limit=soon"]]
)
def test_what_is_no_duration_is_a_mistake_of_the_user(words: list[str], capsys: Any) -> None:
    assert cli.main(words) == 2
    assert "must be a duration such as 90s, 10m or 1h30m" in capsys.readouterr().err


def test_the_summary_says_how_long_it_took() -> None:
    time = {"seconds": 41.3, "limit": 60.0, "why": "200 epochs are enough for this many images"}
    result = workflow.Result(Path("runs/a"), Path("runs/a/model.safetensors"), "", {}, time=time)
    (line,) = (line for line in printing.summary(result).splitlines() if line.startswith("Time"))
    assert line == "Time     41.3 s of 60 s: 200 epochs are enough for this many images"
    plain = workflow.Result(Path("runs/a"), Path("runs/a/model.safetensors"), "", {})
    assert "Time" not in printing.summary(plain)


@pytest.mark.parametrize(("finetune", "head"), [("head", None), ("full", "gradient")])
def test_features_that_the_limit_has_not_are_done_without_where_that_can_be(
    finetune: str, head: str | None
) -> None:
    changes = {"model.finetune": finetune, "model.head": "fitted", "training.epochs": 1, "time_limit": 10.0}
    chosen = resolution.Resolution(update(Spec(), changes), given=frozenset())
    timing = Timing.__new__(Timing)
    timing.resumed = False
    work = Work(10**6, 0, 0, "head", Pace(1.0, 3.0, 0.1), before=1e5)
    without = timing._without_features(chosen, work, 0.0)
    assert (without and without.spec.model.head) == head
    assert without is None or without.spec.training.head_lr > 0  # the head is new, and trains by steps
