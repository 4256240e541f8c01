from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pictures import encoded

from tellapart import artifact
from tellapart.contract import Card, Preprocessing, Views
from tellapart.export.base import Options, Written
from tellapart.export.formats import FORMATS
from tellapart.export.graph import GraphModel, graph_of
from tellapart.models import zoo
from tellapart.runtime.eager import EagerBackend

CLASSES = ("ant", "bee", "cat", "犬")
RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "squash": ({"resize": "squash", "interpolation": "bilinear"}, {}),
    "crop": (
        {"resize": "crop", "interpolation": "bicubic", "crop_fraction": 0.8, "decode": "scaled"},
        {"views": Views("mirror", 0.3), "calibration": {"temperature": 1.7}},
    ),
    "letterbox": (
        {"resize": "letterbox", "interpolation": "bilinear", "fill": 7, "channels": 1},
        {"views": Views("mirror-shift")},
    ),
}


@dataclasses.dataclass(frozen=True)
class Made:
    """An artifact with random weights, and the same opened in torch."""

    path: Path
    card: Card
    eager: EagerBackend

    def graph(self) -> GraphModel:
        return graph_of(self.path)


def make_artifact(folder: Path, rule: str) -> Made:
    contract, more = RULES[rule]
    channels = contract.get("channels", 3)
    values = {"size": 24, "channels": channels, "crop_fraction": 1.0, "mean": (0.5, 0.4, 0.3)[:channels]}
    made = Preprocessing(**{**values, "std": (0.1, 0.2, 0.3)[:channels], **contract})
    architecture = zoo.Architecture("simple-cnn", len(CLASSES), channels=channels, size=24, batch_norm=True)
    torch.manual_seed(3)
    network = zoo.build(architecture)
    for module in network.modules():  # statistics that matter, and answers that differ from image to image
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=2.5 / module.in_features**0.5)
    card = Card(architecture, CLASSES, made, weights={"licence": "MIT"}, **more)
    path = folder / f"{rule}.safetensors"
    artifact.save(path, network.state_dict(), card)
    return Made(path, card, EagerBackend(artifact.open_model(path)))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {rule: make_artifact(folder, rule) for rule in RULES}


@pytest.fixture(scope="session")
def onnx_file(onnx_written: Callable[..., Written]) -> Callable[..., Path]:
    """Return a function that gives an artifact's ONNX file; each is made once."""
    return lambda *key, **more: onnx_written(*key, **more).files[0]


@pytest.fixture(scope="session")
def onnx_written(
    artifacts: dict[str, Made], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Written]:
    """Return a function that gives what was written of an artifact; each is made once."""
    folder = tmp_path_factory.mktemp("onnx")
    done: dict[tuple[str, str, bool], Written] = {}

    def make(rule: str, precision: str = "fp32", plain: bool = False) -> Written:
        key = (rule, precision, plain)
        if key not in done:
            made, options = artifacts[rule], Options(precision, plain)
            target = folder / f"{rule}-{FORMATS['onnx'].file_name(options)}"
            done[key] = FORMATS["onnx"].write(made.graph(), made.card, target, options)
        return done[key]

    return make


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with structure at several scales."""
    rng = np.random.default_rng([seed, width, height])
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = rng.integers(0, 256, (height // 5 + 2, width // 5 + 2, bands), np.uint8)
    small = Image.fromarray(coarse[..., 0] if bands == 1 else coarse, None)
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = np.clip(pixels + rng.integers(-20, 21, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


FILES: dict[str, bytes] = {
    "odd": encoded(picture(37, 53)),
    "jpeg": encoded(picture(101, 67), "JPEG", quality=88),
    "upside down": encoded(picture(90, 41), "JPEG", 3),
    "turned": encoded(picture(90, 41), "JPEG", 6),
    "mirrored and turned": encoded(picture(55, 70), "PNG", 7),
    "grey": encoded(picture(64, 30, "L")),
    "grey jpeg": encoded(picture(33, 80, "L"), "JPEG"),
    "alpha": encoded(picture(45, 45, "RGBA")),
    "large": encoded(picture(401, 303), "JPEG"),
    "the contract's size": encoded(picture(24, 24)),
    "smaller": encoded(picture(11, 9)),
    "tall": encoded(picture(5, 120)),
}


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """Image files of many kinds and odd sizes."""
    return FILES


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """Files of many sizes and orientations, cut out of two photographs."""
    datasets = pytest.importorskip("sklearn.datasets")
    files = []
    for number, picture in enumerate(datasets.load_sample_images().images):
        for part in range(6):
            top, left = 37 * part, 53 * part
            height, width = 427 - 2 * top + 11 * part, 640 - 2 * left - 17 * part
            image = Image.fromarray(picture[top : top + height, left : left + width])
            exif = Image.Exif()
            exif[0x0112] = 1 + (3 * part + number) % 8
            stream = io.BytesIO()
            image.save(stream, "PNG" if part == 3 else "JPEG", exif=exif)
            files.append(stream.getvalue())
    return files
