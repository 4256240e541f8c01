from __future__ import annotations

import io
import json
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import stats

from tellapart.data import health
from tellapart.data.health import Health, dhash, examine, near_pairs, render, robust_scores
from tellapart.data.samples import Conflict, Samples


def photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with the statistics of a photograph: smooth large shapes, fine detail, many colours."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, strength in ((4, 60), (9, 35), (30, 15)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(layer)
    picture += rng.normal(0, 6, picture.shape) + 120
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def table(files: dict[str, bytes], root: Path | None = None, **columns: Any) -> Samples:
    """Samples of files named SPLIT/CLASS/NAME, written under ``root`` or read from memory (see `run`)."""
    paths = list(files)
    classes = tuple(sorted({path.split("/")[1] for path in paths}))
    if root is not None:
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    return Samples(
        paths=np.array(paths, dtype=object),
        labels=np.array([classes.index(path.split("/")[1]) for path in paths], dtype=np.int64),
        splits=np.array([path.split("/")[0] for path in paths], dtype=object),
        classes=classes,
        root=str(root or ""),
        name="things",
        **columns,
    )


def run(files: dict[str, bytes], **columns: Any) -> Health:
    contents = list(files.values())
    return examine(table(files, **columns), contents.__getitem__)


def photos(split: str, label: str, count: int, seed: int = 0) -> dict[str, bytes]:
    return {f"{split}/{label}/{n}.jpg": encoded(photo(seed + n)) for n in range(count)}


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    return {
        **photos("train", "a", 24),
        **photos("train", "b", 22, 100),
        **photos("val", "a", 4, 200),
        **photos("val", "b", 4, 300),
    }


def codes(found: Health) -> dict[str, str]:
    return {finding.code: finding.level for finding in found.findings}


# --- what is in the files ----------------------------------------------------------------------------------


def test_a_healthy_set(good: dict[str, bytes]) -> None:
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


def test_unusual_files_are_counted(good: dict[str, bytes], tmp_path: Path) -> None:
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


def test_a_grey_set_is_no_finding() -> None:
    files = {
        f"train/{c}/{n}.png": encoded(photo(n + 50 * (c == "b")).convert("L"), "PNG")
        for c in "ab"
        for n in range(21)
    }
    found = run(files)
    assert not found.is_colour
    assert found.grey == ()
    assert "grey" not in codes(found)


def test_unreadable_files_have_reasons_and_do_not_count(good: dict[str, bytes], tmp_path: Path) -> None:
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
    assert "No such file" in reasons["val/b/gone.jpg"]
    assert "HTML" in reasons["train/a/page.jpg"]
    assert found.counts == {"train": [24, 22], "val": [4, 4]}
    assert len(found.rows) == len(good)
    assert codes(found)["unreadable"] == "warning"
    assert "train/a/zero.jpg: " in render(found)


def test_too_many_pixels_and_too_little_memory_count_as_unreadable(good: dict[str, bytes]) -> None:
    contents = list(good.values())

    def read(row: int) -> bytes:
        if row == 3:
            raise MemoryError
        return encoded(photo(1, 640, 480)) if row == 5 else contents[row]

    found = examine(table(good), read, max_pixels=100_000)
    assert [item.image.row for item in found.bad] == [3, 5]
    assert found.bad[0].reason == "does not fit in memory"
    assert "pixels" in found.bad[1].reason


# --- duplicates --------------------------------------------------------------------------------------------


def test_copies_across_splits_are_leaks(good: dict[str, bytes]) -> None:
    name, content = next(iter(good.items()))
    found = run({**good, "val/a/copy.jpg": content})
    assert codes(found)["leakage-exact"] == "error"
    assert found.exit_code == 1
    (group,) = found.groups
    assert group.exact
    assert {image.path for image in group.images} == {name, "val/a/copy.jpg"}
    assert "--data.group" in render(found)


def test_changed_copies_across_splits_are_found(good: dict[str, bytes]) -> None:
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


def test_exact_leak_inside_a_group_of_near_copies(good: dict[str, bytes]) -> None:
    content = good["train/a/3.jpg"]
    again = encoded(Image.open(io.BytesIO(content)), quality=50)
    found = run({**good, "val/a/copy.jpg": content, "train/a/again.jpg": again})
    (group,) = found.groups
    assert len(group.images) == 3
    assert not group.exact
    assert codes(found)["leakage-exact"] == "error"
    assert "leakage-near" not in codes(found)


