"""report.html: one page that says what a run achieved, on what, and how; self-contained and offline.

Made from the run folder's files alone. The page needs no JavaScript (a few lines make its tooltips quicker) and no
external resources. Knows nothing of models or training.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import clock, files, numerals, pages, runs
from tellapart import spec as specs
from tellapart.contract.card import label_mark
from tellapart.errors import RunError
from tellapart.evaluation import advice, charts
from tellapart.evaluation.advice import Advice
from tellapart.evaluation.measurement import Measurement
from tellapart.evaluation.metrics import Evaluation, wilson_interval
from tellapart.evaluation.multilabel import LabelScore, MultiEvaluation
from tellapart.evaluation.run_folder import RunFolder, flatten, read_run

MOST_BAD_IMAGES = 200
_BYTES = ("memory.", "disk.")  # of a machine: whole numbers there are bytes
OPEN_ROWS = 20  # tables with more rows than this are folded

SPLIT_NAMES = {"test": "test", "val": "validation", "train": "training"}
MEANINGS = {
    "test": "Measured on test images that were held out: they were not used in training or to choose the "
    "epoch, so this is what to expect on new images of the same kind.",
    "val": "Measured on validation images: the network was not trained on them, but the epoch was chosen by "
    "them, so expect slightly less on new images.",
    "train": "Measured on the images that the network was trained on: this says nothing about new images.",
}

KNOWN_ALREADY = {
    "trained": "some of which are training images too: expect less on new images",
    "chose": "some of which are validation images too and helped to choose the epoch: expect slightly less "
    "on new images",
}
"""Shown instead if the run's warnings report such images (`runs.honesty`)."""


