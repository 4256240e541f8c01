"""Limits that uvicorn has no options for: how many clients connect, and how long a head and an answer may take.

They stand beside uvicorn's protocol and do not change it: `connect` is called for each new connection, and `look`
checks all of them ten times a second. Knows nothing of the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tellapart.serve.options import Options
from tellapart.serve.refusal import Refusal

_TOO_MANY = Refusal(503, "overloaded", "too many connections; try again", retry_after=1)
_TOO_SLOW = Refusal(408, "slow_head", "the request did not arrive in time")


class Bounds:
    """Refuses connections above ``max_connections``, and ends those that are slower than the options allow."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._heads: dict[H11Protocol, float] = {}  # since when a head is awaited
        self._answers: dict[
            H11Protocol, tuple[float, int]
        ] = {}  # since when nothing is read, and what is left

    def connect(self, **given: Any) -> asyncio.Protocol:
        """Return the protocol of a new connection: uvicorn's, or one that only refuses."""
        if len(given["server_state"].connections) >= self._options.max_connections:
            return _Refusing()
        return H11Protocol(**given)

    def look(self, connections: Collection[Any]) -> None:
        """Refuse clients that send no complete head in time, and cut off those that read nothing of an answer."""
        now = time.monotonic()
        self._heads = {one: self._heads.get(one, now) for one in connections if _awaits_head(one)}
        for one, since in self._heads.items():
            if now - since > self._options.head_timeout:
                _refuse(one.transport, _TOO_SLOW)
        known, self._answers = self._answers, {}
        for one in connections:
            left = one.transport.get_write_buffer_size()
            since, before = known.get(one, (now, left))
            if left:
                self._answers[one] = (since if left >= before else now, left)
        for one, (since, _) in self._answers.items():
            if now - since > self._options.body_timeout:
                one.transport.abort()


class _Refusing(asyncio.Protocol):
    """Answers by 503, whatever is asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _refuse(cast(asyncio.Transport, transport), _TOO_MANY)


def _awaits_head(one: H11Protocol) -> bool:
    """Return whether a connection is to send its first request, or has begun to send another."""
    between = one.conn.their_state is h11.IDLE and one.conn.our_state is h11.IDLE
    begun = one.cycle is None or bool(one.conn.trailing_data[0])
    return between and begun and not one.transport.is_closing()


def _refuse(transport: asyncio.Transport, refusal: Refusal) -> None:
    """Answer outside the application, and close."""
    headers = {
        "content-type": "application/json", "content-length": str(len(refusal.body)), "connection": "close",
        **refusal.headers,
    }  # fmt: skip
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    transport.write("\r\n".join([*lines, "", ""]).encode() + refusal.body)
    transport.close()
