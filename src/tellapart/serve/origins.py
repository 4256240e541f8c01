"""Pages of other origins that may send requests: the headers by which a browser allows their scripts (CORS).

No origin is allowed unless it is named. The key is a header, never a cookie, and is still required; whether a web page
may reach a private network is for the browser's user to allow, not for the service. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from tellapart.errors import ServeError

Headers = Mapping[bytes, bytes]
ANY = "*"
_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HOST = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
_METHODS = b"GET, HEAD, POST, PUT"
_ASKED_WITH = b"Authorization, Content-Type, Deadline-Ms, Inference-Header-Content-Length, X-API-Key"
_TOLD = b"Inference-Header-Content-Length, Retry-After"
_REMEMBER_SECONDS = b"600"


def normal(text: str) -> str:
    """Return an origin as browsers write it (lower case, no default port). Raises ServeError."""
    if text == ANY:
        return text
    try:
        parts = urlsplit(text)
        scheme, port = parts.scheme, parts.port
        host = (parts.hostname or "").encode("idna" if not text.isascii() else "ascii").decode("ascii")
    except ValueError:  # UnicodeError is one
        scheme, port, host = "", None, ""
    if ":" in host:
        host = f"[{host}]"
    beside = (
        parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc if host else True
    )
    if beside or not _SCHEME.fullmatch(scheme) or not _HOST.fullmatch(host):
        raise ServeError(
            f"--allow-origin is {text!r}; it must be one page's origin, such as https://pages.example or "
            "http://127.0.0.1:3000, or * for all; repeat the option for further origins."
        )
    return f"{scheme}://{host}" + (f":{port}" if port is not None and port != _PORTS.get(scheme) else "")


class Origins:
    """The origins that are allowed."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(normal(one).encode() for one in allowed)
        self._any = ANY.encode() in self._allowed

    def allows(self, headers: Headers) -> bool:
        """Return whether a request says that it comes from an allowed origin."""
        origin = headers.get(b"origin")
        return origin is not None and (self._any or origin in self._allowed)

    def asks(self, method: str, headers: Headers) -> bool:
        """Return whether a request is a browser's preflight; never if no origin is allowed."""
        return bool(
            self._allowed
            and method == "OPTIONS"
            and b"origin" in headers
            and b"access-control-request-method" in headers
        )

    def told(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers of every answer to a request."""
        if not self._allowed:
            return []
        result = [] if self._any else [(b"vary", b"Origin")]
        if self.allows(headers):
            origin = b"*" if self._any else headers[b"origin"]
            result += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _TOLD),
            ]
        return result


PERMISSION = [
    (b"access-control-allow-methods", _METHODS),
    (b"access-control-allow-headers", _ASKED_WITH),
    (b"access-control-max-age", _REMEMBER_SECONDS),
]
"""The further headers of the answer to a preflight."""
