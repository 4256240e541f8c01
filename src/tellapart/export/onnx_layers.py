"""Where an ONNX file's intermediate values begin to differ from those of the torch module that it was made from.

Every node says which modules it came from; so the output of a module in torch has its counterpart in the file.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tellapart import packages
from tellapart.export.graph import GraphModel
from tellapart.runtime import onnx as runtime

Values = npt.NDArray[np.float32]
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node's properties: the modules that it came from
_IMAGES = 2  # whose values of all layers are in memory at once
_NOTICEABLE = {"fp32": 1e-3, "fp16": 3e-2}  # of a layer's largest value


@dataclass(frozen=True)
class _Layer:
    """One module: its name in the network, the node and the tensor in the file, and its output in torch."""

    name: str
    node: str
    tensor: str
    expected: Values


def locate(path: Path, graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> str:
    """Return a sentence on the first layer that differs, for pixels uint8 [B, height, width, C]."""
    onnx = packages.require("onnx", "onnx", "Looking into an ONNX file")
    model = onnx.load(path)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value  # 0: any
    pixels = np.resize(pixels, (batch or min(_IMAGES, len(pixels)), *pixels.shape[1:]))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    layers = _layers(model, _module_outputs(graph, pixels), graph.card.views.count, properties["graph"])
    if not layers:
        return "No layer of the file can be compared with the network's."
    fp16 = properties.get("precision") == "fp16"
    found = _values(
        onnx,
        model,
        [layer.tensor for layer in layers],
        runtime.feed(properties["graph"], graph.card.preprocessing, pixels),
    )
    limit = _NOTICEABLE["fp16" if fp16 else "fp32"]
    agreeing = ""
    for layer, values in zip(layers, found, strict=True):
        scale = float(np.abs(layer.expected).max()) or 1.0
        difference = float(np.abs(values.astype(np.float32) - layer.expected).max()) / scale
        if not difference <= limit:  # true for nan as well
            before = (
                f"; the values agree up to {agreeing}" if agreeing else ", the first that can be compared"
            )
            return (
                f"The difference starts in the layer {layer.name} (node {layer.node}): {difference:.2g} of its "
                f"largest value{before}."
            )
        agreeing = layer.name
    return (
        f"All {len(layers)} layers agree when looked at one by one; the difference comes from what the runtime "
        "fuses, or from before or after the network."
    )


def _module_outputs(graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> list[tuple[str, Values]]:
    """Return the output of every module of the network for the first view, in the order of computation."""
    outputs: list[tuple[str, Values]] = []
    handles = []
    for name, module in graph.network.named_modules():

        def note(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, torch.Tensor):
                outputs.append((name, output.detach().float().numpy().copy()))

        if name:
            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
            graph.network(graph.classify.preprocess.normalised(images))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _layers(model: Any, outputs: list[tuple[str, Values]], views: int, kind: str) -> list[_Layer]:
    """Return the modules whose output in the file is unambiguous, in the order of computation.

    That is the only tensor that leaves a module's nodes; with several views there is one for each, the first view's
    first.
    """
    prefix = "classify.network."
    if kind == "plain":
        prefix = "network." if runtime.FEATURES in {value.name for value in model.graph.output} else ""
    calls = 1 if kind == "plain" else views
    inside: dict[str, list[Any]] = {}
    readers: dict[str, list[int]] = {value.name: [-1] for value in model.graph.output}
    for node in model.graph.node:
        for scope in dict.fromkeys(name.partition("@")[0] for name in scopes(node)[:-1]):
            inside.setdefault(scope, []).append(node)
        for name in node.input:
            readers.setdefault(name, []).append(id(node))
    layers = []
    for name, expected in outputs:
        own = inside.get(prefix + name, [])
        members = {id(node) for node in own}
        leaving = [(n.name, v) for n in own for v in n.output if not members.issuperset(readers.get(v, ()))]
        if len(leaving) == calls:
            layers.append(_Layer(name, *leaving[0], expected))
    return layers


def scopes(node: Any) -> list[str]:
    """Return the qualified names of the modules that a node came from, the outermost first, and its own."""
    text = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    return [str(name) for name in ast.literal_eval(text)]


def _values(onnx: Any, model: Any, names: list[str], feed: dict[str, Any]) -> list[Any]:
    """Return the tensors ``names`` of the file for an input."""
    return list(runtime.showing(onnx, model, names).run(names, feed))
