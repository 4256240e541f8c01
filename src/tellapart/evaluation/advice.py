"""What would help most at the end of a run: rules from measured figures to sentences.

Each rule gets the figures of one measurement and returns an `Item`, or a sentence that says why there is none. A
difference that chance would give as well is no advice. Loads no torch. Knows nothing of how the figures were measured.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tellapart import numerals
from tellapart.evaluation.label_doubts import Doubts
from tellapart.evaluation.learning_curve import Growth
from tellapart.evaluation.metrics import wilson_interval
from tellapart.evaluation.paired import paired_interval

MOST_ITEMS = 4
MOST_CLASSES = 3
LEAST_GAIN = 0.005  # of the accuracy; what brings less is not worth the work
LEAST_GAP = 0.05  # between training and validation accuracy
LEAST_EPOCHS = 6
FILE_NAME = "advice.json"
SUSPECTS_FILE = "suspects.csv"
SUSPECTS = "suspects"  # folder of their pictures
IMAGES, LABELS, TIME, SIZE = "More images", "Corrected labels", "More time", "Larger input"
TITLE = "What would help most, each from a measurement:"
NOTHING = "Nothing that was measured would help by more than chance."
UNKNOWN = "What would help most could not be measured."


@dataclass(frozen=True)
class Item:
    """One piece of advice. ``gain``: the expected change of the accuracy (a share), if the measurement gives one."""

    kind: str
    title: str
    text: str
    gain: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class NoHelp:
    """What was measured and would not help by more than chance."""

    title: str
    measured: str


@dataclass(frozen=True)
class Missing:
    """What could not be measured."""

    title: str
    why: str


@dataclass(frozen=True)
class Advice:
    """What would help most, best first; what was measured and would not help; and what could not be measured."""

    items: tuple[Item, ...] = ()
    no_help: tuple[NoHelp, ...] = ()
    unmeasured: tuple[Missing, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Advice:
        """Return what `to_dict` gave. Raises KeyError, TypeError."""
        items = tuple(
            Item(**{**one, "interval": tuple(one["interval"]) if one["interval"] else None})
            for one in values["items"]
        )
        return cls(
            items,
            tuple(NoHelp(**one) for one in values["no_help"]),
            tuple(Missing(**one) for one in values["unmeasured"]),
            float(values["seconds"]),
        )

    @property
    def nothing(self) -> str:
        """What to say if there is no item."""
        return NOTHING if self.no_help else UNKNOWN

    def to_text(self, width: int = 80) -> str:
        """Return it for a terminal."""
        lines = [TITLE if self.items else self.nothing]
        for number, item in enumerate(self.items, 1):
            text = f"{item.title}: {item.text}"
            lines += textwrap.wrap(text, width, initial_indent=f"  {number}. ", subsequent_indent=" " * 5)
        for head, told in (
            (
                "Measured too, and no help" if self.items else "Measured",
                [one.title.lower() for one in self.no_help],
            ),
            ("Not measured", [f"{one.title.lower()} ({one.why})" for one in self.unmeasured]),
        ):
            if told:
                text = f"{head}: {', '.join(told)}."
                lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
        return "\n".join(lines)


@dataclass(frozen=True)
class Gap:
    """How many of so many images a model answers right: of training images, and of validation images."""

    train: tuple[int, int]
    val: tuple[int, int]


@dataclass(frozen=True)
class Curve:
    """The epochs of a run: losses of training and validation, the kept epoch from 1, and how it ended.

    ``perfect``: whether the kept epoch answers every validation image rightly.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    kept: int
    stopped_early: bool = False
    perfect: bool = False


