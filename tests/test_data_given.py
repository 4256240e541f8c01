"""Objects, and sections of a spec, as the data of evaluate, export and compress: what a path of the same images gives."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tellapart
from tellapart import artifact, runs, workflow
from tellapart.errors import DataError, SpecError
from tellapart.export.outcome import Parity
from tellapart.spec import DataSpec, Spec, update
from tellapart.tracking import Console
from tellapart.workflow.cases import cases_of
from tellapart.workflow.given import named

CLASSES = ("ant", "bee", "cat")


def listed(root: Path, split: str) -> list[tuple[str, str]]:
    return [(str(path), path.parent.name) for path in sorted((root / split).glob("*/*.png"))]


def pictures(root: Path, split: str) -> list[tuple[Image.Image, int]]:
    return [(Image.open(path).convert("RGB"), CLASSES.index(name)) for path, name in listed(root, split)]


def arrays(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*pictures(root, split), strict=True)
    return np.stack([np.asarray(image) for image in images]), np.array(labels)


def table(root: Path, split: str, folder: Path) -> Path:
    file = folder / f"{split}.csv"
    lines = [f"{path},{label}" for path, label in listed(root, split)]
    file.write_text("\n".join(["where,kind", *lines]) + "\n", encoding="utf-8")
    return file


def sections(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {"source": str(file), "path_column": "where", "label_column": ("kind",)}
    return {"mapping": fields, "DataSpec": DataSpec(**fields), "Spec": update(Spec(), {"data": fields})}


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "paths": lambda root, folder: listed(root, "test"),
    "pictures": lambda root, folder: pictures(root, "test"),
    "arrays": lambda root, folder: arrays(root, "test"),
    "splits": lambda root, folder: {"test": pictures(root, "test")},
    **{
        name: lambda root, folder, name=name: sections(table(root, "test", folder))[name]  # type: ignore[misc]
        for name in ("mapping", "DataSpec", "Spec")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_measures_the_same_images(kind: str, trained: Any, tmp_path: Path) -> None:
    expected = tellapart.evaluate(trained.run, trained.data / "test", quiet=True)
    found = tellapart.evaluate(trained.run, KINDS[kind](trained.data, tmp_path), quiet=True)
    assert (found.n, found.confusion.tolist()) == (expected.n, expected.confusion.tolist())
    assert found.loss == pytest.approx(expected.loss)


@pytest.mark.parametrize("kind", ["arrays", "Spec"])
def test_export_compares_on_the_same_images(kind: str, trained: Any, tmp_path: Path) -> None:
    """In a process of its own, which gets what is in objects as pixels."""
    given = KINDS[kind](trained.data, tmp_path)
    done = tellapart.export(
        trained.run, "torchscript", tmp_path / "out", data=given, images=9, threads=1, quiet=True
    )
    assert done.passed
    (one,) = done.parities
    assert isinstance(one, Parity)
    assert one.n == 9
    assert "object:" in one.origin or str(tmp_path) in one.origin


def test_a_split_of_given_objects_is_chosen(trained: Any) -> None:
    given = {"val": pictures(trained.data, "val")[:5], "test": pictures(trained.data, "test")[:7]}
    given, fields = named(given)
    card, console = artifact.read_card(trained.run), Console(quiet=True)
    for split, count in (("", 5), ("test", 7), ("all", 12)):
        cases = cases_of(trained.run / "model.safetensors", card, given, fields, split, 500, console)
        assert len(cases.images) == count


def test_numbers_are_named(trained: Any) -> None:
    """Labels that are places in another order than the model's classes."""
    turned = [(image, 2 - label) for image, label in pictures(trained.data, "test")]
    same = tellapart.evaluate(trained.run, trained.data / "test", quiet=True)
    assert (
        tellapart.evaluate(trained.run, turned, classes=CLASSES[::-1], quiet=True).accuracy == same.accuracy
    )
    given, fields = named(turned, classes=CLASSES[::-1])
    card, console = artifact.read_card(trained.run), Console(quiet=True)
    cases = cases_of(trained.run / "model.safetensors", card, given, fields, "", 500, console)
    assert sorted(case.label for case in cases.images) == sorted(
        label for _, label in pictures(trained.data, "test")
    )


def test_what_is_no_data_is_refused(trained: Any, tmp_path: Path) -> None:
    for given, error in (
        ({"source": "nowhere", "sorce": 1}, DataError),
        (3, DataError),
        ({"source": "nowhere", "format": "folders"}, SpecError),
    ):
        for call in (workflow.evaluate, workflow.export, workflow.compress):
            with pytest.raises(error):
                call(trained.run, data=given, out=tmp_path / "out", quiet=True)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_compress_trains_and_measures_on_objects(trained: Any, tmp_path: Path) -> None:
    """What folders of the same images give, to the bit."""
    pytest.importorskip("torch_pruning")
    few: dict[str, Any] = {"epochs": 1, "runtime": (), "threads": 1, "quiet": True, "method": "sparse"}
    few |= {"training.device": "cpu", "run.tensorboard": False, "run.report": False}
    split = {name: pictures(trained.data, name) for name in ("train", "val", "test")}
    of_folder = tellapart.compress(trained.run, out=tmp_path / "folder", **few)
    of_objects = tellapart.compress(
        trained.run, split["train"], val=split["val"], test=split["test"], out=tmp_path / "objects", **few
    )
    for ours, theirs in zip(of_objects.rows, of_folder.rows, strict=True):
        assert (ours.candidate.name, ours.value) == (theirs.candidate.name, theirs.value)
    one, other = (tmp_path / name / "sparse-50" for name in ("objects", "folder"))
    assert (one / "metrics.csv").is_file()
    ours, theirs = (runs.read_spec(run / "spec.yaml") for run in (one, other))
    assert ours.data.source.startswith("object:")
    places = {"data.source": "", "run.dir": "", "model.weights": ""}
    assert update(ours, places) == update(theirs, places)
    losses = []
    for run in (one, other):
        with open(run / "metrics.csv", newline="", encoding="utf-8") as stream:
            losses.append([row["value"] for row in csv.DictReader(stream) if row["name"].endswith("/loss")])
    assert losses[0]
    assert losses[0] == losses[1]


def test_compress_says_where_a_run_on_objects_needs_them(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val"))
    run = tellapart.train(
        pictures(data, "train"),
        val=pictures(data, "val"),
        quiet=True,
        model={"name": "simple-cnn"},
        training={"epochs": 1, "device": "cpu"},
        run={"dir": str(tmp_path / "run"), "tensorboard": False, "report": False},
    ).run
    with pytest.raises(DataError, match=r"Python object(.|\n)*data="):
        tellapart.compress(run, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
