"""Stores of float32 pixels: mapped, read image by image, streamed, decoded by processes; and their statistics."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.data.loader import batches
from tellapart.data.samples import Samples
from tellapart.data.stores import cache, images
from tellapart.data.stores.decoded import AsContracted
from tellapart.data.stores.images import augmentation_sources, channel_statistics, evaluation_images, look
from tellapart.data.stores.streaming import StreamedStore
from tellapart.preprocess import Preprocessing, Ragged, load
from tellapart.spec import DataSpec

RANGE = (200.0, 400.0)
SHAPES = [(20, 31), (40, 24), (16, 16), (33, 18), (25, 25)]


def contract(size: int = 12, channels: int = 5) -> Preprocessing:
    mean, std = (0.5,) * channels, (0.5,) * channels
    return Preprocessing(size, channels, "squash", "bilinear", 1.0, mean, std, range=RANGE, depth="float32")


def table(root: Path) -> Samples:
    """Write one image of five bands of each shape, and one that is not a number."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for number, shape in enumerate(SHAPES):
        np.save(root / f"{number}.npy", (280 + rng.normal(0, 5, (*shape, 5))).astype(np.float32))
    np.save(root / "5.npy", np.full((9, 9, 5), np.nan, np.float32))
    paths = np.array([f"{number}.npy" for number in range(6)], dtype=object)
    splits = np.full(6, "train", dtype=object)
    return Samples(paths, np.arange(6) % 2, splits, ("a", "b"), str(root))


def spec(tmp_path: Path, **changes: Any) -> DataSpec:
    return DataSpec(**{"cache_dir": str(tmp_path / "cache"), "workers": 2, **changes})


@pytest.mark.parametrize(
    "way", [{}, {"cache": "off"}, {"worker_kind": "processes"}, {"cache": "off", "worker_kind": "processes"}]
)
def test_the_images_are_the_contracts(way: dict[str, Any], tmp_path: Path) -> None:
    samples, made = table(tmp_path / "data"), contract()
    found, bad = evaluation_images(samples, made, spec(tmp_path, **way))
    assert [item.reason for item in bad] == [
        "has pixels that are not finite numbers (floating-point 32-bit numbers)"
    ]
    wanted = np.stack([load(samples.read(row), made) for row in range(5)])
    batch = found.batch(np.arange(5)).pixels
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), wanted)
    assert np.array_equal(np.stack(list(found.store.each(found.rows))), wanted)
    assert isinstance(found.store, StreamedStore) == ("cache" in way)
    mean, std = channel_statistics(found)
    values = wanted.reshape(-1, 5).astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-4)


@pytest.mark.parametrize("way", ["mapped", "read", "off"])
def test_sources_of_random_crops_keep_their_shape(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "read":  # as a store that is too large to be mapped
        monkeypatch.setattr(cache, "MAPPED_BYTES", 0)
    samples = table(tmp_path / "data")
    found, _ = augmentation_sources(
        samples, contract(), spec(tmp_path, cache="off" if way == "off" else "auto")
    )
    loaded = found.batch(np.arange(5)).images
    assert isinstance(loaded, Ragged)
    assert loaded.dtype == torch.float32
    for row, image in enumerate(loaded):
        assert image.dtype == np.float32
        assert min(image.shape[:2]) == 14
        height, width = SHAPES[row]
        assert image.shape == (14 * height // min(height, width), 14 * width // min(height, width), 5)
        original = (np.load(tmp_path / "data" / f"{row}.npy").astype(np.float64) - 200) / 200 * 255
        assert abs(image.mean() - original.mean()) < 0.3
        assert (image % 1 != 0).mean() > 0.9
    (_, batch), *_ = batches(found, np.arange(5), 5)
    assert batch.pixels.dtype == torch.float32


def test_another_depth_is_another_store_and_eight_bits_keep_theirs(tmp_path: Path) -> None:
    samples = table(tmp_path / "data").select(np.arange(5))
    folder = tmp_path / "cache" / "decoded"
    for depth in ("uint8", "float32", "uint8"):
        found, _ = evaluation_images(samples, dataclasses.replace(contract(), depth=depth), spec(tmp_path))
        assert found.store.kind == np.dtype(depth)
    stores = [path for path in folder.iterdir() if (path / "index.npz").exists()]
    sizes = sorted((path / "pixels.bin").stat().st_size for path in stores)
    assert sizes == [5 * 12 * 12 * 5, 4 * 5 * 12 * 12 * 5]
    kinds = ["depth" in np.load(path / "index.npz") for path in stores]
    assert sorted(kinds) == [False, True]


def test_room_is_asked_for_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        images.housekeeping, "make_room", lambda folder, needed, limit: asked.append(needed) or True
    )
    samples = table(tmp_path / "data")
    evaluation_images(samples, contract(), spec(tmp_path))
    augmentation_sources(samples, contract(), spec(tmp_path))
    assert asked[0] == 4 * 12 * 12 * 5 * 6 + 200 * 6
    assert asked[1] > 4 * 14 * 14 * 5 * 6


def test_looking_does_not_refuse_what_is_within_a_level(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((8, 8), 300 + 0.01 * number, np.float32))
    paths = np.array([f"{number}.npy" for number in range(3)], dtype=object)
    samples = Samples(paths, np.zeros(3, np.int64), np.full(3, "train", dtype=object), ("a",), str(tmp_path))
    seen = look(samples, spec(tmp_path), levels=RANGE, channels=1, depth="float32")
    assert (seen.longest, seen.deep) == (8, 3)


def test_the_largest_number_is_of_what_can_be_read(tmp_path: Path) -> None:
    """``--input.range max``: a file with a NaN or an infinite number is a bad image, and says nothing."""
    samples = table(tmp_path / "data")
    np.save(tmp_path / "data" / "4.npy", np.full((8, 8, 5), np.inf, np.float32))
    wanted = max(float(np.load(tmp_path / "data" / f"{number}.npy").max()) for number in range(4))
    assert images.largest(samples, spec(tmp_path), 5) == wanted


def test_arrays_in_memory_become_float_levels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 12), dtype=np.uint8)
    splits = np.full(4, "train", dtype=object)
    paths = np.array([f"train/{n}" for n in range(4)], dtype=object)
    samples = Samples(paths, np.arange(4) % 2, splits, ("a", "b"), "", pixels=pixels)
    found, _ = evaluation_images(
        samples, dataclasses.replace(contract(channels=3), range=None), spec(tmp_path)
    )
    batch = found.batch(np.arange(4)).pixels
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), np.repeat(pixels[..., None], 3, axis=3))


def test_a_store_on_another_device_is_gathered_as_floats(tmp_path: Path) -> None:
    """The way by which images lie on a GPU, taken on the CPU."""
    found, _ = augmentation_sources(table(tmp_path / "data"), contract(), spec(tmp_path))
    moved = found.on_device(torch.device("cpu"), 1 << 30)
    assert moved.store.resident is not None
    assert moved.store.resident.dtype == torch.float32
    assert torch.equal(moved.batch(np.array([3, 0, 4])).pixels, found.batch(np.array([3, 0, 4])).pixels)


def test_a_function_that_decodes_is_data(tmp_path: Path) -> None:
    import pickle

    stream = io.BytesIO()
    np.save(stream, np.full((4, 4, 5), 300, np.float32))
    decode = pickle.loads(pickle.dumps(AsContracted(contract(), 1000)))
    np.testing.assert_allclose(decode(stream.getvalue(), None), 127.5)
