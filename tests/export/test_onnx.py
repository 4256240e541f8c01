"""ONNX files against torch, from the files' bytes: resizing, views, calibration, fp16, properties."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tellapart import artifact
from tellapart.contract import BadImage, Card
from tellapart.contract.resizing import open_pixels
from tellapart.errors import ArtifactError
from tellapart.export import onnx_half
from tellapart.export.base import Options
from tellapart.export.formats import FORMATS
from tellapart.preprocess import averaged, load, normalise
from tellapart.runtime import is_export, open_backend, probabilities
from tellapart.runtime.eager import EagerBackend

from .conftest import Made, make_artifact

RULES = ("squash", "crop", "letterbox")
Files = dict[str, bytes]
OnnxFile = Callable[..., Path]


def reference(made: Any, content: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and logits [K] by the network in plain torch, by nothing that an export uses."""
    card = made.card
    pixels = torch.from_numpy(load(content, card.preprocessing))[None]
    with torch.no_grad():
        logits = averaged(made.eager.predictor.model, normalise(pixels, card.preprocessing), card.views)[0]
    return torch.softmax(logits.double() / card.calibration.get("temperature", 1.0), 0), logits


@pytest.mark.parametrize("rule", RULES)
def test_the_file_alone_answers_as_torch(
    rule: str, artifacts: Any, onnx_file: OnnxFile, files: Files
) -> None:
    """With nothing of ours but the decoding: an image of any size goes in, probabilities come out."""
    made = artifacts[rule]
    session = onnxruntime.InferenceSession(onnx_file(rule), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["probabilities", "logits"]
    found = []
    for content in files.values():
        image = open_pixels(content, made.card.preprocessing)
        probability, logits = session.run(["probabilities", "logits"], {"images": image[None]})
        expected, expected_logits = reference(made, content)
        np.testing.assert_allclose(probability[0], expected, atol=5e-5, rtol=0)
        np.testing.assert_allclose(logits[0], expected_logits, atol=2e-4, rtol=0)
        found.append(probability[0])
    assert np.ptp(found, axis=0).max() > 0.2  # the answers are not one and the same


@pytest.mark.parametrize(("rule", "plain"), [*((rule, False) for rule in RULES), ("crop", True)])
def test_the_backend_answers_as_the_artifact(
    rule: str, plain: bool, artifacts: Any, onnx_file: OnnxFile, files: Files
) -> None:
    made, backend = artifacts[rule], open_backend(onnx_file(rule, plain=plain))
    assert backend.card == made.card
    assert backend.format == "onnx"
    for content in files.values():  # the very same bits
        np.testing.assert_array_equal(backend.prepare(content), made.eager.prepare(content))
    batch = np.stack([made.eager.prepare(content) for content in files.values()])
    ours, theirs = backend.logits(batch), made.eager.logits(batch)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)
    assert ours.dtype == np.float32
    for row in range(len(batch)):  # an answer does not depend on the other images
        np.testing.assert_allclose(backend.logits(batch[row : row + 1])[0], ours[row], atol=1e-5)
    if rule == "crop":
        scaled = probabilities(ours, backend.card)
        np.testing.assert_allclose(
            scaled, torch.softmax(torch.from_numpy(theirs).double() / 1.7, 1), atol=1e-5
        )


def test_views_below_a_lead_are_chosen_image_by_image(artifacts: Any, onnx_file: OnnxFile) -> None:
    """Some images are answered by their first view, others by the average; the graph must choose as torch does."""
    made, backend = artifacts["crop"], open_backend(onnx_file("crop"))
    images = np.random.default_rng(0).integers(0, 256, (60, 24, 24, 3), np.uint8)
    network, contract = made.eager.predictor.model, made.card.preprocessing
    with torch.no_grad():
        first = network(normalise(torch.from_numpy(images), contract)).softmax(1)
    lead = first.topk(2).values.diff(dim=1).abs()[:, 0]
    assert 5 < int((lead < 0.3).sum()) < 55
    np.testing.assert_allclose(backend.logits(images), made.eager.logits(images), atol=2e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_half_precision(plain: bool, artifacts: Any, onnx_file: OnnxFile, files: Files) -> None:
    made = artifacts["crop"]
    half, full = onnx_file("crop", "fp16", plain), onnx_file("crop", plain=plain)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    model = onnx.load(half)
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    inputs = {"input": onnx.TensorProto.FLOAT} if plain else {"images": onnx.TensorProto.UINT8}
    assert kinds.items() >= inputs.items()
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    backend = open_backend(half)
    batch = np.stack([made.eager.prepare(content) for content in files.values()])
    distance = np.abs(
        probabilities(backend.logits(batch), made.card) - probabilities(made.eager.logits(batch), made.card)
    )
    assert 1e-7 < distance.max() < 5e-3
    if not plain:
        for content in files.values():
            np.testing.assert_array_equal(backend.prepare(content), open_backend(full).prepare(content))


def test_products_are_halved_and_sums_are_not() -> None:
    """A bias, though beyond fp16's range, is added as it is; the rest stays float32."""
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    bias = np.array([0.1, 1 / 3, 1e6], np.float32)
    constants = [
        array(np.diag([6e4, -6e4, 2.0]).astype(np.float32), "w"),
        array(bias, "b"),
        array(np.array([1, 1, 1.0001], np.float32), "s"),
        array(np.full((3, 1, 1), 1.0001, np.float32), "d"),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3]) for n in "xy")
    axes = array(np.array([2]), "axes")
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm"),
        helper.make_node("Mul", ["z", "s"], ["scaled"], "mul"),
        helper.make_node("Unsqueeze", ["scaled", "axes"], ["u"], "unsqueeze"),
        helper.make_node("Conv", ["u", "d"], ["c"], "depthwise", group=3),
        helper.make_node("Squeeze", ["c", "axes"], ["y"], "outside"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [*constants, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half, kept = onnx_half.to_half(model, ["gemm", "mul", "unsqueeze", "depthwise"])
    assert kept == ()
    onnx.checker.check_model(half, full_check=True)
    kinds = {tensor.name: tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in half.graph.initializer}
    assert kinds == {"w_fp16": True, "z_bias": False, "s": False, "d": False, "axes": False}
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.array([[0.5, 0.5, 3]], np.float32)})
    product = np.array([3e4, -3e4, 6], np.float32) + bias
    expected = product * np.array([1, 1, 1.0001], np.float32) * np.float32(1.0001)
    np.testing.assert_allclose(answer[0], expected, rtol=2e-7)


