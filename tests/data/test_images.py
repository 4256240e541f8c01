"""From samples to images: by the contract, what is left out and why, and what is reported about them."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tests.pictures import photograph

from tellapart.data.loader import ImageSet, batches
from tellapart.data.samples import Samples, content_hash
from tellapart.data.stores import cache, decoded, images
from tellapart.data.stores.images import (
    Bad,
    augmentation_sources,
    channel_statistics,
    evaluation_images,
    look,
    write_bad_images,
)
from tellapart.data.stores.streaming import StreamedStore
from tellapart.errors import DataError, TellapartError
from tellapart.preprocess import Preprocessing, fit_short_side, load
from tellapart.spec import DataSpec


def contract(
    resize: Any = "squash", channels: Any = 3, size: int = 12, fraction: float = 1.0
) -> Preprocessing:
    return Preprocessing(size, channels, resize, "bilinear", fraction, (0.5,) * channels, (0.5,) * channels)


def table(paths: list[str], root: str = "", **changes: Any) -> Samples:
    count = len(paths)
    labels, splits = np.arange(count) % 2, np.full(count, "train", dtype=object)
    return Samples(np.array(paths, dtype=object), labels, splits, ("a", "b"), root, **changes)


def files(root: Path, contents: list[bytes]) -> Samples:
    root.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (root / f"{number}.jpg").write_bytes(content)
    return table([f"{number}.jpg" for number in range(len(contents))], str(root))


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    return DataSpec(cache_dir=str(tmp_path / "cache"), workers=1)


SHAPES = [(31, 17), (40, 40), (12, 12), (9, 33), (64, 50)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("policy", "fraction"), [("squash", 1.0), ("crop", 0.875), ("letterbox", 1.0)])
def test_evaluation_images_are_the_contracts(
    policy: str, fraction: float, channels: int, tmp_path: Path, spec: DataSpec
) -> None:
    """Bit for bit what a file's bytes give directly, for odd sizes and all EXIF orientations."""
    contents = [photograph(n, *SHAPES[n % 5], orientation=n % 8 + 1) for n in range(8)]
    samples = files(tmp_path / "in", contents)
    wanted = contract(policy, channels, fraction=fraction)
    found, bad = evaluation_images(samples, wanted, spec)
    assert bad == []
    assert found.store.images_NHWC is not None, "all of one size: one tensor"
    batch = found.batch(np.arange(8))
    assert batch.labels.tolist() == samples.labels.tolist()
    for row, content in enumerate(contents):
        assert np.array_equal(batch.images[row].numpy(), load(content, wanted))
        assert found.samples.hashes is not None
        assert found.samples.hashes[row] == content_hash(content)


