from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tellapart.data.health import duplicates, examine, measure, render
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


def test_a_search_without_end_is_stopped_and_told(
    encoded: Make, run: Make, codes: Make, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = encoded(Image.open(io.BytesIO(good["train/a/3.jpg"])), quality=50)
    monkeypatch.setattr(duplicates, "VERIFIED", 0)
    assert "search-stopped" in codes(run({**good, "train/a/again.jpg": again}))


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "brighter": (lambda image: image.point(lambda v: min(255, round(v * 1.25))), "brighter or darker"),
    "gamma": (lambda image: image.point(lambda v: round(255 * (v / 255) ** 0.6)), "brighter or darker"),
    "cropped": (lambda image: image.crop((3, 2, 157, 118)), "cropped"),
    "turned": (lambda image: image.rotate(1.5, Image.Resampling.BICUBIC), "turned"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down": (ImageOps.flip, "upside down"),
    "by 180": (lambda image: image.rotate(180), "turned by 180°"),
    "grey": (lambda image: image.convert("L"), "without colour"),
    "halved": (lambda image: image.resize((80, 60), Image.Resampling.BOX), "resized"),
    "again": (lambda image: image, "saved again"),
    "flat": (lambda image: image.point(lambda v: 64 + v // 2), "more or less contrast"),
    "mirrored and cropped": (lambda image: ImageOps.mirror(image).crop((3, 2, 157, 118)), "mirrored"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_the_change_is_named(
    change: str, encoded: Make, run: Make, good: dict[str, bytes]
) -> None:
    make, words = CHANGES[change]
    image = Image.open(io.BytesIO(good["train/a/3.jpg"])).convert("RGB")
    found = run({**good, "val/a/changed.jpg": encoded(make(image), quality=85)})
    (group,) = found.groups
    assert {image.path for image in group.images} == {"train/a/3.jpg", "val/a/changed.jpg"}
    assert not group.exact
    assert words in group.changes
    (line,) = next(finding.paths for finding in found.findings if finding.code == "leakage-near")
    assert words in line
    assert words in found.to_dict()["groups"][0]["changes"]


def test_copies_and_their_changes_are_found_whatever_the_order(
    encoded: Make, run: Make, good: dict[str, bytes]
) -> None:
    image = Image.open(io.BytesIO(good["train/a/3.jpg"]))
    changed = {"train/a/0 mirrored.jpg": encoded(ImageOps.mirror(image), quality=85)}
    one, other = run({**changed, **good}).groups, run({**good, **changed}).groups
    assert len(one) == len(other) == 1
    assert one[0].changes == other[0].changes == ("mirrored",)


def test_different_pictures_in_one_frame_are_no_copies(photo: Make, encoded: Make, run: Make) -> None:
    files = {}
    for n in range(30):
        framed = Image.new("RGB", (160, 120), "white")
        framed.paste(Image.new("RGB", (148, 108), "black"), (6, 6))
        framed.paste(photo(n, 136, 96).point(lambda v: 90 + v // 4), (12, 12))
        files[f"train/{'ab'[n % 2]}/{n}.png"] = encoded(framed, "PNG")
    assert run(files).groups == ()


def test_many_copies_of_one_picture_are_one_group(encoded: Make, run: Make, good: dict[str, bytes]) -> None:
    """Copies must not make each other look usual."""
    image = Image.open(io.BytesIO(good["train/a/3.jpg"]))
    copies = {
        f"train/a/copy{n}.jpg": encoded(image.crop((n % 4, n % 3, 160, 120)), quality=50 + n)
        for n in range(40)
    }
    more = {f"train/b/more{n}.jpg": content for n, content in enumerate(_photos(80))}
    (group,) = run({**good, **copies, **more}).groups
    assert len(group.images) == 41


def _photos(count: int) -> list[bytes]:
    generator = np.random.default_rng(9)
    contents = []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((96, 96), Image.Resampling.BICUBIC).save(stream, "JPEG")
        contents.append(stream.getvalue())
    return contents


def _tinted(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge(
        "RGB", (red.point(lambda v: min(255, v + 12)), green, blue.point(lambda v: max(0, v - 12)))
    )


def test_the_surest_copies_come_first(encoded: Make, run: Make, good: dict[str, bytes]) -> None:
    """Saved again, then in other colours, then mirrored: each less surely one picture, and all are reported."""
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "train/a/3.jpg": ImageOps.mirror,
        "train/a/4.jpg": _tinted,
        "train/a/5.jpg": lambda image: image,
    }
    opened = {name: Image.open(io.BytesIO(good[name])).convert("RGB") for name in changes}
    changed = {
        f"val/a/x{n}.jpg": encoded(change(opened[name]), quality=90)
        for n, (name, change) in enumerate(changes.items())
    }
    found = run({**good, **changed, "val/a/exact.jpg": good["train/a/1.jpg"]})
    firsts = [min(image.path for image in group.images) for group in found.groups]
    assert firsts == ["train/a/1.jpg", "train/a/5.jpg", "train/a/4.jpg", "train/a/3.jpg"]
    likeness = [group.likeness for group in found.groups]
    assert likeness[0] == 1
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[1] > likeness[2] + 0.05
    assert [group["likeness"] for group in found.to_dict()["groups"]] == [round(n, 3) for n in likeness]


def test_likeness_is_the_score_less_colour_and_mirroring(photo: Make, table: Make, encoded: Make) -> None:
    image = photo(1)
    files = [image, _tinted(image), ImageOps.mirror(image), ImageOps.mirror(_tinted(image))]
    contents = [encoded(file, "PNG") for file in files]
    samples = table({f"train/a/{n}.png": content for n, content in enumerate(contents)})
    measured, _ = measure.measure_all(samples, np.arange(4), contents.__getitem__, None, 10**9, 1)
    pairs, flips = np.array([[0, 1], [0, 2], [0, 3]]), np.array([0, 1, 1])
    likeness = duplicates.likeness_of(measured, pairs, flips, np.full(3, 0.95, np.float32))
    tint = (
        duplicates.COLOUR_COST * 12
    )  # both red less green and green less blue: 12 levels, where nothing clips
    expected = [0.95 - tint, 0.95 - duplicates.MIRRORED_COST, 0.95 - tint - duplicates.MIRRORED_COST]
    assert likeness == pytest.approx(expected, abs=0.006)