def write_report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Write the page of a run and return its path (RUN/report.html by default).

    Raises RunError if the folder is not a run folder, or if one of its files is damaged.
    """
    run = read_run(run_dir)
    page = pages.environment("tellapart.evaluation")
    page.filters["shorten"] = charts.shorten
    script = page.get_template("report.js.j2").render()
    # the only script that the page's policy allows
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.get_template("report.html.j2").render(_content(run), script=script, script_hash=digest)
    path = run.path / "report.html" if out is None else pathlib.Path(out)
    # File names need not be valid UTF-8; invalid bytes are shown as a replacement character.
    files.write_bytes(path, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())
    return path


def _content(run: RunFolder) -> dict[str, Any]:
    """Return everything that the template shows."""
    figures = run.evaluations.get(run.split or "")
    drawn, data = curves(run), _data(run)
    return {
        "name": run.name,
        "model": run.field("model.name", ""),
        "source": run.field("data.source", ""),
        "split": run.split,
        "split_name": SPLIT_NAMES.get(run.split or "", run.split),
        "split_names": SPLIT_NAMES,
        "meaning": meaning(run, run.split or "", data["splits"]),
        "warnings": run.warnings,
        "figures": figures,
        "others": [run.evaluations[name] for name in run.evaluations if name != run.split],
        "facts": _facts(run, figures),
        "data": data,
        "charts": drawn,
        "legend": list({line.kind: line for chart in drawn[:2] for line in chart.lines}.values()),
        "kind": figures.kind if figures else "",
        **(_PARTS[figures.kind](figures) if figures else {}),
        "mistakes": _mistakes(run),
        **_advice(run),
        "choices": _choices(run),
        "spec": _spec(run),
        "environment": dict(_environment(run.environment)),
        "open_rows": OPEN_ROWS,
        "chart_size": charts,
    }


def meaning(run: RunFolder, split: str, splits: Sequence[str] | None = None) -> str:
    """Return in plain words what a split's figure is worth. ``splits``: those of the run's data, if known."""
    text = MEANINGS.get(split, f"Measured on the images of {split}.")
    if (known := runs.honesty(run.warnings, split)) in KNOWN_ALREADY:
        text = f"Measured on {SPLIT_NAMES.get(split, split)} images, {KNOWN_ALREADY[known]}."
    if split in ("val", "train") and splits is not None:
        waits = "test" in splits
        text += " The test split has not been evaluated yet." if waits else " This run has no test split."
    return text


def _facts(run: RunFolder, figures: Measurement | None) -> list[tuple[str, str]]:
    """Return the smaller figures beside the headline: (name, value)."""
    facts: list[tuple[str, str]] = []
    if figures:
        facts += figures.texts()
        facts.append(("classes", f"{len(figures.classes):,}"))
    if run.epochs:
        best = f"{run.best_epoch} of {run.epochs}" if run.validated else f"{run.epochs}"
        facts.append(("best epoch" if run.validated else "epochs", best))
    if run.seconds is not None:
        facts.append(("training time", numerals.duration(run.seconds)))
    if isinstance(limit := run.field("time_limit"), (int, float)) and limit:
        facts.append(("time limit", clock.words(limit)))
    if figures and figures.images_per_second is not None:
        facts.append(("images per second", numerals.rate(figures.images_per_second)))
    if figures and figures.latency_ms:
        latency = figures.latency_ms
        facts.append(
            (
                f"latency {' / '.join(latency)}",
                " / ".join(numerals.number(ms) for ms in latency.values()) + " ms",
            )
        )
    return facts


def _data(run: RunFolder) -> dict[str, Any]:
    """Return counts for each class and split, what is missing, and the images that could not be read."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    total: collections.Counter[str] = collections.Counter()
    names = {name for figures in run.evaluations.values() for name in figures.classes}
    mark = label_mark(sorted(names))
    for row in run.rows("samples.csv"):
        labels = list(filter(None, row["labels"].split(mark))) if "labels" in row else [row.get("label", "")]
        for label in labels:
            counts[label][row.get("split", "")] += 1
        total[row.get("split", "")] += 1
    for figures in run.evaluations.values():
        for name in figures.classes:
            counts.setdefault(name, collections.Counter())
    splits = [name for name in ("train", "val", "test") if total[name]]
    splits += [name for name in total if name not in splits]
    grades = [name for name in run.field("data.order") or () if name in counts]
    order = [*grades, *sorted(name for name in counts if name not in grades)]
    rows = [(name, [counts[name][split] for split in splits]) for name in order]
    missing = {
        split: [name for name, values in rows if not values[k]]
        for k, split in enumerate(splits)
        if any(not values[k] for _, values in rows)
    }
    bad = [(row.get("path", ""), row.get("reason", "")) for row in run.rows("bad-images.csv")]
    return {
        "splits": splits,
        "rows": rows,
        "total": [total[split] for split in splits],
        "largest": max((max(values) for _, values in rows if values), default=0),
        "missing": missing,
        "bad": bad[:MOST_BAD_IMAGES],
        "bad_count": len(bad),
    }


def curves(run: RunFolder) -> list[charts.Chart]:
    """Return the curves of loss, accuracy and learning rate over epochs (over steps if no epoch ended)."""
    ends = [(0, 0.0), *run.epoch_ends]
    by_epoch = len(ends) > 1
    steps, epochs = [step for step, _ in ends], [epoch for _, epoch in ends]

    def points(*names: str) -> list[tuple[float, float]]:
        series = next((run.metrics[name] for name in names if name in run.metrics), [])
        if not by_epoch:
            return [(float(step), value) for step, value in series]
        return [(_epoch_at(step, steps, epochs), value) for step, value in series]

    label, best = ("epoch", run.best_epoch) if by_epoch else ("step", None)
    mark_text = f"best: {best}" if best and run.validated else ""
    mark = float(best) if best and mark_text else None
    found = []
    for title, unit in (("Loss", "number"), ("Accuracy", "share")):
        name = title.lower()
        whole = points(f"train/epoch-{name}")
        single = points(f"train/{name}")
        series: list[tuple[str, str, charts.Points]] = (
            [("training, single steps", "faint", single)] if whole else []
        )
        series += [("training", "train", whole or single), ("validation", "val", points(f"val/{name}"))]
        found.append(charts.line_chart(title, series, unit, label, mark, mark_text))
    if "val/mAP" in run.metrics:
        scores: list[tuple[str, str, charts.Points]] = [("validation", "val", points("val/mAP"))]
        found.append(charts.line_chart("mAP", scores, "share", label, mark, mark_text))
    if "val/kappa" in run.metrics:
        scores = [("validation", "val", points("val/kappa"))]
        found.append(charts.line_chart("Quadratic kappa", scores, "number", label, mark, mark_text))
    rate: list[tuple[str, str, charts.Points]] = [("learning rate", "rate", points("train/lr", "lr"))]
    found.append(charts.line_chart("Learning rate", rate, "rate", label, mark, mark_text))
    return [chart for chart in found if chart is not None]


