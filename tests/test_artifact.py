"""The artifact: plain weights for anyone, and all that serving needs for us; whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from tellapart import artifact
from tellapart.contract import Card
from tellapart.errors import ArtifactError, ModelError
from tellapart.models import zoo
from tellapart.preprocess import Preprocessing

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.3, 0.1)


def a_card(**changes: Any) -> Card:
    contract = Preprocessing(16, 3, "squash", "bilinear", 1.0, MEAN, STD)
    architecture = zoo.Architecture("simple-cnn", 2, size=16, batch_norm=True)
    card = Card(architecture, ("蚂蚁", "bee, wild"), contract, {"val": {"accuracy": 0.5}}, {"licence": "MIT"})
    return dataclasses.replace(card, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """An artifact, and the network in it."""
    torch.manual_seed(0)
    network = zoo.build(a_card().architecture).eval()
    path = tmp_path_factory.mktemp("artifact") / artifact.FILE_NAME
    artifact.save(path, network.to(memory_format=torch.channels_last).state_dict(), a_card())
    return path, network


def test_any_program_can_read_the_weights(made: tuple[Path, torch.nn.Module]) -> None:
    path, network = made
    plain = safetensors.torch.load_file(path)
    assert plain.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(plain[name], tensor)
        assert plain[name].dtype == tensor.dtype
        assert plain[name].is_contiguous()
    again = zoo.build(a_card().architecture)
    again.load_state_dict(plain)
    assert artifact.read_state(path).keys() == plain.keys()


def test_the_metadata_is_json(made: tuple[Path, torch.nn.Module]) -> None:
    with safetensors.safe_open(made[0], framework="np") as stream:
        metadata = stream.metadata()
    content = json.loads(metadata["tellapart"])
    assert content["classes"] == ["蚂蚁", "bee, wild"]
    assert content["preprocessing"]["mean"] == list(MEAN)
    assert content["architecture"]["name"] == "simple-cnn"
    assert content["format"] == 1  # older programs read it
    assert artifact.read_card(made[0]) == a_card()


def test_a_run_folder_stands_for_its_artifact(made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    assert artifact.find(made[0].parent) == artifact.find(str(made[0])) == made[0]
    with pytest.raises(ArtifactError, match=r"has no model\.safetensors in it"):
        artifact.find(tmp_path)


def test_the_predictor_is_normalisation_and_network(made: tuple[Path, torch.nn.Module]) -> None:
    """The float64 formula of the contract, and the network itself, say what the logits are."""
    path, network = made
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    inputs = (images.astype(np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(inputs).permute(0, 3, 1, 2))
    network.float()
    predictor = artifact.open_model(path)
    logits = predictor(torch.from_numpy(images))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
    assert predictor.classes == a_card().classes
    assert predictor.preprocessing == a_card().preprocessing
    assert not predictor.model.training


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)


def _described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = json.loads(a_card().to_json())
        content = change(content) or content
        text = content if isinstance(content, str) else json.dumps(content)
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"tellapart": text})

    return write


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as safetensors"),
    "text": (lambda path: path.write_text("not weights" * 20), "cannot be read as safetensors"),
    "picture": (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), "cannot be read as safetensors"),
    "pickle": (lambda path: torch.save({"a": torch.zeros(2)}, path), "cannot be read as safetensors"),
    "foreign": (_foreign, "holds weights but not what tellapart needs.*--model.weights"),
    "not json": (_described(lambda content: "{"), "description inside .* cannot be used"),
    "a list": (_described(lambda content: "[1]"), "description inside .* cannot be used"),
    "newer": (_described(lambda content: content.update(format=99)), "format 99 is newer"),
    "no classes": (_described(lambda content: content.pop("classes") and None), "'classes'"),
    "no format": (_described(lambda content: content.pop("format") and None), "'format'"),
    "bad contract": (
        _described(lambda content: content["preprocessing"].update(resize="stretch")),
        "'stretch'.*squash, crop, letterbox",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    write, message = DAMAGED[kind]
    path = tmp_path / artifact.FILE_NAME
    write(path)
    for opened in (path, tmp_path):
        with pytest.raises(ArtifactError, match=message) as caught:
            artifact.open_model(opened)
        assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No model: .*nowhere\.safetensors does not exist"):
        artifact.open_model(tmp_path / "nowhere.safetensors")


def test_an_unknown_architecture_is_answered(tmp_path: Path) -> None:
    _described(lambda content: content["architecture"].update(name="simple-cmm"))(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="'simple-cnn'"):
        artifact.open_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(part: float, made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    content = made[0].read_bytes()
    path = tmp_path / artifact.FILE_NAME
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        artifact.open_model(path)


def test_weights_of_another_network_are_refused(made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path = tmp_path / artifact.FILE_NAME
    wrong = zoo.Architecture("simple-cnn", 3, size=16, batch_norm=True)
    artifact.save(path, made[1].state_dict(), a_card(architecture=wrong, classes=("a", "b", "c")))
    with pytest.raises(ArtifactError, match="do not fit simple-cnn"):
        artifact.open_model(path)


@pytest.mark.parametrize("moment", ["save_file", "fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file(
    moment: str, made: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / artifact.FILE_NAME
    shutil.copy(made[0], path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def half(tensors: dict[str, torch.Tensor], file: Path, **_: object) -> None:
        Path(file).write_bytes(before[: len(before) // 2])
        fail()

    target = {
        "save_file": (safetensors.torch, "save_file", half),
        "fsync": (os, "fsync", fail),
        "replace": (os, "replace", fail),
    }[moment]
    monkeypatch.setattr(*target)
    with pytest.raises(OSError, match="No space left"):
        artifact.save(path, {"weight": torch.ones(3)}, a_card())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_scores_are_added(tmp_path: Path) -> None:
    card = artifact.with_scores(a_card(), {"test": {"accuracy": 0.75}})
    assert card.scores == {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.75}}
    assert Card.from_json(card.to_json()) == card


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    """Two names for one tensor: safetensors refuses shared memory, so each gets its own copy."""
    shared = torch.arange(6.0)
    artifact.save(tmp_path / "m.safetensors", {"a": shared, "b": shared.view(2, 3).t()}, a_card())
    plain = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert torch.equal(plain["a"], shared)
    assert torch.equal(plain["b"], shared.view(2, 3).t())


def test_less_precision_only_where_it_is_asked_for(made: tuple[Path, torch.nn.Module]) -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    exact = artifact.open_model(made[0])(images)
    fast = artifact.open_model(made[0], precision="bf16")(images)
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert torch.allclose(fast, exact, atol=0.05, rtol=0.05)
