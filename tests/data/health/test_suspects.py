from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import stats

from tellapart.data.health import SUSPECT_SCORE, robust_scores

Make = Callable[..., Any]


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
    encoded: Make, run: Make, codes: Make, good: dict[str, bytes], make: Callable[[], Image.Image]
) -> None:
    found = run({**good, "train/b/12345.jpg": encoded(make())})
    assert found.suspects[0].image.path == "train/b/12345.jpg"
    assert found.suspects[0].reasons
    assert found.suspects[0].score >= SUSPECT_SCORE
    assert "suspects" in codes(found)


def test_few_suspects_among_pictures_of_one_kind(run: Make, good: dict[str, bytes]) -> None:
    assert len(run(good).suspects) <= 2


def test_too_few_images_have_no_suspects(encoded: Make, run: Make, photos: Make) -> None:
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
