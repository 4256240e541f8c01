"""An HTTP service that answers for models: the front of `tellapart.runtime`.

Importing it loads neither torch nor any web package; `serve` does the latter, and the format of a model's file decides
whether torch is needed. Knows nothing of training, of evaluation, or of how a model's file was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
    models: Mapping[str, str],
    options: Options | None = None,
    notify: Callable[[str], None] = lambda text: None,
    ready: Callable[[dict[str, Any]], None] = lambda where: None,
) -> None:
    """Serve models until SIGTERM or SIGINT, then finish what was accepted.

    Args:
        models: paths by name.
        options: address, limits and the like.
        notify: gets messages for the person who started it.
        ready: called once with ``host``, ``port`` and ``models`` when requests are accepted.

    Raises UserError where a model cannot be opened or the address is taken.
    """
    _require()
    from tellapart.serve.server import run

    run(models, options or Options(), notify, ready)