def test_normalisation_does_not_decode_again(
    tmp_path: Path, spec: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and deviation come after the store; a run whose statistics are measured later finds it."""
    samples = files(tmp_path / "in", [photograph(n, 20, 14) for n in range(3)])
    calls: list[int] = []
    direct = decoded.load
    monkeypatch.setattr(decoded, "load", lambda *a, **k: calls.append(1) or direct(*a, **k))
    evaluation_images(samples, contract(), spec)
    evaluation_images(samples, dataclasses.replace(contract(), mean=(0.1, 0.2, 0.3)), spec)
    assert len(calls) == 3
    for other in (
        contract("letterbox"),
        contract(size=11),
        contract(channels=1),
        contract("crop", fraction=0.9),
    ):
        evaluation_images(samples, other, spec)
    assert len(calls) == 15


def test_sources_of_random_crops_keep_their_shape(tmp_path: Path, spec: DataSpec) -> None:
    sizes = [(100, 60), (8, 9), (30, 90)]
    samples = files(tmp_path / "in", [photograph(n, *size) for n, size in enumerate(sizes)])
    found, bad = augmentation_sources(samples, contract(size=20), spec)
    assert bad == []
    shapes = [found.store.image(row).shape[:2] for row in range(3)]
    short = round(20 * images.SOURCE_MARGIN)
    assert shapes == [(short, short * 100 // 60), (9, 8), (short * 90 // 30, short)]


def test_boxes_are_cut_from_the_upright_image(tmp_path: Path, spec: DataSpec) -> None:
    content = photograph(0, 40, 24, orientation=6)  # stands on its side: 24 wide and 40 high when upright
    samples = files(tmp_path / "in", [content] * 3)
    boxes = np.array([[2, 10, 20, 38], [np.nan] * 4, [30, 0, 39, 9]])
    found, bad = evaluation_images(dataclasses.replace(samples, boxes=boxes), contract(), spec)
    assert [item.path for item in bad] == ["2.jpg"], "outside of the upright image"
    assert np.array_equal(found.store.image(0), load(content, contract(), box=(2, 10, 20, 38)))
    assert np.array_equal(found.store.image(1), load(content, contract()))
    sources, _ = augmentation_sources(dataclasses.replace(samples, boxes=boxes), contract(size=200), spec)
    assert sources.store.image(0).shape == (28, 18, 3)


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 12])
def test_arrays_and_files_of_the_same_pixels_agree(
    colour: bool, channels: int, size: int, tmp_path: Path, spec: DataSpec
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)[: 4 if colour else 3], dtype=np.uint8)
    keys = np.array([5, 0, 3])
    of_arrays = table(["a", "b", "c"], pixels=pixels, keys=keys)
    (tmp_path / "in").mkdir()
    for row, key in enumerate(keys):
        Image.fromarray(pixels[key]).save(tmp_path / "in" / f"{row}.png")
    of_files = table(["0.png", "1.png", "2.png"], str(tmp_path / "in"))
    wanted = contract(channels=channels, size=size)
    one, other = (evaluation_images(samples, wanted, spec)[0] for samples in (of_arrays, of_files))
    assert np.array_equal(one.batch(np.arange(3)).pixels, other.batch(np.arange(3)).pixels)
    assert one.samples.hashes is not None
    assert one.samples.hashes.tolist() == [content_hash(pixels[key]) for key in keys]


def test_bad_images_are_left_out_and_listed(tmp_path: Path, spec: DataSpec) -> None:
    good = photograph(0, 20, 20)
    samples = files(tmp_path / "in", [good, b"", b"<html>404</html>", good[:400], good])
    (tmp_path / "in" / "4.jpg").unlink()
    found, bad = evaluation_images(samples, contract(), spec)
    assert found.samples.paths.tolist() == ["0.jpg"]
    assert found.batch(np.array([0])).labels.tolist() == [0]
    reasons = {item.path: item.reason for item in bad}
    assert list(reasons) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert reasons["1.jpg"] == "empty file"
    assert "HTML" in reasons["2.jpg"]
    assert "truncated" in reasons["3.jpg"]
    assert "No such file" in reasons["4.jpg"]
    write_bad_images(bad, tmp_path / "bad-images.csv")
    with open(tmp_path / "bad-images.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["path"], row["reason"]) for row in rows] == list(reasons.items())


def test_bad_images_can_be_an_error(tmp_path: Path, spec: DataSpec) -> None:
    samples = files(tmp_path / "in", [photograph(0, 20, 20), b"", b"x"])
    strict = dataclasses.replace(spec, on_bad_image="error")
    with pytest.raises(DataError, match=r"2 images cannot be used.*empty file") as caught:
        evaluation_images(samples, contract(), strict)
    assert str(tmp_path / "in" / "1.jpg") in str(caught.value)


def test_a_limit_of_pixels_is_obeyed(tmp_path: Path, spec: DataSpec) -> None:
    samples = files(tmp_path / "in", [photograph(0, 20, 20), photograph(1, 21, 20)])
    assert evaluation_images(samples, contract(), spec)[1] == []
    limited = dataclasses.replace(spec, max_pixels=400)
    bad = evaluation_images(samples, contract(), limited)[1]
    assert [item.path for item in bad] == ["1.jpg"]
    assert "21x20" in bad[0].reason


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff, \xfe.png")
    write_bad_images([Bad(name, "a, b")], tmp_path / "bad-images.csv")
    with open(tmp_path / "bad-images.csv", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert list(csv.reader(stream)) == [["path", "reason"], [name, "a, b"]]


@pytest.mark.parametrize("trouble", ["a file in the way", "a full disk", "no room allowed"])
def test_a_cache_that_cannot_be_written_is_named(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = files(tmp_path / "in", [photograph(0, 20, 20)])
    folder = tmp_path / "my cache"
    limit = 50.0
    if trouble == "a full disk":
        monkeypatch.setattr(os, "fsync", _full)
    elif trouble == "no room allowed":
        limit = 1e-9
    else:
        folder.write_text("in the way")
    with pytest.raises(TellapartError, match="my cache") as caught:
        evaluation_images(samples, contract(), DataSpec(cache_dir=str(folder), cache="on", cache_limit=limit))
    assert "cache-dir" in str(caught.value) or "cache_dir" in str(caught.value)


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("trouble", ["a full disk", "no room allowed", "off"])
@pytest.mark.parametrize("make", [evaluation_images, augmentation_sources])
def test_what_does_not_fit_is_streamed_with_the_same_pixels(
    make: Any, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [photograph(n, *SHAPES[n % 5], orientation=n % 8 + 1) for n in range(9)]
    contents[3] = b"no picture"
    samples = files(tmp_path / "in", contents)
    stored, bad = make(samples, contract(), DataSpec(cache_dir=str(tmp_path / "one")))
    if trouble == "a full disk":
        monkeypatch.setattr(os, "fsync", _full)
    limit, mode = (1e-9, "auto") if trouble == "no room allowed" else (0.0, "auto")
    spec = DataSpec(
        cache_dir=str(tmp_path / "two"),
        cache_limit=limit,
        cache="off" if trouble == "off" else mode,
        workers=2,
    )
    streamed, bad_too = make(samples, contract(), spec)
    assert isinstance(streamed.store, StreamedStore)
    assert not list((tmp_path / "two").rglob("pixels.bin"))
    assert bad == bad_too
    assert [item.path for item in bad] == ["3.jpg"]
    assert streamed.samples.hashes is not None
    assert streamed.samples.hashes.tolist() == stored.samples.hashes.tolist()
    order = np.array([5, 0, 7, 1, 2, 6, 4, 3, 5])
    for (step, one), (step_too, other) in zip(
        batches(stored, order, 2, 1), batches(streamed, order, 2, 1), strict=True
    ):
        assert step == step_too
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert (one.sizes is None) == (other.sizes is None)
        assert one.sizes is None or torch.equal(one.sizes, other.sizes)
    assert channel_statistics(stored) == channel_statistics(streamed)


def test_a_streamed_file_that_changes_is_an_error(tmp_path: Path) -> None:
    samples = files(tmp_path / "in", [photograph(n, 20, 20) for n in range(4)])
    streamed, _ = augmentation_sources(
        samples, contract(), DataSpec(cache_dir=str(tmp_path / "c"), cache="off")
    )
    (tmp_path / "in" / "2.jpg").write_bytes(photograph(9, 20, 20))
    assert streamed.batch(np.array([0, 1, 3])).images.shape[0] == 3
    with pytest.raises(DataError, match=r"2\.jpg has changed"):
        streamed.batch(np.array([1, 2]))
    (tmp_path / "in" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2\.jpg has changed.*cannot be read"):
        streamed.batch(np.array([2]))


def test_sources_of_large_jpegs_are_decoded_at_a_reduced_scale(tmp_path: Path, spec: DataSpec) -> None:
    content = photograph(0, 200, 120, orientation=6)
    samples = files(tmp_path / "in", [content, content])
    boxes = np.array([[np.nan] * 4, [0, 0, 120, 200]])
    samples = dataclasses.replace(samples, boxes=boxes)
    size = 26  # short side 30: half of 120 is enough, a quarter is not
    scaled = dataclasses.replace(contract(size=size), decode="scaled")
    found, _ = augmentation_sources(samples, scaled, spec)
    full, _ = augmentation_sources(samples, contract(size=size), spec)
    with Image.open(io.BytesIO(content)) as picture:
        picture.draft(None, (100, 60))
        assert picture.size == (100, 60)
        reduced = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(found.store.image(0), fit_short_side(reduced, 30))
    assert np.array_equal(found.store.image(1), full.store.image(1)), "boxes are in pixels of the whole"
    assert not np.array_equal(found.store.image(0), full.store.image(0))
    assert found.store.image(0).shape == full.store.image(0).shape == (50, 30, 3)


# --- What is told of the images -----------------------------------------------------------------------------


def memory(pixels: np.ndarray) -> ImageSet:
    count = len(pixels)
    return ImageSet(
        table([str(n) for n in range(count)]),
        cache.from_array(pixels, np.full(count, "", dtype=object)),
        np.arange(count),
    )


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
    )
)
def test_channel_statistics_are_those_of_all_pixels(pixels: np.ndarray) -> None:
    mean, std = channel_statistics(memory(pixels))
    flat = pixels.reshape(-1, pixels.shape[3]).astype(np.float64) / 255
    np.testing.assert_allclose(mean, flat.mean(0), atol=5.1e-5)
    np.testing.assert_allclose(std, np.maximum(flat.std(0), 1e-3), atol=5.1e-5)
    assert min(std) >= 1e-3, "images without any variation must not be divided by zero"


def test_channel_statistics_of_images_of_many_shapes(tmp_path: Path, spec: DataSpec) -> None:
    """Every pixel counts alike, whatever image it is of; a bad image and the canvas's border do not count."""
    contents = [photograph(n, *SHAPES[n % 5]) for n in range(7)]
    samples = files(tmp_path / "in", [*contents, b"bad"])
    found, bad = augmentation_sources(samples, contract(size=200), spec)
    assert len(bad) == 1
    flat = np.concatenate([np.asarray(Image.open(io.BytesIO(one))).reshape(-1, 3) for one in contents]) / 255
    mean, std = channel_statistics(found)
    np.testing.assert_allclose(mean, flat.mean(0), atol=5.1e-5)
    np.testing.assert_allclose(std, flat.std(0), atol=5.1e-5)


def test_channel_statistics_of_some_images_only() -> None:
    pixels = np.zeros((100, 1, 1, 3), np.uint8)
    pixels[::11] = 255  # with a limit of 10, exactly the rows that are taken
    assert channel_statistics(memory(pixels), limit=10)[0] == (1.0, 1.0, 1.0)


def test_looking_tells_sides_colour_and_sameness(tmp_path: Path, spec: DataSpec) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (30, 8, 9), dtype=np.uint8)
    names = [str(n) for n in range(30)]
    assert look(table(names, pixels=grey), spec) == images.Look(9, 8, True, True)
    colour = np.stack([grey] * 3, -1)
    assert look(table(names, pixels=colour), spec).grey
    colour[29, 0, 0, 1] ^= 1
    assert not look(table(names, pixels=colour), spec).grey, "the last image is looked at"
    samples = files(tmp_path / "in", [b"", photograph(1, 30, 20), photograph(2, 10, 44)])
    assert look(samples, spec) == images.Look(44, 10, False, False)
    boxes = np.array([[0, 0, 5, 5], [0, 0, 7, 6], [np.nan] * 4])
    assert look(dataclasses.replace(samples, boxes=boxes), spec).shortest == 6


def test_looking_at_bad_images_only_says_why(tmp_path: Path, spec: DataSpec) -> None:
    samples = files(tmp_path / "in", [b"", b"x"])
    with pytest.raises(DataError, match=r"None of the images.*0\.jpg: empty file"):
        look(samples, spec)


def test_progress_is_reported(tmp_path: Path, spec: DataSpec) -> None:
    samples = files(tmp_path / "in", [photograph(n, 9, 9) for n in range(5)])
    for make in (evaluation_images, augmentation_sources):
        told: list[int] = []
        make(samples, contract(), spec, told.append)
        assert sum(told) == 5
