"""Decoded images on disk: built once, whole or not there, the same pixels as decoding again, memory bounded."""

from __future__ import annotations

import dataclasses
import errno
import io
import mmap
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tellapart.data.samples import Samples, content_hash
from tellapart.data.stores import building, cache
from tellapart.data.stores.cache import ImageStore, open_or_build, store_key
from tellapart.data.stores.workers import Threads
from tellapart.preprocess import BadImage, as_tensor


def write_pictures(root: Path, sizes: list[tuple[int, int]]) -> Samples:
    """PNG files of random pixels, of the given widths and heights, and their table."""
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, size in enumerate(sizes):
        rng = np.random.default_rng(number)
        picture = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(f"{number:03}.png")
        Image.fromarray(picture).save(root / paths[-1])
    return table(paths, str(root))


def table(paths: list[str], root: str = "", **changes: Any) -> Samples:
    count = len(paths)
    labels, splits = np.zeros(count, np.int64), np.full(count, "train", dtype=object)
    return Samples(np.array(paths, dtype=object), labels, splits, ("a", "b"), root, **changes)


class Decoder:
    """Decodes with Pillow alone, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, content: Any, box: Any) -> np.ndarray:
        self.calls += 1
        if isinstance(content, np.ndarray):
            return content
        try:
            with Image.open(io.BytesIO(content)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except OSError:
            raise BadImage("is no picture") from None
        if box is None:
            return pixels
        x0, y0, x1, y1 = box.astype(int)
        return pixels[y0:y1, x0:x1]


def build(
    samples: Samples, folder: Path, decode: Any = None, policy: str = "p", **options: Any
) -> ImageStore:
    return open_or_build(samples, decode or Decoder(), policy, 3, folder, Threads(2), **options)


def stores(folder: Path) -> list[str]:
    inside = folder / "decoded"
    return sorted(path.name for path in inside.iterdir()) if inside.exists() else []


RAGGED = [(9, 4), (3, 7), (16, 16), (1, 5), (40, 2)]


@pytest.mark.parametrize("sizes", [RAGGED, [(6, 4)] * 5], ids=["ragged", "uniform"])
def test_pixels_are_those_of_decoding(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", sizes)
    store = build(samples, tmp_path / "cache")
    assert len(store) == 5
    assert store.good.all()
    assert (store.images_NHWC is None) == (sizes is RAGGED)
    direct = [Decoder()(samples.read(row), None) for row in range(5)]
    for row, pixels in enumerate(direct):
        assert np.array_equal(store.image(row), pixels)
        assert store.hashes[row] == content_hash(samples.read(row))
    rows = np.array([3, 0, 0, 2])
    batch, shapes = as_tensor(store.batch(rows)), store.sizes(rows)
    assert batch.dtype == torch.uint8
    for place, row in enumerate(rows):
        height, width = direct[row].shape[:2]
        assert np.array_equal(batch[place, :height, :width].numpy(), direct[row])
        assert int(batch[place].sum()) == int(direct[row].sum()), "the rest of the canvas is zero"
        if sizes is RAGGED:
            assert shapes is not None
            assert shapes[place].tolist() == [height, width]
    if sizes is RAGGED:
        assert batch.shape == (4, 16, 16, 3)
    else:
        assert shapes is None


def test_a_store_is_built_once(tmp_path: Path) -> None:
    samples, decode = write_pictures(tmp_path / "in", RAGGED), Decoder()
    first = build(samples, tmp_path / "cache", decode)
    assert decode.calls == 5
    again = build(samples, tmp_path / "cache", decode)
    assert decode.calls == 5
    for row in range(5):
        assert np.array_equal(first.image(row), again.image(row))
    assert again.hashes.tolist() == first.hashes.tolist()
    build(samples, tmp_path / "cache", decode, policy="another")
    assert decode.calls == 10
    build(samples.select(np.array([1, 0])), tmp_path / "cache", decode)
    assert decode.calls == 12
    assert len(stores(tmp_path / "cache")) == 3


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)
    old = build(samples, tmp_path / "cache").image(1)
    Image.new("RGB", (3, 7), "red").save(tmp_path / "in" / "001.png")
    new = build(samples, tmp_path / "cache").image(1)
    assert not np.array_equal(old, new)
    assert (new == (255, 0, 0)).all()
    status = (tmp_path / "in" / "002.png").stat()
    key = store_key(samples, "p")
    os.utime(tmp_path / "in" / "002.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert store_key(samples, "p") != key


def test_what_else_makes_another_store(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)
    boxes = np.array([[0, 0, 1, 1]] * 5, np.float64)
    pixels = np.zeros((3, 2, 2), np.uint8)
    arrays = table(["0", "1"], pixels=pixels, keys=np.array([0, 1]))
    moved = write_pictures(tmp_path / "moved", RAGGED)
    keys = [
        store_key(samples, "p"),
        store_key(samples, "q"),
        store_key(moved, "p"),
        store_key(dataclasses.replace(samples, boxes=boxes), "p"),
        store_key(dataclasses.replace(samples, boxes=boxes + 1), "p"),
        store_key(arrays, "p"),
        store_key(dataclasses.replace(arrays, keys=np.array([0, 2])), "p"),
        store_key(dataclasses.replace(arrays, pixels=pixels + 1), "p"),
    ]
    assert len(set(keys)) == len(keys)
    assert store_key(dataclasses.replace(samples, labels=samples.labels + 1), "p") == keys[0]


def test_bad_images_are_marked_with_their_reason(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(6, 4)] * 5)
    (tmp_path / "in" / "001.png").write_text("hello")
    (tmp_path / "in" / "003.png").unlink()
    store = build(samples, tmp_path / "cache")
    assert store.good.tolist() == [True, False, True, False, True]
    assert store.reasons[1] == "is no picture"
    assert store.reasons[3].startswith("cannot be read: No such file")
    assert [store.reasons[row] for row in (0, 2, 4)] == [""] * 3
    assert store.hashes[1] == content_hash(b"hello")
    assert store.hashes[3] == ""
    for row in (0, 2, 4):
        assert np.array_equal(store.image(row), Decoder()(samples.read(row), None))
    assert store.batch(np.array([4, 2])).shape == (2, 4, 6, 3)


def test_what_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permission that was given, or a disk that came back, changes neither size nor time of the file."""
    samples, read = write_pictures(tmp_path / "in", RAGGED), Samples.read

    def denied(self: Samples, row: int) -> Any:
        if row == 1:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Samples, "read", denied)
        for _ in range(2):
            assert build(samples, tmp_path / "cache").reasons[1] == "cannot be read: Permission denied"
    assert build(samples, tmp_path / "cache").good.all()


