"""Copies of one picture: byte for byte, or resized, saved again, slightly cropped.

Works on the table of `measure`; reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tellapart.data.health.measure import Table
from tellapart.data.health.result import Group, image_at
from tellapart.data.samples import Samples

Pairs = npt.NDArray[np.int64]  # [P, 2]

HASH_RADIUS = 7  # bits of 64; measured on re-encoded, halved and slightly cropped photographs
BANDS = 4
PAIR_BUDGET = 200_000_000  # comparisons of hashes (about 10 s)


def find_duplicates(
    samples: Samples, table: Table, rows: npt.NDArray[np.int64]
) -> tuple[tuple[Group, ...], bool]:
    """Return the groups of copies, those across splits first, and whether the search was complete."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(rows) == 0:
        return (), True
    _, first, of_content = np.unique(table["content"], return_index=True, return_inverse=True)
    pairs, complete = near_pairs(table["hash"][first], _Alike(table, first))
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(first), len(first)))
    _, component = connected_components(edges, directed=False)
    group_of = component[of_content]
    groups = []
    repeated = np.flatnonzero(np.bincount(group_of) > 1)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], repeated)
    ends = np.searchsorted(group_of[order], repeated, side="right")
    for start, end in zip(starts, ends, strict=True):
        members = order[start:end]
        images = tuple(image_at(samples, rows[m], table["content"][m].decode()) for m in members)
        groups.append(Group(images, exact=len({image.content for image in images}) == 1))
    groups.sort(key=lambda g: (-g.differing("split", False), -g.differing("label", False), not g.exact))
    return tuple(groups), complete


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    alike: Callable[[Pairs], npt.NDArray[np.bool_]] | None = None,
    radius: int = HASH_RADIUS,
    budget: int = PAIR_BUDGET,
) -> tuple[Pairs, bool]:
    """Return the pairs i < j whose hashes differ in at most ``radius`` bits, int64 [P, 2], and whether all.

    Multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
    CVPR 2012): two hashes within 7 bits agree in one of four 16-bit bands but for one bit at most, so only
    entries of equal or one-bit-different bands are compared. ``alike`` keeps some of a batch of pairs.
    Small buckets come first; after ``budget`` comparisons the search stops and says so.
    """
    if not 0 <= radius < 2 * BANDS:
        raise ValueError(f"radius is {radius}; it must be from 0 to {2 * BANDS - 1}")
    probes = [0] if radius < BANDS else [0, *(1 << bit for bit in range(16))]
    share = budget // (BANDS * len(probes))
    found = [np.zeros((0, 2), dtype=np.int64)]
    complete = True
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=1 << 16)
        starts = np.cumsum(counts) - counts
        for probe in probes:
            buckets = np.flatnonzero(counts)
            buckets = buckets[(counts[buckets ^ probe] > 0) & (buckets <= buckets ^ probe)]
            sizes = counts[buckets] * counts[buckets ^ probe]
            by_size = np.argsort(sizes, kind="stable")
            buckets, sizes = buckets[by_size], sizes[by_size]
            allowed = int(np.searchsorted(np.cumsum(sizes), share, side="right"))
            complete = complete and allowed == len(buckets)
            for chunk in _chunks(buckets[:allowed], sizes[:allowed]):
                i, j = _cross(chunk, probe, order, starts, counts)
                near = (i < j) if probe == 0 else (i != j)
                near &= _ones(hashes[i] ^ hashes[j]) <= radius
                pairs = np.stack([np.minimum(i, j)[near], np.maximum(i, j)[near]], axis=1)
                found.append(pairs if alike is None else pairs[alike(pairs)])
    return np.unique(np.concatenate(found), axis=0), complete


def _chunks(buckets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut ``buckets`` so that each part makes about 250,000 comparisons (25 MB), or is one bucket."""
    if len(buckets):
        parts = np.cumsum(sizes) // 250_000
        yield from np.split(buckets, np.flatnonzero(np.diff(parts)) + 1)


def _cross(
    buckets: npt.NDArray[np.int64],
    probe: int,
    order: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return all pairs of an entry of bucket b and one of bucket b ^ probe, for every b of ``buckets``."""
    others = buckets ^ probe
    sizes = counts[buckets] * counts[others]
    which = np.repeat(np.arange(len(buckets)), sizes)
    within = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    a, b = np.divmod(within, counts[others][which])
    return order[starts[buckets][which] + a], order[starts[others][which] + b]


def _ones(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Count the bits that are set (numpy has this from version 2 only)."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    counts: npt.NDArray[np.uint8] = table[np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)].sum(
        axis=1, dtype=np.uint8
    )
    return counts


class _Alike:
    """Verifies candidates on their thumbnails: correlation of luma, and mean difference of luma and colour.

    In some data all images are much alike (trousers at 28x28), so the correlation must also be far above
    what random pairs of the same data have.
    """

    def __init__(self, table: Table, rows: npt.NDArray[np.intp]) -> None:
        self.table, self.rows = table, rows  # views only: the table is large
        self.mean = table["luma"].mean(axis=1, dtype=np.float32)[rows]
        random = np.random.default_rng(0).integers(0, len(rows), (4_000, 2))
        random = random[random[:, 0] != random[:, 1]]
        usual = np.quantile(self._compare(random)[0], 0.999) if len(rows) > 100 else 0.0
        self.required = max(0.95, 1 - (1 - usual) / 5)

    def __call__(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Return which pairs [P, 2] show nearly the same picture, bool [P]."""
        # The difference of means is a lower bound of the mean difference, and quick to compare.
        result: npt.NDArray[np.bool_] = np.abs(self.mean[pairs[:, 0]] - self.mean[pairs[:, 1]]) < 24
        left = np.flatnonzero(result)
        for part in np.split(left, range(4_000, len(left), 4_000)):
            correlation, difference = self._compare(pairs[part])
            result[part] = (correlation > self.required) & (difference < 24)
        return result

    def _compare(self, pairs: Pairs) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the correlation and the larger mean difference of each pair, float32 [P]."""
        sides = [self.rows[pairs[:, side]] for side in (0, 1)]
        x, y = (self.table["luma"][side].astype(np.float32) for side in sides)
        colours = [self.table["colour"][side].astype(np.float32) for side in sides]
        colour = np.abs(colours[0] - colours[1]).mean(axis=1)
        difference = np.maximum(np.abs(x - y).mean(axis=1), colour)
        x -= x.mean(axis=1, keepdims=True)
        y -= y.mean(axis=1, keepdims=True)
        spread = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        # Below a deviation of 2 there is nothing in a picture that could agree.
        correlation = np.where(spread < 4 * 256, 0, (x * y).sum(axis=1) / np.maximum(spread, 1))
        return correlation.astype(np.float32), difference
