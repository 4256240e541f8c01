"""Half precision for some of an ONNX graph: products in fp16, everything else in float32.

As with torch's autocast, products (convolutions, matrices) have weights and inputs in fp16; sums with biases,
activations, norms and residual connections are float32. Which products, and why: `tellapart.export.half`. Values that
pass between the two are cast. What would exceed fp16's range stays float32. Knows nothing of networks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import packages
from tellapart.contract import Pixels
from tellapart.export.half import ROOM, fits, rounded, smallest
from tellapart.runtime import onnx as runtime

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_PRODUCTS = (*_WITH_BIAS, "MatMul")
_LOOKED_AT = 4  # images at once


def to_half(
    model: Any, inside: Collection[str], feeds: Iterable[Mapping[str, Any]] = ()
) -> tuple[Any, tuple[str, ...]]:
    """Return the model with the products named in ``inside`` in fp16, and which stay float32 for their range.

    ``feeds``: inputs of the network by name, such as batches of ``pixels``, on which the inputs and outputs of products
    are checked. Without any, only weights are. The model's inputs and outputs keep their types.
    """
    onnx = packages.require("onnx", "onnx", "Export to ONNX in fp16")
    products = [node for node in model.graph.node if node.name in inside and _is_product(node)]
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    weights = {node.name: sizes[node.input[1]] for node in products if node.input[1] in sizes}
    chosen = {node.name for node in products} - smallest(weights, sum(sizes.values()))
    _take_biases_out(onnx, model, chosen)
    products = [node for node in model.graph.node if node.name in chosen]
    beyond = _with_large_weights(onnx, model, products) | _with_large_values(onnx, model, products, feeds)
    names = tuple(node.name for node in products if node.name in beyond)
    return _Half(onnx, onnx.shape_inference.infer_shapes(model), chosen - beyond).converted(), names


def _with_large_weights(onnx: Any, model: Any, products: Sequence[Any]) -> set[str]:
    """Return the names of the products with a constant beyond fp16's range."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name
        for node in products
        if not all(fits(onnx.numpy_helper.to_array(held[name])) for name in node.input if name in held)
    }


def _with_large_values(
    onnx: Any, model: Any, products: Sequence[Any], feeds: Iterable[Mapping[str, Any]]
) -> set[str]:
    """Return the names of the products whose inputs or output come near the limit of fp16's range on ``feeds``."""
    held = {tensor.name for tensor in model.graph.initializer}
    wanted = {node.name: [v for v in (*node.input, *node.output) if v and v not in held] for node in products}
    names = list(dict.fromkeys(name for values in wanted.values() for name in values))
    large: set[str] = set()
    looked = None
    for feed in feeds if names else ():
        looked = looked or runtime.showing(onnx, model, names)
        large |= {
            name for name, v in zip(names, looked.run(names, dict(feed)), strict=True) if not fits(v, ROOM)
        }
    return {node for node, values in wanted.items() if large.intersection(values)}