def test_a_store_without_a_good_image(tmp_path: Path) -> None:
    samples = table(["a", "b"], str(tmp_path))
    store = build(samples, tmp_path / "cache")
    assert not store.good.any()
    assert build(table([]), tmp_path / "cache").good.shape == (0,)


def test_an_image_too_large_for_memory_is_left_out(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)

    def decode(content: Any, box: Any) -> np.ndarray:
        pixels = Decoder()(content, box)
        if pixels.shape == (16, 16, 3):
            raise MemoryError
        return pixels

    store = build(samples, tmp_path / "cache", decode)
    assert store.good.tolist() == [True, True, False, True, True]
    assert "memory" in store.reasons[2]


def test_boxes_are_cut_out(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(9, 9)] * 2)
    boxes = np.array([[1, 2, 5, 4], [0, 0, 9, 9]], np.float64)
    store = build(dataclasses.replace(samples, boxes=boxes), tmp_path / "cache")
    assert np.array_equal(store.image(0), Decoder()(samples.read(0), None)[2:4, 1:5])
    assert store.image(1).shape == (9, 9, 3)


def test_arrays_are_stored_like_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    samples = table(["0", "1", "2"], pixels=pixels, keys=np.array([3, 0, 2]))
    store = build(samples, tmp_path / "cache")
    assert store.images_NHWC is not None
    assert np.array_equal(store.images_NHWC.numpy(), pixels[[3, 0, 2]])
    memory = cache.from_array(pixels, np.array(["h"] * 4, dtype=object))
    assert np.array_equal(memory.batch(np.array([2, 1])).numpy(), pixels[[2, 1]])
    assert memory.sizes(np.array([2])) is None
    assert memory.good.all()


