"""How results look in a notebook: a piece of HTML without scripts, style sheets or external resources.

Colours are translucent, so that they suit light and dark notebooks.
"""

from __future__ import annotations

import os

from tellapart import numerals, pages
from tellapart.errors import RunError
from tellapart.evaluation import charts
from tellapart.evaluation.metrics import Evaluation
from tellapart.evaluation.report import SPLIT_NAMES, curves, meaning
from tellapart.evaluation.run_folder import RunFolder, read_run

MOST_CELLS = (
    12  # up to this many classes the confusion matrix is shown; otherwise the pairs most often confused
)
MOST_ROWS = 20  # classes that are listed
_COLOURS = {"train": "#4269d0", "val": "#e8871a", "faint": "#888888"}


def of_evaluation(evaluation: Evaluation, title: str = "", note: str = "") -> str:
    """Return the figures of one split, its classes and its confusions."""
    low, high = evaluation.accuracy_interval
    facts = [
        ("balanced accuracy", numerals.percent(evaluation.balanced_accuracy)),
        ("macro F1", numerals.percent(evaluation.macro.f1)),
        ("loss", numerals.loss(evaluation.loss)),
    ]
    if evaluation.top5 is not None:
        facts.append(("top-5 accuracy", numerals.percent(evaluation.top5)))
    scores = evaluation.per_class
    if len(scores) > MOST_ROWS:
        scores = tuple(sorted(scores, key=lambda one: (one.f1 is None, one.f1 or 0.0, one.name)))[:MOST_ROWS]
    whole = len(evaluation.classes) <= MOST_CELLS
    return _render(
        "evaluation",
        title=title,
        note=note,
        evaluation=evaluation,
        split=SPLIT_NAMES.get(evaluation.split, evaluation.split),
        interval=numerals.interval(low, high),
        facts=facts,
        scores=scores,
        left=len(evaluation.per_class) - len(scores),
        matrix=evaluation.confusion.tolist() if whole else None,
        pairs=[] if whole else charts.confused_pairs(evaluation.confusion),
    )


def of_run(folder: str | os.PathLike[str], split: str, interrupted: bool = False) -> str:
    """Return what a run achieved: the evaluation that counts, its curves, and its folder."""
    run: RunFolder | None
    try:
        run = read_run(folder)
    except (RunError, OSError):  # removed or damaged since: the result still shows what it knows
        run = None
    evaluation = run.evaluations.get(split) if run else None
    shown = ""
    if run and isinstance(evaluation, Evaluation):  # several labels: the figures are in the report
        shown = of_evaluation(evaluation, note=meaning(run, split))
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
