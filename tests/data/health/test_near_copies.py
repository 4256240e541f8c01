"""The search for candidates, against a comparison of all pairs; the mirrored hash against a mirrored picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter, zoom

from tellapart.data.health import near_copies
from tellapart.data.health.near_copies import (
    BAND_POOL,
    FLIPS,
    RADIUS,
    RADIUS_BITS,
    banded_pairs,
    find_candidates,
    hash_bits,
    signatures,
)


def _thumbs(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    cells = generator.integers(0, 256, (count, 8, 8)).repeat(4, axis=1).repeat(4, axis=2)
    noise = generator.integers(-9, 10, cells.shape)
    return np.clip(cells + noise, 0, 255).astype(np.uint8).reshape(count, 1_024)


def _flipped(thumbs: np.ndarray, flip: tuple[bool, bool]) -> np.ndarray:
    across, down = flip
    pictures = thumbs.reshape(-1, 32, 32)[:, :: -1 if down else 1, :: -1 if across else 1]
    return np.ascontiguousarray(pictures).reshape(len(thumbs), 1_024)


def test_signatures_are_weighted_dct_coefficients() -> None:
    thumbs = _thumbs(5)
    spectra = dctn(thumbs.reshape(-1, 32, 32).astype(float), axes=(1, 2), norm="ortho")[:, :8, :8]
    u, v = np.mgrid[:8, :8]
    expected = (spectra * np.hypot(u, v) ** 0.5).reshape(5, -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(signatures(thumbs), expected, atol=1e-5)


@pytest.mark.parametrize("number", range(len(FLIPS)))
def test_the_hash_of_a_flipped_picture_follows_from_its_own(number: int) -> None:
    thumbs = _thumbs(20)
    signs = near_copies._signs(FLIPS[number], near_copies._ROWS, near_copies._COLUMNS)
    own, flipped = hash_bits(thumbs), hash_bits(_flipped(thumbs, FLIPS[number]))
    differ = np.unpackbits(own ^ flipped ^ np.packbits(signs < 0), axis=1)
    assert differ.mean() < 0.002  # a coefficient of nearly 0 may fall on either side


@pytest.mark.parametrize("exhaustive", [1_000, 0])
@pytest.mark.parametrize("number", range(len(FLIPS)))
def test_planted_copies_are_candidates_in_either_search(number: int, exhaustive: int) -> None:
    thumbs = _thumbs(200)
    copies = _flipped(thumbs[:20], FLIPS[number])
    copies = np.clip(copies.astype(int) + np.random.default_rng(1).integers(-9, 10, copies.shape), 0, 255)
    found = find_candidates(np.concatenate([thumbs, copies.astype(np.uint8)]), exhaustive)
    assert found.complete
    assert (found.pairs[:, 0] < found.pairs[:, 1]).all()
    triples = {(i, j, f) for (i, j), f in zip(found.pairs.tolist(), found.flips.tolist(), strict=True)}
    assert len(triples) == len(found.pairs)
    assert {(n, 200 + n, number) for n in range(20)} <= triples
    assert len(triples) < 60  # of 24,000 pairs, in four ways


def test_the_exhaustive_search_finds_what_a_plain_comparison_finds() -> None:
    thumbs = _thumbs(60)
    thumbs[30:] = np.clip(thumbs[:30].astype(int) + np.arange(30)[:, None] * 3 - 40, 0, 255)
    vectors = signatures(thumbs)
    alike = np.triu(vectors @ vectors.T, 1)
    found = find_candidates(thumbs)
    upright = {tuple(pair) for pair in found.pairs[found.flips == 0].tolist()}
    expected = {
        (i, int(j))
        for i, (count, cosine) in itertools.product(range(60), near_copies.UPRIGHT)
        for j in np.argsort(-alike[i])[:count]
        if alike[i, j] > cosine
    }
    assert upright == expected
    assert {(n, n + 30) for n in range(30)} <= upright


@pytest.mark.parametrize("number", range(len(FLIPS)))
def test_of_many_alike_each_has_as_many_candidates_as_its_way_of_mirroring_allows(number: int) -> None:
    generator = np.random.default_rng(3)
    half = generator.integers(0, 256, (4, 4)).repeat(4, axis=0).repeat(4, axis=1)
    symmetric = np.block([[half, half[:, ::-1]], [half[::-1], half[::-1, ::-1]]])
    thumbs = np.clip(symmetric + generator.normal(0, 9, (40, 32, 32)), 0, 255).astype(np.uint8)
    found = find_candidates(thumbs.reshape(40, 1_024))
    each = np.bincount(found.pairs[found.flips == number, 0], minlength=40)
    most = (near_copies.MIRRORED if number else near_copies.UPRIGHT)[0][0]
    assert each.tolist() == [min(most, 39 - n) for n in range(40)]


def test_a_copy_that_is_but_a_little_alike_is_a_candidate_where_nothing_is_more_alike() -> None:
    """A larger crop moves the low frequencies far; of two hundred others none comes as near."""
    generator = np.random.default_rng(4)
    scenes = gaussian_filter(generator.normal(0, 1, (200, 64, 64)), (0, 6, 6), mode="nearest")
    scenes = 128 + 50 * scenes / scenes.std(axis=(1, 2), keepdims=True)
    middle = scenes.reshape(200, 32, 2, 32, 2).mean(axis=(2, 4))
    cropped = np.stack([zoom(scene[7:57, 7:57], 32 / 50, order=1) for scene in scenes[:20]])
    thumbs = np.clip(np.concatenate([middle, cropped]), 0, 255).astype(np.uint8).reshape(220, 1_024)
    vectors = signatures(thumbs)
    cosine = (vectors[:20] * vectors[200:]).sum(axis=1)
    low = np.flatnonzero((cosine > 0.57) & (cosine < 0.69))
    assert len(low) > 3
    found = find_candidates(thumbs)
    upright = {tuple(pair) for pair in found.pairs[found.flips == 0].tolist()}
    assert sum((n, 200 + n) in upright for n in low.tolist()) > 0.7 * len(low)


def test_bands_find_near_hashes_and_nothing_beyond_the_radius() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (5_000, 32), dtype=np.uint8)
    changed = np.zeros((50, 256), dtype=bool)
    for row in changed:
        row[generator.choice(BAND_POOL, 5, replace=False)] = True
    hashes[50:100] = hashes[:50] ^ np.packbits(changed, axis=1)
    pairs, flips, complete = banded_pairs(hashes)
    assert complete
    found = {tuple(pair) for pair in pairs[flips == 0].tolist()}
    assert len({(n, 50 + n) for n in range(50)} & found) >= 49
    distance = np.unpackbits(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]], axis=1)[:, :RADIUS_BITS].sum(axis=1)
    assert (distance[flips == 0] <= RADIUS).all()


def test_full_buckets_are_compared_in_part_and_that_is_told() -> None:
    pairs, flips, complete = banded_pairs(np.zeros((600, 32), dtype=np.uint8))
    assert not complete
    upright = pairs[flips == 0]
    assert len(upright) <= 600 * near_copies.BUCKET
    assert set(np.unique(upright)) == set(range(600))  # each meets another


def test_the_budget_of_comparisons_holds() -> None:
    _, _, complete = banded_pairs(np.zeros((300, 32), dtype=np.uint8), budget=1_000)
    assert not complete


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("exhaustive", [10, -1])
def test_nothing_and_one_have_no_pairs(count: int, exhaustive: int) -> None:
    found = find_candidates(_thumbs(count), exhaustive)
    assert found.pairs.shape == (0, 2)
    assert found.flips.shape == (0,)


def test_plain_pictures_are_no_candidates() -> None:
    assert len(find_candidates(np.full((30, 1_024), 128, dtype=np.uint8)).pairs) == 0
