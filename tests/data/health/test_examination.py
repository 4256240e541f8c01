from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.data.health import examine, render
from tellapart.data.samples import Samples

Make = Callable[..., Any]


def test_a_healthy_set(run: Make, codes: Make, good: dict[str, bytes]) -> None:
    found = run(good)
    assert found.counts == {"train": [24, 22], "val": [4, 4]}
    assert found.exit_code == 0
    assert set(codes(found).values()) <= {"info"}
    assert found.groups == ()
    assert found.bad == ()
    assert found.formats == {"JPEG": 54}
    assert found.modes == {"RGB": 54}
    assert found.quantiles()["width"] == [160] * 5
    assert found.quantiles()["aspect"][2] == pytest.approx(4 / 3, abs=1e-4)
    assert "No problems found." in render(found)


def test_unusual_files_are_counted(
    photo: Make, encoded: Make, table: Make, codes: Make, good: dict[str, bytes], tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "train/a/turned.jpg": encoded(photo(900), exif=turned),
        "train/a/cmyk.jpg": encoded(photo(901).convert("CMYK")),
        "train/a/grey.png": encoded(photo(902).convert("L"), "PNG"),
        "train/a/grey in colour.jpg": encoded(photo(903).convert("L").convert("RGB")),
        "train/a/palette.gif": encoded(photo(904).convert("P"), "GIF"),
        "train/a/misnamed.jpg": encoded(photo(905), "PNG"),
        "train/a/no extension": encoded(photo(906), "PNG"),
    }
    found = examine(table({**good, **odd}, tmp_path))
    assert found.bad == ()
    assert [image.path for image in found.rotated] == ["train/a/turned.jpg"]
    row = list({**good, **odd}).index("train/a/turned.jpg")
    assert (found.widths[row], found.heights[row]) == (120, 160)  # upright
    assert {image.path for image in found.grey} == {"train/a/grey.png", "train/a/grey in colour.jpg"}
    assert [image.path for image in found.wrong_extension] == ["train/a/misnamed.jpg"]
    assert found.modes["CMYK"] == 1
    assert found.modes["P"] == 1
    assert (found.formats["JPEG"], found.formats["PNG"], found.formats["GIF"]) == (57, 3, 1)
    assert {"grey", "rotated", "extension"} <= set(codes(found))


def test_a_grey_set_is_no_finding(photo: Make, encoded: Make, run: Make, codes: Make) -> None:
    files = {
        f"train/{c}/{n}.png": encoded(photo(n + 50 * (c == "b")).convert("L"), "PNG")
        for c in "ab"
        for n in range(21)
    }
    found = run(files)
    assert not found.is_colour
    assert found.grey == ()
    assert "grey" not in codes(found)


def test_unreadable_files_have_reasons_and_do_not_count(
    table: Make, codes: Make, good: dict[str, bytes], tmp_path: Path
) -> None:
    whole = next(iter(good.values()))
    broken = {
        "train/a/zero.jpg": b"",
        "train/a/page.jpg": b"<html><body>404 Not Found</body></html>",
        "train/b/cut.jpg": whole[: len(whole) // 2],
        "val/b/noise.png": np.random.default_rng(0).bytes(999),
        "val/b/gone.jpg": b"x",
    }
    samples = table({**good, **broken}, tmp_path)
    (tmp_path / "val/b/gone.jpg").unlink()
    found = examine(samples)
    reasons = {item.image.path: item.reason for item in found.bad}
    assert set(reasons) == set(broken)
    assert all(reasons.values())
    assert reasons["val/b/gone.jpg"] == "cannot be read: No such file or directory"
    assert "HTML" in reasons["train/a/page.jpg"]
    assert found.counts == {"train": [24, 22], "val": [4, 4]}
    assert len(found.rows) == len(good)
    assert codes(found)["unreadable"] == "warning"
    assert "train/a/zero.jpg: " in render(found)


def test_too_many_pixels_and_too_little_memory_count_as_unreadable(
    photo: Make, encoded: Make, table: Make, good: dict[str, bytes]
) -> None:
    contents = list(good.values())

    def read(row: int) -> bytes:
        if row == 3:
            raise MemoryError
        return encoded(photo(1, 640, 480)) if row == 5 else contents[row]

    found = examine(table(good), read, max_pixels=100_000)
    assert [item.image.row for item in found.bad] == [3, 5]
    assert found.bad[0].reason == "does not fit in memory"
    assert "pixels" in found.bad[1].reason


def test_arrays_are_examined_without_files(photo: Make, codes: Make) -> None:
    pixels = np.stack([np.asarray(photo(n, 32, 32).convert("L")) for n in range(50)])
    pixels[49] = pixels[0]
    samples = Samples(
        np.array([f"train/{n}" for n in range(49)] + ["test/0"], dtype=object),
        np.arange(50) % 2,
        np.array(["train"] * 49 + ["test"], dtype=object),
        ("even", "odd"),
        pixels=pixels,
        keys=np.arange(50),
    )
    found = examine(samples)
    assert found.formats == {"array": 50}
    assert codes(found)["leakage-exact"] == "error"
    assert codes(found)["labels-exact"] == "error"


def test_progress_reaches_the_end_and_stages_are_said(table: Make, good: dict[str, bytes]) -> None:
    steps: list[tuple[int, int]] = []
    said: list[str] = []
    contents = list(good.values())
    examine(table(good), contents.__getitem__, progress=lambda *step: steps.append(step), say=said.append)
    assert steps[-1] == (len(good), len(good))
    assert steps == sorted(steps)
    assert len(said) == 1


def test_the_result_does_not_depend_on_the_threads(
    encoded: Make, table: Make, good: dict[str, bytes]
) -> None:
    files = {
        **good,
        "val/a/copy.jpg": good["train/a/3.jpg"],
        "train/a/bad.jpg": b"",
        "train/b/chart.png": encoded(Image.new("RGB", (160, 120), "white"), "PNG"),
    }
    contents = list(files.values())
    one, many = (examine(table(files), contents.__getitem__, workers=n).to_dict() for n in (1, 7))
    assert one == many


def test_memory_is_bounded() -> None:
    """250 images of 3 MB pass while hardly more than one of each thread is held."""
    count = 250
    samples = Samples(
        np.array([f"train/{n}" for n in range(count)], dtype=object),
        np.arange(count) % 2,
        np.full(count, "train", dtype=object),
        ("a", "b"),
    )
    lock = threading.Lock()
    base = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)

    def read(row: int) -> np.ndarray:
        with lock:
            image = base.copy()
        image[:64, :64] ^= np.uint8(row % 251)
        return image

    tracemalloc.start()
    try:
        examine(samples, read, workers=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # all images together: 750 MB
