"""The process: uvicorn around the application, with limited patience for slow senders and an orderly shutdown.

Owner of uvicorn.
"""

from __future__ import annotations

import asyncio
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

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tellapart.allocator import keep_freed
from tellapart.errors import ServeError
from tellapart.serve import door
from tellapart.serve.app import create
from tellapart.serve.options import KEY_VARIABLE, Options
from tellapart.serve.origins import ANY
from tellapart.serve.refusal import Refusal
from tellapart.serve.service import Service

_KEEP_ALIVE_SECONDS = 30
_QUEUE_SECONDS = 0.025
_LAST_CALL_SECONDS = 1.0


class _Gathered:
    """A transport that sends what is written in one turn of the loop at once: an answer's head with its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, with limits on connections, on the time for a request's head, and on that to read an answer."""

    head_timeout = 10.0
    answer_timeout = 30.0
    max_connections = 512
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        transport.set_write_buffer_limits(
            high=0
        )  # so that `pause_writing` reports everything that has not been read
        super().connection_made(cast(asyncio.Transport, _Gathered(transport, self.loop)))
        if len(self.connections) > self.max_connections:
            self._refuse(Refusal(503, "overloaded", "too many connections; try again", retry_after=1))
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._head_came()
        self._answer_taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client some time to read its answer, even after the connection was closed on this side."""
        super().pause_writing()
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(self.answer_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue: everything that was sent has been read."""
        self._answer_taken()
        super().resume_writing()

    def _answer_taken(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request's head must be complete before the timer ends."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        if not waiting:
            self._head_came()
        elif self._head_timer is None:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(Refusal(400, "bad_http", "this is not a valid HTTP request"))

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._too_slow)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(Refusal(408, "slow_head", "the request did not arrive in time"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer outside the application, and close."""
        if self.transport.is_closing():
            return
        headers = {
            "content-type": "application/json", "content-length": str(len(refusal.body)), "connection": "close",
            **refusal.headers,
        }  # fmt: skip
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is already under way
            for event in (
                h11.Response(status_code=refusal.status, headers=list(headers.items())),
                h11.Data(data=refusal.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, draining before it ends: it reports not ready, and only later accepts no more."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
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
        """Return whether it is time to take no more."""
        drained = self._service.options.drain_seconds
        if self._asked_at is not None and time.monotonic() - self._asked_at >= drained:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take every connection that the system has taken, and what it asks; only then close."""
        for listener in sockets or ():
            door.keep_newcomers_out(listener)
        for _ in range(2):  # what the first one accepts is known after the second
            await asyncio.sleep(_QUEUE_SECONDS)
        end = time.monotonic() + _LAST_CALL_SECONDS
        while any(not getattr(one, "cycle", None) for one in self.server_state.connections):
            if self.force_exit or time.monotonic() > end:  # connected, and asks nothing
                break
            await asyncio.sleep(_QUEUE_SECONDS / 5)
        await super().shutdown(sockets)


def configuration(app: Any, options: Options) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    limits = {
        "head_timeout": options.head_timeout,
        "answer_timeout": options.body_timeout,
        "max_connections": options.max_connections,
    }
    return uvicorn.Config(
        app,
        http=type("Protocol", (PatientProtocol,), limits),
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
    listener = door.listen(options)
    app = create(models, options, notify)
    service: Service = app.state.service
    config = configuration(app, options)
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

    try:
        Server(config, service, started).run(sockets=[listener])
    except SystemExit:  # how uvicorn reports that the application did not start
        raise service.failure or ServeError("The service did not start.") from None
    finally:
        listener.close()
    notify("all accepted requests have been answered")
