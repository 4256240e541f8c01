"""The figures of images with several labels, and the thresholds that turn probabilities into labels.

Definitions are scikit-learn's (`average_precision_score`, `f1_score`, `hamming_loss`), computed here because importing
it takes longer than measuring a small set. Works on logits, probabilities and targets alone.

Averages over classes are over those in the split: a class without an image has no average precision and no recall, so
it is left out and not counted as 0. Classes that every image has do count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import numerals
from tellapart.contract.answers import Answers
from tellapart.contract.card import label_mark
from tellapart.errors import DataError
from tellapart.evaluation.measurement import Headline, Measurement, Table, weighted_mean
from tellapart.runtime import timing

Floats = npt.NDArray[np.float64]
Targets = npt.NDArray[np.uint8]
QUICK = ("mAP", "macro-f1", "micro-f1", "loss")
KIND = "multi-label"
LEAST_POSITIVES = 5  # validation images that a class needs; with fewer, its threshold stays at one half
HALF = 0.5
RESAMPLES = 1000


@dataclass(frozen=True)
class LabelScore:
    """One class's figures, each in [0, 1]; None without an image of the class.

    threshold: None if the images were answered by several models, each with its own.
    """

    name: str
    support: int
    threshold: float | None
    ap: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, eq=False)
class MultiEvaluation(Measurement):
    """Every figure of one split; see `evaluate`. Fractions are in [0, 1].

    together: int64 [K, K], images that have both the label of the row and that of the column.
    """

    kind = KIND
    brief_keys = ("macro_f1", "micro_f1", "loss")

    split: str
    n: int
    classes: tuple[str, ...]
    map: float
    map_interval: tuple[float, float]
    macro_f1: float
    micro_f1: float
    samples_f1: float
    subset_accuracy: float
    hamming_loss: float
    loss: float | None
    per_class: tuple[LabelScore, ...]
    together: npt.NDArray[np.int64]
    told: npt.NDArray[np.int64]
    images_per_second: float | None = None
    latency_ms: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["classes"] = list(self.classes)
        values["map_interval"] = list(self.map_interval)
        values["per_class"] = [asdict(score) for score in self.per_class]
        values["together"], values["told"] = self.together.tolist(), self.told.tolist()
        values["latency_ms"] = None if self.latency_ms is None else dict(self.latency_ms)
        return {"kind": KIND, **values}

    @classmethod
    def pooled(
        cls, parts: Sequence[MultiEvaluation], rows: Iterable[Mapping[str, str]], split: str
    ) -> MultiEvaluation:
        """See Measurement. Each image's labels follow from the thresholds of the model that answered it."""
        classes = parts[0].classes
        mark = label_mark(classes)
        known = [(_set(row["labels"], mark), _set(row["predicted"], mark), row) for row in rows]
        targets = np.array([[name in labels for name in classes] for labels, _, _ in known]).astype(np.uint8)
        told = np.array([[name in names for name in classes] for _, names, _ in known])
        scores = np.array([[float(row[f"p:{name}"]) for name in classes] for _, _, row in known])
        thresholds = [{part.per_class[k].threshold for part in parts} for k in range(len(classes))]
        return _figures(
            classes,
            np.nan_to_num(scores, nan=-np.inf),
            told,
            targets,
            split,
            [one.pop() if len(one) == 1 else None for one in thresholds],
            loss=weighted_mean([one.loss for one in parts], [one.n for one in parts]),
        )

    @property
    def headline(self) -> Headline:
        """See Measurement."""
        return Headline("map", self.map, self.map_interval)

    def figures(self) -> dict[str, float | None]:
        """See Measurement."""
        names = ("macro_f1", "micro_f1", "samples_f1", "subset_accuracy", "hamming_loss", "loss")
        return {name: getattr(self, name) for name in names}

    def table(self) -> Table:
        """See Measurement."""

        def threshold(value: float | None) -> str:
            return numerals.NONE if value is None else numerals.fixed(value, 4)

        shares = ((name, numerals.percent) for name in ("precision", "recall", "F1"))
        return Table(
            (("AP", numerals.percent), ("threshold", threshold), *shares),
            tuple(
                (one.name, one.support, (one.ap, one.threshold, one.precision, one.recall, one.f1))
                for one in self.per_class
            ),
        )

    def given(self) -> list[int]:
        """See Measurement."""
        counts: list[int] = self.told.tolist()
        return counts

    def by_class(self) -> dict[str, float]:
        """See Measurement: the average precision of the class."""
        return {one.name: one.ap for one in self.per_class if one.ap is not None}

    def answers_table(
        self,
        answers: Answers,
        truth: npt.NDArray[Any],
        paths: Sequence[str],
        boxes: npt.NDArray[np.float64] | None = None,
    ) -> dict[str, list[Any]]:
        """See Measurement; images of several labels have no boxes."""
        return predictions(answers, truth, paths)

    def worst(self, answers: Answers, truth: npt.NDArray[Any], count: int) -> list[int]:
        """See Measurement."""
        return worst_mistakes(answers, truth, count)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultiEvaluation:
        """Return the evaluation from the values of `to_dict`. Raises KeyError if one is missing."""
        known = {name: values[name] for name in cls.__dataclass_fields__}
        low, high = values["map_interval"]
        return cls(
            **known
            | {
                "classes": tuple(values["classes"]),
                "map_interval": (float(low), float(high)),
                "per_class": tuple(LabelScore(**score) for score in values["per_class"]),
                "together": np.array(values["together"], np.int64).reshape(len(values["classes"]), -1),
                "told": np.array(values["told"], np.int64),
            }
        )


