"""JSON from strangers: read within limits, and only if it is unambiguous.

Refused, with 400: what is not UTF-8, more items than the caller expects (memory grows with them, not with bytes), and
what `contract.strict` refuses. Unescaped line breaks and tabs inside strings are accepted, contrary to JSON: the
command base64 breaks its lines, and shells keep them.
"""

from __future__ import annotations

from typing import Any

from tellapart.contract import strict
from tellapart.serve.refusal import Refusal


def loads(content: bytes, max_items: int) -> Any:
    """Parse JSON. ``max_items``: most commas and opening brackets. Raises Refusal."""
    if content.count(b",") + content.count(b"[") + content.count(b"{") > max_items:
        raise _bad(f"the JSON has more than {max_items} items")
    try:
        return strict.read(content.decode("utf-8"), controls=True)
    except UnicodeDecodeError:
        raise _bad("the JSON is not UTF-8") from None
    except strict.StrictError as error:
        raise _bad(f"the JSON cannot be read: {error}") from None


def mapping(value: Any, what: str) -> dict[str, Any]:
    """Return ``value``, which must be a JSON object. Raises Refusal."""
    if not isinstance(value, dict):
        raise _bad(f"{what} must be a JSON object")
    return value


def _bad(reason: str) -> Refusal:
    return Refusal(400, "bad_json", reason)