@dataclass(frozen=True)
class Sized:
    """Answers for the same images at the input's size and at another: (both right, only at the first, second, none)."""

    size: str
    other: str
    counts: tuple[int, int, int, int]
    reduced: bool = False  # the images were only made smaller and large again, so that detail is lost

    @property
    def difference(self) -> float:
        """By how much the share of right answers is higher at the other size."""
        return (self.counts[2] - self.counts[1]) / max(1, sum(self.counts))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference."""
        return paired_interval(*self.counts)


Told = Item | NoHelp | Missing


def ranked(told: Sequence[Told], seconds: float) -> Advice:
    """Return the advice: items with an expected gain first, the largest before; then the others in their order."""
    items = [one for one in told if isinstance(one, Item)]
    items.sort(key=lambda item: -math.inf if item.gain is None else item.gain, reverse=True)
    return Advice(
        tuple(items[:MOST_ITEMS]),
        tuple(one for one in told if isinstance(one, NoHelp)),
        tuple(one for one in told if isinstance(one, Missing)),
        seconds,
    )


def by_growth(growth: Growth, classes: Sequence[str]) -> Told:
    """Return whether more images would help, by a learning curve."""
    low, high = growth.interval
    before, after = (numerals.percent(1 - error, 1) for error in growth.errors[-2:])
    fewer, whole = (f"{count:,}" for count in growth.images[-2:])
    measured = (
        f"a linear head on these features was right on {before} with {fewer} images and {after} with {whole}"
    )
    if low <= 0 or growth.gain < LEAST_GAIN:
        return NoHelp(IMAGES, f"{measured}; expected of twice as many: {_points(growth.gain, low, high)}")
    order = sorted(range(len(classes)), key=lambda k: -growth.by_class[k][0])
    grown = [classes[k] for k in order if growth.by_class[k][0] > 2 * growth.by_class[k][1]]
    most = f" The last doubling helped these most: {', '.join(grown[:MOST_CLASSES])}." if grown else ""
    text = f"twice as many would bring about {_points(growth.gain, low, high)}: {measured}.{most}"
    return Item("images", IMAGES, text, growth.gain, growth.interval)


def by_gap(gap: Gap, weak: Sequence[str]) -> Told:
    """Return whether a network that learned its features from the images lacks images, by what it has learned by heart.

    ``weak``: classes with a recall below the accuracy by more than chance, the weakest first.
    """
    (right, seen), (known, unseen) = gap.train, gap.val
    difference = right / seen - known / unseen
    (low_train, high_train), (low_val, high_val) = (
        wilson_interval(right, seen),
        wilson_interval(known, unseen),
    )
    down = math.hypot(right / seen - low_train, high_val - known / unseen)  # Newcombe 1998, method 10
    up = math.hypot(high_train - right / seen, known / unseen - low_val)
    shares = f"{numerals.percent(right / seen, 1)} of training and {numerals.percent(known / unseen, 1)} of validation"
    if difference - down <= 0 or difference < LEAST_GAP:
        return NoHelp(IMAGES, f"{shares} images are right, hardly a gap")
    most = f" Weakest: {', '.join(weak[:MOST_CLASSES])}." if weak else ""
    text = (
        f"{shares} images are right, a gap of {numerals.fixed(100 * difference, 1)} points "
        f"({numerals.fixed(100 * (difference - down), 1)} to {numerals.fixed(100 * (difference + up), 1)}). How much "
        f"of it they would close cannot be measured in one run.{most}"
    )
    return Item("images", "More images, or stronger augmentation", text)


def by_doubts(doubts: Doubts, where: str) -> Told:
    """Return whether labels are suspected of being wrong. ``where``: which images were examined."""
    low, high = doubts.interval
    if not doubts.certain:
        why = f"on {doubts.images:,} {where} images no more sure contradictions than the model's own errors explain"
        return NoHelp(LABELS, why)
    listed = min(len(doubts.rows), 20)
    text = (
        f"about {numerals.percent(doubts.share, 1)} ({numerals.fixed(100 * low, 1)} to {numerals.percent(high, 1)}) of "
        f"{doubts.images:,} {where} labels are suspected of being wrong: answers by models that had not seen the "
        f"image contradict them more surely than such models err. {SUSPECTS_FILE} lists "
        f"{'the likeliest ' if listed < len(doubts.rows) else ''}{listed}."
    )
    return Item("labels", LABELS, text)


def by_curve(curve: Curve) -> Told:
    """Return whether longer training would help, or harms, by the second half of the epochs."""
    epochs = len(curve.val_loss)
    if epochs < LEAST_EPOCHS or len(curve.train_loss) != epochs:
        return Missing(
            TIME, f"it takes {LEAST_EPOCHS} epochs with a validation loss, and there were {epochs}"
        )
    if curve.perfect:
        return NoHelp(TIME, "every validation image is answered rightly")
    half = epochs // 2
    slope, low, high = trend(curve.val_loss[half:])
    learned = trend(curve.train_loss[half:])
    each = f"validation loss changed by {_loss(slope)} an epoch ({_loss(low)} to {_loss(high)})"
    last = f"over the last {epochs - half} of {epochs} epochs {each}"
    if high < 0 and learned[2] < 0 and curve.kept > epochs - max(1, epochs // 10) and not curve.stopped_early:
        return Item("time", TIME, f"the run ended while it was still learning: {last}.")
    if low > 0 and learned[2] < 0:
        text = (
            f"{last}, while the training loss fell: fewer epochs, or stronger augmentation or weight decay."
        )
        return Item("overfitting", "Less overfitting", text)
    return NoHelp(TIME, f"{last}; chance gives as much" if low <= 0 <= high else last)


def by_size(sized: Sized) -> Told:
    """Return whether larger input would help, by the same images at two sizes."""
    low, high = sized.interval
    count = sum(sized.counts)
    if not sized.reduced:
        measured = (
            f"on {count:,} validation images this model was right on {_points(sized.difference, low, high)}"
        )
        if low > 0 and sized.difference >= LEAST_GAIN:
            text = f"{measured} more at {sized.other} than at {sized.size} (--input.size {sized.other})."
            return Item("size", SIZE, text, sized.difference, sized.interval)
        return NoHelp(SIZE, f"{sized.other} in place of {sized.size}: {_points(sized.difference, low, high)}")
    lost = f"{_points(sized.difference, low, high)} on {count:,} validation images at {sized.other} of the resolution"
    if high < 0:
        text = (
            f"the model uses the finest detail that it gets ({lost}), and the files have more; how much a larger input "
            "would bring was not measured."
        )
        return Item("size", SIZE, text)
    return NoHelp(SIZE, f"{lost}: chance gives as much, so the finest detail hardly matters")


def trend(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of a line through values, and its 95 % interval by Student's t; at least three values."""
    from scipy.stats import t

    count = len(values)
    places = np.arange(count) - (count - 1) / 2
    numbers = np.asarray(values, np.float64)
    spread = float((places**2).sum())
    slope = float((places * numbers).sum() / spread)
    rest = numbers - numbers.mean() - slope * places
    error = math.sqrt(float((rest**2).sum()) / (count - 2) / spread)
    reach = float(t.ppf(0.975, count - 2)) * error
    return slope, slope - reach, slope + reach


def weak_classes(confusion: Any, classes: Sequence[str]) -> list[str]:
    """Return the classes whose recall lies below the accuracy by more than chance, the weakest first.

    ``confusion``: int64 [K, K], rows the true classes.
    """
    counts, hits = confusion.sum(1), confusion.diagonal()
    accuracy = hits.sum() / max(1, counts.sum())
    found = [
        (hits[k] / counts[k], classes[k])
        for k in range(len(classes))
        if counts[k] and wilson_interval(int(hits[k]), int(counts[k]))[1] < accuracy
    ]
    return [f"{name} (recall {numerals.percent(recall, 0)})" for recall, name in sorted(found)]


def _points(value: float, low: float, high: float) -> str:
    """Return percentage points with their interval."""
    shown = numerals.points
    return f"{shown(value, 1)} points ({shown(low, 1)} to {shown(high, 1)})"


def _loss(value: float) -> str:
    return numerals.signed(value, 4)
