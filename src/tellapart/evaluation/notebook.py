"""How results look in a notebook: a piece of HTML without scripts, style sheets or external resources.

Colours are translucent, so that they suit light and dark notebooks.
"""

from __future__ import annotations

import os

from tellapart import pages
from tellapart.errors import RunError
from tellapart.evaluation import charts
from tellapart.evaluation.measurement import Measurement
from tellapart.evaluation.report import SPLIT_NAMES, curves, meaning
from tellapart.evaluation.run_folder import RunFolder, read_run

MOST_CELLS = (
    12  # up to this many classes the confusion matrix is shown; otherwise the pairs most often confused
)
MOST_ROWS = 20  # classes that are listed
_COLOURS = {"train": "#4269d0", "val": "#e8871a", "faint": "#888888"}


def of_evaluation(evaluation: Measurement, title: str = "", note: str = "") -> str:
    """Return the figures of one split, its classes and its confusions."""
    table, confusion = evaluation.table(), evaluation.confused()
    last = len(table.columns) - 1  # F1
    order = list(range(len(table.rows)))
    if len(order) > MOST_ROWS:
        lowest = [(row[2][last] is None, row[2][last] or 0.0, row[0]) for row in table.rows]
        order = sorted(order, key=lambda place: lowest[place])[:MOST_ROWS]
    whole = len(evaluation.classes) <= MOST_CELLS
    above = [
        (f"level {number}: accuracy", level.headline.text)
        for number, level in enumerate(evaluation.above(), 1)
    ]
    return _render(
        "evaluation",
        title=title,
        note=note,
        evaluation=evaluation,
        split=SPLIT_NAMES.get(evaluation.split, evaluation.split),
        facts=[*evaluation.texts(), *above],
        columns=[name for name, _ in table.columns],
        scores=[(*table.rows[place][:2], table.texts(place)) for place in order],
        left=len(table.rows) - len(order),
        matrix=confusion.tolist() if confusion is not None and whole else None,
        pairs=[] if confusion is None or whole else charts.confused_pairs(confusion),
    )


def of_run(folder: str | os.PathLike[str], split: str, interrupted: bool = False) -> str:
    """Return what a run achieved: the evaluation that counts, its curves, and its folder."""
    run: RunFolder | None
    try:
        run = read_run(folder)
    except (RunError, OSError):  # removed or damaged since: the result still shows what it knows
        run = None
    evaluation = run.evaluations.get(split) if run else None
    shown = of_evaluation(evaluation, note=meaning(run, split)) if run and evaluation else ""
    drawn = [chart for chart in curves(run) if chart.title != "Learning rate"] if run else []
    return _render(
        "run",
        folder=os.fspath(folder),
        interrupted=interrupted,
        there=run is not None,
        evaluation=shown,
        charts=drawn,
        size=charts,
        colours=_COLOURS,
    )


def _render(part: str, **content: object) -> str:
    from markupsafe import Markup

    page = pages.environment("tellapart.evaluation")
    if isinstance(content.get("evaluation"), str):
        content["evaluation"] = Markup(content["evaluation"])  # made here, by the template below
    html = page.get_template("notebook.html.j2").render(part=part, **content)
    # File names need not be valid UTF-8; invalid bytes are shown as a replacement character.
    return html.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
