"""The epoch in which a solver fits the head: what it does to the network, to the run, and to the epochs after it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.augment import resolve
from tellapart.errors import SpecError
from tellapart.spec import Spec, TrainingSpec, update
from tellapart.training import checkpoint
from tellapart.training.choosing import Chooser, surely_lower, surpasses
from tellapart.training.distributed import Processes
from tellapart.training.ineffective import Facts, without_effect
from tellapart.training.progress import Progress
from tellapart.training.schedule import Schedule
from tellapart.training.speed import features, fitting


class Screen:
    def message(self, text: str) -> None:
        raise AssertionError(text)

    def busy(self, label: str, total: int | None = None) -> Any:
        return nullcontext(SimpleNamespace(advance=lambda count: None))


@pytest.fixture
def changes(saved_weights: Callable[..., Path]) -> dict[str, Any]:
    return {"model.weights": str(saved_weights()), "model.head": "fitted", "training.epochs": 3}


@pytest.fixture
def samples(pictures: Callable[..., Any]) -> Any:
    return pictures((20, 17, 16), (6, 5, 7))


@pytest.fixture
def make(build: Callable[..., Any], samples: Any, changes: dict[str, Any]) -> Callable[..., Any]:
    """Return a function: changes -> a bench whose plan can fit its head."""

    def made(**more: Any) -> Any:
        bench = build(samples, **{**changes, **more})
        features.offer(bench.plan, bench.prepared, Processes(0, 1, torch.device("cpu")), Screen())
        return bench

    return made


QUICK: dict[str, Any] = {"model.finetune": "head", "training.epochs": 1}


def test_the_head_alone_changes_and_is_the_best_there_is(make: Callable[..., Any]) -> None:
    bench = make(**QUICK)
    assert bench.trainer.run().finished
    names = {
        n
        for n, p in bench.model.named_parameters()
        if not torch.equal(p, dict(bench.start.named_parameters())[n])
    }
    assert len(names) == 2  # weight and bias of the last layer
    for name, buffer in bench.model.named_buffers():
        assert torch.equal(buffer, dict(bench.start.named_buffers())[name])
    (_, values, kept) = bench.recorder.epochs[0]
    assert kept
    assert values["val/accuracy"] > 0.6  # of three classes
    assert "weight decay" in bench.recorder.messages[0]
    assert "53 images" in bench.recorder.messages[0]
    assert bench.recorder.steps == []


def test_what_is_reported_is_what_the_whole_network_answers(make: Callable[..., Any]) -> None:
    bench = make(**QUICK)
    bench.trainer.run()
    (_, values, _) = bench.recorder.epochs[0]
    images, labels = bench.inputs()
    bench.model.eval()
    with torch.no_grad():
        logits = bench.model(images)
    assert values["train/epoch-loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-4
    )
    assert values["train/epoch-accuracy"] == pytest.approx(
        float((logits.argmax(1) == labels).float().mean()), abs=1e-6
    )
    assert bench.plan.validate(bench.model)["loss"] == pytest.approx(values["val/loss"], abs=1e-4)


def test_random_crops_keep_larger_images_which_are_fitted_as_evaluation_sees_them(
    build: Callable[..., Any], pictures: Callable[..., Any], changes: dict[str, Any]
) -> None:
    """Two ways to the same features: from images that are kept for crops, and from those of the input's size."""
    large, losses = pictures((20, 17, 16), (6, 5, 7), size=12), []
    fixed = {"input.size": 8, "input.mean": (0.4, 0.5, 0.6), "input.std": (0.2, 0.3, 0.2)}
    for preset in ("photo", "none"):
        bench = build(large, **{**changes, **QUICK, **fixed, "augment.preset": preset})
        assert bench.prepared.augment.needs_large_source == (preset == "photo")
        features.offer(bench.plan, bench.prepared, Processes(0, 1, torch.device("cpu")), Screen())
        bench.trainer.run()
        losses.append(bench.recorder.epochs[0][1]["train/epoch-loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_all_layers_train_after_it(make: Callable[..., Any]) -> None:
    bench = make(**{"training.ema": 0.5})
    bench.trainer.run()
    first = next(p for _, p in bench.model.named_parameters())
    assert not torch.equal(first, next(p for _, p in bench.start.named_parameters()))
    assert len(bench.recorder.epochs) == 3
    assert bench.recorder.steps
    assert min(bench.recorder.steps) >= 1


def test_cut_in_a_later_epoch_it_ends_with_the_same_bytes(
    make: Callable[..., Any], interrupt_at: Callable[..., None]
) -> None:
    whole, cut, again = (make(**{"training.ema": 0.9}) for _ in range(3))
    assert whole.trainer.run().finished
    interrupt_at(cut, 2 * whole.plan.steps_per_epoch + 2)
    assert not cut.trainer.run().finished
    again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
    assert again.trainer.run().finished
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.trainer.progress.best_epoch == whole.trainer.progress.best_epoch
    assert again.trainer.progress.best_scores == whole.trainer.progress.best_scores
    for name, tensor in whole.trainer.best.items():
        assert torch.equal(tensor, again.trainer.best[name]), name


def test_training_that_makes_it_worse_leaves_the_fitted_head(make: Callable[..., Any]) -> None:
    bench = make(**{"training.lr": 30.0, "training.momentum": 0.0, "training.clip_norm": 1.0})
    bench.trainer.run()
    accuracies = [values["val/accuracy"] for _, values, _ in bench.recorder.epochs]
    assert bench.trainer.progress.best_epoch == 0
    assert max(accuracies[1:]) < accuracies[0] + 0.2
    quick = make(**QUICK)
    quick.trainer.run()
    for name, tensor in quick.model.state_dict().items():
        assert torch.equal(tensor, bench.trainer.best[name]), name


@pytest.mark.parametrize(
    ("gained", "lost", "better"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, True),
        (3, 1, False),
        (4, 1, True),
        (5, 5, False),
        (3, 9, False),
        (30, 22, True),
        (30, 23, False),
    ],
)
def test_better_by_more_than_chance(gained: int, lost: int, better: bool) -> None:
    """b - c above sqrt(b + c), however many images both answer alike."""
    before = np.array([False] * gained + [True] * lost + [True] * 40 + [False] * 10)
    now = np.array([True] * gained + [False] * lost + [True] * 40 + [False] * 10)
    assert surpasses(before, now) == better
    assert better == (gained - lost > math.sqrt(gained + lost))


@pytest.mark.parametrize(
    ("gain", "spread", "better"),
    [(0.2, 1.0, True), (0.05, 1.0, False), (0.05, 0.1, True), (-0.2, 1.0, False)],
)
def test_losses_of_the_same_images(gain: float, spread: float, better: bool) -> None:
    """Of 100 images the mean difference has a standard error of a tenth of the spread."""
    differences = np.tile([spread, -spread], 50)
    before = np.linspace(0, 3, 100)
    assert surely_lower(before, before - differences - gain) == better
    assert not surely_lower(before, np.full(100, np.nan))


@pytest.mark.parametrize(
    ("metric", "before", "now", "better"),
    [
        ("balanced-accuracy", 0.80, 0.82, False),  # 100 images, an error of 0.04
        ("balanced-accuracy", 0.80, 0.85, True),
        ("mAP", 0.80, 0.82, False),
        ("mAP", 0.80, 0.85, True),
        ("kappa", 0.80, 0.83, False),
        ("kappa", 0.80, 0.84, True),
        ("mae", 0.25, 0.22, False),
        ("mae", 0.25, 0.19, True),
        ("loss", 0.5, 0.49, True),
    ],
)
def test_figures_that_are_not_of_single_images(metric: str, before: float, now: float, better: bool) -> None:
    chooser = Chooser(TrainingSpec(best_metric=metric), np.array([50, 50]), ("loss", "mae"))
    assert chooser.better(now, before) == better


def test_what_may_not_replace_does_not() -> None:
    chooser, progress = Chooser(TrainingSpec(), np.array([50, 50])), Progress()
    assert chooser.judge(progress, {"accuracy": 0.8, "loss": 1.0})
    progress.next_epoch()
    assert not chooser.judge(progress, {"accuracy": 0.82, "loss": 0.9}, may=False)
    assert (progress.best_epoch, progress.highest_epoch) == (0, 1)
    text = chooser.explain(progress, reference=0)
    assert "the fitted head, is kept" in text
    assert "80.00 %" in text
    assert "82.00 %" in text
    progress.next_epoch()
    assert chooser.judge(progress, {"accuracy": 0.85, "loss": 0.9})


def test_the_schedule_begins_after_it() -> None:
    spec = TrainingSpec(schedule="cosine", warmup_epochs=0.5, lr=0.1)
    plain, later = Schedule(spec, 10, 4), Schedule(spec, 10, 5, after=10)
    assert [later.factor(step + 10) for step in range(40)] == [plain.factor(step) for step in range(40)]
    assert math.isfinite(Schedule(TrainingSpec(), 10, 1, after=10).factor(0))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"model.weights": "none"}, "no weights"),
        ({"training.sampling": "oversample"}, "oversample"),
        ({"training.prune": 0.3}, "prune"),
        ({"training.quantize": "int8"}, "rounded"),
    ],
)
def test_refuses_what_a_solver_cannot_do(make: Callable[..., Any], more: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=f"model.head is fitted.*{why}.*--model.head gradient"):
        make(**more)