def test_the_smallest_products_are_not_halved() -> None:
    helper, rng = onnx.helper, np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=(rows, columns)).astype(np.float32), name)
        for name, rows, columns in (("small", 2, 200), ("large", 200, 200), ("last", 200, 3))
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("MatMul", [names[place], weight.name], [names[place + 1]], weight.name)
        for place, weight in enumerate(weights)
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half, _ = onnx_half.to_half(model, ["small", "large", "last"])
    onnx.checker.check_model(half, full_check=True)
    assert {tensor.name for tensor in half.graph.initializer} == {"small", "large_fp16", "last_fp16"}


def loud(folder: Path) -> Any:
    """An artifact whose second convolution takes values beyond fp16's range, and gives the answers of before."""
    made = make_artifact(folder, "squash")
    opened = artifact.open_model(made.path)
    convolutions = [m for m in opened.model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in opened.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight *= 2.0**18
        norms[0].bias *= 2.0**18
        convolutions[1].weight /= 2.0**18
    path = folder / "loud.safetensors"
    artifact.save(path, opened.model.state_dict(), made.card)
    return Made(path, made.card, EagerBackend(artifact.open_model(path)))


def test_what_leaves_the_range_of_fp16_stays_float32(tmp_path: Path, files: Files) -> None:
    """Computed in real fp16, by numpy-like evaluation of each tensor as its type says, nothing is infinite."""
    made = loud(tmp_path)
    pixels = np.stack([made.eager.prepare(content) for content in files.values()])
    blind, seeing = tmp_path / "blind.onnx", tmp_path / "seeing.onnx"
    write = FORMATS["onnx"].write
    write(made.graph(), made.card, blind, Options("fp16"))
    written = write(made.graph(), made.card, seeing, Options("fp16", examples=pixels))
    watched = onnx_half.Watch(blind)(pixels)
    assert watched.startswith("node_Conv")
    assert onnx_half.Watch(seeing)(pixels) == ""
    (note,) = written.notes
    assert "float32" in note
    model = onnx.load(seeing)
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    reference = ReferenceEvaluator(model)  # onnx's own, which computes fp16 as fp16
    expected = probabilities(made.eager.logits(pixels[:2]), made.card)
    given = np.stack(
        [reference.run(["probabilities"], {"images": image[None]})[0][0] for image in pixels[:2]]
    )
    np.testing.assert_allclose(given, expected, atol=5e-3)
    with np.errstate(over="ignore", invalid="ignore"):
        broken = ReferenceEvaluator(onnx.load(blind)).run(["probabilities"], {"images": pixels[:1]})[0]
    assert not np.isfinite(broken).all()  # which the CPU's runtime hides:
    assert np.isfinite(open_backend(blind).logits(pixels)).all()


def test_weights_beyond_the_range_of_fp16_stay_float32() -> None:
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    weights = [array(np.full((9, 9), value, np.float32), name) for name, value in (("a", 7e4), ("b", 1.0))]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 9]) for n in "xy")
    nodes = [helper.make_node("MatMul", [i, w], [o], w) for i, w, o in (("x", "a", "m"), ("m", "b", "y"))]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half, kept = onnx_half.to_half(model, ["a", "b"])
    assert kept == ("a",)
    assert {tensor.name for tensor in half.graph.initializer} == {"a", "b_fp16"}


