"""The probe: what it chooses from rates, that it leaves nothing behind, and that a choice is remembered."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.loop import Trainer
from tellapart.training.speed import autotune
from tellapart.training.speed.autotune import Setting

CPU = Processes(0, 1, torch.device("cpu"))
OPEN: dict[str, Any] = {
    "training.precision": "auto",
    "training.accumulate": 0,
    "speed.compile": "auto",
    "model.name": "simple-cnn",
    "augment.preset": "none",
    "training.batch_size": 32,
    "training.epochs": 2,
    "training.threads": 1,
}


@pytest.fixture
def prepare(
    pictures: Callable[..., Any], tmp_path: Path
) -> Callable[..., tuple[setup.RunData, torch.nn.Module]]:
    def make(**changes: Any) -> tuple[setup.RunData, torch.nn.Module]:
        own = {"input.size": 8, "data.cache_dir": str(tmp_path / "cache"), "training.device": "cpu"}
        spec = update(Spec(), {**OPEN, **own, **changes})
        prepared = setup.prepare(spec, pictures((40, 40)), lambda count: None)
        return prepared, setup.build_model(prepared)[0]

    return make


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run counts as long, and the processor as one that has bf16."""
    monkeypatch.setattr(autotune, "LEAST_STEPS", 0)
    monkeypatch.setattr(autotune, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(setup, "PLAIN_KERNELS_FLOPS", 0)
    monkeypatch.setattr(autotune, "has_bf16", lambda device: True)


# ------------------------------------------------------------------------------------ the rule


def _rates(**rates: float) -> dict[Setting, float]:
    """``fp32_4=10`` is 10 images/s in fp32 and 4 parts."""
    return {Setting(name.split("_")[0], int(name.split("_")[1])): rate for name, rate in rates.items()}


@pytest.mark.parametrize(
    ("rates", "precision", "parts"),
    [
        ({"fp32_1": 100, "bf16_1": 114}, "fp32", 1),  # not clearly faster
        ({"fp32_1": 100, "bf16_1": 116}, "bf16", 1),
        ({"fp32_1": 100, "bf16_1": 40}, "fp32", 1),
        ({"fp32_1": 100, "fp32_2": 104}, "fp32", 1),  # smaller parts, but not clearly faster
        ({"fp32_1": 100, "fp32_2": 106, "fp32_4": 108}, "fp32", 2),  # the fewest parts that are nearly best
        ({"fp32_1": 100, "fp32_2": 106, "fp32_4": 130}, "fp32", 4),
        ({"fp32_1": 100, "fp32_4": 200, "bf16_1": 220, "bf16_4": 225}, "fp32", 4),  # best against best
        ({"fp32_1": 100, "fp32_4": 120, "bf16_1": 90, "bf16_4": 300}, "bf16", 4),
        ({"bf16_1": 100, "bf16_2": 150}, "bf16", 2),  # the precision was given
        ({"fp16_1": 100}, "fp16", 1),
        ({"bf16_2": 100}, "bf16", 2),  # fp32 did not fit into memory
    ],
)
def test_choice(rates: dict[str, float], precision: str, parts: int) -> None:
    choice = autotune.pick(_rates(**rates), 256)
    assert (choice.precision, choice.accumulate) == (precision, parts)
    assert choice.rate == rates[f"{precision}_{parts}"]


def test_the_message_names_both_speeds() -> None:
    choice = autotune.pick(_rates(fp32_1=290.2, bf16_1=530, bf16_4=790.4), 256)
    assert choice.text == "bf16, 4 micro-batches of 64: 790 images/s against 290 in fp32"
    choice = autotune.pick(_rates(fp32_1=9.26, bf16_1=5.0), 32)
    assert choice.text == "fp32, the batch of 32 at once: 9.3 images/s against 5.0 in bf16"
    choice = autotune.pick(_rates(bf16_1=50, bf16_2=100), 100)
    assert choice.text == "bf16, 2 micro-batches of 50: 100 images/s against 50 with the whole batch at once"


@pytest.mark.parametrize(
    ("batch", "smallest", "expected"),
    [
        (256, 16, [1, 2, 4, 8, 16]),
        (256, 128, [1, 2]),
        (255, 128, [1, 2]),  # 128 and 127
        (254, 128, [1]),
        (32, 16, [1, 2]),
        (16, 16, [1]),
        (8, 16, [1]),
        (100_000, 16, [1, 2, 4, 8, 16]),
    ],
)
def test_parts(batch: int, smallest: int, expected: list[int]) -> None:
    assert autotune.parts_of(batch, smallest) == expected


# ------------------------------------------------------------------------------------ when it measures


def test_a_short_run_is_not_tuned(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_measured", None)  # calling it fails
    prepared, model = prepare()
    done = autotune.choose(prepared, model, CPU)
    spec = done.spec
    assert (spec.training.precision, spec.training.accumulate, spec.speed.compile) == ("fp32", 1, "off")
    assert not [
        one
        for one in done.resolution.choices
        if one.matters and one.field.startswith(("speed", "training.p"))
    ]


@pytest.mark.usefixtures("always")
def test_autotuning_can_be_switched_off_or_have_nothing_to_do(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "_measured", None)
    prepared, model = prepare(**{"speed.probe": False})
    assert autotune.choose(prepared, model, CPU).spec.training.precision == "fp32"
    given = {"training.precision": "bf16", "training.accumulate": 3}
    given |= {f"speed.{name}": "off" for name in ("compile", "cuda_graphs", "kernel_search")}
    prepared, model = prepare(**given)
    assert autotune.choose(prepared, model, CPU).spec == prepared.spec


@pytest.mark.parametrize(("steps", "expected"), [(5, True), (6, False), (0, True)])
def test_a_run_of_few_steps_is_not_measured(
    steps: int, expected: bool, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "LEAST_STEPS", steps)
    monkeypatch.setattr(setup, "PLAIN_KERNELS_FLOPS", 0)
    prepared, model = prepare()  # 2 epochs of 80 images are 5 batches of 32
    assert autotune._may_be_long(prepared, model, torch.device("cpu")) == expected
    assert not autotune._may_be_long(prepared, model, torch.device("mps"))
    monkeypatch.setattr(setup, "PLAIN_KERNELS_FLOPS", 10**15)
    assert not autotune._may_be_long(prepared, model, torch.device("cpu"))


# (seconds of the first step, of the next, for an image; steps that are measured; whether the run is long)
PACES = [(0.5, 9.9, 1, False), (2.0, 0.7, 2, False), (2.0, 0.75, 2, True), (9.0, 8.0, 2, True)]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("first", "second", "steps", "expected"), PACES)
def test_a_run_is_long_by_a_measured_step(
    first: float, second: float, steps: int, expected: bool, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few operations a network has: 160 images at 0.75 s are the two minutes."""
    monkeypatch.setattr(autotune, "LEAST_SECONDS", 120.0)
    clock = [first, second]
    monkeypatch.setattr(autotune._Bench, "seconds", lambda bench, network, way: clock.pop(0))
    prepared, model = prepare()
    assert autotune._is_long(prepared, model, CPU) == expected
    assert len(clock) == 2 - steps
    assert autotune._is_long(prepared, model, CPU) == expected, "from the tuning cache"
    assert len(clock) == 2 - steps


@pytest.mark.usefixtures("always")
def test_a_batch_that_does_not_fit_into_memory_counts_as_long(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(autotune, "LEAST_SECONDS", 1e9)
    monkeypatch.setattr(autotune._Bench, "seconds", fail)
    assert autotune._is_long(*prepare(), CPU)


@pytest.mark.usefixtures("always")
def test_measuring_the_pace_changes_nothing(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "LEAST_SECONDS", 1e9)
    monkeypatch.setattr(autotune, "_measured", None)  # calling it fails
    prepared, model = prepare()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    chosen = autotune.choose(prepared, model, CPU)
    assert (chosen.spec.training.precision, chosen.spec.training.accumulate) == ("fp32", 1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# ------------------------------------------------------------------------------------ measuring


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["simple-cnn", "fast-cnn"])
def test_measuring_changes_nothing_and_is_cached(
    name: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, model = prepare(**{"model.name": name, "model.dropout": 0.1})
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    done = autotune.choose(prepared, model, CPU)
    spec = done.spec
    assert torch.equal(torch.get_rng_state(), state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    assert spec.training.precision in ("fp32", "bf16")
    assert spec.training.accumulate in ((1,) if name == "fast-cnn" else (1, 2))  # batch norms stay whole here
    assert spec.speed.compile == "off"
    assert _why(done).startswith(f"{spec.training.precision}, ")
    assert "measured in" in _why(done)
    # The second time nothing is measured, and the choice is the same.
    monkeypatch.setattr(autotune, "_Bench", None)
    again = autotune.choose(prepared, model, CPU)
    assert again.spec == spec
    assert _why(again).endswith("(from the tuning cache of this machine)")


@pytest.mark.usefixtures("always")
def test_another_network_or_batch_is_measured_for_itself(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def rates(bench: Any, ways: list[Setting]) -> dict[Setting, float]:
        measured.append(bench.batch_size)
        return {way: 100.0 if way.precision == "fp32" else 200.0 for way in ways}

    monkeypatch.setattr(autotune._Bench, "rates", rates)
    for changes in (
        {},
        {},
        {"training.batch_size": 16},
        {"model.dropout": 0.5},
        {"training.epochs": 9, "seed": 5},
    ):
        prepared, model = prepare(**changes)
        assert autotune.choose(prepared, model, CPU).spec.training.precision == "bf16"
    assert measured == [32, 16, 32]


@pytest.mark.usefixtures("always")
def test_a_damaged_memory_is_none(prepare: Any) -> None:
    prepared, model = prepare()
    autotune.choose(prepared, model, CPU)
    (file,) = (Path(prepared.spec.data.cache_dir) / "measured").iterdir()
    content = json.loads(file.read_text())
    for damaged in ("", "[]", json.dumps({**content, "records": {"step": {"speed": 1}}})):
        file.write_text(damaged)
        assert "measured in" in _why(autotune.choose(prepared, model, CPU))
        assert json.loads(file.read_text())["records"]["step"]["precision"] in ("fp32", "bf16")


@pytest.mark.usefixtures("always")
def test_what_was_given_is_kept(prepare: Any) -> None:
    prepared, model = prepare(**{"training.accumulate": 4, "training.precision": "bf16"})
    spec = autotune.choose(prepared, model, CPU).spec
    assert (spec.training.precision, spec.training.accumulate) == ("bf16", 4)


@pytest.mark.usefixtures("always")
def test_where_no_way_fits_into_memory_the_step_finds_one(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(autotune._Bench, "seconds", full)
    prepared, model = prepare()
    spec = autotune.choose(prepared, model, CPU).spec
    assert (spec.training.precision, spec.training.accumulate) == ("fp32", 1)


@pytest.mark.usefixtures("always")
def test_ways_far_behind_are_measured_once(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Setting] = []
    times = {
        Setting("fp32", 1): 1.0,
        Setting("fp32", 2): 1.4,
        Setting("bf16", 1): 1.6,
        Setting("bf16", 2): 9.0,
    }

    def seconds(bench: Any, network: Any, way: Setting) -> float:
        calls.append(way)
        return times[way]

    prepared, model = prepare()
    monkeypatch.setattr(autotune._Bench, "seconds", seconds)
    with autotune._Bench(prepared, model, CPU) as bench:
        found = bench.rates(list(times))
    assert found == {way: 1 / value for way, value in times.items()}
    assert [calls.count(way) for way in times] == [4, 4, 2, 2]  # with the warm-up


@pytest.mark.usefixtures("always")
def test_a_frozen_network_may_have_small_micro_batches(prepare: Any, saved_weights: Any) -> None:
    """Batch norms that do not train keep their statistics, so parts change nothing."""
    file = saved_weights("fast-cnn", num_classes=5, size=8)
    changes = {"model.name": "fast-cnn", "model.weights": str(file)}
    for finetune, trains in (("head", False), ("full", True)):
        prepared, model = prepare(**changes, **{"model.finetune": finetune})
        with autotune._Bench(prepared, model, CPU) as bench:
            assert bench.trains_batch_norms == trains
            assert {way.parts for way in autotune._ways(prepared.spec, bench)} == ({1} if trains else {1, 2})


def test_the_plan_takes_what_was_chosen(build: Any, pictures: Any) -> None:
    bench = build(pictures())
    assert bench.plan.spec.training.precision == "fp32"
    assert bench.plan.spec.training.accumulate == 1
    chosen = build(pictures(), **{"training.precision": "bf16", "training.accumulate": 2})
    assert chosen.trainer.stepper.micro == 4
    assert chosen.trainer.stepper._amp is torch.bfloat16


# ------------------------------------------------------------------------------------ compiling


def test_compiling_is_chosen_only_where_it_pays(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, model = prepare()
    monkeypatch.setattr(autotune, "can_compile", lambda device: True)
    # A compiled step takes ``compiled`` of the eager one's time.
    speed = {"compiled": 0.5}

    class Fake:
        def __init__(self, *_: Any) -> None:
            self.network = "eager"

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None: ...

        def seconds(self, network: Any, way: Setting) -> float:
            return 1.0 if network == "eager" else speed["compiled"]

    monkeypatch.setattr(autotune, "_Bench", Fake)
    monkeypatch.setattr(autotune, "Compiled", lambda network, warn: "compiled")

    def decide(rate: float, name: str, **changes: Any) -> str:
        memory = autotune.tuning_cache.TuningCache(prepared.spec.data, {"test": name})
        fastest = autotune.Fastest("fp32", 1, rate, "")
        ready = dataclasses.replace(prepared, resolution=prepared.resolution.asking(changes))
        choice = autotune._compile(ready, model, CPU, fastest, memory)
        assert choice.reason
        return str(choice.value)

    images = 160
    assert decide(images / 1190, "short") == "off"  # 20 minutes are 1200 s
    assert decide(images / 1210, "long") == "on"
    assert decide(images / 1210, "staged", **{"model.finetune": "staged"}) == "off"
    speed["compiled"] = 0.95
    assert decide(images / 1210, "hardly faster") == "off"
    assert decide(images / 1210, "long") == "on"  # remembered
    speed["compiled"] = 0.5
    monkeypatch.setattr(autotune, "Compiled", _failing)
    assert decide(images / 1210, "broken") == "off"
    monkeypatch.setattr(autotune, "Compiled", lambda network, warn: "compiled")
    assert decide(images / 1210, "broken") == "on"  # a failure is not remembered
    monkeypatch.setattr(autotune, "can_compile", lambda device: False)
    assert decide(images / 1210, "no compiler") == "off"


@pytest.mark.usefixtures("always")
def test_a_run_from_the_resolved_spec_is_the_same(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, model = prepare()
    chosen = autotune.choose(prepared, model, CPU)
    weights = []
    for name in ("first", "again"):
        fresh = setup.build_model(chosen)[0]
        trainer = Trainer(setup.plan(chosen, fresh, CPU), CPU, tmp_path / name, _Quiet())
        trainer.run()
        weights.append(trainer.weights())
        monkeypatch.setattr(autotune, "_Bench", None)  # nothing is measured again
        chosen = autotune.choose(chosen, fresh, CPU)
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key]), key


def _why(prepared: Any) -> str:
    """Return the reason of the precision, which a log shows."""
    (choice,) = [one for one in prepared.resolution.choices if one.field == "training.precision"]
    assert choice.matters
    return str(choice.reason)


def _failing(network: Any, warn: Callable[[str], None]) -> str:
    warn("broken")
    return "compiled"


class _Quiet:
    def start(self, *_: Any) -> None: ...
    def message(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, *_: Any) -> None: ...
    def log(self, *_: Any) -> None: ...
    def epoch_done(self, *_: Any) -> None: ...
