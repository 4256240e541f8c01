"""Alignment of pictures whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

from tellapart.data.health.alignment import align
from tellapart.data.health.near_copies import FLIPS


def _picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (64, 64))
    smooth = gaussian_filter(noise, 3, mode="wrap")
    return 128 + 45 * smooth / smooth.std()


def _pair(seed: int, matrix: np.ndarray, shift: tuple[float, float], gain: float = 1) -> np.ndarray:
    """Two thumbnails of one scene, the second seen through an affine map (y, x) about the middle."""
    scene = _picture(seed)
    views = []
    for m, s, g in ((np.eye(2), (0, 0), 1), (matrix, shift, gain)):
        offset = 32 - m @ np.array([15.5, 15.5]) + np.array(s)
        views.append(128 + g * (affine_transform(scene, m, offset, output_shape=(32, 32), order=3) - 128))
    return np.clip(np.stack(views), 0, 255).astype(np.uint8).reshape(2, -1)


ONE = np.array([[0, 1]])
ANGLE = np.radians(2)
MAPS = {
    "shift": (np.eye(2), (0.8, -1.2)),
    "scale": (np.eye(2) * 0.94, (0.0, 0.0)),
    "rotation": (np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]), (0.0, 0.0)),
    "all": (np.array([[0.96, 0.03], [-0.02, 0.97]]), (0.6, 0.4)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("gain", [1.0, 0.7])
def test_a_known_motion_is_found(name: str, gain: float) -> None:
    matrix, shift = MAPS[name]
    found = align(_pair(3, matrix, shift, gain), ONE, np.zeros(1, dtype=np.int64))
    # second(W(x)) = first(x): the inverse of the map that made the second
    inverse = np.linalg.inv(matrix)
    moved = -inverse @ np.array(shift)
    edge = 15.5 * (inverse - np.eye(2))
    expected = [moved[1], moved[0], edge[1, 1], edge[1, 0], edge[0, 1], edge[0, 0]]
    assert np.allclose(found.motion[0], expected, atol=0.15)
    assert found.score[0] > 0.98 - 0.02 * np.abs(expected).sum() - 0.03
    assert found.contrast[0] == pytest.approx(gain, rel=0.15)


@pytest.mark.parametrize("number", range(len(FLIPS)))
def test_a_flipped_second_picture_is_flipped_back(number: int) -> None:
    across, down = FLIPS[number]
    first = _pair(5, np.eye(2), (0, 0))[0].reshape(32, 32)
    second = first[:: -1 if down else 1, :: -1 if across else 1]
    thumbs = np.stack([first, second]).reshape(2, -1)
    scores = align(thumbs, ONE.repeat(len(FLIPS), axis=0), np.arange(len(FLIPS))).score
    assert scores[number] > 0.99
    assert np.delete(scores, number).max() < 0.6


def test_different_pictures_and_plain_ones_do_not_fit() -> None:
    thumbs = np.stack([np.clip(_picture(n)[:32, :32], 0, 255) for n in range(40)]).astype(np.uint8)
    thumbs = np.concatenate([thumbs.reshape(40, -1), np.full((2, 1_024), 99, np.uint8)])
    pairs = np.array([(i, j) for i in range(42) for j in range(i)])
    found = align(thumbs, pairs, np.zeros(len(pairs), dtype=np.int64))
    assert found.score.max() < 0.7
    assert found.score[-1] == 0
    assert np.isfinite(found.motion).all()


def test_brightness_is_the_difference_of_means() -> None:
    thumbs = _pair(7, np.eye(2), (0, 0))
    thumbs[1] = np.clip(thumbs[0].astype(int) + 20, 0, 255)
    assert align(thumbs, ONE, np.zeros(1, dtype=np.int64)).brightness[0] == pytest.approx(20, abs=1)


def test_no_pairs() -> None:
    assert align(_pair(1, np.eye(2), (0, 0)), np.zeros((0, 2), int), np.zeros(0, int)).score.shape == (0,)