@pytest.mark.parametrize(("opset", "ir"), [(0, 9), (18, 8), (21, 10)])
def test_opset_and_the_lowest_ir_version_for_it(
    opset: int, ir: int, artifacts: Any, tmp_path: Path, files: Files
) -> None:
    """An opset's IR version by ONNX's own table (docs/Versioning.md); only the operators' own sets are named."""
    made, target = artifacts["crop"], tmp_path / "model.onnx"
    FORMATS["onnx"].write(made.graph(), made.card, target, Options(opset=opset))
    model = onnx.load(target)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset or 20)]
    assert model.ir_version == ir
    backend = open_backend(target)
    batch = np.stack([backend.prepare(content) for content in files.values()])
    np.testing.assert_allclose(backend.logits(batch), made.eager.logits(batch), atol=2e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_a_batch_of_no_images_has_no_answers(plain: bool, artifacts: Any, onnx_file: OnnxFile) -> None:
    for rule in RULES[:1] if plain else RULES:
        backend = open_backend(onnx_file(rule, plain=plain))
        size, channels = backend.card.preprocessing.size, backend.card.preprocessing.channels
        nothing = np.zeros((0, size, size, channels), np.uint8)
        answer = backend.logits(nothing)
        assert answer.shape == (0, len(backend.card.classes))
        assert artifacts[rule].eager.logits(nothing).shape == answer.shape
        if not plain:
            assert backend.whole(nothing)[0].shape == answer.shape


def test_properties(artifacts: Any, onnx_file: OnnxFile) -> None:
    """What the file says of itself, and that it says nothing of the machine."""
    model = onnx.load(onnx_file("crop"))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    card = artifacts["crop"].card
    assert Card.from_json(properties["tellapart"]) == card
    assert json.loads(properties["labels"]) == ["ant", "bee", "cat", "犬"]
    assert json.loads(properties["contract"]) == card.preprocessing.to_dict()
    assert json.loads(properties["calibration"]) == {"temperature": 1.7}
    assert properties["licence"] == "MIT"
    assert model.producer_name == "tellapart"
    text = onnx_file("crop").read_bytes()
    assert b".py" not in text
    assert str(Path.cwd()).encode() not in text


def test_facts(onnx_written: Callable[..., Any]) -> None:
    written = onnx_written("crop", plain=True)
    (target,) = written.files
    assert written.facts["opset"] == {"ai.onnx": onnx.load(target).opset_import[0].version}
    assert written.facts["operators"]["Conv"] == 2
    assert written.facts["inputs"] == ["input: float [batch, 3, 24, 24]"]
    beside = [path.name for path in target.parent.iterdir() if path.suffix != ".onnx"]
    assert beside == []  # one file each, no weights beside it


def test_threads_may_share_a_backend(artifacts: Any, onnx_file: OnnxFile, files: Files) -> None:
    backend = open_backend(onnx_file("squash"), threads=1)
    contents = list(files.values()) * 4

    def answer(content: bytes) -> Any:
        return backend.logits(backend.prepare(content)[None])[0]

    alone = [answer(content) for content in contents]
    with ThreadPoolExecutor(6) as pool:
        np.testing.assert_array_equal(list(pool.map(answer, contents)), alone)


def test_no_torch_is_loaded(onnx_file: OnnxFile, files: Files, tmp_path: Path) -> None:
    """Prediction with the command line and with the backend, in a fresh process."""
    image = tmp_path / "image.png"
    image.write_bytes(files["odd"])
    for path in (onnx_file("squash"), onnx_file("crop", plain=True)):
        program = (
            "import sys\nfrom tellapart import cli\n"
            f"code = cli.main(['predict', {str(path)!r}, {str(image)!r}])\n"
            "print(code, sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 []"
        assert done.stdout.startswith(f"{image}: ")


def test_bad_images_and_bad_files(onnx_file: OnnxFile, artifacts: Any, tmp_path: Path) -> None:
    backend = open_backend(onnx_file("squash"))
    for content in (b"", b"GIF89a", b"<html>"):
        with pytest.raises(BadImage):
            backend.prepare(content)
    other, broken, cut = tmp_path / "other.onnx", tmp_path / "broken.onnx", tmp_path / "cut.onnx"
    model = onnx.load(onnx_file("squash"))
    without = onnx.ModelProto()
    without.CopyFrom(model)
    del without.metadata_props[:]
    onnx.save(without, other)
    with pytest.raises(ArtifactError, match=r"other\.onnx is an ONNX file, but tellapart did not export it"):
        open_backend(other)
    broken.write_bytes(onnx_file("squash").read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"cannot be read as ONNX|cannot open|lacks"):
        open_backend(broken)
    model.graph.output[1].name = "scores"
    onnx.save(model, cut)
    with pytest.raises(ArtifactError, match="lacks logits"):
        open_backend(cut)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_backend(tmp_path / "nothing.onnx")
    assert is_export("a/b.ONNX")
    assert not is_export("a/model.safetensors")
