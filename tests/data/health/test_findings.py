from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from tellapart.data.health import render
from tellapart.data.samples import Conflict

Make = Callable[..., Any]


def test_unequal_and_small_classes_name_the_flags(run: Make, photos: Make, codes: Make) -> None:
    found = run(
        {**photos("train", "many", 30), **photos("train", "few", 3, 100), **photos("test", "many", 4, 200)}
    )
    assert codes(found)["imbalance"] == "warning"
    assert codes(found)["small-class"] == "warning"
    assert codes(found)["class-missing"] == "warning"
    text = render(found)
    assert "many has 30 images, few 3 (10.0 times)" in text
    words = " ".join(text.split())  # without the line breaks
    assert "training balances them by itself" in words
    assert "--training.class-weights inverse or --training.sampling oversample" in words
    assert "No image in test of: few." in text


def test_a_class_that_train_lacks_is_an_error(
    run: Make, photos: Make, codes: Make, good: dict[str, bytes]
) -> None:
    found = run({**good, **photos("val", "new", 3, 500)})
    assert codes(found)["class-not-in-train"] == "error"


def test_a_class_whose_images_are_all_broken_is_an_error(
    run: Make, codes: Make, good: dict[str, bytes]
) -> None:
    found = run({**good, "train/c/x.jpg": b""})
    assert codes(found)["class-empty"] == "error"
    assert found.total().tolist() == [28, 26, 0]


def test_a_single_class_and_no_train_part(run: Make, photos: Make, codes: Make) -> None:
    assert {"one-class", "no-train"} <= set(codes(run(photos("test", "a", 3))))


def test_nothing_readable_and_nothing_at_all(run: Make, codes: Make) -> None:
    broken = run({"train/a/x.jpg": b"", "train/b/x.jpg": b"no"})
    empty = run({})
    for found in (broken, empty):
        assert codes(found)["no-images"] == "error"
        assert found.exit_code == 1
        assert render(found)
        json.dumps(found.to_dict())
    assert len(broken.bad) == 2


def test_conflicts_and_notes_of_the_source_are_passed_on(
    run: Make, codes: Make, good: dict[str, bytes]
) -> None:
    found = run(good, conflicts=(Conflict("x.jpg", ("a", "b")),), notes=("val was taken from train.",))
    assert codes(found)["conflicts"] == "warning"
    assert "x.jpg: a, b" in render(found)
    assert "val was taken from train." in render(found)


def test_small_measuring_parts_tell_their_uncertainty(run: Make, good: dict[str, bytes]) -> None:
    # Half of the 95 % interval of 0.9 measured on 8 images, by the normal approximation.
    expected = 100 * stats.norm.ppf(0.975) * np.sqrt(0.9 * 0.1 / 8)
    assert f"{expected:.1f} points" in render(run(good))


def test_lines_of_copies_name_what_differs(run: Make, good: dict[str, bytes]) -> None:
    """Also where most copies lie in one split: the one in another is not among those left out."""
    content = good["train/a/3.jpg"]
    more = {f"train/a/more {n}.jpg": content for n in range(6)}
    found = run({**good, **more, "val/b/copy.jpg": content})
    lines = {finding.code: finding.paths for finding in found.findings}
    assert lines["leakage-exact"] == (
        "train/a/3.jpg (train) = val/b/copy.jpg (val) = train/a/more 0.jpg (train) = "
        "train/a/more 1.jpg (train) = 4 more",
    )
    assert lines["labels-exact"][0].startswith("train/a/3.jpg (a) = val/b/copy.jpg (b) = ")


def test_far_smaller_images_are_listed_with_their_size(
    encoded: Make, photo: Make, run: Make, good: dict[str, bytes]
) -> None:
    small = {f"train/a/{n}x{n}.png": encoded(photo(n, n, n), "PNG") for n in (12, 5)}
    tiny = next(finding for finding in run({**good, **small}).findings if finding.code == "tiny")
    assert tiny.paths == ("train/a/5x5.png: 5x5", "train/a/12x12.png: 12x12")
    assert tiny.message == "2 images far smaller than the rest."


def test_classes_that_look_alike_are_a_warning(photos: Make, run: Make, codes: Make) -> None:
    files = {
        **photos("train", "Daisy", 20),
        **photos("train", "daisy", 21, 50),
        **photos("train", "n-a", 20, 90),
    }
    found = run({**files, **photos("train", "NaN", 20, 120)})
    assert codes(found)["classes-alike"] == codes(found)["class-missing-value"] == "warning"
    (alike,) = (finding for finding in found.findings if finding.code == "classes-alike")
    assert alike.paths == ("'Daisy' and 'daisy': 20, 21 images",)
    assert "'NaN'" in render(found)
