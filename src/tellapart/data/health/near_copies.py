"""Candidates for near copies: pairs of pictures whose coarse structure is alike, also after mirroring.

Works on thumbnails of 32x32 alone. The signature of a picture is its lowest frequencies (a two-dimensional DCT):
for up to EXHAUSTIVE pictures all pairs are compared by them, in blocks; beyond, hashes of their signs are
looked up in bands. Whether candidates are copies is decided in `alignment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Thumbs = npt.NDArray[np.uint8]  # [N, 1024], 32x32
Pairs = npt.NDArray[np.int64]  # [P, 2]
Floats = npt.NDArray[np.float32]

SIDE = 32
EXHAUSTIVE = 65_536  # pictures; 60,000 take about a minute of one core
# The exhaustive search's candidates of each picture: at most so many, of signatures with a higher cosine than that.
# A crop of a tenth brings the cosine of a copy down to 0.55, but leaves the copy among the two nearest.
UPRIGHT = ((6, 0.7), (2, 0.55))
MIRRORED = ((3, 0.7),)  # for each way of mirroring
BITS = 256
BAND_COUNT = 32
BAND_POOL = 64  # lowest frequencies; the higher ones change too much under a small crop
RADIUS = 27  # of the 96 lowest frequencies' bits; of random pairs 1 in 10,000 lies within
RADIUS_BITS = 96
BUCKET = 64  # entries of a band that agree; what lies in fuller ones is compared with its neighbours only
PAIR_BUDGET = 200_000_000

_FREQUENCIES = sorted((u * u + v * v, max(u, v), u, v) for u in range(17) for v in range(17) if u + v)[:BITS]
_ROWS = np.array([frequency[2] for frequency in _FREQUENCIES])
_COLUMNS = np.array([frequency[3] for frequency in _FREQUENCIES])
FLIPS = ((False, False), (True, False), (False, True), (True, True))  # left and right, up and down


@dataclass(frozen=True)
class Candidates:
    """Pairs i < j [P, 2], how the second has to be flipped (index in FLIPS, int64 [P]), and whether all."""

    pairs: Pairs
    flips: npt.NDArray[np.int64]
    complete: bool


def find_candidates(thumbs: Thumbs, exhaustive: int = EXHAUSTIVE, budget: int = PAIR_BUDGET) -> Candidates:
    """Return the pairs of ``thumbs`` (uint8 [N, 1024]) that may show one picture."""
    if len(thumbs) <= exhaustive:
        found = _all_pairs(signatures(thumbs))
        return _unique(found, len(thumbs), complete=True)
    hashes = hash_bits(thumbs)
    pairs, flips, complete = banded_pairs(hashes, budget)
    return Candidates(pairs, flips, complete)


def _basis(count: int) -> Floats:
    """Return the first ``count`` rows of the orthonormal DCT-II of 32 values."""
    place = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    rows = np.cos(np.arange(count)[:, None] * place) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    basis: Floats = rows.astype(np.float32)
    return basis


def _spectra(thumbs: Thumbs, count: int) -> Iterator[tuple[slice, Floats]]:
    """Yield the lowest ``count`` x ``count`` frequencies of some thumbnails at a time."""
    basis = _basis(count)
    for start in range(0, len(thumbs), 4_096):
        part = slice(start, start + 4_096)
        pictures = thumbs[part].reshape(-1, SIDE, SIDE).astype(np.float32)
        yield part, np.asarray(basis @ pictures @ basis.T, dtype=np.float32)


def signatures(thumbs: Thumbs, count: int = 8) -> Floats:
    """Return the low frequencies of each thumbnail as unit vectors, float32 [N, count²].

    In photographs amplitudes fall as 1/f; multiplied by the root of f, the finer ones count too, but less.
    """
    u, v = np.mgrid[:count, :count]
    weights = ((u * u + v * v) ** 0.25).astype(np.float32)
    result = np.empty((len(thumbs), count * count), dtype=np.float32)
    for part, spectra in _spectra(thumbs, count):
        vectors = (spectra * weights).reshape(len(spectra), -1)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        result[part] = np.where(length < 8, 0, vectors / np.maximum(length, 1))  # nothing to be seen
    return result


def _signs(flip: tuple[bool, bool], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Floats:
    """Return by what mirroring multiplies each frequency: the odd ones change their sign."""
    odd = (columns if flip[0] else 0 * columns) + (rows if flip[1] else 0 * rows)
    signs: Floats = np.where(odd % 2, -1, 1).astype(np.float32)
    return signs


def _all_pairs(vectors: Floats) -> list[tuple[Pairs, int]]:
    """Return the candidates i < j of each way of mirroring, as many for each i as UPRIGHT and MIRRORED say."""
    side = int(np.sqrt(vectors.shape[1]))
    u, v = (axis.ravel() for axis in np.mgrid[:side, :side])
    found = []
    step = max(1, min(1_024, 4_000_000 // max(1, len(vectors))))
    for number, flip in enumerate(FLIPS):
        flipped = vectors * _signs(flip, u, v)
        for start in range(0, len(vectors), step):
            alike = vectors[start : start + step] @ flipped[start:].T
            for row in range(len(alike)):
                alike[row, : row + 1] = 0
            for count, cosine in MIRRORED if any(flip) else UPRIGHT:
                found.append((_best(alike, count, cosine) + start, number))
    return found


def _best(alike: Floats, count: int, cosine: float) -> Pairs:
    """Return where a row has its ``count`` largest values above ``cosine``, [P, 2]."""
    above = alike > cosine
    full = np.flatnonzero(above.sum(axis=1) > count)
    if len(full):
        least = np.partition(alike[full], -count, axis=1)[:, -count]
        above[full] = alike[full] >= least[:, None]
    return np.argwhere(above)


def _unique(found: list[tuple[Pairs, int]], count: int, complete: bool) -> Candidates:
    keys = [(pairs[:, 0] * count + pairs[:, 1]) * len(FLIPS) + flip for pairs, flip in found]
    values = np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)
    both, flips = np.divmod(values, len(FLIPS))
    return Candidates(np.stack(np.divmod(both, max(1, count)), axis=1), flips, complete)


# --- Very many pictures: bands of bits --------------------------------------------------------------------


def hash_bits(thumbs: Thumbs) -> npt.NDArray[np.uint8]:
    """Return 256 bits for each thumbnail, uint8 [N, 32]: the signs of its lowest frequencies, lowest first."""
    result = np.empty((len(thumbs), BITS // 8), dtype=np.uint8)
    for part, spectra in _spectra(thumbs, 17):
        result[part] = np.packbits(spectra[:, _ROWS, _COLUMNS] > 0, axis=1)
    return result


def banded_pairs(
    hashes: npt.NDArray[np.uint8], budget: int = PAIR_BUDGET
) -> tuple[Pairs, npt.NDArray[np.int64], bool]:
    """Return pairs i < j of like hashes [P, 2], their flips [P], and whether all that bands hold was compared.

    Locality-sensitive hashing by sampled bits (Indyk and Motwani, "Approximate Nearest Neighbors", STOC 1998):
    each of BAND_COUNT bands is a fixed random choice of the lowest frequencies' bits, about log2(N) of them, so
    that a band brings each entry together with about one other by chance. Memory: some 100 bytes for each entry.
    """
    width = int(np.clip(np.ceil(np.log2(max(2, len(hashes)))), 12, 24))
    generator = np.random.default_rng(0)
    signs = [np.packbits(_signs(flip, _ROWS, _COLUMNS) < 0) for flip in FLIPS]
    share = budget // (BAND_COUNT * len(FLIPS))
    found: list[tuple[Pairs, int]] = []
    complete = True
    for _ in range(BAND_COUNT):
        chosen = np.sort(generator.choice(BAND_POOL, width, replace=False))
        keys = _keys(hashes, chosen)
        order = np.argsort(keys, kind="stable").astype(np.int64)
        ordered = keys[order]
        for number, sign in enumerate(signs):
            mask = int(_keys(sign[None], chosen)[0])
            whole = True
            for pairs in _agreeing(ordered, order, mask, share):
                if pairs is None:
                    whole = False
                    continue
                distance = _ones(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]] ^ sign)
                found.append((pairs[distance <= RADIUS], number))
            complete = complete and whole
        if sum(len(pairs) for pairs, _ in found) > 2_000_000:
            found = _compact(found, len(hashes))
    merged = _unique(found, len(hashes), complete)
    return merged.pairs, merged.flips, complete


def _compact(found: list[tuple[Pairs, int]], count: int) -> list[tuple[Pairs, int]]:
    merged = _unique(found, count, complete=True)
    return [(merged.pairs[merged.flips == number], number) for number in range(len(FLIPS))]


def _keys(hashes: npt.NDArray[np.uint8], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return the ``chosen`` bits of each hash as a number, uint32 [N]."""
    keys = np.zeros(len(hashes), dtype=np.uint32)
    for bit in chosen.tolist():
        keys = (keys << np.uint32(1)) | ((hashes[:, bit // 8] >> np.uint8(7 - bit % 8)) & np.uint8(1))
    return keys


def _agreeing(
    ordered: npt.NDArray[np.uint32], order: npt.NDArray[np.int64], mask: int, budget: int
) -> Iterator[Pairs | None]:
    """Yield pairs i < j of entries whose keys agree when ``mask`` is applied to one; None: some were left out.

    Of a bucket with more than BUCKET entries each is compared with BUCKET of them.
    """
    partner = ordered ^ np.uint32(mask)
    start = np.searchsorted(ordered, partner, side="left")
    size = np.searchsorted(ordered, partner, side="right") - start
    if (size > BUCKET).any():
        yield None
        # An own window for each entry, so that copies of one picture still meet.
        spare = np.maximum(size - BUCKET, 0)
        start = start + np.minimum(
            spare, np.maximum(0, np.arange(len(start)) - start - BUCKET // 2).clip(0, spare)
        )
        size = np.minimum(size, BUCKET)
    ends = np.cumsum(size)
    if len(ends) and ends[-1] > 2 * budget:
        yield None
        size = np.where(ends > 2 * budget, 0, size)
        ends = np.cumsum(size)
    cuts = np.searchsorted(ends, np.arange(1_000_000, int(ends[-1]) if len(ends) else 0, 1_000_000))
    for part in np.split(np.arange(len(size)), cuts):
        which = np.repeat(part, size[part])
        within = np.arange(len(which)) - np.repeat(np.cumsum(size[part]) - size[part], size[part])
        pairs = np.stack([order[which], order[start[which] + within]], axis=1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def _ones(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Count the bits that are set among the lowest frequencies, int64 [P] (numpy has this from 2 only)."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    counts: npt.NDArray[np.int64] = table[values[:, : RADIUS_BITS // 8]].sum(axis=1, dtype=np.int64)
    return counts
