"""The user's own task: two views, no labels, a loss over the whole batch, and a head that checkpoints save."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tellapart
from tellapart.augment import Augment
from tellapart.data.loader import RawBatch
from tellapart.errors import RunError, SpecError, TrainingError
from tellapart.training import checkpoint
from tellapart.training.task import Batch, Task, augmented

CHANGES = {"augment.preset": "cifar", "training.epochs": 3, "training.best_metric": "alignment"}


class Contrastive(Task):
    """SimCLR in small (Chen et al. 2020), with an encoder that follows the head slowly."""

    separable = False
    metrics = ("positive-similarity",)
    score_names = ("alignment",)

    def __init__(self, augment: Augment, width: int) -> None:
        super().__init__()
        self.augment = augment
        self.head = torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 8))
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
            self.slow.weight.lerp_(self.head[1].weight, 0.1)

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
    assert losses[-1] < losses[0] - 0.1
    assert all(-1 <= value <= 1 for value in similar)
    assert len(similar) == 8
    assert len(bench.recorder.column("train/positive-similarity")) == len(bench.recorder.column("train/loss"))
    assert len(bench.recorder.column("val/alignment")) == 8
    assert not bench.recorder.column("val/accuracy")
    task = bench.plan.task
    assert int(task.steps) == bench.trainer.progress.step
    for name in ("task.head.1.weight", "task.head.0.bias", "task.head.0.running_mean", "task.slow.weight"):
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
    torch.nn.init.zeros_(again.plan.task.head[1].weight)
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


_TWO = """
import sys
from pathlib import Path
import torch
from torch import nn
import conftest
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import processes
from tellapart.training.loop import Trainer
from tellapart.training.task import Classification

class Headed(Classification):
    on_features = False
    def __init__(self, augment):
        super().__init__(augment, lambda x, y: nn.functional.cross_entropy(x, y, reduction="none"))
        torch.manual_seed(1)
        self.head = nn.Linear(2, 2)
        self.register_buffer("steps", torch.zeros(()))
    def loss(self, network, batch):
        return super().loss(lambda images: self.head(network(images)), batch)
    def after_step(self, network):
        self.steps += 1
    def scores(self, outputs, labels):
        return super().scores(self.head(outputs), labels)

folder = Path(sys.argv[1])
samples = conftest._pictures((9, 9), (3, 3))
changes = {**conftest.BASE, "input.size": 8, "data.cache_dir": str(folder / "cache"), "augment.preset": "cifar"}
with processes("cpu") as who:
    prepared = setup.prepare(update(Spec(), {**changes, "training.batch_size": 5}), samples, lambda n: None)
    model = setup.build_model(prepared)[0]
    prepared = setup.complete(prepared, model, who)
    plan = setup.plan(prepared, model, who, lambda data, model, augment, counts: Headed(augment))
    Trainer(plan, who, folder / f"of-{who.world}", conftest.Recorder()).run()
    torch.save({**model.state_dict(), **plan.task.state_dict()}, folder / f"{who.world}-{who.rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_its_parameters_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(tellapart.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for command in ([sys.executable], launch):
        subprocess.run([*command, str(script), str(tmp_path)], env=environment, check=True, timeout=300)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4, msg=name)
    torch.manual_seed(1)
    assert not torch.allclose(one["head.weight"], torch.nn.Linear(2, 2).weight)