class Watch:
    """Looks inside a written file for values that fp16 cannot represent.

    ONNX Runtime's CPU computes fp16 products in float32 and leaves out casts there and back, so the file's answers
    there do not show what a device with real fp16 gives. Here every fp16 value is asked for as an output, which no
    optimisation leaves out.
    """

    def __init__(self, file: Path) -> None:
        """Open the ONNX ``file``."""
        onnx = packages.require("onnx", "onnx", "Looking into an ONNX file")
        model = onnx.load(file)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        self.kind = properties.get("graph", "whole")
        self.contract = runtime.card_of(properties, file).preprocessing
        part = runtime.network_of(model)
        self.batch = part.graph.input[0].type.tensor_type.shape.dim[0].dim_value or _LOOKED_AT
        known = onnx.shape_inference.infer_shapes(part).graph
        half = {v.name for v in known.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
        readers = {v: node.name for node in reversed(part.graph.node) for v in node.input}
        self.makers: dict[str, str] = {
            value: readers.get(value, node.name) if node.op_type == "Cast" else node.name
            for node in part.graph.node
            for value in node.output
            if value in half
        }
        self.session = runtime.showing(onnx, part, list(self.makers)) if self.makers else None

    def __call__(self, pixels: Pixels) -> str:
        """Return the first node with an fp16 output that is not finite, for uint8 [B, height, width, C]; "" if none."""
        if self.session is None:
            return ""
        for start in range(0, len(pixels), self.batch):
            part = np.resize(pixels[start : start + self.batch], (self.batch, *pixels.shape[1:]))
            values = self.session.run(list(self.makers), runtime.feed(self.kind, self.contract, part))
            for name, value in zip(self.makers.values(), values, strict=True):
                if not np.isfinite(value).all():
                    return name
        return ""


def _is_product(node: Any) -> bool:
    """Return whether a node is a product whose sums have many terms: not a convolution with groups."""
    groups = [attribute.i for attribute in node.attribute if attribute.name == "group"]
    return node.op_type in _PRODUCTS and groups in ([], [1])


def _take_biases_out(onnx: Any, model: Any, chosen: Collection[str]) -> None:
    """Move the constant bias of the nodes named in ``chosen`` into an Add after them."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute)
        plain = node.op_type not in _WITH_BIAS or len(node.input) < 3 or node.input[2] not in constants
        if node.name not in chosen or plain or scaled:
            continue
        (output,), bias = node.output, onnx.numpy_helper.to_array(constants[node.input[2]])
        if node.op_type != "Gemm":  # along the channels of [B, C, ...]
            bias = bias.reshape(-1, *[1] * (len(constants[node.input[1]].dims) - 2))
        del node.input[2:]
        node.output[0] = f"{output}_without_bias"
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{output}_bias"))
        add = onnx.helper.make_node(
            "Add", [node.output[0], f"{output}_bias"], [output], name=f"{node.name}_bias"
        )
        add.metadata_props.extend(node.metadata_props)
        nodes.append(add)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Half:
    def __init__(self, onnx: Any, model: Any, inside: set[str]) -> None:
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.float, self.half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        infos = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.chosen = inside
        own = [node for node in self.graph.node if node.name in inside]
        self.made_inside = {v for node in own for v in node.output if self.types.get(v) == self.float}
        others = [node for node in self.graph.node if node.name not in inside]
        self.wanted_outside = {v for node in others for v in node.input} | {v.name for v in self.graph.output}
        self.halved: set[str] = set()

    def converted(self) -> Any:
        """Return the model, changed."""
        nodes: list[Any] = []
        for node in self.graph.node:
            if node.name not in self.chosen:
                nodes.append(node)
                continue
            for name in dict.fromkeys(node.input):
                nodes += self._enter(name)
            node.input[:] = [self._half_name(v) if self.types.get(v) == self.float else v for v in node.input]
            nodes.append(node)
            for place, name in enumerate(node.output):
                if name in self.made_inside:
                    node.output[place] = self._half_name(name)
                    if name in self.wanted_outside:
                        nodes.append(self._cast(self._half_name(name), name, self.float))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._drop_unused()
        return self.model

    @staticmethod
    def _half_name(name: str) -> str:
        return f"{name}_fp16"

    def _cast(self, source: str, target: str, kind: int) -> Any:
        return self.onnx.helper.make_node("Cast", [source], [target], name=f"cast_{source}", to=kind)

    def _enter(self, name: str) -> list[Any]:
        """Return the nodes that turn a float32 value into fp16: none, or one that casts it."""
        if self.types.get(name) != self.float or name in self.made_inside or name in self.halved:
            return []
        self.halved.add(name)
        if name not in self.weights:
            return [self._cast(name, self._half_name(name), self.half)]
        self.graph.initializer.append(self._tensor(self.weights[name], self._half_name(name)))
        return []

    def _tensor(self, tensor: Any, name: str) -> Any:
        return self.onnx.numpy_helper.from_array(rounded(self.onnx.numpy_helper.to_array(tensor)), name)

    def _drop_unused(self) -> None:
        """Remove the float32 weights that no node reads any more, and the recorded value types."""
        used = {name for node in self.graph.node for name in node.input}
        left = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(left)
        gone = self.made_inside - self.wanted_outside
        infos = [info for info in self.graph.value_info if info.name not in gone]
        del self.graph.value_info[:]
        self.graph.value_info.extend(infos)