def test_a_large_store_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_pictures(tmp_path / "in", [(6, 4)] * 5)
    mapped = build(samples, tmp_path / "cache")
    monkeypatch.setattr(cache, "MAPPED_BYTES", 6 * 4 * 3 * 5 - 1)
    read = build(samples, tmp_path / "cache")
    assert mapped.images_NHWC is not None
    assert read.images_NHWC is None
    rows = np.array([4, 0, 2])
    assert torch.equal(as_tensor(read.batch(rows)), as_tensor(mapped.batch(rows)))


def test_the_system_is_told_once_what_is_read_next(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(40 + n, 50) for n in range(5)])
    rows, asked = np.array([4, 0, 2]), list[tuple[int, int]]()

    class Mapped:
        """Notes what it is asked for, as mmap would check it."""

        def madvise(self, option: int, start: int, length: int) -> None:
            assert option == mmap.MADV_WILLNEED
            assert start % mmap.PAGESIZE == 0
            asked.append((start, start + length))

    built = build(samples, tmp_path / "cache")
    dataclasses.replace(built, mapped=Mapped()).expect(rows)
    assert asked == []  # just written: nothing to read
    store = dataclasses.replace(build(samples, tmp_path / "cache"), mapped=Mapped())
    store.expect(rows)
    store.expect(rows)
    assert store.offsets is not None
    for row, (start, stop) in zip(rows, asked, strict=True):
        size = int(store.heights[row]) * int(store.widths[row]) * 3
        assert start <= store.offsets[row] < start + mmap.PAGESIZE
        assert stop == store.offsets[row] + size
    store.expect(np.array([1, 2]))
    assert len(asked) == 4
    opened = build(samples, tmp_path / "cache")
    opened.expect(rows)  # as the system takes it
    assert np.array_equal(opened.image(4), Decoder()(samples.read(4), None))


def test_writing_into_a_batch_does_not_change_the_store(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(6, 4)] * 5)
    store = build(samples, tmp_path / "cache")
    before = store.image(1).copy()
    store.batch(np.array([1])).zero_()
    assert store.images_NHWC is not None
    store.images_NHWC[1] = 0
    assert np.array_equal(build(samples, tmp_path / "cache").image(1), before)


def test_progress_adds_up(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(2, 2)] * 150)
    steps: list[int] = []
    build(samples, tmp_path / "cache", advance=steps.append)
    assert sum(steps) == 150
    assert len(steps) > 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("a bug")])
def test_an_interrupted_build_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", [(2, 2)] * 150)

    def stop(done: int) -> None:
        assert stores(tmp_path / "cache"), "the interruption comes while the store is being built"
        raise error

    with pytest.raises(type(error)):
        build(samples, tmp_path / "cache", advance=stop)
    assert stores(tmp_path / "cache") == []
    assert build(samples, tmp_path / "cache").good.all()


