"""The pace of a network: whole steps and forward passes on a few images, kept for the next time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tellapart import packages
from tellapart.errors import TrainingError
from tellapart.models import zoo
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution import Resolution, facts
from tellapart.training.speed import pace

CPU = Processes(0, 1, torch.device("cpu"))
DEVICE = torch.device("cpu")


@pytest.fixture
def resolved(pictures: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Resolution, Any]]:
    def make(**changes: Any) -> tuple[Resolution, Any]:
        samples = pictures((40, 40))
        own = {"model.name": "fast-cnn", "data.cache_dir": str(tmp_path / "cache"), "training.device": "cpu"}
        spec = update(Spec(), {**own, "training.precision": "fp32", **changes})
        return Resolution(spec).by_data(facts.of_data(spec, samples)), samples

    return make


def test_a_network_is_measured_and_nothing_is_left_behind(resolved: Any, tmp_path: Path) -> None:
    wanted, samples = resolved()
    assert pace.recall(wanted, 2, CPU) is None
    torch.manual_seed(1)
    found = pace.measure(wanted, samples.split("train"), CPU)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    spec = wanted.spec
    network = zoo.build(zoo.Architecture("fast-cnn", 2, spec.input.channels, spec.input.size))
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.forward > found.training > 0
    assert found.precision == "fp32"
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.parent.name for path in kept] == ["measured"]
    assert pace.recall(wanted, 2, CPU) == found
    for other in (
        resolved(**{"input.size": 12})[0],
        resolved(**{"training.batch_size": 4})[0],
        resolved(**{"model.name": "fast-cnn-small"})[0],
        resolved(**{"augment.preset": "none"})[0],
    ):
        assert pace.recall(other, 2, CPU) is None
    assert pace.recall(wanted, 3, CPU) is None


@pytest.mark.parametrize(
    "record", [{}, {"other": 1}, {"parameters": 1, "forward": 0, "training": 1, "precision": ""}]
)
def test_a_record_that_is_not_ours_is_measured_again(record: Any, resolved: Any) -> None:
    wanted, _ = resolved()
    pace._cache(wanted, 2, CPU).write("pace of everything", record)
    assert pace.recall(wanted, 2, CPU) is None


def test_weights_are_not_fetched(resolved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace is that of all layers, with random weights."""
    if not packages.installed("timm"):
        pytest.skip("timm is not installed")
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr(setup.weights, "load", lambda *_: pytest.fail("loaded"))
    trained: list[set[str]] = []
    real = pace.heads.set_trainable

    def note(model: Any, blocks: Any, depth: int) -> None:
        real(model, blocks, depth)
        trained.append({name for name, parameter in model.named_parameters() if not parameter.requires_grad})

    monkeypatch.setattr(pace.heads, "set_trainable", note)
    changes = {"model.name": "timm/mobilenetv3_small_050", "model.weights": "lamb_in1k", "input.size": 32}
    wanted, samples = resolved(**changes)
    assert pace.measure(wanted, samples.split("train"), CPU).parameters > 500_000
    assert trained == [set()]


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "not enough memory"), (FloatingPointError(), "not a finite number")],
)
def test_what_cannot_be_measured_says_why(
    error: BaseException, words: str, resolved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise error

    monkeypatch.setattr(pace, "_forward", fail)
    wanted, samples = resolved()
    with pytest.raises(TrainingError, match=words):
        pace.measure(wanted, samples.split("train"), CPU)
    assert pace.recall(wanted, 2, CPU) is None


@pytest.mark.parametrize(
    ("fixed", "each", "most"),
    [(0.05, 1e-4, 512), (0.0, 0.2, 32), (0.001, 0.01, 32), (0.0, 1e-5, 64), (0.0, 3.0, 8)],
)
def test_the_rate_is_that_of_large_batches_within_a_second_or_two(
    fixed: float, each: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of the test: every pass costs something, the first one twice."""
    now, first, counts = [0.0], itertools.chain([2.0], itertools.repeat(1.0)), []
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run(count: int) -> None:
        counts.append(count)
        now[0] += (fixed + each * count) * next(first)

    rate = pace._rate(run, (224, 224), most, DEVICE)
    assert rate == pytest.approx(1 / (each + fixed / max(counts)))
    assert max(counts) <= most
    assert rate >= 0.8 / (each + fixed / most) or max(counts) * each > 0.15
    assert now[0] <= max(2.0, 12.1 * each)


def test_bf16_counts_only_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"fp32": 100.0, "bf16": 114.0}
    plan = SimpleNamespace(model=torch.nn.Linear(1, 1), blocks=[], optimizer=None)
    for name in ("heads", "optim"):
        monkeypatch.setattr(pace, name, SimpleNamespace(set_trainable=print, train_mode=print, set_lr=print))
    monkeypatch.setattr(pace, "_forward", lambda *_: 300.0)
    monkeypatch.setattr(pace, "_steps", lambda plan, processes, precision: rates[precision])
    monkeypatch.setattr(pace, "has_bf16", lambda device: True)

    def chosen(asked: str) -> tuple[str, float]:
        found = pace._measured(plan, None, CPU, asked)
        return found.precision, found.training

    assert chosen("auto") == ("fp32", 100.0)
    assert chosen("bf16") == ("bf16", 114.0)
    rates["bf16"] = 116.0
    assert chosen("auto") == ("bf16", 116.0)
    monkeypatch.setattr(pace, "has_bf16", lambda device: False)
    assert chosen("auto") == ("fp32", 100.0)
