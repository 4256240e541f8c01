"""The figures of a classifier on one split, and the files that they are written to.

Works on answers and labels alone: knows nothing of models, loaders or training. Several processes gather their logits
first (without padding), so every image counts exactly once.

Averages over classes ("macro", balanced accuracy) are over the classes in the split: a class without a sample has no
recall, so it is left out and not counted as 0. A class that has samples but is never predicted has a precision of 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tellapart import files, numerals, tables
from tellapart.contract.answers import Answers
from tellapart.contract.decoding import to_shown, whole
from tellapart.errors import DataError
from tellapart.evaluation import multilabel, ordinal
from tellapart.evaluation.measurement import Headline, Measurement, Table, weighted_mean
from tellapart.evaluation.multilabel import MultiEvaluation
from tellapart.evaluation.ordinal import GradeScores
from tellapart.runtime import timing

WILSON_Z = 1.959963984540054  # the 97.5 % point of the normal distribution: a 95 % interval


@dataclass(frozen=True)
class ClassScore:
    """One class's figures, each in [0, 1]; None if the split has no sample of the class."""

    name: str
    support: int
    recall: float | None  # also called the accuracy of the class
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Averages:
    """Precision, recall and F1 averaged over the classes present, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Evaluation(Measurement):
    """Every figure of one split; see `evaluate`. Fractions are in [0, 1]."""

    kind = "single"
    brief_keys = ("macro_f1", "balanced_accuracy", "loss")

    split: str
    n: int
    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    loss: float | None
    balanced_accuracy: float
    macro: Averages
    weighted: Averages
    per_class: tuple[ClassScore, ...]
    confusion: npt.NDArray[np.int64]
    images_per_second: float | None = None
    latency_ms: Mapping[str, float] | None = None
    own: Mapping[str, float | None] = field(default_factory=dict)
    """Figures of the user's own metrics."""
    ordinal: GradeScores | None = None
    """Where the classes are grades."""
    levels: tuple[Evaluation, ...] = ()
    """The same at each level above the classes, the topmost first, where the names of classes have levels."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON (no NaN: unknown values are None)."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["classes"] = list(self.classes)
        values["accuracy_interval"] = list(self.accuracy_interval)
        values["macro"] = asdict(self.macro)
        values["weighted"] = asdict(self.weighted)
        values["per_class"] = [asdict(score) for score in self.per_class]
        values["confusion"] = self.confusion.tolist()
        values["latency_ms"] = None if self.latency_ms is None else dict(self.latency_ms)
        values["levels"] = [one.to_dict() for one in self.levels]
        grades = values.pop("ordinal")
        return values if grades is None else values | {"ordinal": grades.to_dict()}

    @classmethod
    def pooled(cls, parts: Sequence[Evaluation], rows: Iterable[Mapping[str, str]], split: str) -> Evaluation:
        """See Measurement."""
        return _figures(
            parts[0].classes,
            np.sum([one.confusion for one in parts], axis=0),
            split,
            all(one.ordinal for one in parts),
            top5=weighted_mean([one.top5 for one in parts], [one.n for one in parts]),
            loss=weighted_mean([one.loss for one in parts], [one.n for one in parts]),
            levels=tuple(
                cls.pooled(level, (), split) for level in zip(*[one.levels for one in parts], strict=True)
            ),
        )

    @property
    def headline(self) -> Headline:
        """See Measurement."""
        return Headline("accuracy", self.accuracy, self.accuracy_interval)

    def figures(self) -> dict[str, float | None]:
        """See Measurement."""
        top5 = {} if self.top5 is None else {"top5": self.top5}
        grades = {} if self.ordinal is None else self.ordinal.figures()
        return {
            **grades,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro.f1,
            "loss": self.loss,
            **top5,
            **self.own,
        }

    def texts(self) -> list[tuple[str, str]]:
        """See Measurement; of grades with the intervals."""
        if self.ordinal is None:
            return super().texts()
        found = [
            (name, f"{value} ({ends})" if ends else value)
            for name, value, ends in ordinal.texts(self.ordinal)
        ]
        return found + super().texts()[len(found) :]

    def brief(self) -> dict[str, Any]:
        """See Measurement; of grades with the intervals."""
        found = super().brief() | dict(self.own) | (self.ordinal.to_dict() if self.ordinal else {})
        if self.levels:
            found["levels"] = [level.brief_at(number) for number, level in enumerate(self.levels, 1)]
        return found

    def brief_at(self, number: int) -> dict[str, Any]:
        """Return the few figures of a level above the classes, 1 being the topmost."""
        return {
            "level": number,
            "names": len(self.classes),
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "macro_f1": self.macro.f1,
        }

    def above(self) -> tuple[Evaluation, ...]:
        """See Measurement."""
        return self.levels

    def table(self) -> Table:
        """See Measurement."""
        return Table(
            tuple((name, numerals.percent) for name in ("precision", "recall", "F1")),
            tuple((one.name, one.support, (one.precision, one.recall, one.f1)) for one in self.per_class),
        )

    def given(self) -> list[int]:
        """See Measurement."""
        counts: list[int] = self.confusion.sum(axis=0).tolist()
        return counts

    def by_class(self) -> dict[str, float]:
        """See Measurement: the share of the class's images that are answered right."""
        return {one.name: one.recall for one in self.per_class if one.recall is not None}

    def confused(self) -> npt.NDArray[np.int64]:
        """See Measurement."""
        return self.confusion

    def answers_table(
        self,
        answers: Answers,
        truth: npt.NDArray[Any],
        paths: Sequence[str],
        boxes: npt.NDArray[np.float64] | None = None,
    ) -> dict[str, list[Any]]:
        """See Measurement."""
        return predictions(answers, truth, paths, boxes)

    def worst(self, answers: Answers, truth: npt.NDArray[Any], count: int) -> list[int]:
        """See Measurement."""
        return worst_mistakes(answers, truth, count)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation from the values of `to_dict`. Raises KeyError if one is missing."""
        later = ("own", "ordinal", "levels")  # which earlier files do not have
        known = {name: values[name] for name in cls.__dataclass_fields__ if name not in later}
        known["own"], grades = values.get("own") or {}, values.get("ordinal")
        known["ordinal"] = None if grades is None else GradeScores.from_dict(grades)
        known["levels"] = tuple(cls.from_dict(one) for one in values.get("levels") or ())
        low, high = values["accuracy_interval"]
        return cls(
            **known
            | {
                "classes": tuple(values["classes"]),
                "accuracy_interval": (float(low), float(high)),
                "macro": Averages(**values["macro"]),
                "weighted": Averages(**values["weighted"]),
                "per_class": tuple(ClassScore(**score) for score in values["per_class"]),
                "confusion": np.array(values["confusion"], np.int64).reshape(len(values["classes"]), -1),
            }
        )


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion, ``correct`` of ``n`` (n > 0).

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z2 = WILSON_Z * WILSON_Z
    share = correct / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = WILSON_Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (
        0.0 if correct == 0 else max(0.0, centre - half),
        1.0 if correct == n else min(1.0, centre + half),
    )


def quick(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the figures by which an epoch is judged: accuracy, macro-f1, balanced-accuracy, loss.

    logits: float [N, K] on any device; labels: int64 [N] in [0, K). The averages are over the classes in ``labels``.
    The loss is the mean cross-entropy in nats; it may be NaN or infinite if a logit is. Raises DataError if N is 0.
    """
    _check(logits.shape, len(labels))
    guess = logits.argmax(1)  # as `Answers.best`, but on the logits' device
    counted = (labels, guess, labels[labels == guess])  # and not the matrix: K * K is much for large K
    support, predicted, hits = (
        torch.bincount(rows, minlength=logits.shape[1]).cpu().numpy().astype(np.float64) for rows in counted
    )
    present = support > 0
    recall = hits[present] / support[present]
    f1 = 2 * hits[present] / (support[present] + predicted[present])
    return {
        "accuracy": float(hits.sum() / support.sum()),
        "macro-f1": float(f1.mean()),
        "balanced-accuracy": float(recall.mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits.float(), labels)),
    }


