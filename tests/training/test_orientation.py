"""Whether training mirrors images: by their names, and by what the images themselves show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tellapart.data.samples import Samples
from tellapart.data.stores import thumbs
from tellapart.data.stores.images import Look
from tellapart.spec import DataSpec, Spec, update
from tellapart.training.resolution import DataFacts, Resolution, facts, mirroring
from tellapart.training.resolution.by_orientation import are_signs, directions

SMALL = Look(longest=32, shortest=32, grey=False, same=True)


def _letters(count: int, names: str, seed: int = 0, flip: bool = False, size: int = 48) -> tuple[Any, Any]:
    """Letters in dark on light ground, off the centre to either side; ``flip``: every second one is mirrored."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(26)
    labels = np.arange(count) % len(names)
    pictures = []
    for label in labels:
        ground, ink = rng.integers(150, 256, 3), rng.integers(0, 90, 3)
        picture = Image.new("RGB", (size, size), tuple(map(int, ground)))
        place = (size // 2 + int(rng.integers(-7, 8)), size // 2 + int(rng.integers(-7, 8)))
        ImageDraw.Draw(picture).text(place, names[label], fill=tuple(map(int, ink)), font=font, anchor="mm")
        pixels = np.asarray(picture)
        pictures.append(pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels)
    return np.stack(pictures), labels.astype(np.int64)


def _samples(pictures: Any, labels: Any, classes: tuple[str, ...]) -> Samples:
    paths = np.array([f"train/{n}" for n in range(len(labels))], dtype=object)
    return Samples(paths, labels, np.full(len(labels), "train", object), classes, pixels=pictures)


def _hflip(samples: Samples, **changes: Any) -> Any:
    spec = update(Spec(), {"model.weights": "none", **changes})  # a frozen head trains without augmentation
    found = Resolution(spec).by_data(facts.of_data(spec, samples))
    reason = next((c for c in found.choices if c.field == "augment.hflip"), None)
    return found.spec.augment.hflip, reason


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (("turn left", "turn right", "stop"), True),
        (("arrow-Left", "arrow-Right"), True),
        (("Linksabbiegen", "Rechtsabbiegen", "Halt"), True),
        (("左转", "右转", "直行"), True),
        (("virage à gauche", "virage à droite"), True),
        (("←", "→"), True),
        (("clockwise", "counterclockwise"), True),
        (("left", "cat"), False),  # nothing becomes another class
        (("bright", "dark"), False),
        (("copyright", "cat", "dog"), False),
        (("ants", "bees"), False),
    ],
)
def test_finds_classes_that_mirroring_swaps(classes: tuple[str, ...], found: bool) -> None:
    assert (directions(classes) is not None) == found
    spec = Resolution(Spec()).by_data(DataFacts(SMALL, 20_000, classes=classes)).spec
    assert spec.augment.hflip == (0.0 if found else 0.5)


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (tuple("0123456789"), True),
        (tuple("AbC"), True),
        (("one", "Two", "three"), True),
        (("b", "d", "other"), True),
        (("a", "cat", "dog", "fly"), False),
        (("10", "11", "12"), False),
        (("x", "airplane"), False),
    ],
)
def test_finds_digits_and_letters_by_name(classes: tuple[str, ...], found: bool) -> None:
    assert are_signs(classes) == found
    spec = Resolution(Spec()).by_data(DataFacts(SMALL, 20_000, classes=classes)).spec
    assert (spec.augment.hflip, spec.augment.rotation) == ((0.0, 10.0) if found else (0.5, 0.0))


@pytest.mark.parametrize(
    ("names", "flip", "matters"),
    [("bdpq", False, True), ("FEJR", False, True), ("bdpq", True, False), ("HOTX", False, False)],
)
def test_the_images_say_whether_they_have_sides(names: str, flip: bool, matters: bool) -> None:
    """Letters that are symmetric, or mirrored at random as photographs are, have no left and right."""
    pictures, labels = _letters(240, names, flip=flip)
    classes = tuple(f"kind {n}" for n in range(len(names)))
    hflip, choice = _hflip(_samples(pictures, labels, classes))
    assert hflip == (0.0 if matters else 0.5)
    assert choice.matters == matters
    if matters:
        assert "mirrored ones differ" in choice.reason
        assert "rightly" in choice.reason


