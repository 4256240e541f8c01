"""The advice at the end of a run: where it is shown and kept, and that no data keeps a run from ending."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart import workflow
from tellapart.evaluation.advice import Advice
from tellapart.printing import summary
from tellapart.workflow import advising

TINY: dict[str, Any] = {
    "model": {"name": "simple-cnn"},
    "training": {"epochs": 1, "batch_size": 16},
    "augment": {"preset": "none"},
    "run": {"tensorboard": False, "report": False},
}


def draw(label: int, number: int) -> np.ndarray:
    """A picture whose colour depends on its class, with noise: uint8 [16, 16, 3]."""
    rng = np.random.default_rng([label, number])
    tint = np.full(3, 90.0)
    tint[label] += 60
    return np.clip(tint + rng.normal(0, 15, 3) + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)


def train(data: Any, run: Path, **changes: Any) -> workflow.Result:
    return workflow.train(data, quiet=True, **TINY, **{"run.dir": str(run), **changes})


def titles(found: Advice | None) -> dict[str, set[str]]:
    assert found is not None
    return {
        "items": {one.title for one in found.items},
        "no help": {one.title for one in found.no_help},
        "missing": {one.title for one in found.unmeasured},
    }


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder of 210 images, and the names of the 12 that are in another class's folder."""
    root, wrong = tmp_path_factory.mktemp("mislabelled"), set[str]()
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(70):
            place = name
            if number < 4:
                place = ("ant", "bee", "cat")[(label + 1) % 3]
                wrong.add(f"{name}-{number}.png")
            (root / place).mkdir(exist_ok=True)
            Image.fromarray(draw(label, number)).save(root / place / f"{name}-{number}.png")
    return root, wrong


@pytest.fixture(scope="module")
def frozen(mislabelled: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> workflow.Result:
    """A frozen backbone that was trained on the right labels, and a head on the folder with wrong ones."""
    place = tmp_path_factory.mktemp("frozen")
    for label, name in enumerate(("ant", "bee", "cat")):
        (place / "right" / name).mkdir(parents=True)
        for number in range(100, 120):
            Image.fromarray(draw(label, number)).save(place / "right" / name / f"{number}.png")
    changes: dict[str, Any] = {"data.cache_dir": str(place / "cache"), "training.epochs": 6}
    first = train(place / "right", place / "first", **{**changes, "run.advice": False})
    assert first.advice is None
    assert not (first.run / "advice.json").exists()
    changes |= {"model.weights": str(first.run), "model.finetune": "head", "run.report": True}
    return train(mislabelled[0], place / "second", **changes)


def test_wrong_labels_are_suspected(frozen: workflow.Result, mislabelled: tuple[Path, set[str]]) -> None:
    assert "Corrected labels" in titles(frozen.advice)["items"]
    with open(frozen.run / "suspects.csv", newline="") as stream:
        listed = list(csv.DictReader(stream))
    found = {Path(row["path"]).name for row in listed}
    assert len(found & mislabelled[1]) / len(found) > 0.8
    assert len(found & mislabelled[1]) >= 6
    for row in listed:
        assert row["split"] in ("train", "val"), "the test split is not looked at"
        if Path(row["path"]).name in mislabelled[1]:
            assert Path(row["path"]).name.startswith(row["suggested"])


def test_advice_is_kept_shown_and_reported(frozen: workflow.Result) -> None:
    assert frozen.advice is not None
    kept = json.loads((frozen.run / "advice.json").read_text(encoding="utf-8"))
    assert Advice.from_dict(kept) == frozen.advice
    told = titles(frozen.advice)
    assert set.union(*told.values()) >= {"More images", "Corrected labels", "More time", "Larger input"}
    text = summary(frozen)
    assert frozen.advice.to_text(80) in text
    assert max(map(len, frozen.advice.to_text(80).splitlines())) <= 80
    page = (frozen.run / "report.html").read_text(encoding="utf-8")
    assert "What would help most" in page
    assert "labels to look at" in page
    assert page.count("% wrong") >= 6


def test_suspects_of_an_earlier_end_do_not_stay(
    frozen: workflow.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advising.label_doubts, "SURE", 1e9)
    again = workflow.resume(frozen.run, quiet=True)
    assert "Corrected labels" not in titles(again.advice)["items"]
    assert not (frozen.run / "suspects.csv").exists()
    assert "labels to look at" not in (frozen.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("classes", "count", "changes"),
    [
        (("ant", "bee"), 5, {}),
        (("ant", "bee"), 8, {"data.val_fraction": 0.0, "data.test_fraction": 0.0}),
        (("ant", "bee", "cat"), 12, {"data.cache": "off"}),
        (("1", "2", "3"), 12, {"training.loss": "ordinal"}),
        (("ant", "bee"), 90, {"data.val_fraction": 0.4, "augment.preset": "photo"}),
    ],
)
def test_a_run_ends_whatever_the_data(
    classes: tuple[str, ...],
    count: int,
    changes: dict[str, Any],
    make_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    result = train(make_folder(tmp_path / "data", classes, count), tmp_path / "run", **changes)
    told = titles(result.advice)
    assert set.union(*told.values()) >= {"More images", "Corrected labels", "More time", "Larger input"}
    if "data.val_fraction" in changes and not changes["data.val_fraction"]:
        assert all("no validation images" in one.why for one in result.advice.unmeasured)
        assert len(told["missing"]) == 4


def test_what_cannot_be_measured_does_not_end_a_run(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(advising, "_measured", fail)
    result = train(make_folder(tmp_path / "data"), tmp_path / "run")
    assert result.advice is None
    assert (result.run / "model.safetensors").exists()


def test_the_time_is_bounded(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time at all a batch of each split is answered, and the rest is left out and named."""
    monkeypatch.setattr(advising, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(advising, "SHARE", 0.0)
    result = train(make_folder(tmp_path / "data", count=80), tmp_path / "run", **{"data.val_fraction": 0.3})
    assert {"More images", "Corrected labels"} <= titles(result.advice)["missing"]


def test_larger_input_is_measured_on_the_files(tmp_path: Path) -> None:
    """Pictures whose class is a pattern that the input's size hardly resolves: a larger input is measured."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("fine", "plain")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(150):
            y, x = np.mgrid[:64, :64]
            image = 128 + rng.normal(0, 20, (64, 64, 1)) + (40 * ((x + y) % 4 < 2))[..., None] * (label == 0)
            image = np.repeat(image.clip(0, 255), 3, axis=2).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / name / f"{number}.png")
    changes = {"input.size": 32, "data.val_fraction": 0.4, "model.name": "fast-cnn"}
    result = train(tmp_path / "data", tmp_path / "run", **changes)
    told = titles(result.advice)
    assert "Larger input" in told["items"] | told["no help"]
