"""Pictures and tables for the tests of the health; functions come as fixtures of the same name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.data.health import Health, examine
from tellapart.data.samples import Samples


def make_photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with the statistics of a photograph: smooth large shapes, fine detail, many colours."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, strength in ((4, 60), (9, 35), (30, 15)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(layer)
    picture += rng.normal(0, 6, picture.shape) + 120
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def make_table(files: dict[str, bytes], root: Path | None = None, **columns: Any) -> Samples:
    """Samples of files named SPLIT/CLASS/NAME, written under ``root`` or read from memory (see `run`)."""
    paths = list(files)
    classes = tuple(sorted({path.split("/")[1] for path in paths}))
    if root is not None:
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    return Samples(
        paths=np.array(paths, dtype=object),
        labels=np.array([classes.index(path.split("/")[1]) for path in paths], dtype=np.int64),
        splits=np.array([path.split("/")[0] for path in paths], dtype=object),
        classes=classes,
        root=str(root or ""),
        name="things",
        **columns,
    )


def examine_files(files: dict[str, bytes], **columns: Any) -> Health:
    contents = list(files.values())
    return examine(make_table(files, **columns), contents.__getitem__)


def make_photos(split: str, label: str, count: int, seed: int = 0) -> dict[str, bytes]:
    return {f"{split}/{label}/{n}.jpg": encode(make_photo(seed + n)) for n in range(count)}


def levels(found: Health) -> dict[str, str]:
    return {finding.code: finding.level for finding in found.findings}


@pytest.fixture(scope="session")
def photo() -> Callable[..., Any]:
    return make_photo


@pytest.fixture(scope="session")
def encoded() -> Callable[..., Any]:
    return encode


@pytest.fixture(scope="session")
def table() -> Callable[..., Any]:
    return make_table


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    return examine_files


@pytest.fixture(scope="session")
def photos() -> Callable[..., Any]:
    return make_photos


@pytest.fixture(scope="session")
def codes() -> Callable[..., Any]:
    return levels


@pytest.fixture(scope="session")
def good() -> dict[str, bytes]:
    return {
        **make_photos("train", "a", 24),
        **make_photos("train", "b", 22, 100),
        **make_photos("val", "a", 4, 200),
        **make_photos("val", "b", 4, 300),
    }
