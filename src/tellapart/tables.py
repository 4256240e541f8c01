"""Tables as CSV that any program may open: no cell is a formula, and every line end inside a cell is quoted.

A spreadsheet computes a cell that begins with ``=``, ``+``, ``-`` or ``@``, and such a cell may start a program. Names
of files and classes come from anybody, so a text that begins like that gets an apostrophe before it, as spreadsheets
mark text; numbers stay as they are. `rows` takes it away again. Standard library only.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.I)


class _Sink(Protocol):
    def write(self, text: str, /) -> Any: ...


class Writer:
    """Writes rows to a text stream that was opened with ``newline=""``; ``end`` ends each."""

    def __init__(self, stream: _Sink, end: str = "\n") -> None:
        self._stream, self._end = stream, end
        self._csv = csv.writer(self, lineterminator="\r\n")  # with this end both characters are quoted

    def write(self, line: str) -> None:
        """Take a line from the csv module."""
        self._stream.write(line[:-2] + self._end)

    def writerow(self, values: Iterable[Any]) -> None:
        """Write one row."""
        self._csv.writerow([guarded(value) for value in values])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)


def guarded(value: Any) -> Any:
    """Return a cell's value so that no spreadsheet computes it."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value


def plain(cell: str) -> str:
    """Return what `guarded` was given."""
    return cell[1:] if _GUARDED.match(cell) else cell


def rows(stream: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table that `Writer` wrote, by the names of the first."""
    for row in csv.DictReader(stream):
        yield {key: plain(value or "") for key, value in row.items() if isinstance(key, str)}
