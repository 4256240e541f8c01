from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tellapart import artifact, packages, runtime
from tellapart.contract import Card, Preprocessing
from tellapart.models import zoo

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnx.parser
import onnx.reference
from onnxruntime.quantization.onnx_model import ONNXModel

from tellapart.compress import onnx_int8
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import graph_of
from tellapart.runtime.onnx import split

SIZE = 12


def write_artifact(folder: Path, name: str = "fast-cnn") -> Path:
    torch.manual_seed(0)
    model = zoo.build(zoo.Architecture(name, 4, size=SIZE))
    model.train()(torch.randn(64, 3, SIZE, SIZE))  # statistics for the norms
    contract = Preprocessing(SIZE, 3, "crop", "bilinear", 0.875, (0.4, 0.5, 0.3), (0.2, 0.25, 0.3))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / artifact.FILE_NAME
    card = Card(zoo.Architecture(name, 4, size=SIZE), ("a", "b", "c", "d"), contract)
    artifact.save(file, model.state_dict(), card)
    return file


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    file = folder / "model.onnx"
    graph = graph_of(write_artifact(folder))
    formats.FORMATS["onnx"].write(graph, graph.card, file, Options())
    return file


@pytest.fixture(scope="module")
def quantizer(exported: Path) -> onnx_int8.Quantizer:
    return onnx_int8.Quantizer(exported, [pictures(16, seed) for seed in range(4)])


