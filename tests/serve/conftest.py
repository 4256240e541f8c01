from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tellapart.contract import Architecture, Card, Pixels, Preprocessing, decode
from tellapart.errors import ArtifactError
from tellapart.runtime import probabilities
from tellapart.serve import models, server
from tellapart.serve.app import create
from tellapart.serve.options import Options

CLASSES = ("ant", "bee", "猫")
SIZE = 8


class FakeBackend:
    """A linear model in NumPy, described by a small JSON file: seed, and how long it takes."""

    format = "fake"

    def __init__(self, path: Path) -> None:
        about = json.loads(path.read_text("utf-8"))
        contract = Preprocessing(SIZE, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
        classes = tuple(about.get("classes", CLASSES))
        self.card = Card(
            Architecture("fake", len(classes), size=SIZE), classes, contract, about.get("scores", {})
        )
        self.delay = about.get("delay", 0.0)
        self.fails = about.get("fails", False)
        self.featureless = about.get("featureless", False)
        self.batches: list[int] = []
        rng = np.random.default_rng(about["seed"])
        self.weights = rng.normal(0, 0.002, (SIZE * SIZE * 3, len(classes))).astype(np.float32)

    def prepare(self, content: bytes | Pixels) -> Pixels:
        pixels = decode(content, 3) if isinstance(content, bytes) else content
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        return np.array(picture.resize((SIZE, SIZE)))

    def logits(self, images_NHWC: Pixels) -> Any:
        self.batches.append(len(images_NHWC))
        time.sleep(self.delay)
        if self.fails and len(self.batches) > 2:  # not when it is tried at the start
            raise RuntimeError("/secret/path exploded")
        return images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32) @ self.weights

    def with_features(self, images: Pixels) -> Any:
        if self.featureless:
            raise ArtifactError("This fake file does not give features.")
        return self.logits(images), images.mean(axis=(1, 2), dtype=np.float32) / np.float32(3)

    def answer(self, content: bytes | Pixels) -> np.ndarray[Any, Any]:
        """The probabilities of one image, straight from the model."""
        return probabilities(self.logits(self.prepare(content)[None]), self.card)[0]


def write_model(path: Path, **about: Any) -> Path:
    """Write a fake model's file beside, and put it into its place."""
    temporary = path.with_name("new-" + path.name)
    temporary.write_text(json.dumps({"seed": 0, **about}), "utf-8")
    temporary.replace(path)
    return path


def picture(seed: int = 0, size: tuple[int, int] = (20, 30), kind: str = "PNG") -> bytes:
    """An image file of noise, the smaller the size the rougher."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


class Running:
    """A service on a free port, in a thread of this process."""

    def __init__(self, paths: dict[str, Path], **changes: Any) -> None:
        usual = {"reload_seconds": 0.0, "decoders": 2, "max_batch": 32}
        self.options = Options(port=0, **{"drain_seconds": 0.0, **usual, **changes})
        self.app = create({name: str(path) for name, path in paths.items()}, self.options)
        self.service = self.app.state.service
        self._listener = server.listen(self.options)
        self.host, self.port = self._listener.getsockname()[:2]
        self.server = server.Server(self.app, self.service, lambda: None)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)

    def start(self) -> Running:
        self._thread.start()
        until = time.monotonic() + 10
        while not self.server.started:
            assert time.monotonic() < until
            assert self._thread.is_alive(), self.service.failure
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **more)

    def backend(self, name: str = "m") -> FakeBackend:
        return self.service.repository.get(name).backend


@pytest.fixture(scope="session")
def faked() -> Iterator[None]:
    """Let services open fake models; others as ever, because this lasts for the whole session."""
    real = models.open_backend

    def open_backend(path: str | Path, *more: Any) -> Any:
        fake = Path(path).is_file() and Path(path).read_bytes()[:1] == b"{"
        return FakeBackend(Path(path)) if fake else real(path, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "open_backend", open_backend)
        yield


@contextlib.contextmanager
def running(paths: dict[str, Path], **changes: Any) -> Iterator[Running]:
    service = Running(paths, **changes)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def shared(faked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with the models m and n for tests that do not change it."""
    folder = tmp_path_factory.mktemp("models")
    paths = {"m": write_model(folder / "m.onnx", seed=1), "n": write_model(folder / "n.onnx", seed=2)}
    with running(paths, max_body_mb=1.0, max_pixels=100_000, max_images=5, body_timeout=1.0) as service:
        yield service


@pytest.fixture
def client(shared: Running) -> Iterator[httpx.Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def start(faked: None, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a service with one model m, made of ``about``, and these options."""
    with contextlib.ExitStack() as stack:

        def begin(about: dict[str, Any] | None = None, **changes: Any) -> Running:
            path = write_model(tmp_path / "m.onnx", **(about or {}))
            return stack.enter_context(running({"m": path}, **changes))

        yield begin


os.environ.pop("TELLAPART_API_KEY", None)
