"""tellapart trains, checks and ships image classifiers.

Each command of the program is one call here: ``tellapart.train("photos/")``,
``tellapart.load("runs/…").predict("cat.jpg")``. Importing the package itself loads no torch.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from tellapart.artifact import Predictor
    from tellapart.doctor import examine as doctor
    from tellapart.errors import TellapartError, UserError
    from tellapart.predict import Classifier, Prediction, load, predict
    from tellapart.serve import serve
    from tellapart.spec import Spec
    from tellapart.training.callbacks import Callback
    from tellapart.workflow import (
        Result,
        cache,
        candidates,
        check,
        compare,
        compress,
        cross_validate,
        evaluate,
        export,
        find_lr,
        import_weights,
        repeat,
        report,
        resume,
        train,
    )
    from tellapart.workflow.models import models

_WHERE = {
    "Callback": "training.callbacks",
    "Classifier": "predict",
    "Prediction": "predict",
    "Predictor": "artifact",
    "Spec": "spec",
    "TellapartError": "errors",
    "UserError": "errors",
    "load": "predict",
    **dict.fromkeys(
        (
            *(
                "Result",
                "cache",
                "candidates",
                "check",
                "compare",
                "cross_validate",
                "evaluate",
                "find_lr",
                "import_weights",
            ),
            *("repeat", "report", "resume", "train"),
        ),
        "workflow",
    ),
}
_ROOMS = {
    "compress": ("workflow", "compress"),
    "doctor": ("doctor", "examine"),
    "export": ("workflow", "export"),
    "models": ("workflow", "models"),
    "predict": ("predict", "predict"),
    "serve": ("serve", "serve"),
}
"""Commands whose names are those of packages inside too; such a package can be called, and is then the command."""

__all__ = [
    "Callback",
    "Classifier",
    "Prediction",
    "Predictor",
    "Result",
    "Spec",
    "TellapartError",
    "UserError",
    "cache",
    "candidates",
    "check",
    "compare",
    "compress",
    "cross_validate",
    "doctor",
    "evaluate",
    "export",
    "find_lr",
    "import_weights",
    "load",
    "models",
    "predict",
    "repeat",
    "report",
    "resume",
    "serve",
    "train",
]


class _Room(types.ModuleType):
    """A package of ours that is a command too when it is called."""

    @property
    def _command(self) -> Callable[..., Any]:
        module, name = _ROOMS[self.__name__.rpartition(".")[2]]
        command: Callable[..., Any] = getattr(importlib.import_module(f"tellapart.{module}"), name)
        return command

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._command)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._command(*given, **named)


class _Tellapart(types.ModuleType):
    """The package itself: whatever imports a package inside, ``tellapart.export`` and its kin stay callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and type(value) is types.ModuleType:
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Tellapart


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"tellapart.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tellapart.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_ROOMS})