def test_the_file_opens_like_any_export(
    quantizer: onnx_int8.Quantizer, exported: Path, tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    quantizer.write(quantizer.quantised(), target)
    ours, theirs = runtime.open_backend(target), runtime.open_backend(exported)
    assert ours.card == theirs.card
    pixels = pictures(200, 9)
    ours_p, theirs_p = (runtime.probabilities(one.logits(pixels), one.card) for one in (ours, theirs))
    assert 0 < float(np.abs(ours_p - theirs_p).max()) < 0.15
    assert float((ours_p.argmax(1) == theirs_p.argmax(1)).mean()) > 0.9
    # The preprocessing is that of the float file, bit for bit, from any size.
    for height, width in ((SIZE, SIZE), (31, 47), (8, 90)):
        image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(ours.prepare(image), theirs.prepare(image))
    assert not list(tmp_path.glob("*.tmp"))


def test_what_is_quantised_is_the_network_alone(quantizer: onnx_int8.Quantizer, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    quantizer.write(quantizer.quantised(), target)
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    resizing, network = split(model)
    assert not any("Quantize" in node.op_type for node in resizing.graph.node)
    kinds = {tensor.name: tensor.data_type for tensor in network.graph.initializer}
    weights = [
        node for node in network.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds
    ]
    signed = [node for node in weights if kinds[node.input[0]] == onnx.TensorProto.INT8]
    assert len(signed) == len(quantizer.layers) == 8
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in network.graph.initializer}
    assert max(scales[node.input[1]].size for node in signed) > 1  # a scale for each channel
    unsigned = [node for node in network.graph.node if node.op_type == "QuantizeLinear"]
    assert unsigned
    assert all(kinds[node.input[2]] == onnx.TensorProto.UINT8 for node in unsigned)
    makers = {name: node for node in network.graph.node for name in node.output}
    softmax = next(node for node in network.graph.node if node.op_type == "Softmax")
    assert makers[softmax.input[0]].op_type != "DequantizeLinear"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["precision"] == "int8"


def test_layers_can_be_left_in_float(quantizer: onnx_int8.Quantizer) -> None:
    everything = quantizer.quantised(keep=quantizer.layers)
    kinds = {t.name: t.data_type for t in everything.graph.initializer}
    held = [n for n in everything.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in kinds]
    assert not [n for n in held if kinds[n.input[0]] == onnx.TensorProto.INT8]


def test_the_ranking_is_by_what_a_layer_does(quantizer: onnx_int8.Quantizer) -> None:
    ranking = quantizer.sensitivity(pictures(32, 5))
    assert sorted(name for name, _ in ranking) == sorted(quantizer.layers)
    values = [value for _, value in ranking]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0
    networks = (quantizer.network, quantizer.quantised(only=[ranking[0][0]]))
    logits = [
        onnx_int8.session(network.SerializeToString(), 1).run(["logits"], {"pixels": pictures(32, 5)})[0]
        for network in networks
    ]
    moved = logits[1].astype(np.float64) - logits[0]
    assert values[0] == pytest.approx(float(moved.var(1).mean()), rel=1e-4)  # of a softmax's four logits


CHAIN = """<ir_version: 10, opset_import: ["": 21]>
chain (float[N, 2, 5, 5] x) => (float[N, 6] y)
<float one = {0.02}, uint8 zero = {3}, float two = {0.5}, uint8 none = {0}>
{
  xq = QuantizeLinear(x, one, zero)
  xd = DequantizeLinear(xq, one, zero)
  [wide] c = Conv <group = 2> (xd, weight, bias)
  r = Clip(c, low, high)
  rq = QuantizeLinear(r, two, none)
  rd = DequantizeLinear(rq, two, none)
  f = Flatten(rd)
  fq = QuantizeLinear(f, two, none)
  fd = DequantizeLinear(fq, two, none)
  [last] g = Gemm <transB = 1> (fd, matrix, offset)
  gq = QuantizeLinear(g, two, none)
  y = DequantizeLinear(gq, two, none)
}
"""


def chain(held: tuple[str, ...]) -> onnx.ModelProto:
    """A convolution and a Gemm in float between quantised values, with weights that one scale does not suit."""
    rng = np.random.default_rng(3)
    values = {
        "weight": rng.normal(size=(4, 1, 3, 3)) * np.array([1, 0.1, 0.01, 5])[:, None, None, None],
        "bias": rng.normal(size=4),
        "matrix": rng.normal(size=(6, 36)),
        "offset": rng.normal(size=6),
        "low": np.array(0.0),
        "high": np.array(6.0),
    }
    model = onnx.parser.parse_model(CHAIN)
    for name, array in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx_int8._hold_float(onnx, model.graph, set(held))
    ONNXModel(model).topological_sort()
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize(("held", "rounded"), [((), True), (("wide", "last"), False)])
def test_onnx_runtime_leaves_float_layers_in_float(
    held: tuple[str, ...], rounded: bool, tmp_path: Path
) -> None:
    """Without our hint its optimiser rounds their weights, with one scale for all channels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(chain(held).SerializeToString(), options, providers=providers)
    optimised = onnx.load(tmp_path / "optimised.onnx")
    kinds = {tensor.data_type for tensor in optimised.graph.initializer if len(tensor.dims) > 1}
    assert (onnx.TensorProto.INT8 in kinds) == rounded
    x = np.random.default_rng(4).normal(size=(3, 2, 5, 5)).astype(np.float32)
    plain = onnx.reference.ReferenceEvaluator(chain(()))
    (wanted,), (same,) = (
        one.run(None, {"x": x}) for one in (plain, onnx.reference.ReferenceEvaluator(chain(held)))
    )
    assert np.array_equal(wanted, same)


@pytest.mark.parametrize(
    ("uniform", "most", "shape"), [(True, 0, []), (False, 16384, [3, SIZE, SIZE]), (False, 3, [3, 1, 1])]
)
def test_the_normalisation_is_not_by_channel(
    exported: Path, monkeypatch: pytest.MonkeyPatch, uniform: bool, most: int, shape: list[int]
) -> None:
    """It is by single numbers, else by one for each value where those are few; the results stay the same."""
    monkeypatch.setattr(onnx_int8, "_SPREAD", most)
    _, network = split(onnx.load(exported))
    for tensor in network.graph.initializer:
        if uniform and tensor.name.startswith("classify.preprocess."):
            values = np.full_like(onnx.numpy_helper.to_array(tensor), 0.37)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    before = network.SerializeToString()
    outside = {node.name for node in network.graph.node if not onnx_int8._in_network(node)}
    onnx_int8._spare_channels(onnx, network, outside)
    found = [list(t.dims) for t in network.graph.initializer if t.name.startswith("classify.preprocess.")]
    assert found == [shape, shape]
    pixels = pictures(8, 4)
    old, new = (
        onnx_int8.session(content, 1).run(["logits"], {"pixels": pixels})[0]
        for content in (before, network.SerializeToString())
    )
    assert np.array_equal(old, new) or np.allclose(old, new, rtol=1e-6, atol=1e-6)


def test_openvino_files_too(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from tellapart.compress import openvino_int8

    file = tmp_path / "model.xml"
    graph = graph_of(write_artifact(tmp_path))
    formats.FORMATS["openvino"].write(graph, graph.card, file, Options())
    quantizer = openvino_int8.Quantizer(file, graph.card, [pictures(16, seed) for seed in range(2)])
    network = quantizer.quantised()
    assert quantizer.float_layers(network) == []
    target = tmp_path / "int8.xml"
    quantizer.write(network, target)
    ours, theirs = runtime.open_backend(target), runtime.open_backend(file)
    assert ours.card == theirs.card
    pixels = pictures(100, 9)
    assert float((ours.logits(pixels).argmax(1) == theirs.logits(pixels).argmax(1)).mean()) > 0.85
    image = np.random.default_rng(1).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    assert np.array_equal(ours.prepare(image), theirs.prepare(image))
    text = target.read_text()
    assert text.index('"pixels"') > 0


@pytest.mark.slow
def test_transformers_get_dynamic_and_weight_only(tmp_path: Path) -> None:
    packages.prepare_torchvision()
    pytest.importorskip("timm")
    torch.manual_seed(0)
    architecture = zoo.Architecture("timm/vit_tiny_patch16_224", 4, size=32)
    contract = Preprocessing(32, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    file = tmp_path / artifact.FILE_NAME
    network = zoo.build(architecture)
    artifact.save(file, network.state_dict(), Card(architecture, ("a", "b", "c", "d"), contract))
    from tellapart.workflow.quantising import is_transformer

    assert is_transformer(network)
    source = tmp_path / "model.onnx"
    graph = graph_of(file)
    formats.FORMATS["onnx"].write(graph, graph.card, source, Options())
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    wanted = runtime.open_backend(source).logits(pixels)
    for name, make in (("dynamic", onnx_int8.dynamic), ("weights", onnx_int8.weight_only)):
        target = tmp_path / f"{name}.onnx"
        make(source, target)
        got = runtime.open_backend(target).logits(pixels)
        assert 0 < float(np.abs(got - wanted).max()) < 0.2 * float(np.abs(wanted).max()), name
        assert target.stat().st_size < 0.4 * source.stat().st_size, name
    backend = runtime.open_backend(tmp_path / "dynamic.onnx")
    alone = np.concatenate([backend.logits(pixels[k : k + 1]) for k in range(16)])
    np.testing.assert_array_equal(
        backend.logits(pixels), alone
    )  # an answer does not depend on the other images
    together = backend._network.run(["logits"], {"pixels": pixels})[0]
    assert np.abs(together - alone).max() > 1e-4  # which it would here


def test_weights_of_seven_bits_for_processors_without_vnni(exported: Path) -> None:
    """No pair of products, each of eight bits unsigned and a weight, is beyond 16 bits: 255 * 64 * 2 < 2**15."""
    narrow = onnx_int8.Quantizer(exported, [pictures(16)], reduce_range=True).quantised()
    wide = onnx_int8.Quantizer(exported, [pictures(16)]).quantised()
    largest = []
    for model in (narrow, wide):
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        weights = [values for values in held.values() if values.dtype == np.int8 and values.size > 8]
        largest.append(max(int(np.abs(values.astype(int)).max()) for values in weights))
    assert largest[0] <= 64
    assert largest[1] > 120


def test_a_budget_below_one_image_is_reported() -> None:
    from tellapart.workflow.quantising import _tell_grain

    said: list[str] = []
    _tell_grain(200, 0.5, said.append)
    assert not said
    _tell_grain(153, 0.5, said.append)
    assert "0.65 points each" in said[0]
