"""Results as text for a terminal or a pipe: tables, JSON lines, CSV.

Loads no torch. Knows nothing of how a result came about.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len, set_cell_size

from tellapart import json_text, numerals, tables
from tellapart.errors import shown

_OBEYED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

if TYPE_CHECKING:
    from tellapart.evaluation.metrics import Evaluation
    from tellapart.evaluation.multilabel import MultiEvaluation
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
    lines = []
    if "map" in result.metrics:
        value, (low, high) = result.metrics["map"], result.metrics["map_interval"]
        lines.append(
            f"mAP {numerals.percent(value)} (95 % interval {numerals.interval(low, high)}, "
            f"{result.metrics['n']:,} images)   macro F1 {numerals.percent(result.metrics['macro_f1'])}   "
            f"micro F1 {numerals.percent(result.metrics['micro_f1'])}"
        )
        lines.append(f"  {_worth(result)}")
    elif result.split:
        accuracy, (low, high) = result.metrics["accuracy"], result.metrics["accuracy_interval"]
        lines.append(
            f"Accuracy {numerals.percent(accuracy)} (95 % interval {numerals.interval(low, high)}, "
            f"{result.metrics['n']:,} images)"
        )
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
    folds = series.kind == "folds"
    width = max(len(str(entry["run"])) for entry in series.runs)
    lines = []
    for entry in series.runs:
        if "accuracy" in entry:
            own = f"   own test {numerals.percent(entry['test']['accuracy'])}" if "test" in entry else ""
            on = "held out" if folds else _ON[entry["split"]]
            text = f"accuracy {numerals.percent(entry['accuracy'])} on {entry['n']:,} images ({on})"
            lines.append(f"{entry['run']:<{width}}  {text}{own}")
    mean = series.summary.get("accuracy")
    if mean is None:
        lines.append("Trained on everything: there was no validation and no test split to measure.")
    elif folds:
        low, high = mean.get("interval") or (None, None)
        lines.append(
            f"Accuracy {numerals.percent(mean['mean'])} (95 % interval {numerals.interval(low, high)})"
        )
        lines.append("  mean of the folds; they share training images, so the interval is approximate")
    else:
        lines.append(
            f"Accuracy {numerals.percent(mean['mean'])}, standard deviation "
            f"{numerals.fixed(100 * mean['std'], 2)} points over {mean['n']} seeds"
        )
    if series.metrics:
        low, high = series.metrics["accuracy_interval"]
        lines.append(
            f"Together {numerals.percent(series.metrics['accuracy'])} (95 % interval {numerals.interval(low, high)}, "
            f"{series.metrics['n']:,} images)"
        )
        lines.append(f"Answers  {series.run / 'evaluation' / 'out-of-fold' / 'predictions.csv'}")
    if own_test := series.test.get("accuracy"):
        lines.append(f"Own test {numerals.percent(own_test['mean'])}, mean of the models")
    if (series.run / "report.html").exists():
        lines.append(f"Report   {series.run / 'report.html'}")
    return shown("\n".join(lines))


_ON = {"test": "test", "val": "validation"}


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


def _speed(evaluation: Evaluation | MultiEvaluation) -> list[str]:
    if not (evaluation.images_per_second and evaluation.latency_ms):
        return []
    times = "  ".join(
        f"{name} {numerals.milliseconds(value)}" for name, value in evaluation.latency_ms.items()
    )
    return [f"{numerals.rate(evaluation.images_per_second)} images/s; one image at a time: {times}"]


def _several_text(evaluation: MultiEvaluation) -> str:
    """Return the figures of images with several labels, and the table of classes."""
    low, high = evaluation.map_interval
    lines = [
        f"mAP {numerals.percent(evaluation.map)} (95 % interval {numerals.interval(low, high)})",
        f"on {evaluation.n:,} images ({evaluation.split})",
        f"macro F1 {numerals.percent(evaluation.macro_f1)}   micro F1 {numerals.percent(evaluation.micro_f1)}   "
        f"F1 of images {numerals.percent(evaluation.samples_f1)}",
        f"all labels right {numerals.percent(evaluation.subset_accuracy)}   "
        f"Hamming loss {numerals.loss(evaluation.hamming_loss)}   loss {numerals.loss(evaluation.loss)}",
        *_speed(evaluation),
        "",
    ]
    names = [shown(score.name, one_line=True) for score in evaluation.per_class]
    width = min(30, max(5, *map(cell_len, names)))
    lines.append(f"{'class':<{width}}  images        AP  threshold  precision    recall        F1")
    for name, score in zip(names, evaluation.per_class, strict=True):
        figures = "".join(
            f"{text:>{space}}"
            for text, space in (
                (numerals.percent(score.ap), 10),
                (numerals.fixed(score.threshold, 4), 11),
                (numerals.percent(score.precision), 11),
                (numerals.percent(score.recall), 10),
                (numerals.percent(score.f1), 10),
            )
        )
        lines.append(f"{set_cell_size(name, width)}  {score.support:>6}{figures}")
    return "\n".join(lines)


def evaluation_text(evaluation: Evaluation | MultiEvaluation) -> str:
    """Return an evaluation's figures and its table of classes."""
    from tellapart.evaluation.multilabel import MultiEvaluation  # there was one, so torch is there too

    if isinstance(evaluation, MultiEvaluation):
        return _several_text(evaluation)
    low, high = evaluation.accuracy_interval
    lines = [
        f"Accuracy {numerals.percent(evaluation.accuracy)} (95 % interval {numerals.interval(low, high)})",
        f"on {evaluation.n:,} images ({evaluation.split})",
        f"balanced accuracy {numerals.percent(evaluation.balanced_accuracy)}   "
        f"macro F1 {numerals.percent(evaluation.macro.f1)}   loss {numerals.loss(evaluation.loss)}"
        + ("" if evaluation.top5 is None else f"   top-5 {numerals.percent(evaluation.top5)}"),
    ]
    for name, value in evaluation.own.items():
        lines.append(f"{name} {'not defined' if value is None else numerals.setting(round(value, 6))}")
    lines += [*_speed(evaluation), ""]
    names = [shown(score.name, one_line=True) for score in evaluation.per_class]
    width = min(30, max(5, *map(cell_len, names)))
    lines.append(f"{'class':<{width}}  images  precision    recall        F1")
    for name, score in zip(names, evaluation.per_class, strict=True):
        figures = "".join(
            f"{numerals.percent(value):>{space}}"
            for value, space in ((score.precision, 11), (score.recall, 10), (score.f1, 10))
        )
        lines.append(f"{set_cell_size(name, width)}  {score.support:>6}{figures}")
    return "\n".join(lines + _confusion_lines(evaluation))


