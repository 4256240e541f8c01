"""InfoBatch: who stays and with what weight, an unbiased gradient, what is refused, and an exact resume."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.errors import SpecError
from tellapart.spec import TrainingSpec
from tellapart.training import checkpoint
from tellapart.training.distributed import Processes
from tellapart.training.methods import infobatch
from tellapart.training.methods.infobatch import InfoBatch

CPU = torch.device("cpu")
ONE = Processes(0, 1, CPU)
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 9, 8, 7, np.nan, 6], np.float32)  # the mean of the known is 3.5


def test_easy_images_leave_and_those_that_stay_count_for_them() -> None:
    weights = infobatch.choose(SCORES, 0.5, seed=3, epoch=1)
    assert (weights[5:] == 1).all()
    assert sorted(weights[:5].tolist()) == pytest.approx([0, 0, 5 / 3, 5 / 3, 5 / 3])
    again = infobatch.choose(SCORES, 0.5, seed=3, epoch=1)
    assert np.array_equal(weights, again)
    assert any(not np.array_equal(infobatch.choose(SCORES, 0.5, 3, epoch), weights) for epoch in range(2, 6))
    assert any(not np.array_equal(infobatch.choose(SCORES, 0.5, seed, 1), weights) for seed in range(4, 8))


def test_weights_are_one_in_the_mean_over_epochs() -> None:
    mean = np.mean([infobatch.choose(SCORES, 0.4, 0, epoch) for epoch in range(3000)], axis=0)
    assert mean == pytest.approx(np.ones(10), abs=0.06)


@pytest.mark.parametrize("scores", [np.full(6, np.nan), np.full(6, 0.5), np.zeros(0)])
def test_nothing_known_or_all_alike_leaves_nothing_out(scores: Any) -> None:
    assert (infobatch.choose(scores.astype(np.float32), 0.9, 0, 1) == 1).all()


def test_an_epochs_losses_decide_on_the_next() -> None:
    made = InfoBatch(TrainingSpec(prune=0.5, prune_until=0.5, epochs=4), 10, 0, CPU, ONE)
    order = np.random.default_rng(0).permutation(10)
    assert np.array_equal(made.order(order, 0), order)
    made.note(order[:6], torch.tensor(SCORES)[order[:6]])
    made.note(order[6:], torch.tensor(SCORES)[order[6:]])
    assert np.array_equal(made.order(order, 0), order)  # within the epoch nothing changes
    made.end_epoch()
    kept = made.order(order, 1)
    assert np.array_equal(kept, order[made.weights[order] > 0])
    assert len(kept) == 8
    made.note(kept, torch.zeros(8))
    made.end_epoch()
    left = np.setdiff1d(order, kept)
    assert np.array_equal(made.scores[left], SCORES[left])  # their last seen loss stays
    assert not made.scores[kept].any()
    assert np.array_equal(made.order(order, 2), order)  # from prune_until on all are read
    assert (made.weights == 1).all()


class Two(Processes):
    """The first of two processes; the other one has noted ``other``."""

    other: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_processes_share_what_they_have_seen() -> None:
    spec = TrainingSpec(prune=0.5)
    processes = Two(0, 2, CPU)
    alone, shared = (InfoBatch(spec, 9, 0, CPU, who) for who in (ONE, processes))
    everything = torch.arange(9.0)
    alone.note(np.arange(9), everything)
    shared.note(np.arange(4), everything[:4])
    other = np.full(9, np.nan, np.float32)
    other[4:] = everything[4:].numpy()
    object.__setattr__(processes, "other", other)
    alone.end_epoch()
    shared.gather()
    shared.end_epoch()
    assert np.array_equal(alone.scores, shared.scores)
    assert np.array_equal(alone.order(np.arange(9), 1), shared.order(np.arange(9), 1))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_the_weighted_mean(accumulate: int, pictures: Any, build: Any, difference: Any) -> None:
    """A step of the loop with these weights against torch's own cross-entropy and SGD."""
    changes = {"training.prune": 0.5, "training.epochs": 1, "training.batch_size": 30}
    changes |= {"training.accumulate": accumulate, "training.prune_from": 0.0, "training.momentum": 0.0}
    bench = build(pictures(train=(10, 10, 10)), **changes)
    scores = np.linspace(0, 1, 30, dtype=np.float32) ** 3
    bench.plan.callbacks[0].scores = scores
    bench.trainer.run()
    weights = torch.from_numpy(infobatch.choose(scores, 0.5, 0, 0))
    images, labels = bench.inputs()
    optimizer = torch.optim.SGD(bench.start.parameters(), lr=bench.prepared.spec.training.lr)
    losses = torch.nn.functional.cross_entropy(bench.start.train()(images), labels, reduction="none")
    (losses * weights).sum().div(int((weights > 0).sum())).backward()
    optimizer.step()
    assert 0 < (weights == 0).sum() < 15
    assert difference(bench.model, bench.start) < 1e-6
    kept = weights.numpy() > 0
    assert bench.plan.callbacks[0].scores[kept] == pytest.approx(losses.detach().numpy()[kept], abs=1e-4)
    assert np.array_equal(bench.plan.callbacks[0].scores[~kept], scores[~kept])


def test_fewer_images_are_read_and_the_schedule_ends_where_it_should(pictures: Any, build: Any) -> None:
    changes = {
        "training.prune": 0.8,
        "training.epochs": 8,
        "training.schedule": "cosine",
        "training.lr": 0.01,
    }
    bench = build(pictures(train=(30, 30, 30), noise=20), **changes)
    bench.trainer.run()
    steps = [step for step, values in bench.recorder.logged if "train/loss" in values]
    assert steps == sorted(set(steps))
    assert len(steps) < 0.85 * 96
    assert bench.trainer.progress.step == steps[-1] == 96
    assert steps[:12] == list(range(1, 13))
    assert steps[-12:] == list(range(85, 97))  # the last epoch reads all
    rates = bench.recorder.column("train/lr")
    assert rates == sorted(rates, reverse=True)
    starts = np.array([0, *steps[:-1]])  # the rate is that of the place in the schedule where a step begins
    assert rates == pytest.approx(0.005 * (1 + np.cos(np.pi * starts / 96)), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.sampling": "oversample"}, "training.sampling is 'oversample'"),
        ({"augment.mixup": 0.2}, "augment.mixup 0"),
        ({"augment.cutmix": 1.0}, "augment.cutmix 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: Any, message: str, pictures: Any, build: Any) -> None:
    with pytest.raises(SpecError, match=message):
        build(pictures(), **{"training.prune": 0.5}, **changes)


def test_a_run_cut_in_the_middle_continues_exactly(
    pictures: Any, build: Any, interrupt_at: Any, difference: Any
) -> None:
    samples = pictures(train=(20, 20, 20), val=(5, 5, 5), noise=25)
    changes = {"training.prune": 0.7, "training.epochs": 5, "training.batch_size": 5, "model.dropout": 0.2}
    uncut, cut, again = (build(samples, **copy.deepcopy(changes)) for _ in range(3))
    uncut.trainer.run()
    interrupt_at(cut, 30)
    assert not cut.trainer.run().finished
    again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
    assert again.trainer.progress.epoch == 2
    assert again.trainer.progress.step_in_epoch
    again.trainer.run()
    assert difference(again.model, uncut.model) == 0
    assert np.array_equal(again.plan.callbacks[0].scores, uncut.plan.callbacks[0].scores)
    assert len(uncut.recorder.column("train/loss")) < 60
