"""Half precision for a part of an ONNX graph: weights and computing in fp16, everything around as it was.

Values that cross the border are cast. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tellapart import packages

_LARGEST = 65504.0
_FLOAT_ONLY = {"Resize": (1, 2), "Range": (0, 1, 2)}  # inputs that stay float32, by operator


def to_half(model: Any, inside: Collection[str]) -> Any:
    """Return the model with the nodes named in ``inside`` computing in fp16; inputs and outputs keep their types.

    Weights beyond fp16's range become its largest value.
    """
    onnx = packages.require("onnx", "onnx", "Export to ONNX in fp16")
    return _Half(onnx, onnx.shape_inference.infer_shapes(model), set(inside)).converted()


class _Half:
    def __init__(self, onnx: Any, model: Any, inside: set[str]) -> None:
        self.onnx, self.model, self.graph = onnx, model, model.graph
        self.float, self.half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        infos = (*self.graph.value_info, *self.graph.input, *self.graph.output)
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        self.chosen = [node for node in self.graph.node if node.name in inside and self._can(node)]
        names = {node.name for node in self.chosen}
        self.made_inside = {v for node in self.chosen for v in node.output if self.types.get(v) == self.float}
        others = [node for node in self.graph.node if node.name not in names]
        self.wanted_outside = {v for node in others for v in node.input} | {v.name for v in self.graph.output}
        self.halved: set[str] = set()

    def _can(self, node: Any) -> bool:
        """Return whether a node is converted: not those with graphs in them, or with a type that is fixed."""
        kinds = {attribute.type for attribute in node.attribute}
        return node.op_type not in _FLOAT_ONLY and not kinds & {
            self.onnx.AttributeProto.GRAPH,
            self.onnx.AttributeProto.GRAPHS,
        }

    def converted(self) -> Any:
        """Return the model, changed."""
        chosen = {node.name for node in self.chosen}
        nodes: list[Any] = []
        for node in self.graph.node:
            if node.name not in chosen:
                nodes.append(node)
                continue
            for name in dict.fromkeys(node.input):
                nodes += self._enter(name)
            node.input[:] = [self._half_name(v) if self.types.get(v) == self.float else v for v in node.input]
            self._attributes(node)
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
        """Return what is needed before a float32 value is there in fp16: nothing, or a node that casts it."""
        if self.types.get(name) != self.float or name in self.made_inside or name in self.halved:
            return []
        self.halved.add(name)
        if name not in self.weights:
            return [self._cast(name, self._half_name(name), self.half)]
        self.graph.initializer.append(self._tensor(self.weights[name], self._half_name(name)))
        return []

    def _tensor(self, tensor: Any, name: str) -> Any:
        values = np.clip(self.onnx.numpy_helper.to_array(tensor), -_LARGEST, _LARGEST)
        return self.onnx.numpy_helper.from_array(values.astype(np.float16), name)

    def _attributes(self, node: Any) -> None:
        """Let what a node makes of itself be fp16."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self.float:
                attribute.i = self.half
            elif attribute.HasField("t") and attribute.t.data_type == self.float:
                attribute.t.CopyFrom(self._tensor(attribute.t, attribute.t.name))

    def _drop_unused(self) -> None:
        """Remove the weights that nothing reads in float32 any more, and the notes on values' types."""
        used = {name for node in self.graph.node for name in node.input}
        left = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(left)
        gone = self.made_inside - self.wanted_outside
        infos = [info for info in self.graph.value_info if info.name not in gone]
        del self.graph.value_info[:]
        self.graph.value_info.extend(infos)
