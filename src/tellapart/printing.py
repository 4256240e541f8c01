"""Results as text for a terminal or a pipe: tables, JSON lines, CSV.

Loads no torch. Knows nothing of how a result came about.
"""

from __future__ import annotations

import collections
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len, set_cell_size

from tellapart import json_text, numerals, tables
from tellapart.errors import TellapartError, shown

_OBEYED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

if TYPE_CHECKING:
    from tellapart.evaluation.measurement import Measurement
    from tellapart.models.zoo import ModelInfo
    from tellapart.workflow import Result, Series


def as_json_line(content: Any) -> str:
    """Return JSON on one line, in characters that standard output can show (backslashes of its own are no JSON)."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    text = json_text.dumps(content, ensure_ascii=encoding != "utf8")
    # What JSON leaves as it is and a terminal obeys (C1, direction marks) stands in strings only: as \\uXXXX there.
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def summary(result: Result) -> str:
    """Return the end of a training as text: accuracy and its split, where the files are, what to type next."""
    from tellapart.evaluation.measurement import headline_of

    lines = []
    if headline := headline_of(result.metrics):
        lines.append(
            f"{headline.title} {headline.text} (95 % interval {headline.interval_text}, "
            f"{result.metrics['n']:,} images)"
        )
        if headline.key == "map":
            macro, micro = result.metrics["macro_f1"], result.metrics["micro_f1"]
            lines[0] += f"   macro F1 {numerals.percent(macro)}   micro F1 {numerals.percent(micro)}"
        lines[0] += _balanced(result)
        lines += _grades(result.metrics)
        lines += [
            f"  level {one['level']}, {one['names']:,} names: {numerals.percent(one['accuracy'])} "
            f"({numerals.interval(*one['accuracy_interval'])})"
            for one in result.metrics.get("levels", ())
        ]
        lines.append(f"  {_worth(result)}")
    else:
        lines.append("Trained on everything: there was no validation and no test split to measure.")
    lines.append(f"Model    {result.artifact}")
    if (result.run / "report.html").exists():
        lines.append(f"Report   {result.run / 'report.html'}")
    lines.append(f"Next     tellapart predict {shlex.quote(str(result.run))} IMAGE…")
    return shown("\n".join(lines))


def series_summary(series: Series) -> str:
    """Return the end of several runs as text: a line for each, their summary, and where the files are."""
    from tellapart.evaluation.measurement import headline_of

    folds = series.kind == "folds"
    width = max(len(str(entry["run"])) for entry in series.runs)
    lines, heads = [], []
    for entry in series.runs:
        if one := headline_of(entry):
            heads.append(one)
            own = f"   own test {numerals.percent(entry['test'][one.key])}" if "test" in entry else ""
            on = "held out" if folds else _ON[entry["split"]]
            text = f"{one.name} {one.text} on {entry['n']:,} images ({on})"
            lines.append(f"{entry['run']:<{width}}  {text}{own}")
    mean = series.summary.get(heads[0].key) if heads else None
    if mean is None:
        lines.append("Trained on everything: there was no validation and no test split to measure.")
    elif folds:
        low, high = mean.get("interval") or (None, None)
        lines.append(
            f"{heads[0].title} {numerals.percent(mean['mean'])} (95 % interval {numerals.interval(low, high)})"
        )
        lines.append("  mean of the folds; they share training images, so the interval is approximate")
    else:
        lines.append(
            f"{heads[0].title} {numerals.percent(mean['mean'])}, standard deviation "
            f"{numerals.fixed(100 * mean['std'], 2)} points over {mean['n']} seeds"
        )
    lines += [
        f"  level {one['level']}, {one['names']:,} names: {numerals.percent(one['mean'])}"
        for one in series.summary.get("levels", ())
    ]
    if together := headline_of(series.metrics):
        lines.append(
            f"Together {together.text} (95 % interval {together.interval_text}, {series.metrics['n']:,} images)"
        )
        lines.append(f"Answers  {series.run / 'evaluation' / 'out-of-fold' / 'predictions.csv'}")
    if (kappa := series.summary.get("kappa")) and (mae := series.summary.get("mae")):
        lines.append(
            f"Grades   quadratic kappa {numerals.fixed(kappa['mean'], 3)}, mean absolute error "
            f"{numerals.fixed(mae['mean'], 3)} grades, means of the runs"
        )
    if own_test := series.test.get(heads[0].key if heads else ""):
        lines.append(f"Own test {numerals.percent(own_test['mean'])}, mean of the models")
    if (series.run / "report.html").exists():
        lines.append(f"Report   {series.run / 'report.html'}")
    return shown("\n".join(lines))


_ON = {"test": "test", "val": "validation"}


def _grades(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures of grades in a line, none where classes are no grades; ``figures``: those of `GradeScores`."""
    if "within_one" not in figures:
        return []
    from tellapart.evaluation import ordinal

    scores = ordinal.GradeScores.from_dict(figures)
    parts = [
        f"{name} {value}" + (f" ({interval})" if interval else "")
        for name, value, interval in ordinal.texts(scores)
    ]
    return ["   ".join(parts[:2]), parts[2]]