def evaluate(
    answers: Answers,
    labels: npt.NDArray[np.int64],
    split: str,
    *,
    seconds: float | None = None,
    latencies_ms: Sequence[float] | None = None,
) -> Evaluation:
    """Return every figure of one split.

    answers: the model's answers for N images; labels: int64 [N] in [0, K). ``seconds`` is the time that the N
    images took, ``latencies_ms`` the time of each single call in milliseconds; both may be left out.

    accuracy has Wilson's 95 % interval. top5 counts a label among the five most probable classes; None if K <= 5. loss
    is the mean cross-entropy in nats; None if it is not finite. confusion is int64 [K, K]: a row for each true class, a
    column for each predicted one. If the class names have levels, ``levels`` has the same for the answers at each level
    above the classes (by the sums of probabilities). Raises DataError if N is 0.
    """
    _check(answers.logits.shape, len(labels))
    classes = answers.classes
    loss = _loss(answers, labels)
    return _figures(
        tuple(classes),
        _confusion(labels, answers.best, len(classes)),
        split,
        answers.ordered,
        top5=float((answers.places(labels) < 5).mean()) if len(classes) > 5 else None,
        loss=loss if math.isfinite(loss) else None,
        images_per_second=len(labels) / seconds if seconds else None,
        latency_ms=timing.percentiles(latencies_ms) if latencies_ms is not None else None,
        levels=tuple(
            evaluate(told, level.of[labels], split)
            for level, told in zip(answers.levels, answers.above, strict=True)
        ),
    )


