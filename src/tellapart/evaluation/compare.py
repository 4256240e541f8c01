"""Runs side by side: what differs in their specs and results, and whether that is more than chance.

Two classifiers that answered the same images are compared on the images that only one of them gets right
(McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12, 1947; here the exact binomial form). Reads the runs' folders only.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tellapart import numerals
from tellapart.errors import RunError
from tellapart.evaluation import compare_grades, compare_labels, multilabel
from tellapart.evaluation.compare_labels import NotComparableError as _NotComparableError
from tellapart.evaluation.measurement import Headline, Measurement
from tellapart.evaluation.metrics import Evaluation
from tellapart.evaluation.paired import holm, mcnemar, paired_interval
from tellapart.evaluation.run_folder import OUT_OF_FOLD, SPLIT_ORDER, RunFolder, flatten, read_run
from tellapart.runs import REPEATS_FILE

SIGNIFICANCE = 0.05
WIDTH = 100
Key = tuple[str, str, int]  # path, box, and a count for repeats
# label, whether it was found, content hash ("" if unknown), and the answer
Answers = dict[Key, tuple[str, bool, str, str]]


@dataclass(frozen=True)
class AtLevel:
    """One run's figures at one level above the classes (1 is the topmost), fractions in [0, 1]."""

    level: int
    names: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float


