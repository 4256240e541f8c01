"""Runs side by side: what differs in their specs and results, and whether that is more than chance.

Two classifiers that answered the same images are compared on the images that only one of them gets right
(McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12, 1947; here the exact binomial form). Reads the runs' folders only.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tellapart import numerals
from tellapart.errors import RunError
from tellapart.evaluation import compare_labels
from tellapart.evaluation.compare_labels import NotComparableError as _NotComparableError
from tellapart.evaluation.metrics import wilson_interval
from tellapart.evaluation.multilabel import MultiEvaluation
from tellapart.evaluation.run_folder import OUT_OF_FOLD, SPLIT_ORDER, RunFolder, flatten, read_run
from tellapart.runs import REPEATS_FILE

SIGNIFICANCE = 0.05
WIDTH = 100
Key = tuple[str, str, int]  # path, box, and a count for repeats
Answers = dict[Key, tuple[str, bool, str]]  # label, whether it was found, content hash ("" where unknown)


@dataclass(frozen=True)
class Result:
    """One run's figures on its split, fractions in [0, 1]; None for what the run does not have."""

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


@dataclass(frozen=True)
class Pair:
    """Two runs (numbers in the order given) on the images that both answered.

    only_first and only_second: images that only that run gets right. difference: accuracy (``metric``) of the second
    minus that of the first, with its 95 % interval. p_value: McNemar's exact test, two-sided (of mAP: the bootstrap's,
    see `compare_labels`); p_adjusted: after Holm, over all pairs of the comparison.
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
    answers: dict[tuple[int, str], Answers] = {}
    pairs, notes = [], []
    for first, second in itertools.combinations(range(len(runs)), 2):
        split = _common_split([runs[first], runs[second]])
        try:
            if split is None:
                raise _NotComparableError("were not evaluated on the same split")
            kinds = [isinstance(runs[k].evaluations[split], MultiEvaluation) for k in (first, second)]
            if kinds[0] != kinds[1]:
                raise _NotComparableError("answer different questions: several labels for an image, and one")
            if kinds[0]:
                pairs.append(_pair_of_sets(first, second, split, runs[first], runs[second]))
                continue
            for k in (first, second):
                answers[k, split] = answers.get((k, split)) or _answers(runs[k], split)
            pairs.append(_pair(first, second, split, answers[first, split], answers[second, split]))
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
    if len(pairs) > 1:
        notes.append(f"The p values are corrected for {len(pairs)} comparisons (Holm).")
    return Comparison(
        tuple(run.name for run in runs),
        spec_differences(runs),
        tuple(_result(run, common or run.split) for run in runs),
        tuple(_holm(pairs)),
        tuple(notes),
    )


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


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test; null hypothesis: both runs err equally often."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the second accuracy minus the first, on the same images.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17 (1998), method 10.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    low1, high1 = wilson_interval(first, n)
    low2, high2 = wilson_interval(second, n)
    share1, share2 = first / n, second / n
    scale = first * (n - first) * second * (n - second)
    cross = both * neither - only_first * only_second
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)  # the paper's continuity correction
    phi = corrected / math.sqrt(scale) if scale else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = share2 - share1
    down, up = reach(share2 - low2, high1 - share1), reach(high2 - share2, share1 - low1)
    return (max(-1.0, difference - down), min(1.0, difference + up))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def _holm(pairs: Sequence[Pair]) -> list[Pair]:
    adjusted = holm([pair.p_value for pair in pairs])
    return [Pair(**{**vars(pair), "p_adjusted": p}) for pair, p in zip(pairs, adjusted, strict=True)]


def _answers(run: RunFolder, split: str) -> Answers:
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
            row.get("label", ""),
            row.get("correct") == "1",
            hashes.get(place, ""),
        )
    return answers


def _pair(first: int, second: int, split: str, one: Answers, two: Answers) -> Pair:
    shared = [
        key for key in one if key in two and (one[key][2] == two[key][2] or not (one[key][2] and two[key][2]))
    ]
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
    if isinstance(figures, MultiEvaluation):
        return Result(
            run=run.name,
            split=split,
            n=figures.n,
            accuracy=None,
            accuracy_interval=None,
            macro_f1=figures.macro_f1,
            epochs=run.epochs,
            seconds=run.seconds,
            map=figures.map,
            map_interval=figures.map_interval,
        )
    return Result(
        run=run.name,
        split=split,
        n=figures.n if figures else None,
        accuracy=figures.accuracy if figures else None,
        accuracy_interval=figures.accuracy_interval if figures else None,
        macro_f1=figures.macro.f1 if figures else None,
        epochs=run.epochs,
        seconds=run.seconds,
    )


def _render(found: Comparison) -> str:
    letters = [_letter(k) for k in range(len(found.runs))]
    maps = sum(result.map is not None for result in found.results)
    figure = "mAP" if maps == len(found.results) else "accuracy or mAP" if maps else "accuracy"
    rows = [["", "run", "split", figure, "95 % interval", "macro-F1", "images", "epochs", "time"]]
    rows += [[letter, *_result_cells(result)] for letter, result in zip(letters, found.results, strict=True)]
    lines = ["Results", *_table(rows, stretch=1, left=3), "", "Spec: the fields that differ"]
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


def _result_cells(result: Result) -> list[str]:
    low, high = result.accuracy_interval or result.map_interval or (None, None)
    return [
        result.run,
        result.split or "–",
        numerals.percent(result.accuracy if result.map is None else result.map),
        numerals.interval(low, high),
        numerals.percent(result.macro_f1),
        "–" if result.n is None else f"{result.n:,}",
        str(result.epochs or "–"),
        numerals.clock(result.seconds),
    ]


def _pair_lines(pair: Pair, one: str, two: str) -> list[str]:
    low, high = pair.difference_interval
    scope = f"{pair.shared:,} {pair.split} images"
    if pair.n != (pair.shared, pair.shared):
        scope += f" shared ({one} has {pair.n[0]:,}, {two} {pair.n[1]:,})"
    return [
        f"  {two} less {one}: {numerals.points(pair.difference)} points of {pair.metric} "
        f"({numerals.points(low)} to {numerals.points(high)}, 95 %): {pair.verdict}",
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
