"""Why a request is not answered as asked: a status, a short code for programs and a sentence for people.

Standard library only.
"""

from __future__ import annotations

import json
from typing import Any


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the program
    """A request that is refused; ``reason`` never contains a path or a stack trace."""

    def __init__(
        self, status: int, code: str, reason: str, retry_after: float | None = None, **more: Any
    ) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason
        self.retry_after, self.more = retry_after, more

    @property
    def body(self) -> bytes:
        """The answer's body as JSON."""
        return dumps({"error": self.reason, "code": self.code, **self.more})

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers besides type and length."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def dumps(content: Any) -> bytes:
    """Return JSON as UTF-8; never NaN, which is not JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a lone surrogate came from the client, and goes back as a question mark
    return text.encode("utf-8", "replace")
