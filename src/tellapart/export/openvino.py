"""OpenVINO IR: ``model.xml`` and ``model.bin``, with the preprocessing in the graph and the card in ``rt_info``.

The network comes from `torch.export`. The resizing is built from OpenVINO's own operations: its torch reader does not
know ``sym_min`` and ``sym_max`` (2026.4), and its CPU plugin computes float64 as float32, which has to be taken into
account. The tensor ``pixels`` ([batch, height, width, C] of the contract's depth) is between the two; a reader may cut
the graph there. Knows nothing of how the file is run.
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
from tellapart.export.half import fits, rounded, smallest
from tellapart.runtime.openvino import FEATURES, compiled, cut

PURPOSE = "Export to OpenVINO"
IMAGES, PIXELS, INPUT, PROBABILITIES, LOGITS = "images", "pixels", "input", "probabilities", "logits"


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write ``target`` (.xml) and the weights beside it (.bin). Raises MissingPackageError, ExportError."""
    openvino = packages.require("openvino", "openvino", PURPOSE)
    model = (
        _plain(openvino, graph, options.features)
        if options.plain
        else _whole(openvino, graph, card.preprocessing, options.features)
    )
    model.set_friendly_name(card.architecture.name)
    _describe(model, card, options)
    if options.precision == "fp16":
        _halve(openvino, model)
    openvino.save_model(model, str(target), compress_to_fp16=False)
    operators = collections.Counter(node.get_type_name() for node in model.get_ordered_ops())
    notes = (
        ("Most weights are stored as fp16; all computation is in fp32.",)
        if options.precision == "fp16"
        else ()
    )
    facts = {
        "openvino": openvino.__version__.partition("-")[0],
        "operators": dict(sorted(operators.items())),
        "inputs": [_value(port) for port in model.inputs],
        "outputs": [_value(port) for port in model.outputs],
    }
    return Written((target, target.with_suffix(".bin")), facts, notes)


def _halve(openvino: Any, model: Any) -> None:
    """Store the weights of products as fp16, chosen as in `tellapart.export.half`; computation stays in float32.

    OpenVINO's own compression rounds biases too.
    """
    products = {
        node.get_friendly_name(): node
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "MatMul") and _is_weight(openvino, node)
    }
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    sizes = {name: _weight(node).data.size for name, node in products.items()}
    for name in set(products) - smallest(sizes, sum(node.data.size for node in constants)):
        product = products[name]
        if not fits(_weight(product).data):
            continue
        half = openvino.opset13.constant(rounded(_weight(product).data))
        full = openvino.opset13.convert(half, np.float32)
        product.input(1).replace_source_output(full.output(0))


def _weight(product: Any) -> Any:
    return product.input(1).get_source_output().get_node()


def _is_weight(openvino: Any, product: Any) -> bool:
    second = _weight(product)
    return bool(second.get_type_name() == "Constant" and second.get_element_type() == openvino.Type.f32)


