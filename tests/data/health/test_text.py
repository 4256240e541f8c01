from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tellapart.data.health import examine, render, text
from tellapart.data.samples import Samples

Make = Callable[..., Any]


def test_text_and_json_of_names_in_many_scripts(run: Make, good: dict[str, bytes]) -> None:
    names = {"a": "蚂蚁" * 10, "b": "نحل"}
    files = {}
    for path, content in good.items():
        split, label, name = path.split("/")
        files[f"{split}/{names[label]}/{name}"] = content
    files["val/نحل/copy \udcff.jpg"] = good["train/a/3.jpg"]
    found = run(files)
    shown = render(found)
    shown.encode("utf-8")
    for line in shown.splitlines():
        if "/" not in line:  # paths are never cut
            assert text._columns(line) <= 80
    assert "نحل" in shown
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["counts"]["train"]["نحل"] == 22
    assert plain["exit_code"] == 1
    assert plain["groups"][0]["exact"] is True
    assert plain["images"] == len(files)


def test_columns_of_a_terminal() -> None:
    assert text._columns("ant") == 3
    assert text._columns("蚂蚁") == 4
    assert text._columns("e\u0301") == 1
    assert text._pad("蚂蚁蚂蚁", 5) == "蚂蚁…"
    assert text._columns(text._pad("蚂蚁蚂蚁", 6)) == 6


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
    shown = render(examine(samples))
    assert "60 more classes" in shown
    assert len(shown.splitlines()) < 70


def test_unreadable_files_are_listed_up_to_a_limit(run: Make, good: dict[str, bytes]) -> None:
    found = run({**good, **{f"train/a/bad {n:02d}.jpg": b"" for n in range(25)}})
    shown = render(found)
    assert sum("empty file" in line for line in shown.splitlines()) == 20
    assert "… and 5 more" in shown
    assert shown.splitlines()[-1].startswith("Full lists: --json")
    assert "Full lists" not in render(run(good))


def test_names_cannot_break_lines_or_colour_the_terminal(run: Make, good: dict[str, bytes]) -> None:
    shown = render(run({**good, "train/a/x\ny\x1b[31m \udce9.jpg": b""}))
    assert r"train/a/x\x0ay\x1b[31m \udce9.jpg: empty file" in shown


def test_one_image_is_no_images(photos: Make, run: Make) -> None:
    assert render(run(photos("train", "a", 1))).startswith("things: 1 image, 1 class\n")
