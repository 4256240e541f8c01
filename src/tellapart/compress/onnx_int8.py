"""INT8 for ONNX Runtime: quantised operators between the preprocessing and the softmax, which stay as they are.

Static: QDQ with unsigned activations and signed weights, one scale for each output channel, ranges measured on images
preprocessed by the contract. Dynamic and weight-only: for transformers, whose activations have outliers that no fixed
range suits. Owner of `onnxruntime.quantization`. Knows nothing of image files, or of the allowed drop.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import files, packages
from tellapart.runtime.onnx import DYNAMIC, IMAGES, LOGITS, PIXELS, PROBABILITIES, session, split

_PURPOSE = "INT8 for ONNX Runtime"
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_NETWORK_SCOPE = "classify.network"
_SPREAD = 16384  # numbers that a normalisation by channel may add to a file
Pixels = npt.NDArray[np.uint8]


class Quantizer:
    """One exported file, its ranges measured once; makes quantised files with any layers left in float."""

    def __init__(self, file: Path, batches: Sequence[Pixels], reduce_range: bool = False) -> None:
        """Read the whole-graph ONNX ``file``; measure ranges on ``batches``, uint8 [B, height, width, C].

        ``reduce_range``: weights of seven bits, for x86 processors without VNNI. Their products of eight bits are
        added in pairs to 16 bits, which saturate: 255 * 127 * 2 is above 32,767.
        """
        onnx = packages.require("onnx", "onnx", _PURPOSE)
        packages.require("onnxruntime.quantization", "onnx", _PURPOSE)
        self.onnx, self.whole, self.reduce_range = onnx, onnx.load(file), reduce_range
        self.resizing, network = split(self.whole)
        outside = {node.name for node in network.graph.node if not _in_network(node)}
        _spare_channels(onnx, network, outside)
        with tempfile.TemporaryDirectory() as folder, _quiet():
            self.network = self._prepared(network, Path(folder))
            self.fixed = [n.name for n in self.network.graph.node if n.name in outside]
            self.ranges = self._measured(batches, Path(folder))

    @property
    def layers(self) -> dict[str, int]:
        """Names of the nodes that have weights, in order, with their number of weights."""
        held = {tensor.name: math.prod(tensor.dims) for tensor in self.network.graph.initializer}
        return {
            n.name: sum(held.get(name, 0) for name in n.input)
            for n in self.network.graph.node
            if n.op_type in _WEIGHTED and n.name not in self.fixed
        }

    def _prepared(self, network: Any, folder: Path) -> Any:
        """Return the network with shapes inferred and norms folded into convolutions."""
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.onnx.save(network, folder / "network.onnx")
        quant_pre_process(
            str(folder / "network.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=False
        )
        return self.onnx.load(folder / "prepared.onnx")

    def _measured(self, batches: Sequence[Pixels], folder: Path) -> Any:
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        calibrator = create_calibrator(
            folder / "prepared.onnx",
            None,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=False,
        )
        calibrator.collect_data(_Reader(batches))
        return calibrator.compute_data()

    def quantised(self, keep: Sequence[str] = (), only: Sequence[str] | None = None) -> Any:
        """Return the network, pixels -> probabilities and logits, quantised except for the nodes ``keep``.

        ``only``: quantise these nodes alone.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry

        model = self.onnx.ModelProto()
        model.CopyFrom(self.network)
        with _quiet():
            quantizer = QDQQuantizer(
                model,
                True,  # one scale for each channel
                self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=list(only or ()),
                nodes_to_exclude=[*self.fixed, *keep],
                op_types_to_quantize=list(QDQRegistry),
                # such as the logits
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
            quantizer.quantize_model()
            _hold_float(self.onnx, quantizer.model.model.graph, set(keep))
            quantizer.model.topological_sort()
        return quantizer.model.model

    def sensitivity(self, pixels: Pixels) -> list[tuple[str, float]]:
        """Return the layers, the most sensitive first, with how far quantising each alone moves the answers.

        The mean squared distance of the logits from the float network's on ``pixels``, with this one layer quantised;
        logits minus their mean over the classes, which is what a softmax sees. On training images the probabilities are
        nearly all 0 or 1 and say little. The layers' errors roughly add up.
        """
        wanted = self._logits(self.network, pixels)
        found = []
        for name in self.layers:
            given = self._logits(self.quantised(only=[name]), pixels)
            found.append((name, float(((given - wanted) ** 2).mean())))
        return sorted(found, key=lambda pair: -pair[1])

    def _logits(self, model: Any, pixels: Pixels) -> npt.NDArray[np.float64]:
        """Return logits minus their mean over the classes, float64 [B, K]."""
        (result,) = session(model.SerializeToString(), 0).run([LOGITS], {PIXELS: pixels})
        values = np.asarray(result, np.float64)
        centred: npt.NDArray[np.float64] = values - values.mean(1, keepdims=True)
        return centred

    def write(self, network: Any, target: Path, precision: str = "int8") -> None:
        """Write resizing and ``network`` as one file, with the properties of the exported one."""
        _write(self.onnx, self.whole, self.resizing, network, target, precision)


def dynamic(file: Path, target: Path, reduce_range: bool = False) -> None:
    """Write the file with INT8 weights of matrix products, whose inputs are quantised by their own range in each call.

    ``reduce_range`` as for `Quantizer`.
    """
    onnx = packages.require("onnx", "onnx", _PURPOSE)
    packages.require("onnxruntime.quantization", "onnx", _PURPOSE)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = onnx.load(file)
    resizing, network = split(whole)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, made = Path(folder) / "network.onnx", Path(folder) / "dynamic.onnx"
        del network.graph.value_info[:]  # names of values that the quantiser changes
        onnx.save(network, source)
        quantize_dynamic(
            source,
            made,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        _write(onnx, whole, resizing, onnx.load(made), target, DYNAMIC)


def weight_only(file: Path, target: Path, bits: int = 8) -> None:
    """Write the file with the weights of matrix products in ``bits`` bits, in blocks of 32; the rest is float."""
    onnx = packages.require("onnx", "onnx", _PURPOSE)
    packages.require("onnxruntime.quantization", "onnx", _PURPOSE)
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    whole = onnx.load(file)
    resizing, network = split(whole)
    with _quiet():
        quantizer = MatMulNBitsQuantizer(network, bits=bits, block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.topological_sort()
    _write(onnx, whole, resizing, quantizer.model.model, target, f"int{bits}-weights")


class _Reader:
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, batches: Sequence[Pixels]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch, or None."""
        batch = next(self.left, None)
        return None if batch is None else {PIXELS: batch}

    def __len__(self) -> int:
        return 0


def _in_network(node: Any) -> bool:
    from tellapart.export.onnx_layers import scopes

    return _NETWORK_SCOPE in scopes(node)


def _spare_channels(onnx: Any, network: Any, names: set[str]) -> None:
    """Replace numbers by channel in the nodes ``names``: by one number if all are equal, otherwise one for each value.

    ONNX Runtime moves the change of axis order behind the normalisation of quantised networks, and then adds and
    multiplies by channel along an axis of three: for EfficientNet-Lite0 at 288 pixels 9 of 34 ms, with scalars under 1.
    For large images the numbers by channel stay, since one for each value would take megabytes. The results are the
    same.
    """
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    (shape,) = [v.type.tensor_type.shape.dim for v in network.graph.input if v.name == PIXELS]
    height, width = shape[1].dim_value, shape[2].dim_value
    for node in network.graph.node:
        if node.name not in names or node.op_type not in ("Mul", "Add"):
            continue
        for place, name in enumerate(node.input):
            values = held.get(name)
            if values is None or values.size == 1:
                continue
            if (values == values.flat[0]).all():
                values = np.array(values.flat[0])
            elif values.shape[1:] == (1, 1) and values.size * height * width <= _SPREAD:
                values = np.ascontiguousarray(np.broadcast_to(values, (len(values), height, width)))
            else:
                continue
            single = onnx.numpy_helper.from_array(values, f"{name}_of_all_channels")
            if single.name not in held:
                network.graph.initializer.append(single)
                held[single.name] = values
            node.input[place] = single.name
    used = {name for node in network.graph.node for name in node.input}
    for tensor in [tensor for tensor in network.graph.initializer if tensor.name not in used]:
        network.graph.initializer.remove(tensor)


def _hold_float(onnx: Any, graph: Any, names: set[str]) -> None:
    """Make ONNX Runtime leave the layers ``names`` in float: give each an input whose scale is written by channel.

    If a float convolution or Gemm is between quantised ones, its optimiser rounds the weights after all, with one scale
    for the whole layer (WeightBiasQuantization, seen in 1.31). It only does so behind a DequantizeLinear with a single
    scale; the same scale once for each channel gives the same values.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    for node in [node for node in graph.node if node.name in names and node.op_type in ("Conv", "Gemm")]:
        maker = makers.get(node.input[0])
        if maker is None or maker.op_type != "DequantizeLinear" or node.input[1] not in held:
            continue
        channels = _inputs(node, held[node.input[1]].dims)
        copy = onnx.NodeProto()
        copy.CopyFrom(maker)
        copy.name = copy.output[0] = node.input[0] = f"{node.name}_input"
        copy.attribute.append(onnx.helper.make_attribute("axis", 1))
        for place in range(1, len(maker.input)):
            values = onnx.numpy_helper.to_array(held[maker.input[place]])
            copy.input[place] = f"{maker.input[place]}_for_{node.name}"
            repeated = np.full(channels, values.item(), values.dtype)
            graph.initializer.append(onnx.numpy_helper.from_array(repeated, copy.input[place]))
        graph.node.append(copy)


def _inputs(node: Any, shape: Sequence[int]) -> int:
    """Return how many channels a Conv or Gemm with weights of that shape takes."""
    numbers = {attribute.name: int(attribute.i) for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(shape[1]) * numbers.get("group", 1)
    return int(shape[1] if numbers.get("transB", 0) else shape[0])


def _write(onnx: Any, whole: Any, resizing: Any, network: Any, target: Path, precision: str) -> None:
    """Join both parts at ``pixels``, take over the whole file's properties, check the file and write it."""
    graph = onnx.GraphProto()
    graph.name = whole.graph.name
    graph.node.extend([*resizing.graph.node, *network.graph.node])
    held: dict[str, Any] = {}
    for tensor in (*resizing.graph.initializer, *network.graph.initializer):
        if tensor.name in held and held[tensor.name] != tensor:
            raise ValueError(f"both parts of the graph have a tensor {tensor.name}, and they differ")
        held[tensor.name] = tensor
    graph.initializer.extend(held.values())
    graph.input.extend(v for v in whole.graph.input if v.name == IMAGES)
    graph.output.extend(v for v in whole.graph.output if v.name in (PROBABILITIES, LOGITS))
    graph.value_info.extend(v for v in whole.graph.value_info if v.name == PIXELS)
    opsets = {entry.domain: entry.version for part in (resizing, network) for entry in part.opset_import}
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=max(whole.ir_version, network.ir_version),
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
    )
    for entry in whole.metadata_props:
        model.metadata_props.add(key=entry.key, value=precision if entry.key == "precision" else entry.value)
    onnx.checker.check_model(model)
    with files.replacing(target) as beside:
        onnx.save(model, beside)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the quantiser logs and warns about."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
