"""Batches: every position of the order once, for any batch size and number of processes, from any step on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tellapart.data import loader
from tellapart.data.loader import ImageSet, RawBatch, batches, source_sizes
from tellapart.data.samples import Samples
from tellapart.data.stores import cache
from tellapart.data.stores.workers import Threads

Sets = Callable[[bool], ImageSet]
SIDES = [(5, 3), (2, 6), (4, 4), (1, 1), (6, 2)]


def image(number: int) -> np.ndarray:
    """A picture that tells which it is, of one of five shapes."""
    height, width = SIDES[number % len(SIDES)]
    return np.full((height, width, 3), number, np.uint8)


def make(count: int, ragged: bool, folder: Any) -> ImageSet:
    """Images 0 … count - 1 of a store in reverse order, so that rows and positions differ."""
    samples = Samples(
        paths=np.array([str(n) for n in range(count)], dtype=object),
        labels=np.arange(count) % 7,
        splits=np.full(count, "train", dtype=object),
        classes=tuple("abcdefg"),
    )
    if ragged:
        pixels = np.arange(count, dtype=np.uint8)[::-1].reshape(-1, 1, 1, 1)
        stored = Samples(samples.paths, samples.labels, samples.splits, samples.classes, pixels=pixels)
        store = cache.open_or_build(
            stored, lambda one, box: image(int(one[0, 0, 0])), "test", 3, folder, Threads(1)
        )
        assert store.images_NHWC is None
    else:
        pixels = np.stack([np.full((4, 4, 3), n, np.uint8) for n in range(count)])[::-1]
        store = cache.from_array(pixels, np.full(count, "", dtype=object))
    return ImageSet(samples, store, np.arange(count)[::-1].copy())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    made = {ragged: make(40, ragged, tmp_path_factory.mktemp("store")) for ragged in (False, True)}
    return lambda ragged: made[ragged]


ORDERS = st.lists(st.integers(0, 39), min_size=1, max_size=90).map(lambda rows: np.array(rows, np.int64))


@given(
    order=ORDERS,
    batch_size=st.integers(1, 33),
    world=st.integers(1, 5),
    ragged=st.booleans(),
    data=st.data(),
)
def test_the_order_is_covered_exactly_once(
    order: np.ndarray,
    batch_size: int,
    world: int,
    ragged: bool,
    data: st.DataObject,
    sets: Sets,
) -> None:
    images = sets(ragged)
    steps = -(-len(order) // batch_size)
    first = data.draw(st.integers(0, steps))
    ranks = [list(batches(images, order, batch_size, first, rank, world)) for rank in range(world)]
    assert all([step for step, _ in rank] == list(range(first, steps)) for rank in ranks)
    for parts in zip(*ranks, strict=True):
        step = parts[0][0]
        wanted = order[step * batch_size : (step + 1) * batch_size]
        seen: list[int] = []
        for _, part in parts:
            numbers = _read(part, len(wanted), ragged)
            assert numbers == wanted[part.start : part.start + len(numbers)].tolist()
            if part.filler:  # too few images for all processes: one that does not count, to stay in step
                assert len(wanted) < world
                assert len(numbers) == 1
            else:
                assert part.start == len(seen)
                seen += numbers
        assert seen == wanted.tolist()
        shares = [0 if part.filler else len(part.labels) for _, part in parts]
        assert max(shares) - min(shares) <= 1
        assert min(len(part.labels) for _, part in parts) > 0


def _read(part: RawBatch, total: int, ragged: bool) -> list[int]:
    """Check one process's slice of a batch, and return the numbers of its images."""
    assert part.count == total
    assert part.pixels.dtype == torch.uint8
    sizes = source_sizes(part)
    assert sizes.shape == (total, 2)
    numbers = part.pixels[:, 0, 0, 0].tolist()
    for place, number in enumerate(numbers):
        picture = part.pixels[place]
        height, width = sizes[part.start + place].tolist()
        assert (height, width) == (SIDES[number % 5] if ragged else (4, 4))
        assert (picture[:height, :width] == number).all()
        assert not picture[height:].any()
        assert not picture[:, width:].any()
    assert part.labels.tolist() == [number % 7 for number in numbers]
    return numbers