def _set(cell: str, mark: str) -> frozenset[str]:
    """Return the labels of a cell of predictions.csv."""
    return frozenset(filter(None, cell.split(mark)))


def average_precision(scores_N: npt.NDArray[Any], truth_N: npt.NDArray[Any]) -> float:
    """Return the average precision of one class: the sum over ranks of the gain in recall times the precision.

    Equal scores share one rank. NaN if no image has the class.
    """
    order = np.argsort(-scores_N, kind="stable")
    return _average_precision(scores_N[order], truth_N[order].astype(np.float64))


def _average_precision(falling: npt.NDArray[Any], truth: Floats) -> float:
    """Return the same for scores in descending order. ``truth``: how often each counts as a positive."""
    ends = np.flatnonzero(np.diff(falling, append=np.nan) != 0)
    hits = truth.cumsum()[ends]
    if not len(hits) or not hits[-1]:
        return math.nan
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])


def average_precisions(scores_NK: npt.NDArray[Any], targets_NK: Targets) -> Floats:
    """Return each class's average precision, float64 [K]; NaN if no image has the class."""
    pairs = zip(scores_NK.T, targets_NK.T, strict=True)
    return np.array([average_precision(scores, truth) for scores, truth in pairs], np.float64)


def mean_average_precision(scores_NK: npt.NDArray[Any], targets_NK: Targets) -> float:
    """Return the mean of the average precisions of the classes that the split has; NaN where it has none."""
    clean = np.nan_to_num(scores_NK.astype(np.float64), nan=-np.inf)
    return mean_of_present(average_precisions(clean, targets_NK))


