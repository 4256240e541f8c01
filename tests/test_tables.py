"""CSV that a spreadsheet may open: no cell is computed, and what was written is read again."""

from __future__ import annotations

import csv
import io
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tellapart import tables

FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1+1", "＠x", "-", "=", "''=x", "-1.png"]  # fmt: skip
HARMLESS = ["cat.png", "a=b", "-1", "+1.5e3", "-inf", "nan", "", "'quoted", "'", "1-2", "a\rb", "a\nb", 'a"b', "a,b", "猫", " =1"]  # fmt: skip


def written(rows: list[list[Any]], end: str) -> str:
    stream = io.StringIO(newline="")
    tables.Writer(stream, end).writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_is_written_is_read_again_and_is_no_formula(end: str) -> None:
    cells = FORMULAS + HARMLESS
    text = written([["path", "number"], *([cell, 5] for cell in cells)], end)
    assert text.endswith(end)
    raw = list(csv.reader(io.StringIO(text, newline="")))[1:]  # any reader: CR and LF are inside quotes
    assert len(raw) == len(cells)
    for cell, (found, number) in zip(cells, raw, strict=True):
        assert number == "5"
        assert found == ("'" + cell if cell in FORMULAS else cell)
    assert [row["path"] for row in tables.rows(io.StringIO(text, newline=""))] == cells


@hypothesis.given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), min_size=1, max_size=4)
)
def test_any_text_survives(cells: list[str]) -> None:
    text = written([[f"c{n}" for n in range(len(cells))], cells], "\n")
    (row,) = tables.rows(io.StringIO(text, newline=""))
    assert list(row.values()) == cells
    for cell in cells:
        guarded = tables.guarded(cell)
        assert tables.plain(guarded) == cell
        assert guarded[:1] not in tuple("=@\t\r")


def test_values_that_are_no_texts_stay() -> None:
    assert written([[-1, 2.5, None, True]], "\n") == "-1,2.5,,True\n"