def _balanced(result: Result) -> str:
    """Return the balanced accuracy where the epoch was chosen by it, else an empty text."""
    from tellapart import runs  # not for help, which would wait for it

    value = result.metrics.get("balanced_accuracy")
    try:
        chosen = runs.read_spec(result.run / runs.SPEC_FILE).training.best_metric
    except TellapartError:
        return ""
    shown_too = value is not None and chosen == "balanced-accuracy"
    return (
        f"\n  balanced accuracy {numerals.percent(value)}, by which the epoch was chosen" if shown_too else ""
    )


def _worth(result: Result) -> str:
    """Return what the accuracy is of, and what to think of it, by the run's warnings."""
    on = {"test": "on the test split", "val": "on validation"}[result.split]
    from tellapart import runs  # not for help, which would wait for it

    known = runs.honesty(runs.read_warnings(result.run), result.split)
    if known == "trained":
        return (
            f"{on}, but some of these images are also in train (see the warning): expect less of new images"
        )
    if known == "chose":
        return f"{on}, but some of these images are also in validation, which chose the epoch: expect a little less"
    if result.split == "test":
        return f"{on}, which played no part in choosing the epoch"
    return f"{on}, which also chose the epoch (there is no test split): expect a little less"


def _speed(evaluation: Measurement) -> list[str]:
    if not (evaluation.images_per_second and evaluation.latency_ms):
        return []
    times = "  ".join(
        f"{name} {numerals.milliseconds(value)}" for name, value in evaluation.latency_ms.items()
    )
    return [f"{numerals.rate(evaluation.images_per_second)} images/s; one image at a time: {times}"]


def evaluation_text(evaluation: Measurement) -> str:
    """Return an evaluation's figures and its table of classes."""
    headline = evaluation.headline
    figures = [" ".join(pair) for pair in evaluation.texts()]
    levels = list(enumerate(evaluation.above(), 1))
    lines = [
        f"{headline.title} {headline.text} (95 % interval {headline.interval_text})",
        f"on {evaluation.n:,} images ({evaluation.split})",
        *_filled(figures),
        *(_level_line(number, level) for number, level in levels),
        *_speed(evaluation),
        "",
    ]
    lines += [*_class_lines(evaluation), *_confusion_lines(evaluation)]
    for number, level in levels:
        lines += ["", f"At level {number}:", *_class_lines(level), *_confusion_lines(level)]
    return "\n".join(lines)


