"""Whole runs: without the cache the same weights as with it, and reduced JPEGs alike in training and prediction."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import tellapart


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of smooth JPEGs, large enough to be reduced, of different shapes; one file is damaged."""
    for split, count in (("train", 8), ("val", 3)):
        for label, colour in (("blue", 2), ("red", 0)):
            folder = tmp_path / "photographs" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng(number + 100 * colour + 1000 * count)
                small = rng.integers(0, 120, (7, 9, 3), dtype=np.uint8)
                small[..., colour] += 110
                size = (150 + 8 * number, 160 - 5 * number)
                Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    (tmp_path / "photographs" / "train" / "red" / "5.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path / "photographs"


def train(source: Path, folder: Path, **changes: Any) -> Any:
    changes = {
        "model.name": "simple-cnn",
        "input.size": 32,
        "augment.preset": "photo",
        "training.epochs": 2,
        "training.batch_size": 4,
        "data.cache_dir": str(folder / "cache"),
        "run.dir": str(folder / "run"),
        "run.report": False,
        "run.tensorboard": False,
        **changes,
    }
    return tellapart.train(source, quiet=True, **changes)


def test_without_the_cache_the_weights_are_the_same(photographs: Path, tmp_path: Path) -> None:
    cached = train(photographs, tmp_path / "one")
    limited = train(photographs, tmp_path / "two", **{"data.cache_limit": 1e-9})
    off = train(photographs, tmp_path / "three", **{"data.cache": "off", "data.workers": 3})
    processes = {"data.cache": "off", "data.workers": 2, "data.worker_kind": "processes"}
    other_processes = train(photographs, tmp_path / "four", **processes)
    assert list((tmp_path / "one").rglob("pixels.bin"))
    first = safetensors.torch.load_file(cached.artifact)
    for result, name in ((limited, "two"), (off, "three"), (other_processes, "four")):
        assert not list((tmp_path / name).rglob("pixels.bin"))
        other = safetensors.torch.load_file(result.artifact)
        assert all(torch.equal(first[key], other[key]) for key in first)
        for table in ("samples.csv", "bad-images.csv"):
            assert (result.run / table).read_bytes() == (cached.run / table).read_bytes()
    assert "5.jpg" in (off.run / "bad-images.csv").read_text()


def test_prediction_decodes_as_training_did(photographs: Path, tmp_path: Path) -> None:
    answers = {}
    for decode in ("auto", "full"):
        result = train(photographs, tmp_path / decode, **{"input.decode": decode})
        model = tellapart.load(result.run)
        assert model.card.preprocessing.decode == ("full" if decode == "full" else "scaled")
        with open(result.run / "evaluation" / "val" / "predictions.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        files = [photographs / row["path"] for row in rows]
        answers[decode] = model.probabilities(files)
        truth = [model.classes.index(row["label"]) for row in rows]
        evaluated = np.array([float(row["label_probability"]) for row in rows])
        assert np.abs(answers[decode][np.arange(len(rows)), truth] - evaluated).max() < 1e-5
    assert not np.array_equal(answers["auto"], answers["full"]), "these photographs are reduced"
