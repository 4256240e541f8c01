"""Several runs of one spec together: the folds of a cross-validation, or the same run with other seeds.

Works on the figures and the files of the single runs; knows nothing of how they were trained.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tellapart import files, pages, runs, tables
from tellapart.errors import RunError
from tellapart.evaluation.measurement import NAMES, Measurement, headline_of, in_full, naming
from tellapart.evaluation.metrics import KINDS, read_evaluation
from tellapart.evaluation.run_folder import OUT_OF_FOLD

_COUNTS = ("n", "epoch", "seconds")  # what an entry says beside figures


def summarise(finished: Sequence[Mapping[str, Any]], interval: bool) -> dict[str, Any]:
    """Return, for each figure that all runs have, its mean, its standard deviation (n - 1) and the number of runs.

    Where the names of classes have levels, ``levels`` has the same of the accuracy at each. ``interval``: the 95 %
    interval of the mean too, by Student's t over the runs, cut to 0 and 1 for shares; None with fewer than two runs.
    Runs that share training images are not independent, so the interval is an approximation.
    """
    found: dict[str, Any] = {}
    names = dict.fromkeys(name for entry in finished for name, value in entry.items() if _is_number(value))
    for name in names:
        spread = _spread([entry.get(name) for entry in finished], interval, naming(name).share)
        if spread and name not in _COUNTS:
            found[name] = spread
    levels = list(zip(*[entry.get("levels") or () for entry in finished], strict=False))
    if levels:
        found["levels"] = [
            {key: level[0][key] for key in ("level", "names")}
            | _spread([one["accuracy"] for one in level], interval, True)
            for level in levels
        ]
    return found


def _spread(values: Sequence[float | None], interval: bool, share: bool) -> dict[str, Any]:
    """Return mean, standard deviation and number of values that all runs have, else {}."""
    known = [float(value) for value in values if value is not None]
    if not known or len(known) < len(values):
        return {}
    found = {
        "mean": statistics.fmean(known),
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }
    return {**found, "interval": t_interval(known, share)} if interval else found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def t_interval(values: Sequence[float], share: bool) -> list[float] | None:
    """Return the 95 % interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    low, high = mean - half, mean + half
    return [max(0.0, low), min(1.0, high)] if share else [low, high]


def pool(folder: pathlib.Path, names: Sequence[str], split: str = "test") -> Measurement:
    """Write the folds' answers for the images that each held out (its ``split``), as one evaluation (``out-of-fold``).

    predictions.csv is that of the folds, one after the other, with the fold (from 1) as a further column.
    """
    places = [folder / name / "evaluation" / split for name in names]
    try:
        found: list[Any] = [read_evaluation(place) for place in places]
        evaluation = KINDS[found[0].kind].pooled(found, _rows(places), OUT_OF_FOLD)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"An evaluation of the folds in {folder} cannot be read ({error!r}).") from error
    target = folder / "evaluation" / OUT_OF_FOLD
    target.mkdir(parents=True, exist_ok=True)
    with files.workplace(target) as fresh:
        with files.writing(fresh / "predictions.csv", text=True, errors="surrogateescape") as stream:
            writer = tables.Writer(stream)
            for number, row in enumerate(_rows(places)):
                if number == 0:
                    writer.writerow(row)
                writer.writerow(row.values())
        content = json.dumps(evaluation.to_dict(), allow_nan=False)
        (fresh / "metrics.json").write_text(content, encoding="utf-8")
        files.move([(fresh / name, target / name) for name in ("predictions.csv", "metrics.json")])
    return evaluation


def _rows(places: Sequence[pathlib.Path]) -> Iterator[dict[str, str]]:
    for fold, place in enumerate(places, 1):
        with open(
            place / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape"
        ) as stream:
            for row in tables.rows(stream):
                yield {**row, "fold": str(fold)}


def write_page(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Write the page of a folder of several runs, from its files alone; return its path."""
    root = pathlib.Path(folder)
    listed = runs.series_file(root)
    if listed is None:
        raise RunError(f"{root} is not a folder of several runs: it has no {runs.FOLDS_FILE}.")
    content = runs.read_json(listed)
    spec = runs.read_spec(root / runs.SPEC_FILE)
    together = root / "evaluation" / OUT_OF_FOLD
    evaluation = read_evaluation(together) if (together / "metrics.json").is_file() else None
    page = pages.environment("tellapart.evaluation").get_template("series.html.j2")
    summary, finished = content.get("summary", {}), content.get("finished", [])
    heads = [one.key for entry in finished if (one := headline_of(entry))]
    text = page.render(
        name=root.absolute().name,
        folds=listed.name == runs.FOLDS_FILE,
        members=listed.name == runs.MEMBERS_FILE,
        validation=content.get("validation", {}),
        kept=content.get("kept", ""),
        model=spec.model.name,
        source=spec.data.source,
        count=content.get("count", 0),
        finished=finished,
        head=heads[0] if heads else "accuracy",
        title=in_full(heads[0] if heads else "accuracy"),
        named={key: naming(key) for key in [*NAMES, *summary]},
        columns=[key for key in dict.fromkeys([*heads, *summary]) if key not in ("n", "levels")],
        summary=summary,
        test=content.get("test", {}),
        evaluation=evaluation,
        table=evaluation.table() if evaluation else None,
    )
    path = root / "report.html" if out is None else pathlib.Path(out)
    files.write_bytes(path, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())
    return path