TERMINAL = 80  # columns
MATRIX_CLASSES = 12  # so many have room there for the confusion matrix


def _confusion_lines(evaluation: Evaluation) -> list[str]:
    """Return the confusion matrix, a row for each true class; nothing if there are too many classes."""
    names = [shown(score.name, one_line=True) for score in evaluation.per_class]
    if len(names) > MATRIX_CLASSES:
        return []
    counts = evaluation.confusion.tolist()
    least = max(len(str(count)) + 1 for row in counts for count in row)
    spare = max(5, TERMINAL - 2 - least * len(names))
    width = min(20, spare, max(5, *map(cell_len, names)))
    room = (TERMINAL - width - 2) // len(names)
    cell = max(least, min(room, max(map(cell_len, names)) + 1))
    lines = ["", "confusion: rows true, columns predicted, in the same order"]
    heads = (
        " " * (cell - min(cell - 1, cell_len(name))) + set_cell_size(name, min(cell - 1, cell_len(name)))
        for name in names
    )
    lines.append(" " * (width + 2) + "".join(heads))
    for name, row in zip(names, counts, strict=True):
        lines.append(f"{set_cell_size(name, width)}  " + "".join(f"{count:>{cell}}" for count in row))
    return lines


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
        answer = p.error or ", ".join(f"{label} {numerals.probability(value)}" for label, value in pairs)
        if p.told == ():
            best = f"{p.labels[0]} {numerals.probability(p.probabilities[0])}"
            answer = f"none of the classes (the most probable: {best})"
        out.write(shown(f"{p.path}: {answer}", one_line=True) + "\n")


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


def write_csv(predictions: Any, out: TextIO) -> None:
    """Write a row for each of an image's labels, the best first; a bad image has one, with the error.

    An image that can have several labels and has none has one row too, without a label.
    """
    writer = tables.Writer(_Spelt(out) if out.isatty() else out)  # a file gets the very names
    writer.writerow(["path", "rank", "label", "probability", "error"])
    for p in predictions:
        rows: list[Any] = [(p.path, "", "", "", p.error)] if p.error else []
        pairs = enumerate(zip(p.labels, p.probabilities, strict=True) if p.told is None else _told(p), 1)
        rows += [(p.path, "", "", "", "")] if p.told == () else []
        rows += [(p.path, rank, label, f"{value:.6f}", "") for rank, (label, value) in pairs]
        writer.writerows(rows)


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