class _Twice(torch.nn.Module):
    """Its logits are not the output of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = 2 * self.last(self.body(images).mean((2, 3)))
        return logits


@pytest.mark.parametrize("finetune", ["head", "full"])
def test_a_network_that_cannot_be_cut_trains_its_head_by_steps(
    make: Callable[..., Any], finetune: str
) -> None:
    bench = make(**{"model.finetune": finetune, "training.epochs": 1})
    prepared = bench.prepared
    with pytest.raises(SpecError, match=r"cannot be fitted: its logits are not .*--model.head gradient"):
        fitting.able(prepared, _Twice())
    left = dataclasses.replace(prepared.resolution, given=frozenset())
    spec = fitting.able(dataclasses.replace(prepared, resolution=left), _Twice()).spec
    assert spec.model.head == "gradient"
    assert spec.training.epochs > 1 if finetune == "head" else spec.training.head_lr > 0
    assert update(spec, {"model.head": "gradient"}) == spec


def test_several_labels(build: Callable[..., Any], changes: dict[str, Any], samples: Any) -> None:
    targets = np.eye(3, dtype=np.uint8)[samples.labels]
    targets[::5, 0] = 1
    several = dataclasses.replace(samples, targets=targets)
    bench = build(several, **{**changes, **QUICK})
    features.offer(bench.plan, bench.prepared, Processes(0, 1, torch.device("cpu")), Screen())
    assert bench.trainer.run().finished
    assert bench.recorder.epochs[0][1]["val/mAP"] > 0.6


QUICKLY: dict[str, Any] = {"model.head": "fitted", "model.finetune": "head", "training.epochs": 1}
FACTS = Facts(validation=True, counts=(30, 20, 10))


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({**QUICKLY, "training.lr": 0.1}, "training.lr", "a solver fits the head"),
        ({**QUICKLY, "training.ema": 0.9}, "training.ema", "a solver fits the head"),
        ({**QUICKLY, "augment.hflip": 0.3}, "augment.hflip", "a solver fits the head"),
        ({"model.head": "gradient", "effort": "quick"}, "effort", "left open"),
    ],
)
def test_says_what_has_no_effect_on_a_fitted_head(changes: dict[str, Any], name: str, why: str) -> None:
    spec = update(Spec(), changes)
    size = {"input.size": 32, "augment": dataclasses.asdict(resolve(spec.augment, 32))}
    (text,) = without_effect([name], update(spec, size), FACTS)
    assert text.startswith(f"{name} has no effect")
    assert why in text
    others = {**changes, "model.head": "fitted", "model.finetune": "full", "training.epochs": 3}
    assert without_effect([name], update(update(Spec(), others), size), FACTS) == []
