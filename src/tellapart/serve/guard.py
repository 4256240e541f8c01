"""What stands before every route: the key, the names that the service goes by, whose pages may ask, the count of
requests, and the end.

Also handles a body that was not read: the rest is read for a moment, so that the sender sees the answer, and then the
connection is closed. Plain ASGI. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tellapart.serve.origins import PERMISSION, Origins
from tellapart.serve.refusal import Refusal
from tellapart.serve.service import Service

OPEN = frozenset({"/", "/docs", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_log = logging.getLogger("tellapart.serve")
_LINGER_SECONDS = 2.0
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]
_FOREIGN = (b"cross-site", b"same-site")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})  # which change nothing here
_LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """An ASGI application around another one. Paths in `OPEN` need no key."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._key = service.options.api_key.encode()
        self._origins = Origins(service.options.allow_origin)
        self._local_only = service.options.loopback and not self._key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server sends no body
            scope = {**scope, "method": "GET"}
        metrics = self._service.metrics
        started = time.monotonic()
        headers = dict(scope["headers"])
        exchange = _Exchange(self._service, headers, receive, send, self._origins.told(headers))
        metrics.in_flight.inc()
        try:
            refusal = self._refusal(scope, headers)
            if refusal is None and self._origins.asks(scope["method"], headers):
                await exchange.permit()
            elif refusal is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await exchange.refuse(refusal)
        except Exception:
            if exchange.status:  # the answer has begun: the connection can only be closed
                raise
            _log.exception("a request failed")
            await exchange.refuse(Refusal(500, "internal", "the service failed on this request"))
        finally:
            metrics.in_flight.dec()
            if exchange.status:
                metrics.request(_route(scope), exchange.status, time.monotonic() - started)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        if b"transfer-encoding" in headers and (
            b"content-length" in headers or scope["http_version"] != "1.1"
        ):
            return Refusal(
                400, "bad_http", "give Content-Length or, in HTTP/1.1, Transfer-Encoding, not both"
            )
        asks = self._origins.asks(scope["method"], headers)  # which a browser does without the key
        if self._key and scope["path"] not in OPEN and not asks and not self._knows_key(headers):
            return Refusal(401, "api_key", "the API key is missing or wrong")
        if self._local_only:
            # A web page whose host name was made to resolve to this machine (DNS rebinding) still sends its own name.
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name and name not in _LOCAL and name != self._service.options.host:
                return Refusal(421, "host", "this service answers only to names of this machine")
            # And a page of another name may have a form or a script that posts here, though it gets no answer.
            foreign = not self._origins.allows(headers) and _from_a_foreign_page(headers, host)
            if scope["method"] not in _READING and foreign:
                return Refusal(403, "origin", "this service takes nothing from the pages of others")
        if asks and not self._origins.allows(headers):
            return Refusal(
                403, "origin", "pages of this origin are not among those that --allow-origin names"
            )
        return None

    def _knows_key(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        return hmac.compare_digest(given, self._key)


def _from_a_foreign_page(headers: Mapping[bytes, bytes], host: str) -> bool:
    """Return whether a browser says that a page of another origin sent a request.

    By Sec-Fetch-Site, or by Origin where a browser sends no such header. Programs send neither. An Origin of ``null``
    is a page that hides its own.
    """
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if site is not None:
        return site in _FOREIGN
    return origin is not None and origin.decode("latin-1").lower() not in (
        f"http://{host}",
        f"https://{host}",
    )


class _Exchange:
    """One request and its answer: what was read of the one, and what the other's status was."""

    def __init__(
        self,
        service: Service,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        told: list[tuple[bytes, bytes]],
    ) -> None:
        self._service, self._receive, self._send, self._told = service, receive, send, told
        self.status = 0
        length = headers.get(b"content-length", b"0")
        self._length = int(length[:20]) if length.isdigit() else 0
        self._unread = b"transfer-encoding" in headers or self._length > 0
        self._asked_first = b"expect" in headers
        self._doubtful = b"transfer-encoding" in headers and b"content-length" in headers

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        self._asked_first = False
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *_HEADERS, *self._told]
            if (self._unread and not await self._read_on()) or self._doubtful or self._service.draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer by a refusal."""
        self._service.metrics.refused(refusal.code)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(refusal.body)),
            **refusal.headers,
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": refusal.body})

    async def permit(self) -> None:
        """Answer a browser that asks whether a page may ask."""
        await self.send({"type": "http.response.start", "status": 204, "headers": PERMISSION})
        await self.send({"type": "http.response.body", "body": b""})

    async def _read_on(self) -> bool:
        """Read and forget the rest of a body, for a while; return whether all of it came."""
        left = 2 * self._service.options.max_bytes
        # the sender waits for a sign to begin, or has far too much
        if self._asked_first or self._length > left:
            return False
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
        return not self._unread


def _route(scope: Scope) -> str:
    """Return the pattern of the route that answered; paths of strangers must not become labels."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "other"))
