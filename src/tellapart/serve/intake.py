"""Reading request bodies: limited in size, in time, and in the memory that all of them take together.

Knows nothing of what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from tellapart.serve.refusal import Refusal


class Intake:
    """Reads bodies of at most ``max_bytes``, together at most ``max_held``, each within ``timeout`` seconds."""

    def __init__(self, max_bytes: int, max_held: int, timeout: float) -> None:
        self._max_bytes, self._max_held, self._timeout = max_bytes, max_held, timeout
        self.held = 0
        """Bytes of all bodies held at the moment."""

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield a request's whole body, counted as held until the end. Raises Refusal, ClientDisconnect."""
        self._check_head(request)
        parts: list[bytes] = []
        try:
            await self._read(request, parts)
            if len(parts) != 1:
                parts[:] = [b"".join(parts)]
            yield parts[0]
        finally:
            self.held -= sum(map(len, parts))

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        """Append a body's parts to ``parts``, each counted as held. Raises Refusal, ClientDisconnect."""
        size = 0
        try:
            async with asyncio.timeout(self._timeout):
                async for chunk in _chunks(request):
                    parts.append(chunk)
                    size += len(chunk)
                    self.held += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large()
                    if self.held > self._max_held:
                        raise Refusal(
                            503,
                            "overloaded",
                            "the service has too many requests in memory; try again",
                            retry_after=1,
                        )
        except TimeoutError:
            raise Refusal(
                408, "slow_body", f"the body did not arrive within {self._timeout:g} seconds"
            ) from None

    def _check_head(self, request: Request) -> None:
        headers = request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "content_encoding", "compressed bodies are not accepted")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"the body is larger than {self._max_bytes} bytes")


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]
