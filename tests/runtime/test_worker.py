"""Files that another Python runs: the way to it and back, what is said where there is none, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tellapart.contract import Architecture, Card, Preprocessing
from tellapart.errors import ArtifactError
from tellapart.runtime import environments, open_backend, worker
from tellapart.runtime.environments import LITERT, Environment, MissingEnvironmentError

CARD = Card(
    Architecture("simple-cnn", 3, size=6),
    ("a", "b", "猫"),
    Preprocessing(6, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.2,) * 3),
)
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from litert_program import own_output, serve
import numpy as np

class Model:
    batch = {batch}

    def __call__(self, images):
        print("noise on standard output")
        if images.max() == 255:
            raise ValueError("this one is too bright")
        assert self.batch in (0, len(images))
        return images.astype(np.float32).sum((1, 2))

assert sys.argv[1] == "serve"
sink = own_output()
serve(Model(), Path(sys.argv[2]).read_bytes(), sink)
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that opens a model in a made-up environment, whose program adds up pixels."""
    real = Path(environments.__file__).parent / "programs"
    (tmp_path / "env/bin").mkdir(parents=True)
    python = tmp_path / "env/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(environments, "_PROGRAMS", tmp_path)
    monkeypatch.setitem(worker._LARGEST, "sums", 4)
    backends = []

    def open_it(batch: int, card: str = CARD.to_json()) -> worker.WorkerBackend:
        (tmp_path / "sums_program.py").write_text(PROGRAM.format(folder=str(real), batch=batch))
        (tmp_path / "model.sums").write_text(card, encoding="utf-8")
        with environments.at(str(tmp_path / "env")):
            backends.append(worker.WorkerBackend(Environment("sums", (), ""), tmp_path / "model.sums", 1))
        return backends[-1]

    yield open_it
    for backend in backends:
        backend.close()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches_go_there_and_logits_come_back(opened, batch: int) -> None:
    backend = opened(batch)
    assert backend.card == CARD
    images = np.random.default_rng(0).integers(0, 250, (7, 6, 6, 3), dtype=np.uint8)
    for count in (7, 2, 1):
        logits = backend.logits(images[:count])
        np.testing.assert_array_equal(logits, images[:count].astype(np.float32).sum((1, 2)))
    from tellapart.preprocess import load

    pixels = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    np.testing.assert_array_equal(backend.prepare(pixels), load(pixels, CARD.preprocessing))
    process = backend._process
    backend.close()
    assert process.returncode == 0


def test_a_failing_program_is_quoted(opened) -> None:
    backend = opened(0)
    with pytest.raises(RuntimeError, match="ValueError: this one is too bright"):
        backend.logits(np.full((1, 6, 6, 3), 255, np.uint8))
    with pytest.raises(ArtifactError, match="no description of tellapart's"):
        opened(0, card="")


def test_without_an_environment_the_command_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TELLAPART_LITERT_ENV", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises(MissingEnvironmentError) as found:
        open_backend("model.tflite")
    folder = tmp_path / "own/tellapart/litert"
    command = (
        f"{sys.executable} -m venv {folder} && {folder}/bin/pip install torch==2.13.0 litert-torch==0.10.0"
    )
    assert command in str(found.value)
    assert found.value.exit_code == 2
    monkeypatch.setenv("TELLAPART_LITERT_ENV", str(tmp_path / "elsewhere"))
    with pytest.raises(MissingEnvironmentError, match="elsewhere there is no Python"):
        LITERT.python()


@pytest.mark.parametrize("suffix", ["tflite", "pte"])
def test_nothing_in_the_working_folder_is_run(
    suffix: str, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor asked for: a folder that came with a model may hold an "environment" too."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    for name in ("litert", "executorch"):
        monkeypatch.delenv(f"TELLAPART_{name.upper()}_ENV", raising=False)
        for folder in (f".venv-{name}", ".venv", name, f"tellapart/{name}"):
            python = tmp_path / folder / "bin/python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("#!/bin/sh\ntouch mischief\n")
            python.chmod(0o755)
    (tmp_path / f"model.{suffix}").write_bytes(b"TFL3")
    (tmp_path / "cat.png").write_bytes(b"")
    answer = call("predict", f"model.{suffix}", "cat.png")
    assert answer.code == 2
    assert "environment of its own" in answer.err
    assert not (tmp_path / "mischief").exists()


def test_modules_in_the_working_folder_are_not_imported(run_cli, tmp_path: Path) -> None:
    """``python -m tellapart`` puts the working folder first in the path of modules; it is taken out again."""
    for name in ("torch", "yaml", "numpy", "tyro", "PIL", "platformdirs"):
        (tmp_path / f"{name}.py").write_text("open('mischief', 'w')\n")
    done = run_cli("predict", "nothing", "cat.png")
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "mischief").exists()


def test_errors_are_found_in_what_a_program_said() -> None:
    text = "Traceback\n  File x\nValueError: Didn't find op\nRegistration failed.\n"
    assert environments.last_error(text) == "ValueError: Didn't find op"
    assert environments.last_error("Killed\n") == "Killed"
    assert environments.last_error("") == ""
