"""`tellapart serve` as a person types it, with ONNX and OpenVINO files and without torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tellapart import serve
from tellapart.contract import Architecture, Card, Preprocessing
from tellapart.errors import MissingPackageError, ServeError
from tellapart.serve import Options, by_name
from tellapart.serve.drift import ClassMix, expectation

from .conftest import picture

SIZE = 6


def card(**more: Any) -> Card:
    contract = Preprocessing(SIZE, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    return Card(Architecture("tiny", 2, size=SIZE), ("cold", "热"), contract, **more)


def write_onnx(path: Path) -> Path:
    """Write a tiny graph of the form that the export writes: images -> pixels -> logits and probabilities."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, of = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.01, (SIZE * SIZE * 3, 2)).astype(np.float32)
    constants = {"sides": np.array([SIZE, SIZE]), "flat": np.array([-1, SIZE * SIZE * 3]), "weights": weights}
    nodes = [
        make.make_node("Cast", ["images"], ["wide"], to=of.FLOAT),
        make.make_node("Resize", ["wide", "", "", "sides"], ["scaled"], axes=[1, 2], mode="nearest"),
        make.make_node("Cast", ["scaled"], ["pixels"], to=of.UINT8),
        make.make_node("Cast", ["pixels"], ["floats"], to=of.FLOAT),
        make.make_node("Reshape", ["floats", "flat"], ["rows"]),
        make.make_node("MatMul", ["rows", "weights"], ["logits"]),
        make.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    outputs = [make.make_tensor_value_info(name, of.FLOAT, ["B", 2]) for name in ("probabilities", "logits")]
    graph = make.make_graph(
        nodes, "tiny", [make.make_tensor_value_info("images", of.UINT8, ["B", "H", "W", 3])], outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[make.make_tensor_value_info("pixels", of.UINT8, ["B", SIZE, SIZE, 3])],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = "tellapart", card().to_json()
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_openvino(path: Path) -> Path:
    """Write the same graph as OpenVINO IR, as the export does."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(str(write_onnx(path.with_name("source.onnx"))))
    pixels = next(node for node in model.get_ordered_ops() if "pixels" in node.output(0).get_names())
    pixels.set_friendly_name("pixels")
    for key, value in {"card": card().to_json(), "graph": "whole"}.items():
        model.set_rt_info(value, ["tellapart", key])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


PROGRAM = """
import json, sys
from tellapart.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, [name for name in ("torch", "torchvision", "timm", "sklearn", "scipy") if name in sys.modules]]))
"""


@pytest.mark.parametrize(
    ("name", "write", "form"),
    [("tiny.onnx", write_onnx, "onnx"), ("tiny.xml", write_openvino, "openvino")],
    ids=["onnx", "openvino"],
)
def test_a_file_is_served_without_torch(
    tmp_path: Path, name: str, write: Callable[[Path], Path], form: str
) -> None:
    path = write(tmp_path / name)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", str(path), "--port", "0", "--json", "--drain-seconds", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        assert where["models"] == ["tiny"]
        with httpx.Client(base_url=f"http://127.0.0.1:{where['port']}", trust_env=False) as client:
            answer = client.post("/v1/predict", files={"image": picture()}).json()["predictions"][0]
            about = client.get("/v1/models").json()["models"][0]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert json.loads(out) == [0, []], err
    assert (about["format"], about["classes"]) == (form, ["cold", "热"])
    from tellapart.runtime import open_backend, probabilities

    backend = open_backend(path)
    expected = probabilities(backend.logits(backend.prepare(picture())[None]), backend.card)[0]
    assert answer["probability"] == pytest.approx(expected.max(), abs=1e-6)
    assert f"tiny: {form}, 2 classes" in err


_GROWTH = """
import os, sys
from pathlib import Path
import numpy as np
from tellapart.runtime import base, open_backend

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

base.LARGE = int(sys.argv[2])
backend, image = open_backend(sys.argv[1]), np.zeros((4000, 4000, 3), np.uint8)
before = resident()
backend.prepare(image)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
@pytest.mark.parametrize(
    ("name", "write"), [("tiny.onnx", write_onnx), ("tiny.xml", write_openvino)], ids=["onnx", "openvino"]
)
def test_large_images_leave_no_memory(tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    """The runtimes would keep what the largest image took, for ever."""
    file, left = write(tmp_path / name), {}
    for least in (1_000_000, 10**9):
        words = [
            sys.executable,
            "-c",
            _GROWTH,
            str(file),
            str(least),
        ]  # in a process that has kept nothing before
        left[least] = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert left[1_000_000] < 100 < left[10**9], left


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.onnx"], "There is no model none.onnx"),
        ([], "Nothing to serve"),
        (["--model", "x"], "name=path"),
        (["--model", "../x=a.onnx"], "name=path"),
        (["a.onnx", "--model", "a=b.onnx"], "Two models are called 'a'"),
        (["text.onnx"], "cannot be read as ONNX"),
        (["a.onnx", "--port", "70000"], "--port is 70000"),
        (["a.onnx", "--max-batch", "-1"], "--max-batch is -1; it must be at least 0"),
        (["a.onnx", "--formats", "svg"], "--formats"),
    ],
)
def test_mistakes(call: Callable[..., Any], tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "text.onnx").write_text("not a model", "utf-8")
    answer = call("serve", *words, "--port", "0") if "--port" not in words else call("serve", *words)
    assert answer.code == 2
    assert answer.out == ""
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", answer.err).split())
    assert said in text
    assert "Traceback" not in answer.err