def _figures(
    classes: tuple[str, ...], confusion: npt.NDArray[np.int64], split: str, ordered: bool, **others: Any
) -> Evaluation:
    """Return an evaluation: everything that follows from the confusion matrix, and ``others`` unchanged.

    ``ordered``: whether the classes are grades, the lowest first.
    """
    every = np.arange(len(classes))
    precision, recall, f1, support = _by_class(confusion)
    present = every[support > 0]
    weights = support[present] / support.sum()
    table = np.stack([precision, recall, f1], 1)[present]
    correct, n = int(confusion.trace()), int(confusion.sum())
    return Evaluation(
        split=split,
        n=n,
        classes=classes,
        accuracy=correct / n,
        accuracy_interval=wilson_interval(correct, n),
        balanced_accuracy=float(recall[present].mean()),
        macro=Averages(*(float(value) for value in table.mean(0))),
        weighted=Averages(*(float(value) for value in weights @ table)),
        per_class=tuple(
            ClassScore(
                str(name),
                int(support[k]),
                *(float(column[k]) if support[k] else None for column in (recall, precision, f1)),
            )
            for k, name in enumerate(classes)
        ),
        confusion=confusion,
        ordinal=ordinal.scores(confusion, wilson_interval(ordinal.within_one(confusion), n))
        if ordered
        else None,
        **others,
    )


# scikit-learn has both of the following, but importing it takes longer than measuring a small set.


