"""A choice: the value of a field that was open, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """``field`` by its dotted name, such as ``input.size``; ``reason`` in one line."""

    field: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field} {self.value}: {self.reason}"
