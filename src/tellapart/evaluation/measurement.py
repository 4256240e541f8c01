"""What all evaluations have in common, whatever a label is: figures with names, a headline, a table, files.

Code that shows, stores or compares evaluations knows only `Measurement`; each kind of label has its own class
(`metrics.Evaluation`, `multilabel.MultiEvaluation`). Loads no torch. Knows nothing of models or runs.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from tellapart import numerals

Interval = tuple[float, float]


@dataclass(frozen=True)
class Naming:
    """How people read a figure. ``share``: it lies between 0 and 1; ``better``: more, or less."""

    name: str
    show: Callable[[float | None], str] = numerals.percent
    share: bool = True
    better: str = "more"


def _fixed(value: float | None) -> str:
    return numerals.loss(value, 3)


NAMES: Mapping[str, Naming] = {
    "accuracy": Naming("accuracy"),
    "map": Naming("mAP"),
    "balanced_accuracy": Naming("balanced accuracy"),
    "macro_f1": Naming("macro F1"),
    "micro_f1": Naming("micro F1"),
    "samples_f1": Naming("F1 of images"),
    "subset_accuracy": Naming("all labels right"),
    "hamming_loss": Naming("Hamming loss", numerals.loss, better="less"),
    "top5": Naming("top-5 accuracy"),
    "mae": Naming("mean absolute error in grades", _fixed, share=False, better="less"),
    "within_one": Naming("within one grade"),
    "loss": Naming("loss", numerals.loss, share=False, better="less"),
}
"""The figures that evaluations have, by the names that files have for them."""

HEADLINES = ("accuracy", "map")
"""What models are judged by, one for each kind of label; each has an interval."""


def naming(key: str) -> Naming:
    """Return how a figure is read; one that is not tellapart's has its own name."""
    return NAMES.get(key) or Naming(key, numerals.metric, share=False)


def weighted_mean(values: Sequence[float | None], counts: Sequence[int]) -> float | None:
    """Return the mean over parts of so many images; None where a part has no value."""
    known = [value for value in values if value is not None]
    return float(np.average(known, weights=counts)) if len(known) == len(values) else None


_HEADLINES_IN_FULL = {"map": "mean average precision (mAP)"}


def in_full(key: str) -> str:
    """Return the name of a headline without its abbreviation alone."""
    return _HEADLINES_IN_FULL.get(key, naming(key).name)


@dataclass(frozen=True)
class Headline:
    """The figure that a model is judged by, with its 95 % interval. Fractions are in [0, 1]."""

    key: str
    value: float
    interval: Interval

    @property
    def name(self) -> str:
        """What people call it."""
        return NAMES[self.key].name

    @property
    def full(self) -> str:
        """The name without its abbreviation alone."""
        return in_full(self.key)

    @property
    def title(self) -> str:
        """The name at the beginning of a line."""
        return self.name.capitalize() if self.name.islower() else self.name

    @property
    def text(self) -> str:
        """The value for people."""
        return NAMES[self.key].show(self.value)

    @property
    def interval_text(self) -> str:
        """The interval for people."""
        return numerals.interval(*self.interval)


def headline_of(values: Mapping[str, Any]) -> Headline | None:
    """Return the headline of figures as files and results hold them (`Measurement.brief`); None where there is none."""
    key = next((key for key in HEADLINES if key in values), None)
    if key is None:
        return None
    low, high = values.get(f"{key}_interval") or (float("nan"), float("nan"))
    return Headline(key, float(values[key]), (float(low), float(high)))


@dataclass(frozen=True)
class Table:
    """The figures of each class: (name, images, values), a value for each column, which is (title, how it is read)."""

    columns: tuple[tuple[str, Callable[[float | None], str]], ...]
    rows: tuple[tuple[str, int, tuple[float | None, ...]], ...]

    def texts(self, row: int) -> list[str]:
        """Return a row's values for people."""
        return [show(value) for (_, show), value in zip(self.columns, self.rows[row][2], strict=True)]


class Measurement(abc.ABC):
    """The figures of one split. Fractions are in [0, 1]; what is not known is None."""

    kind: ClassVar[str]
    """What a label is, as in a model's card."""
    brief_keys: ClassVar[tuple[str, ...]]
    """The figures that go into an artifact and a summary, beside the headline."""
    split: str
    n: int
    classes: tuple[str, ...]
    images_per_second: float | None
    latency_ms: Mapping[str, float] | None

    @classmethod
    @abc.abstractmethod
    def pooled(cls, parts: Sequence[Self], rows: Iterable[Mapping[str, str]], split: str) -> Self:
        """Return the figures of several evaluations' images together, of the same classes and of different images.

        ``rows``: those of their predictions.csv, one after the other.
        """

    @property
    @abc.abstractmethod
    def headline(self) -> Headline:
        """The figure that the model is judged by."""

    @abc.abstractmethod
    def figures(self) -> dict[str, float | None]:
        """Return the other figures of the whole split by their keys (see `NAMES`), the most telling first."""

    def texts(self) -> list[tuple[str, str]]:
        """Return `figures` for people: name, and value."""
        return [(naming(key).name, naming(key).show(value)) for key, value in self.figures().items()]

    def above(self) -> Sequence[Measurement]:
        """Return the same figures at each level above the classes, the topmost first, if class names have levels."""
        return ()

    @abc.abstractmethod
    def table(self) -> Table:
        """Return the figures of each class."""

    @abc.abstractmethod
    def given(self) -> list[int]:
        """Return how often each class was given as an answer."""

    @abc.abstractmethod
    def by_class(self) -> dict[str, float]:
        """Return what each class has in place of the headline (its recall, its AP); without those without images."""

    def confused(self) -> npt.NDArray[np.int64] | None:
        """Return how often each class was taken for each, [K, K]; None where an image can have several labels."""
        return None

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""

    @abc.abstractmethod
    def answers_table(
        self,
        answers: Any,
        truth: npt.NDArray[Any],
        paths: Sequence[str],
        boxes: npt.NDArray[np.float64] | None = None,
    ) -> dict[str, list[Any]]:
        """Return the columns of predictions.csv for the answers that were measured."""

    @abc.abstractmethod
    def worst(self, answers: Any, truth: npt.NDArray[Any], count: int) -> list[int]:
        """Return the rows of the most confident mistakes, the most confident first."""

    def brief(self) -> dict[str, Any]:
        """Return the few figures that go into the artifact and the summary."""
        headline, others = self.headline, self.figures()
        return {
            "n": self.n,
            headline.key: headline.value,
            f"{headline.key}_interval": list(headline.interval),
            **{key: others[key] for key in self.brief_keys},
        }

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        from tellapart.evaluation import notebook

        return notebook.of_evaluation(self)