@dataclass(frozen=True)
class Result:
    """One run's figures on its split, fractions in [0, 1]; None for what the run does not have.

    own: those of metrics that are not tellapart's; levels: where the names of classes have levels.
    """

    run: str
    split: str | None
    n: int | None
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    macro_f1: float | None
    epochs: int
    seconds: float | None
    map: float | None = None
    map_interval: tuple[float, float] | None = None
    kappa: float | None = None
    mae: float | None = None
    own: dict[str, float | None] = field(default_factory=dict)
    levels: tuple[AtLevel, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two runs (numbers in the order given) on the images that both answered.

    only_first and only_second: images that only that run gets right. difference: accuracy (``metric``) of the second
    minus that of the first, with its 95 % interval. p_value: McNemar's exact test, two-sided (of mAP, and of quadratic
    kappa where classes are grades, the bootstrap's: see `compare_labels`, `compare_grades`); p_adjusted: after Holm,
    over all pairs of the comparison. level: 0 for the classes, else which of the levels above them (each is corrected
    for itself).
    """

    first: int
    second: int
    split: str
    shared: int
    n: tuple[int, int]
    only_first: int
    only_second: int
    difference: float
    difference_interval: tuple[float, float]
    p_value: float
    p_adjusted: float
    metric: str = "accuracy"
    level: int = 0

    @property
    def verdict(self) -> str:
        """In words, at the 5 % level."""
        p = "p < 0.0001" if self.p_adjusted < 0.0001 else f"p = {self.p_adjusted:.2g}"
        return f"{'more than chance' if self.p_adjusted < SIGNIFICANCE else 'could be chance'} ({p})"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. differences: dotted field -> one value for each run, in the order given."""

    runs: tuple[str, ...]
    differences: dict[str, list[Any]]
    results: tuple[Result, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "runs": list(self.runs),
            "differences": self.differences,
            "results": [asdict(result) for result in self.results],
            "pairs": [asdict(pair) | {"verdict": pair.verdict} for pair in self.pairs],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return tables of at most 100 columns."""
        return _render(self)


def compare(run_dirs: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare two or more runs.

    The figures are those of the first of test, val and train that every run was evaluated on, otherwise of each run's
    own; a pair is compared on the first that both have. Images are matched by path and box; if samples.csv has content
    hashes they must agree. A pair that shares no images, or not their labels, is not tested: the notes say so. Raises
    RunError for fewer than two runs, a folder that is not a run folder, and damaged files.
    """
    if len(run_dirs) < 2:
        raise RunError("A comparison needs at least two runs.")
    runs = [read_run(folder) for folder in run_dirs]
    for run in runs:
        if (run.path / REPEATS_FILE).is_file():
            raise RunError(
                f"{run.path} contains runs that differ in the seed, which have no common set of answers; "
                f"compare single ones: {run.path / 'seed-…'}."
            )
    common = _common_split(runs)
    read = functools.cache(lambda k, split, level: _answers(runs[k], split, level))
    pairs, notes = [], []
    for first, second in itertools.combinations(range(len(runs)), 2):
        split = _common_split([runs[first], runs[second]])
        try:
            if split is None:
                raise _NotComparableError("were not evaluated on the same split")
            kinds = {runs[k].evaluations[split].kind for k in (first, second)}
            if len(kinds) > 1:
                raise _NotComparableError("answer different questions: several labels for an image, and one")
            if kinds == {multilabel.KIND}:
                pairs.append(_pair_of_sets(first, second, split, runs[first], runs[second]))
                continue
            pairs += _pairs_at_levels(first, second, split, runs, read)
        except _NotComparableError as reason:
            notes.append(f"{_letter(first)} and {_letter(second)} {reason}; their difference was not tested.")
    if any(pair.split == OUT_OF_FOLD for pair in pairs):
        notes.append(
            "Out-of-fold answers come from several models that share training images: the test, which treats "
            "the answers as independent, is somewhat too confident."
        )
    if any(pair.split not in ("test", OUT_OF_FOLD) for pair in pairs):
        notes.append(
            "Validation and training images were used to make the models: their figures are too optimistic."
        )
    if (count := sum(not pair.level for pair in pairs)) > 1:
        each = " at each level" if count < len(pairs) else ""
        notes.append(f"The p values are corrected for {count} comparisons{each} (Holm).")
    return Comparison(
        tuple(run.name for run in runs),
        spec_differences(runs),
        tuple(_result(run, common or run.split) for run in runs),
        tuple(_holm(pairs)),
        tuple(notes),
    )


def _pairs_at_levels(
    first: int, second: int, split: str, runs: Sequence[RunFolder], read: Callable[[int, str, int], Answers]
) -> Iterator[Pair]:
    """Yield two runs on their classes, and at each level above them that both have."""
    one, two = (runs[k].evaluations[split] for k in (first, second))
    levels = min(len(figures.levels) for figures in (one, two) if isinstance(figures, Evaluation))
    for level in range(levels + 1):
        answers = [read(k, split, level) for k in (first, second)]
        pair = _pair(first, second, split, *answers)
        pair = pair if level else _by_grades(pair, runs, *answers)
        yield replace(pair, level=level, metric=f"accuracy at level {level}") if level else pair


def _pair_of_sets(first: int, second: int, split: str, one: RunFolder, two: RunFolder) -> Pair:
    """Return two runs whose images can have several labels, by their mAP."""
    told = compare_labels.read(one, split), compare_labels.read(two, split)
    found = compare_labels.compare(*told, split)
    return Pair(
        first=first,
        second=second,
        split=split,
        shared=found.shared,
        n=(len(told[0].rows), len(told[1].rows)),
        only_first=found.only_first,
        only_second=found.only_second,
        difference=found.difference,
        difference_interval=found.interval,
        p_value=found.p_value,
        p_adjusted=found.p_value,
        metric="mAP",
    )


def _common_split(runs: Sequence[RunFolder]) -> str | None:
    return next((split for split in SPLIT_ORDER if all(split in run.evaluations for run in runs)), None)


def spec_differences(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the fields of the specs that are not the same in all runs (except the runs' own folders)."""
    flat = [flatten(run.spec) for run in runs]
    names = dict.fromkeys(itertools.chain.from_iterable(flat))
    values = {name: [spec.get(name) for spec in flat] for name in names if name != "run.dir"}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _holm(pairs: Sequence[Pair]) -> list[Pair]:
    adjusted: dict[int, Iterator[float]] = {
        level: iter(holm([pair.p_value for pair in pairs if pair.level == level]))
        for level in {pair.level for pair in pairs}
    }
    return [replace(pair, p_adjusted=next(adjusted[pair.level])) for pair in pairs]


def _answers(run: RunFolder, split: str, level: int = 0) -> Answers:
    label, predicted = (f"label-at-{level}", f"predicted-at-{level}") if level else ("label", "predicted")
    hashes = {
        (row.get("path", ""), row.get("box", "")): row.get("hash", "")
        for name in ("samples.csv", "fold-1/samples.csv")  # the last two of a cross-validation
        for row in run.rows(name)
    }
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    answers = {}
    for row in run.rows(f"evaluation/{split}/predictions.csv"):
        place = (row.get("path", ""), row.get("box", ""))
        seen[place] += 1
        answers[(*place, seen[place])] = (
            row.get(label, ""),
            row.get(label) == row.get(predicted) if level else row.get("correct") == "1",
            hashes.get(place, ""),
            row.get("predicted", ""),
        )
    return answers


def _shared(one: Answers, two: Answers) -> list[Key]:
    return [
        key for key in one if key in two and (one[key][2] == two[key][2] or not (one[key][2] and two[key][2]))
    ]


def _by_grades(pair: Pair, runs: Sequence[RunFolder], one: Answers, two: Answers) -> Pair:
    """Return the pair by the kappa of both, where their classes are the same grades in the same order."""
    found = [runs[k].evaluations[pair.split] for k in (pair.first, pair.second)]
    if (
        not all(isinstance(one, Evaluation) and one.ordinal for one in found)
        or found[0].classes != found[1].classes
    ):
        return pair
    told = [(one[key][0], one[key][3], two[key][3]) for key in _shared(one, two)]
    by = compare_grades.compare(told, found[0].classes)
    if by is None:
        return pair
    changes: dict[str, Any] = {
        "difference": by.difference,
        "difference_interval": by.interval,
        "metric": "quadratic kappa",
    }
    return replace(pair, **changes, p_value=by.p_value, p_adjusted=by.p_value)


def _pair(first: int, second: int, split: str, one: Answers, two: Answers) -> Pair:
    shared = _shared(one, two)
    if not shared:
        raise _NotComparableError(f"share no {split} images")
    unlike = [key for key in shared if one[key][0] != two[key][0]]
    if unlike:
        raise _NotComparableError(
            f"label {len(unlike):,} of {len(shared):,} shared {split} images differently ({unlike[0][0]}: "
            f"{one[unlike[0]][0]} and {two[unlike[0]][0]})"
        )
    counts = collections.Counter((one[key][1], two[key][1]) for key in shared)
    only_first, only_second = counts[True, False], counts[False, True]
    p = mcnemar(only_first, only_second)
    return Pair(
        first=first,
        second=second,
        split=split,
        shared=len(shared),
        n=(len(one), len(two)),
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / len(shared),
        difference_interval=paired_interval(
            counts[True, True], only_first, only_second, counts[False, False]
        ),
        p_value=p,
        p_adjusted=p,
    )


def _result(run: RunFolder, split: str | None) -> Result:
    figures = run.evaluations[split] if split else None
    accuracy, mean = (_headline(figures, key) for key in ("accuracy", "map"))
    single = figures if isinstance(figures, Evaluation) else None
    grades = single.ordinal if single else None
    return Result(
        run=run.name,
        split=split,
        n=figures.n if figures else None,
        accuracy=accuracy.value if accuracy else None,
        accuracy_interval=accuracy.interval if accuracy else None,
        macro_f1=figures.figures().get("macro_f1") if figures else None,
        epochs=run.epochs,
        seconds=run.seconds,
        map=mean.value if mean else None,
        map_interval=mean.interval if mean else None,
        kappa=grades.kappa if grades else None,
        mae=grades.mae if grades else None,
        own=dict(single.own) if single else {},
        levels=tuple(
            AtLevel(number, len(one.classes), one.accuracy, one.accuracy_interval, one.macro.f1)
            for number, one in enumerate(single.levels if single else (), 1)
        ),
    )


def _headline(figures: Measurement | None, key: str) -> Headline | None:
    return figures.headline if figures and figures.headline.key == key else None


def _render(found: Comparison) -> str:
    letters = [_letter(k) for k in range(len(found.runs))]
    maps = sum(result.map is not None for result in found.results)
    figure = "mAP" if maps == len(found.results) else "accuracy or mAP" if maps else "accuracy"
    grades = any(result.mae is not None for result in found.results)
    head = ["kappa", "MAE"] if grades else []
    rows = [["", "run", "split", figure, "95 % interval", "macro-F1", *head, "images", "epochs", "time"]]
    rows += [[a, *_result_cells(result, grades)] for a, result in zip(letters, found.results, strict=True)]
    lines = ["Results", *_table(rows, stretch=1, left=3), *_level_lines(found.results, letters)]
    lines += [*_own_lines(found.results, letters), "", "Spec: the fields that differ"]
    if found.differences:
        cell = max(6, (WIDTH - 32) // len(letters) - 2)
        spec = [["field", *letters]]
        for name, values in found.differences.items():
            spec.append([name, *(_cut(_plain(value), cell) for value in values)])
        lines += _table(spec, stretch=0, left=len(spec[0]))
    else:
        lines.append("  none")
    lines += ["", "Pairs, on the same images"]
    for pair in found.pairs:
        lines += _pair_lines(pair, letters[pair.first], letters[pair.second])
    for note in found.notes:
        lines += textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _level_lines(results: Sequence[Result], letters: Sequence[str]) -> list[str]:
    """Return a table of the figures at the levels above the classes, where any run has them."""
    rows = [["", "level", "names", "accuracy", "95 % interval", "macro-F1"]]
    for level in range(1, max((len(result.levels) for result in results), default=0) + 1):
        for letter, result in zip(letters, results, strict=True):
            if level <= len(result.levels):
                one = result.levels[level - 1]
                interval = numerals.interval(*one.accuracy_interval)
                figures = [numerals.percent(one.accuracy), interval, numerals.percent(one.macro_f1)]
                rows.append([letter, str(level), f"{one.names:,}", *figures])
    return ["", "Levels of the names", *_table(rows, stretch=1, left=1)] if len(rows) > 1 else []


def _own_lines(results: Sequence[Result], letters: Sequence[str]) -> list[str]:
    """Return a table of the metrics that are not tellapart's, a column for each run."""
    names = dict.fromkeys(name for result in results for name in result.own)

    def cell(name: str, own: Mapping[str, float | None]) -> str:
        return numerals.metric(own[name]) if name in own else numerals.NONE

    rows = [
        ["metric", *letters],
        *([name, *(cell(name, result.own) for result in results)] for name in names),
    ]
    return ["", "Metrics of your own", *_table(rows, stretch=0, left=1)] if names else []


def _result_cells(result: Result, grades: bool) -> list[str]:
    low, high = result.accuracy_interval or result.map_interval or (None, None)
    return [
        result.run,
        result.split or "–",
        numerals.percent(result.accuracy if result.map is None else result.map),
        numerals.interval(low, high),
        numerals.percent(result.macro_f1),
        *((numerals.loss(result.kappa, 3), numerals.loss(result.mae, 3)) if grades else ()),
        "–" if result.n is None else f"{result.n:,}",
        str(result.epochs or "–"),
        numerals.clock(result.seconds),
    ]


def _pair_lines(pair: Pair, one: str, two: str) -> list[str]:
    low, high = pair.difference_interval
    scope = f"{pair.shared:,} {pair.split} images"
    if pair.n != (pair.shared, pair.shared):
        scope += f" shared ({one} has {pair.n[0]:,}, {two} {pair.n[1]:,})"
    graded = pair.metric == "quadratic kappa"
    text: Callable[[float], str] = functools.partial(numerals.signed, digits=3) if graded else numerals.points
    of = f"of {pair.metric}" if graded else f"points of {pair.metric}"
    return [
        f"  {two} less {one}: {text(pair.difference)} {of} ({text(low)} to {text(high)}, 95 %): {pair.verdict}",
        f"    {scope}; only {one} right: {pair.only_first:,}, only {two} right: {pair.only_second:,}",
    ]


def _table(rows: Sequence[Sequence[str]], stretch: int, left: int) -> list[str]:
    """Lay out rows; column ``stretch`` is cut if the table is too wide; the first ``left`` are left-aligned."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[k]) for row in rows) for k in range(len(rows[0]))]
    widths[stretch] -= max(0, sum(widths) + 2 * len(widths) - WIDTH)
    lines = []
    for row in rows:
        cells = []
        for k, value in enumerate(row):
            value = _cut(value, max(1, widths[k]))
            space = " " * (widths[k] - cell_len(value))
            cells.append(value + space if k < left else space + value)
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else f"R{k + 1}"


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, (list, tuple)):
        return " ".join(_plain(item) for item in value) or "–"
    return numerals.setting(value) if isinstance(value, float) else str(value)