def _epoch_at(step: int, steps: list[int], epochs: list[float]) -> float:
    """Return a step's position in epochs; after the last epoch's end it is extrapolated."""
    if step > steps[-1]:
        pace = (epochs[-1] - epochs[-2]) / max(1, steps[-1] - steps[-2])
        return epochs[-1] + (step - steps[-1]) * pace
    return float(np.interp(step, steps, epochs))


def _classes(figures: Evaluation) -> list[dict[str, Any]]:
    """Return the rows of the per-class table, the worst F1 first, classes without images last."""
    rows = []
    for score in figures.per_class:
        hits = round((score.recall or 0.0) * score.support)
        low, high = wilson_interval(hits, score.support) if score.support else (0.0, 0.0)
        rows.append({"score": score, "low": low, "high": high})
    return sorted(rows, key=lambda row: (row["score"].f1 is None, row["score"].f1, row["score"].name))


def _level(number: int, figures: Evaluation) -> dict[str, Any]:
    """Return what is shown of one level above the classes."""
    pairs = charts.confused_pairs(figures.confusion)
    return {
        "number": number,
        "figures": figures,
        "classes": _classes(figures),
        "matrix": _matrix(figures),
        "pairs": pairs,
    }


def _label_rows(figures: MultiEvaluation) -> list[LabelScore]:
    """Return the rows of the table of labels, the lowest average precision first, those without images last."""
    return sorted(figures.per_class, key=lambda score: (score.ap is None, score.ap, score.name))


def _together(figures: MultiEvaluation) -> list[tuple[str, str, int, float]]:
    """Return the pairs of labels that most often occur together: images, and their share of the rarer label's."""
    counts = np.triu(figures.together, 1)
    alone = figures.together.diagonal()
    places = np.argwhere(counts > 0)
    order = sorted(places.tolist(), key=lambda pair: (-int(counts[pair[0], pair[1]]), pair))
    return [
        (
            figures.classes[a],
            figures.classes[b],
            int(counts[a, b]),
            float(counts[a, b] / min(alone[a], alone[b])),
        )
        for a, b in order[:15]
    ]


def _single_parts(figures: Any) -> dict[str, Any]:
    """Return what the page shows of images with one label each."""
    return {
        "classes": _classes(figures),
        "matrix": _matrix(figures),
        "levels": [_level(number, one) for number, one in enumerate(figures.levels, 1)],
        "pairs": charts.confused_pairs(figures.confusion),
    }


def _several_parts(figures: Any) -> dict[str, Any]:
    """Return what the page shows of images with several labels."""
    return {"label_rows": _label_rows(figures), "together": _together(figures)}


_PARTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    Evaluation.kind: _single_parts,
    MultiEvaluation.kind: _several_parts,
}


def _matrix(figures: Evaluation) -> dict[str, Any]:
    """Return the confusion matrix: drawn with names, or as an image if there are too many classes."""
    if len(figures.classes) <= charts.NAMED_CLASSES:
        return {"drawn": charts.matrix_chart(figures.confusion, figures.classes), "picture": None}
    return {"drawn": None, "picture": _matrix_picture(figures.confusion)}


def _matrix_picture(confusion: npt.NDArray[np.int64]) -> str:
    """Return a PNG with a pixel for each cell (right blue, wrong orange, both transparent towards zero)."""
    from PIL import Image

    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    pixels = np.zeros((*confusion.shape, 4), np.uint8)
    pixels[:] = (213, 94, 0, 0)
    diagonal = np.arange(len(confusion))
    pixels[diagonal, diagonal, :3] = (0, 114, 178)
    pixels[:, :, 3] = np.where(confusion > 0, 30 + 225 * share**0.6, 0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, "PNG", optimize=True)
    return _data_uri(stream.getvalue())


