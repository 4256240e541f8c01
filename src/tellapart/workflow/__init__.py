"""The Python API: one call for each command, which puts the stages together.

``tellapart.train`` and the others are these functions; the command line calls them too.
"""

from __future__ import annotations

from tellapart.predict import load, predict
from tellapart.workflow.asked import make_spec
from tellapart.workflow.cached import cache, cache_clear, cache_list
from tellapart.workflow.compressing import compress
from tellapart.workflow.exporting import Export, export
from tellapart.workflow.finding_lr import find_lr
from tellapart.workflow.importing import import_weights
from tellapart.workflow.inspect import check
from tellapart.workflow.measure import compare, evaluate, report
from tellapart.workflow.models import model_summary, models
from tellapart.workflow.run import Result, train
from tellapart.workflow.series import Series, cross_validate, repeat, resume
from tellapart.workflow.shortlist import Candidate, Candidates, candidates

__all__ = [
    "Candidate",
    "Candidates",
    "Export",
    "Result",
    "Series",
    "cache",
    "cache_clear",
    "cache_list",
    "candidates",
    "check",
    "compare",
    "compress",
    "cross_validate",
    "evaluate",
    "export",
    "find_lr",
    "import_weights",
    "load",
    "make_spec",
    "model_summary",
    "models",
    "predict",
    "repeat",
    "report",
    "resume",
    "train",
]
