"""A choice: the value of a field that was open, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tellapart import numerals


@dataclass(frozen=True)
class Choice:
    """``field`` by its dotted name, such as ``input.size``; ``reason`` in one line.

    ``matters``: whether a log shows it. It does where the data or the machine decided it, and not where nearly every
    run has this value.
    """

    field: str
    value: Any
    reason: str
    matters: bool = False

    @property
    def option(self) -> str:
        """The field and its value, as people read them."""
        return f"{self.field} {numerals.option(self.value)}"

    def __str__(self) -> str:
        return f"{self.option}: {self.reason}"
