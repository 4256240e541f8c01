"""The quick look for near copies across splits: finds what was saved again, and nothing in unrelated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tellapart.data.health.quick import OTHERS, near_leak
from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples, content_hash
from tellapart.data.stores import cache
from tellapart.preprocess import Preprocessing

CONTRACT = Preprocessing(32, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.25,) * 3)


def _pictures(count: int, seed: int, size: int = 32) -> Any:
    """Pictures of large smooth shapes, each its own."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), 3)) for one in small])


def _set(pixels: Any, split: str, labels: Any = None) -> ImageSet:
    count = len(pixels)
    hashes = np.array([content_hash(image) for image in pixels], dtype=object)
    labels = np.zeros(count, np.int64) if labels is None else labels
    paths = np.array([f"{split}/{n}" for n in range(count)], dtype=object)
    samples = Samples(paths, labels, np.full(count, split, object), ("a", "b"), hashes=hashes)
    return ImageSet(samples, cache.from_array(pixels, hashes), np.arange(count))


def _again(image: Any) -> Any:
    picture = Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(ImageEnhance.Brightness(picture).enhance(1.1))


@pytest.mark.parametrize("copies", [0, 1, 5])
def test_counts_mirrored_brighter_copies(copies: int) -> None:
    train, test = _pictures(200, 0), _pictures(60, 1)
    for place in range(copies):
        test[place] = _again(train[place])
    found = near_leak(_set(train, "train"), _set(test, "test"), CONTRACT)
    assert found is not None
    assert (found.count, found.looked, found.among) == (copies, 60, 200)
    assert found.serious == (copies >= 2)
    assert found.example == (("test/0", "train/0") if copies else ("", ""))


def test_copies_byte_for_byte_and_of_other_classes_do_not_count() -> None:
    train = _pictures(100, 0)
    same = near_leak(_set(train, "train"), _set(train[:50], "test"), CONTRACT)
    assert same is None  # nothing else is left to look at
    test = np.stack([_again(image) for image in train[:50]])
    other = near_leak(_set(train, "train"), _set(test, "test", np.ones(50, np.int64)), CONTRACT)
    assert other is not None
    assert other.count == 0


def test_looks_at_a_bounded_number() -> None:
    found = near_leak(
        _set(_pictures(50, 0, 8), "train"), _set(_pictures(OTHERS + 99, 1, 8), "test"), CONTRACT
    )
    assert found is not None
    assert found.looked == OTHERS


def test_pictures_for_random_crops_are_compared_with_what_the_contract_keeps() -> None:
    contract = Preprocessing(32, 3, "crop", "bilinear", 0.8, (0.5,) * 3, (0.25,) * 3)
    train = _pictures(100, 0, 40)
    test = np.stack([_again(image[4:36, 4:36]) for image in train[:20]])
    found = near_leak(_set(train, "train"), _set(test, "test"), contract)
    assert found is not None
    assert found.count == 20


def test_without_other_images_there_is_nothing_to_find() -> None:
    assert near_leak(_set(_pictures(5, 0), "train"), None, CONTRACT) is None
