from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tellapart.data.health import dhash, duplicates, examine, near_pairs, render
from tellapart.data.samples import Samples

Make = Callable[..., Any]


def test_copies_across_splits_are_leaks(run: Make, codes: Make, good: dict[str, bytes]) -> None:
    name, content = next(iter(good.items()))
    found = run({**good, "val/a/copy.jpg": content})
    assert codes(found)["leakage-exact"] == "error"
    assert found.exit_code == 1
    (group,) = found.groups
    assert group.exact
    assert {image.path for image in group.images} == {name, "val/a/copy.jpg"}
    assert "--data.group" in render(found)


def test_changed_copies_across_splits_are_found(
    encoded: Make, run: Make, codes: Make, good: dict[str, bytes]
) -> None:
    image = Image.open(io.BytesIO(good["train/a/3.jpg"]))
    changed = {
        "val/a/half.jpg": encoded(image.resize((80, 60), Image.Resampling.LANCZOS), quality=80),
        "val/a/again.jpg": encoded(image, quality=40),
        "val/a/brighter.png": encoded(image.point(lambda value: min(255, value + 12)), "PNG"),
        "val/a/cropped.jpg": encoded(image.crop((2, 2, 158, 118))),
    }
    found = run({**good, **changed})
    (group,) = found.groups
    assert not group.exact
    assert {image.path for image in group.images} == {"train/a/3.jpg", *changed}
    assert codes(found)["leakage-near"] == "warning"
    assert "leakage-exact" not in codes(found)


def test_exact_leak_inside_a_group_of_near_copies(
    encoded: Make, run: Make, codes: Make, good: dict[str, bytes]
) -> None:
    content = good["train/a/3.jpg"]
    again = encoded(Image.open(io.BytesIO(content)), quality=50)
    found = run({**good, "val/a/copy.jpg": content, "train/a/again.jpg": again})
    (group,) = found.groups
    assert len(group.images) == 3
    assert not group.exact
    assert codes(found)["leakage-exact"] == "error"
    assert "leakage-near" not in codes(found)


def test_one_picture_with_two_labels(encoded: Make, run: Make, codes: Make, good: dict[str, bytes]) -> None:
    content = good["train/a/3.jpg"]
    again = encoded(Image.open(io.BytesIO(good["train/a/5.jpg"])), quality=50)
    found = run({**good, "train/b/copy.jpg": content, "train/b/again.jpg": again})
    assert codes(found)["labels-exact"] == "error"
    assert codes(found)["labels-near"] == "warning"
    assert len(found.groups) == 2


def test_copies_within_a_split_are_only_mentioned(run: Make, codes: Make, good: dict[str, bytes]) -> None:
    found = run(
        {**good, "train/a/copy.jpg": good["train/a/3.jpg"], "train/a/copy2.jpg": good["train/a/3.jpg"]}
    )
    assert codes(found)["duplicates"] == "info"
    assert found.exit_code == 0
    assert "2 further copies" in render(found)


def test_boxes_of_one_image_are_no_duplicates(table: Make, codes: Make, good: dict[str, bytes]) -> None:
    files = {**good}
    samples = table(files)
    twice = samples.select(np.repeat(np.arange(len(samples)), 2))
    labels = twice.labels.copy()
    labels[1::2] = 1 - labels[1::2]
    boxes = np.tile([1.0, 2, 30, 40], (len(twice), 1))
    twice = Samples(twice.paths, labels, twice.splits, twice.classes, name="boxes", boxes=boxes)
    contents = list(files.values())
    found = examine(twice, lambda row: contents[row // 2])
    assert found.groups == ()
    assert len(found.rows) == len(files)
    assert sum(map(sum, found.counts.values())) == len(twice)
    assert not any(code.startswith("labels") for code in codes(found))


def test_blank_pictures_are_not_copies_of_each_other_unless_their_bytes_are(encoded: Make, run: Make) -> None:
    blank = {f"train/a/{n}.png": encoded(Image.new("RGB", (80, 80), (n, n, n)), "PNG") for n in range(4)}
    found = run({**blank, "train/b/x.png": blank["train/a/0.png"]})
    (group,) = found.groups
    assert group.exact


def test_data_in_which_all_is_alike_needs_more_likeness(photo: Make, encoded: Make, run: Make) -> None:
    """Pictures that share one shape and differ in detail are no copies of each other; a real copy is one."""
    shape = np.asarray(photo(1, 64, 64), dtype=np.float64)
    files = {}
    for n in range(160):
        detail = np.asarray(photo(1000 + n, 64, 64), dtype=np.float64) - 120
        mixed = np.clip(0.82 * shape + 0.18 * detail + 20, 0, 255).astype(np.uint8)
        files[f"{'train' if n % 4 else 'val'}/{'ab'[n % 2]}/{n}.png"] = encoded(Image.fromarray(mixed), "PNG")
    copy = encoded(Image.open(io.BytesIO(files["train/b/5.png"])), quality=75)
    found = run({**files, "val/b/copy.jpg": copy})
    assert [{image.path for image in group.images} for group in found.groups] == [
        {"train/b/5.png", "val/b/copy.jpg"}
    ]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 7), st.integers(0, 2**32 - 1), st.integers(2, 120))
def test_near_pairs_are_those_of_a_comparison_of_all(radius: int, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for n in range(1, count, 2):  # plant neighbours at every distance up to 9
        bits = rng.choice(64, int(rng.integers(0, 10)), replace=False)
        hashes[n] = hashes[n - 1] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    expected = {
        (i, j) for i in range(count) for j in range(i + 1, count)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= radius
    }  # fmt: skip
    pairs, complete = near_pairs(hashes, radius=radius)
    assert complete
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(expected)


def test_near_pairs_of_nothing_and_of_a_radius_that_bands_cannot_hold() -> None:
    pairs, complete = near_pairs(np.zeros(0, dtype=np.uint64))
    assert pairs.shape == (0, 2)
    assert complete
    with pytest.raises(ValueError, match="radius is 8"):
        near_pairs(np.zeros(2, dtype=np.uint64), radius=8)


def test_a_search_without_end_is_stopped_and_told(
    run: Make, codes: Make, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, complete = near_pairs(
        np.zeros(5000, dtype=np.uint64), lambda pairs: np.zeros(len(pairs), bool), budget=1000
    )
    assert not complete
    real = duplicates.near_pairs
    monkeypatch.setattr(duplicates, "near_pairs", lambda hashes, alike: real(hashes, alike, budget=0))
    assert "search-stopped" in codes(run(good))


def test_dhash_is_the_sign_of_the_differences_of_cell_means(photo: Make) -> None:
    grey = photo(7, 144, 80).convert("L")  # cells of exactly 16x10 pixels
    means = np.asarray(grey, dtype=np.float64).reshape(8, 10, 9, 16).mean(axis=(1, 3))
    steps = means[:, 1:] - means[:, :-1]
    bits = np.array([int(bit) for bit in f"{dhash(grey):064b}"]).reshape(8, 8)
    clear = np.abs(steps) > 1  # rounding of the means to integers may change the others
    assert clear.mean() > 0.8
    assert (bits[clear] == (steps[clear] > 0)).all()
