"""An HTTP service for models: the front end of `tellapart.runtime`.

Importing it loads neither torch nor any web package; `serve` does the latter, and the format of a model's file decides
whether torch is needed. Knows nothing of training, of evaluation, or of how a model's file was made.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tellapart.errors import ServeError, did_you_mean, shown
from tellapart.serve.options import Options, by_name

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Options", "by_name", "create_app", "serve"]

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def _require() -> None:
    """Raise MissingPackageError for the first package of the extra that is not installed."""
    from tellapart import packages

    for package in _PACKAGES:
        packages.require(package, "serve", "Serving")


def create_app(models: Mapping[str, str], options: Options | None = None) -> FastAPI:
    """Return the service as an ASGI application, to be run by a server of your own.

    ``models``: paths of run folders, artifacts or exports by the name that they are served under. They are opened when
    the application starts. Raises MissingPackageError, ServeError.
    """
    _require()
    from tellapart.serve.app import create

    return create(models, options or Options())


def serve(
    models: str | os.PathLike[str] | Mapping[str, str],
    options: Options | None = None,
    notify: Callable[[str], None] | None = None,
    ready: Callable[[dict[str, Any]], None] = lambda where: None,
    **changes: Any,
) -> None:
    """Serve models until SIGTERM or SIGINT, then finish the accepted requests.

    Args:
        models: a run folder, artifact or exported file; or paths by the names that they are served under.
        options: address, limits and the like (``tellapart.serve.Options``).
        notify: receives messages for the user; by default they go to standard error.
        ready: called once with ``host``, ``port`` and ``models`` when requests are accepted.
        changes: fields of the options, such as ``port=8080``.

    Raises UserError if a model cannot be opened or the address is in use.
    """
    _require()
    from tellapart.serve.server import run

    named = models if isinstance(models, Mapping) else by_name(os.fspath(models))
    run(named, _changed(options or Options(), changes), notify or _tell, ready)


def _changed(options: Options, changes: Mapping[str, Any]) -> Options:
    known = [field.name for field in dataclasses.fields(options)]
    for name in changes:
        if name not in known:
            raise ServeError(f"There is no option {name!r}. {did_you_mean(name, known)}")
    return dataclasses.replace(options, **changes)


def _tell(text: str) -> None:
    sys.stderr.write(f"{shown(text)}\n")
    sys.stderr.flush()
