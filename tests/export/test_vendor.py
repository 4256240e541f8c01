"""Files for TensorRT and Atlas: inside the published lists, with the artifact's answers, and commands that fit them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.artifact import Predictor
from tellapart.contract import Card, Preprocessing, Views
from tellapart.errors import ExportError
from tellapart.export import formats, operators, vendor
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import open_backend, probabilities
from tellapart.runtime.eager import EagerBackend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
CONTRACT = Preprocessing(20, 3, "crop", "bilinear", 0.9, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make(views: Views = Views(), contract: Preprocessing = CONTRACT) -> tuple[GraphModel, Card, EagerBackend]:  # noqa: B008
    architecture = zoo.Architecture(
        "simple-cnn", 4, size=contract.size, batch_norm=True, channels=contract.channels
    )
    torch.manual_seed(5)
    network = zoo.build(architecture).eval().requires_grad_(False)
    card = Card(
        architecture, ("ant", "bee", "猫", "dog"), contract, views=views, calibration={"temperature": 1.3}
    )
    return GraphModel(network, card), card, EagerBackend(Predictor(network, card, torch.device("cpu")))


def write(name: str, model: tuple[GraphModel, Card, EagerBackend], folder: Path, **options: Any) -> Any:
    entry, chosen = formats.find(name), Options(**options)
    return entry.write(model[0], model[1], folder / entry.file_name(chosen), chosen)


def noise(count: int, contract: Preprocessing = CONTRACT) -> Any:
    shape = (count, contract.size, contract.size, contract.channels)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("tensorrt-ready", {}, 1e-5),
        ("tensorrt-ready", {"precision": "fp16"}, 5e-3),
        ("tensorrt-ready", {"batch": 3}, 1e-5),
        ("atlas-ready", {}, 1e-5),
    ],
)
def test_the_very_file_gives_the_artifacts_answers(
    name: str, options: dict[str, Any], limit: float, tmp_path: Path
) -> None:
    model = make(Views("mirror-shift", 0.5))
    written = write(name, model, tmp_path, **options)
    backend = open_backend(written.files[0], threads=1)
    assert backend.format == name
    assert backend.card == model[1]
    images = noise(7)  # no multiple of a fixed batch
    expected, found = (probabilities(side.logits(images), model[1]) for side in (model[2], backend))
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    if limit > 1e-4:
        assert np.abs(found - expected).max() > 1e-7  # half precision is there
    proto = onnx.load(written.files[0])
    (entry,) = proto.graph.input
    sizes = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    fixed = {"tensorrt-ready": options.get("batch", 0), "atlas-ready": 1}[name]
    assert sizes == ([1, 3, 20, 20] if name == "atlas-ready" else [fixed, 20, 20, 3])
    table = operators.TENSORRT if name == "tensorrt-ready" else operators.ATLAS
    assert {node.op_type for node in proto.graph.node} <= table.operators
    assert "Resize" not in {node.op_type for node in proto.graph.node}


@pytest.mark.slow
def test_commands_name_the_file_and_its_shapes(tmp_path: Path) -> None:
    model = make()
    written = write("tensorrt-ready", model, tmp_path)
    text = written.files[1].read_text(encoding="utf-8")
    command = re.sub(r" \\\n\s+", " ", text)
    assert "trtexec --onnx=model.tensorrt.onnx --saveEngine=model.tensorrt.engine" in command
    assert (
        "--minShapes=pixels:1x20x20x3 --optShapes=pixels:8x20x20x3 --maxShapes=pixels:32x20x20x3" in command
    )
    assert "short side is 22" in text
    assert "2 猫" in text
    written = write("atlas-ready", model, tmp_path, batch=2)
    assert [path.name for path in written.files] == [
        "model.atlas.onnx",
        "model.atlas.aipp.cfg",
        "model.atlas.txt",
    ]
    command = re.sub(r" \\\n\s+", " ", written.files[2].read_text(encoding="utf-8"))
    assert '--input_shape="input:2,3,20,20" --insert_op_conf=model.atlas.aipp.cfg' in command
    assert written.facts["batch"] == 2


def test_aipp_computes_the_contracts_normalisation() -> None:
    """Read the settings back and compute what AIPP documents: (pixel - mean - min) * var_reci."""
    from tellapart.preprocess import normalise

    grey = Preprocessing(8, 1, "squash", "bilinear", 1.0, (0.31,), (0.27,))
    for contract in (CONTRACT, grey):
        text = vendor.aipp(contract)
        values = dict(re.findall(r"(\w+): (\S+)", text))
        assert values["input_format"] == ("RGB888_U8" if contract.channels == 3 else "YUV400_U8")
        assert values["src_image_size_w"] == str(contract.size)
        levels = np.tile(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 1, 1, contract.channels))
        expected = normalise(torch.from_numpy(levels), contract).numpy()[0, :, :, 0]
        for channel in range(contract.channels):
            low = float(values[f"mean_chn_{channel}"]) + float(values[f"min_chn_{channel}"])
            found = (np.arange(256) - low) * float(values[f"var_reci_chn_{channel}"])
            np.testing.assert_allclose(found, expected[channel], rtol=0, atol=1e-5)
        assert 1e-4 < vendor.aipp_error(contract) < 5e-3  # of fp16, not of float32


def node_model(*nodes: Any, opset: int = 18) -> Any:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(list(nodes), "g", [value("x", 1, [1, 3, 8, 8])], [value("y", 1, None)])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def test_what_is_not_documented_is_named() -> None:
    make_node = onnx.helper.make_node
    resize = make_node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)
    found = operators.violations(node_model(resize), operators.TENSORRT)
    assert found == ["operator Resize: anti-aliasing is not supported"]
    cubic = make_node("Resize", ["x", "", "s"], ["y"], mode="cubic")
    assert "only nearest and linear" in operators.violations(node_model(cubic), operators.ATLAS)[0]
    gelu = node_model(make_node("Gelu", ["x"], ["a"]), make_node("Gelu", ["a"], ["y"]), opset=20)
    assert operators.violations(gelu, operators.TENSORRT) == []
    assert operators.violations(gelu, operators.ATLAS) == [
        "operator Gelu (2 times)",
        "opset 20; 9 to 18 are accepted",
    ]
    convolution = make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], strides=[64, 1])
    assert "strides is [64, 1]" in operators.violations(node_model(convolution), operators.ATLAS)[0]
    axes = make_node("ReduceMean", ["x", "axes"], ["y"])
    assert "axes must be constant" in operators.violations(node_model(axes), operators.TENSORRT)[0]
    constant = make_node("Constant", [], ["axes"], value_ints=[1])
    assert operators.violations(node_model(constant, axes), operators.TENSORRT) == []


@pytest.mark.slow
def test_a_network_beyond_the_list_is_refused(tmp_path: Path) -> None:
    graph, card, _ = make()

    class Odd(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(images[:, :3, :4, :4])[:, :1] + self.network(images)

    graph.classify.network = Odd(graph.network)
    with pytest.raises(ExportError, match=r"TensorRT 10\.1 does not document .*Det"):
        formats.find("tensorrt-ready").write(graph, card, tmp_path / "model.tensorrt.onnx", Options())
    assert not list(tmp_path.iterdir())
