"""Where a model looks: heat maps by occlusion, which need no gradients and so work with every format.

A grey square is moved over the image; where the probability of the class falls, the model used what is there (Zeiler
and Fergus 2014, arXiv:1311.2901, section 4.2). Knows nothing of HTTP.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tellapart.contract import Pixels

_REACH = 1.0  # how far a square reaches beyond its cell on each side, in cells


def cells(grid: int) -> int:
    """Return how many images a heat map of grid x grid cells computes: the image itself and each square."""
    return grid * grid + 1


def _square(row: int, column: int, grid: int, sides: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the square that is centred on a cell (a rectangle, as the image is)."""

    def span(place: int, length: int) -> slice:
        side = length / grid
        return slice(
            max(0, round((place - _REACH / 2) * side)),
            min(length, max(1, round((place + 1 + _REACH / 2) * side))),
        )

    return span(row, sides[0]), span(column, sides[1])


def occluded(image: Pixels, grid: int, start: int, end: int) -> Pixels:
    """Return the squares ``start`` to ``end`` of a heat map: levels [H, W, C] -> [end - start, H, W, C].

    A square has the image's mean colour; squares go row by row, each twice as wide as a cell.
    """
    colour = image.mean(axis=(0, 1))
    colour = colour.round().astype(np.uint8) if image.dtype == np.uint8 else colour
    images = np.repeat(image[None], end - start, axis=0)
    for place in range(start, end):
        rows, columns = _square(*divmod(place, grid), grid, image.shape[:2])
        images[place - start, rows, columns] = colour
    return images


def heat(
    whole: float, covered: npt.NDArray[np.float64], grid: int, sides: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Return float64 [grid, grid]: how much the probability falls when a cell is covered, on average.

    ``whole``: the class's probability for the image as it is; ``covered``: [grid * grid] with each square. A cell's
    value is the mean over the squares that cover its centre; it is negative if covering raises the probability.
    """
    drops = whole - covered.reshape(grid, grid)
    total, count = np.zeros((grid, grid)), np.zeros((grid, grid))
    down, across = ((np.arange(grid) + 0.5) * side / grid for side in sides)
    for row in range(grid):
        for column in range(grid):
            rows, columns = _square(row, column, grid, sides)
            inside = np.outer(
                (down >= rows.start) & (down < rows.stop),
                (across >= columns.start) & (across < columns.stop),
            )
            total += inside * drops[row, column]
            count += inside
    result: npt.NDArray[np.float64] = total / np.maximum(count, 1)
    return result
