"""tellapart trains, checks and ships image classifiers.

Each command of the program is one call here: ``tellapart.train("photos/")``,
``tellapart.load("runs/…").predict("cat.jpg")``. Importing the package itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tellapart.artifact import open_model
    from tellapart.errors import TellapartError, UserError
    from tellapart.spec import Spec
    from tellapart.training.callbacks import Callback
    from tellapart.workflow import check, compare, evaluate, find_lr, load, report, resume, train

_WHERE = {
    "Callback": "training.callbacks",
    "Spec": "spec",
    "TellapartError": "errors",
    "UserError": "errors",
    "open_model": "artifact",
    **dict.fromkeys(
        ("train", "resume", "evaluate", "load", "report", "compare", "check", "find_lr"), "workflow"
    ),
}

__all__ = [
    "Callback",
    "Spec",
    "TellapartError",
    "UserError",
    "check",
    "compare",
    "evaluate",
    "find_lr",
    "load",
    "open_model",
    "report",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tellapart.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
