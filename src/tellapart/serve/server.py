"""The process: uvicorn around the application, and the order in which it ends.

Owner of uvicorn, with `bounds`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, cast

import uvicorn

from tellapart.allocator import keep_freed
from tellapart.errors import ServeError
from tellapart.serve.app import create
from tellapart.serve.bounds import Bounds
from tellapart.serve.options import KEY_VARIABLE, Options
from tellapart.serve.origins import ANY
from tellapart.serve.service import Service

_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn's server, draining before it ends: it reports not ready, and only later accepts no more."""

    def __init__(self, app: Any, service: Service, ready: Callable[[], None]) -> None:
        self._bounds = Bounds(service.options)
        super().__init__(_configuration(app, service.options, self._bounds))
        self._service, self._ready = service, ready
        self._asked_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the models, then listen."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; end at once on a second signal."""
        if self._asked_at is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._asked_at = self._asked_at or time.monotonic()
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """See to those who are too slow; return whether it is time to take no more."""
        self._bounds.look(self.server_state.connections)
        drained = self._service.options.drain_seconds
        if self._asked_at is not None and time.monotonic() - self._asked_at >= drained:
            self.should_exit = True
        return await super().on_tick(counter)


def listen(options: Options) -> socket.socket:
    """Return a socket that listens where the options say. Raises ServeError."""
    with contextlib.ExitStack() as undo:
        try:
            found = socket.getaddrinfo(
                options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = found[0]
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ServeError(
                f"Cannot listen on {options.host}:{options.port}: {error.strerror or error}"
            ) from None
        undo.pop_all()
        return listener


def _configuration(app: Any, options: Options, bounds: Bounds) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(Any, bounds.connect),
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.shutdown_seconds)),
    )


def run(
    models: Mapping[str, str],
    options: Options,
    notify: Callable[[str], None],
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until told to end. Raises UserError."""
    options = options.with_key_of_environment()
    for name, path in models.items():
        if not os.path.exists(path):
            raise ServeError(f"There is no model {path} (to be served as {name!r}).")
    if not options.loopback and not options.api_key:
        notify(
            f"warning: {options.host} can be reached from other machines without a key; set {KEY_VARIABLE} or --api-key"
        )
    if ANY in options.allow_origin and not options.api_key:
        notify(
            "warning: with --allow-origin * every page opened in a browser here can use the service without a key"
        )
    # With a memory pool for each thread, memory grows for an hour and images are decoded into pages that the system
    # must clear anew each time.
    keep_freed(trim=128 << 20, mmap=32 << 20, arenas=2)
    listener = listen(options)
    app = create(models, options, notify)
    service: Service = app.state.service
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # `app` logs what fails
    host, port = listener.getsockname()[:2]

    def started() -> None:
        for name in service.repository.names:
            model = service.repository.get(name)
            batch = model.batcher.max_batch
            notify(
                f"{name}: {model.backend.format}, {len(model.card.classes)} classes, "
                f"{'one image at a time' if batch == 1 else f'batches of up to {batch}'}"
            )
        # Objects that exist now stay: collections need not scan them each time, and so can be frequent, which keeps
        # memory flat and answers fast.
        gc.collect()
        gc.freeze()
        notify(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}")
        ready({"host": host, "port": port, "models": service.repository.names})

    server = Server(app, service, started)
    try:
        with contextlib.suppress(
            SystemExit
        ):  # where the application did not start; earlier versions of uvicorn return
            server.run(sockets=[listener])
    finally:
        listener.close()
    if not server.started:
        raise service.failure or ServeError("The service did not start.")
    notify("all accepted requests have been answered")
