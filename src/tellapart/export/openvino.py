"""OpenVINO IR: ``model.xml`` and ``model.bin``, with the preprocessing in the graph and the card in ``rt_info``.

The network comes from `torch.export`. The resizing is built of OpenVINO's own operations: its torch reader does not
know ``sym_min`` and ``sym_max`` (2026.4), and its processor plugin computes float64 as float32, which has to be minded.
The tensor ``pixels`` (uint8 [batch, size, size, C])
lies between the two; a reader may cut the graph there. Knows nothing of how the file is run.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import packages
from tellapart.contract import Card, Preprocessing
from tellapart.contract.resizing import BETWEEN, ONE
from tellapart.errors import ExportError
from tellapart.export import programs
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.runtime.openvino import cut

PURPOSE = "Export to OpenVINO"
IMAGES, PIXELS, INPUT, PROBABILITIES, LOGITS = "images", "pixels", "input", "probabilities", "logits"


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write ``target`` (.xml) and the weights beside it (.bin). Raises MissingPackageError, ExportError."""
    openvino = packages.require("openvino", "openvino", PURPOSE)
    model = _plain(openvino, graph) if options.plain else _whole(openvino, graph, card.preprocessing)
    model.set_friendly_name(card.architecture.name)
    _describe(model, card, options)
    openvino.save_model(model, str(target), compress_to_fp16=options.precision == "fp16")
    operators = collections.Counter(node.get_type_name() for node in model.get_ordered_ops())
    notes = ("Weights are stored as fp16 and computed with as fp32.",) if options.precision == "fp16" else ()
    facts = {
        "openvino": openvino.__version__.partition("-")[0],
        "operators": dict(sorted(operators.items())),
        "inputs": [_value(port) for port in model.inputs],
        "outputs": [_value(port) for port in model.outputs],
    }
    return Written((target, target.with_suffix(".bin")), facts, notes)