def _filled(parts: Sequence[str]) -> list[str]:
    """Return parts side by side, on as few lines as a terminal needs."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= TERMINAL:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines


def _class_lines(evaluation: Measurement) -> list[str]:
    """Return the table of classes, as wide as a terminal at most."""
    table = evaluation.table()
    names = [shown(name, one_line=True) for name, _, _ in table.rows]
    spaces = [max(10, len(title) + 2) for title, _ in table.columns]
    width = min(30, TERMINAL - 8 - sum(spaces), max(5, *map(cell_len, names)))
    heads = "".join(f"{title:>{space}}" for (title, _), space in zip(table.columns, spaces, strict=True))
    lines = [f"{'class':<{width}}  images{heads}"]
    for place, (name, row) in enumerate(zip(names, table.rows, strict=True)):
        texts = zip(table.texts(place), spaces, strict=True)
        figures = "".join(f"{text:>{space}}" for text, space in texts)
        lines.append(f"{set_cell_size(name, width)}  {row[1]:>6}{figures}")
    return lines


def _level_line(number: int, level: Measurement) -> str:
    """Return the figures of one level above the classes."""
    return (
        f"level {number}, {len(level.classes):,} names: accuracy {level.headline.text} "
        f"({level.headline.interval_text})   macro F1 {numerals.percent(level.figures()['macro_f1'])}"
    )


TERMINAL = 80  # columns
MATRIX_CLASSES = 12  # so many have room there for the confusion matrix


def _confusion_lines(evaluation: Measurement) -> list[str]:
    """Return the confusion matrix, a row for each true class; nothing if there are too many classes."""
    names, confusion = [shown(name, one_line=True) for name in evaluation.classes], evaluation.confused()
    if confusion is None or len(names) > MATRIX_CLASSES:
        return []
    counts = confusion.tolist()
    least = max(len(str(count)) + 1 for row in counts for count in row)
    spare = max(5, TERMINAL - 2 - least * len(names))
    width = min(20, spare, max(5, *map(cell_len, names)))
    room = (TERMINAL - width - 2) // len(names)
    cell = max(least, min(room, max(map(cell_len, names)) + 1))
    lines = ["", "confusion: rows true, columns predicted, in the same order"]
    lines.append(
        " " * (width + 2) + "".join(" " * (cell - cell_len(head)) + head for head in _heads(names, cell - 1))
    )
    for name, row in zip(names, counts, strict=True):
        lines.append(f"{set_cell_size(name, width)}  " + "".join(f"{count:>{cell}}" for count in row))
    return lines


def _heads(names: Sequence[str], width: int) -> list[str]:
    """Return the names' beginnings, of at most so many cells; the ends of those that begin alike."""
    begin = [set_cell_size(name, min(width, cell_len(name))) for name in names]
    often = collections.Counter(begin)
    return [head if often[head] == 1 else _end(name, width) for name, head in zip(names, begin, strict=True)]


def _end(name: str, width: int) -> str:
    while cell_len(name) > width:
        name = name[1:]
    return name


MODELS_NOTE = (
    "px: the size a network was made for. params: with 1,000 classes (tellapart's\n"
    "own: 10). top-1: accuracy on ImageNet-1K in %, as torchvision states it of its\n"
    "default weights. Blank: not stated (timm's package states neither)."
)


def models_text(models: Sequence[ModelInfo]) -> str:
    """Return a line for each model, below a header: whole names, and licences as long as there is room."""
    width = max(len("model"), *(len(info.name) for info in models))
    lines = [f"{'model':<{width}} {'px':>4} {'params':>7} {'top-1':>5}  licence"]
    for info in models:
        size = str(info.size or "any")
        count = f"{info.parameters / 1e6:.2f}M" if info.parameters else ""
        accuracy = "" if info.accuracy is None else f"{info.accuracy:.1f}"
        line = f"{info.name:<{width}} {size:>4} {count:>7} {accuracy:>5}  {info.licence or ''}".rstrip()
        lines.append(line if len(line) <= TERMINAL else line[: TERMINAL - 1] + "…")
    return "\n".join(lines)


