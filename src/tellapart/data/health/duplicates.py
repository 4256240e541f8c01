"""Copies of one picture: byte for byte, or resized, saved again, brighter, cropped, turned, mirrored.

Works on the table of `measure`; reads no file. `near_copies` finds candidates, `alignment` compares them.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tellapart.data.health.alignment import Alignment, align
from tellapart.data.health.measure import Table
from tellapart.data.health.near_copies import FLIPS, Pairs, find_candidates
from tellapart.data.health.result import Group, image_at
from tellapart.data.samples import Samples

SCORE = 0.85  # of `alignment.Alignment`; looked at on photographs and on CIFAR-10, see docs/data.md
COLOUR = 40  # mean difference of the colour (red less green, green less blue), in levels
COLOUR_COST = 0.0075  # of the likeness, for each level of that difference
MIRRORED_COST = 0.1  # of the likeness: what is symmetric fits its mirror image too
VERIFIED = 1_000_000  # candidates that are compared (about 10 minutes of one core)


@dataclass(frozen=True)
class NearCopies:
    """Pairs i < j [P, 2], what was changed in each, its likeness (float32 [P]), and whether all were compared."""

    pairs: Pairs
    changes: list[tuple[str, ...]]
    likeness: npt.NDArray[np.float32]
    complete: bool


def find_duplicates(
    samples: Samples, table: Table, rows: npt.NDArray[np.int64]
) -> tuple[tuple[Group, ...], bool]:
    """Return the groups of copies, those across splits first, and whether the search was complete.

    Among near copies the surest come first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(rows) == 0:
        return (), True
    _, first, of_content = np.unique(table["content"], return_index=True, return_inverse=True)
    labels = (
        samples.labels
    )  # -1 for all where an image can have several: pairs of any two images are compared then
    near = near_copies(table[first], labels[rows[first]])
    pairs = near.pairs
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(first), len(first)))
    _, component = connected_components(edges, directed=False)
    kinds: dict[int, set[str]] = collections.defaultdict(set)
    likeness = np.zeros(len(first), dtype=np.float32)
    np.maximum.at(likeness, component[pairs[:, 0]], near.likeness)
    for place, words in zip(component[pairs[:, 0]].tolist(), near.changes, strict=True):
        kinds[place].update(words)
    group_of = component[of_content]
    groups = []
    repeated = np.flatnonzero(np.bincount(group_of) > 1)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], repeated)
    ends = np.searchsorted(group_of[order], repeated, side="right")
    for number, start, end in zip(repeated.tolist(), starts, ends, strict=True):
        members = order[start:end]
        images = tuple(image_at(samples, rows[m], table["content"][m].decode()) for m in members)
        exact = len({image.content for image in images}) == 1
        changes = tuple(word for word in WORDS if word in kinds[number])
        groups.append(Group(images, exact, changes, 1.0 if exact else float(likeness[number])))
    groups.sort(key=_urgency)
    return tuple(groups), near.complete


def _urgency(group: Group) -> tuple[bool, bool, bool, float]:
    """Return by what groups are sorted: across splits, with other labels, exact, then by likeness."""
    return (
        not group.differing("split", False),
        not group.differing("label", False),
        not group.exact,
        -group.likeness,
    )


def near_copies(table: Table, labels: npt.NDArray[np.int64]) -> NearCopies:
    """Return the pairs of near copies.

    In some data all images are much alike (trousers at 28x28), so the score must also be far above what
    random pairs of one class have.
    """
    thumbs = table["luma"]
    found = find_candidates(thumbs)
    pairs, flips, complete = found.pairs, found.flips, found.complete
    if len(pairs) > VERIFIED:
        kept = np.sort(np.random.default_rng(0).permutation(len(pairs))[:VERIFIED])
        pairs, flips, complete = pairs[kept], flips[kept], False
    fit = align(thumbs, pairs, flips)
    good = np.flatnonzero(_near(fit, table, labels, pairs, flips))
    # A symmetric picture fits mirrored too: the better fit counts, at a tie the unmirrored one.
    good = good[np.lexsort((flips[good], -fit.score[good], pairs[good, 1], pairs[good, 0]))]
    good = good[np.r_[True, (np.diff(pairs[good], axis=0) != 0).any(axis=1)][: len(good)]]
    likeness = likeness_of(table, pairs[good], flips[good], fit.score[good])
    changes = [_changes(fit, table, pairs[n], int(flips[n]), n) for n in good.tolist()]
    return NearCopies(pairs[good], changes, likeness, complete)


