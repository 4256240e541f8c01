"""Training, resuming, measuring and checking with objects of Python in place of a path."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

import tellapart
from tellapart import packages, runs
from tellapart.errors import DataError, RunError
from tellapart.training.loop import Trainer

CLASSES = ["ant", "bee", "cat"]


def draw(label: int, number: int) -> np.ndarray:
    """A noisy picture of one of three colours."""
    image = np.random.default_rng([label, number]).integers(0, 120, (16, 16, 3))
    image[..., label] += 120
    return image.astype(np.uint8)


class Pictures(Dataset):
    """Pictures of three classes; ``changed``: an index whose picture is another."""

    def __init__(self, count: int = 48, changed: int = -1, first: int = 0) -> None:
        self.count, self.changed, self.first = count, changed, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = draw(index % 3, self.first + index)
        return Image.fromarray(255 - image if index == self.changed else image), index % 3


def train(data: Any, folder: Path, **changes: Any) -> Any:
    names = ("val", "test", "classes")
    objects = {name: changes.pop(name) for name in names if name in changes}
    changes = {
        "model.name": "simple-cnn",
        "input.size": 16,
        "training.epochs": 2,
        "training.batch_size": 16,
        "speed.probe": False,
        "run.dir": str(folder),
        "run.report": False,
        "run.tensorboard": False,
        **changes,
    }
    return tellapart.train(data, quiet=True, **objects, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(Pictures(), tmp_path_factory.mktemp("runs") / "run", classes=CLASSES)


def weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(result.artifact))


def test_an_image_folder_trains_to_the_same_weights_as_its_folder(tmp_path: Path) -> None:
    if not packages.installed("torchvision"):
        pytest.skip("torchvision is not installed")
    packages.prepare_torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop

    root = tmp_path / "photos"
    for index in range(48):
        path = root / CLASSES[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(index % 3, index)).save(path)
    wanted = train(root, tmp_path / "folder")
    direct = train(ImageFolder(str(root)), tmp_path / "object")
    listed = [(str(path.relative_to(root)), path.parent.name) for path in sorted(root.rglob("*.png"))]
    pairs = train(listed, tmp_path / "pairs", **{"data.root": str(root)})
    for other in (direct, pairs):
        assert other.metrics == wanted.metrics
        for name, value in weights(wanted).items():
            assert torch.equal(value, weights(other)[name])
    # Through a transform that changes nothing the pixels are the same, and only the split is another.
    parts = {
        name: Subset(ImageFolder(str(root)), range(*span))
        for name, span in (("train", (0, 40)), ("val", (40, 48)))
    }
    items = ImageFolder(str(root), CenterCrop(16))
    through = {name: Subset(items, part.indices) for name, part in parts.items()}
    one, other = train(parts, tmp_path / "one"), train(through, tmp_path / "other")
    assert one.metrics == other.metrics
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name])


def test_a_run_says_what_it_was_trained_on(finished: Any) -> None:
    assert runs.read_spec(finished.run / "spec.yaml").data.source == "object:Pictures(48)"
    assert (finished.run / "samples.csv").read_text().splitlines()[1].startswith("image/")
    assert finished.metrics["n"] == 9


def test_a_run_stopped_continues_with_the_same_object_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(Pictures(), tmp_path / "whole", classes=CLASSES, val=Pictures(9, first=90))
    save = Trainer.save if hasattr(Trainer, "save") else None
    assert save is not None

    def stop(self: Trainer, *arguments: Any, **named: Any) -> Any:
        result = save(self, *arguments, **named)
        raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Trainer, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(Pictures(), tmp_path / "cut", classes=CLASSES, val=Pictures(9, first=90))
    monkeypatch.undo()
    run = tmp_path / "cut"
    with pytest.raises(
        RunError, match=r"cannot be resumed without its data.*object:Pictures\(48\), val Pictures\(9\)"
    ):
        tellapart.resume(run, quiet=True)
    with pytest.raises(RunError, match=r"6 of its 57 images are missing, the first: val/3"):
        tellapart.resume(run, data={"train": Pictures(), "val": Pictures(3, first=90)}, quiet=True)
    with pytest.raises(RunError, match=r"1 of its 57 images have a different content, the first: train/7"):
        tellapart.resume(run, data=Pictures(changed=7), val=Pictures(9, first=90), quiet=True)
    with pytest.raises(RunError, match=r"have a different label, the first: train/0 was 'ant' and is 'x'"):
        tellapart.resume(run, data=Pictures(), val=Pictures(9, first=90), classes=["x", "y", "z"], quiet=True)
    with pytest.raises(RunError, match="data is a path"):
        tellapart.resume(run, data="photos", quiet=True)
    resumed = tellapart.resume(run, data=Pictures(), val=Pictures(9, first=90), quiet=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])


def test_a_run_of_files_takes_no_object(tmp_path: Path) -> None:
    run = train("digits", tmp_path / "run", **{"training.epochs": 1}).run
    with pytest.raises(RunError, match="read again"):
        tellapart.resume(run, data=Pictures(), quiet=True)


def test_evaluation_takes_objects(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"object:Pictures\(48\)"):
        tellapart.evaluate(finished.run, quiet=True)
    same = tellapart.evaluate(finished.run, Pictures(), split="test", quiet=True)
    assert same.accuracy == finished.metrics["accuracy"]
    assert same.n == 9
    capsys.readouterr()
    every = tellapart.evaluate(finished.run, Pictures(), out=tmp_path / "out")
    assert every.n == 48
    assert "33 of these 48 images trained this model" in capsys.readouterr().err.replace("\n", " ")
    images, labels = zip(*(Pictures()[index] for index in range(48)), strict=True)
    arrays = tellapart.evaluate(
        finished.run, (np.stack([np.asarray(i) for i in images]), list(labels)), quiet=True
    )
    assert (arrays.accuracy, arrays.loss) == (every.accuracy, every.loss)
    with pytest.raises(DataError, match="does not know: dog"):
        tellapart.evaluate(finished.run, [(draw(0, 1), "dog"), (draw(1, 1), "ant")], quiet=True)


def test_prediction_of_the_same_pictures_is_the_same(finished: Any) -> None:
    model = tellapart.load(finished.run)
    pixels = draw(1, 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [pixels, Image.fromarray(pixels), tensor, tensor.float() / 255]
    probabilities = model.probabilities(forms)
    assert (probabilities == probabilities[0]).all()
    assert [one.label for one in model.predict(torch.stack([tensor, tensor]))] == [
        model.predict(pixels)[0].label
    ] * 2
    assert "normalised already" in model.predict(tensor.float() - 128)[0].error


def test_check_and_find_lr_take_objects(tmp_path: Path) -> None:
    health = tellapart.check(
        Pictures(), val=Pictures(6), classes=CLASSES, html=tmp_path / "check.html", quiet=True
    )
    assert health.counts == {"train": [16, 16, 16], "val": [2, 2, 2]}
    assert any("leakage" in finding.code for finding in health.findings)
    assert (tmp_path / "check.html").is_file()
    curve = tellapart.find_lr(
        Pictures(), classes=CLASSES, steps=12, quiet=True, **{"model.name": "simple-cnn", "input.size": 16}
    )
    assert len(curve.lrs) > 1


def test_the_same_picture_in_train_and_test_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(Pictures(24), tmp_path / "run", test=Pictures(6), **{"training.epochs": 1})
    told = " ".join(entry["text"] for entry in runs.read_warnings(result.run))
    assert "6" in told
    assert "test" in told


@pytest.mark.parametrize("cache", ["on", "off"])
def test_kept_or_streamed_the_weights_are_the_same(cache: str, finished: Any, tmp_path: Path) -> None:
    processes = {"data.worker_kind": "processes", "data.workers": 2}
    other = train(Pictures(), tmp_path / "run", classes=CLASSES, **{"data.cache": cache, **processes})
    for name, value in weights(finished).items():
        assert torch.equal(value, weights(other)[name])


def test_a_command_says_that_an_object_is_in_no_file(
    finished: Any, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_cli("train", "--spec", str(finished.run / "spec.yaml"), "--run.dir", "other")
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "object:Pictures(48)" in text
    assert "tellapart.train(data" in text
    resumed = run_cli("resume", str(finished.run))
    assert resumed.returncode == 2
    assert "cannot be resumed without its data" in " ".join(resumed.stderr.split())