def locate(path: Path, graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> str:
    """Return where the file's values begin to differ from the graph's, for pixels uint8 [B, height, width, C]."""
    openvino = packages.require("openvino", "openvino", "Looking into an OpenVINO file")
    expected = programs.inner_values(_program(graph), pixels, decomposed=True)
    precision = "fp16" if "-fp16" in path.stem else "fp32"

    def look_up(names: list[str]) -> dict[str, npt.NDArray[np.float32]]:
        _, model = cut(openvino, openvino.Core().read_model(path), graph.card)
        ports = {name: port for name in names if (port := _port(model, f"{name}:0")) is not None}
        if not ports:
            return {}
        model.add_outputs([f"{name}:0" for name in ports])
        network = compiled(openvino, model, {"INFERENCE_PRECISION_HINT": "f32"})
        answer = network([pixels])
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


def _plain(openvino: Any, graph: GraphModel, features: bool) -> Any:
    example = graph.classify.preprocess(graph.example())
    model = _convert(openvino, programs.trace(graph.bare, example, programs.batch_dim()))
    contract = graph.card.preprocessing
    model.reshape(openvino.PartialShape([-1, contract.channels, *contract.sides]))
    model.input(0).get_tensor().set_names({INPUT})
    for port, name in zip(model.outputs, (LOGITS, *[FEATURES] * features), strict=True):
        port.get_tensor().add_names({name})
    return model


def _whole(openvino: Any, graph: GraphModel, contract: Preprocessing, features: bool = False) -> Any:
    """Return images -> pixels -> (probabilities, logits, features if asked for)."""
    model = _convert(openvino, _program(graph))
    channels = contract.channels
    images = openvino.opset13.parameter([-1, -1, -1, channels], np.dtype(contract.depth), name=IMAGES)
    pixels = resize(openvino, images, contract)
    model.reshape(openvino.PartialShape([-1, *contract.sides, channels]))
    start = model.input(0).get_node()
    start.output(0).replace(pixels.output(0))
    whole = openvino.Model(model.get_results(), [images], "tellapart")
    for port, name in ((images.output(0), IMAGES), (pixels.output(0), PIXELS)):
        port.get_tensor().set_names({name})
    for port, name in zip(whole.outputs, (PROBABILITIES, LOGITS, *[FEATURES] * features), strict=True):
        port.get_tensor().add_names({name})
    whole.validate_nodes_and_infer_types()
    return whole


def resize(openvino: Any, images: Any, contract: Preprocessing) -> Any:
    """Return `contract.resizing.resize` as OpenVINO's operations: [B, H, W, C] -> [B, height, width, C]."""
    op, exact = openvino.opset13, contract.depth == "float32"
    planes = op.transpose(op.convert(images, np.float32), _ints(op, 0, 3, 1, 2))
    shape = op.shape_of(images, "i64")
    sides = [op.gather(shape, _ints(op, axis), op.constant(np.int64(0))) for axis in (1, 2)]
    scaled = _scaled(op, sides, contract)
    down, across = (
        _matrix(op, side, to, _start(op, to, wanted, contract), wanted, contract.interpolation, exact)
        for side, to, wanted in zip(sides, scaled, contract.sides, strict=True)
    )
    lines = op.matmul(down, planes, False, False)
    if not exact:
        lines = op.round(op.multiply(lines, _float(op, BETWEEN / ONE)), "half_to_even")
    sums = op.matmul(lines, across, False, True)
    if not exact:
        sums = op.round(op.multiply(sums, _float(op, 1 / (BETWEEN * ONE))), "half_to_even")
    values = op.clamp(sums, 0.0, 255.0)
    if contract.resize == "letterbox":
        rows, columns = (op.reduce_sum(one, _ints(op, 1), True) for one in (down, across))
        inside = op.greater(op.matmul(rows, columns, False, True), _float(op, 0))
        values = op.select(inside, values, _float(op, contract.fill))
    pixels = op.transpose(values, _ints(op, 0, 2, 3, 1))
    pixels = pixels if exact else op.convert(pixels, np.uint8)
    pixels.set_friendly_name(PIXELS)
    return pixels


def _matrix(op: Any, length: Any, scaled: Any, start: Any, count: int, mode: str, exact: bool = False) -> Any:
    """Return `preprocess.transform.matrix` as OpenVINO's operations: float32 [count, length].

    OpenVINO's CPU plugin computes int64 as int32 and float64 as float32, which is too coarse for rounding weights to
    2048ths. So a share is kept as a whole number and a small remainder, and the error of a rounded weight is computed
    from both and rounded again.
    """
    one, zero = op.constant(np.int64(1)), op.constant(np.int64(0))
    targets = op.add(op.constant(np.arange(count, dtype=np.int64)[:, None]), start)
    places = op.unsqueeze(op.range(zero, op.squeeze(length, _ints(op, 0)), one, "i64"), _ints(op, 0))
    mine = op.multiply(op.add(op.multiply(_ints(op, 2), places), _ints(op, 1)), scaled)
    theirs = op.multiply(op.add(op.multiply(_ints(op, 2), targets), _ints(op, 1)), length)
    whole = op.multiply(_ints(op, 2), op.maximum(length, scaled))  # a distance of 1
    distance = op.abs(op.subtract(mine, theirs))
    near = op.minimum(distance, op.multiply(_ints(op, 2), whole))
    shares, rests = _shares(op, near, whole, mode)
    sums, off = (op.reduce_sum(values, _ints(op, 1), True) for values in (shares, rests))
    total = op.add(op.convert(sums, np.float32), off)
    valid = op.logical_and(op.greater_equal(targets, _ints(op, 0)), op.less(targets, scaled))
    together = op.add(op.convert(shares, np.float32), rests)
    if exact:
        return op.select(valid, op.divide(together, total), _float(op, 0))
    rough = op.divide(op.multiply(together, _float(op, ONE)), total)
    weights = op.round(rough, "half_to_even")
    exact = op.subtract(op.multiply(_ints(op, ONE), shares), op.multiply(op.convert(weights, np.int64), sums))
    rest = op.subtract(op.multiply(_float(op, ONE), rests), op.multiply(weights, off))
    missing = op.divide(op.add(op.convert(exact, np.float32), rest), total)
    weights = op.add(weights, op.round(op.add(missing, _float(op, 2e-6)), "half_to_even"))  # halves go up
    left = op.subtract(_float(op, ONE), op.reduce_sum(weights, _ints(op, 1), True))
    nearest = op.equal(distance, op.reduce_min(distance, _ints(op, 1), True))
    first = op.reduce_min(op.select(nearest, places, _ints(op, 1 << 20)), _ints(op, 1), True)
    weights = op.add(weights, op.select(op.equal(places, first), left, _float(op, 0)))
    return op.select(valid, weights, _float(op, 0))


def _shares(op: Any, distance: Any, whole: Any, mode: str) -> tuple[Any, Any]:
    """Return the kernel at distance / whole (0 to 2) times a constant, as int64 and a float32 remainder.

    The triangle is already a whole number. Keys' cubic (a = -0.5) is its value at the nearest 64th, which is a whole
    number over 2 * 64**3, and its Taylor series from there, which ends after the third power.
    """
    if mode == "bilinear":
        shares = op.maximum(op.subtract(whole, distance), _ints(op, 0))
        return shares, op.multiply(op.convert(shares, np.float32), _float(op, 0))
    doubled = op.multiply(_ints(op, 2), whole)
    k = op.divide(op.add(op.multiply(_ints(op, 128), distance), whole), doubled)
    e = op.subtract(op.multiply(_ints(op, 64), distance), op.multiply(k, whole))
    x = op.divide(op.convert(e, np.float32), op.convert(op.multiply(_ints(op, 64), whole), np.float32))
    inner, kf = op.less(distance, whole), op.convert(k, np.float32)

    def polynomial(value: Any, factors: tuple[Any, ...], constant: Any) -> Any:
        result = constant(op, factors[0])
        for factor in factors[1:]:
            result = op.add(op.multiply(result, value), constant(op, factor))
        return result

    def piece(close: tuple[Any, ...], far: tuple[Any, ...], value: Any, constant: Any) -> Any:
        return op.select(inner, polynomial(value, close, constant), polynomial(value, far, constant))

    shares = piece((3, -320, 0, 524288), (-1, 320, -32768, 1048576), k, _ints)
    slope = piece((9 / 8192, -640 / 8192, 0.0), (-1.5 / 4096, 320 / 4096, -4.0), kf, _float)
    bend = piece((9 / 128, -2.5), (-3 / 128, 2.5), kf, _float)
    twist = op.select(inner, _float(op, 1.5), _float(op, -0.5))
    series = op.add(slope, op.multiply(x, op.add(bend, op.multiply(x, twist))))
    return shares, op.multiply(op.multiply(x, series), _float(op, 524288.0))


def _scaled(op: Any, sides: list[Any], contract: Preprocessing) -> list[Any]:
    """Return the height and width that the policy scales to, as `contract.resizing.scaled_size` does: int64 [1]."""
    rows, columns = contract.sides
    if contract.resize == "squash":
        return [_ints(op, rows), _ints(op, columns)]
    height, width = sides
    if contract.resize == "crop":
        rows, columns = contract.edges
        by_width = op.divide(op.multiply(_ints(op, columns), height), width)
        by_height = op.divide(op.multiply(_ints(op, rows), width), height)
        return [op.maximum(_ints(op, rows), by_width), op.maximum(_ints(op, columns), by_height)]

    def rounded(side: int, of: Any, by: Any) -> Any:
        return op.divide(op.add(op.multiply(_ints(op, 2 * side), of), by), op.multiply(_ints(op, 2), by))

    fitted = ((rows, rounded(columns, height, width)), (columns, rounded(rows, width, height)))
    return [op.maximum(op.minimum(_ints(op, side), one), _ints(op, min(2, side))) for side, one in fitted]


def _start(op: Any, scaled: Any, side: int, contract: Preprocessing) -> Any:
    """Return which scaled pixel is the input's first; below 0 if a border comes before the scaled image."""
    size = _ints(op, side)
    if contract.resize == "squash":
        return _ints(op, 0)
    if contract.resize == "crop":
        rest, two = op.subtract(scaled, size), _ints(op, 2)
        if contract.version > 1:  # `Preprocessing.start`: halves to even
            rest = op.add(rest, op.floor_mod(op.divide(rest, two), two))
        return op.divide(rest, two)
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
    if options.features:
        entries["features"] = "the output 'features': float32 [batch, F], the input of the last layer"
    for key, value in entries.items():
        model.set_rt_info(value, ["tellapart", key])


def _value(port: Any) -> str:
    """Return an input or output as text, such as ``images: u8 [?,?,?,3]``."""
    kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
    return f"{port.get_any_name()}: {kind} {shape}"