def write_table(predictions: Any, out: TextIO) -> None:
    """Write one line for each image: labels with their probabilities, or what was wrong."""
    for p in predictions:
        pairs = zip(p.labels, p.probabilities, strict=True) if p.told is None else _told(p)
        grade = "" if p.expected_grade is None else f" (expected grade {numerals.fixed(p.expected_grade, 2)})"
        answer = (
            p.error or ", ".join(f"{label} {numerals.probability(value)}" for label, value in pairs) + grade
        )
        if p.told == ():
            best = f"{p.labels[0]} {numerals.probability(p.probabilities[0])}"
            answer = f"none of the classes (the most probable: {best})"
        answer += "".join(f"; level {one.level}: {_at_level(one)}" for one in p.levels)
        out.write(shown(f"{p.path}: {answer}", one_line=True) + "\n")


def _at_level(one: Any) -> str:
    """Return the answer at a level, and whether the class is part of it."""
    other = "" if one.agrees else ", to which the class does not belong"
    return f"{one.label} {numerals.probability(one.probability)}{other}"


def _told(prediction: Any) -> list[tuple[str, float]]:
    return [(one.label, one.probability) for one in prediction.told]


def write_jsonl(predictions: Any, out: TextIO) -> None:
    """Write one JSON object for each image."""
    for p in predictions:
        out.write(as_json_line(p.to_dict()) + "\n")


class _Spelt:
    """A terminal that gets nothing that would steer it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        self._out.write(shown(text))


def write_csv(predictions: Any, out: TextIO, grades: bool = False, levels: int = 0) -> None:
    """Write a row for each of an image's labels, the best first; a bad image has one, with the error.

    An image that can have several labels and has none has one row too, without a label. ``grades``: whether there is a
    column for the expected grade, which all rows of an image have. ``levels``: of the names of classes, above these;
    what is told at each stands in all rows of an image, in further columns.
    """
    writer = tables.Writer(_Spelt(out) if out.isatty() else out)  # a file gets the very names
    more = ["expected_grade"] if grades else []
    above = [f"{name}_at_{k}" for k in range(1, levels + 1) for name in ("label", "probability")]
    writer.writerow(["path", "rank", "label", "probability", *more, "error", *above])
    for p in predictions:
        grade = ["" if p.expected_grade is None else f"{p.expected_grade:.6f}"] if grades else []
        rows: list[Any] = [(p.path, "", "", "", *grade, p.error)] if p.error else []
        pairs = enumerate(zip(p.labels, p.probabilities, strict=True) if p.told is None else _told(p), 1)
        rows += [(p.path, "", "", "", *grade, "")] if p.told == () else []
        rows += [(p.path, rank, label, f"{value:.6f}", *grade, "") for rank, (label, value) in pairs]
        told = [text for one in p.levels for text in (one.label, f"{one.probability:.6f}")]
        writer.writerows((*row, *(told or [""] * len(above))) for row in rows)


def cache_text(entries: Sequence[dict[str, Any]]) -> str:
    """Return the stores of the cache as a table."""
    if not entries:
        return "The cache is empty."
    lines = [f"{'key':<14}{'MiB':>9}{'images':>9}  {'last use':<17}what"]
    for entry in entries:
        what = shown(f"{entry['source'] or '?'} ({entry['purpose'] or 'unknown purpose'})", one_line=True)
        used = entry["last_use"][:16].replace("T", " ") + ("*" if entry["in_use"] else "")
        images = "?" if entry["images"] is None else f"{entry['images']:,}"
        lines.append(f"{entry['key'][:12]:<14}{entry['bytes'] / 2**20:>9,.1f}{images:>9}  {used:<17}{what}")
        lines.append(f"{'':<14}{shown(entry['path'], one_line=True)}")
    total = sum(entry["bytes"] for entry in entries) / 2**30
    lines.append(
        f"{total:,.2f} GiB in all, times in UTC" + (", * in use now" * any(e["in_use"] for e in entries))
    )
    return "\n".join(lines)