def mean_of_present(values: Floats) -> float:
    """Return the mean over the classes in the split; NaN if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


def quick(logits: npt.NDArray[Any], targets: Targets) -> dict[str, float]:
    """Return the figures by which an epoch is judged: mAP, macro-f1, micro-f1 (at probability 0.5), loss.

    logits: float [N, K]; targets: uint8 [N, K]. The loss is the mean binary cross-entropy in nats. Raises DataError if
    N is 0.
    """
    _check(logits.shape, targets)
    macro, micro = _f1(logits > 0, targets)
    figures = {
        "mAP": mean_average_precision(logits, targets),
        "macro-f1": macro,
        "micro-f1": micro,
    }
    return {**figures, "loss": _loss(logits.astype(np.float64), targets)}


def choose_thresholds(probabilities_NK: Floats, targets_NK: Targets) -> tuple[float, ...]:
    """Return for each class the threshold with the highest F1; an image has the class at the threshold and above.

    It is halfway between the two probabilities that it separates, the best guess for new images. For equal F1 the one
    nearest to one half is taken. A class of fewer than `LEAST_POSITIVES` images keeps one half: for so few, the best
    threshold is chance.
    """
    return tuple(_threshold(p, t) for p, t in zip(probabilities_NK.T, targets_NK.T, strict=True))


def _threshold(probabilities: Floats, truth: npt.NDArray[Any]) -> float:
    positives = int(truth.sum())
    if positives < LEAST_POSITIVES or positives == len(truth):
        return HALF
    order = np.argsort(-probabilities, kind="stable")
    falling, hits = probabilities[order], truth[order].cumsum()
    ends = np.flatnonzero(np.diff(falling, append=-1.0) != 0)
    f1 = 2 * hits[ends] / (ends + 1 + positives)
    below = np.append(falling[1:], 0.0)[ends]
    middle = np.round((falling[ends] + below) / 2, 6)
    valid = (middle > below) & (middle <= falling[ends])  # rounding must not move an image to the other side
    middle = np.where(valid, middle, falling[ends])
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middle[best[np.abs(middle[best] - HALF).argmin()]])


def evaluate(
    answers: Answers,
    targets: Targets,
    split: str,
    *,
    seconds: float | None = None,
    latencies_ms: Sequence[float] | None = None,
) -> MultiEvaluation:
    """Return every figure of one split; ``answers``: of N images; targets: uint8 [N, K]. Raises DataError for N = 0.

    map is the mean average precision over the classes in the split, with a 95 % interval by resampling the images
    `RESAMPLES` times (percentiles of the bootstrap). F1, subset accuracy and Hamming loss are of the predicted labels,
    by the card's thresholds. samples_f1 is the mean F1 of the images, 1 if an image has no label and none is predicted.
    """
    _check(answers.logits.shape, targets)
    if not targets.any():
        raise DataError(
            f"None of the {len(targets):,} {split} images has a label, so no average precision is defined: give images "
            "that show some of the classes."
        )
    loss = _loss(answers.scaled, targets)
    return _figures(
        tuple(answers.classes),
        np.nan_to_num(answers.scaled, nan=-np.inf),
        answers.told_matrix,
        targets,
        split,
        thresholds=[float(value) for value in answers.thresholds],
        loss=loss if math.isfinite(loss) else None,
        images_per_second=len(targets) / seconds if seconds else None,
        latency_ms=timing.percentiles(latencies_ms) if latencies_ms is not None else None,
    )


def _figures(
    classes: tuple[str, ...],
    scores: npt.NDArray[Any],
    told: npt.NDArray[np.bool_],
    targets: Targets,
    split: str,
    thresholds: Sequence[float | None],
    **others: Any,
) -> MultiEvaluation:
    """Return an evaluation: all that follows from scores, predicted labels and targets, and ``others`` unchanged."""
    ap = average_precisions(scores, targets)
    macro, micro = _f1(told, targets)
    truth = targets.astype(bool)
    hits, support, predicted = (told & truth).sum(0), truth.sum(0), told.sum(0)
    return MultiEvaluation(
        split=split,
        n=len(targets),
        classes=classes,
        map=mean_of_present(ap),
        map_interval=map_interval(scores, targets),
        macro_f1=macro,
        micro_f1=micro,
        samples_f1=float(_f1_of_images(told, truth).mean()),
        subset_accuracy=float((told == truth).all(1).mean()),
        hamming_loss=float((told != truth).mean()),
        per_class=tuple(
            LabelScore(
                str(name),
                int(support[k]),
                thresholds[k],
                float(ap[k]) if support[k] else None,
                float(hits[k] / predicted[k])
                if support[k] and predicted[k]
                else (0.0 if support[k] else None),
                float(hits[k] / support[k]) if support[k] else None,
                float(2 * hits[k] / (support[k] + predicted[k])) if support[k] else None,
            )
            for k, name in enumerate(classes)
        ),
        together=targets.T.astype(np.int64) @ targets.astype(np.int64),
        told=predicted.astype(np.int64),
        **others,
    )


def predictions(answers: Answers, targets: Targets, paths: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of predictions.csv, each of length N.

    path, labels and predicted (class names, joined by `label_mark`), correct (0 or 1: whether these are the same) and
    the probability of each class (``p:CLASS``).
    """
    classes, told = answers.classes, answers.told_matrix
    mark = label_mark(classes)

    def names(row: npt.NDArray[Any]) -> str:
        return mark.join(classes[k] for k in np.flatnonzero(row).tolist())

    columns: dict[str, list[Any]] = {
        "path": [str(path) for path in paths],
        "labels": [names(row) for row in targets],
        "predicted": [names(row) for row in told],
        "correct": (told == targets.astype(bool)).all(1).astype(int).tolist(),
    }
    return columns | {f"p:{name}": answers.probabilities[:, k].tolist() for k, name in enumerate(classes)}