def test_a_port_that_is_taken(call: Callable[..., Any], tmp_path: Path) -> None:
    import socket

    write_onnx(tmp_path / "a.onnx")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = call("serve", "a.onnx", "--port", taken.getsockname()[1])
    assert answer.code == 2
    assert "Cannot listen on 127.0.0.1" in answer.err


def test_an_open_address_without_a_key_is_warned_of(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model", "utf-8")
    assert (
        "can be reached from other machines"
        in call("serve", "text.onnx", "--port", "0", "--host", "0.0.0.0").err
    )
    quiet = call("serve", "text.onnx", "--port", "0", "--host", "0.0.0.0", "--api-key", "k")
    assert "can be reached" not in quiet.err


def test_origins_are_given_one_by_one(call: Callable[..., Any], tmp_path: Path) -> None:
    """None is lost where the flag is given again, and * without a key is warned of."""
    (tmp_path / "text.onnx").write_text("not a model", "utf-8")
    origins = ["--allow-origin", "https://a.example", "--allow-origin"]
    words = ["serve", "text.onnx", "--port", "0", *origins]
    assert "'nonsense'; it must be one page's origin" in call(*words, "nonsense").err
    assert "'nonsense'" in call(*words[:5], "nonsense", "--allow-origin", "https://a.example").err
    assert "every page" in call(*words, "*").err
    assert "every page" not in call(*words, "https://b.example").err
    assert "every page" not in call(*words, "*", "--api-key", "k").err


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELLAPART_API_KEY", "hidden")
    assert Options().with_key_of_environment().api_key == "hidden"
    assert Options(api_key="given").with_key_of_environment().api_key == "given"


def test_names(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    assert by_name("some/where/cats & dogs.onnx") == {"cats-dogs": "some/where/cats & dogs.onnx"}
    assert list(by_name(str(tmp_path / "my run"))) == ["my-run"]
    assert by_name("a.onnx", ["b=c.onnx"]) == {"a": "a.onnx", "b": "c.onnx"}
    assert list(by_name("猫.onnx")) == ["model"]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert Options(host=host).loopback is local


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from tellapart import packages

    monkeypatch.setattr(packages, "installed", lambda name: name != "uvicorn")
    with pytest.raises(MissingPackageError, match=r"uvicorn.*tellapart\[serve\]"):
        serve.serve({"a": "a.onnx"})


def test_drift() -> None:
    mix = ClassMix(3, 10, np.array([0.5, 0.25, 0.25]), "card")
    assert np.isnan(mix.drift)
    for label in (0, 0, 1, 2):
        assert not mix.add(label)
    assert mix.drift == pytest.approx(0)
    for _ in range(10):
        mix.add(2)
    assert mix.drift == pytest.approx(0.75)  # all in the last class, of which a quarter was expected
    first = ClassMix(10, 10, np.full(10, 0.1), "card")
    first.add(0)
    assert (
        first.by_chance == pytest.approx(first.drift) == pytest.approx(0.9)
    )  # one answer cannot be but so far off
    draws = np.random.default_rng(0).multinomial(10, mix.expected, 20_000) / 10
    assert mix.by_chance == pytest.approx(np.abs(draws - mix.expected).sum(axis=1).mean() / 2, rel=0.05)


def test_without_an_expectation_the_first_answers_become_it() -> None:
    mix = ClassMix(2, 4, None, "")
    assert [mix.add(label) for label in (0, 1, 1, 1)] == [False, False, False, True]
    assert (mix.expected.tolist(), mix.source, mix.drift) == ([0.25, 0.75], "first answers", 0.0)


def test_where_the_expected_mix_is_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "evaluation" / "val").mkdir(parents=True)
    model = run / "model.safetensors"
    assert expectation(card(), model, "") == (None, "")
    found = {"classes": ["cold", "热"], "confusion": [[3, 1], [1, 0]]}
    (run / "evaluation" / "val" / "metrics.json").write_text(json.dumps(found), "utf-8")
    for path in (run, model):
        shares, source = expectation(card(), path, "")
        assert (shares.tolist(), source) == ([0.8, 0.2], "run, val")  # of the predictions, not of the truth
    shares, source = expectation(
        card(scores={"val": {"per_class": [{"support": 1}, {"support": 3}]}}), model, ""
    )
    assert (shares.tolist(), source) == ([0.25, 0.75], "card, val")
    shares, source = expectation(card(scores={"test": {"predicted": [3, 1]}}), model, "")
    assert (shares.tolist(), source) == ([0.75, 0.25], "card, test")
    (tmp_path / "mix.json").write_text('{"热": 1}', "utf-8")
    shares, source = expectation(card(), model, str(tmp_path / "mix.json"))
    assert (shares.tolist(), source) == ([0.0, 1.0], "option")
    for wrong in ('{"lukewarm": 1}', "[1]", '{"热": 0}', '{"热": "x"}', '{"热": NaN}'):
        (tmp_path / "mix.json").write_text(wrong, "utf-8")
        with pytest.raises(ServeError, match="class-mix"):
            expectation(card(), model, str(tmp_path / "mix.json"))
