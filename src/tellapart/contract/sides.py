"""The size of an input: one number for a square, or height and width.

A square is always one number, so that files for it are the same as before other shapes were supported. Standard
library only.
"""

from __future__ import annotations

from typing import Any

Size = int | tuple[int, int]
"""Pixels: of both sides, or height and width if they differ."""


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def of(height: int, width: int) -> Size:
    """Return the size of an input of these sides."""
    return height if height == width else (height, width)


def normal(size: Size) -> Size:
    """Return a size as it is written: a square as one number."""
    return of(*sides(size))


def shortest(size: Size) -> int:
    """Return the shorter side."""
    return min(sides(size))


def longest(size: Size) -> int:
    """Return the longer side."""
    return max(sides(size))


def words(size: Size) -> str:
    """Return a size for a message, height first, such as ``224x320``."""
    height, width = sides(size)
    return f"{height}x{width}"


def plain(size: Size) -> Any:
    """Return a size as JSON and YAML hold it: a number, or a list of height and width."""
    return size if isinstance(size, int) else list(size)