def test_one_picture_with_two_labels(good: dict[str, bytes]) -> None:
    content = good["train/a/3.jpg"]
    again = encoded(Image.open(io.BytesIO(good["train/a/5.jpg"])), quality=50)
    found = run({**good, "train/b/copy.jpg": content, "train/b/again.jpg": again})
    assert codes(found)["labels-exact"] == "error"
    assert codes(found)["labels-near"] == "warning"
    assert len(found.groups) == 2


def test_copies_within_a_split_are_only_mentioned(good: dict[str, bytes]) -> None:
    found = run(
        {**good, "train/a/copy.jpg": good["train/a/3.jpg"], "train/a/copy2.jpg": good["train/a/3.jpg"]}
    )
    assert codes(found)["duplicates"] == "info"
    assert found.exit_code == 0
    assert "2 further copies" in render(found)


def test_boxes_of_one_image_are_no_duplicates(good: dict[str, bytes]) -> None:
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


def test_blank_pictures_are_not_copies_of_each_other_unless_their_bytes_are() -> None:
    blank = {f"train/a/{n}.png": encoded(Image.new("RGB", (80, 80), (n, n, n)), "PNG") for n in range(4)}
    found = run({**blank, "train/b/x.png": blank["train/a/0.png"]})
    (group,) = found.groups
    assert group.exact


def test_data_in_which_all_is_alike_needs_more_likeness() -> None:
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
    good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, complete = near_pairs(
        np.zeros(5000, dtype=np.uint64), lambda pairs: np.zeros(len(pairs), bool), budget=1000
    )
    assert not complete
    real = health.near_pairs
    monkeypatch.setattr(health, "near_pairs", lambda hashes, alike: real(hashes, alike, budget=0))
    assert "search-stopped" in codes(run(good))


def test_dhash_is_the_sign_of_the_differences_of_cell_means() -> None:
    grey = photo(7, 144, 80).convert("L")  # cells of exactly 16x10 pixels
    means = np.asarray(grey, dtype=np.float64).reshape(8, 10, 9, 16).mean(axis=(1, 3))
    steps = means[:, 1:] - means[:, :-1]
    bits = np.array([int(bit) for bit in f"{dhash(grey):064b}"]).reshape(8, 8)
    clear = np.abs(steps) > 1  # rounding of the means to integers may change the others
    assert clear.mean() > 0.8
    assert (bits[clear] == (steps[clear] > 0)).all()


# --- suspects ----------------------------------------------------------------------------------------------


def placeholder() -> Image.Image:
    image = Image.new("RGB", (300, 300), (244, 244, 244))
    ImageDraw.Draw(image).text((80, 140), "IMAGE NOT FOUND", fill=(90, 90, 90))
    return image


def chart() -> Image.Image:
    image = Image.new("RGB", (300, 240), "white")
    for n, colour in enumerate(("red", "blue", "green", "orange")):
        ImageDraw.Draw(image).rectangle((30 + 60 * n, 220 - 40 * n, 70 + 60 * n, 220), fill=colour)
    return image


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "make",
    [placeholder, chart, noise, lambda: Image.new("RGB", (160, 120), (90, 100, 60))],
    ids=["text", "chart", "noise", "blank"],
)
def test_what_is_no_photograph_is_the_first_suspect(
    good: dict[str, bytes], make: Callable[[], Image.Image]
) -> None:
    found = run({**good, "train/b/12345.jpg": encoded(make())})
    assert found.suspects[0].image.path == "train/b/12345.jpg"
    assert found.suspects[0].reasons
    assert found.suspects[0].score >= health.SUSPECT_SCORE
    assert "suspects" in codes(found)


def test_few_suspects_among_pictures_of_one_kind(good: dict[str, bytes]) -> None:
    assert len(run(good).suspects) <= 2


def test_too_few_images_have_no_suspects() -> None:
    assert run({**photos("train", "a", 5), "train/b/x.jpg": encoded(chart())}).suspects == ()


def test_robust_scores_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).standard_t(2, (200, 3))
    scale = stats.median_abs_deviation(values, scale="normal", axis=0)
    expected = (values - np.median(values, axis=0)) / scale
    np.testing.assert_allclose(robust_scores(values), expected, rtol=1e-4)


def test_robust_scores_of_columns_with_hardly_any_spread() -> None:
    values = np.zeros((100, 2))
    values[0, 0] = 3.0  # the median deviation is 0: the mean one counts
    scores = robust_scores(values)
    assert scores[0, 0] == pytest.approx(3 / (1.2533 * 0.03))
    assert (scores[1:] == 0).all()
    assert (scores[:, 1] == 0).all()


# --- classes -----------------------------------------------------------------------------------------------