def test_a_killed_build_is_not_taken_for_a_store(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)
    left = tmp_path / "cache" / "decoded" / ".building-killed"
    left.mkdir(parents=True)
    (left / "pixels.bin").write_bytes(b"half")
    assert build(samples, tmp_path / "cache").good.all()


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        build(samples, tmp_path / "cache")
    assert stores(tmp_path / "cache") == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_disk_keeps_up_while_images_are_decoded(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, calls = write_pictures(tmp_path / "in", [(6, 4)] * 150), list[int]()
    really = os.fsync

    def sync(descriptor: int) -> None:
        calls.append(descriptor)
        if fails and len(calls) == 1:  # only once, and long before the end
            raise OSError(errno.EIO, "Input/output error")
        really(descriptor)

    monkeypatch.setattr(building, "_FLUSHED", 100)
    monkeypatch.setattr(os, "fsync", sync)
    if fails:
        with pytest.raises(OSError, match="Input/output error"):
            build(samples, tmp_path / "cache")
        assert stores(tmp_path / "cache") == []
        return
    store = build(samples, tmp_path / "cache")
    assert len(calls) > 2  # more often than at the end, of both files
    assert all(np.array_equal(store.image(row), Decoder()(samples.read(row), None)) for row in range(150))


def test_two_builders_at_once(tmp_path: Path) -> None:
    """Both are in the middle of building when the other is; both get a good store, and one is kept."""
    samples = write_pictures(tmp_path / "in", RAGGED)
    both, results = threading.Barrier(2), dict[int, Any]()

    def work(number: int) -> None:
        met = []

        def decode(content: Any, box: Any) -> np.ndarray:
            if not met:
                met.append(both.wait(timeout=30))
            return Decoder()(content, box)

        try:
            results[number] = open_or_build(samples, decode, "p", 3, tmp_path / "cache", Threads(1))
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in results.values():
        assert isinstance(store, ImageStore), store
        for row in range(5):
            assert np.array_equal(store.image(row), Decoder()(samples.read(row), None))
    assert stores(tmp_path / "cache") == [store_key(samples, "p")]


TWO = """
import sys, time, pathlib
import numpy as np
sys.path.insert(0, {tests!r})
from test_cache import Decoder, table
from tellapart.data.stores.cache import open_or_build
from tellapart.data.stores.workers import Threads
here, me, other = map(pathlib.Path, sys.argv[1:])
def decode(content, box):
    me.touch()
    while not other.exists():
        time.sleep(0.005)
    return Decoder()(content, box)
samples = table([f"{{n:03}}.png" for n in range(5)], str(here / "in"))
store = open_or_build(samples, decode, "p", 3, here / "cache", Threads(1))
assert all(np.array_equal(store.image(n), Decoder()(samples.read(n), None)) for n in range(5))
"""


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)
    program = TWO.format(tests=str(Path(__file__).parent))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(tmp_path / me), str(tmp_path / other)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, other in (("a", "b"), ("b", "a"))
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert stores(tmp_path / "cache") == [store_key(samples, "p")]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """72 MB of images are built and read in order with less than 12 MB at any moment."""
    count, side = 3000, 90
    samples = table(
        [f"{n}" for n in range(count)],
        pixels=np.arange(count, dtype=np.uint64).view(np.uint8).reshape(count, 8),
    )

    def decode(content: Any, box: Any) -> np.ndarray:
        number = int(content.view(np.uint64)[0])
        return np.full((side, side - number % 2, 3), number % 251, np.uint8)

    tracemalloc.start()
    try:
        store = open_or_build(samples, decode, "p", 3, tmp_path / "cache", Threads(1))
        built = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for start in range(0, count, 50):
            rows = np.arange(start, start + 50)
            assert as_tensor(store.batch(rows))[:, 0, 0, 0].tolist() == (rows % 251).tolist()
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "cache" / "decoded").exists()
    assert built < 12 << 20
    assert read < 12 << 20


def test_one_long_reason_does_not_swell_the_store(tmp_path: Path) -> None:
    count = 3000
    samples = table([f"{n}" for n in range(count)], pixels=np.zeros((count, 1, 1, 3), np.uint8))
    calls = Decoder()

    def decode(content: Any, box: Any) -> np.ndarray:
        pixels = calls(content, box)
        if calls.calls == 5:
            raise BadImage("x" * 1000)
        return pixels

    tracemalloc.start()
    try:
        store = open_or_build(samples, decode, "p", 3, tmp_path / "cache", Threads(1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.reasons[4] == "x" * 1000
    assert peak < 4 << 20


def test_files_are_closed(tmp_path: Path, open_files: Callable[[], int]) -> None:
    samples = write_pictures(tmp_path / "in", RAGGED)
    before = open_files()
    for _ in range(5):
        assert build(samples, tmp_path / "cache").image(0).shape == (4, 9, 3)
    assert open_files() <= before


@pytest.fixture
def open_files() -> Callable[[], int]:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to count open files by")
    return lambda: len(list(Path("/proc/self/fd").iterdir()))
