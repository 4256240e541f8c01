"""Models of float32 pixels in every format that takes them: the same pixels within a thousandth of a level."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.artifact import Predictor
from tellapart.contract import Card, Preprocessing
from tellapart.export import both, formats, outside, synthetic
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import open_backend
from tellapart.runtime.eager import EagerBackend

SHAPES = ((50, 90), (90, 50), (20, 28), (12, 200))


def made(
    resize: Any, interpolation: Any = "bicubic", channels: int = 5
) -> tuple[GraphModel, Card, EagerBackend]:
    architecture = zoo.Architecture("simple-cnn", 3, channels=channels, size=(20, 28))
    torch.manual_seed(3)
    network = zoo.build(architecture).eval().requires_grad_(False)
    contract = Preprocessing(
        (20, 28), channels, resize, interpolation, 0.8 if resize == "crop" else 1.0, (0.5,) * channels,
        (0.003,) * channels, range=(200.0, 400.0), depth="float32",
    )  # fmt: skip
    card = Card(architecture, ("a", "b", "c"), contract)
    return GraphModel(network, card), card, EagerBackend(Predictor(network, card, torch.device("cpu")))


def files(channels: int = 5) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for height, width in SHAPES:
        stream = io.BytesIO()
        np.save(stream, (300 + rng.normal(0, 0.6, (height, width, channels))).astype(np.float32))
        found.append(stream.getvalue())
    return found


@pytest.mark.parametrize(
    ("name", "resize", "interpolation"),
    [
        ("onnx", "crop", "bicubic"),
        ("openvino", "crop", "bilinear"),
        ("openvino", "letterbox", "bicubic"),
        ("torchscript", "crop", "bicubic"),
        ("torchscript", "letterbox", "bilinear"),
        ("torch-export", "crop", "bicubic"),
    ],
)
def test_formats_agree(name: str, resize: str, interpolation: str, tmp_path: Path) -> None:
    if name in ("onnx", "openvino"):
        pytest.importorskip("onnxruntime" if name == "onnx" else "openvino")
    graph, card, eager = made(resize, interpolation)
    entry, options = formats.find(name), Options()
    path = entry.write(graph, card, tmp_path / entry.file_name(options), options).files[0]
    backend: Any = open_backend(path, trust=True)
    assert backend.card.preprocessing == card.preprocessing
    ours, theirs = ([one.prepare(file) for file in files()] for one in (eager, backend))
    for first, second in zip(ours, theirs, strict=True):
        assert first.dtype == second.dtype == np.float32
        assert np.abs(first - second).max() < both.AGREED
    assert np.abs(eager.logits(np.stack(ours)) - backend.logits(np.stack(theirs))).max() < 1e-3
    for file, pixels in zip(files(), ours, strict=True):  # as one graph, by numpy alone
        image = outside.pixels(file, card.preprocessing)
        assert image is not None
        wanted = eager.logits(pixels[None])
        assert np.abs(backend.whole(image[None])[1] - wanted).max() < 1e-3


def test_plain_files_take_what_they_always_took(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph, card, eager = made("squash")
    entry, options = formats.find("onnx"), Options(plain=True)
    path = entry.write(graph, card, tmp_path / entry.file_name(options), options).files[0]
    backend = open_backend(path)
    images = np.stack([backend.prepare(file) for file in files()])
    assert np.abs(eager.logits(images) - backend.logits(images)).max() < 1e-4


def test_float_pixels_that_differ_are_told() -> None:
    zeros = np.zeros((1, 2, 2, 1), np.float32)
    assert both._levels_apart(zeros, zeros + np.float32(9e-4)).max() == 0
    assert both._levels_apart(zeros, zeros + np.float32(0.02)).max() == pytest.approx(0.02)
    assert both._levels_apart(zeros, zeros * np.float32(np.nan)).max() == 255


@pytest.mark.parametrize("levels", [None, (200.0, 400.0)])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_made_up_images_have_more_than_eight_bits(channels: int, levels: Any) -> None:
    contract = dataclasses.replace(
        made("squash")[1].preprocessing, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels,
        range=levels,
    )  # fmt: skip
    for case in synthetic.synthetic(4, contract=contract).images:
        content = case.read()
        array = np.load(io.BytesIO(content))
        assert array.dtype == (np.uint16 if levels is None else np.float32)
        own = outside.pixels(content, contract)
        assert own is not None
        from tellapart.contract.resizing import open_pixels

        np.testing.assert_allclose(own, open_pixels(content, contract), atol=2e-5)