def worst_mistakes(answers: Answers, targets: Targets, count: int) -> list[int]:
    """Return the rows of the ``count`` images with the most confidently wrong (or missing) label, the worst first."""
    wrong = answers.told_matrix != targets.astype(bool)
    far = np.where(wrong, np.abs(np.nan_to_num(answers.probabilities) - targets), -1.0).max(axis=1)
    rows = np.flatnonzero(far >= 0)
    return [int(row) for row in rows[np.argsort(-far[rows], kind="stable")][:count]]


def map_interval(scores_NK: npt.NDArray[Any], targets_NK: Targets, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean average precision, by the bootstrap over images.

    Images that are drawn twice make the average precision of a resample slightly too high; the interval is shifted down
    by the difference between the resamples' mean and the figure itself.
    """
    drawn = resampled_maps([scores_NK], targets_NK, seed)[0]
    bias = float(drawn.mean()) - mean_of_present(average_precisions(scores_NK, targets_NK))
    low, high = (float(np.percentile(drawn, point)) - bias for point in (2.5, 97.5))
    return max(0.0, low), min(1.0, high)


def resampled_maps(models: Sequence[npt.NDArray[Any]], targets_NK: Targets, seed: int = 0) -> list[Floats]:
    """Return for each model's scores [N, K] the mAP on `RESAMPLES` resamples of N images, the same for all models.

    With many images and classes there are fewer resamples (at least 200): 95 % intervals need no more.
    """
    n, classes = targets_NK.shape
    count = max(200, min(RESAMPLES, 100_000_000 // max(1, n * classes)))
    rng = np.random.default_rng(seed)
    orders = [np.argsort(-scores, axis=0, kind="stable") for scores in models]
    found: list[list[float]] = [[] for _ in models]
    for _ in range(count):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        for values, scores, order in zip(found, models, orders, strict=True):
            values.append(_weighted_map(scores, targets_NK, order, times))
    return [np.array(values) for values in found]


def _weighted_map(
    scores: npt.NDArray[Any], targets: Targets, order: npt.NDArray[np.intp], times: npt.NDArray[np.int64]
) -> float:
    """Return the mAP with image n counted ``times[n]`` times; among equal scores the first come first."""
    weights = times[order].astype(np.float64)
    yes = weights * np.take_along_axis(targets, order, axis=0)
    hits, ranks = yes.cumsum(0), weights.cumsum(0)
    # An image that counts several times has one rank, like equal scores.
    total = hits[-1]
    ap = (yes * hits / np.maximum(ranks, 1)).sum(0)[total > 0] / total[total > 0]
    return float(ap.mean()) if len(ap) else math.nan


def _f1(told: npt.NDArray[np.bool_], targets: Targets) -> tuple[float, float]:
    """Return macro (over the classes present) and micro F1."""
    truth = targets.astype(bool)
    hits, either = (told & truth).sum(0), told.sum(0) + truth.sum(0)
    present = truth.any(0)
    macro = float((2 * hits[present] / either[present]).mean()) if present.any() else math.nan
    return macro, float(2 * hits.sum() / max(1, either.sum()))


def _f1_of_images(told: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Floats:
    """Return the F1 of each image's predicted labels, float64 [N]."""
    either = told.sum(1) + truth.sum(1)
    return np.where(either == 0, 1.0, 2 * (told & truth).sum(1) / np.maximum(either, 1))


def _loss(scaled: Floats, targets: Targets) -> float:
    """Return the mean binary cross-entropy in nats; not finite if a logit is not."""
    with np.errstate(invalid="ignore"):
        losses = np.maximum(scaled, 0) - scaled * targets + np.log1p(np.exp(-np.abs(scaled)))
    return float(losses.mean())


def _check(shape: Sequence[int], targets: Targets) -> None:
    if len(targets) == 0:
        raise DataError("There are no images to evaluate: the split is empty.")
    if tuple(shape) != targets.shape:
        raise ValueError(f"logits {tuple(shape)} and targets {targets.shape} do not belong together")
