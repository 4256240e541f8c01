"""Small images of which each colour is bright or dark, so that each has several labels, and how to train on them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def make(folder: Path, count: int = 120, single: bool = False) -> Path:
    """Make images of which each colour is bright or dark, and a list that says which are bright."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with open(folder / "list.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "labels"])
        for n in range(count):
            bright = np.eye(3)[n % 3].astype(int) if single else rng.integers(0, 2, 3)
            pixels = rng.integers(0, 90, (16, 16, 3)) + 130 * bright
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{n:03}.png")
            names = [name for name, there in zip(("red", "green", "blue"), bright, strict=True) if there]
            writer.writerow([f"images/{n:03}.png", "|".join(names)])
    return folder


CHANGES: dict[str, Any] = {
    "model": {"name": "fast-cnn"},
    "augment": {"preset": "none"},
    "training": {"epochs": 4, "batch_size": 16, "threads": 1, "device": "cpu", "lr": 0.003},
    "speed": {"probe": False},
}


def changed(run: Path, **training: Any) -> dict[str, Any]:
    return CHANGES | {
        "training": {**CHANGES["training"], **training},
        "run": {"dir": str(run), "tensorboard": False},
    }


def data_of(run: Path) -> Path:
    return run.parent / "data"


def rows_of(run: Path, split: str = "test") -> list[dict[str, str]]:
    with open(run / "evaluation" / split / "predictions.csv", newline="") as stream:
        return list(csv.DictReader(stream))
