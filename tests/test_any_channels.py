"""A run on images of five channels that are not square, from files to answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tellapart
from tellapart import runs
from tellapart.artifact import read_card
from tellapart.predict import Classifier

QUIET = {"run.tensorboard": False, "run.report": True}


def make(root: Path, count: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for split, many in (("train", count), ("val", 4)):
        for label, name in enumerate(("wet", "dry")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(many):
                image = rng.integers(0, 4000, (24, 40, 5)).astype(np.uint16)
                image[..., 4] = 1000 + 2500 * label  # the last channel says it all
                np.save(folder / f"{number}.npy", image.transpose(2, 0, 1) if number % 2 else image)
    np.save(root / "train" / "wet" / "other.npy", np.zeros((24, 40, 3), np.uint8))
    return root


@pytest.mark.slow
def test_five_channels_from_files_to_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "data")
    options = {
        "input.size": (16, 24),
        "input.range": "0-4095",
        "augment.preset": "photo",
        "model.name": "fast-cnn-small",
        "training.epochs": 6,
        "run.dir": str(tmp_path / "run"),
    }
    tellapart.train(str(source), **{**QUIET, **options})
    folder = tmp_path / "run"
    spec, card = runs.read_spec(folder / runs.SPEC_FILE), read_card(folder)
    assert (spec.input.size, spec.input.channels, len(spec.input.mean)) == ((16, 24), 5, 5)
    assert (spec.augment.saturation, spec.augment.hue) == (0, 0)
    assert card.preprocessing.sides == (16, 24)
    assert abs(card.preprocessing.mean[4] - 2250 / 4095) < 0.01  # of the training images
    assert "other.npy,has 3 channels; the input has 5" in (folder / "bad-images.csv").read_text()
    assert "The input has 5 channels, as the files have." in capsys.readouterr().err
    classifier: Classifier = tellapart.load(folder)
    answers = classifier.predict(
        [source / "val" / name / f"{n}.npy" for name in ("wet", "dry") for n in range(4)]
    )
    assert [answer.label for answer in answers] == ["wet"] * 4 + ["dry"] * 4
