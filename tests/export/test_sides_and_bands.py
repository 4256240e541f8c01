"""Every format gives the artifact's pixels and answers for inputs that are not square and of five channels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.artifact import Predictor
from tellapart.contract import Card, Preprocessing
from tellapart.contract.sides import Size
from tellapart.errors import ExportError
from tellapart.export import formats, outside, synthetic
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.export.vendor import aipp
from tellapart.models import zoo
from tellapart.runtime import open_backend
from tellapart.runtime.eager import EagerBackend

SHAPES = ((50, 90), (90, 50), (31, 33), (20, 28), (12, 200))


def made(resize: Any, size: Size = (20, 28), channels: int = 5) -> tuple[GraphModel, Card, EagerBackend]:
    architecture = zoo.Architecture("simple-cnn", 3, channels=channels, size=size)
    torch.manual_seed(3)
    network = zoo.build(architecture).eval().requires_grad_(False)
    fraction = 0.8 if resize == "crop" else 1.0
    mean, std = tuple(0.3 + 0.05 * n for n in range(channels)), tuple(0.2 + 0.02 * n for n in range(channels))
    contract = Preprocessing(size, channels, resize, "bicubic", fraction, mean, std)
    card = Card(architecture, ("a", "b", "c"), contract)
    return GraphModel(network, card), card, EagerBackend(Predictor(network, card, torch.device("cpu")))


def files() -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for height, width in SHAPES:
        stream = io.BytesIO()
        np.save(stream, rng.integers(0, 256, (height, width, 5), np.uint8))
        found.append(stream.getvalue())
    return found


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("onnx", "crop"),
        ("onnx", "letterbox"),
        ("openvino", "crop"),
        ("openvino", "letterbox"),
        ("openvino", "squash"),
        ("torchscript", "crop"),
        ("torchscript", "letterbox"),
        ("torch-export", "letterbox"),
    ],
)
def test_formats_take_what_is_not_square_and_has_five_channels(
    name: str, resize: str, tmp_path: Path
) -> None:
    if name in ("onnx", "openvino"):
        pytest.importorskip("onnxruntime" if name == "onnx" else "openvino")
    graph, card, eager = made(resize)
    entry, options = formats.find(name), Options()
    path = entry.write(graph, card, tmp_path / entry.file_name(options), options).files[0]
    backend = open_backend(path, trust=True)
    ours, theirs = ([one.prepare(file) for file in files()] for one in (eager, backend))
    for first, second in zip(ours, theirs, strict=True):
        assert first.shape == (20, 28, 5)
        assert np.array_equal(first, second)
    assert np.abs(eager.logits(np.stack(ours)) - backend.logits(np.stack(theirs))).max() < 1e-4


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_the_graph_resizes_as_the_contract_does(resize: str) -> None:
    graph, card, eager = made(resize)
    for file in files():
        pixels = np.load(io.BytesIO(file))
        assert np.array_equal(graph.resize(torch.from_numpy(pixels)[None])[0].numpy(), eager.prepare(file))
    assert graph.example_pixels().shape == (2, 20, 28, 5)
    assert card == Card.from_json(card.to_json())


def test_made_up_images_have_the_models_channels() -> None:
    _, card, eager = made("crop")
    for case in synthetic.synthetic(3, channels=5).images:
        content = case.read()
        assert isinstance(content, bytes)
        assert eager.prepare(content).shape == (20, 28, 5)
        found = outside.pixels(content, card.preprocessing)
        assert found is not None
        assert np.array_equal(eager.prepare(found), eager.prepare(content))


def test_aipp_says_that_it_takes_one_or_three_channels() -> None:
    with pytest.raises(ExportError, match="1 or 3 channels, and this model takes 5"):
        aipp(made("crop")[1].preprocessing)
    assert "src_image_size_w: 28\n    src_image_size_h: 20" in aipp(made("crop", channels=3)[1].preprocessing)
