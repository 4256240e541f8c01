"""A task of one's own: two views, no labels, a loss over the whole batch, a head and a queue that checkpoints hold."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tellapart.augment import Augment
from tellapart.data.loader import RawBatch
from tellapart.errors import RunError, SpecError, TrainingError
from tellapart.training import checkpoint
from tellapart.training.task import Batch, Task, augmented

CHANGES = {"augment.preset": "cifar", "training.epochs": 3, "training.best_metric": "alignment"}


class Contrastive(Task):
    """SimCLR in small (Chen et al. 2020), with a centre that follows the embeddings as a queue would."""

    separable = False
    metrics = ("positive-similarity",)
    score_names = ("alignment",)

    def __init__(self, augment: Augment, width: int) -> None:
        super().__init__()
        self.augment = augment
        self.head = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
        self.slow = torch.nn.Linear(width, 8).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def inputs(self, batch: RawBatch, generator: torch.Generator, micro: int) -> Batch:
        views = [augmented(self.augment, batch, generator, micro) for _ in range(2)]
        return Batch(torch.cat(views), count=len(views[0]))

    def loss(self, network: torch.nn.Module, batch: Batch) -> Any:
        assert batch.labels is None
        z = F.normalize(self.head(network(batch.images)), dim=1)
        n = len(batch)
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
        partner = torch.arange(2 * n).roll(n)
        losses = F.cross_entropy(similar, partner, reduction="none")
        positive = (z[:n] * z[n:]).sum(1).detach().sum()
        return (losses[:n] + losses[n:]) / 2, {"positive-similarity": positive}

    def after_step(self, network: torch.nn.Module) -> None:
        self.steps += 1
        with torch.no_grad():
            self.slow.weight.lerp_(self.head[0].weight, 0.1)

    def scores(self, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        centres = torch.stack([outputs[labels == k].mean(0) for k in labels.unique()])
        return {"alignment": float(F.cosine_similarity(outputs, centres[labels]).mean())}


def _contrastive(prepared: Any, model: torch.nn.Module, augment: Augment, counts: Any) -> Task:
    torch.manual_seed(prepared.spec.seed)
    return Contrastive(augment, len(prepared.classes))


@pytest.fixture
def own(build: Any) -> Any:
    """Return a function that builds a bench whose trainer has the task."""

    return functools.partial(build, task=_contrastive)


def _state(bench: Any) -> dict[str, torch.Tensor]:
    task = {f"task.{name}": value for name, value in bench.plan.task.state_dict().items()}
    return {**bench.model.state_dict(), **task}


def test_it_trains_through_the_loop(own: Any, pictures: Any) -> None:
    changes = {**CHANGES, "training.epochs": 8, "training.optimizer": "adamw", "training.lr": 0.01}
    bench = own(pictures((16, 16, 16), (5, 5, 5), noise=80), **{**changes, "augment.preset": "light"})
    before = {name: value.clone() for name, value in _state(bench).items()}
    assert bench.trainer.run().finished
    losses = bench.recorder.column("train/epoch-loss")
    similar = bench.recorder.column("train/epoch-positive-similarity")
    assert losses[-1] < 0.9 * losses[0]
    assert all(-1 <= value <= 1 for value in similar)
    assert len(similar) == 8
    assert len(bench.recorder.column("train/positive-similarity")) == len(bench.recorder.column("train/loss"))
    assert len(bench.recorder.column("val/alignment")) == 8
    assert not bench.recorder.column("val/accuracy")
    task = bench.plan.task
    assert int(task.steps) == bench.trainer.progress.step
    for name in ("task.head.0.weight", "task.head.2.bias", "task.slow.weight"):
        assert not torch.equal(before[name], _state(bench)[name]), name
    trained = {id(p) for group in bench.plan.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in task.head.parameters()} <= trained
    assert not {id(p) for p in task.slow.parameters()} & trained
    assert bench.trainer.progress.best_scores.keys() == {"alignment"}
    assert any("validation alignment 0." in text for text in bench.recorder.messages)


def test_a_step_is_that_of_plain_torch(own: Any, pictures: Any) -> None:
    """One step against the formula, autograd and torch's SGD."""
    bench = own(pictures((8, 8)), **{**CHANGES, "augment.preset": "none", "training.momentum": 0.0})
    task, model = bench.plan.task, bench.start
    images, _ = bench.inputs()
    lr, mine = bench.prepared.spec.training.lr, torch.nn.ModuleList([model, copy.deepcopy(task.head)])
    optimizer = torch.optim.SGD(mine.parameters(), lr=lr)
    bench.trainer.begin_epoch()
    bench.trainer.train_mode()
    bench.trainer.stepper.take(bench.prepared.train.batch(np.arange(8)), 0, False)
    z = F.normalize(mine[1](model.train()(torch.cat([images[:8]] * 2))), dim=1).double()
    total = 0.0
    for i in range(16):
        others = [torch.exp(z[i] @ z[k] / 0.5) for k in range(16) if k != i]
        total = total - torch.log(torch.exp(z[i] @ z[(i + 8) % 16] / 0.5) / sum(others))
    (total / 16).backward()
    optimizer.step()
    for ours, theirs in zip(task.head.parameters(), mine[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_it_resumes_bit_for_bit(own: Any, pictures: Any, interrupt_at: Any) -> None:
    samples = pictures((16, 16, 16), (4, 4, 4))
    changes = {**CHANGES, "run.log_every": 1, "training.optimizer": "adamw", "training.ema": 0.8}
    whole, cut, again = (own(samples, **changes) for _ in range(3))
    assert whole.trainer.run().finished
    interrupt_at(cut, 9)
    assert not cut.trainer.run().finished
    torch.nn.init.zeros_(again.plan.task.head[0].weight)
    saved = checkpoint.load_newest(cut.trainer.folder)
    assert saved["task"].keys() == cut.plan.task.state_dict().keys()
    again.trainer.restore(saved)
    assert again.trainer.progress.step_in_epoch
    assert again.trainer.run().finished
    for name, value in _state(whole).items():
        assert torch.equal(value, _state(again)[name]), name
    assert whole.recorder.epochs[-1][1]["val/alignment"] == again.recorder.epochs[-1][1]["val/alignment"]
    means = [b.recorder.epochs[-1][1]["train/epoch-positive-similarity"] for b in (whole, again)]
    assert means[0] == means[1]


def test_it_is_never_computed_in_parts(own: Any, pictures: Any) -> None:
    samples = pictures((16, 16))
    with pytest.raises(SpecError, match=r"training\.accumulate is 2, but this loss compares"):
        own(samples, **CHANGES, **{"training.accumulate": 2})
    bench = own(samples, **CHANGES)

    def full(network: Any, batch: Any) -> Any:
        raise MemoryError

    bench.plan.task.loss = full
    with pytest.raises(TrainingError, match=r"smaller --training\.batch-size"):
        bench.trainer.run()


def test_another_tasks_checkpoint_is_refused(own: Any, build: Any, pictures: Any) -> None:
    samples = pictures((8, 8), (2, 2))
    plain, bench = build(samples, **{"training.epochs": 1}), own(samples, **CHANGES)
    plain.trainer.run()
    with pytest.raises((RunError, ValueError)):
        bench.trainer.restore(checkpoint.load_newest(plain.trainer.folder))


@pytest.mark.parametrize(
    ("given", "meant"), [("val_loss", "loss"), ("f1", "macro-f1"), ("Accuracy", "accuracy"), ("map", "")]
)
def test_the_best_metric_is_one_that_the_task_reports(
    given: str, meant: str, build: Any, pictures: Any
) -> None:
    with pytest.raises(SpecError, match=f"training.best_metric is '{given}'") as raised:
        build(pictures((3, 3)), **{"training.best_metric": given})
    assert f"Did you mean '{meant}'?" in str(raised.value) if meant else "macro-f1" in str(raised.value)


def test_several_views_and_absent_labels_are_sliced() -> None:
    views = (torch.arange(6.0).view(6, 1), torch.arange(6.0).view(6, 1) + 10)
    part = Batch(views).part(2, 5)
    assert len(Batch(views)) == 6
    assert [view.flatten().tolist() for view in part.images] == [[2, 3, 4], [12, 13, 14]]
    assert part.labels is None
    assert part.targets is None
