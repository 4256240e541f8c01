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
    for decode in ("auto", "scaled"):
        result = train(photographs, tmp_path / decode, **{"input.decode": decode})
        model = tellapart.load(result.run)
        assert model.card.preprocessing.decode == ("full" if decode == "auto" else "scaled")
        assert (
            f"decode: {'crops' if decode == 'auto' else 'scaled'}" in (result.run / "spec.yaml").read_text()
        )
        with open(result.run / "evaluation" / "val" / "predictions.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        files = [photographs / row["path"] for row in rows]
        answers[decode] = model.probabilities(files)
        truth = [model.classes.index(row["label"]) for row in rows]
        evaluated = np.array([float(row["label_probability"]) for row in rows])
        assert np.abs(answers[decode][np.arange(len(rows)), truth] - evaluated).max() < 1e-5
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        by_pillow = model.probabilities(pictures)
        assert np.array_equal(by_pillow, answers[decode]) == (decode == "auto"), "whole is what Pillow gives"
    purposes = [path.read_text() for path in (tmp_path / "auto").rglob("about.json")]
    assert any("sources" in text and " scaled " in text for text in purposes), (
        "random crops are of reduced ones"
    )


@pytest.fixture
def sensor(tmp_path: Path) -> Path:
    """Two classes of 16-bit grey pictures whose numbers stay below 4096; in 8 bits, as in 16, one is the other / 16."""
    for split, count in (("train", 8), ("val", 4)):
        for label, high in (("dark", 1500), ("light", 4000)):
            folder = tmp_path / "sensor" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng(number + high + 100 * count)
                values = rng.integers(0, high, (20, 20), dtype=np.uint16)
                Image.fromarray(values).save(folder / f"{number}.png")
    Image.fromarray(np.full((20, 20), 4080, np.uint16)).save(
        tmp_path / "sensor" / "train" / "light" / "most.png"
    )
    return tmp_path / "sensor"


@pytest.mark.parametrize("given", ["full", "max", "0-4095"])
def test_a_range_goes_from_the_option_to_the_answer(
    sensor: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"augment.preset": "none", "input.size": 20, "input.range": given, "training.epochs": 1}
    result = train(sensor, tmp_path / "run", **changes)
    model = tellapart.load(result.run)
    expected = {"full": None, "max": (0.0, 4080.0), "0-4095": (0.0, 4095.0)}[given]
    assert model.card.preprocessing.range == expected
    with open(result.run / "evaluation" / "val" / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = [sensor / row["path"] for row in rows]
    numbers = [np.asarray(Image.open(file)).astype(float) for file in files]
    low, high = expected or (0.0, 65535.0)
    eight = [np.floor((n - low) / (high - low) * 255 + 0.5).astype(np.uint8) for n in numbers]
    answers = model.probabilities(files)
    np.testing.assert_array_equal(model.probabilities(eight), answers)
    truth = [model.classes.index(row["label"]) for row in rows]
    evaluated = np.array([float(row["label_probability"]) for row in rows])
    assert np.abs(answers[np.arange(len(rows)), truth] - evaluated).max() < 1e-5
    warned = "so they become nearly black" in capsys.readouterr().err
    assert warned == (given == "full")


def test_an_unused_range_is_reported(sensor: Path, tmp_path: Path) -> None:
    from tellapart.data.sources import opening
    from tellapart.data.stores.images import look
    from tellapart.spec import DataSpec

    findings = {finding.code: finding for finding in tellapart.check(sensor, quiet=True).findings}
    assert (
        "25 images of more than 8 bits with no number above 4,080 of 65,535"
        in findings["unused-range"].message
    )
    assert "--input.range 0-4095" in findings["unused-range"].advice
    samples = opening.open_source(DataSpec(source=str(sensor)), lambda note: None)
    seen = look(samples, DataSpec())
    assert "the largest number is 4,080 of 65,535, so they become nearly black" in seen.unused_range()
    assert "--input.range 0-4095, or --input.range max" in seen.unused_range()
    for folder in sensor.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(folder)) * np.uint16(16)).save(folder)
    assert not look(samples, DataSpec()).unused_range()
    assert "unused-range" not in {finding.code for finding in tellapart.check(sensor, quiet=True).findings}
