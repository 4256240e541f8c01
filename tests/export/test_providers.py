"""Where ONNX Runtime computes: what it is asked for, and that it never is another place than was asked for.

No test machine has a card: a stand-in says that it has the providers, and computes on the processor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tellapart.errors import ArtifactError, SpecError
from tellapart.runtime import onnx as onnx_runtime
from tellapart.runtime import open_backend, providers


class StandIn:
    """ONNX Runtime with providers to order; ``lost``: those that do not start, about which it only warns."""

    SessionOptions, __version__ = onnxruntime.SessionOptions, "stand-in"

    def __init__(self, *available: str, lost: tuple[str, ...] = ()) -> None:
        self.available, self.lost = [*available, "CPUExecutionProvider"], lost
        self.asked: list[Any] = []
        self.fed: list[tuple[str, int]] = []
        self.preloaded = 0

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        sys.stdout.write("words on standard output")
        self.preloaded += 1

    def InferenceSession(self, model: Any, options: Any, providers: Any, enable_fallback: int) -> Any:  # noqa: N802
        assert enable_fallback == 0
        assert [name for name, _ in providers if name not in self.available] == []
        self.asked.append(providers)
        real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return _Session(self, real, [name for name, _ in providers if name not in self.lost])


class _Session:
    def __init__(self, runtime: StandIn, real: Any, names: list[str]) -> None:
        self._runtime, self._real, self._names = runtime, real, names

    def get_providers(self) -> list[str]:
        return self._names

    def disable_fallback(self) -> None:
        pass

    def run(self, outputs: Any, feed: dict[str, Any], options: Any = None) -> Any:
        (batch,) = (len(value) for value in feed.values())
        self._runtime.fed.append((self._names[0], batch))
        return self._real.run(outputs, feed, options)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., StandIn]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    real = onnx_runtime.packages.require

    def use(*available: str, **more: Any) -> StandIn:
        stand_in = StandIn(*available, **more)
        monkeypatch.setattr(
            onnx_runtime.packages,
            "require",
            lambda name, *rest: stand_in if name == "onnxruntime" else real(name, *rest),
        )
        return stand_in

    return use


CUDA, TENSORRT = providers.NAMES["cuda"], providers.NAMES["tensorrt"]


def test_the_network_is_computed_there_and_the_image_sized_here(
    onnx_file: Any, artifacts: Any, files: Any, runtime: Any, capsys: Any
) -> None:
    fake, path = runtime(CUDA), onnx_file("squash")
    backend: Any = open_backend(path, "cuda:1")
    pixels = np.stack([backend.prepare(content) for content in files.values()])
    np.testing.assert_allclose(
        backend.logits(pixels), artifacts["squash"].eager.logits(pixels), rtol=0, atol=1e-4
    )
    assert backend.provider == CUDA
    resizing, network = fake.asked
    assert [name for name, _ in resizing] == ["CPUExecutionProvider"]
    assert [name for name, _ in network] == [CUDA, "CPUExecutionProvider"]
    assert (network[0][1]["device_id"], network[0][1]["use_tf32"]) == ("1", "0")
    assert fake.fed[-1] == (CUDA, len(files))
    assert capsys.readouterr().out == ""
    assert fake.preloaded == 1
    backend.whole(pixels[:1])
    assert fake.asked[-1] == network


@pytest.mark.parametrize("name", ["whole", "tensorrt-ready", "plain"])
def test_tensorrt_knows_the_shapes_and_gets_no_larger_batch(
    name: str, onnx_file: Any, artifacts: Any, runtime: Any, tmp_path: Path
) -> None:
    from tellapart.export.base import Options
    from tellapart.export.formats import FORMATS

    made = artifacts["squash"]
    if name == "tensorrt-ready":
        path = FORMATS[name].write(made.graph(), made.card, tmp_path / "m.tensorrt.onnx", Options()).files[0]
    else:
        path = onnx_file("squash", plain=name == "plain")
    fake = runtime(TENSORRT, CUDA)
    backend: Any = open_backend(path, "tensorrt")
    assert backend.provider == TENSORRT
    chain = fake.asked[-1]
    assert [name for name, _ in chain] == [TENSORRT, CUDA, "CPUExecutionProvider"]
    options, shape = chain[0][1], "input:{}x3x24x24" if name == "plain" else "pixels:{}x24x24x3"
    assert [options[f"trt_profile_{end}_shapes"] for end in ("min", "opt", "max")] == [
        shape.format(batch) for batch in (1, 8, 32)
    ]
    assert options["trt_fp16_enable"] == "0"
    assert str(tmp_path / "kept") in options["trt_engine_cache_path"]
    pixels = np.random.default_rng(0).integers(0, 256, (70, 24, 24, 3), dtype=np.uint8)
    logits = backend.logits(pixels)
    np.testing.assert_allclose(logits, made.eager.logits(pixels), rtol=0, atol=1e-4)
    assert [batch for where, batch in fake.fed if where == TENSORRT] == [32, 32, 6]


def test_tensorrt_is_told_about_fp16(onnx_file: Any, runtime: Any) -> None:
    fake = runtime(TENSORRT, CUDA)
    open_backend(onnx_file("squash", "fp16"), "tensorrt:2")
    assert (fake.asked[-1][0][1]["trt_fp16_enable"], fake.asked[-1][0][1]["device_id"]) == ("1", "2")


def test_another_place_than_was_asked_for_is_an_error(onnx_file: Any, runtime: Any) -> None:
    path = onnx_file("squash")
    with pytest.raises(ArtifactError, match=r"does not compute on cuda: that needs .*onnxruntime-gpu"):
        open_backend(path, "cuda")  # the real one
    runtime(CUDA, TENSORRT, lost=(CUDA,))
    with pytest.raises(ArtifactError, match="could not start CUDAExecutionProvider"):
        open_backend(path, "cuda")
    assert open_backend(path, "auto").provider == "CPUExecutionProvider"  # type: ignore[attr-defined]
    for device in ("gpu", "cuda:x", "cpu:1", "mps", "tensorrt:"):
        with pytest.raises(SpecError, match="computes on cpu, cuda, cuda:N, tensorrt or tensorrt:N"):
            open_backend(path, device)


def test_other_files_compute_on_the_processor(tmp_path: Path, call: Any, trained: Any) -> None:
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(SpecError, match="computes on the CPU, not on cuda"):
        open_backend(tmp_path / "model.xml", "cuda")
    answer = call("export", trained.run, "--device", "mps", "--out", "out")
    assert (answer.code, (tmp_path / "out").exists()) == (2, False)
    assert "tensorrt:N" in answer.err
