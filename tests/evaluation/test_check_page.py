from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.data.health import Health, examine
from tellapart.data.samples import Samples
from tellapart.errors import UserError
from tellapart.evaluation import check_page
from tellapart.evaluation.check_page import write_check_page

VOID = {"meta", "img", "br", "line"}


class Page(html.parser.HTMLParser):
    """Collects tags and text; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text.replace("<wbr>", ""))  # where a name may break
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def images(self) -> list[Image.Image]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def photo(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def folder(root: Path, pictures: dict[str, Image.Image | bytes], **columns: Any) -> Samples:
    for path, picture in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            (root / path).write_bytes(picture)
        else:
            picture.save(root / path)
    classes = tuple(sorted({path.split("/")[1] for path in pictures}))
    return Samples(
        np.array(list(pictures), dtype=object),
        np.array([classes.index(path.split("/")[1]) for path in pictures]),
        np.array([path.split("/")[0] for path in pictures], dtype=object),
        classes,
        root=str(root),
        name="things",
        **columns,
    )


def arrays(count: int, classes: int, side: int = 12) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Samples(
        np.array([f"train/{n}" for n in range(count)], dtype=object),
        np.arange(count) % classes,
        np.full(count, "train", dtype=object),
        tuple(f"class {n:04d}" for n in range(classes)),
        name="arrays",
        pixels=pixels,
        keys=np.arange(count),
    )


@pytest.fixture
def messy(tmp_path: Path) -> tuple[Samples, Health]:
    pictures: dict[str, Image.Image | bytes] = {}
    for split, number in (("train", 14), ("val", 3)):
        for k, label in enumerate(
            ("蚂蚁", "نحل & <b>bees</b>".replace("/", "\u2215"), '<script>alert("x")<\u2215script>')
        ):
            for n in range(number):
                pictures[f"{split}/{label}/picture {n}.jpg"] = photo(100 * k + n + 1000 * (split == "val"))
    pictures["val/蚂蚁/copy.jpg"] = photo(2)
    pictures["train/蚂蚁/cut <i>.jpg"] = b"\xff\xd8\xff\xe0 not really"
    pictures["train/蚂蚁/blank.png"] = Image.new("RGB", (120, 90), "white")
    pictures["train/蚂蚁/large.png"] = photo(77, 700, 300)
    samples = folder(tmp_path / "data with spaces", pictures)
    return samples, examine(samples)


def test_the_page_stands_alone_and_is_well_formed(messy: tuple[Samples, Health], tmp_path: Path) -> None:
    samples, health = messy
    path = write_check_page(health, samples, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", text)
    assert len(page.images()) > 20
    assert max(max(image.size) for image in page.images()) <= 192
    assert list(tmp_path.glob("*.tmp")) == []


def test_names_are_escaped_and_shown(messy: tuple[Samples, Health], tmp_path: Path) -> None:
    samples, health = messy
    page = Page(write_check_page(health, samples, tmp_path / "page.html").read_text(encoding="utf-8"))
    for name in samples.classes:
        assert name in page.text
    assert "cut <i>.jpg" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b>bees"})


def test_everything_found_is_on_the_page(messy: tuple[Samples, Health], tmp_path: Path) -> None:
    samples, health = messy
    page = Page(write_check_page(health, samples, tmp_path / "page.html").read_text(encoding="utf-8"))
    for finding in health.findings:
        assert " ".join(finding.message.split()) in page.text.replace("  ", " ")
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {(attrs["href"] or "")[1:] for tag, attrs in page.tags if tag == "a"}
    assert ids == links == {"findings", "classes", "sizes", "suspects", "copies", "unreadable", "samples"}
    assert health.bad[0].reason in page.text
    assert "val/蚂蚁/copy.jpg" in page.text
    assert "in train and val" in page.text
    # Findings come first, the gravest at the top.
    levels = [
        attrs["class"]
        for tag, attrs in page.tags
        if tag == "div" and (attrs.get("class") or "").startswith("finding")
    ]
    assert levels[0] == "finding error"
    assert ("code", {}) in page.tags  # a flag in the advice


def test_bars_are_parts_of_the_largest_class(messy: tuple[Samples, Health]) -> None:
    _, health = messy
    table = check_page._class_table(health)
    largest = max(row["total"] for row in table["rows"])
    for row in table["rows"]:
        assert sum(row["bars"]) == pytest.approx(100 * row["total"] / largest, abs=0.01)
    assert table["total"] == sum(row["total"] for row in table["rows"])


def test_the_chart_places_sizes_by_their_logarithm(messy: tuple[Samples, Health]) -> None:
    _, health = messy
    chart = check_page._size_chart(health)
    assert chart is not None
    assert sum(circle["count"] for circle in chart["circles"]) == len(health.rows)
    assert all(chart["left"] <= circle["x"] <= chart["width"] - chart["right"] for circle in chart["circles"])
    assert all(
        chart["top"] <= circle["y"] <= chart["height"] - chart["bottom"] for circle in chart["circles"]
    )
    (common, rare) = chart["circles"]
    assert common["count"] == len(health.rows) - 1
    (x1, label1), (x2, label2) = chart["x_ticks"][0], chart["x_ticks"][-1]
    per_octave = (x2 - x1) / np.log2(int(label2.replace(",", "")) / int(label1.replace(",", "")))
    assert rare["x"] - common["x"] == pytest.approx(per_octave * np.log2(700 / 120), rel=0.07)
    assert rare["r"] < common["r"]


def test_augmented_pictures_are_shown_as_they_are(tmp_path: Path) -> None:
    samples = arrays(30, 3)
    before = np.asarray(photo(1))
    after = [np.random.default_rng(n).integers(0, 256, (24, 24, 3), dtype=np.uint8) for n in range(3)]
    grey = np.full((9, 9, 1), 77, dtype=np.uint8)
    path = write_check_page(
        examine(samples),
        samples,
        tmp_path / "page.html",
        augmented=[("<cat>", before, after), ("dog", grey, [grey])],
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "Before and after augmentation" in page.text
    assert "<cat>" in page.text
    shown = [np.asarray(image) for image in page.images() if image.size == (24, 24)]
    assert len(shown) == 3
    for image, expected in zip(shown, after, strict=True):
        np.testing.assert_array_equal(image, expected)  # small pictures are kept without loss
    assert sum(image.size == (9, 9) for image in page.images()) == 2


def test_the_page_stays_below_its_limit(tmp_path: Path) -> None:
    side = 64  # noise does not compress: about 12 KB each
    samples = arrays(400, 40, side)
    health = examine(samples)
    limit = check_page.TEXT_RESERVE + 300_000
    path = write_check_page(health, samples, tmp_path / "page.html", max_bytes=limit)
    assert path.stat().st_size < limit
    page = Page(path.read_text(encoding="utf-8"))
    assert 10 < len(page.images()) < 30
    assert "no picture" in page.text
    full = write_check_page(health, samples, tmp_path / "full.html")
    assert full.stat().st_size < 10_000_000
    assert len(Page(full.read_text(encoding="utf-8")).images()) > 200


def test_very_many_classes_and_bad_files_are_limited(tmp_path: Path) -> None:
    samples = arrays(1000, 1000, 8)
    pictures = samples.pixels
    assert pictures is not None

    def read(row: int) -> Any:
        if row % 3 == 0:
            raise OSError(5, "Input/output error")
        return pictures[row]

    health = examine(samples, read)
    path = write_check_page(health, samples, tmp_path / "page.html", read=read)
    page = Page(path.read_text(encoding="utf-8"))
    assert "940 classes of middling size are not shown" in page.text
    assert "… and 134 more." in page.text  # of 334 that cannot be read
    assert "more classes are not shown" in page.text
    assert path.stat().st_size < 2_000_000


def test_one_size_and_no_images(tmp_path: Path) -> None:
    samples = arrays(30, 2)
    page = Page(
        write_check_page(examine(samples), samples, tmp_path / "one.html").read_text(encoding="utf-8")
    )
    assert "All images are 12 x 12 pixels." in page.text
    empty = folder(tmp_path, {"train/a/x.jpg": b"", "train/b/x.jpg": b""})
    page = Page(write_check_page(examine(empty), empty, tmp_path / "none.html").read_text(encoding="utf-8"))
    assert "No image could be read." in page.text
    assert "There is nothing to show." in page.text


def test_a_picture_that_vanishes_leaves_a_gap(messy: tuple[Samples, Health], tmp_path: Path) -> None:
    samples, health = messy
    Path(samples.file(0)).unlink()
    page = Page(
        write_check_page(health, samples, tmp_path / "page.html", per_class=99).read_text(encoding="utf-8")
    )
    assert "no picture" in page.text


def test_boxes_are_cut_out(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 40), "red")
    picture.paste("blue", (10, 20, 30, 28))
    samples = folder(
        tmp_path, {"train/a/x.png": picture, "train/b/y.png": photo(1, 40, 40)},
        boxes=np.array([[10, 20, 30, 28], [np.nan] * 4]),
    )  # fmt: skip
    page = Page(
        write_check_page(examine(samples), samples, tmp_path / "page.html").read_text(encoding="utf-8")
    )
    cut, whole = page.images()
    assert (cut.size, whole.size) == ((20, 8), (40, 40))
    assert (np.asarray(cut) == (0, 0, 255)).all()


def test_paths_that_are_not_utf8_do_not_stop_the_page(tmp_path: Path) -> None:
    samples = arrays(30, 2)
    samples.paths[3] = "train/caf\udce9.jpg"
    path = write_check_page(examine(samples), samples, tmp_path / "page.html")
    Page(path.read_text(encoding="utf-8"))


def test_control_characters_of_names_are_spelt(tmp_path: Path) -> None:
    samples = arrays(30, 2)
    samples.paths[0] = "train/\x1b[31mred\x00.jpg"
    text = write_check_page(examine(samples), samples, tmp_path / "page.html").read_text(encoding="utf-8")
    assert r"train/\x1b[31mred\x00.jpg" in text
    assert "\x1b" not in text


def test_the_pages_folder_is_made_or_the_error_is_reported(tmp_path: Path) -> None:
    samples = arrays(4, 2)
    path = write_check_page(examine(samples), samples, tmp_path / "new" / "folder" / "page.html")
    assert path.is_file()
    with pytest.raises(UserError, match=r"cannot be written to .*page\.html"):
        write_check_page(examine(samples), samples, path / "page.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken"):
        write_check_page(examine(samples), samples, tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "taken"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (3e5, "293 KiB"), (5e6, "4.8 MiB"), (5e9, "4.7 GiB")],
)
def test_sizes_are_spelt(number: float, text: str) -> None:
    assert check_page._size(number) == text


@pytest.mark.parametrize(("low", "high"), [(4.0, 11.0), (8.9, 9.1), (0.0, 16.0)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    ticks = check_page._ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(2**low <= tick <= 2**high for tick in ticks)
    assert ticks == sorted(set(ticks))