def are_near(
    table: Table, labels: npt.NDArray[np.int64], pairs: Pairs, flips: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which of ``pairs`` are near copies, by the same rule; of the table only luma, colour and grey count."""
    return _near(align(table["luma"], pairs, flips), table, labels, pairs, flips, usual=300)


def _near(
    fit: Alignment,
    table: Table,
    labels: npt.NDArray[np.int64],
    pairs: Pairs,
    flips: npt.NDArray[np.int64],
    usual: int = 2_000,
) -> npt.NDArray[np.bool_]:
    """``usual``: pairs of one class that are compared, to know what is usual."""
    near: npt.NDArray[np.bool_] = fit.score > max(SCORE, 1 - (1 - _usual_score(table, labels, usual)) / 5)
    near[near] = _alike_in_colour(table, pairs[near], flips[near])
    return near


def likeness_of(
    table: Table, pairs: Pairs, flips: npt.NDArray[np.int64], score: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return how surely each pair is one picture, float32 [P] up to 1: what to look at first.

    The score, which says nothing of colours, less what speaks for another picture of the same thing.
    """
    cost = COLOUR_COST * _colour_difference(table, pairs, flips) + MIRRORED_COST * (flips > 0)
    likeness: npt.NDArray[np.float32] = np.maximum(0, score - cost).astype(np.float32)
    return likeness


def _usual_score(table: Table, labels: npt.NDArray[np.int64], count: int) -> float:
    """Return a score that few of the pairs of one class reach by chance; 0 for small data.

    From the median and the lower tail, since the upper one may hold copies; at most 0.95.
    """
    if len(table) <= 100:
        return 0.0
    generator = np.random.default_rng(0)
    order = np.lexsort((generator.random(len(labels)), labels))
    neighbours = np.stack([order[:-1], order[1:]], axis=1)
    neighbours = neighbours[labels[order[:-1]] == labels[order[1:]]]
    if len(neighbours) == 0:
        return 0.0
    chosen = np.sort(generator.permutation(len(neighbours))[:count])
    score = align(table["luma"], neighbours[chosen], np.zeros(len(chosen), dtype=np.int64)).score
    low, middle = np.quantile(score, (0.1, 0.5))
    return float(min(0.95, middle + 3 * (middle - low)))


def _colours(table: Table, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return red less green and green less blue, float32 [P, 4, 4, 2]."""
    cells = table["colour"][rows].reshape(-1, 4, 4, 3).astype(np.float32)
    return cells[..., :2] - cells[..., 1:]


def _colour_difference(table: Table, pairs: Pairs, flips: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the mean difference of the colours of each pair, in levels, float32 [P]."""
    one, other = (_colours(table, pairs[:, n]) for n in (0, 1))
    for number, (across, down) in enumerate(FLIPS):
        chosen = flips == number
        other[chosen] = other[chosen][:, :: -1 if down else 1, :: -1 if across else 1]
    difference: npt.NDArray[np.float32] = np.abs(one - other).mean(axis=(1, 2, 3))
    return difference


def _alike_in_colour(table: Table, pairs: Pairs, flips: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which pairs have nearly the same colours, or of which one picture has none, bool [P]."""
    grey = table["grey"][pairs[:, 0]] | table["grey"][pairs[:, 1]]
    alike: npt.NDArray[np.bool_] = grey | (_colour_difference(table, pairs, flips) < COLOUR)
    return alike


WORDS = (
    "mirrored", "upside down", "turned by 180°", "cropped", "shifted", "turned", "brighter or darker",
    "more or less contrast", "without colour", "resized", "saved again",
)  # fmt: skip


def _changes(
    fit: Alignment, table: Table, pair: npt.NDArray[np.int64], flip: int, at: int
) -> tuple[str, ...]:
    """Return in words what differs between two near copies; it cannot be told which came first."""
    one, other = table[pair[0]], table[pair[1]]
    x, y, scale_x, shear_x, shear_y, scale_y = fit.motion[at].tolist()
    aspect = one["width"] / max(one["height"], 1)
    turned = abs(shear_y / aspect - shear_x * aspect) / 2 / 15.5  # radians
    tests = {
        "mirrored": flip == 1,
        "upside down": flip == 2,
        "turned by 180°": flip == 3,
        "cropped": max(abs(scale_x), abs(scale_y)) > 0.2,  # 1.3 % of a side
        "shifted": max(abs(scale_x), abs(scale_y)) <= 0.2 and max(abs(x), abs(y)) > 0.5,
        "turned": turned > np.radians(0.75),
        "brighter or darker": abs(fit.brightness[at]) > 8,
        "more or less contrast": abs(np.log(max(fit.contrast[at], 0.01))) > 0.15,
        "without colour": bool(one["grey"] != other["grey"]),
    }
    words = tuple(word for word, is_so in tests.items() if is_so)
    if (one["width"], one["height"]) != (other["width"], other["height"]) and "cropped" not in words:
        words += ("resized",)
    return words or ("saved again",)