def test_numbered_folders_of_pictures_without_sides_are_mirrored() -> None:
    pictures, labels = _letters(240, "HOTX")
    assert _hflip(_samples(pictures, labels, tuple("0123")))[0] == 0.5
    few = _samples(pictures[:30], labels[:30], tuple("0123"))  # too few to tell: the names count
    assert _hflip(few)[0] == 0.0


def test_digits_without_a_known_name_are_not_mirrored() -> None:
    from sklearn.datasets import load_digits

    known = load_digits()
    pictures = (known.images * 15).astype(np.uint8)
    names = tuple(f"class {n}" for n in range(10))
    hflip, choice = _hflip(_samples(pictures, known.target.astype(np.int64), names))
    assert hflip == 0.0
    assert choice.matters


@pytest.mark.parametrize("given", [{"augment.hflip": 0.25}, {"augment.preset": "cifar"}])
def test_what_is_given_decides(given: dict[str, Any]) -> None:
    pictures, labels = _letters(120, "bdpq")
    assert _hflip(_samples(pictures, labels, tuple("bdpq")), **given)[0] == given.get("augment.hflip", 0.5)


def test_nothing_is_measured_where_nothing_would_be_mirrored() -> None:
    def refuse() -> None:
        raise AssertionError("measured")

    for changes in ({"augment.preset": "none"}, {"augment.hflip": 0.0}):
        data = DataFacts(SMALL, 20_000, mirroring=refuse)
        Resolution(update(Spec(), changes)).by_data(data)


def test_a_resolved_spec_is_not_measured_again() -> None:
    pictures, labels = _letters(120, "bdpq")
    spec = update(Spec(), {"model.weights": "none"})
    samples = _samples(pictures, labels, tuple("wxyz"))
    once = Resolution(spec).by_data(facts.of_data(spec, samples)).spec
    again = Resolution(once).by_data(facts.of_data(once, samples))
    assert again.spec == once
    assert not again.choices


def test_what_is_random_is_not_called_sided() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        pictures = rng.integers(0, 255, (200, mirroring.SIDE, mirroring.SIDE), np.uint8)
        found = mirroring.measure(pictures, np.random.default_rng(seed).integers(0, 4, 200))
        assert found is not None
        assert not found.matters
        assert not found.harmless  # it sees nothing, so it cannot tell


@pytest.mark.parametrize(
    "pictures", [np.zeros((200, 32, 32), np.uint8), np.full((200, 32, 32), 255, np.uint8)]
)
def test_plain_images_are_measured_without_a_fault(pictures: Any) -> None:
    found = mirroring.measure(pictures, np.arange(200) % 2)
    assert found is not None
    assert found.score == 0.0


def test_too_few_images_or_one_class_say_nothing() -> None:
    assert mirroring.measure(np.zeros((20, 32, 32), np.uint8), np.arange(20) % 2) is None
    assert mirroring.measure(np.zeros((99, 32, 32), np.uint8), np.zeros(99, np.int64)) is None


def test_rows_are_spread_over_the_classes() -> None:
    labels = np.repeat(np.arange(3), [1000, 5, 50])
    rows = thumbs.rows_of_classes(labels, 30)
    assert np.bincount(labels[rows], minlength=3).tolist() == [13, 5, 12]
    assert len(set(rows.tolist())) == 30
    many = np.arange(500) % 250
    assert len(np.unique(many[thumbs.rows_of_classes(many, 400)])) == thumbs.CLASSES


def test_thumbnails_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (200, 10, 10)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    names = np.array(["bad.jpg", "good.png", "missing.png"], dtype=object)
    samples = Samples(names, np.zeros(3, np.int64), np.full(3, "train", object), ("a", "b"), str(tmp_path))
    pictures, rows = thumbs.thumbnails(samples, DataSpec(), np.arange(3), 16)
    assert rows.tolist() == [1]
    assert pictures.shape == (1, 16, 16)