@given(order=ORDERS, batch_size=st.integers(1, 33), step=st.integers(0, 90), ragged=st.booleans())
def test_going_on_gives_what_would_have_come(
    order: np.ndarray, batch_size: int, step: int, ragged: bool, sets: Sets
) -> None:
    whole = list(batches(sets(ragged), order, batch_size))
    rest = list(batches(sets(ragged), order, batch_size, step))
    assert [number for number, _ in rest] == [number for number, _ in whole][step:]
    for (_, one), (_, other) in zip(whole[step:], rest, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)


def unmapped(images: ImageSet) -> ImageSet:
    """Return the set as it is where the store is too large to be mapped: read image by image, a batch ahead."""
    assert isinstance(images.store, cache.ImageStore)
    return dataclasses.replace(images, store=dataclasses.replace(images.store, mapped=None, _file=[]))


@pytest.mark.parametrize("world", [1, 3])
def test_a_store_that_is_not_mapped_gives_the_same(world: int, sets: Sets) -> None:
    order, mapped = np.random.default_rng(0).permutation(40), sets(True)
    assert mapped.store.ready
    assert not unmapped(mapped).store.ready
    for rank in range(world):
        ours, theirs = (
            batches(images, order, 7, rank=rank, world=world) for images in (mapped, unmapped(mapped))
        )
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(source_sizes(one), source_sizes(other))


def test_reading_ahead_stops_where_the_reader_stops(sets: Sets) -> None:
    reading = batches(unmapped(sets(True)), np.arange(40), 4)
    step, batch = next(reading)
    assert step == 0
    assert len(batch.labels) == 4
    reading.close()  # must not hang


def test_an_error_while_reading_ahead_comes_through(sets: Sets) -> None:
    reading = batches(unmapped(sets(True)), np.array([0, 1, 2, 99]), 2)
    next(reading)
    with pytest.raises(IndexError):
        next(reading)


@pytest.mark.parametrize("ragged", [False, True])
def test_selecting_keeps_samples_and_images_together(ragged: bool, sets: Sets) -> None:
    images = sets(ragged)
    for chosen in (np.array([7, 3, 3]), np.arange(40) % 9 == 2):
        part = images.select(chosen)
        wanted = np.arange(40)[chosen]
        assert part.samples.paths.tolist() == [str(n) for n in wanted]
        assert part.batch(np.arange(len(part))).pixels[:, 0, 0, 0].tolist() == wanted.tolist()


def test_a_batch_moves_with_its_labels(sets: Sets) -> None:
    batch = sets(True).batch(np.array([1, 2]))
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.sizes is not None
    assert moved.sizes.device.type == "cpu"


@pytest.mark.parametrize("first_step", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_steps_that_are_read_together_are_those_read_alone(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, batch_size: int, first_step: int
) -> None:
    monkeypatch.setattr(loader, "WINDOW_BYTES", 7 * 48)  # of seven images
    images, order = sets(False), np.random.default_rng(0).permutation(40)
    windows = set()
    for index, batch in batches(images, order, batch_size, first_step, epoch=5):
        alone = images.batch(order[index * batch_size : (index + 1) * batch_size])
        assert torch.equal(batch.pixels, alone.pixels)
        assert torch.equal(batch.labels, alone.labels)
        assert (batch.count, batch.start, batch.epoch, batch.filler) == (alone.count, 0, 5, False)
        np.testing.assert_array_equal(batch.ours, alone.ours)
        assert batch.window is not None
        windows.add(batch.window)
        made = batch.window.part(batch.within, lambda pixels: pixels.float() / 2)
        assert torch.equal(made, alone.images.float() / 2)
    together = batch_size * max(1, 7 // batch_size)
    assert len(windows) == -(-max(0, 40 - first_step * batch_size) // together)