def test_unequal_and_small_classes_name_the_flags() -> None:
    found = run(
        {**photos("train", "many", 30), **photos("train", "few", 3, 100), **photos("test", "many", 4, 200)}
    )
    assert codes(found)["imbalance"] == "warning"
    assert codes(found)["small-class"] == "warning"
    assert codes(found)["class-missing"] == "warning"
    text = render(found)
    assert "many has 30 images, few 3 (10.0 times)" in text
    assert "--training.class-weights inverse" in text
    assert "--training.sampling" in text
    assert "No image in test of: few." in text


def test_a_class_that_train_lacks_is_an_error(good: dict[str, bytes]) -> None:
    found = run({**good, **photos("val", "new", 3, 500)})
    assert codes(found)["class-not-in-train"] == "error"


def test_a_class_whose_images_are_all_broken_is_an_error(good: dict[str, bytes]) -> None:
    found = run({**good, "train/c/x.jpg": b""})
    assert codes(found)["class-empty"] == "error"
    assert found.total().tolist() == [28, 26, 0]


def test_a_single_class_and_no_train_part() -> None:
    assert {"one-class", "no-train"} <= set(codes(run(photos("test", "a", 3))))


def test_nothing_readable_and_nothing_at_all() -> None:
    broken = run({"train/a/x.jpg": b"", "train/b/x.jpg": b"no"})
    empty = run({})
    for found in (broken, empty):
        assert codes(found)["no-images"] == "error"
        assert found.exit_code == 1
        assert render(found)
        json.dumps(found.to_dict())
    assert len(broken.bad) == 2


def test_conflicts_and_notes_of_the_source_are_passed_on(good: dict[str, bytes]) -> None:
    found = run(good, conflicts=(Conflict("x.jpg", ("a", "b")),), notes=("val was taken from train.",))
    assert codes(found)["conflicts"] == "warning"
    assert "x.jpg: a, b" in render(found)
    assert "val was taken from train." in render(found)


def test_small_measuring_parts_tell_their_uncertainty(good: dict[str, bytes]) -> None:
    # Half of the 95 % interval of 0.9 measured on 8 images, by the normal approximation.
    expected = 100 * stats.norm.ppf(0.975) * np.sqrt(0.9 * 0.1 / 8)
    assert f"{expected:.1f} points" in render(run(good))


# --- the pass ----------------------------------------------------------------------------------------------


def test_arrays_are_examined_without_files() -> None:
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


def test_progress_reaches_the_end_and_stages_are_said(good: dict[str, bytes]) -> None:
    steps: list[tuple[int, int]] = []
    said: list[str] = []
    contents = list(good.values())
    examine(table(good), contents.__getitem__, progress=lambda *step: steps.append(step), say=said.append)
    assert steps[-1] == (len(good), len(good))
    assert steps == sorted(steps)
    assert len(said) == 1


def test_the_result_does_not_depend_on_the_threads(good: dict[str, bytes]) -> None:
    files = {
        **good,
        "val/a/copy.jpg": good["train/a/3.jpg"],
        "train/a/bad.jpg": b"",
        "train/b/chart.png": encoded(chart(), "PNG"),
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


# --- output ------------------------------------------------------------------------------------------------


def test_text_and_json_of_names_in_many_scripts(good: dict[str, bytes]) -> None:
    names = {"a": "蚂蚁" * 10, "b": "نحل"}
    files = {}
    for path, content in good.items():
        split, label, name = path.split("/")
        files[f"{split}/{names[label]}/{name}"] = content
    files["val/نحل/copy \udcff.jpg"] = good["train/a/3.jpg"]
    found = run(files)
    text = render(found)
    text.encode("utf-8")
    for line in text.splitlines():
        if "/" not in line:  # paths are never cut
            assert health._columns(line) <= 80
    assert "نحل" in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["counts"]["train"]["نحل"] == 22
    assert plain["exit_code"] == 1
    assert plain["groups"][0]["exact"] is True
    assert plain["images"] == len(files)


def test_columns_of_a_terminal() -> None:
    assert health._columns("ant") == 3
    assert health._columns("蚂蚁") == 4
    assert health._columns("e\u0301") == 1
    assert health._pad("蚂蚁蚂蚁", 5) == "蚂蚁…"
    assert health._columns(health._pad("蚂蚁蚂蚁", 6)) == 6


def test_very_many_classes_are_shortened() -> None:
    classes = [f"class {n:03d}" for n in range(100)]
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    samples = Samples(
        np.array([f"train/{n}" for n in range(100)], dtype=object),
        np.arange(100),
        np.full(100, "train", dtype=object),
        tuple(classes),
        pixels=pixels,
        keys=np.arange(100),
    )
    text = render(examine(samples))
    assert "60 more classes" in text
    assert len(text.splitlines()) < 70
