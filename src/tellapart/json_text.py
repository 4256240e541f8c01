"""JSON for any reader: what is not a finite number is null, since JSON has no word for it. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(content: Any, **options: Any) -> str:
    """Return ``content`` as JSON text, as `json.dumps` does with ``options``."""
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(content), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """Return plain values with None for every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
