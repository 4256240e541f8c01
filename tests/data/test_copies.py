"""Byte-identical images never lie on both sides of a split that tellapart makes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.data.samples import Samples
from tellapart.data.sources import copies, splits
from tellapart.data.sources.copies import same_bytes
from tellapart.data.sources.listing import Listing
from tellapart.data.sources.opening import open_source
from tellapart.spec import DataSpec


def _image(path: Path, seed: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "BMP")  # all files have one size


def _source(root: Path, count: int = 40, prefix: str = "") -> Path:
    for label in "ab":
        for n in range(count):
            _image(root / prefix / label / f"{n:03}.bmp", 1_000 * ord(label) + n)
    return root


def _open(root: Path, **options: object) -> Samples:
    return open_source(DataSpec(source=str(root), **options), lambda text: None)  # type: ignore[arg-type]


def _contents(samples: Samples) -> dict[bytes, set[str]]:
    found: dict[bytes, set[str]] = {}
    for row in range(len(samples)):
        content = samples.read(row)
        found.setdefault(content if isinstance(content, bytes) else content.tobytes(), set()).add(
            samples.splits[row]
        )
    return found


def _split_of(samples: Samples) -> dict[str, str]:
    return dict(zip(samples.paths, samples.splits, strict=True))


@pytest.mark.parametrize("prefix", ["", "train"])
def test_copies_go_to_one_side_with_a_message(tmp_path: Path, prefix: str) -> None:
    root = _source(tmp_path / "data", prefix=prefix)
    for n in range(20):
        for label in "ab":
            _image(root / prefix / label / f"copy{n:03}.bmp", 1_000 * ord(label) + n)
    samples = _open(root)
    assert set(samples.splits) >= {"train", "val"}
    assert all(len(found) == 1 for found in _contents(samples).values())
    assert any("40 pictures occur more than once, byte for byte (80 images)" in n for n in samples.notes)
    assert not any("different labels" in note for note in samples.notes)


def test_without_copies_the_split_is_that_of_assign(tmp_path: Path) -> None:
    samples = _open(_source(tmp_path))
    spec = DataSpec(source="x")
    expected = splits.assign(
        samples.labels, list(samples.paths), spec.val_fraction, spec.test_fraction, spec.split_seed
    )
    assert samples.splits.tolist() == expected.tolist()
    assert not any("more than once" in note for note in samples.notes)


def test_a_copy_leaves_the_split_of_the_others_as_it_was(tmp_path: Path) -> None:
    root = _source(tmp_path)
    before = _split_of(_open(root))
    path = next(path for path, split in before.items() if split == "val")
    (root / path).with_name("zz.bmp").write_bytes((root / path).read_bytes())
    after = _split_of(_open(root))
    assert after.pop(f"{path[0]}/zz.bmp") == "val"
    assert after == before


def test_copies_with_different_labels_are_reported_and_stay_together(tmp_path: Path) -> None:
    root = _source(tmp_path)
    for n in range(10):
        _image(root / "b" / f"wrong{n}.bmp", 1_000 * ord("a") + n)
    samples = _open(root)
    assert all(len(found) == 1 for found in _contents(samples).values())
    (note,) = (note for note in samples.notes if "different labels" in note)
    assert note.startswith("10 of them with different labels, such as a/0")


@pytest.mark.parametrize("seed", range(4))
def test_copies_join_groups(tmp_path: Path, seed: int) -> None:
    """Group 1 and group 2 share a picture, so both are on one side."""
    root = _source(tmp_path)
    _image(root / "a" / "039.bmp", 1_000 * ord("a"))
    samples = _open(root, group=r"/(\d\d)", split_seed=seed)
    split = _split_of(samples)
    assert len({split[p] for p in split if p.startswith(("a/00", "a/03"))}) == 1
    assert all(len(found) == 1 for found in _contents(samples).values())
    assert set(samples.splits) >= {"train", "val", "test"}


def test_the_order_of_rows_and_the_folder_do_not_matter(tmp_path: Path) -> None:
    listing = Listing(root=str(_source(tmp_path)))
    names = [f"{label}/{n:03}.bmp" for label in "ab" for n in range(40)]
    for n in range(8):
        _image(tmp_path / "a" / f"copy{n}.bmp", 1_000 * ord("a") + n)
        names.append(f"a/copy{n}.bmp")
    dealt = []
    for order in (np.arange(len(names)), np.random.default_rng(0).permutation(len(names))):
        listing.paths = [names[n] for n in order]
        labels = np.array([int(path[0] == "b") for path in listing.paths])
        split = copies.deal(
            listing, labels, None, np.arange(len(names)), (0.2, 0.2), DataSpec(source="x"), lambda text: None
        )
        dealt.append(dict(zip(listing.paths, split, strict=True)))
    assert dealt[0] == dealt[1]


def test_arrays_are_searched_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
    pixels[30:] = pixels[:30]
    listing = Listing(root="", paths=[f"train/{n:02}" for n in range(60)], pixels=pixels)
    labels = np.arange(60) % 2
    split = copies.deal(
        listing, labels, None, np.arange(60), (0.2, 0.2), DataSpec(source="x"), lambda text: None
    )
    assert (split[:30] == split[30:]).all()
    assert set(split) == {"train", "val", "test"}


def test_boxes_of_one_file_are_no_copies(tmp_path: Path) -> None:
    listing = Listing(root=str(_source(tmp_path, 5)), paths=["a/000.bmp"] * 3 + ["b/001.bmp"] * 3)
    said: list[str] = []
    labels = np.array([0, 1, 0, 1, 0, 1])
    split = copies.deal(listing, labels, None, np.arange(6), (0.3, 0.0), DataSpec(source="x"), said.append)
    assert len(set(split[:3])) == len(set(split[3:])) == 1
    assert said == []


def test_too_many_files_are_not_searched_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MAX_FILES", 79)
    samples = _open(_source(tmp_path))
    assert any("Copies among the 80 images were not looked for" in note for note in samples.notes)


def test_same_bytes_compares_size_ends_and_whole(tmp_path: Path) -> None:
    base = bytearray(os.urandom(30_000))
    middle, end = bytearray(base), bytearray(base)
    middle[15_000] ^= 1
    end[-1] ^= 1
    contents = [base, base, middle, end, base + b"x", b"", b"", b"small" * 9, b"small" * 9, b"smell" * 9]
    files = [tmp_path / str(n) for n in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(bytes(content))
    found = same_bytes([*map(str, files), str(tmp_path / "missing"), str(tmp_path)])
    assert found[0] == found[1] != b""
    assert found[7] == found[8] not in (b"", found[0])
    assert [value for n, value in enumerate(found) if n not in (0, 1, 7, 8)] == [b""] * 8


def test_nothing_is_read_where_all_files_differ_in_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(31, 60):
        (tmp_path / str(n)).write_bytes(b"x" * n)
    monkeypatch.setattr(copies, "read_file", lambda path: pytest.fail("was read"))
    assert same_bytes([str(tmp_path / str(n)) for n in range(31, 60)]) == [b""] * 29


def test_a_source_with_all_its_splits_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val", "test"):
        _source(tmp_path, 3, split)
    monkeypatch.setattr(copies, "same_bytes", lambda files: pytest.fail("searched"))
    assert dataclasses.asdict(_open(tmp_path))["name"]


def _photo(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("near", [True, False])
def test_near_copies_go_to_one_side_where_that_is_wanted(tmp_path: Path, near: bool) -> None:
    for n in range(40):
        photo = _photo(n)
        (tmp_path / "ab"[n % 2]).mkdir(exist_ok=True)
        photo.save(tmp_path / "ab"[n % 2] / f"{n:02}.png")
        photo.crop((2, 1, 96, 95)).save(tmp_path / "ab"[n % 2] / f"{n:02}.jpg", quality=80)
    samples = _open(tmp_path, copies="near" if near else "exact")
    found: dict[str, set[str]] = {}
    for path, split in _split_of(samples).items():
        found.setdefault(path.partition(".")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in found.values()) is near
    assert any("40 further images nearly a copy" in note for note in samples.notes) is near
    assert set(samples.splits) == {"train", "val", "test"}


def test_what_the_search_for_near_copies_cannot_read_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(
                tmp_path / label / f"{number}.png"
            )
    Image.fromarray(rng.random((32, 32), np.float32)).save(tmp_path / "a" / "float.tiff")
    samples = _open(tmp_path, copies="near")
    (note,) = [note for note in samples.notes if "left out" in note]
    assert "left out 1 image; the first, " in note
    assert "float.tiff" in note
    assert not any("left out" in note for note in _open(tmp_path, copies="exact").notes)