def locate(path: Path, graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> str:
    """Return where the file's values begin to differ from the graph's, for pixels uint8 [B, size, size, C]."""
    openvino = packages.require("openvino", "openvino", "Looking into an OpenVINO file")
    expected = programs.inner_values(_program(graph), pixels, decomposed=True)
    precision = "fp16" if "-fp16" in path.stem else "fp32"

    def look_up(names: list[str]) -> dict[str, npt.NDArray[np.float32]]:
        _, model = cut(openvino, openvino.Core().read_model(path), graph.card)
        ports = {name: port for name in names if (port := _port(model, f"{name}:0")) is not None}
        if not ports:
            return {}
        model.add_outputs([f"{name}:0" for name in ports])
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answer = compiled([pixels])
        return {name: np.asarray(answer[f"{name}:0"], np.float32) for name in ports}

    return programs.first_difference(expected, look_up, precision)  # type: ignore[arg-type]


def _port(model: Any, name: str) -> Any:
    """Return the model's tensor of that name, or None."""
    for node in model.get_ordered_ops():
        for port in node.outputs():
            if name in port.get_names():
                return port
    return None


def _program(graph: GraphModel) -> Any:
    return programs.trace(graph.classify, graph.example_pixels(), programs.batch_dim())


def _convert(openvino: Any, program: Any) -> Any:
    """Return the program as OpenVINO's model. Raises ExportError."""
    try:
        with programs.quiet():
            return openvino.convert_model(program)
    except Exception as error:  # the frontend's errors have no common base
        raise ExportError(f"OpenVINO cannot convert this network: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the line of the frontend's long message that says which operation is missing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line.lstrip("- ") for line in lines if "No conversion rule" in line), lines[0] if lines else ""
    )


def _plain(openvino: Any, graph: GraphModel) -> Any:
    example = graph.classify.preprocess(graph.example())
    model = _convert(openvino, programs.trace(graph.network, example, programs.batch_dim()))
    size, channels = graph.card.preprocessing.size, graph.card.preprocessing.channels
    model.reshape(openvino.PartialShape([-1, channels, size, size]))
    model.input(0).get_tensor().set_names({INPUT})
    model.output(0).get_tensor().add_names({LOGITS})
    return model


def _whole(openvino: Any, graph: GraphModel, contract: Preprocessing) -> Any:
    """Return images -> pixels -> (probabilities, logits)."""
    model = _convert(openvino, _program(graph))
    size, channels = contract.size, contract.channels
    images = openvino.opset13.parameter([-1, -1, -1, channels], np.uint8, name=IMAGES)
    pixels = resize(openvino, images, contract)
    model.reshape(openvino.PartialShape([-1, size, size, channels]))
    start = model.input(0).get_node()
    start.output(0).replace(pixels.output(0))
    whole = openvino.Model(model.get_results(), [images], "tellapart")
    for port, name in ((images.output(0), IMAGES), (pixels.output(0), PIXELS)):
        port.get_tensor().set_names({name})
    for port, name in zip(whole.outputs, (PROBABILITIES, LOGITS), strict=True):
        port.get_tensor().add_names({name})
    whole.validate_nodes_and_infer_types()
    return whole


def resize(openvino: Any, images: Any, contract: Preprocessing) -> Any:
    """Return `contract.resizing.resize` as OpenVINO's operations: uint8 [B, H, W, C] -> [B, size, size, C]."""
    op, size = openvino.opset13, contract.size
    planes = op.transpose(op.convert(images, np.float32), _ints(op, 0, 3, 1, 2))
    shape = op.shape_of(images, "i64")
    sides = [op.gather(shape, _ints(op, axis), op.constant(np.int64(0))) for axis in (1, 2)]
    scaled = _scaled(op, sides, contract)
    down, across = (
        _matrix(op, side, to, _start(op, to, contract), size, contract.interpolation)
        for side, to in zip(sides, scaled, strict=True)
    )
    lines = op.round(
        op.multiply(op.matmul(down, planes, False, False), _float(op, BETWEEN / ONE)), "half_to_even"
    )
    sums = op.multiply(op.matmul(lines, across, False, True), _float(op, 1 / (BETWEEN * ONE)))
    values = op.clamp(op.round(sums, "half_to_even"), 0.0, 255.0)
    if contract.resize == "letterbox":
        rows, columns = (op.reduce_sum(one, _ints(op, 1), True) for one in (down, across))
        inside = op.greater(op.matmul(rows, columns, False, True), _float(op, 0))
        values = op.select(inside, values, _float(op, contract.fill))
    pixels = op.convert(op.transpose(values, _ints(op, 0, 2, 3, 1)), np.uint8)
    pixels.set_friendly_name(PIXELS)
    return pixels


def _matrix(op: Any, length: Any, scaled: Any, start: Any, count: int, mode: str) -> Any:
    """Return `preprocess.transform.matrix` as OpenVINO's operations: float32 [count, length].

    OpenVINO's processor plugin computes float64 as float32, so a weight that lies within 1e-4 of the middle between
    two whole numbers may be rounded to the other one. That moves hardly a pixel, and none by more than a level.
    """
    targets = op.add(op.constant(np.arange(count, dtype=np.int64)[:, None]), start)
    one, zero = op.constant(np.int64(1)), op.constant(np.int64(0))
    places = op.unsqueeze(op.range(zero, op.squeeze(length, _ints(op, 0)), one, "i64"), _ints(op, 0))
    two, unit = _ints(op, 2), _ints(op, 1)
    mine = op.multiply(op.add(op.multiply(two, places), unit), scaled)
    theirs = op.multiply(op.add(op.multiply(two, targets), unit), length)
    larger = op.convert(op.multiply(two, op.maximum(length, scaled)), np.float32)
    distance = op.divide(op.convert(op.abs(op.subtract(mine, theirs)), np.float32), larger)
    shares = _kernel(op, distance, mode)
    each = op.divide(_float(op, ONE), op.reduce_sum(shares, unit, True))
    weights = op.round(op.add(op.multiply(shares, each), _float(op, 2e-4)), "half_to_even")
    left = op.subtract(_float(op, ONE), op.reduce_sum(weights, unit, True))
    largest = op.equal(shares, op.reduce_max(shares, unit, True))
    first = op.reduce_min(op.select(largest, places, _ints(op, 1 << 20)), unit, True)
    weights = op.add(weights, op.select(op.equal(places, first), left, _float(op, 0)))
    valid = op.logical_and(op.greater_equal(targets, _ints(op, 0)), op.less(targets, scaled))
    return op.select(valid, weights, _float(op, 0))


def _kernel(op: Any, x: Any, mode: str) -> Any:
    """Return the triangle, or Keys' cubic with a = -0.5, at distances ``x``."""
    if mode == "bilinear":
        return op.maximum(op.subtract(_float(op, 1), x), _float(op, 0))

    def polynomial(*factors: float) -> Any:
        value = _float(op, factors[0])
        for factor in factors[1:]:
            value = op.add(op.multiply(value, x), _float(op, factor))
        return value

    far = op.select(op.less(x, _float(op, 2)), polynomial(-0.5, 2.5, -4.0, 2.0), _float(op, 0))
    return op.select(op.less(x, _float(op, 1)), polynomial(1.5, -2.5, 0.0, 1.0), far)


def _scaled(op: Any, sides: list[Any], contract: Preprocessing) -> list[Any]:
    """Return the height and width that the policy scales to, as `contract.resizing.scaled_size` does: int64 [1]."""
    size = contract.size
    if contract.resize == "squash":
        return [_ints(op, size), _ints(op, size)]
    if contract.resize == "crop":
        edge, short = _ints(op, round(size / contract.crop_fraction)), op.minimum(*sides)
        return [op.divide(op.multiply(edge, side), short) for side in sides]
    long = op.maximum(*sides)
    doubled = [op.add(op.multiply(_ints(op, 2 * size), side), long) for side in sides]
    rounded = [op.divide(one, op.multiply(_ints(op, 2), long)) for one in doubled]
    return [op.maximum(one, _ints(op, min(2, size))) for one in rounded]


def _start(op: Any, scaled: Any, contract: Preprocessing) -> Any:
    """Return which scaled pixel is the input's first; below 0 where a border comes before the scaled image."""
    size = _ints(op, contract.size)
    if contract.resize == "squash":
        return _ints(op, 0)
    if contract.resize == "crop":
        return op.divide(op.subtract(scaled, size), _ints(op, 2))
    return op.subtract(_ints(op, 0), op.divide(op.subtract(size, scaled), _ints(op, 2)))


def _float(op: Any, value: float) -> Any:
    return op.constant(np.float32(value))


def _ints(op: Any, *values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _describe(model: Any, card: Card, options: Options) -> None:
    """Write the card into the model's runtime information, which is saved in the .xml file."""
    entries = {
        "card": card.to_json(),
        "graph": "plain" if options.plain else "whole",
        "precision": options.precision,
        "licence": str(card.weights.get("licence") or ""),
        "version": packages.version("tellapart") or "",
    }
    for key, value in entries.items():
        model.set_rt_info(value, ["tellapart", key])


def _value(port: Any) -> str:
    """Return an input or output as text, such as ``images: u8 [?,?,?,3]``."""
    kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
    return f"{port.get_any_name()}: {kind} {shape}"
