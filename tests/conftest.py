from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

hypothesis.settings.register_profile(  # other programs may be busy: how long an example takes says nothing
    "tellapart", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tellapart")

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # started by nohup: tests send it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background: tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_data = tempfile.TemporaryDirectory(
    prefix="tellapart-tests-"
)  # no test reads or fills the user's own data folder
os.environ["XDG_DATA_HOME"] = _data.name
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and other tests run at the same time


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def draw(label: int, number: int, size: int = 16, channels: int = 3) -> np.ndarray:
    """An image that can be classified: stripes whose direction and colour depend on the label, and noise."""
    rng = np.random.default_rng([label, number])
    y, x = np.mgrid[:size, :size]
    wave = np.sin((x * np.cos(label) + y * np.sin(label)) * 1.3 + rng.uniform(0, 6))
    tint = np.array([(label * 67) % 255, (label * 131 + 40) % 255, (label * 29 + 90) % 255])
    image = 128 + 40 * wave[..., None] + (tint - 128) * 0.3 + rng.normal(0, 25, (size, size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)[..., :channels]


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a function that writes CLASS/*.png (below each split where there are any) and returns the root."""

    def make(
        root: Path,
        classes: tuple[str, ...] = ("ant", "bee", "cat"),
        count: int = 12,
        splits: tuple[str, ...] = (),
        size: int = 16,
    ) -> Path:
        for part, split in enumerate(splits or ("",)):
            for label, name in enumerate(classes):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    picture = draw(label, number + 1000 * part, size)
                    Image.fromarray(picture).save(folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the program in a process of its own, in tmp_path."""

    def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        return subprocess.run(
            [sys.executable, "-m", "tellapart", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,  # type: ignore[call-overload]
        )

    return run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run and the folder train/val/test/CLASS/*.png that it was trained on."""

    data: Path
    run: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Trained:
    """Train a small network once for all tests that only look at the result; they must not change it."""
    import tellapart

    root = tmp_path_factory.mktemp("trained")
    data = make_folder(root / "data", splits=("train", "val", "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        result = tellapart.train(
            data,
            quiet=True,
            model={"name": "simple-cnn"},
            training={"epochs": 2, "batch_size": 8},
            augment={"preset": "none"},
            run={"dir": str(root / "run"), "tensorboard": False},
        )
    return Trained(data, result.run)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Return a function that runs the program in this process, in tmp_path: seconds faster than run_cli."""
    from tellapart import cli

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Answer:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # the parser's way out
            code = 0 if stop.code is None else stop.code
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