def _confusion(
    truth: npt.NDArray[np.int64], guess: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """Return how often each true class (row) was taken for each class (column), int64 [K, K]."""
    pairs = np.bincount(truth * classes + guess, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def _by_class(confusion: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    """Return precision, recall, F1 (float64 [K], 0 for a zero denominator) and support (int64 [K])."""
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(support, 1),
        2 * hits / np.maximum(support + predicted, 1),
        support,
    )


def predictions(
    answers: Answers,
    labels: npt.NDArray[np.int64],
    paths: Sequence[str],
    boxes: npt.NDArray[np.float64] | None = None,
) -> dict[str, list[Any]]:
    """Return the columns of predictions.csv, each of length N.

    path, label and predicted (class names), confidence (the highest probability), label_probability (that of
    the true class), correct (0 or 1), expected_grade (of grades), the probability of each class (``p:CLASS``), label
    and prediction at each level above the classes (``label-at-1``, ``predicted-at-1``, …), where there are any, and box
    ("x0 y0 x1 y1", "" for the whole image) if ``boxes`` is given.
    """
    probabilities, classes = answers.probabilities, answers.classes
    truth, guess = labels, answers.best
    rows = np.arange(len(truth))
    columns: dict[str, list[Any]] = {
        "path": [str(path) for path in paths],
        "label": [classes[k] for k in truth],
        "predicted": [classes[k] for k in guess],
        "confidence": probabilities[rows, guess].tolist(),
        "label_probability": probabilities[rows, truth].tolist(),
        "correct": (truth == guess).astype(int).tolist(),
    }
    if answers.ordered:
        columns["expected_grade"] = answers.expected_grades.tolist()
    columns |= {f"p:{name}": probabilities[:, k].tolist() for k, name in enumerate(classes)}
    for number, (level, told) in enumerate(zip(answers.levels, answers.above, strict=True), 1):
        columns[f"label-at-{number}"] = [level.names[k] for k in level.of[truth]]
        columns[f"predicted-at-{number}"] = told.labels
    if boxes is not None:
        columns["box"] = [
            "" if np.isnan(box).any() else " ".join(f"{value:g}" for value in box) for box in boxes
        ]
    return columns


def worst_mistakes(answers: Answers, labels: npt.NDArray[np.int64], count: int) -> list[int]:
    """Return the rows of the ``count`` most confident wrong answers, the most confident first."""
    confidence = np.nan_to_num(answers.probabilities.max(axis=1))
    wrong = np.flatnonzero(answers.best != labels)
    return [int(row) for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:count]]


def write_evaluation(
    folder: str | os.PathLike[str],
    evaluation: Measurement,
    paths: Sequence[str],
    answers: Answers,
    labels: npt.NDArray[Any],
    thumbnails: Callable[[int], npt.NDArray[np.uint8]] | None = None,
    count: int = 24,
    boxes: npt.NDArray[np.float64] | None = None,
) -> None:
    """Write metrics.json, predictions.csv and mistakes/ into ``folder`` (RUN/evaluation/SPLIT).

    ``labels``: int64 [N], or targets uint8 [N, K] if an image can have several.

    ``thumbnails(row)`` returns a row's thumbnail, uint8 [H, W, 1 or 3]; it is called for the ``count`` most confident
    mistakes. mistakes/index.json describes each thumbnail. All files appear together: if they cannot be written, those
    of an earlier evaluation stay. Raises WriteError.
    """
    from PIL import Image

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = evaluation.answers_table(answers, labels, paths, boxes)
    shown = evaluation.worst(answers, labels, count) if thumbnails else []

    def table(stream: Any) -> None:
        writer = tables.Writer(stream)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)

    with files.workplace(folder) as fresh:
        (fresh / "mistakes").mkdir()
        index = []
        for number, row in enumerate(shown, 1):
            assert thumbnails is not None
            pixels, name = whole(np.asarray(thumbnails(row))), f"{number:02}.png"
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else to_shown(pixels)).save(
                fresh / "mistakes" / name
            )
            index.append({"image": name} | {key: column[row] for key, column in columns.items()})
        _write(fresh / "mistakes" / "index.json", lambda stream: json.dump(index, stream, indent=1))
        _write(fresh / "predictions.csv", table)
        _write(
            fresh / "metrics.json", lambda stream: json.dump(evaluation.to_dict(), stream, allow_nan=False)
        )
        files.move(
            [(fresh / name, folder / name) for name in ("mistakes", "predictions.csv", "metrics.json")]
        )


def read_evaluation(folder: str | os.PathLike[str]) -> Evaluation | MultiEvaluation:
    """Return what `write_evaluation` wrote to ``folder``. Raises OSError, ValueError, KeyError."""
    with open(pathlib.Path(folder) / "metrics.json", encoding="utf-8") as stream:
        values = json.load(stream)
    return KINDS[values.get("kind", "single")].from_dict(values)


KINDS: Mapping[str, type[Evaluation | MultiEvaluation]] = {
    one.kind: one for one in (Evaluation, MultiEvaluation)
}
"""The evaluation of each kind of label."""


def measured(
    answers: Answers,
    truth: npt.NDArray[Any],
    split: str,
    *,
    seconds: float | None = None,
    latencies_ms: Sequence[float] | None = None,
    own: Mapping[str, float | None] | None = None,
) -> Evaluation | MultiEvaluation:
    """Return every figure of one split; ``truth``: labels int64 [N], or targets uint8 [N, K] for several labels.

    ``own``: figures that are not tellapart's, of images with one label.
    """
    if truth.ndim == 2:
        return multilabel.evaluate(answers, truth, split, seconds=seconds, latencies_ms=latencies_ms)
    found = evaluate(answers, truth, split, seconds=seconds, latencies_ms=latencies_ms)
    return dataclasses.replace(found, own=own) if own else found


def _check(logits: Sequence[int], labels: int) -> None:
    """Raise if there is nothing to measure, or if the logits' shape does not match the number of labels."""
    if labels == 0:
        raise DataError("There are no images to evaluate: the split is empty.")
    if len(logits) != 2 or logits[0] != labels:
        raise ValueError(f"logits {tuple(logits)} and labels {(labels,)} do not belong together")


def _loss(answers: Answers, truth: npt.NDArray[np.int64]) -> float:
    """Return the mean cross-entropy in nats; not finite if a logit is not."""
    scaled = answers.scaled
    with np.errstate(invalid="ignore"):
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]
    return float(losses.mean())


def _write(path: pathlib.Path, content: Callable[[Any], None]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        content(stream)
