"""A run folder as the report and the comparison read it: text files only, no weights and no torch model.

Every file except spec.yaml may be missing (a run that was interrupted, or never evaluated); what is there is read
leniently, so that a page can be made of any run.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tellapart import runs, tables, yaml_text
from tellapart.errors import RunError
from tellapart.evaluation.measurement import Measurement
from tellapart.evaluation.metrics import read_evaluation

Series = list[tuple[int, float]]
OUT_OF_FOLD = "out-of-fold"  # every image of a cross-validation, answered by the model that has not seen it
SPLIT_ORDER = (OUT_OF_FOLD, "test", "val", "train")


@dataclass(frozen=True)
class RunFolder:
    """What the files say. metrics: by name, (step, value) in the order of steps; evaluations: by split."""

    path: pathlib.Path
    spec: dict[str, Any]
    metrics: dict[str, Series]
    evaluations: dict[str, Measurement]
    environment: dict[str, Any]
    warnings: list[dict[str, str]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def split(self) -> str | None:
        """The split whose figure counts: test, otherwise validation, otherwise training; None without evaluation."""
        return next((split for split in (*SPLIT_ORDER, *self.evaluations) if split in self.evaluations), None)

    @property
    def validated(self) -> bool:
        """Whether epochs were measured on validation."""
        return "val/accuracy" in self.metrics or "val/mAP" in self.metrics

    @property
    def epoch_ends(self) -> list[tuple[int, float]]:
        """(step, epoch) at the end of each epoch, epochs counted from 1; empty if it is not recorded."""
        if "epoch" in self.metrics:
            return self.metrics["epoch"]
        return [(step, float(k)) for k, (step, _) in enumerate(self.metrics.get("val/accuracy", ()), 1)]

    @property
    def epochs(self) -> int:
        """Number of epochs that ended."""
        return int(max((epoch for _, epoch in self.epoch_ends), default=0))

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 1) whose weights are kept: as the run says; for older runs the first best, or the last."""
        if self.metrics.get("best-epoch"):
            return int(self.metrics["best-epoch"][-1][1])
        metric = self.field("training.best_metric", "auto")
        if metric == "auto":
            metric = "mAP" if "val/mAP" in self.metrics else "accuracy"
        series = dict(self.metrics.get(f"val/{metric}", ()))
        ends = dict(self.epoch_ends)
        scored = [(value, -ends[step]) for step, value in series.items() if step in ends and value == value]
        if not scored:
            return self.epochs or None
        best = min(scored, key=lambda pair: (pair[0] if metric in ("loss", "mae") else -pair[0], -pair[1]))
        return int(-best[1])

    @property
    def seconds(self) -> float | None:
        """Seconds of training if metrics.csv (``seconds`` of each epoch) or environment.json has them."""
        if "seconds" in self.metrics:
            return sum(value for _, value in self.metrics["seconds"])
        value = self.environment.get("seconds")
        return float(value) if isinstance(value, (int, float)) else None

    def field(self, name: str, default: Any = None) -> Any:
        """Return a field of the spec by its dotted name."""
        return flatten(self.spec).get(name, default)

    def rows(self, name: str) -> Iterator[dict[str, str]]:
        """Yield the rows of one of the folder's CSV files, none if it is missing."""
        try:
            with open(self.path / name, newline="", encoding="utf-8", errors="surrogateescape") as stream:
                yield from tables.rows(stream)
        except FileNotFoundError:
            return


def read_run(folder: str | os.PathLike[str]) -> RunFolder:
    """Read a run folder. Raises RunError if it is not one, or if a file is damaged."""
    path = pathlib.Path(folder).absolute()
    try:
        spec = yaml_text.load((path / "spec.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is not a run's folder: it has no spec.yaml.") from None
    except ValueError as error:
        raise RunError(f"{path / 'spec.yaml'} cannot be read as YAML: {error}") from error
    if not isinstance(spec, dict):
        raise RunError(f"{path / 'spec.yaml'} must hold the fields of a spec by name.")
    run = RunFolder(path, spec, {}, {}, _json(path / "environment.json"))
    run.warnings.extend(runs.read_warnings(path))
    run.choices.extend(runs.read_choices(path))
    for row in run.rows("metrics.csv"):
        try:
            run.metrics.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
        except (KeyError, ValueError):  # a line truncated by a kill
            continue
    for series in run.metrics.values():
        series.sort(key=lambda pair: pair[0])
    run.evaluations.update(_evaluations(path / "evaluation"))
    return run


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    return values if isinstance(values, dict) else {"": values}


def _evaluations(folder: pathlib.Path) -> dict[str, Measurement]:
    found = sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    order = [name for name in SPLIT_ORDER if name in found] + [n for n in found if n not in SPLIT_ORDER]
    try:
        return {name: read_evaluation(folder / name) for name in order}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"An evaluation in {folder} is damaged ({error!r}). Evaluate the run again to replace it."
        ) from error


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"training.lr": 0.001, …}`` of a nested mapping, as `tellapart.spec.flatten` of a spec."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