def _mistakes(run: RunFolder) -> list[dict[str, Any]]:
    """Return the most confident mistakes of the headline's split, each with its thumbnail."""
    return _pictures(run, run.path / "evaluation" / (run.split or "") / "mistakes")


def _advice(run: RunFolder) -> dict[str, Any]:
    """Return what would help most, None where it was not measured, and the pictures whose labels are suspected."""
    try:
        found = Advice.from_dict(runs.read_json(run.path / advice.FILE_NAME))
    except (KeyError, TypeError, ValueError):
        return {"advice": None, "suspects": []}
    suspected = any(item.kind == "labels" for item in found.items)
    return {"advice": found, "suspects": _pictures(run, run.path / advice.SUSPECTS) if suspected else []}


def _pictures(run: RunFolder, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return the images that a folder's index.json lists, each with its thumbnail; none if there is no such file."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        figures = run.evaluations.get(run.split or "")
        mark = label_mark(figures.classes if figures else ())
        return [_mistake(folder, entry, mark) for entry in index]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'index.json'} is damaged ({error!r}). Evaluate the run again.") from error


def _together_text(text: str, mark: str) -> str:
    """Return an image's labels as people write them."""
    return ", ".join(filter(None, text.split(mark))) or "none"


def _mistake(folder: pathlib.Path, entry: dict[str, Any], mark: str) -> dict[str, Any]:
    """Return what is shown of a mistake; ``mark``: what several labels are joined by in the file."""
    from PIL import Image

    content = (folder / pathlib.PurePath(entry["image"]).name).read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        small = max(picture.size) <= 96
    if "labels" in entry:
        texts = {
            "label": _together_text(entry["labels"], mark),
            "predicted": _together_text(entry["predicted"], mark),
        }
        shown = {"path": entry["path"], **texts, "confidence": None}
    else:
        shown = {name: entry[name] for name in ("path", "label", "predicted", "confidence")}
    return {**shown, "small": small, "picture": _data_uri(content)}


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _choices(run: RunFolder) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return what was chosen: option, value and reason, first of those that the data or the machine decided."""
    rows = [
        (one["field"], numerals.option(one["value"]), one["reason"], one["matters"]) for one in run.choices
    ]
    kinds = (("decided", True), ("usual", False))
    found = [(kind, [row[:3] for row in rows if row[3] is matters]) for kind, matters in kinds]
    return [(kind, chosen) for kind, chosen in found if chosen]


def _spec(run: RunFolder) -> list[tuple[str, list[tuple[str, str, str | None]]]]:
    """Return the spec by section: (field, value, default if the value differs from it)."""
    defaults = flatten(specs.to_dict(specs.Spec()))
    sections: dict[str, list[tuple[str, str, str | None]]] = {}
    for name, value in flatten(run.spec).items():
        section, _, field = name.rpartition(".")
        differs = name not in defaults or defaults[name] != value
        default = numerals.option(defaults.get(name)) if differs else None
        sections.setdefault(section or "other", []).append((field, numerals.option(value), default))
    return list(sections.items())


def _environment(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a run says of its machine, as people read it: names and values; what is empty is left out."""
    for name, value in flatten(values).items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for place, one in enumerate(value):
                own = str(one.get("name") or place)
                told = [one["version"]] if "version" in one else [v for k, v in one.items() if k != "name"]
                if any(told):
                    yield f"{name}.{own}", numerals.option(told)
        elif isinstance(value, list):
            if value:
                yield (
                    name,
                    (" " if all(str(one).endswith(".") for one in value) else "; ").join(map(str, value)),
                )
        elif value not in (None, "", {}):
            plain_count = isinstance(value, int) and name.startswith(_BYTES)
            yield name, f"{numerals.number(value / 2**30)} GiB" if plain_count else numerals.option(value)
