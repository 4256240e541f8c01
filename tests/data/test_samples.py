"""The table of samples: selecting, counting, reading, and its CSV."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart.data.samples import SPLITS, Samples, content_hash, write_samples

CLASSES = ("ant", "猫, wild", "z")


def table(count: int, seed: int = 0, **changes: object) -> Samples:
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {
        "paths": np.array([f"ünï {n}/图 {n}.png" for n in range(count)], dtype=object),
        "labels": rng.integers(0, len(CLASSES), count),
        "splits": rng.choice(np.array(SPLITS, dtype=object), count),
        "classes": CLASSES,
        "groups": np.array([f"g{n // 2}" for n in range(count)], dtype=object),
        "boxes": rng.uniform(0, 50, (count, 4)).round(2),
        "hashes": np.array([f"{n:032x}" for n in range(count)], dtype=object),
    }
    return Samples(**{**columns, **changes})  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 11)))
def test_selecting_takes_the_same_rows_of_every_column(rows: list[int]) -> None:
    samples = table(12)
    chosen = samples.select(np.array(rows, np.int64))
    assert len(chosen) == len(rows)
    for name in ("paths", "labels", "splits", "groups", "boxes", "hashes"):
        column = getattr(samples, name)
        assert [list(np.atleast_1d(v)) for v in getattr(chosen, name)] == [
            list(np.atleast_1d(column[row])) for row in rows
        ]
    assert chosen.pixels is None
    assert chosen.classes == CLASSES


@given(st.integers(0, 30), st.integers(0, 5))
def test_splits_divide_the_table(count: int, seed: int) -> None:
    samples = table(count, seed)
    parts = [samples.split(name) for name in SPLITS]
    assert sorted(path for part in parts for path in part.paths) == sorted(samples.paths)
    for name, part in zip(SPLITS, parts, strict=True):
        assert set(part.splits) <= {name}
        counted = Counter(part.labels.tolist())
        assert samples.counts(name).tolist() == [counted[k] for k in range(3)]
    assert samples.counts().tolist() == sum(samples.counts(name) for name in SPLITS).tolist()
    assert samples.counts().dtype == np.int64


def test_reading_files_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "图.png").write_bytes(b"content")
    samples = table(1, root=str(tmp_path), paths=np.array(["a b/图.png"], dtype=object))
    assert samples.read(0) == b"content"
    assert os.path.samefile(samples.file(0), tmp_path / "a b" / "图.png")
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    arrays = table(2, pixels=pixels, keys=np.array([4, 1]))
    assert np.array_equal(arrays.read(0), pixels[4])
    assert np.array_equal(arrays.select(np.array([1])).read(0), pixels[1])
    assert np.array_equal(table(5, pixels=pixels).read(3), pixels[3])
    with pytest.raises(OSError, match="No such file"):
        table(1, root=str(tmp_path)).read(0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dangling.png", "links to a file that does not exist"),
        ("pipe.png", "not a regular file"),
        ("folder.png", "not a regular file"),
        ("nul\0.png", "no file can have this name"),
        ("missing.png", "No such file"),
    ],
)
def test_what_is_no_file_does_not_stop_the_reader(name: str, reason: str, tmp_path: Path) -> None:
    """A pipe without a writer would keep a reader waiting for ever."""
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    samples = table(1, root=str(tmp_path), paths=np.array([name], dtype=object))
    with pytest.raises(OSError, match=reason):
        samples.read(0)


def test_hashes() -> None:
    assert content_hash(b"x") == hashlib.blake2b(b"x", digest_size=16).hexdigest()
    pixels = np.arange(24, dtype=np.uint8)
    assert content_hash(pixels.reshape(2, 12)) != content_hash(pixels.reshape(12, 2))
    turned = pixels.reshape(4, 6).T
    assert content_hash(turned) == content_hash(turned.copy())


def test_the_csv_holds_the_table(tmp_path: Path) -> None:
    samples = table(9)
    assert samples.boxes is not None
    samples.boxes[4] = np.nan
    write_samples(samples, tmp_path / "samples.csv")
    with open(tmp_path / "samples.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 9
    for number, row in enumerate(rows):
        assert row["path"] == samples.paths[number]
        assert row["label"] == CLASSES[samples.labels[number]]
        assert row["split"] == samples.splits[number]
        assert row["hash"] == f"{number:032x}"
        assert row["group"] == f"g{number // 2}"
        box = [] if number == 4 else samples.boxes[number].tolist()
        assert [float(word) for word in row["box"].split()] == box
    assert [path.name for path in tmp_path.iterdir()] == ["samples.csv"]


def test_the_csv_without_groups_boxes_and_hashes(tmp_path: Path) -> None:
    write_samples(table(2, groups=None, boxes=None, hashes=None), tmp_path / "samples.csv")
    lines = (tmp_path / "samples.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,label,split,hash"
    assert all(line.endswith(",") for line in lines[1:])


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    """Linux file names are bytes; what is not UTF-8 goes to the CSV as it is and comes back."""
    name = os.fsdecode(b"a/\xff\xfe.png")
    write_samples(table(1, paths=np.array([name], dtype=object)), tmp_path / "samples.csv")
    with open(tmp_path / "samples.csv", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert next(csv.DictReader(stream))["path"] == name
