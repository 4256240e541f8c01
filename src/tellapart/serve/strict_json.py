"""JSON from strangers: read within limits, and only if it is unambiguous. Standard library only.

Refused, with 400: what is not UTF-8, duplicate keys, NaN and the infinities (also as 1e999), nesting deeper than
Python reads, numbers of thousands of digits, more items than the caller expects (memory grows with them, not with
bytes). Unescaped line breaks and tabs inside strings are accepted, contrary to JSON: the command base64 breaks its
lines, and shells keep them.
"""

from __future__ import annotations

import json
import math
from typing import Any

from tellapart.serve.refusal import Refusal


def loads(content: bytes, max_items: int) -> Any:
    """Parse JSON. ``max_items``: most commas and opening brackets. Raises Refusal."""
    if content.count(b",") + content.count(b"[") + content.count(b"{") > max_items:
        raise _bad(f"the JSON has more than {max_items} items")
    try:
        return json.loads(
            content.decode("utf-8"),
            strict=False,
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise _bad("the JSON is not UTF-8") from None
    except RecursionError:
        raise _bad("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _bad(f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # Python refuses to convert numbers of thousands of digits
        raise _bad("the JSON has a number of too many digits") from None


def mapping(value: Any, what: str) -> dict[str, Any]:
    """Return ``value``, which must be a JSON object. Raises Refusal."""
    if not isinstance(value, dict):
        raise _bad(f"{what} must be a JSON object")
    return value


def _bad(reason: str) -> Refusal:
    return Refusal(400, "bad_json", reason)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _bad("the JSON has a key twice in one object")
    return content


def _constant(name: str) -> Any:
    raise _bad(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _bad("the JSON has a number that is too large")
    return value
