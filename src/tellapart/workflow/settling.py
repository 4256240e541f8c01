"""The end of a run that learned from members: whether its weights are kept, and whether views help it.

Both are decided on the validation split, by paired tests: the best member's weights take the student's place only if
the student is worse by more than chance, and the mirrored image is averaged in, where in doubt, only if that is better
by more than chance. It is a function of the files, so measuring a finished run again decides the same. Knows nothing of
training.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart import artifact, numerals, runs
from tellapart.contract import Card
from tellapart.contract.views import Views
from tellapart.data.loader import ImageSet
from tellapart.evaluation import infer, series
from tellapart.evaluation.measurement import naming
from tellapart.evaluation.paired import mcnemar
from tellapart.runtime.eager import open_artifact
from tellapart.tracking import Console
from tellapart.training import setup
from tellapart.training.losses import average
from tellapart.training.methods import multilabel
from tellapart.training.task import Task

SIGNIFICANCE = 0.05
BELOW = 0.5  # lead of the best class below which the mirrored image is looked at too
DRAWS = 400  # resamples of the bootstrap, for figures other than accuracy
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settled:
    """The card of what became the artifact; ``epoch``: of its weights if they are a member's, from 1; ``changed``:
    whether it answers otherwise than the student as it was trained.
    """

    card: Card
    epoch: int | None = None
    changed: bool = False


def settle(
    folder: Path,
    prepared: setup.RunData,
    task: Task,
    card: Card,
    console: Console,
    device: torch.device,
) -> Settled:
    """Decide what the artifact in ``folder`` is, and write it; nothing is decided without members or validation."""
    listed = runs.members_of(folder)
    if listed is None or prepared.val is None:
        return Settled(card)
    content = runs.read_json(listed)
    judge = _Judge(prepared, task, console)
    student = judge.answers(folder, device)
    alone = {name: judge.answers(listed.parent / name, device) for name in content.get("runs") or ()}
    join = multilabel.average if card.several else average
    together = join(torch.from_numpy(np.stack(list(alone.values()))), 1.0).numpy()
    best = max(alone, key=lambda name: judge.worth(alone[name]))
    told = {**{name: judge.figure(one) for name, one in alone.items()}, "averaged": judge.figure(together)}
    told["distilled"] = judge.figure(student)
    console.message(
        f"On {len(prepared.val):,} validation images, {judge.name}: best member {judge.text(alone[best])} ({best}), "
        f"averaged {judge.text(together)}, one model distilled from it {judge.text(student)}."
    )
    settled, kept = Settled(card), "distilled"
    if (p := judge.chance(alone[best], student)) < SIGNIFICANCE and judge.worth(student) < judge.worth(
        alone[best]
    ):
        theirs, kept = artifact.read_card(listed.parent / best), best
        settled = Settled(
            dataclasses.replace(card, preprocessing=theirs.preprocessing), theirs.scores.get("epoch"), True
        )
        console.warn(
            f"The model that learned from {len(alone)} others is worse on validation than {best} alone, by more than "
            f"chance (p = {numerals.number(p)}): the run's model has the weights of {best}."
        )
        artifact.save(folder / artifact.FILE_NAME, artifact.read_state(listed.parent / best), settled.card)
    if content.get("views_open") and _mirrors(prepared, settled.card):
        settled = _with_views(folder, settled, judge, alone.get(kept, student), device)
    told_views = {"views": settled.card.views.name, "kept": kept}
    runs.write_json(listed, {**content, "validation": told, **told_views})
    if prepared.spec.run.report:
        series.write_page(listed.parent)
    return settled


def _mirrors(prepared: setup.RunData, card: Card) -> bool:
    """Return whether the mirrored image may be looked at too: training mirrors, and the card has one view so far."""
    return bool(prepared.spec.augment.hflip) and card.views.count == 1 and not card.several


def _with_views(
    folder: Path, settled: Settled, judge: _Judge, plain: Logits, device: torch.device
) -> Settled:
    card = dataclasses.replace(settled.card, views=Views("mirror", BELOW))
    both = judge.answers(folder, device, card.views)
    share = np.sort(torch.from_numpy(plain).softmax(1).numpy(), axis=1)
    doubtful = int((share[:, -1] - share[:, -2] < BELOW).sum())
    p = judge.chance(plain, both)
    helps = p < SIGNIFICANCE and judge.worth(both) > judge.worth(plain)
    judge.console.message(
        f"Looking at the mirrored image too, where the best class leads by less than {numerals.percent(BELOW, 0)} "
        f"({doubtful:,} of {len(plain):,} validation images): {judge.text(plain)} becomes {judge.text(both)}, "
        + (
            f"more than chance (p = {numerals.number(p)})."
            if helps
            else "which may be chance: one view is kept."
        )
    )
    if not helps:
        return settled
    artifact.save(folder / artifact.FILE_NAME, artifact.read_state(folder), card)
    return Settled(card, settled.epoch, True)


class _Judge:
    """Compares answers for the validation images by the run's own figure."""

    def __init__(self, prepared: setup.RunData, task: Task, console: Console) -> None:
        assert prepared.val is not None
        self.images: ImageSet = prepared.val
        self.task, self.console = task, console
        self.metric = prepared.spec.training.best_metric
        samples = self.images.samples
        self.truth = torch.from_numpy(samples.labels if samples.targets is None else samples.targets)
        self.sign = -1.0 if self.metric in task.lower_is_better else 1.0

    @property
    def name(self) -> str:
        """What people call the figure."""
        return self.metric

    def answers(self, model: Path, device: torch.device, views: Views | None = None) -> Logits:
        """Return a model's logits, float32 [N, K]; ``views``: others than its card's."""
        backend = open_artifact(model, str(device), "fp32")
        if views is not None:
            backend.predictor.card = dataclasses.replace(backend.card, views=views)
        found: Any = infer.run(backend, infer.Stored(self.images), latency=False).answers.logits
        return np.asarray(found, np.float32)

    def figure(self, logits: Logits) -> float:
        """Return the figure."""
        return self._measure(torch.from_numpy(logits), self.truth)

    def worth(self, logits: Logits) -> float:
        """Return the figure, more being better."""
        return self.sign * self.figure(logits)

    def text(self, logits: Logits) -> str:
        """Return the figure for people."""
        key = {"mAP": "map", "macro-f1": "macro_f1", "balanced-accuracy": "balanced_accuracy"}
        return naming(key.get(self.metric, self.metric)).show(self.figure(logits))

    def chance(self, one: Logits, other: Logits) -> float:
        """Return the two-sided p value of their difference on the same images.

        Of accuracy McNemar's exact test; of other figures the bootstrap's, which draws the same images for both.
        """
        if self.metric == "accuracy":
            first, second = (logits.argmax(1) == self.truth.numpy() for logits in (one, other))
            return mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
        ours, theirs = torch.from_numpy(one), torch.from_numpy(other)
        rng, below = np.random.default_rng(0), 0.0
        for _ in range(DRAWS):
            rows = torch.from_numpy(rng.integers(0, len(one), len(one)))
            gap = self._measure(theirs[rows], self.truth[rows]) - self._measure(ours[rows], self.truth[rows])
            below += 1.0 if gap < 0 else 0.5 if gap == 0 else 0.0
        return min(1.0, 2 * (min(below, DRAWS - below) + 1) / (DRAWS + 1))

    def _measure(self, logits: torch.Tensor, truth: torch.Tensor) -> float:
        return float(self.task.scores(logits, truth)[self.metric])
